#include "tier/direct_read.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/round.h"

namespace trims {
namespace {

constexpr size_t kProbesPerFile = 32;

}  // namespace

bool IsInPageCache(int fd, uint64_t offset) {
  std::byte byte;
  const iovec into = {&byte, 1};
  const ssize_t done = ::preadv2(fd, &into, 1, static_cast<off_t>(offset), RWF_NOWAIT);
  return done >= 0 || errno != EAGAIN;
}

DirectFiles::DirectFiles(const Source& source, std::span<const Place> places) {
  std::vector<std::vector<uint64_t>> offsets(source.files().size());
  for (const Place& place : places) offsets[place.file].push_back(place.offset);
  files_.resize(offsets.size());
  for (size_t f = 0; f < offsets.size(); ++f) {
    // The descriptor that a client passed is all that we may read its file through.
    if (offsets[f].empty() || source.files()[f].path.empty()) continue;
    const int fd = source.files()[f].fd.get();
    const size_t probes = std::min(kProbesPerFile, offsets[f].size());
    size_t absent = 0;
    for (size_t i = 0; i < probes; ++i) {
      if (!IsInPageCache(fd, offsets[f][i * offsets[f].size() / probes])) ++absent;
    }
    if (2 * absent <= probes) continue;
    // The same file as `fd`, whatever its path means by now.
    const std::string again = "/proc/self/fd/" + std::to_string(fd);
    files_[f] = UniqueFd(::open(again.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  }
}

Result<std::span<std::byte>> DirectFiles::Read(uint32_t file, uint64_t offset, uint64_t bytes,
                                               std::span<std::byte> buffer,
                                               const std::string& description) const {
  const uint64_t begin = RoundDown(offset, kHostPageBytes);
  const uint64_t end = RoundUp(offset + bytes, kHostPageBytes);
  TRIMS_CHECK(end - begin <= buffer.size());
  disk_.acquire();
  struct Turn {
    std::counting_semaphore<kReadsAtOnce>& disk;
    ~Turn() { disk.release(); }
  } const turn{disk_};
  // The last block of a file is short, and so may any read be.
  for (uint64_t at = begin; at < offset + bytes;) {
    const ssize_t done =
        ::pread(files_[file].get(), buffer.data() + (at - begin), end - at, static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && errno == EINVAL) {
      return UnimplementedError(description + " can not be read past the page cache");
    }
    if (done < 0) {
      const Status status =
          ErrnoStatus(errno, "reading " + description + " at offset " + std::to_string(at));
      return Status(StatusCode::kDataLoss, status.message());
    }
    at += static_cast<uint64_t>(done);
    if (done == 0 || (at < offset + bytes && at % kHostPageBytes != 0)) {
      return OutOfRangeError(description + " ends at offset " + std::to_string(at) + " where " +
                             std::to_string(offset + bytes - at) + " more bytes were expected");
    }
  }
  return buffer.subspan(offset - begin, bytes);
}

}  // namespace trims

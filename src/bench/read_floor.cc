#include "bench/read_floor.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "bench/parallel.h"

namespace trims::bench {
namespace {

constexpr uint64_t kBlockBytes = 8 * kMiB;
constexpr double kCachedShareMax = 0.02;
constexpr int kDropAttempts = 50;
constexpr auto kDropPause = std::chrono::milliseconds(20);

// Of a file's pages.
Result<double> CachedShare(int fd, uint64_t bytes) {
  uint64_t cached = 0;
  std::vector<unsigned char> pages(kGiB / kHostPageBytes);
  for (uint64_t at = 0; at < bytes; at += kGiB) {
    const uint64_t part = std::min(kGiB, bytes - at);
    void* mapped = ::mmap(nullptr, part, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(at));
    if (mapped == MAP_FAILED) return ErrnoStatus(errno, "mapping the weights file");
    const int asked = ::mincore(mapped, part, pages.data());
    const int failure = errno;
    ::munmap(mapped, part);
    if (asked != 0) return ErrnoStatus(failure, "mincore of the weights file");
    const uint64_t count = (part + kHostPageBytes - 1) / kHostPageBytes;
    for (uint64_t i = 0; i < count; ++i) cached += pages[i] & 1;
  }
  return static_cast<double>(cached * kHostPageBytes) / static_cast<double>(bytes);
}

}  // namespace

Result<double> MeasureRead(const std::string& path, ReadKind kind, unsigned threads,
                           const Interrupts& interrupts) {
  const int flags = O_RDONLY | O_CLOEXEC | (kind == ReadKind::kDirect ? O_DIRECT : 0);
  struct Reader {
    UniqueFd fd;
    std::unique_ptr<void, decltype(&std::free)> block{nullptr, std::free};
  };
  std::vector<Reader> readers(threads);
  for (Reader& reader : readers) {
    reader.fd = UniqueFd(::open(path.c_str(), flags));
    if (!reader.fd.valid() && kind == ReadKind::kDirect && errno == EINVAL) {
      return UnimplementedError(path +
                                " can not be read past the page cache: give a --dir on a disk");
    }
    if (!reader.fd.valid()) return ErrnoStatus(errno, "opening " + path);
    reader.block.reset(std::aligned_alloc(kHostPageBytes, kBlockBytes));
    if (reader.block == nullptr) return ErrnoStatus(ENOMEM, "allocating a block to read into");
    std::memset(reader.block.get(), 0, kBlockBytes);  // Page faults are no part of reading.
  }
  struct stat found {};
  if (::fstat(readers[0].fd.get(), &found) != 0) return ErrnoStatus(errno, "stat of " + path);
  const auto bytes = static_cast<uint64_t>(found.st_size);
  std::atomic<uint64_t> next{0};
  Mutex mu;
  Status status;
  const double seconds = InParallel(threads, [&](unsigned i) {
    while (true) {
      const uint64_t at = next.fetch_add(kBlockBytes);
      if (at >= bytes) return;
      Status failed = interrupts.Check();
      uint64_t done = 0;
      while (failed.ok() && done < std::min(kBlockBytes, bytes - at)) {
        const ssize_t got =
            ::pread(readers[i].fd.get(), static_cast<char*>(readers[i].block.get()) + done,
                    kBlockBytes - done, static_cast<off_t>(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
          failed = got == 0 ? AbortedError(path + " became shorter while it was read")
                            : ErrnoStatus(errno, "reading " + path);
        } else {
          done += static_cast<uint64_t>(got);
        }
      }
      if (failed.ok()) continue;
      const MutexLock lock(mu);
      status = failed;
      next = bytes;
    }
  });
  RETURN_IF_ERROR(status);
  return seconds;
}

Status DropFromPageCache(const std::string& path, const Interrupts& interrupts) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat found {};
  if (!fd.valid() || ::fstat(fd.get(), &found) != 0) return ErrnoStatus(errno, "opening " + path);
  double share = 1;
  // Pages that some processor has just touched are not dropped at the first try.
  for (int i = 0; i < kDropAttempts && share > kCachedShareMax; ++i) {
    if (i > 0) RETURN_IF_ERROR(interrupts.Wait(kDropPause));
    if (const int failed = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED); failed != 0) {
      return ErrnoStatus(failed, "dropping " + path + " from the page cache");
    }
    ASSIGN_OR_RETURN(share, CachedShare(fd.get(), static_cast<uint64_t>(found.st_size)));
  }
  if (share > kCachedShareMax) {
    return FailedPreconditionError(
        path + " stays in memory: " + std::to_string(static_cast<int>(share * 100)) +
        " % of it is still in the page cache. Give a --dir on a disk, not on tmpfs");
  }
  return OkStatus();
}

}  // namespace trims::bench

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "format/model_file.h"

namespace trims::format {
namespace {

// Of one pread: Linux transfers at most 0x7ffff000 bytes in one call anyway.
constexpr size_t kMaxReadBytes = size_t{1} << 30;

Status CheckRange(const ByteSource& source, uint64_t offset, size_t size) {
  if (offset <= source.size() && size <= source.size() - offset) return OkStatus();
  return OutOfRangeError(source.description() + ": a read of " + std::to_string(size) +
                         " bytes at offset " + std::to_string(offset) +
                         " passes the end, which is " + std::to_string(source.size()));
}

}  // namespace

Status MemorySource::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  RETURN_IF_ERROR(CheckRange(*this, offset, out.size()));
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  return OkStatus();
}

Result<FileSource> FileSource::Open(int fd, std::string description) {
  struct stat st = {};
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, description + ": fstat");
  if (!S_ISREG(st.st_mode)) {
    const char* kind = S_ISDIR(st.st_mode)                          ? "a directory"
                       : S_ISFIFO(st.st_mode)                       ? "a pipe"
                       : S_ISSOCK(st.st_mode)                       ? "a socket"
                       : S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode) ? "a device"
                                                                    : "not a regular file";
    return InvalidArgumentError(description + " is " + kind + "; expected a regular file");
  }
  return FileSource(fd, static_cast<uint64_t>(st.st_size), std::move(description));
}

Status FileSource::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  RETURN_IF_ERROR(CheckRange(*this, offset, out.size()));
  while (!out.empty()) {
    const ssize_t n =
        pread(fd_, out.data(), std::min(out.size(), kMaxReadBytes), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      // Whatever the kernel calls it (EIO, ESTALE), the bytes can not be had.
      return DataLossError(
          ErrnoStatus(errno, description_ + ": read at offset " + std::to_string(offset))
              .message());
    }
    if (n == 0) {
      return OutOfRangeError(description_ + " shrank while it was read: it had " +
                             std::to_string(size_) + " bytes and now ends before byte " +
                             std::to_string(offset));
    }
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return OkStatus();
}

}  // namespace trims::format

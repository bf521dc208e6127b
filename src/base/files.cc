#include "base/files.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace trims {

Result<std::string> ReadSmallFile(const std::string& path, size_t bytes_max,
                                  const std::string& description) {
  const std::string what = "reading " + (description.empty() ? path : description);
  // Opening a pipe without a writer, or a terminal, must not hold the caller up.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, what);
  std::string text;
  for (;;) {
    char buffer[16 * kKiB];
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      // A pipe whose writer has written nothing yet.
      pollfd readable{.fd = fd.get(), .events = POLLIN, .revents = 0};
      if (::poll(&readable, 1, -1) >= 0 || errno == EINTR) continue;
    }
    if (n < 0) return ErrnoStatus(errno, what);
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > bytes_max) {
      return OutOfRangeError(what + ": it is larger than " + ExactSize(bytes_max));
    }
  }
}

Status WriteAll(int fd, std::string_view bytes, const std::string& name) {
  size_t done = 0;
  const auto what = [&] {
    return "writing " + name + ", where " + std::to_string(done) + " of " +
           std::to_string(bytes.size()) + " bytes arrived";
  };
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, what());
    if (n == 0) return InternalError(what() + ": the system takes no more and does not say why");
    done += static_cast<size_t>(n);
  }
  return OkStatus();
}

Status ReplaceFileAt(int directory, const std::string& directory_name, const NewFile& file,
                     std::string_view bytes) {
  const std::string shown = directory_name + "/" + file.temporary;
  UniqueFd fd(::openat(directory, file.temporary.c_str(),
                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file.mode));
  if (!fd.valid()) return ErrnoStatus(errno, "creating " + shown);
  Status status = WriteAll(fd.get(), bytes, shown);
  if (status.ok() && ::fsync(fd.get()) != 0) status = ErrnoStatus(errno, "flushing " + shown);
  fd.Reset();
  if (status.ok() &&
      ::renameat(directory, file.temporary.c_str(), directory, file.name.c_str()) != 0) {
    status = ErrnoStatus(errno, "renaming " + shown + " to " + file.name);
  }
  if (!status.ok()) {
    ::unlinkat(directory, file.temporary.c_str(), 0);
    return status;
  }
  if (::fsync(directory) != 0) {
    return ErrnoStatus(errno, "flushing the directory " + directory_name);
  }
  return OkStatus();
}

Status ReplaceFile(const std::string& path, std::string_view bytes, mode_t mode) {
  const size_t slash = path.rfind('/');
  const std::string directory =
      slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  NewFile file{.name = path.substr(slash == std::string::npos ? 0 : slash + 1),
               .temporary = "",
               .mode = mode};
  file.temporary = file.name + "." + std::to_string(::getpid()) + ".part";
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "opening the directory " + directory);
  // A name of its own and O_EXCL: neither a link that somebody put there nor another
  // process's file is followed or mixed with ours.
  ::unlinkat(fd.get(), file.temporary.c_str(), 0);
  return ReplaceFileAt(fd.get(), directory, file, bytes);
}

}  // namespace trims

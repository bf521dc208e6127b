// UniqueFd owns one file descriptor. Move-only; closes on destruction.
// Thread-compatible.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/status.h"

namespace trims {

class UniqueFd final {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}  // Takes ownership.
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { Reset(); }

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }                // Borrowed.
  int Take() { return std::exchange(fd_, -1); }  // The caller owns it now.
  void Reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }
  // A second, close-on-exec descriptor of the same open file.
  Result<UniqueFd> Dup() const {
    const int copy = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return ErrnoStatus(errno, "duplicating a descriptor");
    return UniqueFd(copy);
  }

 private:
  int fd_ = -1;
};

}  // namespace trims

// Huge pages for tests: takes some from the machine and gives them back. Header
// only, never part of the product.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/unique_fd.h"

namespace trims {

// While one exists the machine has `pages` more 2 MiB pages than before, if
// reason() is empty; else it says why not. One at a time on the whole machine.
class ReservedHugePages final {
 public:
  explicit ReservedHugePages(int pages) : fd_(::open(kPool, O_RDWR | O_CLOEXEC)) {
    if (!fd_.valid()) {
      reason_ = std::string("changing ") + kPool + " needs root on a kernel with huge pages";
      return;
    }
    // Two tests that change the pool at once would restore each other's number.
    if (::flock(fd_.get(), LOCK_EX) != 0) {
      reason_ = std::string("locking ") + kPool + " failed";
      return;
    }
    before_ = ReadNumber();
    if (!WriteNumber(before_ + pages) || ReadNumber() < before_ + pages) {
      reason_ = "the machine has no room for " + std::to_string(pages) + " more huge pages";
    }
  }
  ~ReservedHugePages() {
    if (before_ >= 0) WriteNumber(before_);
  }
  ReservedHugePages(const ReservedHugePages&) = delete;
  ReservedHugePages& operator=(const ReservedHugePages&) = delete;

  const std::string& reason() const { return reason_; }

 private:
  static constexpr const char* kPool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

  int ReadNumber() const {
    char text[32] = {};
    const ssize_t size = ::pread(fd_.get(), text, sizeof text - 1, 0);
    return size > 0 ? std::atoi(text) : -1;
  }
  bool WriteNumber(int pages) const {
    const std::string text = std::to_string(pages);
    return ::pwrite(fd_.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  }

  UniqueFd fd_;
  int before_ = -1;
  std::string reason_;
};

}  // namespace trims

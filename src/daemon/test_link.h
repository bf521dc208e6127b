// What tests of keeper and worker share: a link that is waited for, and the log of a process.
// Header only, never part of the product. Thread-compatible.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "daemon/ledger_link.h"

namespace trims {

inline constexpr int kPatienceMs = 60'000;

inline bool WaitReadable(int fd) {
  pollfd ready{fd, POLLIN, 0};
  int result;
  do {
    result = ::poll(&ready, 1, kPatienceMs);
  } while (result < 0 && errno == EINTR);
  return result == 1;
}

// Waits a minute; then DEADLINE_EXCEEDED.
inline Result<LinkMessage> NextLinkMessage(int link) {
  if (!WaitReadable(link)) return DeadlineExceededError("nothing is said");
  return ReceiveLink(link);
}

// The reading end of the pipe that a process has for stderr.
class ProcessLog final {
 public:
  // Returns the end for the process.
  UniqueFd Open() {
    int pipe[2] = {-1, -1};
    EXPECT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    read_ = UniqueFd(pipe[0]);
    return UniqueFd(pipe[1]);
  }
  // Reads on until `text` is in it.
  void WaitFor(const std::string& text) {
    while (seen_.find(text) == std::string::npos) {
      char buffer[4096];
      ssize_t got = -1;
      if (WaitReadable(read_.get())) got = ::read(read_.get(), buffer, sizeof buffer);
      ASSERT_GT(got, 0) << "not in the log: " << text << "\n" << seen_;
      seen_.append(buffer, static_cast<size_t>(got));
    }
  }
  const std::string& seen() const { return seen_; }

 private:
  UniqueFd read_;
  std::string seen_;
};

}  // namespace trims

#include "bench/interrupts.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>

namespace trims::bench {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};

// What the handler writes to.
std::atomic<int> g_event{-1};

void Remember(int) {
  const int saved = errno;
  const uint64_t one = 1;
  // A handler can do nothing about a failure.
  [[maybe_unused]] const ssize_t done = ::write(g_event.load(), &one, sizeof one);
  errno = saved;
}

}  // namespace

Interrupts::Interrupts() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  g_event = event_.get();
  struct sigaction action {};
  action.sa_handler = Remember;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  for (const int signal : kSignals) ::sigaction(signal, &action, nullptr);
}

Interrupts::~Interrupts() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  for (const int signal : kSignals) ::sigaction(signal, &action, nullptr);
  g_event = -1;
}

Status Interrupts::Wait(std::chrono::milliseconds time) const {
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd event{event_.get(), POLLIN, 0};
    const int got = ::poll(&event, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (got > 0) return CancelledError("interrupted");
    if (got == 0) return OkStatus();
    if (errno != EINTR) return ErrnoStatus(errno, "waiting");
  }
}

}  // namespace trims::bench

// The worker's event loop: one thread, epoll, timers, and a mailbox for the rest
// of the process. Everything that touches the store runs here.
//
// Watches and timers have ids that are never used twice, so an event that was on
// its way when its watch ended finds nothing: not even another descriptor that
// has got the same number meanwhile.
//
// Every callback has a name (a literal: kept as a pointer). One that holds the
// loop longer than kReactorHoldWarning is counted, and told in the log with its
// name, at most once a second.
//
// Post(), slow_callbacks() and longest_callback() are thread-safe; every other
// member is for the loop's thread, or for before Run().
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace trims {

// Longer than this, and everybody else has noticed.
inline constexpr Duration kReactorHoldWarning = std::chrono::milliseconds(10);

class Reactor final {
 public:
  using FdCallback = std::function<void(uint32_t events)>;
  enum class WatchId : uint64_t { kNone = 0 };
  enum class TimerId : uint64_t { kNone = 0 };

  static Result<std::unique_ptr<Reactor>> Create();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Watches `fd` (borrowed) for EPOLLIN | EPOLLOUT …, level-triggered. The
  // callback may end its own watch or any other.
  Result<WatchId> Watch(int fd, uint32_t events, const char* name, FdCallback callback);
  // Unknown and ended ids are ignored here and below.
  void ChangeEvents(WatchId id, uint32_t events);
  // Must be called before the descriptor is closed. No callback comes any more.
  void Unwatch(WatchId id);

  // Runs `callback` once at `when` or soon after; in the next turn at the earliest when it is
  // set by a timer's callback, so that nobody holds the loop by always being due.
  TimerId RunAt(Time when, const char* name, std::function<void()> callback);
  void CancelTimer(TimerId id);

  // Runs `callback` on the loop's thread, in posting order. Dropped when the
  // loop has ended.
  void Post(const char* name, std::function<void()> callback);

  // After something has happened the loop looks for more without sleeping for so long: who
  // says hello asks for a model next, and waking up would cost more than answering. For
  // machines with cores to spare; zero, the default, always sleeps.
  void SetSpin(Duration spin) { spin_ = spin; }

  void Run();   // Until Stop(); then the loop has ended for good.
  void Stop();  // From the loop's thread.
  // One turn of the loop on the caller's thread, which then is the loop's: waits at most so
  // long for something to happen, and does what is due. For tests that drive it in steps.
  void RunOnce(Duration wait_max);

  // Callbacks that held the loop longer than kReactorHoldWarning, and the longest of all.
  uint64_t slow_callbacks() const { return slow_callbacks_.load(std::memory_order_relaxed); }
  Duration longest_callback() const {
    return Duration(longest_callback_ns_.load(std::memory_order_relaxed));
  }

 private:
  struct Watched {
    int fd = -1;
    const char* name = nullptr;
    FdCallback callback;
  };
  struct Timer {
    const char* name = nullptr;
    std::function<void()> callback;
  };
  struct Posted {
    const char* name = nullptr;
    std::function<void()> callback;
  };

  Reactor(UniqueFd epoll, UniqueFd wakeup) : epoll_(std::move(epoll)), wakeup_(std::move(wakeup)) {}
  void Turn(int wait_max_ms);  // -1: as long as it takes.
  void RunTimers();
  void RunPosted();
  int NextTimeoutMs() const;
  // A callback of this name has just returned; the next one begins where it ended.
  void NoteReturn(const char* name);

  UniqueFd epoll_;
  UniqueFd wakeup_;  // eventfd
  bool stopping_ = false;
  Duration spin_ = Duration::zero();
  Time spin_until_{};
  // Shared so that a callback survives its own Unwatch.
  std::unordered_map<uint64_t, std::shared_ptr<Watched>> watches_;
  uint64_t next_watch_ = 1;
  std::map<std::pair<Time, uint64_t>, Timer> timers_;
  std::unordered_map<uint64_t, Time> timer_times_;
  uint64_t next_timer_ = 1;

  Time callback_began_{};
  Time slow_told_at_{};
  uint64_t slow_untold_ = 0;
  std::atomic<uint64_t> slow_callbacks_{0};
  std::atomic<int64_t> longest_callback_ns_{0};

  std::mutex mu_;
  std::vector<Posted> posted_;  // Guarded by mu_.
  bool ended_ = false;          // Guarded by mu_.
};

}  // namespace trims

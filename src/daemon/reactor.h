// The worker's event loop: one thread, epoll, timers, and a mailbox for the rest
// of the process. Everything that touches the store runs here.
//
// Post() is thread-safe; every other member is for the loop's thread, or for
// before Run().
#pragma once

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

class Reactor final {
 public:
  using FdCallback = std::function<void(uint32_t events)>;
  using TimerId = uint64_t;

  static Result<std::unique_ptr<Reactor>> Create();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Watches `fd` (borrowed) for EPOLLIN | EPOLLOUT …, level-triggered. The
  // callback may remove its own or any other descriptor.
  Status Watch(int fd, uint32_t events, FdCallback callback);
  void ChangeEvents(int fd, uint32_t events);
  // Must be called before the descriptor is closed.
  void Unwatch(int fd);

  // Runs `callback` once at `when` or soon after.
  TimerId RunAt(Time when, std::function<void()> callback);
  void CancelTimer(TimerId id);  // Unknown or past ids are ignored.

  // Runs `callback` on the loop's thread, in posting order. Dropped when the
  // loop has ended.
  void Post(std::function<void()> callback);

  // After something has happened the loop looks for more without sleeping for so long: who
  // says hello asks for a model next, and waking up would cost more than answering. For
  // machines with cores to spare; zero, the default, always sleeps.
  void SetSpin(Duration spin) { spin_ = spin; }

  void Run();   // Until Stop().
  void Stop();  // From the loop's thread.

 private:
  Reactor(UniqueFd epoll, UniqueFd wakeup) : epoll_(std::move(epoll)), wakeup_(std::move(wakeup)) {}
  void RunTimers();
  void RunPosted();
  int NextTimeoutMs() const;

  UniqueFd epoll_;
  UniqueFd wakeup_;  // eventfd
  bool stopping_ = false;
  Duration spin_ = Duration::zero();
  // Shared so that a callback survives its own Unwatch.
  std::unordered_map<int, std::shared_ptr<FdCallback>> callbacks_;
  std::map<std::pair<Time, TimerId>, std::function<void()>> timers_;
  std::unordered_map<TimerId, Time> timer_times_;
  TimerId next_timer_ = 1;

  std::mutex mu_;
  std::vector<std::function<void()>> posted_;  // Guarded by mu_.
  bool ended_ = false;                         // Guarded by mu_.
};

}  // namespace trims

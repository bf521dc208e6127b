#include "daemon/reactor.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>

#include "daemon/log.h"

namespace trims {
namespace {

// Warnings about slow callbacks: one in this time, so that a slow machine does not also fill
// its log.
constexpr Duration kSlowWarningPause = std::chrono::seconds(1);
// Of one wait: what epoll_wait can count, with room to spare.
constexpr int64_t kTurnMaxMs = 60'000;

// What is posted runs at most so long before descriptors and timers have their turn.
constexpr Duration kPostedTurn = std::chrono::milliseconds(2);

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::Create() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return ErrnoStatus(errno, "creating the event loop");
  UniqueFd wakeup(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup.valid()) return ErrnoStatus(errno, "creating the event loop's mailbox");
  std::unique_ptr<Reactor> reactor(new Reactor(std::move(epoll), std::move(wakeup)));
  RETURN_IF_ERROR(reactor
                      ->Watch(reactor->wakeup_.get(), EPOLLIN, "mailbox",
                              [raw = reactor.get()](uint32_t) {
                                uint64_t count;
                                (void)!::read(raw->wakeup_.get(), &count, sizeof count);
                              })
                      .status());
  return reactor;
}

Result<Reactor::WatchId> Reactor::Watch(int fd, uint32_t events, const char* name,
                                        FdCallback callback) {
  const uint64_t id = next_watch_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return ErrnoStatus(errno, "watching a descriptor");
  }
  watches_.emplace(id, std::make_shared<Watched>(Watched{fd, name, std::move(callback)}));
  return static_cast<WatchId>(id);
}

void Reactor::ChangeEvents(WatchId id, uint32_t events) {
  const auto it = watches_.find(static_cast<uint64_t>(id));
  if (it == watches_.end()) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = it->first;
  TRIMS_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, it->second->fd, &event) == 0);
}

void Reactor::Unwatch(WatchId id) {
  const auto it = watches_.find(static_cast<uint64_t>(id));
  if (it == watches_.end()) return;
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->fd, nullptr);
  watches_.erase(it);
}

Reactor::TimerId Reactor::RunAt(Time when, const char* name, std::function<void()> callback) {
  const uint64_t id = next_timer_++;
  timers_.emplace(std::pair(when, id), Timer{name, std::move(callback)});
  timer_times_.emplace(id, when);
  return static_cast<TimerId>(id);
}

void Reactor::CancelTimer(TimerId id) {
  const auto it = timer_times_.find(static_cast<uint64_t>(id));
  if (it == timer_times_.end()) return;
  timers_.erase(std::pair(it->second, it->first));
  timer_times_.erase(it);
}

void Reactor::Post(const char* name, std::function<void()> callback) {
  bool first;
  {
    std::lock_guard lock(mu_);
    if (ended_) return;
    first = posted_.empty();
    posted_.push_back(Posted{name, std::move(callback)});
  }
  if (first) {
    const uint64_t one = 1;
    (void)!::write(wakeup_.get(), &one, sizeof one);
  }
}

void Reactor::NoteReturn(const char* name) {
  const Time now = Now();
  const Duration held = now - callback_began_;
  callback_began_ = now;
  if (held.count() > longest_callback_ns_.load(std::memory_order_relaxed))
    longest_callback_ns_.store(held.count(), std::memory_order_relaxed);
  if (held <= kReactorHoldWarning) return;
  slow_callbacks_.fetch_add(1, std::memory_order_relaxed);
  ++slow_untold_;
  if (slow_told_at_ != Time{} && now - slow_told_at_ < kSlowWarningPause) return;
  slow_told_at_ = now;
  LogWarn("callback held the reactor",
          {{"callback", name}, {"held", held}, {"slow_callbacks", slow_untold_}});
  slow_untold_ = 0;
  callback_began_ = Now();  // A log that blocks is not the next callback's fault.
}

void Reactor::RunPosted() {
  std::vector<Posted> batch;
  {
    std::lock_guard lock(mu_);
    batch.swap(posted_);
  }
  const Time turn_ends = Now() + kPostedTurn;
  for (auto posted = batch.begin(); posted != batch.end(); ++posted) {
    posted->callback();
    posted->callback = nullptr;  // What it holds goes on its account.
    NoteReturn(posted->name);
    if (callback_began_ < turn_ends || posted + 1 == batch.end()) continue;
    // Thousands of short ones would hold everybody as one long one does: the rest comes after
    // whoever waits at a descriptor.
    std::lock_guard lock(mu_);
    posted_.insert(posted_.begin(), std::make_move_iterator(posted + 1),
                   std::make_move_iterator(batch.end()));
    const uint64_t one = 1;
    (void)!::write(wakeup_.get(), &one, sizeof one);
    return;
  }
}

void Reactor::RunTimers() {
  if (timers_.empty()) return;
  const Time now = Now();
  std::vector<uint64_t> due;
  for (auto it = timers_.begin(); it != timers_.end() && it->first.first <= now; ++it)
    due.push_back(it->first.second);
  for (const uint64_t id : due) {
    const auto time = timer_times_.find(id);
    if (time == timer_times_.end()) continue;  // An earlier one of this batch cancelled it.
    const auto node = timers_.extract(std::pair(time->second, id));
    timer_times_.erase(time);
    node.mapped().callback();
    NoteReturn(node.mapped().name);
  }
}

int Reactor::NextTimeoutMs() const {
  if (timers_.empty()) return -1;
  const auto wait = timers_.begin()->first.first - Now();
  if (wait <= Duration::zero()) return 0;
  // Rounded up, so that the loop does not spin until the timer is due.
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(wait).count();
  return static_cast<int>(std::min<int64_t>(ms, kTurnMaxMs));
}

void Reactor::Turn(int wait_max_ms) {
  std::array<epoll_event, 64> events;
  const bool spins = spin_ > Duration::zero() && Now() < spin_until_;
  int wait_ms = spins ? 0 : NextTimeoutMs();
  if (wait_max_ms >= 0) wait_ms = wait_ms < 0 ? wait_max_ms : std::min(wait_ms, wait_max_ms);
  const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), wait_ms);
  TRIMS_CHECK(count >= 0 || errno == EINTR);
  callback_began_ = Now();
  if (count > 0 && spin_ > Duration::zero()) spin_until_ = callback_began_ + spin_;
  for (int i = 0; i < count && !stopping_; ++i) {
    // An earlier callback of this batch may have ended this watch: then there is nobody to
    // tell.
    const auto it = watches_.find(events[i].data.u64);
    if (it == watches_.end()) continue;
    const std::shared_ptr<Watched> watched = it->second;
    watched->callback(events[i].events);
    NoteReturn(watched->name);
  }
  RunPosted();
  RunTimers();
}

void Reactor::RunOnce(Duration wait_max) {
  Turn(static_cast<int>(std::clamp<int64_t>(
      std::chrono::ceil<std::chrono::milliseconds>(wait_max).count(), 0, kTurnMaxMs)));
}

void Reactor::Run() {
  while (!stopping_) Turn(-1);
  std::vector<Posted> dropped;
  std::lock_guard lock(mu_);
  ended_ = true;
  dropped.swap(posted_);
}

void Reactor::Stop() { stopping_ = true; }

}  // namespace trims

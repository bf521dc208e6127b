#include "daemon/reactor.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace trims {

Result<std::unique_ptr<Reactor>> Reactor::Create() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return ErrnoStatus(errno, "creating the event loop");
  UniqueFd wakeup(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup.valid()) return ErrnoStatus(errno, "creating the event loop's mailbox");
  std::unique_ptr<Reactor> reactor(new Reactor(std::move(epoll), std::move(wakeup)));
  RETURN_IF_ERROR(reactor->Watch(reactor->wakeup_.get(), EPOLLIN, [raw = reactor.get()](uint32_t) {
    uint64_t count;
    (void)!::read(raw->wakeup_.get(), &count, sizeof count);
  }));
  return reactor;
}

Status Reactor::Watch(int fd, uint32_t events, FdCallback callback) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return ErrnoStatus(errno, "watching a descriptor");
  }
  callbacks_[fd] = std::make_shared<FdCallback>(std::move(callback));
  return OkStatus();
}

void Reactor::ChangeEvents(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  TRIMS_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void Reactor::Unwatch(int fd) {
  if (callbacks_.erase(fd) == 0) return;
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

Reactor::TimerId Reactor::RunAt(Time when, std::function<void()> callback) {
  const TimerId id = next_timer_++;
  timers_.emplace(std::pair(when, id), std::move(callback));
  timer_times_.emplace(id, when);
  return id;
}

void Reactor::CancelTimer(TimerId id) {
  const auto it = timer_times_.find(id);
  if (it == timer_times_.end()) return;
  timers_.erase(std::pair(it->second, id));
  timer_times_.erase(it);
}

void Reactor::Post(std::function<void()> callback) {
  bool first;
  {
    std::lock_guard lock(mu_);
    if (ended_) return;
    first = posted_.empty();
    posted_.push_back(std::move(callback));
  }
  if (first) {
    const uint64_t one = 1;
    (void)!::write(wakeup_.get(), &one, sizeof one);
  }
}

void Reactor::RunPosted() {
  std::vector<std::function<void()>> batch;
  {
    std::lock_guard lock(mu_);
    batch.swap(posted_);
  }
  for (auto& callback : batch) callback();
}

void Reactor::RunTimers() {
  if (timers_.empty()) return;
  const Time now = Now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    node.mapped()();
  }
}

int Reactor::NextTimeoutMs() const {
  if (timers_.empty()) return -1;
  const auto wait = timers_.begin()->first.first - Now();
  if (wait <= Duration::zero()) return 0;
  // Rounded up, so that the loop does not spin until the timer is due.
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(wait).count();
  return static_cast<int>(std::min<int64_t>(ms, 60'000));
}

void Reactor::Run() {
  std::array<epoll_event, 64> events;
  Time spin_until{};
  while (!stopping_) {
    const bool spins = spin_ > Duration::zero() && Now() < spin_until;
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), events.size(), spins ? 0 : NextTimeoutMs());
    TRIMS_CHECK(count >= 0 || errno == EINTR);
    if (count > 0 && spin_ > Duration::zero()) spin_until = Now() + spin_;
    for (int i = 0; i < count && !stopping_; ++i) {
      // An earlier callback of this batch may have unwatched this descriptor, or
      // even have closed it and watched another one of the same number: the
      // callback then sees a spurious event, which every callback tolerates.
      const auto it = callbacks_.find(events[i].data.fd);
      if (it == callbacks_.end()) continue;
      const std::shared_ptr<FdCallback> callback = it->second;
      (*callback)(events[i].events);
    }
    RunPosted();
    RunTimers();
  }
  std::vector<std::function<void()>> dropped;
  std::lock_guard lock(mu_);
  ended_ = true;
  dropped.swap(posted_);
}

void Reactor::Stop() { stopping_ = true; }

}  // namespace trims

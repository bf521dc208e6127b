#include "fake_cuda/work.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace fake_cuda {

void Mark::Pass() {
  const std::lock_guard lock(mutex_);
  is_passed_ = true;
  passed_.notify_all();
}

bool Mark::passed() {
  const std::lock_guard lock(mutex_);
  return is_passed_;
}

void Mark::Wait() {
  std::unique_lock lock(mutex_);
  passed_.wait(lock, [this] { return is_passed_; });
}

std::shared_ptr<WorkQueue> WorkQueue::Start() {
  std::shared_ptr<WorkQueue> queue(new WorkQueue);
  std::thread([queue] { queue->Run(); }).detach();
  return queue;
}

void WorkQueue::Add(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  work_.push_back(std::move(work));
  ++added_;
  changed_.notify_all();
}

void WorkQueue::Drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this, last = added_] { return done_ >= last; });
}

bool WorkQueue::idle() {
  const std::lock_guard lock(mutex_);
  return done_ == added_;
}

void WorkQueue::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

void WorkQueue::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !work_.empty(); });
    if (work_.empty()) return;
    std::function<void()> work = std::move(work_.front());
    work_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // What it holds may take locks to go.
    lock.lock();
    ++done_;
    changed_.notify_all();
  }
}

void Link::Carry(uint64_t bytes, double bytes_per_second) {
  if (bytes_per_second <= 0) return;
  std::chrono::steady_clock::time_point done;
  {
    const std::lock_guard lock(mutex_);
    free_at_ = std::max(free_at_, std::chrono::steady_clock::now()) +
               std::chrono::nanoseconds(
                   static_cast<int64_t>(static_cast<double>(bytes) / bytes_per_second * 1e9));
    done = free_at_;
  }
  // tidy: allow sleep, because taking time is what a link is simulated for.
  std::this_thread::sleep_until(done);
}

}  // namespace fake_cuda

// Streams and events: queues of work, each on a thread of its own, and marks in
// them. Links: how fast bytes move.
//
// A stream's state outlives its handle until its queue is empty, as the driver
// promises. Threads are detached: they end with their stream, or with the process.
// Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "fake_cuda/driver_api.h"

namespace fake_cuda {

// A point that work passes once.
class Mark final {
 public:
  void Pass();
  bool passed();
  void Wait();

 private:
  std::mutex mutex_;
  std::condition_variable passed_;
  bool is_passed_ = false;
};

class WorkQueue final {
 public:
  static std::shared_ptr<WorkQueue> Start();

  void Add(std::function<void()> work);
  // Waits for what was added before.
  void Drain();
  bool idle();
  // No more will be added: the thread ends when the rest is done.
  void Close();

 private:
  WorkQueue() = default;
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  uint64_t added_ = 0;
  uint64_t done_ = 0;
  bool closed_ = false;
};

// One direction of one connection, shared by all streams of the process.
class Link final {
 public:
  // Waits as long as `bytes` take behind what is under way, at `bytes_per_second`.
  // 0: no limit.
  void Carry(uint64_t bytes, double bytes_per_second);

 private:
  std::mutex mutex_;
  std::chrono::steady_clock::time_point free_at_;
};

}  // namespace fake_cuda

// A crew: the threads of one load or one ingest, and the progress they report
// together. Only for use inside this folder. Thread-safe where said.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/machine.h"
#include "base/mutex.h"
#include "base/status.h"
#include "tier/tier.h"

namespace trims {

// `asked` threads, or min(8, cores) for 0, and no more than there are work items.
inline int CrewSize(int asked, size_t work_items) {
  int size = asked;
  if (size <= 0) size = Cores(8);
  return std::max(
      1, static_cast<int>(std::min<size_t>(static_cast<size_t>(std::max(size, 1)), work_items)));
}

// Runs `body(stop)` on `size` threads, the calling one among them, and returns
// when all are done: the first error, else OK. After an error `stop` is true; a
// body looks at it between two pieces of work.
template <typename Body>
Status RunCrew(int size, const Body& body) {
  std::atomic<bool> stop{false};
  Mutex mutex;
  Status first_error;
  const auto run = [&] {
    Status status;
    try {
      status = body(static_cast<const std::atomic<bool>&>(stop));
    } catch (const std::bad_alloc&) {
      status = ResourceExhaustedError("no memory for a loader's buffer");
    }
    if (status.ok()) return;
    const MutexLock lock(mutex);
    if (first_error.ok()) first_error = std::move(status);
    stop.store(true, std::memory_order_relaxed);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < size; ++i) {
    // A process at its thread limit works on with those it has.
    try {
      others.emplace_back(run);
    } catch (const std::system_error&) {
      break;
    }
  }
  run();
  for (std::thread& thread : others) thread.join();
  return first_error;
}

// Sums what threads have done. Add is thread-safe; the calls to on_progress never
// overlap and their numbers only rise.
class Progress final {
 public:
  Progress(LoadControl& control, uint64_t total) : control_(control), total_(total) {
    if (control_.on_progress) control_.on_progress(0, total_);
  }

  // CANCELLED when the load is no longer wanted.
  Status Add(uint64_t bytes) {
    if (control_.on_progress && bytes > 0) {
      const MutexLock lock(mutex_);
      done_ += bytes;
      control_.on_progress(done_, total_);
    }
    return CheckWanted();
  }

  Status CheckWanted() const {
    if (!control_.cancelled.load(std::memory_order_relaxed)) return OkStatus();
    return CancelledError("nobody waits for this load any more");
  }

 private:
  LoadControl& control_;
  const uint64_t total_;
  Mutex mutex_;
  uint64_t done_ TRIMS_GUARDED_BY(mutex_) = 0;
};

}  // namespace trims

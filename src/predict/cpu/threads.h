// How many threads oneDNN uses for the next kernel that this thread builds or runs.
//
// oneDNN asks OpenMP. A kernel that is done in microseconds must not wait for a
// second thread: on a machine that runs many short-lived processes that thread is
// often not scheduled for milliseconds. So small kernels are built and run with
// one thread, large ones with OpenMP's number (all cores, or OMP_NUM_THREADS).
#pragma once

#include <cstdint>

namespace trims::predict {

// Below this many multiply-adds, or elements read and written, a second thread
// costs more than it brings; about 20 us of one core.
inline constexpr uint64_t kParallelWorkMin = 1 << 20;

// For its lifetime this thread's OpenMP regions have one thread, if `single`.
class ThreadScope final {
 public:
  explicit ThreadScope(bool single);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_ = 0;  // 0: nothing to restore.
};

}  // namespace trims::predict

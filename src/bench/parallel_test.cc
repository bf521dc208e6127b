// Threads that begin together.
#include "bench/parallel.h"

#include <atomic>
#include <thread>
#include <vector>

#include "bench/test_bench.h"

namespace trims::bench {
namespace {

TEST(ParallelTest, EveryThreadRunsOnceAndAllAtOnce) {
  std::atomic<unsigned> arrived{0};
  std::vector<std::atomic<int>> ran(4);
  const double seconds = InParallel(4, [&](unsigned i) {
    ++ran[i];
    ++arrived;
    while (arrived < 4) std::this_thread::yield();  // Ends only when all four run at once.
  });
  for (const std::atomic<int>& times : ran) EXPECT_EQ(times, 1);
  EXPECT_GT(seconds, 0);
}

TEST(ParallelTest, ReadsUseAtLeastOneThreadAndNotMoreThanSixteen) {
  EXPECT_GE(ReadThreads(), 1u);
  EXPECT_LE(ReadThreads(), 16u);
}

}  // namespace
}  // namespace trims::bench

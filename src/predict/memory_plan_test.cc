#include "predict/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace trims::predict {
namespace {

// The most bytes alive at once: no plan needs less.
uint64_t LowerBound(const std::vector<Lifetime>& lifetimes, uint32_t steps) {
  uint64_t most = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    uint64_t now = 0;
    for (const Lifetime& l : lifetimes) {
      if (l.first <= step && step <= l.last) now += (l.bytes + 63) / 64 * 64;
    }
    most = std::max(most, now);
  }
  return most;
}

TEST(MemoryPlanTest, AChainNeedsItsLargestPair) {
  const std::vector<Lifetime> chain = {{6400, 0, 1}, {3200, 1, 2}, {1600, 2, 3}, {6400, 3, 4}};
  const MemoryPlan plan = PlanMemory(chain);
  EXPECT_EQ(plan.total_bytes, 6400u + 3200u);
}

TEST(MemoryPlanTest, NothingNeedsNothing) {
  EXPECT_EQ(PlanMemory({}).total_bytes, 0u);
  const std::vector<Lifetime> empty = {{0, 0, 1}};
  EXPECT_EQ(PlanMemory(empty).total_bytes, 0u);
}

TEST(MemoryPlanTest, ValuesThatLiveTogetherNeverOverlap) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
    const uint32_t steps = 2 + below(30);
    std::vector<Lifetime> lifetimes(1 + below(60));
    for (Lifetime& l : lifetimes) {
      l.bytes = 1 + below(5000);
      l.first = below(steps);
      l.last = below(10) == 0 ? UINT32_MAX : std::min(steps - 1, l.first + below(6));
    }
    const MemoryPlan plan = PlanMemory(lifetimes);
    ASSERT_EQ(plan.offsets.size(), lifetimes.size());
    uint64_t sum = 0;
    for (size_t a = 0; a < lifetimes.size(); ++a) {
      EXPECT_EQ(plan.offsets[a] % kArenaAlignment, 0u);
      EXPECT_LE(plan.offsets[a] + lifetimes[a].bytes, plan.total_bytes);
      sum += (lifetimes[a].bytes + 63) / 64 * 64;
      for (size_t b = 0; b < a; ++b) {
        const bool together =
            lifetimes[a].first <= lifetimes[b].last && lifetimes[b].first <= lifetimes[a].last;
        const bool overlap = plan.offsets[a] < plan.offsets[b] + lifetimes[b].bytes &&
                             plan.offsets[b] < plan.offsets[a] + lifetimes[a].bytes;
        ASSERT_FALSE(together && overlap) << "round " << round << ": " << a << " and " << b;
      }
    }
    EXPECT_GE(plan.total_bytes, LowerBound(lifetimes, steps));
    EXPECT_LE(plan.total_bytes, sum);
  }
}

}  // namespace
}  // namespace trims::predict

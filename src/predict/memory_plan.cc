#include "predict/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "base/round.h"

namespace trims::predict {
namespace {

// Places the lifetimes in the given order, each at the lowest offset where it fits.
MemoryPlan Place(std::span<const Lifetime> lifetimes, std::span<const uint32_t> order) {
  const auto rounded = [&](uint32_t i) { return RoundUp(lifetimes[i].bytes, kArenaAlignment); };
  MemoryPlan plan;
  plan.offsets.assign(lifetimes.size(), 0);
  std::vector<uint32_t> placed;  // Sorted by offset.
  for (const uint32_t i : order) {
    uint64_t offset = 0;
    for (const uint32_t other : placed) {
      const bool together = lifetimes[i].first <= lifetimes[other].last &&
                            lifetimes[other].first <= lifetimes[i].last;
      if (!together) continue;
      if (plan.offsets[other] >= offset + rounded(i)) break;  // The gap before it is enough.
      offset = std::max(offset, plan.offsets[other] + rounded(other));
    }
    plan.offsets[i] = offset;
    plan.total_bytes = std::max(plan.total_bytes, offset + rounded(i));
    placed.insert(std::upper_bound(
                      placed.begin(), placed.end(), offset,
                      [&](uint64_t value, uint32_t other) { return value < plan.offsets[other]; }),
                  i);
  }
  return plan;
}

}  // namespace

MemoryPlan PlanMemory(std::span<const Lifetime> lifetimes) {
  std::vector<uint32_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return lifetimes[a].first < lifetimes[b].first; });
  MemoryPlan by_time = Place(lifetimes, order);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  MemoryPlan by_size = Place(lifetimes, order);
  return by_size.total_bytes <= by_time.total_bytes ? by_size : by_time;
}

}  // namespace trims::predict

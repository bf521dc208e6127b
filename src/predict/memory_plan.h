// Where in one arena each intermediate value lies, given when it is alive.
//
// Pure arithmetic: no addresses, no graph. Values whose lifetimes do not overlap
// share memory. Greedy, each value at the lowest offset that is free throughout
// its life, once in the order of execution and once largest first; the smaller
// plan wins. For the chains of classifiers that is optimal or close to it.
// Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trims::predict {

// Alive from the start of step `first` to the end of step `last`.
struct Lifetime {
  uint64_t bytes = 0;
  uint32_t first = 0;
  uint32_t last = 0;
};

struct MemoryPlan {
  std::vector<uint64_t> offsets;  // One per lifetime, each kArenaAlignment-aligned.
  uint64_t total_bytes = 0;
};

inline constexpr uint64_t kArenaAlignment = 64;

MemoryPlan PlanMemory(std::span<const Lifetime> lifetimes);

}  // namespace trims::predict

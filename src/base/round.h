// Rounding to whole units: pages, blocks, granularities, alignments. The unit
// need not be a power of two. Pure functions; any thread.
#pragma once

#include <cstdint>

namespace trims {

// The caller keeps `value` below 2^64 - `unit`.
constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
constexpr uint64_t RoundDown(uint64_t value, uint64_t unit) { return value / unit * unit; }

}  // namespace trims

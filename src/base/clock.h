// Monotonic time. The store is given times and never asks for them; everything
// else reads the one clock here, so that no behaviour depends on the wall clock.
#pragma once

#include <chrono>

namespace trims {

using Duration = std::chrono::nanoseconds;
using Time = std::chrono::time_point<std::chrono::steady_clock, Duration>;

inline Time Now() { return std::chrono::steady_clock::now(); }

}  // namespace trims

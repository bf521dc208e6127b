// Seconds, by the monotonic clock. Values; no thread rule.
#pragma once

#include <chrono>

namespace trims::bench {

inline double Seconds(std::chrono::steady_clock::time_point from,
                      std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Seconds that `call` takes.
template <typename Call>
double TimeOf(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return Seconds(begin, std::chrono::steady_clock::now());
}

// Of an open and the close after it.
struct OpenTimes {
  double open = 0;
  double close = 0;
};

}  // namespace trims::bench

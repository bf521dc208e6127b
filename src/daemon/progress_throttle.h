// Forwards progress of work on loader threads, not more often than anybody can follow.
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "base/clock.h"

namespace trims {

class ProgressThrottle final {
 public:
  static constexpr Duration kInterval = std::chrono::milliseconds(50);

  explicit ProgressThrottle(std::function<void(uint64_t done, uint64_t total)> forward)
      : forward_(std::move(forward)) {}

  void operator()(uint64_t done, uint64_t total) {
    const int64_t now = Now().time_since_epoch().count();
    int64_t last = last_.load(std::memory_order_relaxed);
    if (now - last < kInterval.count()) return;
    if (!last_.compare_exchange_strong(last, now, std::memory_order_relaxed)) return;
    forward_(done, total);
  }

 private:
  const std::function<void(uint64_t, uint64_t)> forward_;
  std::atomic<int64_t> last_{0};
};

}  // namespace trims

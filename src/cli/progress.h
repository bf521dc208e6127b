// A progress bar on stderr, when that is a terminal; otherwise nothing. One
// thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace trims::cli {

class ProgressBar final {
 public:
  // Shown when stderr is a terminal and `wanted`.
  explicit ProgressBar(bool wanted);
  ~ProgressBar() { Clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  struct Step {
    std::string label;  // "vgg16 loading"
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;     // 0: unknown, no bar.
    double bytes_per_second = 0;  // 0: computed here.
  };
  void Update(const Step& step);
  // Takes the line away, so that other lines may be printed.
  void Clear();

 private:
  const bool shown_;
  bool drawn_ = false;
  std::string label_;
  uint64_t first_bytes_ = 0;
  std::chrono::steady_clock::time_point first_time_;
  std::chrono::steady_clock::time_point last_draw_;
};

}  // namespace trims::cli

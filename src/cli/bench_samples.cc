#include "cli/bench_samples.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace trims::cli {

double Samples::Percentile(double percent) const {
  if (seconds_.empty()) return 0;
  std::vector<double> sorted = seconds_;
  std::sort(sorted.begin(), sorted.end());
  const size_t count = sorted.size();
  if (percent == 50 && count % 2 == 0) return (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
  const double rank = std::ceil(percent / 100 * static_cast<double>(count));
  return sorted[std::min(count - 1, static_cast<size_t>(std::max(rank, 1.0)) - 1)];
}

double Samples::Mean() const {
  if (seconds_.empty()) return 0;
  return std::accumulate(seconds_.begin(), seconds_.end(), 0.0) /
         static_cast<double>(seconds_.size());
}

Json Samples::Summary() const {
  return {{"runs", seconds_.size()},       {"min_seconds", Min()},
          {"median_seconds", Median()},    {"p90_seconds", Percentile(90)},
          {"p99_seconds", Percentile(99)}, {"max_seconds", Max()},
          {"mean_seconds", Mean()}};
}

double Ratio(double a, double b) { return b > 0 ? a / b : 0; }

std::string TimeText(double seconds) {
  char text[48];
  if (seconds < 1e-3) {
    std::snprintf(text, sizeof text, "%.1f us", seconds * 1e6);
  } else if (seconds < 1) {
    std::snprintf(text, sizeof text, "%.2f ms", seconds * 1e3);
  } else {
    std::snprintf(text, sizeof text, "%.2f s", seconds);
  }
  return text;
}

std::string RatioText(double ratio) {
  char text[48];
  std::snprintf(text, sizeof text, "%.2f", ratio);
  return ratio > 0 ? text : "-";
}

std::string PercentText(double ratio) {
  char text[48];
  std::snprintf(text, sizeof text, "%.0f %%", ratio * 100);
  return ratio > 0 ? text : "-";
}

}  // namespace trims::cli

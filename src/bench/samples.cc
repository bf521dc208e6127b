#include "bench/samples.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trims::bench {

double Samples::Percentile(double percent) const {
  if (times_.empty()) return 0;
  std::vector<double> sorted = times_;
  std::sort(sorted.begin(), sorted.end());
  const size_t count = sorted.size();
  if (percent == 50 && count % 2 == 0) return (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
  const double rank = std::ceil(percent / 100 * static_cast<double>(count));
  return sorted[std::min(count - 1, static_cast<size_t>(std::max(rank, 1.0)) - 1)];
}

double Samples::Mean() const {
  if (times_.empty()) return 0;
  return std::accumulate(times_.begin(), times_.end(), 0.0) / static_cast<double>(times_.size());
}

double Ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace trims::bench

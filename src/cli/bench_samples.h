// Times that were measured, and what is said of them. Values; no thread rule.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/json.h"

namespace trims::cli {

class Samples final {
 public:
  void Add(double seconds) { seconds_.push_back(seconds); }
  bool empty() const { return seconds_.empty(); }
  size_t size() const { return seconds_.size(); }

  // The smallest sample that at least `percent` of all do not exceed; the mean of the two in
  // the middle for 50 of an even number. 0 without samples.
  double Percentile(double percent) const;
  double Median() const { return Percentile(50); }
  double Min() const { return Percentile(0); }
  double Max() const { return Percentile(100); }
  double Mean() const;

  // {"runs", "min_seconds", "median_seconds", "p90_seconds", "p99_seconds", "max_seconds",
  // "mean_seconds"}
  Json Summary() const;

 private:
  std::vector<double> seconds_;
};

// a / b; 0 when b is.
double Ratio(double a, double b);
// "145.2 us", "1.93 ms", "2.10 s"
std::string TimeText(double seconds);
// "1.12", "-" for 0.
std::string RatioText(double ratio);
// "97 %", "-" for 0.
std::string PercentText(double ratio);

}  // namespace trims::cli

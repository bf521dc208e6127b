// Times that were measured, all in one unit, and what is said of them. Values; no thread rule.
#pragma once

#include <cstddef>
#include <vector>

namespace trims::bench {

class Samples final {
 public:
  void Add(double time) { times_.push_back(time); }
  void Add(const Samples& others) {
    times_.insert(times_.end(), others.times_.begin(), others.times_.end());
  }
  bool empty() const { return times_.empty(); }
  size_t size() const { return times_.size(); }

  // The smallest sample that at least `percent` of all do not exceed; the mean of the two in
  // the middle for 50 of an even number. 0 without samples.
  double Percentile(double percent) const;
  double Median() const { return Percentile(50); }
  double Min() const { return Percentile(0); }
  double Max() const { return Percentile(100); }
  double Mean() const;

 private:
  std::vector<double> times_;
};

// a / b; 0 when b is.
double Ratio(double a, double b);

}  // namespace trims::bench

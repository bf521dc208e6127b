// What is said of times: on times that are known, and on none.
#include "bench/samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace trims::bench {
namespace {

Samples Of(const std::vector<double>& times) {
  Samples samples;
  for (const double time : times) samples.Add(time);
  return samples;
}

TEST(SamplesTest, NothingMeasuredIsZeroEverywhere) {
  const Samples none;
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(none.size(), 0u);
  for (const double percent : {0.0, 50.0, 90.0, 100.0}) EXPECT_EQ(none.Percentile(percent), 0);
  EXPECT_EQ(none.Mean(), 0);
  EXPECT_EQ(none.Min(), 0);
  EXPECT_EQ(none.Max(), 0);
}

TEST(SamplesTest, OneSampleIsAllOfThem) {
  const Samples one = Of({0.25});
  EXPECT_FALSE(one.empty());
  for (const double percent : {0.0, 1.0, 50.0, 99.0, 100.0}) {
    EXPECT_EQ(one.Percentile(percent), 0.25) << percent;
  }
  EXPECT_EQ(one.Mean(), 0.25);
}

TEST(SamplesTest, TheMedianOfAnEvenNumberLiesBetweenTheTwoInTheMiddle) {
  EXPECT_EQ(Of({4, 1, 3, 2}).Median(), 2.5);
  EXPECT_EQ(Of({2, 1}).Median(), 1.5);
}

TEST(SamplesTest, TheMedianOfAnOddNumberIsOneOfThem) {
  EXPECT_EQ(Of({9, 1, 5}).Median(), 5);
  EXPECT_EQ(Of({5, 5, 1, 9, 2}).Median(), 5);
}

TEST(SamplesTest, PercentilesAreSamplesThatSoManyDoNotExceed) {
  std::vector<double> times(100);
  std::iota(times.begin(), times.end(), 1);  // 1 to 100.
  const Samples hundred = Of(times);
  EXPECT_EQ(hundred.Percentile(0), 1);
  EXPECT_EQ(hundred.Percentile(1), 1);
  EXPECT_EQ(hundred.Percentile(90), 90);
  EXPECT_EQ(hundred.Percentile(99), 99);
  EXPECT_EQ(hundred.Percentile(99.5), 100);
  EXPECT_EQ(hundred.Percentile(100), 100);
  const Samples ten = Of({10, 20, 30, 40, 50, 60, 70, 80, 90, 100});
  EXPECT_EQ(ten.Percentile(90), 90);
  EXPECT_EQ(ten.Percentile(91), 100);
  EXPECT_EQ(ten.Percentile(99), 100);
}

TEST(SamplesTest, TheOrderInWhichTheyCameDoesNotMatter) {
  std::vector<double> times = {0.9, 0.1, 0.5, 0.3, 0.7, 0.2};
  const Samples before = Of(times);
  std::sort(times.begin(), times.end(), std::greater<>());
  const Samples after = Of(times);
  for (const double percent : {0.0, 10.0, 50.0, 75.0, 99.0, 100.0}) {
    EXPECT_EQ(before.Percentile(percent), after.Percentile(percent)) << percent;
  }
  EXPECT_DOUBLE_EQ(before.Mean(), after.Mean());
}

TEST(SamplesTest, PercentilesMeanWhatTheHeaderSaysForAnyNumberOfSamples) {
  std::mt19937_64 random(20261126);
  for (size_t count = 1; count <= 60; ++count) {
    std::vector<double> times(count);
    for (double& time : times) time = static_cast<double>(random() % 1000);
    const Samples samples = Of(times);
    for (const double percent : {1.0, 25.0, 75.0, 90.0, 99.0, 100.0}) {
      const double found = samples.Percentile(percent);
      const auto not_above = static_cast<double>(
          std::count_if(times.begin(), times.end(), [&](double time) { return time <= found; }));
      const auto below = static_cast<double>(
          std::count_if(times.begin(), times.end(), [&](double time) { return time < found; }));
      EXPECT_NE(std::find(times.begin(), times.end(), found), times.end());
      EXPECT_GE(100 * not_above, percent * static_cast<double>(count));
      EXPECT_LT(100 * below, percent * static_cast<double>(count));  // None smaller will do.
    }
  }
}

TEST(SamplesTest, TheMeanIsTheirSumOverTheirNumber) {
  EXPECT_DOUBLE_EQ(Of({1, 2, 6}).Mean(), 3);
  EXPECT_EQ(Of({1, 2, 6}).Median(), 2);
}

TEST(SamplesTest, SamplesOfSeveralAreTakenTogether) {
  Samples all = Of({1, 2});
  all.Add(Of({3, 4}));
  all.Add(Samples());
  EXPECT_EQ(all.size(), 4u);
  EXPECT_EQ(all.Median(), 2.5);
  EXPECT_EQ(all.Max(), 4);
}

TEST(RatioTest, ARatioToNothingIsZero) {
  EXPECT_EQ(Ratio(3, 2), 1.5);
  EXPECT_EQ(Ratio(3, 0), 0);
  EXPECT_EQ(Ratio(0, 2), 0);
}

}  // namespace
}  // namespace trims::bench

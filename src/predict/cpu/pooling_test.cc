// Against small cases worked out by hand and against naive loops that share nothing with
// the kernels, over seeded random parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "predict/cpu/test_kernel.h"

namespace trims::predict {
namespace {

using testing::ElementsAre;
using Attributes = SymbolWriter::Attributes;

Attributes PoolAttributes(const std::string& type, int64_t kernel, int64_t stride, int64_t pad,
                          const std::string& convention) {
  return {{"kernel", Tuple({kernel, kernel})},
          {"stride", Tuple({stride, stride})},
          {"pad", Tuple({pad, pad})},
          {"pool_type", type},
          {"pooling_convention", convention}};
}

TEST(PoolingTest, ValidDropsWhatDoesNotFillAWindow) {
  const Tensor data = Sequence({1, 1, 4, 4});
  const Result<Tensor> out = RunSimple("Pooling", PoolAttributes("max", 3, 2, 0, "valid"), data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{1, 1, 1, 1}));
  EXPECT_THAT(out->values, ElementsAre(11));
}

TEST(PoolingTest, FullLetsTheLastWindowOverhang) {
  const Tensor data = Sequence({1, 1, 4, 4});
  const Result<Tensor> max = RunSimple("Pooling", PoolAttributes("max", 3, 2, 0, "full"), data);
  ASSERT_TRUE(max.ok()) << ErrorOf(max);
  EXPECT_EQ(max->shape, (Shape{1, 1, 2, 2}));
  EXPECT_THAT(max->values, ElementsAre(11, 12, 15, 16));
  // The overhang does not count in the divisor: 9, 6, 6 and 4 elements.
  const Result<Tensor> avg = RunSimple("Pooling", PoolAttributes("avg", 3, 2, 0, "full"), data);
  ASSERT_TRUE(avg.ok()) << ErrorOf(avg);
  EXPECT_THAT(avg->values, ElementsAre(6, (3 + 4 + 7 + 8 + 11 + 12) / 6.0f,
                                       (9 + 10 + 11 + 13 + 14 + 15) / 6.0f, 13.5f));
}

TEST(PoolingTest, PaddingCountsInTheDivisorOfAnAverage) {
  const Tensor data{{1, 1, 2, 2}, {4, 8, 12, 16}};
  const Result<Tensor> out = RunSimple("Pooling", PoolAttributes("avg", 2, 2, 1, "valid"), data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1, 2, 3, 4));
  Attributes exclude = PoolAttributes("avg", 2, 2, 1, "valid");
  exclude.emplace_back("count_include_pad", "False");
  const Result<Tensor> without = RunSimple("Pooling", exclude, data);
  ASSERT_TRUE(without.ok()) << ErrorOf(without);
  EXPECT_THAT(without->values, ElementsAre(4, 8, 12, 16));
}

TEST(PoolingTest, OverhangBeyondThePaddingDoesNotCount) {
  // Windows [-1, 1), [1, 3) and [3, 5), of which the last is clipped at 4.
  const Tensor data{{1, 1, 1, 3}, {6, 12, 18}};
  Attributes attributes = {{"kernel", "(1, 2)"},
                           {"stride", "(1, 2)"},
                           {"pad", "(0, 1)"},
                           {"pool_type", "avg"},
                           {"pooling_convention", "full"}};
  const Result<Tensor> out = RunSimple("Pooling", attributes, data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(3, 15, 0));
}

TEST(PoolingTest, AnAverageOverNothingIsNotANumber) {
  // Windows [0, 1) and [3, 4) of an image that ends at 3.
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 1)"},
                                        {"stride", "(1, 3)"},
                                        {"pool_type", "avg"},
                                        {"pooling_convention", "full"}},
                                       {{1, 1, 1, 3}, {6, 12, 18}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->values[0], 6);
  EXPECT_TRUE(std::isnan(out->values[1]));
}

TEST(PoolingTest, AMaximumOverNothingIsTheLowestFloat) {
  const Tensor data{{1, 1, 1, 3}, {6, 12, 18}};
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 2)"},
                                        {"stride", "(1, 2)"},
                                        {"pad", "(0, 1)"},
                                        {"pool_type", "max"},
                                        {"pooling_convention", "full"}},
                                       data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(6, 18, std::numeric_limits<float>::lowest()));
}

TEST(PoolingTest, GlobalIgnoresKernelStrideAndPad) {
  const Tensor data = Sequence({1, 2, 2, 3});
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 1)"},
                                        {"stride", "(2, 2)"},
                                        {"pad", "(3, 3)"},
                                        {"global_pool", "True"},
                                        {"pool_type", "avg"}},
                                       data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{1, 2, 1, 1}));
  EXPECT_THAT(out->values, ElementsAre(3.5f, 9.5f));
}

TEST(PoolingTest, SumDoesNotDivide) {
  const Result<Tensor> out =
      RunSimple("Pooling", PoolAttributes("sum", 2, 2, 0, "valid"), Sequence({1, 1, 2, 4}));
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1 + 2 + 5 + 6, 3 + 4 + 7 + 8));
}

TEST(PoolingTest, AgreesWithNaiveLoopsForRandomParameters) {
  std::mt19937 random(6);
  int overhanging = 0;
  for (int round = 0; round < 200; ++round) {
    const int64_t n = RandomInt(random, 1, 2), c = RandomInt(random, 1, 5);
    const int64_t size[2] = {RandomInt(random, 3, 12), RandomInt(random, 3, 12)};
    const int64_t kernel[2] = {RandomInt(random, 1, 4), RandomInt(random, 1, 4)};
    const int64_t stride[2] = {RandomInt(random, 1, 4), RandomInt(random, 1, 4)};
    const int64_t pad[2] = {RandomInt(random, 0, 2), RandomInt(random, 0, 2)};
    if (kernel[0] > size[0] + 2 * pad[0] || kernel[1] > size[1] + 2 * pad[1]) continue;
    const std::string type = std::vector<std::string>{"max", "avg", "sum"}[random() % 3];
    const bool full = RandomInt(random, 0, 1) == 1;
    int64_t out_size[2];
    bool empty_window = false;
    for (int d = 0; d < 2; ++d) {
      const double windows =
          static_cast<double>(size[d] + 2 * pad[d] - kernel[d]) / static_cast<double>(stride[d]);
      out_size[d] = static_cast<int64_t>(full ? std::ceil(windows) : std::floor(windows)) + 1;
      overhanging += (out_size[d] - 1) * stride[d] + kernel[d] > size[d] + 2 * pad[d];
      empty_window |= (out_size[d] - 1) * stride[d] >= size[d] + 2 * pad[d];
    }
    if (empty_window && type == "avg") continue;  // The case has its own test.
    const Tensor data = RandomTensor(random, {n, c, size[0], size[1]});
    Tensor expected{{n, c, out_size[0], out_size[1]}, {}};
    for (int64_t plane = 0; plane < n * c; ++plane) {
      for (int64_t oy = 0; oy < out_size[0]; ++oy) {
        for (int64_t ox = 0; ox < out_size[1]; ++ox) {
          double sum = 0, divisor = 0;
          float highest = -std::numeric_limits<float>::max();
          // Cell by cell: in the padded image it counts, in the image it is read.
          for (int64_t y = oy * stride[0] - pad[0]; y < oy * stride[0] - pad[0] + kernel[0]; ++y) {
            for (int64_t x = ox * stride[1] - pad[1]; x < ox * stride[1] - pad[1] + kernel[1];
                 ++x) {
              if (y >= size[0] + pad[0] || x >= size[1] + pad[1]) continue;
              ++divisor;
              if (y < 0 || x < 0 || y >= size[0] || x >= size[1]) continue;
              const float value =
                  data.values[static_cast<size_t>((plane * size[0] + y) * size[1] + x)];
              sum += value;
              highest = std::max(highest, value);
            }
          }
          expected.values.push_back(type == "max"   ? highest
                                    : type == "sum" ? static_cast<float>(sum)
                                                    : static_cast<float>(sum / divisor));
        }
      }
    }
    SCOPED_TRACE("round " + std::to_string(round) + " " + type);
    const Result<Tensor> out = RunSimple("Pooling",
                                         {{"kernel", Tuple({kernel[0], kernel[1]})},
                                          {"stride", Tuple({stride[0], stride[1]})},
                                          {"pad", Tuple({pad[0], pad[1]})},
                                          {"pool_type", type},
                                          {"pooling_convention", full ? "full" : "valid"}},
                                         data);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    if (type == "max") {
      ASSERT_EQ(out->shape, expected.shape);
      ASSERT_EQ(out->values, expected.values);
    } else {
      ExpectClose(*out, expected);
    }
  }
  EXPECT_GT(overhanging, 20);
}

}  // namespace
}  // namespace trims::predict

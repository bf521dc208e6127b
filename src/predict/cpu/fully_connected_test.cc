// Against small cases worked out by hand and against naive loops that share nothing with
// the kernels, over seeded random parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "predict/cpu/test_kernel.h"

namespace trims::predict {
namespace {

using testing::ElementsAre;

TEST(FullyConnectedTest, FlattensImages) {
  const Result<Tensor> out = Compute({.op = "FullyConnected",
                                      .attributes = {{"num_hidden", "2"}},
                                      .inputs = {{"data", Sequence({2, 1, 2, 2})},
                                                 {"weight", {{2, 4}, {1, 1, 1, 1, 1, 0, 0, 0}}},
                                                 {"bias", {{2}, {0.5f, 100}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{2, 2}));
  EXPECT_THAT(out->values, ElementsAre(10.5f, 101, 26.5f, 105));
}

TEST(FullyConnectedTest, WithoutFlattenWorksOnTheLastAxis) {
  const Result<Tensor> out =
      Compute({.op = "FullyConnected",
               .attributes = {{"num_hidden", "1"}, {"flatten", "False"}, {"no_bias", "True"}},
               .inputs = {{"data", Sequence({2, 2, 2})}, {"weight", {{1, 2}, {1, 10}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{2, 2, 1}));
  EXPECT_THAT(out->values, ElementsAre(21, 43, 65, 87));
}

TEST(FullyConnectedTest, AgreesWithNaiveLoopsForRandomSizes) {
  std::mt19937 random(5);
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = RandomInt(random, 1, 5), in = RandomInt(random, 1, 300),
                  hidden = RandomInt(random, 1, 70);
    const Tensor data = RandomTensor(random, {rows, in});
    const Tensor weight = RandomTensor(random, {hidden, in});
    const Tensor bias = RandomTensor(random, {hidden});
    const bool relu = RandomInt(random, 0, 1) == 1;
    Tensor expected{{rows, hidden}, {}};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < hidden; ++o) {
        double sum = bias.values[static_cast<size_t>(o)];
        for (int64_t k = 0; k < in; ++k) {
          sum += double{data.values[static_cast<size_t>(r * in + k)]} *
                 weight.values[static_cast<size_t>(o * in + k)];
        }
        expected.values.push_back(static_cast<float>(relu ? std::max(sum, 0.0) : sum));
      }
    }
    const Result<Tensor> out =
        Compute({.op = "FullyConnected",
                 .attributes = {{"num_hidden", std::to_string(hidden)}},
                 .inputs = {{"data", data}, {"weight", weight}, {"bias", bias}},
                 .followed_by_relu = relu});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectClose(*out, expected);
  }
}

}  // namespace
}  // namespace trims::predict

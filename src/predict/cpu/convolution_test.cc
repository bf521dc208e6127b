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
using Attributes = SymbolWriter::Attributes;

struct Conv2d {
  int64_t kh, kw, sh = 1, sw = 1, dh = 1, dw = 1, ph = 0, pw = 0, filters = 1, groups = 1;
};

Tensor NaiveConvolution(const Tensor& data, const Tensor& weight, const float* bias,
                        const Conv2d& c) {
  const int64_t n = data.shape[0], ic = data.shape[1], h = data.shape[2], w = data.shape[3];
  const int64_t oh = (h + 2 * c.ph - (c.dh * (c.kh - 1) + 1)) / c.sh + 1;
  const int64_t ow = (w + 2 * c.pw - (c.dw * (c.kw - 1) + 1)) / c.sw + 1;
  Tensor out{{n, c.filters, oh, ow}, {}};
  const int64_t per_group = ic / c.groups;
  for (int64_t b = 0; b < n; ++b) {
    for (int64_t f = 0; f < c.filters; ++f) {
      const int64_t group = f / (c.filters / c.groups);
      for (int64_t y = 0; y < oh; ++y) {
        for (int64_t x = 0; x < ow; ++x) {
          double sum = bias != nullptr ? bias[f] : 0.0;
          for (int64_t k = 0; k < per_group; ++k) {
            for (int64_t i = 0; i < c.kh; ++i) {
              for (int64_t j = 0; j < c.kw; ++j) {
                const int64_t iy = y * c.sh - c.ph + i * c.dh;
                const int64_t ix = x * c.sw - c.pw + j * c.dw;
                if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
                sum +=
                    double{data.values[static_cast<size_t>(
                        ((b * ic + group * per_group + k) * h + iy) * w + ix)]} *
                    weight.values[static_cast<size_t>(((f * per_group + k) * c.kh + i) * c.kw + j)];
              }
            }
          }
          out.values.push_back(static_cast<float>(sum));
        }
      }
    }
  }
  return out;
}

Attributes ConvAttributes(const Conv2d& c, bool bias) {
  return {{"kernel", Tuple({c.kh, c.kw})},           {"stride", Tuple({c.sh, c.sw})},
          {"dilate", Tuple({c.dh, c.dw})},           {"pad", Tuple({c.ph, c.pw})},
          {"num_filter", std::to_string(c.filters)}, {"num_group", std::to_string(c.groups)},
          {"no_bias", bias ? "False" : "True"}};
}

TEST(ConvolutionTest, DoesNotFlipTheKernel) {
  const Result<Tensor> out = Compute({.op = "Convolution",
                                      .attributes = {{"kernel", "(2, 2)"}, {"num_filter", "1"}},
                                      .inputs = {{"data", Sequence({1, 1, 3, 3})},
                                                 {"weight", {{1, 1, 2, 2}, {1, 0, 0, 10}}},
                                                 {"bias", {{1}, {100}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1 + 50 + 100, 2 + 60 + 100, 4 + 80 + 100, 5 + 90 + 100));
}

TEST(ConvolutionTest, AgreesWithNaiveLoopsForRandomParameters) {
  std::mt19937 random(20190707);
  for (int round = 0; round < 60; ++round) {
    Conv2d c{.kh = RandomInt(random, 1, 4), .kw = RandomInt(random, 1, 4)};
    c.sh = RandomInt(random, 1, 3);
    c.sw = RandomInt(random, 1, 3);
    c.dh = RandomInt(random, 1, 2);
    c.dw = RandomInt(random, 1, 2);
    c.ph = RandomInt(random, 0, 2);
    c.pw = RandomInt(random, 0, 2);
    c.groups = RandomInt(random, 1, 3);
    c.filters = c.groups * RandomInt(random, 1, 6);
    const int64_t channels = c.groups * RandomInt(random, 1, 5);
    const Tensor data = RandomTensor(random, {RandomInt(random, 1, 3), channels,
                                              RandomInt(random, 8, 14), RandomInt(random, 8, 14)});
    const Tensor weight = RandomTensor(random, {c.filters, channels / c.groups, c.kh, c.kw});
    const Tensor bias = RandomTensor(random, {c.filters});
    const bool has_bias = RandomInt(random, 0, 1) == 1;
    OneOperator test{.op = "Convolution",
                     .attributes = ConvAttributes(c, has_bias),
                     .inputs = {{"data", data}, {"weight", weight}}};
    if (has_bias) test.inputs.emplace_back("bias", bias);
    test.pack_weights = RandomInt(random, 0, 1) == 1;
    SCOPED_TRACE("round " + std::to_string(round));
    const Result<Tensor> out = Compute(test);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, NaiveConvolution(data, weight, has_bias ? bias.values.data() : nullptr, c));
  }
}

TEST(ConvolutionTest, DepthwiseAgreesWithNaiveLoops) {
  std::mt19937 random(3);
  const Conv2d c{.kh = 3, .kw = 3, .ph = 1, .pw = 1, .filters = 32, .groups = 32};
  const Tensor data = RandomTensor(random, {2, 32, 9, 9});
  const Tensor weight = RandomTensor(random, {32, 1, 3, 3});
  for (const bool pack : {false, true}) {
    const Result<Tensor> out = Compute({.op = "Convolution",
                                        .attributes = ConvAttributes(c, false),
                                        .inputs = {{"data", data}, {"weight", weight}},
                                        .pack_weights = pack});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, NaiveConvolution(data, weight, nullptr, c));
  }
}

TEST(ConvolutionTest, FusedReluIsAReluOfTheConvolution) {
  std::mt19937 random(4);
  const Conv2d c{.kh = 3, .kw = 3, .ph = 1, .pw = 1, .filters = 16};
  const Tensor data = RandomTensor(random, {1, 16, 8, 8});
  const Tensor weight = RandomTensor(random, {16, 16, 3, 3});
  const Tensor bias = RandomTensor(random, {16});
  Tensor expected = NaiveConvolution(data, weight, bias.values.data(), c);
  for (float& value : expected.values) value = std::max(value, 0.0f);
  for (const bool pack : {false, true}) {
    const Result<Tensor> out =
        Compute({.op = "Convolution",
                 .attributes = ConvAttributes(c, true),
                 .inputs = {{"data", data}, {"weight", weight}, {"bias", bias}},
                 .followed_by_relu = true,
                 .pack_weights = pack});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, expected);
  }
}

TEST(ConvolutionTest, HasOneAndThreeSpatialDimensions) {
  const Result<Tensor> line =
      Compute({.op = "Convolution",
               .attributes = {{"kernel", "(2,)"},
                              {"num_filter", "1"},
                              {"no_bias", "True"},
                              {"layout", "NCW"}},
               .inputs = {{"data", Sequence({1, 1, 4})}, {"weight", {{1, 1, 2}, {1, 10}}}}});
  ASSERT_TRUE(line.ok()) << ErrorOf(line);
  EXPECT_THAT(line->values, ElementsAre(21, 32, 43));
  const Result<Tensor> volume =
      Compute({.op = "Convolution",
               .attributes = {{"kernel", "(2, 2, 2)"}, {"num_filter", "1"}, {"no_bias", "True"}},
               .inputs = {{"data", Sequence({1, 1, 2, 2, 2})},
                          {"weight", {{1, 1, 2, 2, 2}, {1, 1, 1, 1, 1, 1, 1, 1}}}}});
  ASSERT_TRUE(volume.ok()) << ErrorOf(volume);
  EXPECT_THAT(volume->values, ElementsAre(36));
}

}  // namespace
}  // namespace trims::predict

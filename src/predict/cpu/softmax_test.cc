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

Tensor NaiveSoftmax(const Tensor& data, int64_t outer, int64_t count, int64_t inner) {
  Tensor out = data;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < count; ++k) {
        sum += std::exp(double{data.values[static_cast<size_t>((o * count + k) * inner + i)]});
      }
      for (int64_t k = 0; k < count; ++k) {
        float& value = out.values[static_cast<size_t>((o * count + k) * inner + i)];
        value = static_cast<float>(std::exp(double{value}) / sum);
      }
    }
  }
  return out;
}

TEST(SoftmaxTest, ModesDifferInWhatSumsToOne) {
  std::mt19937 random(8);
  const Tensor data = RandomTensor(random, {2, 3, 4, 5});
  const struct {
    std::string op;
    Attributes attributes;
    bool label;
    int64_t outer, count, inner;
  } cases[] = {
      {"SoftmaxOutput", {}, true, 2, 60, 1},
      {"Softmax", {{"grad_scale", "1"}}, true, 2, 60, 1},
      {"SoftmaxOutput", {{"multi_output", "True"}}, true, 2, 3, 20},
      {"SoftmaxOutput", {{"preserve_shape", "True"}}, true, 24, 5, 1},
      {"softmax", {}, false, 24, 5, 1},
      {"softmax", {{"axis", "1"}}, false, 2, 3, 20},
      {"softmax", {{"axis", "-2"}}, false, 6, 4, 5},
      {"SoftmaxActivation", {}, false, 2, 60, 1},
      {"SoftmaxActivation", {{"mode", "channel"}}, false, 2, 3, 20},
  };
  for (const auto& test : cases) {
    const Result<Tensor> out = Compute({.op = test.op,
                                        .attributes = test.attributes,
                                        .inputs = {{"data", data}},
                                        .has_label = test.label});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    SCOPED_TRACE(test.op);
    ExpectClose(*out, NaiveSoftmax(data, test.outer, test.count, test.inner), 1e-6);
  }
}

TEST(SoftmaxTest, DividesByTheTemperature) {
  const Result<Tensor> out =
      RunSimple("softmax", {{"temperature", "2.0"}}, {{1, 2}, {std::log(16.0f), 0.0f}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_NEAR(out->values[0], 0.8, 1e-6);
}

TEST(SoftmaxTest, SurvivesLargeValues) {
  const Result<Tensor> out = RunSimple("softmax", {}, {{1, 3}, {3e38f, 3e38f, -3e38f}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(0.5f, 0.5f, 0.0f));
}

}  // namespace
}  // namespace trims::predict

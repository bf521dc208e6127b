// Against small cases worked out by hand and against naive loops that share nothing with
// the kernels, over seeded random parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "predict/cpu/test_kernel.h"

namespace trims::predict {
namespace {

TEST(ActivationTest, ComputesEachFunction) {
  const std::vector<float> x = {-30, -2, -0.5f, 0, 0.5f, 2, 19, 21, 100};
  const auto run = [&](const std::string& kind) {
    return RunSimple("Activation", {{"act_type", kind}}, {{1, 9}, x});
  };
  const struct {
    std::string kind;
    double (*function)(double);
  } cases[] = {
      {"relu", [](double v) { return v > 0 ? v : 0.0; }},
      {"sigmoid", [](double v) { return 1 / (1 + std::exp(-v)); }},
      {"tanh", [](double v) { return std::tanh(v); }},
      {"softrelu", [](double v) { return std::log1p(std::exp(v)); }},
      {"softsign", [](double v) { return v / (1 + std::fabs(v)); }},
  };
  for (const auto& test : cases) {
    const Result<Tensor> out = run(test.kind);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = test.function(x[i]);
      EXPECT_NEAR(out->values[i], expected, 1e-6 * std::max(1.0, std::fabs(expected)))
          << test.kind << " of " << x[i];
    }
  }
}

}  // namespace
}  // namespace trims::predict

// Against small cases worked out by hand and against naive loops that share nothing with
// the kernels, over seeded random parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "predict/cpu/test_kernel.h"

namespace trims::predict {
namespace {

TEST(LrnTest, AgreesWithTheFormula) {
  std::mt19937 random(7);
  for (const double beta : {0.75, 0.5, 1.0, 0.6}) {
    for (const int64_t nsize : {1, 3, 5, 9}) {
      const Tensor data = RandomTensor(random, {2, 6, 3, 4});
      const double alpha = 0.7, knorm = 1.5;
      Tensor expected = data;
      for (int64_t n = 0; n < 2; ++n) {
        for (int64_t c = 0; c < 6; ++c) {
          for (int64_t i = 0; i < 12; ++i) {
            double sum = 0;
            for (int64_t k = c - nsize / 2; k <= c + nsize / 2; ++k) {
              if (k < 0 || k >= 6) continue;
              const double x = data.values[static_cast<size_t>((n * 6 + k) * 12 + i)];
              sum += x * x;
            }
            float& y = expected.values[static_cast<size_t>((n * 6 + c) * 12 + i)];
            y = static_cast<float>(
                y * std::pow(knorm + alpha / static_cast<double>(nsize) * sum, -beta));
          }
        }
      }
      const Result<Tensor> out = RunSimple("LRN",
                                           {{"nsize", std::to_string(nsize)},
                                            {"alpha", "0.7"},
                                            {"beta", std::to_string(beta)},
                                            {"knorm", "1.5"}},
                                           data);
      ASSERT_TRUE(out.ok()) << ErrorOf(out);
      ExpectClose(*out, expected, 1e-6);
    }
  }
}

TEST(LrnTest, DefaultsAreMxnetsAndNotCaffes) {
  const Result<Tensor> out = RunSimple("LRN", {{"nsize", "1"}}, {{1, 1, 1, 1}, {100}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_NEAR(out->values[0], 100 * std::pow(2.0 + 1e-4 * 10000, -0.75), 1e-4);
}

}  // namespace
}  // namespace trims::predict

// The committed digits network through our executor: its accuracy on every digit
// that it was not trained on. models/digits/README.md describes the files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "predict/graph.h"
#include "predict/predictor.h"
#include "predict/weights.h"

namespace trims::predict {
namespace {

constexpr size_t kPixels = 16 * 16;
constexpr size_t kRecord = 1 + kPixels;  // Label, pixels.
constexpr size_t kClasses = 10;

std::string Read(const std::string& name) {
  std::ifstream in(std::string(TRIMS_DIGITS_DIR) + "/" + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(DigitsTest, ClassifiesHeldOutDigits) {
  const std::string held_out = Read("heldout.bin");
  ASSERT_EQ(held_out.size() % kRecord, 0u);
  const size_t count = held_out.size() / kRecord;
  ASSERT_EQ(count, 540u);

  auto graph = Graph::FromJson(Read("model.symbol"));
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  auto weights = FileWeights::FromPath(TRIMS_DIGITS_DIR, "digits");
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  auto predictor =
      Predictor::Create(*graph, *weights, {{"data", {static_cast<int64_t>(count), 1, 16, 16}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();

  std::vector<float> input;
  input.reserve(count * kPixels);
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 1; j < kRecord; ++j) {  // manifest.json: mean 128, scale 128.
      input.push_back(
          (static_cast<float>(static_cast<unsigned char>(held_out[i * kRecord + j])) - 128.0f) /
          128.0f);
    }
  }
  ASSERT_TRUE((*predictor)->SetInput("data", input).ok());
  const Status run = (*predictor)->Forward();
  ASSERT_TRUE(run.ok()) << run.ToString();
  std::vector<float> probability(count * kClasses);
  ASSERT_TRUE((*predictor)->GetOutput(0, probability).ok());

  size_t right = 0;
  for (size_t i = 0; i < count; ++i) {
    const auto first = probability.begin() + static_cast<std::ptrdiff_t>(i * kClasses);
    const auto guess = std::max_element(first, first + kClasses) - first;
    right += guess == held_out[i * kRecord] ? 1 : 0;
  }
  const double accuracy = static_cast<double>(right) / static_cast<double>(count);
  std::printf("held-out digits: %zu of %zu right, %.1f %%\n", right, count, 100 * accuracy);
  RecordProperty("held_out_right", static_cast<int>(right));
  EXPECT_GE(accuracy, 0.95);
  // What MXNet itself gets with these weights.
  EXPECT_EQ(right, 534u);
}

}  // namespace
}  // namespace trims::predict

// The committed digits network through our executor: its accuracy on every digit
// that it was not trained on. models/digits/README.md describes the files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "predict/graph.h"
#include "predict/image.h"
#include "predict/model_folder.h"
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

class DigitsTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string file = Read("heldout.bin");
    ASSERT_EQ(file.size(), 540 * kRecord);
    for (size_t i = 0; i < file.size(); i += kRecord) {
      labels_.push_back(static_cast<unsigned char>(file[i]));
      images_.push_back(file.substr(i + 1, kPixels));
    }
    auto manifest = ReadManifest(TRIMS_DIGITS_DIR);
    ASSERT_TRUE(manifest.ok()) << manifest.status().ToString();
    ASSERT_TRUE(manifest->has_value());
    input_ = (*manifest)->input;
    ASSERT_EQ(input_.element_count(), kPixels);
    ASSERT_EQ(input_.mean.size(), 1u);
  }

  std::vector<float> Preprocess(const std::string& image) const {
    std::vector<float> values;
    for (const char pixel : image) {
      values.push_back((static_cast<float>(static_cast<unsigned char>(pixel)) - input_.mean[0]) /
                       input_.scale);
    }
    return values;
  }

  std::vector<int> labels_;
  std::vector<std::string> images_;
  ImageInput input_;
};

TEST_F(DigitsTest, ClassifiesHeldOutDigits) {
  auto graph = Graph::FromJson(Read("model.symbol"));
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  auto weights = FileWeights::FromPath(TRIMS_DIGITS_DIR, "digits");
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  auto predictor = Predictor::Create(
      *graph, *weights, {{"data", {static_cast<int64_t>(images_.size()), 1, 16, 16}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();

  std::vector<float> batch;
  for (const std::string& image : images_) {
    const std::vector<float> values = Preprocess(image);
    batch.insert(batch.end(), values.begin(), values.end());
  }
  ASSERT_TRUE((*predictor)->SetInput("data", batch).ok());
  const Status run = (*predictor)->Forward();
  ASSERT_TRUE(run.ok()) << run.ToString();
  std::vector<float> probability(images_.size() * kClasses);
  ASSERT_TRUE((*predictor)->GetOutput(0, probability).ok());

  size_t right = 0;
  for (size_t i = 0; i < images_.size(); ++i) {
    const auto first = probability.begin() + static_cast<std::ptrdiff_t>(i * kClasses);
    right += std::max_element(first, first + kClasses) - first == labels_[i] ? 1 : 0;
  }
  const double accuracy = static_cast<double>(right) / static_cast<double>(images_.size());
  std::printf("held-out digits: %zu of %zu right, %.1f %%\n", right, images_.size(),
              100 * accuracy);
  RecordProperty("held_out_right", static_cast<int>(right));
  EXPECT_GE(accuracy, 0.95);
  // What MXNet itself gets with these weights.
  EXPECT_EQ(right, 534u);
}

TEST_F(DigitsTest, SampleImagesAreHeldOutDigitsAndNeedNoResizing) {
  std::vector<int> seen(kClasses, 0);
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(TRIMS_DIGITS_DIR) + "/images")) {
    const std::string path = entry.path().string();
    const auto values = ImageFromFile(path, input_);
    ASSERT_TRUE(values.ok()) << values.status().ToString();
    size_t match = 0;
    while (match < images_.size() && Preprocess(images_[match]) != *values) ++match;
    ASSERT_LT(match, images_.size()) << path << " is not among the held-out digits";
    EXPECT_EQ(entry.path().filename().string()[0], '0' + labels_[match]) << path;
    ++seen[static_cast<size_t>(labels_[match])];
  }
  EXPECT_EQ(seen, std::vector<int>(kClasses, 2));
}

}  // namespace
}  // namespace trims::predict

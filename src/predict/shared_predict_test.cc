// Predictions over weights that a real daemon lends: the C predict API and
// `trims predict`, each with sharing on and off.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "mxnet/c_predict_api.h"
#include "predict/lease_weights.h"
#include "predict/model_folder.h"
#include "predict/predictor.h"
#include "tests/test_control.h"
#include "tests/test_daemon.h"

namespace trims::predict {
namespace {

using testing::HasSubstr;
using testing_support::Eventually;
using testing_support::TestControl;
using testing_support::TestDaemon;
namespace fs = std::filesystem;

constexpr int64_t kSide = 16;
const std::string kDigits = TRIMS_DIGITS_DIR;

class SharedPredictTest : public testing::Test {
 protected:
  SharedPredictTest() {
    fs::copy(kDigits, daemon_.base_dir() + "/digits", fs::copy_options::recursive);
    ::setenv("TRIMS_RUNTIME_DIR", daemon_.runtime_dir().c_str(), 1);
    ::setenv("UPR_BASE_DIR", daemon_.base_dir().c_str(), 1);
    ::setenv("UPR_MODEL_NAME", "digits", 1);
    symbol_ = ReadSymbol(kDigits, "digits").value();
    for (const auto& entry : fs::directory_iterator(kDigits + "/images")) {
      images_.push_back(entry.path().string());
    }
    std::sort(images_.begin(), images_.end());
  }

  std::vector<float> Pixels(const std::string& image) {
    const auto manifest = ReadManifest(kDigits);
    return ImageFromFile(image, (*manifest)->input).value();
  }

  PredictorHandle Create(bool shared) {
    ::setenv("UPR_ENABLED", shared ? "true" : "false", 1);
    const char* keys[] = {"data"};
    const mx_uint indptr[] = {0, 4};
    const mx_uint dims[] = {1, 1, kSide, kSide};
    PredictorHandle handle = nullptr;
    EXPECT_EQ(MXPredCreate(symbol_.c_str(), nullptr, 0, 1, 0, 1, keys, indptr, dims, &handle), 0)
        << MXGetLastError();
    return handle;
  }

  // Runs the program `trims`; its stdout, and its exit code in `code`.
  std::string Trims(const std::string& arguments, int* code) {
    const std::string line =
        std::string(TRIMS_PROGRAM) + " " + arguments + " 2>" + daemon_.root() + "/stderr";
    FILE* pipe = ::popen(line.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    *code = WEXITSTATUS(::pclose(pipe));
    return out;
  }
  std::string Errors() {
    std::ifstream file(daemon_.root() + "/stderr");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  TestDaemon daemon_;
  std::string symbol_;
  std::vector<std::string> images_;
};

TEST_F(SharedPredictTest, TheSameProgramComputesTheSameBothWays) {
  PredictorHandle shared = Create(true);
  PredictorHandle own = Create(false);
  ASSERT_FALSE(images_.empty());
  int right = 0;
  for (const std::string& image : images_) {
    const std::vector<float> pixels = Pixels(image);
    float outputs[2][10] = {};
    int which = 0;
    for (PredictorHandle handle : {shared, own}) {
      ASSERT_EQ(MXPredSetInput(handle, "data", pixels.data(), kSide * kSide), 0);
      ASSERT_EQ(MXPredForward(handle), 0) << MXGetLastError();
      ASSERT_EQ(MXPredGetOutput(handle, 0, outputs[which++], 10), 0);
    }
    EXPECT_THAT(outputs[0], testing::ElementsAreArray(outputs[1]));
    const auto guess = std::max_element(outputs[0], outputs[0] + 10) - outputs[0];
    right += guess == fs::path(image).filename().string()[0] - '0';
  }
  EXPECT_GE(right * 10, static_cast<int>(images_.size()) * 9);
  EXPECT_EQ(MXPredFree(shared), 0);
  EXPECT_EQ(MXPredFree(own), 0);
}

TEST_F(SharedPredictTest, EndingAPredictionEndsTheLeaseAndReportsItsMemory) {
  TestControl control(daemon_.runtime_dir());
  const auto digits = [&] {
    const v1::ListResponse response = control.List(true);
    for (const auto& model : response.models()) {
      if (model.name() == "digits") return model;
    }
    return v1::ModelView();
  };
  PredictorHandle handle = Create(true);
  ASSERT_EQ(digits().replicas_size(), 1);
  EXPECT_EQ(digits().replicas(0).leases(), 1u);
  EXPECT_EQ(MXPredFree(handle), 0);
  EXPECT_TRUE(Eventually([&] { return digits().replicas(0).leases() == 0; }));
  // Input, work space and output of this small network.
  EXPECT_GT(digits().replicas(0).peak_internal_bytes(), 16u * 1024);
  EXPECT_LT(digits().replicas(0).peak_internal_bytes(), 1024u * 1024);
}

TEST_F(SharedPredictTest, WeightsAreUsedWhereTheyLie) {
  const auto weights = LeaseWeights::Open("digits", {.runtime_dir = daemon_.runtime_dir()});
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  EXPECT_EQ((*weights)->model_dir(), daemon_.base_dir() + "/digits");
  const auto graph = Graph::FromJson(symbol_);
  ASSERT_TRUE(graph.ok());
  const auto predictor = Predictor::Create(*graph, *weights, {{"data", {1, 1, kSide, kSide}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
  // The memory of the lease is mapped shared and read-only, and the predictor has
  // less memory of its own than the weights take.
  std::ifstream maps("/proc/self/maps");
  int mappings = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:trims") == std::string::npos) continue;
    ++mappings;
    EXPECT_THAT(line, HasSubstr(" r--s "));
  }
  EXPECT_GT(mappings, 0);
  EXPECT_LT((*predictor)->private_bytes(), (*weights)->PeekLease().total_bytes());
  ASSERT_TRUE((*predictor)->Forward().ok());
}

TEST_F(SharedPredictTest, AModelThatIsNotThereIsNamed) {
  ::setenv("UPR_MODEL_NAME", "nowhere_1.0", 1);
  ::setenv("UPR_ENABLED", "true", 1);
  const char* keys[] = {"data"};
  const mx_uint indptr[] = {0, 4};
  const mx_uint dims[] = {1, 1, kSide, kSide};
  PredictorHandle handle = nullptr;
  EXPECT_EQ(MXPredCreate(symbol_.c_str(), nullptr, 0, 1, 0, 1, keys, indptr, dims, &handle), -1);
  EXPECT_THAT(MXGetLastError(),
              testing::AllOf(HasSubstr("nowhere_1.0"), HasSubstr("UPR_MODEL_NAME")));
}

TEST_F(SharedPredictTest, TheCommandClassifiesImages) {
  std::string files;
  for (const std::string& image : images_) files += " " + image;
  for (const std::string how : {"", " --no-share"}) {
    int code = -1;
    const std::string out =
        Trims("predict --json --time --top 3 --model digits" + how + files, &code);
    ASSERT_EQ(code, 0) << Errors();
    const nlohmann::json json = nlohmann::json::parse(out);
    EXPECT_EQ(json["shared"], how.empty());
    EXPECT_EQ(json["digest"].is_null(), !how.empty());
    ASSERT_EQ(json["images"].size(), images_.size());
    int right = 0;
    for (size_t i = 0; i < images_.size(); ++i) {
      const nlohmann::json& image = json["images"][i];
      EXPECT_EQ(image["image"], images_[i]);
      ASSERT_EQ(image["predictions"].size(), 3u);
      EXPECT_GE(image["predictions"][0]["probability"], image["predictions"][1]["probability"]);
      EXPECT_TRUE(image.contains("forward_ms"));
      right +=
          image["predictions"][0]["label"] == fs::path(images_[i]).filename().string().substr(0, 1);
    }
    EXPECT_GE(right * 10, static_cast<int>(images_.size()) * 9);
  }
}

TEST_F(SharedPredictTest, TheCommandGoesOnAfterABadImage) {
  std::ofstream(daemon_.root() + "/bad.png") << "not an image";
  int code = -1;
  const std::string out = Trims(
      "predict -m digits " + daemon_.root() + "/bad.png " + images_[0] + " /missing.png", &code);
  EXPECT_EQ(code, 2);
  EXPECT_THAT(out, HasSubstr(images_[0]));
  EXPECT_THAT(Errors(),
              testing::AllOf(HasSubstr("bad.png: not a PNG or JPEG"), HasSubstr("/missing.png")));
}

TEST_F(SharedPredictTest, TheCommandTakesItsInputFromOptionsAndEnvironment) {
  // A mean far off makes another input, so the guesses change; that is enough to
  // see each of them arrive.
  int code = -1;
  const std::string base = "predict --json -m digits " + images_[3];
  const std::string plain = Trims(base, &code);
  ASSERT_EQ(code, 0) << Errors();
  const std::string same = Trims(base + " --mean 128 --scale 128 --channels 1", &code);
  EXPECT_EQ(same, plain);
  const std::string other = Trims(base + " --mean 0", &code);
  EXPECT_EQ(code, 0) << Errors();
  EXPECT_NE(other, plain);
  ::setenv("UPR_INPUT_MEAN_R", "0", 1);
  EXPECT_EQ(Trims(base, &code), other);
  EXPECT_EQ(Trims(base + " --mean 128", &code), plain);
  ::setenv("UPR_INPUT_MEAN_R", "grey", 1);
  Trims(base, &code);
  EXPECT_EQ(code, 2);
  EXPECT_THAT(Errors(), HasSubstr("UPR_INPUT_MEAN_R='grey'"));
  ::unsetenv("UPR_INPUT_MEAN_R");
  Trims(base + " --width 20", &code);
  EXPECT_EQ(code, 2);
  EXPECT_THAT(Errors(), HasSubstr("has shape"));
  Trims(base + " --input image", &code);
  EXPECT_THAT(Errors(), HasSubstr("no input 'image'"));
}

TEST_F(SharedPredictTest, TheCommandSaysWhatToDoWithoutADaemon) {
  ::setenv("TRIMS_RUNTIME_DIR", (daemon_.root() + "/nothing-here").c_str(), 1);
  int code = -1;
  Trims("predict -m digits " + images_[0], &code);
  EXPECT_EQ(code, 7);
  EXPECT_THAT(Errors(), testing::AllOf(HasSubstr("trims serve"), HasSubstr("--no-share")));
}

}  // namespace
}  // namespace trims::predict

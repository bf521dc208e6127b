#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "format/model_file.h"
#include "format/mxnet_symbol.h"
#include "network.h"
#include "random.h"
#include "weights_file.h"

namespace trims::models {
namespace {

class MakeModelTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = testing::TempDir() + "make-model-XXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    dir_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  static std::string Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // Exit code of make-model.
  static int Run(const std::string& args) {
    const int status =
        std::system((std::string(TRIMS_MAKE_MODEL) + " " + args + " >/dev/null 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string dir_;
};

uint64_t Weights(const Network& network) { return network.weight_bytes() / sizeof(float); }

uint64_t Fnv1a(const std::string& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Tensor name without "arg:" -> its bytes.
std::map<std::string, std::string> Tensors(const std::string& file) {
  std::map<std::string, std::string> tensors;
  const format::MemorySource source(std::as_bytes(std::span(file)), "test file");
  const auto index = format::ParseModelFile(source);
  EXPECT_TRUE(index.ok()) << index.status().ToString();
  if (!index.ok()) return tensors;
  for (const auto& tensor : index->tensors) {
    const std::string name = tensor.name.starts_with("arg:") ? tensor.name.substr(4) : tensor.name;
    tensors[name] = file.substr(tensor.offset, tensor.size_bytes);
  }
  return tensors;
}

TEST(NetworkTest, HasTheWeightsOfTheRealNetworks) {
  EXPECT_EQ(Weights(MakeNetwork("lenet", {})), 431'080u);
  EXPECT_EQ(Weights(MakeNetwork("alexnet", {})), 62'378'344u);
  EXPECT_EQ(Weights(MakeNetwork("vgg16", {})), 138'357'544u);
  EXPECT_EQ(MakeNetwork("alexnet", {}).input, (std::vector<int64_t>{3, 227, 227}));
  EXPECT_EQ(MakeNetwork("vgg16", {}).input, (std::vector<int64_t>{3, 224, 224}));
}

TEST(NetworkTest, WidthDivNarrowsEverythingButTheClasses) {
  const Network network = MakeNetwork("vgg16", {.width_div = 8, .image_size = 64});
  EXPECT_EQ(network.tensors.front().shape, (std::vector<int64_t>{8, 3, 3, 3}));
  EXPECT_EQ(network.tensors[network.tensors.size() - 2].shape, (std::vector<int64_t>{1000, 512}));
  // Fewer filters than the divisor leave one.
  EXPECT_EQ(MakeNetwork("lenet", {.width_div = 999}).tensors.front().shape[0], 1);
}

TEST(NetworkTest, RefusesAnImageThatALayerCannotTake) {
  try {
    MakeNetwork("alexnet", {.image_size = 64});
    FAIL() << "built";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("at layer pool3 it is 2 pixels wide"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(MakeNetwork("resnet", {}), std::invalid_argument);
}

TEST(NetworkTest, SyntheticDividesTheBytesAsEquallyAsItCan) {
  const Network network = MakeSynthetic(3, 40);
  ASSERT_EQ(network.tensors.size(), 3u);
  EXPECT_EQ(network.weight_bytes(), 40u);
  EXPECT_EQ(network.tensors[0].shape[0], 4);
  EXPECT_EQ(network.tensors[2].shape[0], 3);
  EXPECT_THROW(MakeSynthetic(0, 40), std::invalid_argument);
  EXPECT_THROW(MakeSynthetic(3, 8), std::invalid_argument);
  EXPECT_THROW(MakeSynthetic(3, 41), std::invalid_argument);
}

TEST(NetworkTest, SymbolIsAGraphWhoseArgumentsAreTheTensors) {
  for (const char* name : {"lenet", "alexnet", "vgg16"}) {
    const Network network = MakeNetwork(name, {});
    const auto symbol = format::ParseMxnetSymbol(SymbolJson(network));
    ASSERT_TRUE(symbol.ok()) << name << ": " << symbol.status().ToString();
    EXPECT_EQ(symbol->mxnet_version, 10901);
    std::vector<std::string> arguments;
    for (const uint32_t node : symbol->argument_nodes) {
      arguments.push_back(symbol->nodes[node].name);
    }
    std::vector<std::string> expected{"data"};
    for (const TensorSpec& tensor : network.tensors) expected.push_back(tensor.name);
    expected.push_back("softmax_label");
    EXPECT_EQ(arguments, expected) << name;
  }
}

TEST(RandomTest, FillingInPiecesEqualsFillingAtOnce) {
  std::vector<float> once(1001);
  Xoshiro256(7, "x").FillUniform(once, 0.5f);
  std::vector<float> pieces(1001);
  Xoshiro256 random(7, "x");
  random.FillUniform(std::span(pieces).first(400), 0.5f);
  random.FillUniform(std::span(pieces).subspan(400), 0.5f);
  EXPECT_EQ(once, pieces);
  for (const float value : once) {
    EXPECT_GE(value, -0.5f);
    EXPECT_LT(value, 0.5f);
  }
}

TEST(RandomTest, DependsOnSeedAndName) {
  const auto first = [](uint64_t seed, const char* name) { return Xoshiro256(seed, name).Next(); };
  EXPECT_NE(first(1, "a"), first(2, "a"));
  EXPECT_NE(first(1, "a"), first(1, "b"));
  EXPECT_EQ(first(1, "a"), first(1, "a"));
}

// tests/golden holds outputs for these weights; if this fails, regenerate it.
TEST_F(MakeModelTest, WritesTheNumbersThatTheGoldenFilesWereMadeWith) {
  const Network network = MakeNetwork("lenet", {});
  WriteMxnetParams(network, 11, ParamsVersion::kV2, Path("model.params"));
  WriteInput(network, 11, Path("input.bin"));
  EXPECT_EQ(Fnv1a(Read(Path("model.params"))), 7072111131878385387u);
  EXPECT_EQ(Fnv1a(Read(Path("input.bin"))), 10142457042222840737u);
}

TEST_F(MakeModelTest, EveryFormatHoldsTheSameTensors) {
  const Network network = MakeNetwork("lenet", {.width_div = 4});
  WriteSafetensors(network, 3, Path("model.safetensors"));
  const auto expected = Tensors(Read(Path("model.safetensors")));
  EXPECT_EQ(expected.size(), network.tensors.size());
  for (const TensorSpec& tensor : network.tensors) {
    ASSERT_TRUE(expected.contains(tensor.name)) << tensor.name;
    EXPECT_EQ(expected.at(tensor.name).size(), tensor.elements() * sizeof(float));
  }
  for (const ParamsVersion version :
       {ParamsVersion::kV0, ParamsVersion::kV1, ParamsVersion::kV2, ParamsVersion::kV3}) {
    WriteMxnetParams(network, 3, version, Path("model.params"));
    EXPECT_EQ(Tensors(Read(Path("model.params"))), expected) << static_cast<int>(version);
  }
}

TEST_F(MakeModelTest, LeavesNoPartialFileBehind) {
  WriteText("text", Path("a"));
  EXPECT_EQ(Read(Path("a")), "text");
  EXPECT_THROW(WriteText("text", Path("missing/a")), std::runtime_error);
  std::filesystem::create_directory(Path("folder"));
  EXPECT_THROW(WriteText("text", Path("folder")), std::runtime_error);
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir_)) ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST_F(MakeModelTest, ProgramWritesAModelDirectory) {
  ASSERT_EQ(Run("lenet --out " + Path("m") + " --seed 4 --classes 7 --with-input"), 0);
  EXPECT_EQ(Read(Path("m/manifest.json")),
            "{\"inputs\": [{\"dimensions\": [1, 28, 28], \"mean\": [128], \"scale\": 128}]}\n");
  const std::string labels = Read(Path("m/features.txt"));
  EXPECT_EQ(std::count(labels.begin(), labels.end(), '\n'), 7);
  EXPECT_TRUE(labels.starts_with("n00000000 class 0\n")) << labels;
  EXPECT_EQ(Read(Path("m/input.bin")).size(), 28u * 28 * sizeof(float));
  EXPECT_EQ(Tensors(Read(Path("m/model.params"))).at("fc2_bias").size(), 7 * sizeof(float));

  ASSERT_EQ(Run("synthetic --tensors 3 --bytes 1KiB --format=safetensors --out " + Path("s")), 0);
  EXPECT_EQ(Tensors(Read(Path("s/model.safetensors"))).size(), 3u);
  EXPECT_FALSE(std::filesystem::exists(Path("s/model.symbol")));
}

TEST_F(MakeModelTest, ProgramRefusesWhatItCanNotDo) {
  const std::string out = " --out " + Path("m");
  for (const std::string& args : std::vector<std::string>{
           "", "lenet", "lenet vgg16" + out, "resnet" + out, "lenet --seed" + out,
           "lenet --seed x" + out, "lenet --version V4" + out, "lenet --format onnx" + out,
           "lenet --width-div 0" + out, "lenet --tensors 3" + out, "synthetic --classes 3" + out,
           "synthetic --bytes 1MB" + out, "lenet --format safetensors --version V1" + out,
           "lenet --colour red" + out, "alexnet --image-size 64" + out}) {
    EXPECT_EQ(Run(args), 2) << args;
  }
  EXPECT_FALSE(std::filesystem::exists(Path("m")));
  EXPECT_EQ(Run("lenet --out /dev/null/m"), 1);
}

}  // namespace
}  // namespace trims::models

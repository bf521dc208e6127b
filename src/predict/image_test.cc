#include "predict/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <random>

#include "predict/model_folder.h"

namespace trims::predict {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

// --- A PNG writer that shares nothing with the decoder ---------------------------

uint32_t Crc32(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

std::string BigEndian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

std::string Chunk(const std::string& type, const std::string& payload) {
  return BigEndian(static_cast<uint32_t>(payload.size())) + type + payload +
         BigEndian(Crc32(type + payload));
}

// `color`: 0 grey, 2 RGB, 6 RGBA. One stored deflate block.
std::string Png(uint32_t width, uint32_t height, int color, const std::string& pixels) {
  const size_t bytes_per_pixel = color == 0 ? 1 : color == 2 ? 3 : 4;
  std::string raw;
  for (size_t row = 0; row < height && row * width * bytes_per_pixel < pixels.size(); ++row) {
    raw += '\0' + pixels.substr(row * width * bytes_per_pixel, width * bytes_per_pixel);
  }
  uint32_t a = 1, b = 0;
  for (const char c : raw) {
    a = (a + static_cast<uint8_t>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const auto length = static_cast<uint16_t>(raw.size());
  std::string stream = "\x78\x01\x01";
  stream += static_cast<char>(length & 0xff);
  stream += static_cast<char>(length >> 8);
  stream += static_cast<char>(~length & 0xff);
  stream += static_cast<char>((~length >> 8) & 0xff);
  stream += raw + BigEndian(b << 16 | a);
  std::string header = BigEndian(width) + BigEndian(height);
  header += {8, static_cast<char>(color), 0, 0, 0};
  return "\x89PNG\r\n\x1a\n" + Chunk("IHDR", header) + Chunk("IDAT", stream) + Chunk("IEND", "");
}

Result<std::vector<float>> Decode(const std::string& file, const ImageInput& input) {
  return ImageFromBytes(std::as_bytes(std::span(file)), "test.png", input);
}

const std::string kTwoByTwo = {10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120};

TEST(ImageTest, PlanesAreRedGreenBlue) {
  const auto values = Decode(Png(2, 2, 2, kTwoByTwo), {.channels = 3, .height = 2, .width = 2});
  ASSERT_TRUE(values.ok()) << values.status().ToString();
  EXPECT_THAT(*values, ElementsAre(10, 40, 70, 100, 20, 50, 80, 110, 30, 60, 90, 120));
}

TEST(ImageTest, MeanIsSubtractedAndScaleDivides) {
  const auto values =
      Decode(Png(2, 2, 2, kTwoByTwo),
             {.channels = 3, .height = 2, .width = 2, .mean = {10, 20, 30}, .scale = 10});
  ASSERT_TRUE(values.ok()) << values.status().ToString();
  EXPECT_THAT(*values, ElementsAre(0, 3, 6, 9, 0, 3, 6, 9, 0, 3, 6, 9));
}

TEST(ImageTest, GreyBecomesThreeChannelsAndColourOne) {
  const auto colour = Decode(Png(2, 1, 0, {7, 9}), {.channels = 3, .height = 1, .width = 2});
  ASSERT_TRUE(colour.ok()) << colour.status().ToString();
  EXPECT_THAT(*colour, ElementsAre(7, 9, 7, 9, 7, 9));
  const auto grey = Decode(Png(1, 1, 2, {100, 100, 100}), {.channels = 1, .height = 1, .width = 1});
  ASSERT_TRUE(grey.ok()) << grey.status().ToString();
  EXPECT_THAT(*grey, ElementsAre(100));
}

TEST(ImageTest, TransparencyIsDropped) {
  const auto values =
      Decode(Png(1, 1, 6, {10, 20, 30, 0}), {.channels = 3, .height = 1, .width = 1});
  ASSERT_TRUE(values.ok()) << values.status().ToString();
  EXPECT_THAT(*values, ElementsAre(10, 20, 30));
}

TEST(ImageTest, ResizingKeepsAConstantImageConstant) {
  for (const int64_t side : {1, 3, 8, 50}) {
    const auto values = Decode(Png(8, 8, 0, std::string(64, 100)),
                               {.channels = 1, .height = side, .width = 2 * side});
    ASSERT_TRUE(values.ok()) << values.status().ToString();
    EXPECT_EQ(values->size(), static_cast<size_t>(2 * side * side));
    EXPECT_THAT(*values, testing::Each(testing::AllOf(testing::Ge(99), testing::Le(101))));
  }
}

TEST(ImageTest, HugeImagesAreRefusedBeforeDecoding) {
  const auto values = Decode(Png(20000, 20000, 0, std::string(100, 0)), {});
  ASSERT_FALSE(values.ok());
  EXPECT_THAT(values.status().message(), AllOf(HasSubstr("test.png"), HasSubstr("20000 x 20000")));
  EXPECT_FALSE(Decode(Png(4000000000u, 1, 2, "abc"), {}).ok());
}

TEST(ImageTest, WhatIsNoImageIsNamed) {
  EXPECT_THAT(Decode("", {}).status().message(), HasSubstr("the file is empty"));
  EXPECT_THAT(Decode("<html></html>", {}).status().message(), HasSubstr("not a PNG or JPEG image"));
  std::string truncated = Png(2, 2, 2, kTwoByTwo);
  truncated.resize(50);
  EXPECT_THAT(Decode(truncated, {}).status().message(), HasSubstr("test.png"));
  EXPECT_THAT(ImageFromFile("/nonexistent.png", {}).status().ToString(),
              AllOf(HasSubstr("NOT_FOUND"), HasSubstr("/nonexistent.png")));
  EXPECT_THAT(ImageFromFile("/tmp", {}).status().message(), HasSubstr("is not a file"));
}

TEST(ImageTest, SurvivesMutatedFiles) {
  std::mt19937 random(23);
  const std::string png = Png(8, 8, 2, std::string(192, 'x'));
  int decoded = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string file = png;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      file[8 + random() % (file.size() - 8)] = static_cast<char>(random());
    }
    if (random() % 8 == 0) file.resize(random() % file.size());
    decoded += Decode(file, {.channels = 1, .height = 4, .width = 4}).ok();
  }
  EXPECT_GT(decoded, 30);
}

TEST(ImageTest, InputsAreChecked) {
  const std::string png = Png(1, 1, 0, {5});
  EXPECT_FALSE(Decode(png, {.channels = 2}).ok());
  EXPECT_FALSE(Decode(png, {.height = 0}).ok());
  EXPECT_FALSE(Decode(png, {.width = 1 << 20}).ok());
  EXPECT_FALSE(Decode(png, {.scale = 0}).ok());
  EXPECT_THAT(Decode(png, {.mean = {1, 2}}).status().message(),
              HasSubstr("2 mean values for 3 channel(s)"));
}

// --- Model folders -----------------------------------------------------------------

class ModelFolderTest : public testing::Test {
 protected:
  ModelFolderTest() {
    std::string name = (fs::temp_directory_path() / "trims-folder-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~ModelFolderTest() override { fs::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << text;
  }
  std::string folder_;
};

TEST_F(ModelFolderTest, SymbolsHaveFallBackNames) {
  EXPECT_THAT(ReadSymbol(folder_, "vgg").status().message(),
              AllOf(HasSubstr(folder_), HasSubstr("model.symbol, vgg.symbol, vgg-symbol.json")));
  Write("vgg-symbol.json", "third");
  EXPECT_EQ(*ReadSymbol(folder_, "vgg"), "third");
  Write("vgg.symbol", "second");
  EXPECT_EQ(*ReadSymbol(folder_, "vgg"), "second");
  Write("model.symbol", "first");
  EXPECT_EQ(*ReadSymbol(folder_, "vgg"), "first");
}

TEST_F(ModelFolderTest, WhatIsNoFileIsNotRead) {
  for (const char* name : {"model.symbol", "features.txt", "manifest.json"}) {
    fs::create_directory(folder_ + "/" + name);
  }
  EXPECT_THAT(ReadSymbol(folder_, "vgg").status().message(),
              HasSubstr("'model.symbol' is a directory"));
  EXPECT_TRUE(ReadLabels(folder_)->empty());
  EXPECT_FALSE(ReadManifest(folder_)->has_value());
  Write("vgg-symbol.json", "graph");
  Write("synset.txt", "cat");
  EXPECT_EQ(*ReadSymbol(folder_, "Team/VGG:1.0"), "graph");
  EXPECT_THAT(*ReadLabels(folder_), ElementsAre("cat"));
  // Nobody writes to this one: reading it would never end.
  ASSERT_EQ(::mkfifo((folder_ + "/vgg.symbol").c_str(), 0600), 0);
  EXPECT_THAT(ReadSymbol(folder_, "vgg").status().message(), HasSubstr("vgg.symbol"));
}

TEST_F(ModelFolderTest, AFolderThatIsNotThereIsNamed) {
  const std::string folder = folder_ + "/missing";
  EXPECT_THAT(ReadSymbol(folder, "vgg").status().message(), HasSubstr(folder));
  EXPECT_THAT(ReadLabels(folder).status().message(), HasSubstr(folder));
  EXPECT_THAT(ReadManifest(folder).status().message(), HasSubstr(folder));
}

TEST_F(ModelFolderTest, LabelsAreLines) {
  EXPECT_TRUE(ReadLabels(folder_)->empty());
  Write("synset.txt", "n01 cat\r\nn02 dog, hound\n");
  EXPECT_THAT(*ReadLabels(folder_), ElementsAre("n01 cat", "n02 dog, hound"));
  Write("features.txt", "a\n\nc");
  EXPECT_THAT(*ReadLabels(folder_), ElementsAre("a", "", "c"));
}

TEST_F(ModelFolderTest, ManifestsHaveTheKeysOf2019) {
  EXPECT_FALSE(ReadManifest(folder_)->has_value());
  Write("manifest.json", R"({"name": "x", "inputs": [{"type": "image", "parameters":
      {"dimensions": [3, 299, 300], "mean": [128, 127, 126], "scale": 128}}]})");
  const auto manifest = ReadManifest(folder_);
  ASSERT_TRUE(manifest.ok()) << manifest.status().ToString();
  ASSERT_TRUE(manifest->has_value());
  EXPECT_EQ((*manifest)->input_name, "data");
  EXPECT_EQ((*manifest)->input.height, 299);
  EXPECT_EQ((*manifest)->input.width, 300);
  EXPECT_THAT((*manifest)->input.mean, ElementsAre(128, 127, 126));
  EXPECT_EQ((*manifest)->input.scale, 128);

  const auto direct = ParseManifest(
      R"({"inputs": [{"name": "image", "dimensions": [1, 16, 16], "mean": 8}]})", "m");
  ASSERT_TRUE(direct.ok()) << direct.status().ToString();
  EXPECT_EQ(direct->input_name, "image");
  EXPECT_EQ(direct->input.channels, 1);
  EXPECT_THAT(direct->input.mean, ElementsAre(8));
}

TEST_F(ModelFolderTest, BadManifestsAreNamed) {
  for (const char* text :
       {"", "{", "[]", "{}", R"({"inputs": []})", R"({"inputs": [{}]})",
        R"({"inputs": [{"dimensions": [3]}]})", R"({"inputs": [{"dimensions": "big"}]})",
        R"({"inputs": [{"dimensions": [3, 4, 5], "scale": 0}]})",
        R"({"inputs": [{"dimensions": [4, 4, 5]}]})",
        R"({"inputs": [{"dimensions": [3, 4, 5], "mean": [1]}]})",
        R"({"inputs": [{"dimensions": [99999999999999999999, 4, 5]}]})"}) {
    Write("manifest.json", text);
    const auto manifest = ReadManifest(folder_);
    ASSERT_FALSE(manifest.ok()) << text;
    EXPECT_THAT(manifest.status().message(), HasSubstr(folder_ + "/manifest.json"));
  }
}

}  // namespace
}  // namespace trims::predict

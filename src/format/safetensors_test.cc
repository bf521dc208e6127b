#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "format/json_events.h"
#include "format/model_file.h"
#include "format/test_files.h"

namespace trims::format {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Result<FileIndex> Parse(std::string_view file) {
  return ParseSafetensors(MemorySource(AsBytes(file), "m.safetensors"));
}

// A header of one entry "a" with the given fields, and `data_bytes` of data.
std::string OneTensor(const std::string& fields, size_t data_bytes) {
  return RawSafetensors("{\"a\":{" + fields + "}}", std::string(data_bytes, 'x'));
}

void ExpectRefused(std::string_view file, const std::string& message) {
  const Result<FileIndex> index = Parse(file);
  ASSERT_FALSE(index.ok()) << "accepted; expected: " << message;
  EXPECT_EQ(index.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(index.status().message(), HasSubstr(message));
  EXPECT_THAT(index.status().message(), HasSubstr("m.safetensors"));
}

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const std::string file =
      WriteSafetensors({FloatTensor("w", {2, 3}), {"flags", DType::kBool, {5}, "\1\1\1\1\1"}},
                       {{"format", "pt"}, {"note", "a \"quoted\" one"}});
  const Result<FileIndex> index = Parse(file);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->format, FileFormat::kSafetensors);
  EXPECT_EQ(index->metadata.at("format"), "pt");
  EXPECT_EQ(index->metadata.at("note"), "a \"quoted\" one");
  ASSERT_EQ(index->tensors.size(), 2u);
  const TensorEntry& w = index->tensors[0];
  EXPECT_EQ(w.name, "w");
  EXPECT_EQ(w.dtype, DType::kF32);
  EXPECT_THAT(w.shape, ElementsAre(2, 3));
  EXPECT_EQ(w.size_bytes, 24u);
  EXPECT_EQ(w.offset + w.size_bytes, index->tensors[1].offset);
  EXPECT_EQ(file.substr(w.offset, 24), FloatTensor("", {2, 3}).bytes);
  EXPECT_EQ(index->tensors[1].offset + 5, file.size());
}

TEST(Safetensors, ReadsEveryDType) {
  for (uint8_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const TestTensor tensor{"t", dtype, {8}, std::string(DTypeBits(dtype), 'x')};  // 8 * bits / 8.
    const Result<FileIndex> index = Parse(WriteSafetensors({tensor}));
    ASSERT_TRUE(index.ok()) << DTypeName(dtype) << ": " << index.status().ToString();
    EXPECT_EQ(index->tensors[0].dtype, dtype);
    EXPECT_EQ(index->tensors[0].size_bytes, DTypeBits(dtype));
  }
}

TEST(Safetensors, ReadsScalarsAndEmptyTensors) {
  const Result<FileIndex> index =
      Parse(WriteSafetensors({FloatTensor("scalar", {}), FloatTensor("empty", {0, 7}),
                              FloatTensor("also_empty", {3, 0}), FloatTensor("last", {1})}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  ASSERT_EQ(index->tensors.size(), 4u);
  EXPECT_TRUE(index->tensors[0].shape.empty());
  EXPECT_EQ(index->tensors[0].size_bytes, 4u);
  EXPECT_EQ(index->tensors[1].name, "empty");
  EXPECT_EQ(index->tensors[1].size_bytes, 0u);
  EXPECT_EQ(index->tensors[2].name, "also_empty");
  EXPECT_EQ(index->tensors[2].offset, index->tensors[3].offset);
}

TEST(Safetensors, ReadsMisalignedTensors) {
  const Result<FileIndex> index =
      Parse(WriteSafetensors({{"odd", DType::kU8, {3}, "abc"}, FloatTensor("w", {2})}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors[1].offset % 4, 3u);
}

TEST(Safetensors, ReturnsTensorsInTheOrderOfTheirOffsets) {
  const Result<FileIndex> index =
      Parse(RawSafetensors(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},)"
                           R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                           "xyz"));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors[0].name, "a");
  EXPECT_EQ(index->tensors[1].name, "b");
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  for (const char* json : {"{}", "{}      ", "{\"__metadata__\":{}}", "{\"__metadata__\":null}"}) {
    const Result<FileIndex> index = Parse(RawSafetensors(json));
    ASSERT_TRUE(index.ok()) << json << ": " << index.status().ToString();
    EXPECT_TRUE(index->tensors.empty());
  }
}

TEST(Safetensors, StepsOverUnknownFieldsOfATensor) {
  const Result<FileIndex> index =
      Parse(OneTensor(R"("x":{"deep":[[1,{"y":null}],-2.5]},"dtype":"U8","shape":[1],)"
                      R"("z":true,"data_offsets":[0,1])",
                      1));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors[0].size_bytes, 1u);
}

TEST(Safetensors, KeepsUnicodeNames) {
  const Result<FileIndex> index = Parse(RawSafetensors(
      "{\"\xe5\xb1\x82\\u002e\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors[0].name, "\xe5\xb1\x82.\xc3\xa9");
}

TEST(Safetensors, ReadsFiveThousandTensorsAndMore) {
  std::vector<TestTensor> tensors;
  for (int i = 0; i < 50'000; ++i) {
    tensors.push_back({"layer." + std::to_string(i), DType::kU8, {1}, "x"});
  }
  const Result<FileIndex> index = Parse(WriteSafetensors(tensors));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors.size(), 50'000u);
  EXPECT_EQ(index->tensors[49'999].name, "layer.49999");
}

// --- The header's frame -------------------------------------------------------

TEST(Safetensors, RefusesAFileTooShortForAHeader) {
  ExpectRefused("", "has 0 bytes; a safetensors file has at least 10");
  ExpectRefused(std::string("\2\0\0\0\0\0\0\0{", 9), "has 9 bytes");
}

TEST(Safetensors, RefusesAHeaderOverTheLimit) {
  std::string file;
  AppendNumber<uint64_t>(file, kMaxSafetensorsHeaderBytes + 1);
  ExpectRefused(file + "{}", "a safetensors header of 100000001 bytes; at most 100000000");
  file.clear();
  AppendNumber<uint64_t>(file, UINT64_MAX);
  ExpectRefused(file + "{}", "18446744073709551615 bytes");
}

TEST(Safetensors, RefusesAnEmptyHeader) {
  ExpectRefused(RawSafetensors("", "{}"), "header of 0 bytes; the smallest has 2");
}

TEST(Safetensors, RefusesAHeaderBeyondTheFile) {
  std::string file;
  AppendNumber<uint64_t>(file, 100);
  ExpectRefused(file + "{}",
                "truncated: its safetensors header has 100 bytes, the file ends after 2");
}

TEST(Safetensors, RefusesAHeaderThatBeginsWithAnythingButABrace) {
  ExpectRefused(RawSafetensors(" {}"), "begins with ' '; expected '{'");
  ExpectRefused(RawSafetensors("[[]]"), "begins with '['");
  ExpectRefused(RawSafetensors("\xef\xbb\xbf{}"), "begins with '\\xef'");
}

TEST(Safetensors, RefusesWhatIsNotJson) {
  ExpectRefused(RawSafetensors("{\"a\""), "not valid JSON at byte 4");
  ExpectRefused(RawSafetensors("{}}"), "not valid JSON at byte 2");
  ExpectRefused(RawSafetensors("{} x"), "not valid JSON at byte 3");
  ExpectRefused(RawSafetensors("{'a':1}"), "not valid JSON at byte 1");
  ExpectRefused(RawSafetensors("{\"__metadata__\":{},}"), "not valid JSON at byte 19");
  ExpectRefused(RawSafetensors("{/**/}"), "not valid JSON");
}

TEST(Safetensors, RefusesInvalidUtf8) {
  ExpectRefused(RawSafetensors("{\"\xff\":{}}"), "not valid JSON at byte 2: invalid string");
  ExpectRefused(RawSafetensors("{\"\\ud800\":{}}"), "surrogate");
}

TEST(Safetensors, RefusesBytesHiddenBehindANul) {
  ExpectRefused(RawSafetensors(std::string("{}\0hidden", 9)), "NUL at byte 2");
  ExpectRefused(RawSafetensors(std::string("{\"a\\\0\":1}", 8)), "NUL at byte 4");
}

TEST(Safetensors, RefusesDeepNesting) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  ExpectRefused(OneTensor("\"x\":" + deep, 0), "nested more than 64 levels deep");
}

TEST(Safetensors, RefusesAnEndlessLiteral) {
  ExpectRefused(RawSafetensors("{\"" + std::string(kMaxJsonLiteralBytes + 8, 'a') + "\":1}"),
                "has a string or number of more than 16777216 bytes, beginning at byte 1");
  ExpectRefused(RawSafetensors("{\"a\":" + std::string(kMaxJsonLiteralBytes + 8, '1') + "}"),
                "beginning at byte 5");
}

// --- Tensors ------------------------------------------------------------------

TEST(Safetensors, RefusesATensorThatIsNoObject) {
  ExpectRefused(RawSafetensors("{\"a\":[\"U8\",[1],[0,1]]}", "x"),
                "tensor 'a' is an array; expected an object with dtype, shape and data_offsets");
}

TEST(Safetensors, RefusesMissingFields) {
  ExpectRefused(OneTensor(R"("shape":[1],"data_offsets":[0,1])", 1), "tensor 'a' has no dtype");
  ExpectRefused(OneTensor(R"("dtype":"U8","data_offsets":[0,1])", 1), "tensor 'a' has no shape");
  ExpectRefused(OneTensor(R"("dtype":"U8","shape":[1])", 1), "tensor 'a' has no data_offsets");
}

TEST(Safetensors, RefusesAFieldTwice) {
  ExpectRefused(OneTensor(R"("dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1])", 1),
                "tensor 'a' has the field 'dtype' twice");
}

TEST(Safetensors, RefusesATensorTwice) {
  const std::string a = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  ExpectRefused(RawSafetensors("{" + a + "," + a + "}"), "the header has the tensor 'a' twice");
}

TEST(Safetensors, RefusesAnUnknownDType) {
  ExpectRefused(OneTensor(R"("dtype":"Q4_0","shape":[1],"data_offsets":[0,1])", 1),
                "tensor 'a' has the unknown dtype 'Q4_0'");
  ExpectRefused(OneTensor(R"("dtype":7,"shape":[1],"data_offsets":[0,1])", 1),
                "the dtype of tensor 'a' is a number; expected a string");
}

TEST(Safetensors, RefusesDimensionsThatAreNotWholeNumbers) {
  const auto shape = [](const std::string& text) {
    return OneTensor("\"dtype\":\"U8\",\"shape\":" + text + ",\"data_offsets\":[0,1]", 1);
  };
  ExpectRefused(shape("[-1]"), "a dimension of tensor 'a' is a negative number");
  ExpectRefused(shape("[-0]"), "a negative number");
  ExpectRefused(shape("[1.0]"), "a number that is not a 64-bit integer");
  ExpectRefused(shape("[1e0]"), "a number that is not a 64-bit integer");
  ExpectRefused(shape("[18446744073709551616]"), "a number that is not a 64-bit integer");
  ExpectRefused(shape("[9223372036854775808]"),
                "a dimension of 9223372036854775808, which is 2^63");
  ExpectRefused(shape("[\"1\"]"), "is a string; expected a whole number");
  ExpectRefused(shape("[[1]]"), "is an array; expected a whole number");
  ExpectRefused(shape("[null]"), "is null; expected a whole number");
  ExpectRefused(shape("1"), "the shape of tensor 'a' is a number; expected an array");
  ExpectRefused(shape("[1e999]"), "not valid JSON");
}

TEST(Safetensors, RefusesTooManyDimensions) {
  std::string dims = "1";
  for (size_t i = 0; i < kMaxTensorRank; ++i) dims += ",1";
  ExpectRefused(OneTensor("\"dtype\":\"U8\",\"shape\":[" + dims + "],\"data_offsets\":[0,1]", 1),
                "tensor 'a' has more than 32 dimensions");
}

TEST(Safetensors, RefusesWrongOffsets) {
  const auto offsets = [](const std::string& text) {
    return OneTensor("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":" + text, 1);
  };
  ExpectRefused(offsets("[0]"), "data_offsets of tensor 'a' has 1 numbers; expected 2");
  ExpectRefused(offsets("[0,1,2]"), "has more than 2 numbers");
  ExpectRefused(offsets("[-1,0]"), "an offset of tensor 'a' is a negative number");
  ExpectRefused(offsets("[0,1.5]"), "an offset of tensor 'a' is a number that is not");
  ExpectRefused(offsets("{}"), "data_offsets of tensor 'a' is an object");
  ExpectRefused(offsets("[1,0]"), "begins at 1 of the data and ends before, at 0");
}

TEST(Safetensors, RefusesASizeThatDoesNotFitTheShape) {
  ExpectRefused(
      OneTensor(R"("dtype":"F32","shape":[2,3],"data_offsets":[0,20])", 20),
      "tensor 'a' has the shape [2, 3] of F32, which needs 24 bytes; data_offsets give it 20");
}

TEST(Safetensors, RefusesAShapeThatOverflows) {
  const auto shape = [](const std::string& dims) {
    return OneTensor("\"dtype\":\"F32\",\"shape\":[" + dims + "],\"data_offsets\":[0,0]", 0);
  };
  ExpectRefused(shape("4611686018427387904,4611686018427387904"), "does not fit in 64 bits");
  ExpectRefused(shape("4294967296,4294967296"), "does not fit in 64 bits");
  ExpectRefused(shape("1152921504606846976"),
                "does not fit in 64 bits");  // Only the bits overflow.
  ExpectRefused(shape("4611686018427387904,4611686018427387904,0"), "does not fit in 64 bits");
  EXPECT_TRUE(Parse(shape("4611686018427387904,0")).ok());
}

TEST(Safetensors, RefusesPartsOfABytes) {
  ExpectRefused(OneTensor(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2),
                "tensor 'a' has the shape [3] of F4, which is 12 bits; expected whole bytes");
  EXPECT_TRUE(Parse(OneTensor(R"("dtype":"F4","shape":[2,2],"data_offsets":[0,2])", 2)).ok());
  EXPECT_TRUE(Parse(OneTensor(R"("dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3])", 3)).ok());
}

std::string TwoTensors(const std::string& first, const std::string& second, size_t data_bytes) {
  return RawSafetensors("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + first +
                            "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + second +
                            "}}",
                        std::string(data_bytes, 'x'));
}

TEST(Safetensors, RefusesOverlapsAndHoles) {
  EXPECT_TRUE(Parse(TwoTensors("[0,4]", "[4,8]", 8)).ok());
  ExpectRefused(TwoTensors("[0,4]", "[2,6]", 6),
                "tensor 'b' begins at 2 of the data; expected 4: it overlaps the tensor before it");
  ExpectRefused(TwoTensors("[0,4]", "[0,4]", 4), "it overlaps the tensor before it");
  ExpectRefused(TwoTensors("[0,4]", "[5,9]", 9),
                "tensor 'b' begins at 5 of the data; expected 4: there is a hole before it");
  ExpectRefused(TwoTensors("[1,5]", "[5,9]", 9), "tensor 'a' begins at 1 of the data; expected 0");
}

TEST(Safetensors, RefusesBytesBehindTheLastTensor) {
  ExpectRefused(TwoTensors("[0,4]", "[4,8]", 11),
                "has 3 bytes after its last tensor that belong to no tensor");
  ExpectRefused(RawSafetensors("{}", "PK"), "has 2 bytes after its last tensor");
}

TEST(Safetensors, RefusesATruncatedFile) {
  ExpectRefused(TwoTensors("[0,4]", "[4,8]", 7),
                "is truncated: its header describes 8 bytes of data, the file has 7");
  ExpectRefused(OneTensor(R"("dtype":"U8","shape":[9223372036854775807],)"
                          R"("data_offsets":[0,9223372036854775807])",
                          4),
                "does not fit in 64 bits");
}

TEST(Safetensors, RefusesOddNames) {
  const auto named = [](const std::string& name) {
    return RawSafetensors("{\"" + name +
                          "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
  };
  ExpectRefused(named(""), "tensor number 1 has an empty name");
  ExpectRefused(named("a\\u0000b"), "has the name 'a\\x00b', which contains a control character");
  ExpectRefused(named("a\\nb"), "'a\\x0ab', which contains a control character");
  ExpectRefused(named("a\x7f"), "control character");
  ExpectRefused(named(std::string(kMaxTensorNameBytes + 1, 'a')), "at most 4096 bytes are allowed");
  EXPECT_TRUE(Parse(named(std::string(kMaxTensorNameBytes, 'a'))).ok());
}

TEST(Safetensors, RefusesWrongMetadata) {
  ExpectRefused(RawSafetensors(R"({"__metadata__":{"a":1}})"),
                "the value of 'a' in __metadata__ is a number; expected a string");
  ExpectRefused(RawSafetensors(R"({"__metadata__":["a"]})"),
                "__metadata__ is an array; expected an object of strings");
  ExpectRefused(RawSafetensors(R"({"__metadata__":{"a":"1","a":"2"}})"),
                "__metadata__ has the key 'a' twice");
  ExpectRefused(RawSafetensors(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ twice");
}

TEST(Safetensors, BoundsTheMetadata) {
  std::string json = "{\"__metadata__\":{\"k\":\"\"";
  for (int i = 0; i < 65'536; ++i) json += ",\"" + std::to_string(i) + "\":\"\"";
  ExpectRefused(RawSafetensors(json + "}}"), "more than 65536 entries in __metadata__");
}

TEST(Safetensors, QuotesNothingFromTheFileUnescaped) {
  const Result<FileIndex> index =
      Parse(RawSafetensors("{\"\\u001b[31m" + std::string(500, 'x') + "\":{}}"));
  ASSERT_FALSE(index.ok());
  EXPECT_EQ(index.status().message().find('\x1b'), std::string::npos);
  EXPECT_LT(index.status().message().size(), 300u);
}

// --- Shard index --------------------------------------------------------------

Result<ShardIndex> ParseShards(std::string_view json) {
  return ParseSafetensorsShardIndex(MemorySource(AsBytes(json), "index.json"));
}

void ExpectShardsRefused(std::string_view json, const std::string& message) {
  const Result<ShardIndex> index = ParseShards(json);
  ASSERT_FALSE(index.ok()) << "accepted; expected: " << message;
  EXPECT_THAT(index.status().message(), HasSubstr(message));
  EXPECT_THAT(index.status().message(), HasSubstr("index.json"));
}

TEST(ShardIndex, ReadsTheMapOfAModel) {
  const Result<ShardIndex> index = ParseShards(
      R"({"metadata":{"total_size":123,"x":[{}]},
          "weight_map":{"b":"model-2.safetensors","a":"model-1.safetensors",
                        "c":"model-2.safetensors"}})");
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->weight_map.at("b"), "model-2.safetensors");
  EXPECT_THAT(index->files, ElementsAre("model-1.safetensors", "model-2.safetensors"));
}

TEST(ShardIndex, RefusesWhatIsNoShardIndex) {
  ExpectShardsRefused("", "is empty");
  ExpectShardsRefused("{}", "has no weight_map");
  ExpectShardsRefused("[]", "the shard index is an array; expected an object");
  ExpectShardsRefused(R"({"weight_map":{}})", "weight_map is empty");
  ExpectShardsRefused(R"({"weight_map":[]})", "weight_map is an array");
  ExpectShardsRefused(R"({"weight_map":{"a":1}})", "the file of tensor 'a' is a number");
  ExpectShardsRefused(R"({"weight_map":{"a":"f","a":"g"}})", "has the tensor 'a' twice");
  ExpectShardsRefused(R"({"weight_map":{"a":"f"},"weight_map":{"b":"f"}})", "weight_map twice");
  ExpectShardsRefused("<!DOCTYPE html><html>", "is an HTML or XML page");
  ExpectShardsRefused("{\"weight_map\":", "not valid JSON");
}

TEST(ShardIndex, RefusesFilesOutsideTheFolder) {
  for (const std::string name : {"../x", "/etc/passwd", "a/b", "..", "."}) {
    ExpectShardsRefused("{\"weight_map\":{\"a\":\"" + name + "\"}}",
                        "expected the name of a file in the folder of the index");
  }
  ExpectShardsRefused(R"({"weight_map":{"a":""}})", "the file of tensor 'a' has an empty name");
  ExpectShardsRefused(R"({"weight_map":{"a":"x\u0000y"}})", "contains a control character");
  ExpectShardsRefused("{\"weight_map\":{\"a\":\"" + std::string(256, 'f') + "\"}}",
                      "is said to be in");
}

TEST(ShardIndex, BoundsTheNumberOfFiles) {
  std::string json = "{\"weight_map\":{\"t\":\"f\"";
  for (size_t i = 0; i < kMaxFilesPerModel; ++i) {
    json += ",\"t" + std::to_string(i) + "\":\"f" + std::to_string(i) + "\"";
  }
  ExpectShardsRefused(json + "}}", "names 4097 files; at most 4096 are read");
}

}  // namespace
}  // namespace trims::format

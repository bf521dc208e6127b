#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "format/model_file.h"
#include "format/test_files.h"

namespace trims::format {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Result<FileIndex> Parse(std::string_view file) {
  return ParseMxnetParams(MemorySource(AsBytes(file), "m.params"));
}

void ExpectRefused(std::string_view file, const std::string& message,
                   StatusCode code = StatusCode::kInvalidArgument) {
  const Result<FileIndex> index = Parse(file);
  ASSERT_FALSE(index.ok()) << "accepted; expected: " << message;
  EXPECT_EQ(index.status().code(), code);
  EXPECT_THAT(index.status().message(), HasSubstr(message));
  EXPECT_THAT(index.status().message(), HasSubstr("m.params"));
}

// A file of one array "arg:a" made of `head` and three fields.
std::string OneArray(std::string head, int32_t type_flag, size_t data_bytes) {
  AppendNumber<int32_t>(head, 1);
  AppendNumber<int32_t>(head, 0);
  AppendNumber<int32_t>(head, type_flag);
  return RawMxnetParams({head + std::string(data_bytes, 'x')}, {"arg:a"});
}

class MxnetParamsOfEveryVersion : public testing::TestWithParam<ParamsVersion> {};
INSTANTIATE_TEST_SUITE_P(All, MxnetParamsOfEveryVersion, testing::ValuesIn(kAllParamsVersions),
                         [](const auto& param_info) {
                           return "V" + std::to_string(static_cast<int>(param_info.param));
                         });

TEST_P(MxnetParamsOfEveryVersion, ReadsNamesShapesAndPlaces) {
  const std::vector<TestTensor> tensors = {FloatTensor("arg:conv_weight", {4, 3, 2, 2}, 1),
                                           FloatTensor("aux:bn_moving_mean", {5}, 100)};
  const std::string file = WriteMxnetParams(tensors, {.version = GetParam()});
  const Result<FileIndex> index = Parse(file);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->format, FileFormat::kMxnetParams);
  ASSERT_EQ(index->tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorEntry& entry = index->tensors[i];
    EXPECT_EQ(entry.name, tensors[i].name);
    EXPECT_EQ(entry.dtype, DType::kF32);
    EXPECT_EQ(entry.shape, tensors[i].shape);
    EXPECT_EQ(file.substr(entry.offset, entry.size_bytes), tensors[i].bytes);
  }
}

TEST_P(MxnetParamsOfEveryVersion, PutsElementsRightBehindTheHead) {
  const Result<FileIndex> index =
      Parse(WriteMxnetParams({FloatTensor("arg:a", {2, 3, 4})}, {.version = GetParam()}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  // The list's head, then 16 + 4 * rank, 20 + 8 * rank or 24 + 8 * rank.
  const uint64_t head = GetParam() == ParamsVersion::kV0   ? 16 + 4 * 3
                        : GetParam() == ParamsVersion::kV1 ? 20 + 8 * 3
                                                           : 24 + 8 * 3;
  EXPECT_EQ(index->tensors[0].offset, 24 + head);
}

TEST_P(MxnetParamsOfEveryVersion, ReadsEveryElementType) {
  for (uint8_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (MxnetTypeFlag(dtype) < 0) continue;
    const TestTensor tensor{"arg:t", dtype, {3}, std::string(3 * DTypeBits(dtype) / 8, 'x')};
    const Result<FileIndex> index = Parse(WriteMxnetParams({tensor}, {.version = GetParam()}));
    ASSERT_TRUE(index.ok()) << DTypeName(dtype) << ": " << index.status().ToString();
    EXPECT_EQ(index->tensors[0].dtype, dtype);
    EXPECT_EQ(index->tensors[0].size_bytes, tensor.bytes.size());
  }
}

TEST_P(MxnetParamsOfEveryVersion, IgnoresTheDeviceItWasSavedFrom) {
  const std::vector<TestTensor> tensors = {FloatTensor("arg:a", {2})};
  for (const int32_t device_type : {1, 2, 3, 5, -7}) {
    const Result<FileIndex> index = Parse(WriteMxnetParams(
        tensors, {.version = GetParam(), .device_type = device_type, .device_id = 6}));
    ASSERT_TRUE(index.ok()) << index.status().ToString();
    EXPECT_EQ(index->tensors[0].size_bytes, 8u);
  }
}

TEST_P(MxnetParamsOfEveryVersion, ReadsMisalignedAndEmptyArrays) {
  const Result<FileIndex> index = Parse(WriteMxnetParams({{"arg:odd", DType::kU8, {3}, "abc"},
                                                          FloatTensor("arg:empty", {0, 4}),
                                                          FloatTensor("arg:w", {2})},
                                                         {.version = GetParam()}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors[1].size_bytes, 0u);
  EXPECT_EQ(index->tensors[2].offset % 4, 3u);
}

TEST_P(MxnetParamsOfEveryVersion, RefusesEveryTruncation) {
  const std::string file = WriteMxnetParams(
      {FloatTensor("arg:a", {2, 2}), FloatTensor("arg:b", {3})}, {.version = GetParam()});
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(Parse(file.substr(0, size)).ok()) << size << " of " << file.size() << " bytes";
  }
}

TEST_P(MxnetParamsOfEveryVersion, ReadsFiveThousandArraysAndMore) {
  std::vector<TestTensor> tensors;
  for (int i = 0; i < 50'000; ++i) tensors.push_back(FloatTensor("arg:" + std::to_string(i), {1}));
  const Result<FileIndex> index = Parse(WriteMxnetParams(tensors, {.version = GetParam()}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors.size(), 50'000u);
  EXPECT_EQ(index->tensors[49'999].name, "arg:49999");
}

TEST_P(MxnetParamsOfEveryVersion, RefusesAShapeThatOverflows) {
  const int64_t large = GetParam() == ParamsVersion::kV0 ? int64_t{1} << 31 : int64_t{1} << 62;
  ExpectRefused(OneArray(ParamsArrayHead(GetParam(), {large, large, large}), 0, 8),
                "array 0 has a shape whose size does not fit in 64 bits");
}

TEST_P(MxnetParamsOfEveryVersion, RefusesElementsBeyondTheFile) {
  ExpectRefused(OneArray(ParamsArrayHead(GetParam(), {1'000'000'000}), 0, 8),
                "is truncated: array 0 needs 4000000000 bytes for the elements at offset");
}

TEST_P(MxnetParamsOfEveryVersion, RefusesTooManyDimensions) {
  ExpectRefused(OneArray(ParamsArrayHead(GetParam(), std::vector<int64_t>(33, 1)), 0, 8),
                GetParam() == ParamsVersion::kV0 ? "has the unknown magic number 0x00000021"
                                                 : "has 33 dimensions; at most 32 are allowed");
}

TEST_P(MxnetParamsOfEveryVersion, RefusesAnUnknownElementType) {
  for (const int32_t flag : {-1, 13, 1'000'000}) {
    ExpectRefused(OneArray(ParamsArrayHead(GetParam(), {1}), flag, 8),
                  "array 0 has the unknown element type " + std::to_string(flag));
  }
}

// The bytes of a list as MXNet 0.10 writes it, spelt out.
TEST(MxnetParams, ReadsAV0FileByteForByte) {
  const std::string_view file(
      "\x12\x01\0\0\0\0\0\0"  // Magic.
      "\0\0\0\0\0\0\0\0"      // Reserved.
      "\2\0\0\0\0\0\0\0"      // Two arrays.
      "\2\0\0\0"              // Rank 2,
      "\1\0\0\0\2\0\0\0"      //   1 x 2,
      "\2\0\0\0\3\0\0\0"      //   of GPU 3,
      "\0\0\0\0"              //   float:
      "\0\0\x80\x3f\0\0\0\x40"
      "\1\0\0\0\3\0\0\0"  // Rank 1: 3,
      "\1\0\0\0\0\0\0\0"  //   of the CPU,
      "\3\0\0\0"          //   bytes:
      "abc"
      "\2\0\0\0\0\0\0\0"  // Two names.
      "\5\0\0\0\0\0\0\0"
      "arg:w"
      "\5\0\0\0\0\0\0\0"
      "aux:m",
      24 + 24 + 8 + 20 + 3 + 8 + 26);
  const Result<FileIndex> index = Parse(file);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  ASSERT_EQ(index->tensors.size(), 2u);
  EXPECT_EQ(index->tensors[0].name, "arg:w");
  EXPECT_THAT(index->tensors[0].shape, ElementsAre(1, 2));
  EXPECT_EQ(index->tensors[0].dtype, DType::kF32);
  EXPECT_EQ(index->tensors[0].offset, 24u + 24);
  EXPECT_EQ(index->tensors[0].size_bytes, 8u);
  EXPECT_EQ(index->tensors[1].name, "aux:m");
  EXPECT_EQ(index->tensors[1].dtype, DType::kU8);
  EXPECT_EQ(file.substr(index->tensors[1].offset, 3), "abc");
}

TEST(MxnetParams, ReadsAScalarOfNpShapes) {
  const Result<FileIndex> index =
      Parse(WriteMxnetParams({FloatTensor("s", {})}, {.version = ParamsVersion::kV3}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_TRUE(index->tensors[0].shape.empty());
  EXPECT_EQ(index->tensors[0].size_bytes, 4u);
}

TEST(MxnetParams, ReadsAListThatMixesVersions) {
  std::vector<std::string> arrays;
  std::vector<std::string> names;
  for (const ParamsVersion version : kAllParamsVersions) {
    arrays.push_back(ParamsArray(FloatTensor("", {2}), {.version = version}));
    names.push_back("n" + std::to_string(arrays.size()));
  }
  const Result<FileIndex> index = Parse(RawMxnetParams(arrays, names));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors.size(), 4u);
}

TEST(MxnetParams, ReadsAnEmptyList) {
  const Result<FileIndex> index = Parse(RawMxnetParams({}, {}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_TRUE(index->tensors.empty());
}

TEST(MxnetParams, CallsUnnamedArraysByTheirPosition) {
  const std::string none = ParamsArrayHead(ParamsVersion::kV0, {});
  const std::string array = ParamsArray(FloatTensor("", {2}));
  const Result<FileIndex> index = Parse(RawMxnetParams({array, none, array}, {}));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  ASSERT_EQ(index->tensors.size(), 2u);
  EXPECT_EQ(index->tensors[0].name, "0");
  EXPECT_EQ(index->tensors[1].name, "2");
}

std::string V3WithRank(int32_t rank) {
  std::string array;
  AppendNumber<uint32_t>(array, 0xf993faca);
  AppendNumber<int32_t>(array, 0);
  AppendNumber<int32_t>(array, rank);
  return array;
}

TEST(MxnetParams, RefusesANamedArrayThatIsNone) {
  const std::vector<std::string> nones = {ParamsArrayHead(ParamsVersion::kV0, {}),
                                          ParamsArrayHead(ParamsVersion::kV1, {}),
                                          ParamsArrayHead(ParamsVersion::kV2, {}), V3WithRank(-1),
                                          ParamsArrayHead(ParamsVersion::kV3, {2, -1})};
  const std::string array = ParamsArray(FloatTensor("", {2}));
  for (const std::string& none : nones) {
    ExpectRefused(RawMxnetParams({array, none, array}, {"a", "arg:b", "c"}),
                  "array 1, named 'arg:b', is none: it has neither shape nor elements");
    EXPECT_TRUE(Parse(RawMxnetParams({array, none, array}, {})).ok());
  }
}

TEST(MxnetParams, IgnoresTheReservedFieldAndTrailingBytes) {
  std::string file = WriteMxnetParams({FloatTensor("arg:a", {2})});
  file[8] = '\x55';
  file += "trailing bytes";
  const Result<FileIndex> index = Parse(file);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors.size(), 1u);
}

TEST(MxnetParams, RefusesAnUnknownMagicNumberOfTheList) {
  ExpectRefused("short", "not an MXNet .params file: it begins with 'short'");
  ExpectRefused(std::string("\x13\1\0\0\0\0\0\0more bytes", 18), "begins with '\\x13\\x01\\x00");
  ExpectRefused(std::string("\0\0\0\0\0\0\1\x12\0\0\0\0", 12), "of a big-endian machine");
  ExpectRefused("", "is empty");
}

TEST(MxnetParams, RefusesAnUnknownMagicNumberOfAnArray) {
  std::string array;
  AppendNumber<uint32_t>(array, 0xf993facb);
  ExpectRefused(RawMxnetParams({array}, {"arg:a"}),
                "array 0 at offset 24 has the unknown magic number 0xf993facb");
  array.clear();
  AppendNumber<uint32_t>(array, 0xffffffff);  // Read as a rank it would take 16 GiB.
  ExpectRefused(RawMxnetParams({array}, {"arg:a"}), "unknown magic number 0xffffffff");
}

TEST(MxnetParams, RefusesSparseArrays) {
  for (const auto& [storage, name] : {std::pair{1, "row_sparse"}, std::pair{2, "csr"}}) {
    std::string array;
    AppendNumber<uint32_t>(array, 0xf993fac9);
    AppendNumber<int32_t>(array, storage);
    ExpectRefused(RawMxnetParams({array}, {"arg:a"}), "array 0 is sparse (" + std::string(name),
                  StatusCode::kUnimplemented);
  }
}

TEST(MxnetParams, RefusesUnknownStorage) {
  for (const int32_t storage : {-1, 3, INT32_MIN}) {
    std::string array;
    AppendNumber<uint32_t>(array, 0xf993fac9);
    AppendNumber<int32_t>(array, storage);
    ExpectRefused(RawMxnetParams({array}, {"arg:a"}),
                  "array 0 has the unknown storage type " + std::to_string(storage));
  }
}

TEST(MxnetParams, RefusesNegativeDimensions) {
  for (const ParamsVersion version : {ParamsVersion::kV1, ParamsVersion::kV2, ParamsVersion::kV3}) {
    ExpectRefused(OneArray(ParamsArrayHead(version, {2, -5}), 0, 8),
                  "array 0 has a dimension of -5; expected 0 or more");
  }
  ExpectRefused(OneArray(ParamsArrayHead(ParamsVersion::kV2, {-1}), 0, 8), "a dimension of -1");
}

TEST(MxnetParams, RefusesANegativeRank) {
  ExpectRefused(RawMxnetParams({V3WithRank(-2)}, {"arg:a"}), "has 4294967294 dimensions");
}

TEST(MxnetParams, RefusesMoreArraysThanBytes) {
  for (const uint64_t count : {uint64_t{10}, uint64_t{1} << 40, UINT64_MAX}) {
    std::string file;
    AppendNumber<uint64_t>(file, 0x112);
    AppendNumber<uint64_t>(file, 0);
    AppendNumber<uint64_t>(file, count);
    ExpectRefused(file + std::string(39, '\0'),
                  "announces " + std::to_string(count) + " arrays and has 39 bytes left");
  }
}

TEST(MxnetParams, BoundsTheNumberOfArrays) {
  std::string file;
  AppendNumber<uint64_t>(file, 0x112);
  AppendNumber<uint64_t>(file, 0);
  AppendNumber<uint64_t>(file, kMaxTensorsPerModel + 1);
  file.append(4 * (kMaxTensorsPerModel + 1), '\0');
  ExpectRefused(file, "has 1000001 arrays; at most 1000000 are read");
}

TEST(MxnetParams, RefusesAnotherNumberOfNames) {
  const std::string array = ParamsArray(FloatTensor("", {2}));
  ExpectRefused(RawMxnetParams({array, array}, {"arg:a"}), "has 2 arrays and 1 names");
  ExpectRefused(RawMxnetParams({array}, {"arg:a", "arg:b"}), "has 1 arrays and 2 names");
  ExpectRefused(RawMxnetParams({}, {"arg:a"}), "has 0 arrays and 1 names");
}

TEST(MxnetParams, RefusesANameTwice) {
  const TestTensor tensor = FloatTensor("arg:a", {2});
  ExpectRefused(WriteMxnetParams({tensor, FloatTensor("arg:b", {2}), tensor}),
                "has two arrays named 'arg:a'");
}

TEST(MxnetParams, RefusesOddNames) {
  const auto named = [](const std::string& name) {
    return WriteMxnetParams({FloatTensor(name, {2})});
  };
  ExpectRefused(named(""), "array 0 has an empty name");
  ExpectRefused(named(std::string("arg:\0a", 6)), "contains a control character");
  ExpectRefused(named("arg:\na"), "'arg:\\x0aa', which contains a control character");
  ExpectRefused(named("arg:\xc3"), "'arg:\\xc3', which is not UTF-8");
  ExpectRefused(named(std::string(kMaxTensorNameBytes + 1, 'a')), "name 0 has 4097 bytes");
  EXPECT_TRUE(Parse(named(std::string(kMaxTensorNameBytes, 'a'))).ok());
}

TEST(MxnetParams, RefusesANameOfHugeLength) {
  std::string file = RawMxnetParams({ParamsArray(FloatTensor("", {2}))}, {""});
  file.resize(file.size() - 8);
  AppendNumber<uint64_t>(file, UINT64_MAX);
  ExpectRefused(file, "name 0 has 18446744073709551615 bytes; at most 4096");
}

}  // namespace
}  // namespace trims::format

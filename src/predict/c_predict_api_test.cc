// The C boundary: arguments, errors, environment, and whatever else a caller may
// do wrong. What predictions compute is tested elsewhere.
#include "mxnet/c_predict_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "format/test_files.h"
#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

// fc: y = w·x, then an ignored label.
std::string Symbol() {
  return SymbolWriter()
      .Op("FullyConnected", "fc", {"data", "w"}, {{"num_hidden", "2"}, {"no_bias", "True"}})
      .Op("SoftmaxOutput", "softmax", {"fc", "softmax_label"})
      .Json({"fc"});
}

// w = {{1, 2}, {3, 4}}, as MXNet 1.2 writes it.
std::string Params(DType dtype = DType::kF32, int64_t rows = 2) {
  std::string file;
  format::AppendNumber<uint64_t>(file, 0x112);
  format::AppendNumber<uint64_t>(file, 0);
  format::AppendNumber<uint64_t>(file, 1);
  format::AppendNumber<uint32_t>(file, 0xf993fac9);
  format::AppendNumber<int32_t>(file, 0);
  format::AppendNumber<uint32_t>(file, 2);
  format::AppendNumber<int64_t>(file, rows);
  format::AppendNumber<int64_t>(file, 2);
  format::AppendNumber<int32_t>(file, 2);  // A GPU context, which must not matter.
  format::AppendNumber<int32_t>(file, 0);
  format::AppendNumber<int32_t>(file, dtype == DType::kF64 ? 1 : dtype == DType::kU8 ? 3 : 0);
  for (int i = 1; i <= 2 * rows; ++i) {
    if (dtype == DType::kF64) format::AppendNumber<double>(file, i);
    if (dtype == DType::kU8) format::AppendNumber<uint8_t>(file, static_cast<uint8_t>(i));
    if (dtype == DType::kF32) format::AppendNumber<float>(file, static_cast<float>(i));
  }
  format::AppendNumber<uint64_t>(file, 1);
  format::AppendNumber<uint64_t>(file, 5);
  return file + "arg:w";
}

class CPredictApiTest : public testing::Test {
 protected:
  CPredictApiTest() {
    for (const char* name : {"UPR_ENABLED", "UPR_MODEL_NAME", "UPR_BASE_DIR",
                             "UPR_SHARING_GRANULARITY", "TRIMS_RUNTIME_DIR"}) {
      ::unsetenv(name);
    }
    ::setenv("UPR_ENABLED", "false", 1);
  }

  int Create(const std::string& symbol, const std::string& params, PredictorHandle* out,
             int dev_type = 1, const char* key = "data") {
    const char* keys[] = {key};
    const mx_uint indptr[] = {0, 2};
    const mx_uint dims[] = {1, 2};
    return MXPredCreate(symbol.c_str(), params.data(), static_cast<int>(params.size()), dev_type, 0,
                        1, keys, indptr, dims, out);
  }
};

TEST_F(CPredictApiTest, Predicts) {
  PredictorHandle handle = nullptr;
  ASSERT_EQ(Create(Symbol(), Params(), &handle), 0) << MXGetLastError();
  const float x[] = {10, 1};
  ASSERT_EQ(MXPredSetInput(handle, "data", x, 2), 0) << MXGetLastError();
  ASSERT_EQ(MXPredForward(handle), 0) << MXGetLastError();
  float y[2] = {};
  ASSERT_EQ(MXPredGetOutput(handle, 0, y, 2), 0) << MXGetLastError();
  EXPECT_THAT(y, ElementsAre(12, 34));
  EXPECT_EQ(MXPredFree(handle), 0);
}

TEST_F(CPredictApiTest, PartialOutputsAreNamedByTheirNode) {
  const char* keys[] = {"data"};
  const mx_uint indptr[] = {0, 2};
  const mx_uint dims[] = {3, 2};
  const char* outputs[] = {"fc"};
  const std::string params = Params();
  const std::string symbol =
      SymbolWriter()
          .Op("FullyConnected", "fc", {"data", "w"}, {{"num_hidden", "2"}, {"no_bias", "True"}})
          .Op("SoftmaxOutput", "softmax", {"fc", "softmax_label"})
          .Json();
  PredictorHandle handle = nullptr;
  ASSERT_EQ(MXPredCreatePartialOut(symbol.c_str(), params.data(), static_cast<int>(params.size()),
                                   1, 0, 1, keys, indptr, dims, 1, outputs, &handle),
            0)
      << MXGetLastError();
  mx_uint* shape = nullptr;
  mx_uint rank = 0;
  ASSERT_EQ(MXPredGetOutputShape(handle, 0, &shape, &rank), 0);
  EXPECT_EQ(std::vector<mx_uint>(shape, shape + rank), (std::vector<mx_uint>{3, 2}));
  EXPECT_EQ(MXPredFree(handle), 0);
  outputs[0] = "fc2";
  EXPECT_EQ(MXPredCreatePartialOut(symbol.c_str(), params.data(), static_cast<int>(params.size()),
                                   1, 0, 1, keys, indptr, dims, 1, outputs, &handle),
            -1);
  EXPECT_THAT(MXGetLastError(), HasSubstr("no output 'fc2'"));
}

TEST_F(CPredictApiTest, WeightsCanNotBeOverwritten) {
  PredictorHandle handle = nullptr;
  ASSERT_EQ(Create(Symbol(), Params(), &handle), 0) << MXGetLastError();
  const float zeros[4] = {};
  EXPECT_EQ(MXPredSetInput(handle, "w", zeros, 4), -1);
  EXPECT_THAT(MXGetLastError(), HasSubstr("shared weights are read-only"));
  EXPECT_EQ(MXPredFree(handle), 0);
}

TEST_F(CPredictApiTest, LoadsTheFileItselfWithoutParamBytes) {
  std::string folder = (fs::temp_directory_path() / "trims-api-XXXXXX").string();
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  fs::create_directory(folder + "/tiny_1.0");
  std::ofstream(folder + "/tiny_1.0/tiny_1.0-0000.params", std::ios::binary) << Params();
  ::setenv("UPR_MODEL_NAME", "tiny_1.0", 1);
  const char* keys[] = {"data"};
  const mx_uint indptr[] = {0, 2};
  const mx_uint dims[] = {1, 2};
  for (const std::string& base : {folder, folder + "/"}) {
    ::setenv("UPR_BASE_DIR", base.c_str(), 1);
    PredictorHandle handle = nullptr;
    ASSERT_EQ(MXPredCreate(Symbol().c_str(), nullptr, 0, 1, 0, 1, keys, indptr, dims, &handle), 0)
        << MXGetLastError();
    EXPECT_EQ(MXPredFree(handle), 0);
  }
  ::setenv("UPR_MODEL_NAME", "other", 1);
  PredictorHandle handle = nullptr;
  EXPECT_EQ(MXPredCreate(Symbol().c_str(), nullptr, 0, 1, 0, 1, keys, indptr, dims, &handle), -1);
  EXPECT_THAT(MXGetLastError(), AllOf(HasSubstr("UPR_MODEL_NAME"), HasSubstr(folder + "/other")));
  fs::remove_all(folder);
}

TEST_F(CPredictApiTest, WithoutADaemonItSaysHowToGetOne) {
  std::string folder = (fs::temp_directory_path() / "trims-api-XXXXXX").string();
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  ::setenv("TRIMS_RUNTIME_DIR", folder.c_str(), 1);
  for (const char* enabled : {"true", "1", "TRUE", ""}) {  // Empty is the default: true.
    ::setenv("UPR_ENABLED", enabled, 1);
    PredictorHandle handle = &folder;
    EXPECT_EQ(Create(Symbol(), Params(), &handle), -1);
    EXPECT_EQ(handle, &folder);
    EXPECT_THAT(MXGetLastError(),
                AllOf(HasSubstr("trims serve"), HasSubstr("UPR_ENABLED=false"),
                      HasSubstr("bvlc_alexnet_1.0"), HasSubstr("UPR_MODEL_NAME is not set")));
  }
  ::setenv("UPR_SHARING_GRANULARITY", "tensor", 1);
  PredictorHandle handle = nullptr;
  EXPECT_EQ(Create(Symbol(), Params(), &handle), -1);
  EXPECT_THAT(MXGetLastError(), AllOf(HasSubstr("UPR_SHARING_GRANULARITY"), HasSubstr("'tensor'")));
  ::setenv("UPR_ENABLED", "maybe", 1);
  EXPECT_EQ(Create(Symbol(), Params(), &handle), -1);
  EXPECT_THAT(MXGetLastError(), HasSubstr("UPR_ENABLED='maybe'"));
  fs::remove_all(folder);
}

TEST_F(CPredictApiTest, DevicesAreChecked) {
  PredictorHandle handle = nullptr;
  EXPECT_EQ(Create(Symbol(), Params(), &handle, 2), -1);
  EXPECT_THAT(MXGetLastError(), HasSubstr("no GPU backend"));
  EXPECT_EQ(Create(Symbol(), Params(), &handle, 7), -1);
  EXPECT_THAT(MXGetLastError(), HasSubstr("dev_type 7"));
}

TEST_F(CPredictApiTest, LastErrorBelongsToTheThread) {
  EXPECT_EQ(MXPredForward(nullptr), -1);
  const std::string mine = MXGetLastError();
  EXPECT_THAT(mine, HasSubstr("MXPredForward"));
  std::thread([] {
    EXPECT_STREQ(MXGetLastError(), "");
    EXPECT_EQ(MXPredFree(nullptr), -1);
    EXPECT_THAT(MXGetLastError(), HasSubstr("MXPredFree"));
  }).join();
  EXPECT_EQ(MXGetLastError(), mine);
  EXPECT_EQ(MXPredInit(), 0);
  EXPECT_EQ(MXGetLastError(), mine);  // A success does not clear it.
}

TEST_F(CPredictApiTest, NullPointersAreErrors) {
  const std::string symbol = Symbol(), params = Params();
  const auto size = static_cast<int>(params.size());
  const char* keys[] = {"data"};
  const char* null_keys[] = {nullptr};
  const mx_uint indptr[] = {0, 2};
  const mx_uint backwards[] = {5, 2};
  const mx_uint wild[] = {0, 4000000000u};
  const mx_uint dims[] = {1, 2};
  int marker = 0;
  PredictorHandle out = &marker;
  const auto fails = [&](int rc) { return rc == -1 && out == &marker && *MXGetLastError() != 0; };
  EXPECT_TRUE(fails(MXPredCreate(nullptr, nullptr, 0, 1, 0, 0, nullptr, nullptr, nullptr, &out)));
  EXPECT_TRUE(fails(
      MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, keys, indptr, dims, nullptr)));
  EXPECT_TRUE(fails(
      MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, nullptr, indptr, dims, &out)));
  EXPECT_TRUE(
      fails(MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, keys, nullptr, dims, &out)));
  EXPECT_TRUE(fails(
      MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, keys, indptr, nullptr, &out)));
  EXPECT_TRUE(fails(
      MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, null_keys, indptr, dims, &out)));
  EXPECT_TRUE(fails(
      MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, keys, backwards, dims, &out)));
  EXPECT_TRUE(
      fails(MXPredCreate(symbol.c_str(), params.data(), size, 1, 0, 1, keys, wild, dims, &out)));
  EXPECT_TRUE(
      fails(MXPredCreate(symbol.c_str(), params.data(), -1, 1, 0, 1, keys, indptr, dims, &out)));
  EXPECT_TRUE(fails(MXPredCreatePartialOut(symbol.c_str(), params.data(), size, 1, 0, 1, keys,
                                           indptr, dims, 1, nullptr, &out)));
  EXPECT_TRUE(fails(MXPredReshape(1, keys, indptr, dims, nullptr, &out)));

  PredictorHandle handle = nullptr;
  ASSERT_EQ(Create(symbol, params, &handle), 0) << MXGetLastError();
  mx_uint rank = 0;
  mx_uint* shape = nullptr;
  float value = 0;
  EXPECT_TRUE(fails(MXPredReshape(1, keys, indptr, dims, handle, nullptr)));
  EXPECT_TRUE(fails(MXPredGetOutputShape(handle, 0, nullptr, &rank)));
  EXPECT_TRUE(fails(MXPredGetOutputShape(handle, 0, &shape, nullptr)));
  EXPECT_TRUE(fails(MXPredGetOutputShape(handle, 1, &shape, &rank)));
  EXPECT_TRUE(fails(MXPredSetInput(handle, nullptr, &value, 1)));
  EXPECT_TRUE(fails(MXPredSetInput(handle, "data", nullptr, 2)));
  EXPECT_TRUE(fails(MXPredPartialForward(handle, 0, nullptr)));
  EXPECT_TRUE(fails(MXPredGetOutput(handle, 0, nullptr, 2)));
  EXPECT_TRUE(fails(MXPredGetOutput(handle, 9, &value, 1)));
  EXPECT_EQ(MXPredFree(handle), 0);
  // Freed, and never a handle at all.
  for (PredictorHandle stale : {handle, static_cast<PredictorHandle>(&marker)}) {
    EXPECT_TRUE(fails(MXPredFree(stale)));
    EXPECT_TRUE(fails(MXPredForward(stale)));
    EXPECT_TRUE(fails(MXPredSetInput(stale, "data", &value, 1)));
    EXPECT_TRUE(fails(MXPredGetOutput(stale, 0, &value, 1)));
    EXPECT_TRUE(fails(MXPredGetOutputShape(stale, 0, &shape, &rank)));
    EXPECT_TRUE(fails(MXNDListFree(stale)));
  }
}

TEST_F(CPredictApiTest, UnknownInputKeysAreIgnoredUntilTheyAreSet) {
  const char* keys[] = {"data", "im_info"};
  const mx_uint indptr[] = {0, 2, 3};
  const mx_uint dims[] = {1, 2, 3};
  const std::string params = Params();
  PredictorHandle handle = nullptr;
  ASSERT_EQ(MXPredCreate(Symbol().c_str(), params.data(), static_cast<int>(params.size()), 1, 0, 2,
                         keys, indptr, dims, &handle),
            0)
      << MXGetLastError();
  const float values[3] = {};
  EXPECT_EQ(MXPredSetInput(handle, "im_info", values, 3), -1);
  EXPECT_EQ(MXPredFree(handle), 0);
}

TEST_F(CPredictApiTest, SurvivesMutatedSymbolsAndParameters) {
  const std::string symbol = Symbol(), params = Params();
  std::mt19937 random(17);
  int created = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string s = symbol, p = params;
    std::string& victim = random() % 2 == 0 ? s : p;
    for (uint32_t edits = 1 + random() % 3; edits > 0 && !victim.empty(); --edits) {
      const size_t at = random() % victim.size();
      switch (random() % 4) {
        case 0:
          victim[at] = static_cast<char>(random());
          break;
        case 1:
          victim.erase(at, 1 + random() % 8);
          break;
        case 2:
          victim.insert(at, 1, "0123456789{}[],\"-"[random() % 17]);
          break;
        default:
          victim.resize(at);
      }
    }
    PredictorHandle handle = nullptr;
    if (Create(s, p, &handle) == 0) {
      ++created;
      MXPredForward(handle);
      EXPECT_EQ(MXPredFree(handle), 0);
    } else {
      ++refused;
      EXPECT_NE(*MXGetLastError(), '\0');
    }
    NDListHandle list = nullptr;
    mx_uint length = 0;
    if (MXNDListCreate(p.data(), static_cast<int>(p.size()), &list, &length) == 0) {
      EXPECT_EQ(MXNDListFree(list), 0);
    }
  }
  EXPECT_GT(created, 20);
  EXPECT_GT(refused, 1000);
}

// --- Array lists -----------------------------------------------------------------

TEST_F(CPredictApiTest, ArrayListsAreReadAsFloatsWhateverTheirType) {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kU8}) {
    const std::string file = Params(dtype, 3);
    NDListHandle list = nullptr;
    mx_uint length = 0;
    ASSERT_EQ(MXNDListCreate(file.data(), static_cast<int>(file.size()), &list, &length), 0)
        << MXGetLastError();
    EXPECT_EQ(length, 1u);
    const char* key = nullptr;
    const mx_float* elements = nullptr;
    const mx_uint* shape = nullptr;
    mx_uint rank = 0;
    ASSERT_EQ(MXNDListGet(list, 0, &key, &elements, &shape, &rank), 0) << MXGetLastError();
    EXPECT_STREQ(key, "arg:w");
    EXPECT_EQ(std::vector<mx_uint>(shape, shape + rank), (std::vector<mx_uint>{3, 2}));
    EXPECT_EQ(std::vector<float>(elements, elements + 6), (std::vector<float>{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(MXNDListGet(list, 1, &key, &elements, &shape, &rank), -1);
    EXPECT_EQ(MXNDListGet(list, 0, nullptr, &elements, &shape, &rank), -1);
    EXPECT_EQ(MXNDListFree(list), 0);
    EXPECT_EQ(MXNDListFree(list), -1);
  }
}

TEST_F(CPredictApiTest, AListWithoutNamesHasEmptyKeys) {
  std::string file = Params();
  file.resize(file.size() - 5 - 8 - 8);
  format::AppendNumber<uint64_t>(file, 0);
  NDListHandle list = nullptr;
  mx_uint length = 0;
  ASSERT_EQ(MXNDListCreate(file.data(), static_cast<int>(file.size()), &list, &length), 0)
      << MXGetLastError();
  const char* key = nullptr;
  const mx_float* elements = nullptr;
  const mx_uint* shape = nullptr;
  mx_uint rank = 0;
  ASSERT_EQ(MXNDListGet(list, 0, &key, &elements, &shape, &rank), 0);
  EXPECT_STREQ(key, "");
  EXPECT_EQ(MXNDListFree(list), 0);
}

TEST_F(CPredictApiTest, ArrayListsThatAreNoneAreErrors) {
  int marker = 0;
  NDListHandle list = &marker;
  mx_uint length = 77;
  EXPECT_EQ(MXNDListCreate("nonsense", 8, &list, &length), -1);
  EXPECT_EQ(MXNDListCreate(nullptr, 8, &list, &length), -1);
  EXPECT_EQ(MXNDListCreate("nonsense", -8, &list, &length), -1);
  EXPECT_EQ(list, &marker);
  EXPECT_EQ(length, 77u);
}

}  // namespace
}  // namespace trims::predict

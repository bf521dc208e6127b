#include "predict/predictor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "format/test_files.h"
#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::shared_ptr<const Graph> MakeGraph(const SymbolWriter& writer,
                                       const std::vector<std::string>& heads = {}) {
  auto graph = Graph::FromJson(writer.Json(heads));
  EXPECT_TRUE(graph.ok()) << graph.status().ToString();
  return *graph;
}

// Convolution, relu, pooling, FullyConnected, relu, FullyConnected, softmax.
SymbolWriter SmallNetwork() {
  SymbolWriter writer;
  writer
      .Op("Convolution", "conv", {"data", "conv_weight", "conv_bias"},
          {{"kernel", "(3, 3)"}, {"pad", "(1, 1)"}, {"num_filter", "8"}})
      .Op("Activation", "conv_relu", {"conv"}, {{"act_type", "relu"}})
      .Op("Pooling", "pool", {"conv_relu"},
          {{"kernel", "(2, 2)"}, {"stride", "(2, 2)"}, {"pool_type", "max"}})
      .Op("Flatten", "flatten", {"pool"})
      .Op("FullyConnected", "fc1", {"flatten", "fc1_weight", "fc1_bias"}, {{"num_hidden", "32"}})
      .Op("Activation", "fc1_tanh", {"fc1"}, {{"act_type", "tanh"}})
      .Op("Dropout", "drop", {"fc1_tanh"}, {{"p", "0.5"}})
      .Op("FullyConnected", "fc2", {"drop", "fc2_weight", "fc2_bias"}, {{"num_hidden", "5"}})
      .Op("SoftmaxOutput", "softmax", {"fc2", "softmax_label"});
  return writer;
}

std::shared_ptr<MemoryWeights> SmallWeights(uint32_t seed = 1) {
  std::mt19937 random(seed);
  auto weights = std::make_shared<MemoryWeights>();
  const auto add = [&](const std::string& name, const Shape& shape) {
    weights->Set("arg:" + name, shape,
                 RandomFloats(random, static_cast<size_t>(ElementCount(shape))));
  };
  add("conv_weight", {8, 3, 3, 3});
  add("conv_bias", {8});
  add("fc1_weight", {32, 8 * 5 * 5});
  add("fc1_bias", {32});
  add("fc2_weight", {5, 32});
  add("fc2_bias", {5});
  return weights;
}

const InputShapes kSmallInput = {{"data", {2, 3, 10, 10}}};

std::unique_ptr<Predictor> MakePredictor(std::shared_ptr<WeightProvider> weights,
                                         const PredictorOptions& options = {}) {
  auto predictor =
      Predictor::Create(MakeGraph(SmallNetwork()), std::move(weights), kSmallInput, options);
  EXPECT_TRUE(predictor.ok()) << predictor.status().ToString();
  return *std::move(predictor);
}

std::vector<float> Predict(Predictor& predictor, const std::vector<float>& data) {
  EXPECT_TRUE(predictor.SetInput("data", data).ok());
  const Status status = predictor.Forward();
  EXPECT_TRUE(status.ok()) << status.ToString();
  const auto output = predictor.PeekOutput(0);
  EXPECT_TRUE(output.ok());
  return {output->begin(), output->end()};
}

std::vector<float> SmallImage(uint32_t seed) {
  std::mt19937 random(seed);
  return RandomFloats(random, 2 * 3 * 10 * 10);
}

TEST(PredictorTest, TwoPredictorsShareOneReadOnlyCopyOfTheWeights) {
  // MemoryWeights took write permission away: a write to a weight ends the test.
  const auto weights = SmallWeights();
  const auto first = MakePredictor(weights);
  const auto second = MakePredictor(weights);
  const std::vector<float> one = Predict(*first, SmallImage(1));
  const std::vector<float> two = Predict(*second, SmallImage(2));
  EXPECT_NE(one, two);
  EXPECT_EQ(Predict(*second, SmallImage(1)), one);
  EXPECT_NEAR(std::accumulate(one.begin(), one.end(), 0.0), 2.0, 1e-5);
}

TEST(PredictorTest, PredictorsInSeveralThreadsDoNotDisturbEachOther) {
  const auto weights = SmallWeights();
  const std::vector<float> expected = Predict(*MakePredictor(weights), SmallImage(3));
  std::vector<std::vector<float>> results(4);
  {
    std::vector<std::jthread> threads;
    for (auto& result : results) {
      threads.emplace_back([&] {
        const auto predictor = MakePredictor(weights);
        for (int i = 0; i < 10; ++i) result = Predict(*predictor, SmallImage(3));
      });
    }
  }
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(PredictorTest, ForwardCanBeRepeated) {
  const auto predictor = MakePredictor(SmallWeights());
  const std::vector<float> first = Predict(*predictor, SmallImage(4));
  ASSERT_TRUE(predictor->Forward().ok());  // The input is still there.
  EXPECT_EQ(std::vector<float>(predictor->PeekOutput(0)->begin(), predictor->PeekOutput(0)->end()),
            first);
  EXPECT_NE(Predict(*predictor, SmallImage(5)), first);
  EXPECT_EQ(Predict(*predictor, SmallImage(4)), first);
}

TEST(PredictorTest, PackedWeightsComputeTheSameAndAreCounted) {
  const auto plain = MakePredictor(SmallWeights());
  const auto packed = MakePredictor(SmallWeights(), {.pack_weights = true});
  const std::vector<float> a = Predict(*plain, SmallImage(6));
  const std::vector<float> b = Predict(*packed, SmallImage(6));
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5);
  EXPECT_GT(packed->private_bytes(), plain->private_bytes());
}

TEST(PredictorTest, MemoryOfIntermediateValuesIsReused) {
  // 20 layers of 1 MiB in a row need two of them at a time, or one where the
  // operator works in place; input and output stay.
  SymbolWriter writer;
  std::string previous = "data";
  for (int i = 0; i < 20; ++i) {
    const std::string name = "layer" + std::to_string(i);
    if (i % 2 == 0) {
      writer.Op("LRN", name, {previous}, {{"nsize", "3"}});
    } else {
      writer.Op("Activation", name, {previous}, {{"act_type", "tanh"}});
    }
    previous = name;
  }
  const auto predictor = Predictor::Create(MakeGraph(writer), std::make_shared<MemoryWeights>(),
                                           {{"data", {1, 4, 256, 256}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
  constexpr uint64_t kMiB = 1 << 20;
  EXPECT_GE((*predictor)->private_bytes(), 3 * kMiB);
  EXPECT_LE((*predictor)->private_bytes(), 4 * kMiB + kMiB / 2);
}

TEST(PredictorTest, InPlaceOperatorsLeaveSharedValuesAlone) {
  // The convolution's value has two users and a view; none may see it relu'd.
  SymbolWriter writer;
  writer
      .Op("FullyConnected", "fc", {"data", "fc_weight"}, {{"num_hidden", "3"}, {"no_bias", "True"}})
      .Op("Flatten", "view", {"fc"})
      .Op("Activation", "relu", {"view"}, {{"act_type", "relu"}})
      .Op("Activation", "sign", {"fc"}, {{"act_type", "softsign"}})
      .Op("Activation", "input_relu", {"data"}, {{"act_type", "relu"}});
  auto weights = std::make_shared<MemoryWeights>();
  weights->Set("fc_weight", {3, 2}, {1, 0, 0, 1, 1, 1});
  const auto predictor =
      Predictor::Create(MakeGraph(writer, {"relu", "fc", "sign", "input_relu", "data"}), weights,
                        {{"data", {1, 2}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
  ASSERT_TRUE((*predictor)->SetInput("data", std::vector<float>{-3, 1}).ok());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE((*predictor)->Forward().ok());
    EXPECT_THAT(*(*predictor)->PeekOutput(0), ElementsAre(0, 1, 0));
    EXPECT_THAT(*(*predictor)->PeekOutput(1), ElementsAre(-3, 1, -2));
    EXPECT_THAT(*(*predictor)->PeekOutput(2),
                ElementsAre(-0.75f, 0.5f, testing::FloatEq(-2.0f / 3.0f)));
    EXPECT_THAT(*(*predictor)->PeekOutput(3), ElementsAre(0, 1));
    EXPECT_THAT(*(*predictor)->PeekOutput(4), ElementsAre(-3, 1));
  }
}

TEST(PredictorTest, MissingParametersAreListed) {
  auto weights = std::make_shared<MemoryWeights>();
  weights->Set("arg:conv_weight", {8, 3, 3, 3}, std::vector<float>(216));
  const auto graph = MakeGraph(SmallNetwork());
  const auto refused = Predictor::Create(graph, weights, kSmallInput, {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(refused.status().message(),
              AllOf(HasSubstr("lacks 5 parameter(s)"), HasSubstr("conv_bias, fc1_weight"),
                    Not(HasSubstr("softmax_label"))));
  const auto allowed = Predictor::Create(graph, weights, kSmallInput, {.allow_missing = true});
  ASSERT_TRUE(allowed.ok()) << allowed.status().ToString();
  const std::vector<float> output = Predict(**allowed, SmallImage(1));
  EXPECT_THAT(output, testing::Each(0.2f));
}

TEST(PredictorTest, ShapesThatDoNotFitAreNamed) {
  const auto graph = MakeGraph(SmallNetwork());
  const auto wrong = Predictor::Create(graph, SmallWeights(), {{"data", {2, 3, 12, 12}}}, {});
  ASSERT_FALSE(wrong.ok());
  EXPECT_THAT(wrong.status().message(),
              AllOf(HasSubstr("'fc1_weight'"), HasSubstr("(32, 200)"), HasSubstr("(32, 288)")));
  const auto none = Predictor::Create(graph, SmallWeights(), {{"dat", {2, 3, 10, 10}}}, {});
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(none.status().message(), AllOf(HasSubstr("shape information is not enough"),
                                             HasSubstr("'data'"), HasSubstr("dat (2, 3, 10, 10)")));
  const auto zero = Predictor::Create(graph, SmallWeights(), {{"data", {0, 3, 10, 10}}}, {});
  ASSERT_FALSE(zero.ok());
  EXPECT_THAT(zero.status().message(), HasSubstr("dimension 0"));
  const auto huge = Predictor::Create(graph, SmallWeights(),
                                      {{"data", {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX}}}, {});
  EXPECT_FALSE(huge.ok());
  const auto flat = Predictor::Create(graph, SmallWeights(), {{"data", {2, 300}}}, {});
  ASSERT_FALSE(flat.ok());
  EXPECT_THAT(flat.status().message(), HasSubstr("4 dimensions were expected"));
}

TEST(PredictorTest, WeightsCanNotBeSet) {
  const auto predictor = MakePredictor(SmallWeights());
  const Status weight = predictor->SetInput("fc2_bias", std::vector<float>(5));
  EXPECT_EQ(weight.code(), StatusCode::kPermissionDenied);
  EXPECT_THAT(weight.message(), HasSubstr("shared weights are read-only"));
  const Status unknown = predictor->SetInput("image", std::vector<float>(5));
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
  EXPECT_THAT(unknown.message(), HasSubstr("its inputs are data"));
  const Status size = predictor->SetInput("data", std::vector<float>(5));
  EXPECT_THAT(size.message(), AllOf(HasSubstr("600 elements"), HasSubstr("5 were given")));
  // A label is accepted and has no effect, as in MXNet.
  EXPECT_TRUE(predictor->SetInput("softmax_label", std::vector<float>{1, 2}).ok());
  EXPECT_FALSE(predictor->SetInput("softmax_label", std::vector<float>{1, 2, 3}).ok());
}

TEST(PredictorTest, OutputsAreChecked) {
  const auto predictor = MakePredictor(SmallWeights());
  std::vector<float> out(10);
  EXPECT_EQ(predictor->GetOutput(0, out).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(predictor->Forward().ok());
  EXPECT_TRUE(predictor->GetOutput(0, out).ok());
  EXPECT_EQ(predictor->GetOutput(0, std::span(out).first(9)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(predictor->GetOutput(1, out).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(*predictor->OutputShape(0), (Shape{2, 5}));
}

TEST(PredictorTest, PartialForwardStepsThroughTheNetwork) {
  const auto whole = MakePredictor(SmallWeights());
  const std::vector<float> expected = Predict(*whole, SmallImage(7));
  const auto stepped = MakePredictor(SmallWeights());
  ASSERT_TRUE(stepped->SetInput("data", SmallImage(7)).ok());
  int steps = 0;
  for (int left = 1; left > 0; ++steps) {
    const Result<int> result = stepped->PartialForward(steps);
    ASSERT_TRUE(result.ok());
    left = *result;
  }
  EXPECT_GT(steps, 8);
  EXPECT_THAT(*stepped->PeekOutput(0), testing::ElementsAreArray(expected));
  EXPECT_EQ(*stepped->PartialForward(100000), 0);
  EXPECT_EQ(*stepped->PartialForward(-1), 0);
}

TEST(PredictorTest, InnerOutputsNeedOnlyTheirPartOfTheGraph) {
  const auto full = MakePredictor(SmallWeights());
  Predict(*full, SmallImage(8));
  std::mt19937 random(1);
  auto weights = std::make_shared<MemoryWeights>();  // Only what the convolution needs.
  weights->Set("conv_weight", {8, 3, 3, 3}, RandomFloats(random, 216));
  weights->Set("conv_bias", {8}, RandomFloats(random, 8));
  const auto graph = MakeGraph(SmallNetwork());
  const auto partial = Predictor::Create(graph, weights, kSmallInput,
                                         {.outputs = {"pool", "conv_relu_output", "conv"}});
  ASSERT_TRUE(partial.ok()) << partial.status().ToString();
  ASSERT_EQ((*partial)->output_count(), 3u);
  EXPECT_EQ(*(*partial)->OutputShape(0), (Shape{2, 8, 5, 5}));
  EXPECT_EQ(*(*partial)->OutputShape(1), (Shape{2, 8, 10, 10}));
  ASSERT_TRUE((*partial)->SetInput("data", SmallImage(8)).ok());
  ASSERT_TRUE((*partial)->Forward().ok());
  // The convolution is itself an output, so its relu was not fused into it.
  const std::span<const float> relu = *(*partial)->PeekOutput(1);
  const std::span<const float> conv = *(*partial)->PeekOutput(2);
  size_t negative = 0;
  for (size_t i = 0; i < conv.size(); ++i) {
    EXPECT_EQ(relu[i], std::max(conv[i], 0.0f));
    negative += conv[i] < 0;
  }
  EXPECT_GT(negative, 0u);
  const auto unknown = Predictor::Create(graph, weights, kSmallInput, {.outputs = {"nowhere"}});
  ASSERT_FALSE(unknown.ok());
  EXPECT_THAT(unknown.status().message(), AllOf(HasSubstr("'nowhere'"), HasSubstr("conv_relu")));
}

TEST(PredictorTest, ReshapeChangesTheBatchAndKeepsTheOld) {
  const auto weights = SmallWeights();
  const auto predictor = MakePredictor(weights);
  const std::vector<float> image = SmallImage(9);
  const std::vector<float> both = Predict(*predictor, image);
  const auto single = predictor->Reshape({{"data", {1, 3, 10, 10}}});
  ASSERT_TRUE(single.ok()) << single.status().ToString();
  const std::vector<float> one =
      Predict(**single, std::vector<float>(image.begin(), image.begin() + 300));
  ASSERT_EQ(one.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(one[i], both[i], 1e-6);
  EXPECT_EQ(Predict(*predictor, image), both);
  const auto wrong = predictor->Reshape({{"data", {1, 3, 20, 20}}});
  ASSERT_FALSE(wrong.ok());
  EXPECT_THAT(wrong.status().message(), HasSubstr("'fc1_weight'"));
  EXPECT_FALSE(predictor->Reshape({{"other", {1}}}).ok());
}

TEST(PredictorTest, OtherElementTypesAndMisalignedTensorsBecomePrivateCopies) {
  SymbolWriter writer;
  writer.Op("FullyConnected", "fc", {"data", "w"}, {{"num_hidden", "2"}, {"no_bias", "True"}});
  const auto graph = MakeGraph(writer);
  const auto bytes_of = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values.data()),
                       values.size() * sizeof(values[0]));
  };
  const struct {
    DType dtype;
    std::string bytes;
    size_t misalignment;
    bool in_place;
  } cases[] = {
      {DType::kF32, bytes_of(std::vector<float>{1, -2, 0.5f, 4}), 0, true},
      {DType::kF32, bytes_of(std::vector<float>{1, -2, 0.5f, 4}), 4, true},
      {DType::kF32, bytes_of(std::vector<float>{1, -2, 0.5f, 4}), 2, false},
      {DType::kF64, bytes_of(std::vector<double>{1, -2, 0.5, 4}), 0, false},
      {DType::kF16, bytes_of(std::vector<uint16_t>{0x3c00, 0xc000, 0x3800, 0x4400}), 1, false},
      {DType::kBF16, bytes_of(std::vector<uint16_t>{0x3f80, 0xc000, 0x3f00, 0x4080}), 0, false},
  };
  uint64_t in_place_bytes = 0;
  for (const auto& test : cases) {
    auto weights = std::make_shared<MemoryWeights>();
    weights->SetBytes("arg:w", test.dtype, {2, 2}, test.bytes, test.misalignment);
    const auto predictor = Predictor::Create(graph, weights, {{"data", {1, 2}}}, {});
    ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
    ASSERT_TRUE((*predictor)->SetInput("data", std::vector<float>{1, 10}).ok());
    ASSERT_TRUE((*predictor)->Forward().ok());
    EXPECT_THAT(*(*predictor)->PeekOutput(0), ElementsAre(-19, 40.5f)) << DTypeName(test.dtype);
    if (in_place_bytes == 0) in_place_bytes = (*predictor)->private_bytes();
    EXPECT_EQ((*predictor)->private_bytes() == in_place_bytes, test.in_place)
        << DTypeName(test.dtype) << " " << test.misalignment;
  }
  auto weights = std::make_shared<MemoryWeights>();
  weights->SetBytes("arg:w", DType::kF8E4M3, {2, 2}, "abcd");
  const auto refused = Predictor::Create(graph, weights, {{"data", {1, 2}}}, {});
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().message(), AllOf(HasSubstr("'w'"), HasSubstr("F8_E4M3")));
}

TEST(PredictorTest, PeakMemoryIsThatOfAllPredictorsTogether) {
  const auto weights = SmallWeights();
  uint64_t each = 0;
  {
    const auto first = MakePredictor(weights);
    each = first->private_bytes();
    EXPECT_GT(each, 2400u);
    const auto second = MakePredictor(weights);
    EXPECT_EQ(weights->peak_internal_bytes(), 2 * each);
  }
  const auto third = MakePredictor(weights);
  EXPECT_EQ(weights->peak_internal_bytes(), 2 * each);
}

TEST(PredictorTest, EnvironmentSwitchesAreChecked) {
  ::setenv("TRIMS_PREDICT_PACK", "1", 1);
  ::setenv("TRIMS_PREDICT_ALLOW_MISSING", "", 1);
  const auto options = PredictorOptions::FromEnvironment();
  ASSERT_TRUE(options.ok());
  EXPECT_TRUE(options->pack_weights);
  EXPECT_FALSE(options->allow_missing);
  ::setenv("TRIMS_PREDICT_PACK", "perhaps", 1);
  EXPECT_THAT(PredictorOptions::FromEnvironment().status().message(),
              HasSubstr("TRIMS_PREDICT_PACK='perhaps'"));
  ::unsetenv("TRIMS_PREDICT_PACK");
  ::unsetenv("TRIMS_PREDICT_ALLOW_MISSING");
}

// --- Graph -----------------------------------------------------------------------

TEST(GraphTest, ALabelBehindAReshapeIsNotNeeded) {
  SymbolWriter writer;
  writer.Op("Flatten", "flat_label", {"label"})
      .Op("SoftmaxOutput", "softmax", {"data", "flat_label"});
  const auto predictor = Predictor::Create(MakeGraph(writer), std::make_shared<MemoryWeights>(),
                                           {{"data", {1, 2}}, {"label", {1, 1}}}, {});
  ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
  EXPECT_TRUE((*predictor)->Forward().ok());
}

TEST(GraphTest, ADeclaredShapeIsUsedWhereNoneIsGiven) {
  const std::string json = R"json({"nodes": [
      {"op": "null", "name": "data", "attrs": {"__shape__": "(1, 4)"}, "inputs": []},
      {"op": "softmax", "name": "out", "inputs": [[0, 0, 0]]}],
      "arg_nodes": [0], "heads": [[1, 0, 0]]})json";
  const auto graph = Graph::FromJson(json);
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  const auto shapes = InferShapes(**graph, {});
  ASSERT_TRUE(shapes.ok()) << shapes.status().ToString();
  EXPECT_EQ((*shapes)[1][0], (Shape{1, 4}));
  const auto given = InferShapes(**graph, {{"data", {2, 3}}});
  EXPECT_EQ((*given)[1][0], (Shape{2, 3}));
}

// --- Files -----------------------------------------------------------------------

TEST(FileWeightsTest, ReadsParameterListsAndSafetensors) {
  const std::vector<format::TestTensor> tensors = {format::FloatTensor("arg:w", {2, 2}, 1),
                                                   format::FloatTensor("aux:m", {3}, 5)};
  const std::string safetensors = format::WriteSafetensors(tensors);
  const auto weights = FileWeights::FromBytes(std::as_bytes(std::span(safetensors)), "a file");
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  const auto w = FindWeight(**weights, "w");
  ASSERT_TRUE(w.has_value());
  EXPECT_EQ(w->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(w->bytes) % 64, 0u);
  EXPECT_TRUE(FindWeight(**weights, "m").has_value());
  EXPECT_FALSE(FindWeight(**weights, "x").has_value());
}

TEST(FileWeightsTest, SaysWhatItLookedFor) {
  const auto missing = FileWeights::FromPath("/nonexistent/model", "model");
  EXPECT_THAT(missing.status().ToString(), HasSubstr("/nonexistent/model"));
  const auto empty = FileWeights::FromPath("/proc/self/fdinfo", "vgg16");
  EXPECT_THAT(empty.status().ToString(), HasSubstr("vgg16-0000.params"));
  const std::string garbage = "<html>not weights</html>";
  EXPECT_FALSE(FileWeights::FromBytes(std::as_bytes(std::span(garbage)), "page").ok());
}

TEST(FileWeightsTest, ReadsShardsBesideTheirIndexOnly) {
  namespace fs = std::filesystem;
  std::string root = (fs::temp_directory_path() / "trims-weights-XXXXXX").string();
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  fs::create_directory(root + "/model");
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(root + "/" + name, std::ios::binary) << text;
  };
  const std::string bytes = format::WriteSafetensors({format::FloatTensor("w", {2}, 1)});
  write("model/part.safetensors", bytes);
  write("outside.safetensors", bytes);
  const std::string index = "model/model.safetensors.index.json";
  write(index, R"({"weight_map":{"w":"part.safetensors"}})");
  // By the directory, and by the index itself.
  for (const std::string& path : {root + "/model", root + "/model//", root + "/" + index + "/"}) {
    const auto weights = FileWeights::FromPath(path, "net");
    ASSERT_TRUE(weights.ok()) << weights.status().ToString();
    EXPECT_TRUE((*weights)->Find("w").has_value());
  }
  for (const std::string& name : {std::string("../outside.safetensors"), std::string("gone"),
                                  root + "/outside.safetensors", std::string("..")}) {
    write(index, "{\"weight_map\":{\"w\":\"" + name + "\"}}");
    EXPECT_FALSE(FileWeights::FromPath(root + "/model", "net").ok()) << name;
  }
  fs::remove_all(root);
}

TEST(ConvertToFloatTest, HalfPrecisionIsExact) {
  const std::vector<uint16_t> half = {0x0000, 0x8000, 0x3c00, 0x0001, 0x03ff,
                                      0x0400, 0x7bff, 0x7c00, 0xfc00, 0x3555};
  std::vector<float> out(half.size());
  ASSERT_TRUE(ConvertToFloat(DType::kF16, reinterpret_cast<const std::byte*>(half.data()),
                             half.size(), out.data())
                  .ok());
  EXPECT_THAT(out, ElementsAre(0.0f, -0.0f, 1.0f, 0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f, 65504.0f,
                               INFINITY, -INFINITY, 0x1.554p-2f));
  const uint16_t nan = 0x7e00;
  ASSERT_TRUE(
      ConvertToFloat(DType::kF16, reinterpret_cast<const std::byte*>(&nan), 1, out.data()).ok());
  EXPECT_TRUE(std::isnan(out[0]));
}

}  // namespace
}  // namespace trims::predict

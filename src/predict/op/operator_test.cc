// Attributes and shapes of every operator: no kernel runs here.
#include "predict/op/operator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Attributes = SymbolWriter::Attributes;

// The shapes of `inputs` and of the output, of one operator over data of that shape.
Result<std::vector<Shape>> Infer(const std::string& op, const Attributes& attributes,
                                 const Shape& data,
                                 const std::vector<std::string>& parameters = {}) {
  SymbolWriter writer;
  std::vector<std::string> inputs = {"data"};
  inputs.insert(inputs.end(), parameters.begin(), parameters.end());
  writer.Op(op, "node", inputs, attributes);
  ASSIGN_OR_RETURN(const std::shared_ptr<const Graph> graph, Graph::FromJson(writer.Json()));
  ASSIGN_OR_RETURN(const GraphShapes shapes, InferShapes(*graph, {{"data", data}}));
  std::vector<Shape> all;
  for (const std::vector<Shape>& of_node : shapes) all.push_back(of_node.at(0));
  return all;
}

// Of the output alone.
Result<Shape> InferOutput(const std::string& op, const Attributes& attributes, const Shape& data) {
  ASSIGN_OR_RETURN(const std::vector<Shape> shapes, Infer(op, attributes, data));
  return shapes.back();
}

template <typename T>
std::string ErrorOf(const Result<T>& result) {
  return result.ok() ? "no error" : result.status().message();
}

// --- Convolution and FullyConnected ---------------------------------------------

TEST(ConvolutionShapeTest, OutputAndParametersFollowFromTheData) {
  const Attributes attributes = {{"kernel", "(3, 2)"}, {"stride", "(2, 1)"}, {"dilate", "(1, 2)"},
                                 {"pad", "(1, 0)"},    {"num_filter", "6"},  {"num_group", "2"}};
  EXPECT_THAT(Infer("Convolution", attributes, {5, 4, 9, 8}, {"w", "b"}).value(),
              ElementsAre(Shape{5, 4, 9, 8}, Shape{6, 2, 3, 2}, Shape{6}, Shape{5, 6, 5, 6}));
}

TEST(ConvolutionShapeTest, SaysWhatDoesNotFit) {
  const Shape data = {1, 3, 4, 4};
  EXPECT_THAT(ErrorOf(Infer("Convolution", {{"num_filter", "1"}}, data)), HasSubstr("kernel"));
  EXPECT_THAT(
      ErrorOf(Infer("Convolution", {{"kernel", "(5, 5)"}, {"num_filter", "1"}}, data, {"w", "b"})),
      HasSubstr("kernel covers 5 positions and the padded data only has 4"));
  EXPECT_THAT(
      ErrorOf(Infer("Convolution", {{"kernel", "(1, 1)"}, {"num_filter", "4"}, {"num_group", "2"}},
                    data, {"w", "b"})),
      HasSubstr("3 channels, which num_group=2 does not divide"));
  EXPECT_THAT(ErrorOf(Infer("Convolution",
                            {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"num_group", "2"}}, data)),
              HasSubstr("not divisible by num_group=2"));
  EXPECT_THAT(ErrorOf(Infer("Convolution",
                            {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"layout", "NHWC"}}, data)),
              HasSubstr("'NHWC' is not supported"));
  EXPECT_THAT(ErrorOf(Infer("Convolution",
                            {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"stride", "(1,)"}}, data)),
              HasSubstr("stride has 1 elements and kernel has 2"));
}

TEST(FullyConnectedShapeTest, FlattensOrKeepsAllButTheLastAxis) {
  EXPECT_THAT(Infer("FullyConnected", {{"num_hidden", "7"}}, {2, 3, 4}, {"w", "b"}).value(),
              ElementsAre(Shape{2, 3, 4}, Shape{7, 12}, Shape{7}, Shape{2, 7}));
  EXPECT_THAT(
      Infer("FullyConnected", {{"num_hidden", "7"}, {"flatten", "False"}, {"no_bias", "True"}},
            {2, 3, 4}, {"w"})
          .value(),
      ElementsAre(Shape{2, 3, 4}, Shape{7, 4}, Shape{2, 3, 7}));
}

// --- Activation ------------------------------------------------------------------

TEST(ActivationTest, NamesTheFunctionsThereAre) {
  EXPECT_THAT(ErrorOf(Infer("Activation", {{"act_type", "swish"}}, {1, 9})),
              HasSubstr("'swish' is not supported; one of relu, sigmoid"));
  EXPECT_THAT(ErrorOf(Infer("Activation", {}, {1, 9})), HasSubstr("act_type: is missing"));
}

// --- Pooling and LRN ---------------------------------------------------------------

Attributes PoolAttributes(const std::string& type, int64_t kernel, int64_t stride,
                          const std::string& convention) {
  const auto both = [](int64_t value) {
    return "(" + std::to_string(value) + "," + std::to_string(value) + ",)";
  };
  return {{"kernel", both(kernel)},
          {"stride", both(stride)},
          {"pool_type", type},
          {"pooling_convention", convention}};
}

TEST(PoolingShapeTest, ConventionsDifferInTheLastWindow) {
  EXPECT_EQ(InferOutput("Pooling", PoolAttributes("max", 3, 2, "valid"), {1, 2, 4, 6}).value(),
            (Shape{1, 2, 1, 2}));
  EXPECT_EQ(InferOutput("Pooling", PoolAttributes("max", 3, 2, "full"), {1, 2, 4, 6}).value(),
            (Shape{1, 2, 2, 3}));
  EXPECT_EQ(InferOutput("Pooling", {{"global_pool", "True"}}, {1, 2, 4, 6}).value(),
            (Shape{1, 2, 1, 1}));
}

TEST(PoolingShapeTest, SaysWhatDoesNotFit) {
  const Shape data = {1, 1, 2, 2};
  EXPECT_THAT(ErrorOf(Infer("Pooling", {{"pool_type", "max"}}, data)),
              HasSubstr("kernel is missing"));
  EXPECT_THAT(ErrorOf(Infer("Pooling", PoolAttributes("max", 3, 1, "valid"), data)),
              HasSubstr("kernel covers 3 positions and the padded data only has 2"));
  EXPECT_THAT(ErrorOf(Infer("Pooling", PoolAttributes("max", 1, 0, "valid"), data)),
              HasSubstr("stride"));
  EXPECT_THAT(ErrorOf(Infer("Pooling", PoolAttributes("lp", 1, 1, "valid"), data)),
              HasSubstr("'lp' is not supported"));
}

TEST(LrnTest, AWindowHasAMiddle) {
  EXPECT_THAT(ErrorOf(Infer("LRN", {{"nsize", "4"}}, {1, 1, 1, 1})), HasSubstr("4 is even"));
}

// --- Shape operators ---------------------------------------------------------------

TEST(ShapeOperatorsTest, ReshapeCodes) {
  const struct {
    std::string shape;
    bool reverse;
    Shape expected;
  } cases[] = {
      {"(4, 0, 2)", false, {4, 3, 2}},
      {"(2, 0, 0)", false, {2, 3, 4}},
      {"(6, 1, -1)", false, {6, 1, 4}},
      {"(3, -1, 8)", false, {3, 1, 8}},
      {"(-1,)", false, {24}},
      {"(-2,)", false, {2, 3, 4}},
      {"(2, -2)", false, {2, 3, 4}},
      {"(-2, 1, 1)", false, {2, 3, 4, 1, 1}},
      {"(-3, 4)", false, {6, 4}},
      {"(0, -3)", false, {2, 12}},
      {"(-4, 1, 2, -2)", false, {1, 2, 3, 4}},
      {"(2, -4, -1, 3, -2)", false, {2, 1, 3, 4}},
      {"(-1, 0)", true, {6, 4}},
      {"(0, 0)", false, {}},
      {"(5, -1)", false, {}},
      {"(-1, -1)", false, {}},
      {"(-4, 0, 2)", false, {}},
  };
  for (const auto& test : cases) {
    const Result<Shape> out = InferOutput(
        "Reshape", {{"shape", test.shape}, {"reverse", test.reverse ? "True" : "False"}},
        {2, 3, 4});
    if (test.expected.empty()) {
      EXPECT_THAT(ErrorOf(out), HasSubstr("does not fit data")) << test.shape;
      continue;
    }
    ASSERT_TRUE(out.ok()) << test.shape << ": " << ErrorOf(out);
    EXPECT_EQ(*out, test.expected) << test.shape;
  }
}

TEST(ShapeOperatorsTest, LegacyReshapeKeepsTheHighestDimension) {
  EXPECT_EQ(
      InferOutput("Reshape", {{"target_shape", "(0, 0)"}, {"keep_highest", "True"}}, {2, 3, 4})
          .value(),
      (Shape{2, 12}));
}

TEST(ShapeOperatorsTest, DropoutThatIsNotForTrainingAloneIsRefused) {
  EXPECT_THAT(ErrorOf(Infer("Dropout", {{"mode", "always"}}, {2, 3, 2, 1})),
              HasSubstr("'always' is not supported"));
}

// --- Attributes of any operator ------------------------------------------------------

TEST(OperatorTest, UnknownAttributesAndWrongArgumentsAreNamed) {
  const Shape data = {1, 2};
  EXPECT_THAT(ErrorOf(Infer("Flatten", {{"axis", "1"}}, data)),
              HasSubstr("unknown attribute axis"));
  EXPECT_THAT(ErrorOf(Infer("FullyConnected", {{"num_hidden", "many"}}, data)),
              HasSubstr("num_hidden"));
  EXPECT_THAT(ErrorOf(Infer("FullyConnected", {}, data)), HasSubstr("num_hidden: is missing"));
  EXPECT_THAT(ErrorOf(Infer("FullyConnected", {{"num_hidden", "4"}}, data)),
              HasSubstr("has 1 inputs, 3 were expected (data, weight, bias)"));
}

}  // namespace
}  // namespace trims::predict

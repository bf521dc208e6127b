// Every operator against small cases worked out by hand and against naive loops
// that share nothing with the kernels, over seeded random parameters.
#include "predict/operator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Attributes = SymbolWriter::Attributes;

struct Tensor {
  Shape shape;
  std::vector<float> values;
};

struct OneOperator {
  std::string op;
  Attributes attributes;
  std::vector<std::pair<std::string, Tensor>> inputs;  // The first is data, the rest weights.
  bool followed_by_relu = false;
  bool pack_weights = false;
  bool has_label = false;
};

Result<Tensor> Compute(const OneOperator& test) {
  SymbolWriter writer;
  std::vector<std::string> names;
  auto weights = std::make_shared<MemoryWeights>();
  for (size_t i = 0; i < test.inputs.size(); ++i) {
    names.push_back(test.inputs[i].first);
    if (i > 0) {
      weights->Set("arg:" + test.inputs[i].first, test.inputs[i].second.shape,
                   test.inputs[i].second.values);
    }
  }
  if (test.has_label) names.push_back("label");
  writer.Op(test.op, "node", names, test.attributes);
  if (test.followed_by_relu) writer.Op("Activation", "relu", {"node"}, {{"act_type", "relu"}});
  ASSIGN_OR_RETURN(std::shared_ptr<const Graph> graph, Graph::FromJson(writer.Json()));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Predictor> predictor,
      Predictor::Create(graph, weights, {{test.inputs[0].first, test.inputs[0].second.shape}},
                        {.pack_weights = test.pack_weights}));
  RETURN_IF_ERROR(predictor->SetInput(test.inputs[0].first, test.inputs[0].second.values));
  RETURN_IF_ERROR(predictor->Forward());
  ASSIGN_OR_RETURN(const std::span<const float> values, predictor->PeekOutput(0));
  ASSIGN_OR_RETURN(Shape shape, predictor->OutputShape(0));
  return Tensor{std::move(shape), std::vector<float>(values.begin(), values.end())};
}

// An operator with data alone.
Result<Tensor> RunSimple(const std::string& op, const Attributes& attributes, const Tensor& data) {
  return Compute({.op = op, .attributes = attributes, .inputs = {{"data", data}}});
}

std::string ErrorOf(const Result<Tensor>& result) {
  return result.ok() ? "no error" : result.status().message();
}

Tensor RandomTensor(std::mt19937& random, const Shape& shape) {
  return {shape, RandomFloats(random, static_cast<size_t>(ElementCount(shape)))};
}

Tensor Sequence(const Shape& shape) {
  Tensor tensor{shape, {}};
  for (int64_t i = 0; i < ElementCount(shape); ++i) {
    tensor.values.push_back(static_cast<float>(i + 1));
  }
  return tensor;
}

// Relative to the largest value: sums that cancel have no relative precision.
void ExpectClose(const Tensor& actual, const Tensor& expected, double tolerance = 1e-5) {
  ASSERT_EQ(actual.shape, expected.shape);
  ASSERT_EQ(actual.values.size(), expected.values.size());
  double largest = 0;
  for (const float value : expected.values) largest = std::max(largest, std::fabs(double{value}));
  for (size_t i = 0; i < expected.values.size(); ++i) {
    ASSERT_NEAR(actual.values[i], expected.values[i], tolerance * largest) << "element " << i;
  }
}

std::string Tuple(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (const int64_t value : values) text += std::to_string(value) + ",";
  return text + ")";
}

// --- Convolution ---------------------------------------------------------------

struct Conv2d {
  int64_t kh, kw, sh = 1, sw = 1, dh = 1, dw = 1, ph = 0, pw = 0, filters = 1, groups = 1;
};

Tensor NaiveConvolution(const Tensor& data, const Tensor& weight, const float* bias,
                        const Conv2d& c) {
  const int64_t n = data.shape[0], ic = data.shape[1], h = data.shape[2], w = data.shape[3];
  const int64_t oh = (h + 2 * c.ph - (c.dh * (c.kh - 1) + 1)) / c.sh + 1;
  const int64_t ow = (w + 2 * c.pw - (c.dw * (c.kw - 1) + 1)) / c.sw + 1;
  Tensor out{{n, c.filters, oh, ow}, {}};
  const int64_t per_group = ic / c.groups;
  for (int64_t b = 0; b < n; ++b) {
    for (int64_t f = 0; f < c.filters; ++f) {
      const int64_t group = f / (c.filters / c.groups);
      for (int64_t y = 0; y < oh; ++y) {
        for (int64_t x = 0; x < ow; ++x) {
          double sum = bias != nullptr ? bias[f] : 0.0;
          for (int64_t k = 0; k < per_group; ++k) {
            for (int64_t i = 0; i < c.kh; ++i) {
              for (int64_t j = 0; j < c.kw; ++j) {
                const int64_t iy = y * c.sh - c.ph + i * c.dh;
                const int64_t ix = x * c.sw - c.pw + j * c.dw;
                if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
                sum +=
                    double{data.values[static_cast<size_t>(
                        ((b * ic + group * per_group + k) * h + iy) * w + ix)]} *
                    weight.values[static_cast<size_t>(((f * per_group + k) * c.kh + i) * c.kw + j)];
              }
            }
          }
          out.values.push_back(static_cast<float>(sum));
        }
      }
    }
  }
  return out;
}

Attributes ConvAttributes(const Conv2d& c, bool bias) {
  return {{"kernel", Tuple({c.kh, c.kw})},           {"stride", Tuple({c.sh, c.sw})},
          {"dilate", Tuple({c.dh, c.dw})},           {"pad", Tuple({c.ph, c.pw})},
          {"num_filter", std::to_string(c.filters)}, {"num_group", std::to_string(c.groups)},
          {"no_bias", bias ? "False" : "True"}};
}

TEST(ConvolutionTest, DoesNotFlipTheKernel) {
  const Result<Tensor> out = Compute({.op = "Convolution",
                                      .attributes = {{"kernel", "(2, 2)"}, {"num_filter", "1"}},
                                      .inputs = {{"data", Sequence({1, 1, 3, 3})},
                                                 {"weight", {{1, 1, 2, 2}, {1, 0, 0, 10}}},
                                                 {"bias", {{1}, {100}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1 + 50 + 100, 2 + 60 + 100, 4 + 80 + 100, 5 + 90 + 100));
}

TEST(ConvolutionTest, AgreesWithNaiveLoopsForRandomParameters) {
  std::mt19937 random(20190707);
  for (int round = 0; round < 60; ++round) {
    Conv2d c{.kh = RandomInt(random, 1, 4), .kw = RandomInt(random, 1, 4)};
    c.sh = RandomInt(random, 1, 3);
    c.sw = RandomInt(random, 1, 3);
    c.dh = RandomInt(random, 1, 2);
    c.dw = RandomInt(random, 1, 2);
    c.ph = RandomInt(random, 0, 2);
    c.pw = RandomInt(random, 0, 2);
    c.groups = RandomInt(random, 1, 3);
    c.filters = c.groups * RandomInt(random, 1, 6);
    const int64_t channels = c.groups * RandomInt(random, 1, 5);
    const Tensor data = RandomTensor(random, {RandomInt(random, 1, 3), channels,
                                              RandomInt(random, 8, 14), RandomInt(random, 8, 14)});
    const Tensor weight = RandomTensor(random, {c.filters, channels / c.groups, c.kh, c.kw});
    const Tensor bias = RandomTensor(random, {c.filters});
    const bool has_bias = RandomInt(random, 0, 1) == 1;
    OneOperator test{.op = "Convolution",
                     .attributes = ConvAttributes(c, has_bias),
                     .inputs = {{"data", data}, {"weight", weight}}};
    if (has_bias) test.inputs.emplace_back("bias", bias);
    test.pack_weights = RandomInt(random, 0, 1) == 1;
    SCOPED_TRACE("round " + std::to_string(round));
    const Result<Tensor> out = Compute(test);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, NaiveConvolution(data, weight, has_bias ? bias.values.data() : nullptr, c));
  }
}

TEST(ConvolutionTest, DepthwiseAgreesWithNaiveLoops) {
  std::mt19937 random(3);
  const Conv2d c{.kh = 3, .kw = 3, .ph = 1, .pw = 1, .filters = 32, .groups = 32};
  const Tensor data = RandomTensor(random, {2, 32, 9, 9});
  const Tensor weight = RandomTensor(random, {32, 1, 3, 3});
  for (const bool pack : {false, true}) {
    const Result<Tensor> out = Compute({.op = "Convolution",
                                        .attributes = ConvAttributes(c, false),
                                        .inputs = {{"data", data}, {"weight", weight}},
                                        .pack_weights = pack});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, NaiveConvolution(data, weight, nullptr, c));
  }
}

TEST(ConvolutionTest, FusedReluIsAReluOfTheConvolution) {
  std::mt19937 random(4);
  const Conv2d c{.kh = 3, .kw = 3, .ph = 1, .pw = 1, .filters = 16};
  const Tensor data = RandomTensor(random, {1, 16, 8, 8});
  const Tensor weight = RandomTensor(random, {16, 16, 3, 3});
  const Tensor bias = RandomTensor(random, {16});
  Tensor expected = NaiveConvolution(data, weight, bias.values.data(), c);
  for (float& value : expected.values) value = std::max(value, 0.0f);
  for (const bool pack : {false, true}) {
    const Result<Tensor> out =
        Compute({.op = "Convolution",
                 .attributes = ConvAttributes(c, true),
                 .inputs = {{"data", data}, {"weight", weight}, {"bias", bias}},
                 .followed_by_relu = true,
                 .pack_weights = pack});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    ExpectClose(*out, expected);
  }
}

TEST(ConvolutionTest, HasOneAndThreeSpatialDimensions) {
  const Result<Tensor> line =
      Compute({.op = "Convolution",
               .attributes = {{"kernel", "(2,)"},
                              {"num_filter", "1"},
                              {"no_bias", "True"},
                              {"layout", "NCW"}},
               .inputs = {{"data", Sequence({1, 1, 4})}, {"weight", {{1, 1, 2}, {1, 10}}}}});
  ASSERT_TRUE(line.ok()) << ErrorOf(line);
  EXPECT_THAT(line->values, ElementsAre(21, 32, 43));
  const Result<Tensor> volume =
      Compute({.op = "Convolution",
               .attributes = {{"kernel", "(2, 2, 2)"}, {"num_filter", "1"}, {"no_bias", "True"}},
               .inputs = {{"data", Sequence({1, 1, 2, 2, 2})},
                          {"weight", {{1, 1, 2, 2, 2}, {1, 1, 1, 1, 1, 1, 1, 1}}}}});
  ASSERT_TRUE(volume.ok()) << ErrorOf(volume);
  EXPECT_THAT(volume->values, ElementsAre(36));
}

TEST(ConvolutionTest, SaysWhatDoesNotFit) {
  const Tensor data = Sequence({1, 3, 4, 4});
  EXPECT_THAT(ErrorOf(RunSimple("Convolution", {{"num_filter", "1"}}, data)), HasSubstr("kernel"));
  EXPECT_THAT(ErrorOf(Compute({.op = "Convolution",
                               .attributes = {{"kernel", "(5, 5)"}, {"num_filter", "1"}},
                               .inputs = {{"data", data}, {"w", {}}, {"b", {}}}})),
              HasSubstr("kernel covers 5 positions and the padded data only has 4"));
  EXPECT_THAT(ErrorOf(Compute(
                  {.op = "Convolution",
                   .attributes = {{"kernel", "(1, 1)"}, {"num_filter", "4"}, {"num_group", "2"}},
                   .inputs = {{"data", data}, {"w", {}}, {"b", {}}}})),
              HasSubstr("3 channels, which num_group=2 does not divide"));
  EXPECT_THAT(
      ErrorOf(RunSimple("Convolution",
                        {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"num_group", "2"}}, data)),
      HasSubstr("not divisible by num_group=2"));
  EXPECT_THAT(
      ErrorOf(RunSimple("Convolution",
                        {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"layout", "NHWC"}}, data)),
      HasSubstr("'NHWC' is not supported"));
  EXPECT_THAT(
      ErrorOf(RunSimple("Convolution",
                        {{"kernel", "(1, 1)"}, {"num_filter", "3"}, {"stride", "(1,)"}}, data)),
      HasSubstr("stride has 1 elements and kernel has 2"));
}

// --- FullyConnected ------------------------------------------------------------

TEST(FullyConnectedTest, FlattensImages) {
  const Result<Tensor> out = Compute({.op = "FullyConnected",
                                      .attributes = {{"num_hidden", "2"}},
                                      .inputs = {{"data", Sequence({2, 1, 2, 2})},
                                                 {"weight", {{2, 4}, {1, 1, 1, 1, 1, 0, 0, 0}}},
                                                 {"bias", {{2}, {0.5f, 100}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{2, 2}));
  EXPECT_THAT(out->values, ElementsAre(10.5f, 101, 26.5f, 105));
}

TEST(FullyConnectedTest, WithoutFlattenWorksOnTheLastAxis) {
  const Result<Tensor> out =
      Compute({.op = "FullyConnected",
               .attributes = {{"num_hidden", "1"}, {"flatten", "False"}, {"no_bias", "True"}},
               .inputs = {{"data", Sequence({2, 2, 2})}, {"weight", {{1, 2}, {1, 10}}}}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{2, 2, 1}));
  EXPECT_THAT(out->values, ElementsAre(21, 43, 65, 87));
}

TEST(FullyConnectedTest, AgreesWithNaiveLoopsForRandomSizes) {
  std::mt19937 random(5);
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = RandomInt(random, 1, 5), in = RandomInt(random, 1, 300),
                  hidden = RandomInt(random, 1, 70);
    const Tensor data = RandomTensor(random, {rows, in});
    const Tensor weight = RandomTensor(random, {hidden, in});
    const Tensor bias = RandomTensor(random, {hidden});
    const bool relu = RandomInt(random, 0, 1) == 1;
    Tensor expected{{rows, hidden}, {}};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < hidden; ++o) {
        double sum = bias.values[static_cast<size_t>(o)];
        for (int64_t k = 0; k < in; ++k) {
          sum += double{data.values[static_cast<size_t>(r * in + k)]} *
                 weight.values[static_cast<size_t>(o * in + k)];
        }
        expected.values.push_back(static_cast<float>(relu ? std::max(sum, 0.0) : sum));
      }
    }
    const Result<Tensor> out =
        Compute({.op = "FullyConnected",
                 .attributes = {{"num_hidden", std::to_string(hidden)}},
                 .inputs = {{"data", data}, {"weight", weight}, {"bias", bias}},
                 .followed_by_relu = relu});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectClose(*out, expected);
  }
}

// --- Activation ----------------------------------------------------------------

TEST(ActivationTest, ComputesEachFunction) {
  const std::vector<float> x = {-30, -2, -0.5f, 0, 0.5f, 2, 19, 21, 100};
  const auto run = [&](const std::string& kind) {
    return RunSimple("Activation", {{"act_type", kind}}, {{1, 9}, x});
  };
  const struct {
    std::string kind;
    double (*function)(double);
  } cases[] = {
      {"relu", [](double v) { return v > 0 ? v : 0.0; }},
      {"sigmoid", [](double v) { return 1 / (1 + std::exp(-v)); }},
      {"tanh", [](double v) { return std::tanh(v); }},
      {"softrelu", [](double v) { return std::log1p(std::exp(v)); }},
      {"softsign", [](double v) { return v / (1 + std::fabs(v)); }},
  };
  for (const auto& test : cases) {
    const Result<Tensor> out = run(test.kind);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = test.function(x[i]);
      EXPECT_NEAR(out->values[i], expected, 1e-6 * std::max(1.0, std::fabs(expected)))
          << test.kind << " of " << x[i];
    }
  }
  EXPECT_THAT(ErrorOf(run("swish")), HasSubstr("'swish' is not supported; one of relu, sigmoid"));
  EXPECT_THAT(ErrorOf(RunSimple("Activation", {}, {{1, 9}, x})), HasSubstr("act_type: is missing"));
}

// --- Pooling -------------------------------------------------------------------

Attributes PoolAttributes(const std::string& type, int64_t kernel, int64_t stride, int64_t pad,
                          const std::string& convention) {
  return {{"kernel", Tuple({kernel, kernel})},
          {"stride", Tuple({stride, stride})},
          {"pad", Tuple({pad, pad})},
          {"pool_type", type},
          {"pooling_convention", convention}};
}

TEST(PoolingTest, ValidDropsWhatDoesNotFillAWindow) {
  const Tensor data = Sequence({1, 1, 4, 4});
  const Result<Tensor> out = RunSimple("Pooling", PoolAttributes("max", 3, 2, 0, "valid"), data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{1, 1, 1, 1}));
  EXPECT_THAT(out->values, ElementsAre(11));
}

TEST(PoolingTest, FullLetsTheLastWindowOverhang) {
  const Tensor data = Sequence({1, 1, 4, 4});
  const Result<Tensor> max = RunSimple("Pooling", PoolAttributes("max", 3, 2, 0, "full"), data);
  ASSERT_TRUE(max.ok()) << ErrorOf(max);
  EXPECT_EQ(max->shape, (Shape{1, 1, 2, 2}));
  EXPECT_THAT(max->values, ElementsAre(11, 12, 15, 16));
  // The overhang does not count in the divisor: 9, 6, 6 and 4 elements.
  const Result<Tensor> avg = RunSimple("Pooling", PoolAttributes("avg", 3, 2, 0, "full"), data);
  ASSERT_TRUE(avg.ok()) << ErrorOf(avg);
  EXPECT_THAT(avg->values, ElementsAre(6, (3 + 4 + 7 + 8 + 11 + 12) / 6.0f,
                                       (9 + 10 + 11 + 13 + 14 + 15) / 6.0f, 13.5f));
}

TEST(PoolingTest, PaddingCountsInTheDivisorOfAnAverage) {
  const Tensor data{{1, 1, 2, 2}, {4, 8, 12, 16}};
  const Result<Tensor> out = RunSimple("Pooling", PoolAttributes("avg", 2, 2, 1, "valid"), data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1, 2, 3, 4));
  Attributes exclude = PoolAttributes("avg", 2, 2, 1, "valid");
  exclude.emplace_back("count_include_pad", "False");
  const Result<Tensor> without = RunSimple("Pooling", exclude, data);
  ASSERT_TRUE(without.ok()) << ErrorOf(without);
  EXPECT_THAT(without->values, ElementsAre(4, 8, 12, 16));
}

TEST(PoolingTest, OverhangBeyondThePaddingDoesNotCount) {
  // Windows [-1, 1), [1, 3) and [3, 5), of which the last is clipped at 4.
  const Tensor data{{1, 1, 1, 3}, {6, 12, 18}};
  Attributes attributes = {{"kernel", "(1, 2)"},
                           {"stride", "(1, 2)"},
                           {"pad", "(0, 1)"},
                           {"pool_type", "avg"},
                           {"pooling_convention", "full"}};
  const Result<Tensor> out = RunSimple("Pooling", attributes, data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(3, 15, 0));
}

TEST(PoolingTest, AnAverageOverNothingIsNotANumber) {
  // Windows [0, 1) and [3, 4) of an image that ends at 3.
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 1)"},
                                        {"stride", "(1, 3)"},
                                        {"pool_type", "avg"},
                                        {"pooling_convention", "full"}},
                                       {{1, 1, 1, 3}, {6, 12, 18}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->values[0], 6);
  EXPECT_TRUE(std::isnan(out->values[1]));
}

TEST(PoolingTest, AMaximumOverNothingIsTheLowestFloat) {
  const Tensor data{{1, 1, 1, 3}, {6, 12, 18}};
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 2)"},
                                        {"stride", "(1, 2)"},
                                        {"pad", "(0, 1)"},
                                        {"pool_type", "max"},
                                        {"pooling_convention", "full"}},
                                       data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(6, 18, std::numeric_limits<float>::lowest()));
}

TEST(PoolingTest, GlobalIgnoresKernelStrideAndPad) {
  const Tensor data = Sequence({1, 2, 2, 3});
  const Result<Tensor> out = RunSimple("Pooling",
                                       {{"kernel", "(1, 1)"},
                                        {"stride", "(2, 2)"},
                                        {"pad", "(3, 3)"},
                                        {"global_pool", "True"},
                                        {"pool_type", "avg"}},
                                       data);
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{1, 2, 1, 1}));
  EXPECT_THAT(out->values, ElementsAre(3.5f, 9.5f));
}

TEST(PoolingTest, SumDoesNotDivide) {
  const Result<Tensor> out =
      RunSimple("Pooling", PoolAttributes("sum", 2, 2, 0, "valid"), Sequence({1, 1, 2, 4}));
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(1 + 2 + 5 + 6, 3 + 4 + 7 + 8));
}

TEST(PoolingTest, AgreesWithNaiveLoopsForRandomParameters) {
  std::mt19937 random(6);
  int overhanging = 0;
  for (int round = 0; round < 200; ++round) {
    const int64_t n = RandomInt(random, 1, 2), c = RandomInt(random, 1, 5);
    const int64_t size[2] = {RandomInt(random, 3, 12), RandomInt(random, 3, 12)};
    const int64_t kernel[2] = {RandomInt(random, 1, 4), RandomInt(random, 1, 4)};
    const int64_t stride[2] = {RandomInt(random, 1, 4), RandomInt(random, 1, 4)};
    const int64_t pad[2] = {RandomInt(random, 0, 2), RandomInt(random, 0, 2)};
    if (kernel[0] > size[0] + 2 * pad[0] || kernel[1] > size[1] + 2 * pad[1]) continue;
    const std::string type = std::vector<std::string>{"max", "avg", "sum"}[random() % 3];
    const bool full = RandomInt(random, 0, 1) == 1;
    int64_t out_size[2];
    bool empty_window = false;
    for (int d = 0; d < 2; ++d) {
      const double windows =
          static_cast<double>(size[d] + 2 * pad[d] - kernel[d]) / static_cast<double>(stride[d]);
      out_size[d] = static_cast<int64_t>(full ? std::ceil(windows) : std::floor(windows)) + 1;
      overhanging += (out_size[d] - 1) * stride[d] + kernel[d] > size[d] + 2 * pad[d];
      empty_window |= (out_size[d] - 1) * stride[d] >= size[d] + 2 * pad[d];
    }
    if (empty_window && type == "avg") continue;  // The case has its own test.
    const Tensor data = RandomTensor(random, {n, c, size[0], size[1]});
    Tensor expected{{n, c, out_size[0], out_size[1]}, {}};
    for (int64_t plane = 0; plane < n * c; ++plane) {
      for (int64_t oy = 0; oy < out_size[0]; ++oy) {
        for (int64_t ox = 0; ox < out_size[1]; ++ox) {
          double sum = 0, divisor = 0;
          float highest = -std::numeric_limits<float>::max();
          // Cell by cell: in the padded image it counts, in the image it is read.
          for (int64_t y = oy * stride[0] - pad[0]; y < oy * stride[0] - pad[0] + kernel[0]; ++y) {
            for (int64_t x = ox * stride[1] - pad[1]; x < ox * stride[1] - pad[1] + kernel[1];
                 ++x) {
              if (y >= size[0] + pad[0] || x >= size[1] + pad[1]) continue;
              ++divisor;
              if (y < 0 || x < 0 || y >= size[0] || x >= size[1]) continue;
              const float value =
                  data.values[static_cast<size_t>((plane * size[0] + y) * size[1] + x)];
              sum += value;
              highest = std::max(highest, value);
            }
          }
          expected.values.push_back(type == "max"   ? highest
                                    : type == "sum" ? static_cast<float>(sum)
                                                    : static_cast<float>(sum / divisor));
        }
      }
    }
    SCOPED_TRACE("round " + std::to_string(round) + " " + type);
    const Result<Tensor> out = RunSimple("Pooling",
                                         {{"kernel", Tuple({kernel[0], kernel[1]})},
                                          {"stride", Tuple({stride[0], stride[1]})},
                                          {"pad", Tuple({pad[0], pad[1]})},
                                          {"pool_type", type},
                                          {"pooling_convention", full ? "full" : "valid"}},
                                         data);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    if (type == "max") {
      ASSERT_EQ(out->shape, expected.shape);
      ASSERT_EQ(out->values, expected.values);
    } else {
      ExpectClose(*out, expected);
    }
  }
  EXPECT_GT(overhanging, 20);
}

TEST(PoolingTest, SaysWhatDoesNotFit) {
  const Tensor data = Sequence({1, 1, 2, 2});
  EXPECT_THAT(ErrorOf(RunSimple("Pooling", {{"pool_type", "max"}}, data)),
              HasSubstr("kernel is missing"));
  EXPECT_THAT(ErrorOf(RunSimple("Pooling", PoolAttributes("max", 3, 1, 0, "valid"), data)),
              HasSubstr("kernel covers 3 positions and the padded data only has 2"));
  EXPECT_THAT(ErrorOf(RunSimple("Pooling", PoolAttributes("max", 1, 0, 0, "valid"), data)),
              HasSubstr("stride"));
  EXPECT_THAT(ErrorOf(RunSimple("Pooling", PoolAttributes("lp", 1, 1, 0, "valid"), data)),
              HasSubstr("'lp' is not supported"));
}

// --- LRN -----------------------------------------------------------------------

TEST(LrnTest, AgreesWithTheFormula) {
  std::mt19937 random(7);
  for (const double beta : {0.75, 0.5, 1.0, 0.6}) {
    for (const int64_t nsize : {1, 3, 5, 9}) {
      const Tensor data = RandomTensor(random, {2, 6, 3, 4});
      const double alpha = 0.7, knorm = 1.5;
      Tensor expected = data;
      for (int64_t n = 0; n < 2; ++n) {
        for (int64_t c = 0; c < 6; ++c) {
          for (int64_t i = 0; i < 12; ++i) {
            double sum = 0;
            for (int64_t k = c - nsize / 2; k <= c + nsize / 2; ++k) {
              if (k < 0 || k >= 6) continue;
              const double x = data.values[static_cast<size_t>((n * 6 + k) * 12 + i)];
              sum += x * x;
            }
            float& y = expected.values[static_cast<size_t>((n * 6 + c) * 12 + i)];
            y = static_cast<float>(
                y * std::pow(knorm + alpha / static_cast<double>(nsize) * sum, -beta));
          }
        }
      }
      const Result<Tensor> out = RunSimple("LRN",
                                           {{"nsize", std::to_string(nsize)},
                                            {"alpha", "0.7"},
                                            {"beta", std::to_string(beta)},
                                            {"knorm", "1.5"}},
                                           data);
      ASSERT_TRUE(out.ok()) << ErrorOf(out);
      ExpectClose(*out, expected, 1e-6);
    }
  }
}

TEST(LrnTest, DefaultsAreMxnetsAndNotCaffes) {
  const Result<Tensor> out = RunSimple("LRN", {{"nsize", "1"}}, {{1, 1, 1, 1}, {100}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_NEAR(out->values[0], 100 * std::pow(2.0 + 1e-4 * 10000, -0.75), 1e-4);
  EXPECT_THAT(ErrorOf(RunSimple("LRN", {{"nsize", "4"}}, {{1, 1, 1, 1}, {1}})),
              HasSubstr("4 is even"));
}

// --- Softmax -------------------------------------------------------------------

Tensor NaiveSoftmax(const Tensor& data, int64_t outer, int64_t count, int64_t inner) {
  Tensor out = data;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < count; ++k) {
        sum += std::exp(double{data.values[static_cast<size_t>((o * count + k) * inner + i)]});
      }
      for (int64_t k = 0; k < count; ++k) {
        float& value = out.values[static_cast<size_t>((o * count + k) * inner + i)];
        value = static_cast<float>(std::exp(double{value}) / sum);
      }
    }
  }
  return out;
}

TEST(SoftmaxTest, ModesDifferInWhatSumsToOne) {
  std::mt19937 random(8);
  const Tensor data = RandomTensor(random, {2, 3, 4, 5});
  const struct {
    std::string op;
    Attributes attributes;
    bool label;
    int64_t outer, count, inner;
  } cases[] = {
      {"SoftmaxOutput", {}, true, 2, 60, 1},
      {"Softmax", {{"grad_scale", "1"}}, true, 2, 60, 1},
      {"SoftmaxOutput", {{"multi_output", "True"}}, true, 2, 3, 20},
      {"SoftmaxOutput", {{"preserve_shape", "True"}}, true, 24, 5, 1},
      {"softmax", {}, false, 24, 5, 1},
      {"softmax", {{"axis", "1"}}, false, 2, 3, 20},
      {"softmax", {{"axis", "-2"}}, false, 6, 4, 5},
      {"SoftmaxActivation", {}, false, 2, 60, 1},
      {"SoftmaxActivation", {{"mode", "channel"}}, false, 2, 3, 20},
  };
  for (const auto& test : cases) {
    const Result<Tensor> out = Compute({.op = test.op,
                                        .attributes = test.attributes,
                                        .inputs = {{"data", data}},
                                        .has_label = test.label});
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    SCOPED_TRACE(test.op);
    ExpectClose(*out, NaiveSoftmax(data, test.outer, test.count, test.inner), 1e-6);
  }
}

TEST(SoftmaxTest, DividesByTheTemperature) {
  const Result<Tensor> out =
      RunSimple("softmax", {{"temperature", "2.0"}}, {{1, 2}, {std::log(16.0f), 0.0f}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_NEAR(out->values[0], 0.8, 1e-6);
}

TEST(SoftmaxTest, SurvivesLargeValues) {
  const Result<Tensor> out = RunSimple("softmax", {}, {{1, 3}, {3e38f, 3e38f, -3e38f}});
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_THAT(out->values, ElementsAre(0.5f, 0.5f, 0.0f));
}

// --- Shapes --------------------------------------------------------------------

TEST(ShapeOperatorsTest, ReshapeCodes) {
  const Tensor data = Sequence({2, 3, 4});
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
    const Result<Tensor> out = RunSimple(
        "Reshape", {{"shape", test.shape}, {"reverse", test.reverse ? "True" : "False"}}, data);
    if (test.expected.empty()) {
      EXPECT_THAT(ErrorOf(out), HasSubstr("does not fit data")) << test.shape;
      continue;
    }
    ASSERT_TRUE(out.ok()) << test.shape << ": " << ErrorOf(out);
    EXPECT_EQ(out->shape, test.expected) << test.shape;
    EXPECT_EQ(out->values, data.values);
  }
}

TEST(ShapeOperatorsTest, LegacyReshapeKeepsTheHighestDimension) {
  const Result<Tensor> out = RunSimple(
      "Reshape", {{"target_shape", "(0, 0)"}, {"keep_highest", "True"}}, Sequence({2, 3, 4}));
  ASSERT_TRUE(out.ok()) << ErrorOf(out);
  EXPECT_EQ(out->shape, (Shape{2, 12}));
}

TEST(ShapeOperatorsTest, DropoutFlattenAndIdentityPassOn) {
  const Tensor data = Sequence({2, 3, 2, 1});
  for (const std::string op : {"Dropout", "identity", "_copy", "BlockGrad", "Flatten"}) {
    const Result<Tensor> out = RunSimple(op, {}, data);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    EXPECT_EQ(out->values, data.values) << op;
    EXPECT_EQ(out->shape, op == "Flatten" ? (Shape{2, 6}) : data.shape);
  }
  EXPECT_THAT(ErrorOf(RunSimple("Dropout", {{"mode", "always"}}, data)),
              HasSubstr("'always' is not supported"));
}

// --- Attributes ----------------------------------------------------------------

TEST(OperatorTest, UnknownOperatorsAndAttributesAreNamed) {
  const Tensor data = Sequence({1, 2});
  EXPECT_THAT(ErrorOf(RunSimple("Frobnicate", {}, data)),
              testing::AllOf(HasSubstr("'node' (Frobnicate)"), HasSubstr("Convolution"),
                             HasSubstr("SoftmaxOutput")));
  EXPECT_THAT(ErrorOf(RunSimple("Flatten", {{"axis", "1"}}, data)),
              HasSubstr("unknown attribute axis"));
  EXPECT_THAT(ErrorOf(RunSimple("FullyConnected", {{"num_hidden", "many"}}, data)),
              HasSubstr("num_hidden"));
  EXPECT_THAT(ErrorOf(RunSimple("FullyConnected", {}, data)), HasSubstr("num_hidden: is missing"));
  EXPECT_THAT(ErrorOf(RunSimple("FullyConnected", {{"num_hidden", "4"}}, data)),
              HasSubstr("has 1 inputs, 3 were expected (data, weight, bias)"));
}

}  // namespace
}  // namespace trims::predict

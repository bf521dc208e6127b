// For tests of kernels: one operator as a network of its own, run by the predictor.
// Header only; never used by the product.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "predict/test_network.h"

namespace trims::predict {

struct Tensor {
  Shape shape;
  std::vector<float> values;
};

struct OneOperator {
  std::string op;
  SymbolWriter::Attributes attributes;
  std::vector<std::pair<std::string, Tensor>> inputs;  // The first is data, the rest weights.
  bool followed_by_relu = false;
  bool pack_weights = false;
  bool has_label = false;
};

inline Result<Tensor> Compute(const OneOperator& test) {
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
inline Result<Tensor> RunSimple(const std::string& op, const SymbolWriter::Attributes& attributes,
                                const Tensor& data) {
  return Compute({.op = op, .attributes = attributes, .inputs = {{"data", data}}});
}

inline std::string ErrorOf(const Result<Tensor>& result) {
  return result.ok() ? "no error" : result.status().message();
}

inline Tensor RandomTensor(std::mt19937& random, const Shape& shape) {
  return {shape, RandomFloats(random, static_cast<size_t>(ElementCount(shape)))};
}

inline Tensor Sequence(const Shape& shape) {
  Tensor tensor{shape, {}};
  for (int64_t i = 0; i < ElementCount(shape); ++i) {
    tensor.values.push_back(static_cast<float>(i + 1));
  }
  return tensor;
}

// Relative to the largest value: sums that cancel have no relative precision.
inline void ExpectClose(const Tensor& actual, const Tensor& expected, double tolerance = 1e-5) {
  ASSERT_EQ(actual.shape, expected.shape);
  ASSERT_EQ(actual.values.size(), expected.values.size());
  double largest = 0;
  for (const float value : expected.values) largest = std::max(largest, std::fabs(double{value}));
  for (size_t i = 0; i < expected.values.size(); ++i) {
    ASSERT_NEAR(actual.values[i], expected.values[i], tolerance * largest) << "element " << i;
  }
}

inline std::string Tuple(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (const int64_t value : values) text += std::to_string(value) + ",";
  return text + ")";
}

}  // namespace trims::predict

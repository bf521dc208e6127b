#include "predict/op/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "predict/graph.h"
#include "predict/op/test_samples.h"

namespace trims::predict {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(OperatorRegistryTest, EveryDeclarationHasASampleAndNothingElseHas) {
  std::set<std::string_view> declared;
  for (const auto& [name, declaration] : OperatorRegistry::Get().declarations()) {
    EXPECT_EQ(name, declaration.name);
    declared.insert(name);
  }
  std::set<std::string_view> sampled;
  for (const OperatorSample& sample : OperatorSamples()) sampled.insert(sample.name);
  EXPECT_EQ(declared, sampled);
}

// Backends find kernels by Name(): it must not depend on how a file spelt the operator.
TEST(OperatorRegistryTest, EverySpellingMakesTheDeclaredOperator) {
  for (const OperatorSample& sample : OperatorSamples()) {
    const OperatorDeclaration& declaration = OperatorRegistry::Get().declarations().at(sample.name);
    std::vector<std::string_view> spellings = declaration.other_spellings;
    spellings.push_back(declaration.name);
    for (const std::string_view spelling : spellings) {
      const Result<std::shared_ptr<const Operator>> op =
          OperatorRegistry::Get().Create(std::string(spelling), sample.attributes);
      ASSERT_TRUE(op.ok()) << spelling << ": " << op.status().message();
      EXPECT_EQ((*op)->Name(), declaration.name) << spelling;
    }
  }
}

TEST(OperatorRegistryTest, ShapesOfEveryOperatorFollowFromItsData) {
  for (const OperatorSample& sample : OperatorSamples()) {
    SCOPED_TRACE(sample.name);
    const auto op =
        OperatorRegistry::Get().Create(std::string(sample.name), sample.attributes).value();
    std::vector<Shape> inputs(op->InputNames().size());
    ASSERT_FALSE(inputs.empty());
    inputs[0] = kSampleData;
    const Result<std::vector<Shape>> outputs = op->InferShapes(inputs);
    ASSERT_TRUE(outputs.ok()) << outputs.status().message();
    EXPECT_EQ(outputs->size(), op->OutputNames().size());
    for (const Shape& shape : inputs) EXPECT_TRUE(CheckShape(shape).ok());
    for (const Shape& shape : *outputs) EXPECT_TRUE(CheckShape(shape).ok());
    if (op->IsView()) {
      EXPECT_EQ(ElementCount(outputs->at(0)), ElementCount(inputs[0]));
    }
    EXPECT_GT(op->Work(inputs, *outputs), 0u);
  }
}

TEST(OperatorRegistryTest, SpellingsOf2018AreKnown) {
  std::map<std::string_view, std::vector<std::string_view>> legacy;
  for (const auto& [name, declaration] : OperatorRegistry::Get().declarations()) {
    if (!declaration.other_spellings.empty()) legacy[name] = declaration.other_spellings;
  }
  const std::map<std::string_view, std::vector<std::string_view>> expected = {
      {"Flatten", {"flatten"}},
      {"Reshape", {"reshape"}},
      {"SoftmaxOutput", {"Softmax"}},
      {"identity", {"_copy", "BlockGrad", "stop_gradient"}},
  };
  EXPECT_EQ(legacy, expected);
}

TEST(OperatorRegistryTest, AnUnknownOperatorNamesItsNodeAndThoseThatExist) {
  const Result<std::shared_ptr<const Graph>> graph = Graph::FromJson(
      R"({"nodes": [{"op": "null", "name": "data", "inputs": []},
                    {"op": "Frobnicate", "name": "node", "inputs": [[0, 0, 0]]}],
          "arg_nodes": [0], "heads": [[1, 0, 0]]})");
  ASSERT_FALSE(graph.ok());
  EXPECT_EQ(graph.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(graph.status().message(),
              AllOf(HasSubstr("'node' (Frobnicate)"), HasSubstr("Convolution"),
                    HasSubstr("SoftmaxOutput")));
}

}  // namespace
}  // namespace trims::predict

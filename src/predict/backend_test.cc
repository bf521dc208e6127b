#include "predict/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "predict/predictor.h"
#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::HasSubstr;

TEST(BackendTest, TheCpuIsAlwaysThere) { EXPECT_TRUE(OpenBackend({}, {}).ok()); }

TEST(BackendTest, AnAbsentGpuIsNamedAndNotReplaced) {
  const Result<std::unique_ptr<Backend>> backend =
      OpenBackend({.kind = DeviceKind::kGpu, .ordinal = 0}, {});
  EXPECT_EQ(backend.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(backend.status().message(), HasSubstr("no GPU backend"));
}

TEST(BackendTest, APredictorForAnAbsentDeviceIsRefused) {
  SymbolWriter writer;
  writer.Op("Activation", "node", {"data"}, {{"act_type", "relu"}});
  const auto graph = Graph::FromJson(writer.Json()).value();
  const auto weights = std::make_shared<MemoryWeights>();
  const Result<std::unique_ptr<Predictor>> predictor =
      Predictor::Create(graph, weights, {{"data", {1, 2}}}, {.device = {.kind = DeviceKind::kGpu}});
  EXPECT_EQ(predictor.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(predictor.status().message(), HasSubstr("no GPU backend"));
  EXPECT_EQ(weights->peak_internal_bytes(), 0u);
  EXPECT_TRUE(Predictor::Create(graph, weights, {{"data", {1, 2}}}, {}).ok());
}

}  // namespace
}  // namespace trims::predict

// The four softmaxes of MXNet. They differ only in which elements sum to one:
//
//   SoftmaxOutput, Softmax  by default all elements of one image; multi_output: the
//                           channels of one position; preserve_shape: the last axis.
//                           Their label is for training: never read, may be absent.
//   softmax                 along `axis`, the last by default, divided by temperature
//   SoftmaxActivation       mode instance: all elements of one image; channel: axis 1
#pragma once

#include <cstdint>

#include "predict/op/operator.h"

namespace trims::predict {

// What a kernel computes: the data seen as (outer, count, inner), of which each run
// along `count` sums to one after its elements were divided by `temperature`.
struct SoftmaxRuns {
  int64_t outer;
  int64_t count;
  int64_t inner;
  float temperature = 1.0f;
};

class SoftmaxOutput final : public Operator {
 public:
  static constexpr std::string_view kName = "SoftmaxOutput";

  SoftmaxOutput(bool multi_output, bool preserve_shape)
      : multi_output_(multi_output), preserve_shape_(preserve_shape) {}
  SoftmaxRuns Runs(const Shape& data) const;

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data", "label"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  bool CanOverwriteInput() const override { return true; }
  bool IgnoresInput(size_t index) const override { return index == 1; }

 private:
  const bool multi_output_;
  const bool preserve_shape_;
};

class Softmax final : public Operator {
 public:
  static constexpr std::string_view kName = "softmax";

  Softmax(int64_t axis, float temperature) : axis_(axis), temperature_(temperature) {}
  SoftmaxRuns Runs(const Shape& data) const;

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  bool CanOverwriteInput() const override { return true; }

 private:
  const int64_t axis_;  // From the end where below 0.
  const float temperature_;
};

class SoftmaxActivation final : public Operator {
 public:
  static constexpr std::string_view kName = "SoftmaxActivation";

  explicit SoftmaxActivation(bool channel) : channel_(channel) {}
  SoftmaxRuns Runs(const Shape& data) const;

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  bool CanOverwriteInput() const override { return true; }

 private:
  const bool channel_;
};

}  // namespace trims::predict

// FullyConnected: y = x·Wᵀ + b, with W as (hidden, inputs).
#pragma once

#include <cstdint>

#include "predict/op/operator.h"

namespace trims::predict {

struct FullyConnectedParameters {
  int64_t hidden = 1;
  bool has_bias = true;
  bool flatten = true;  // A row is one image; else the last axis.
};

// The data seen as a matrix of rows.
struct MatrixShape {
  int64_t rows;
  int64_t columns;
};

class FullyConnected final : public Operator {
 public:
  static constexpr std::string_view kName = "FullyConnected";

  explicit FullyConnected(const FullyConnectedParameters& parameters) : p_(parameters) {}
  const FullyConnectedParameters& parameters() const { return p_; }
  MatrixShape AsMatrix(const Shape& data) const;

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override;
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  uint64_t Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const override;

 private:
  const FullyConnectedParameters p_;
};

}  // namespace trims::predict

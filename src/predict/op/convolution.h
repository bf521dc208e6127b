// Convolution: cross-correlation over one, two or three spatial dimensions, with
// groups, stride, dilation and zero padding. Weights are (filters, channels / groups,
// kernel…), as files have them.
#pragma once

#include <cstdint>
#include <utility>

#include "predict/op/operator.h"

namespace trims::predict {

// One element of each tuple for each spatial dimension.
struct ConvolutionParameters {
  std::vector<int64_t> kernel;
  std::vector<int64_t> stride;
  std::vector<int64_t> dilate;  // 1: the kernel's cells are neighbours.
  std::vector<int64_t> pad;     // On both sides.
  int64_t filters = 1;
  int64_t groups = 1;
  bool has_bias = true;
};

class Convolution final : public Operator {
 public:
  static constexpr std::string_view kName = "Convolution";

  explicit Convolution(ConvolutionParameters parameters) : p_(std::move(parameters)) {}
  const ConvolutionParameters& parameters() const { return p_; }

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override;
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  uint64_t Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const override;

 private:
  const ConvolutionParameters p_;
};

}  // namespace trims::predict

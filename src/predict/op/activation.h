// Activation: one function of one number, element by element.
#pragma once

#include <cstdint>

#include "predict/op/operator.h"

namespace trims::predict {

enum class ActivationKind : uint8_t { kRelu, kSigmoid, kTanh, kSoftRelu, kSoftSign };

class Activation final : public Operator {
 public:
  static constexpr std::string_view kName = "Activation";

  explicit Activation(ActivationKind kind) : kind_(kind) {}
  ActivationKind kind() const { return kind_; }

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;
  bool CanOverwriteInput() const override { return true; }
  bool IsRelu() const override { return kind_ == ActivationKind::kRelu; }

 private:
  const ActivationKind kind_;
};

}  // namespace trims::predict

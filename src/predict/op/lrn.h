// LRN: local response normalisation across channels,
// y = x · (knorm + alpha / nsize · Σ x²)^(−beta), the sum over the nsize channels
// around each one, clipped at the ends.
#pragma once

#include <cstdint>

#include "predict/op/operator.h"

namespace trims::predict {

struct LrnParameters {
  int64_t nsize = 1;  // Odd.
  float alpha = 1e-4f;
  float beta = 0.75f;
  float knorm = 2.0f;
};

class Lrn final : public Operator {
 public:
  static constexpr std::string_view kName = "LRN";

  explicit Lrn(const LrnParameters& parameters) : p_(parameters) {}
  const LrnParameters& parameters() const { return p_; }

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;

 private:
  const LrnParameters p_;
};

}  // namespace trims::predict

#include "predict/op/fully_connected.h"

#include <memory>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

std::unique_ptr<Operator> ParseFullyConnected(AttributeReader& reader) {
  FullyConnectedParameters p;
  p.hidden = reader.RequiredInt("num_hidden", {1, kMaxDimension});
  p.has_bias = !reader.Bool("no_bias", false);
  p.flatten = reader.Bool("flatten", true);
  return std::make_unique<FullyConnected>(p);
}

}  // namespace

MatrixShape FullyConnected::AsMatrix(const Shape& data) const {
  const int64_t elements = ElementCount(data);
  const int64_t rows = p_.flatten ? data[0] : elements / data.back();
  return {rows, elements / rows};
}

std::vector<std::string> FullyConnected::InputNames() const {
  if (p_.has_bias) return {"data", "weight", "bias"};
  return {"data", "weight"};
}

// Each output element is a product with one row of the weights.
uint64_t FullyConnected::Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const {
  return static_cast<uint64_t>(ElementCount(outputs[0])) *
         static_cast<uint64_t>(ElementCount(inputs[1]) / inputs[1][0]);
}

Result<std::vector<Shape>> FullyConnected::InferShapes(std::span<Shape> inputs) const {
  const Shape& data = inputs[0];
  const MatrixShape matrix = AsMatrix(data);
  Shape out = {matrix.rows, p_.hidden};
  if (!p_.flatten) {
    out = data;
    out.back() = p_.hidden;
  }
  RETURN_IF_ERROR(SettleShape(inputs[1], {p_.hidden, matrix.columns}, "weight"));
  if (p_.has_bias) RETURN_IF_ERROR(SettleShape(inputs[2], {p_.hidden}, "bias"));
  RETURN_IF_ERROR(CheckShape(out));
  return std::vector<Shape>{out};
}

void AddFullyConnected(OperatorRegistry& registry) {
  registry.Add({.name = FullyConnected::kName, .parse = ParseFullyConnected});
}

}  // namespace trims::predict

#include "predict/op/shape.h"

namespace trims::predict {

std::string ShapeToString(std::span<const int64_t> shape) {
  if (shape.empty()) return "(unknown)";
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  if (shape.size() == 1) text += ",";
  return text + ")";
}

Status CheckShape(std::span<const int64_t> shape) {
  if (shape.empty() || shape.size() > kMaxShapeRank) {
    return InvalidArgumentError("a tensor has 1 to " + std::to_string(kMaxShapeRank) +
                                " dimensions, not " + std::to_string(shape.size()));
  }
  int64_t elements = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 1 || dimension > kMaxDimension) {
      return InvalidArgumentError("dimension " + std::to_string(dimension) + " of shape " +
                                  ShapeToString(shape) + " is outside [1, " +
                                  std::to_string(kMaxDimension) + "]");
    }
    if (elements > kMaxTensorElements / dimension) {
      return InvalidArgumentError("shape " + ShapeToString(shape) + " has more than " +
                                  std::to_string(kMaxTensorElements) + " elements");
    }
    elements *= dimension;
  }
  return OkStatus();
}

int64_t ElementCount(std::span<const int64_t> shape) {
  int64_t elements = 1;
  for (const int64_t dimension : shape) elements *= dimension;
  return elements;
}

}  // namespace trims::predict

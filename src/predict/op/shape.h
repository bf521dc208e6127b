// Tensor shapes as the graph and its kernels use them. Values; no thread rule.
//
// As in MXNet 1.2 every known dimension is at least 1 and the empty shape means
// "not known yet": networks of this family have neither scalars nor empty tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace trims::predict {

using Shape = std::vector<int64_t>;

inline constexpr int64_t kMaxDimension = INT32_MAX;  // What oneDNN's kernels index with.
inline constexpr int64_t kMaxTensorElements = int64_t{1} << 38;  // 1 TiB of float32.
inline constexpr size_t kMaxShapeRank = 12;                      // DNNL_MAX_NDIMS.

// "(1, 3, 224, 224)"; "(unknown)" for the empty shape.
std::string ShapeToString(std::span<const int64_t> shape);

// OK for a shape that a tensor may have: rank 1 to kMaxShapeRank, every dimension in
// [1, kMaxDimension], at most kMaxTensorElements elements.
Status CheckShape(std::span<const int64_t> shape);

// Product of the dimensions. Only for shapes that passed CheckShape.
int64_t ElementCount(std::span<const int64_t> shape);
inline uint64_t FloatBytes(std::span<const int64_t> shape) {
  return static_cast<uint64_t>(ElementCount(shape)) * sizeof(float);
}

}  // namespace trims::predict

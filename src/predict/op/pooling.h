// Pooling: max, average or sum over windows of one to three spatial dimensions,
// by MXNet's rules, which are not quite anybody else's:
//
//   'valid'  floor((size + 2·pad − kernel) / stride) + 1 windows
//   'full'   ceil(…) + 1 windows. The last one may overhang the padded image, and,
//            unlike in Caffe, is not dropped when it starts in the padding.
//   max      ignores whatever is outside the image. A window with nothing inside
//            yields the lowest finite float.
//   avg      divides by the window clipped to the PADDED image: padding counts in
//            the divisor, the overhang does not. count_include_pad=False (from
//            later versions) divides by what lies inside the image. A window that
//            begins where the padded image ends is 0/0: NaN, as in MXNet.
//
// MXNet's cuDNN path differs for overhanging averages (it divides by the whole
// kernel); we follow the CPU rule, on every backend.
#pragma once

#include <cstdint>
#include <utility>

#include "predict/op/operator.h"

namespace trims::predict {

enum class PoolKind : uint8_t { kMax, kAverage, kSum };

struct PoolingParameters {
  PoolKind kind = PoolKind::kMax;
  std::vector<int64_t> kernel;
  std::vector<int64_t> stride;
  std::vector<int64_t> pad;
  bool global = false;  // One window: the image. The tuples have no meaning.
  bool full = false;
  bool count_include_pad = true;
};

// One spatial dimension of a pooling.
struct PoolAxis {
  int64_t size = 1;
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t pad = 0;
  int64_t out = 1;
};

class Pooling final : public Operator {
 public:
  static constexpr std::string_view kName = "Pooling";

  explicit Pooling(PoolingParameters parameters) : p_(std::move(parameters)) {}
  const PoolingParameters& parameters() const { return p_; }
  // For data that InferShapes() accepted.
  std::vector<PoolAxis> Axes(const Shape& data) const;

  std::string_view Name() const override { return kName; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override;

 private:
  const PoolingParameters p_;
};

}  // namespace trims::predict

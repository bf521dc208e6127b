#include "predict/op/lrn.h"

#include <algorithm>
#include <cmath>

#include "predict/cpu/kernels.h"

namespace trims::predict {
namespace {

class LrnKernel final : public Kernel {
 public:
  LrnKernel(const LrnParameters& parameters, const Shape& shape)
      : p_(parameters),
        batch_(shape[0]),
        channels_(shape[1]),
        plane_(ElementCount(shape) / shape[0] / shape[1]) {}

  uint64_t scratch_bytes() const override { return static_cast<uint64_t>(plane_) * sizeof(float); }

  // Each window is summed afresh: a sliding sum would be cheaper by a factor of
  // nsize / 2, but lets rounding errors of large activations leak into small ones.
  Status Run(const KernelArguments& arguments) override {
    auto* const sum = reinterpret_cast<float*>(arguments.scratch);
    const int64_t half = p_.nsize / 2;
    const float scale = p_.alpha / static_cast<float>(p_.nsize);
    for (int64_t n = 0; n < batch_; ++n) {
      const float* image = arguments.In<float>(0) + n * channels_ * plane_;
      float* out_image = arguments.Out<float>(0) + n * channels_ * plane_;
      for (int64_t c = 0; c < channels_; ++c) {
        const int64_t first = std::max<int64_t>(0, c - half);
        const int64_t last = std::min(channels_ - 1, c + half);
        std::fill(sum, sum + plane_, 0.0f);
        for (int64_t k = first; k <= last; ++k) {
          const float* x = image + k * plane_;
          for (int64_t i = 0; i < plane_; ++i) sum[i] += x[i] * x[i];
        }
        const float* x = image + c * plane_;
        float* y = out_image + c * plane_;
        if (p_.beta == 0.75f) {
          // t^(-3/4) is 1 / (√t · √√t): vector instructions instead of powf.
          for (int64_t i = 0; i < plane_; ++i) {
            const float root = std::sqrt(p_.knorm + scale * sum[i]);
            y[i] = x[i] / (root * std::sqrt(root));
          }
        } else {
          for (int64_t i = 0; i < plane_; ++i) {
            y[i] = x[i] * std::pow(p_.knorm + scale * sum[i], -p_.beta);
          }
        }
      }
    }
    return OkStatus();
  }

 private:
  const LrnParameters p_;
  const int64_t batch_;
  const int64_t channels_;
  const int64_t plane_;
};

}  // namespace

std::unique_ptr<Kernel> BuildLrn(const KernelRequest& request, const BackendOptions&) {
  return std::make_unique<LrnKernel>(As<Lrn>(request.op).parameters(), request.inputs[0]);
}

}  // namespace trims::predict

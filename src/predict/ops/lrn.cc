// LRN: local response normalisation across channels,
// y = x · (knorm + alpha / nsize · Σ x²)^(−beta), the sum over the nsize channels
// around each one, clipped at the ends.
#include <algorithm>
#include <cmath>

#include "predict/ops/families.h"

namespace trims::predict {
namespace {

struct LrnParameters {
  int64_t nsize = 1;
  float alpha = 1e-4f;
  float beta = 0.75f;
  float knorm = 2.0f;
};

class LrnKernel final : public CpuKernel {
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
      const float* image = arguments.inputs[0] + n * channels_ * plane_;
      float* out_image = arguments.outputs[0] + n * channels_ * plane_;
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

class Lrn final : public Operator {
 public:
  explicit Lrn(const LrnParameters& parameters) : p_(parameters) {}

  std::vector<std::string> InputNames() const override { return {"data"}; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    RETURN_IF_ERROR(ExpectRank(inputs[0], 4, 4));
    return std::vector<Shape>{inputs[0]};
  }
  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    return std::unique_ptr<CpuKernel>(std::make_unique<LrnKernel>(p_, request.inputs[0]));
  }

 private:
  const LrnParameters p_;
};

std::unique_ptr<Operator> ParseLrn(AttributeReader& reader) {
  LrnParameters p;
  p.nsize = reader.RequiredInt("nsize", {1, 1'000'001});
  p.alpha = static_cast<float>(reader.Float("alpha", 1e-4));
  p.beta = static_cast<float>(reader.Float("beta", 0.75));
  p.knorm = static_cast<float>(reader.Float("knorm", 2.0));
  if (p.nsize % 2 == 0) {
    reader.Fail("attribute nsize: " + std::to_string(p.nsize) +
                " is even; the window has a middle channel, so it must be odd");
  }
  return std::make_unique<Lrn>(p);
}

}  // namespace

void AddLrn(OperatorRegistry& registry) { registry.Add({"LRN"}, ParseLrn); }

}  // namespace trims::predict

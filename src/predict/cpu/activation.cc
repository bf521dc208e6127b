// relu usually does not run here: the executor has it fused into the kernel before.
#include "predict/op/activation.h"

#include <cmath>

#include "predict/cpu/kernels.h"

namespace trims::predict {
namespace {

struct Relu {
  float operator()(float x) const { return x > 0.0f ? x : 0.0f; }
};
struct Sigmoid {
  float operator()(float x) const { return 1.0f / (1.0f + std::exp(-x)); }
};
struct Tanh {
  float operator()(float x) const { return std::tanh(x); }
};
struct SoftRelu {
  // Above 20 the logarithm equals x in float32, and exp would overflow later on.
  float operator()(float x) const { return x > 20.0f ? x : std::log1p(std::exp(x)); }
};
struct SoftSign {
  float operator()(float x) const { return x / (1.0f + std::fabs(x)); }
};

template <typename Function>
class ElementwiseKernel final : public Kernel {
 public:
  explicit ElementwiseKernel(int64_t elements) : elements_(elements) {}
  Status Run(const KernelArguments& arguments) override {
    const float* in = arguments.In<float>(0);
    float* out = arguments.Out<float>(0);
    for (int64_t i = 0; i < elements_; ++i) out[i] = Function()(in[i]);
    return OkStatus();
  }

 private:
  const int64_t elements_;
};

}  // namespace

std::unique_ptr<Kernel> BuildActivation(const KernelRequest& request, const BackendOptions&) {
  const int64_t elements = ElementCount(request.inputs[0]);
  switch (As<Activation>(request.op).kind()) {
    case ActivationKind::kRelu:
      return std::make_unique<ElementwiseKernel<Relu>>(elements);
    case ActivationKind::kSigmoid:
      return std::make_unique<ElementwiseKernel<Sigmoid>>(elements);
    case ActivationKind::kTanh:
      return std::make_unique<ElementwiseKernel<Tanh>>(elements);
    case ActivationKind::kSoftRelu:
      return std::make_unique<ElementwiseKernel<SoftRelu>>(elements);
    case ActivationKind::kSoftSign:
      return std::make_unique<ElementwiseKernel<SoftSign>>(elements);
  }
  return nullptr;  // Not reached: the switch names every kind.
}

}  // namespace trims::predict

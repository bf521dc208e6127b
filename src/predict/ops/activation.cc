// Activation: one function of one number, element by element. relu usually does
// not run here: the executor fuses it into the kernel before it.
#include <cmath>

#include "predict/ops/families.h"

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
class ElementwiseKernel final : public CpuKernel {
 public:
  explicit ElementwiseKernel(int64_t elements) : elements_(elements) {}
  Status Run(const KernelArguments& arguments) override {
    const float* in = arguments.inputs[0];
    float* out = arguments.outputs[0];
    for (int64_t i = 0; i < elements_; ++i) out[i] = Function()(in[i]);
    return OkStatus();
  }

 private:
  const int64_t elements_;
};

class Activation final : public Operator {
 public:
  explicit Activation(std::string kind) : kind_(std::move(kind)) {}

  std::vector<std::string> InputNames() const override { return {"data"}; }
  bool CanOverwriteInput() const override { return true; }
  bool IsRelu() const override { return kind_ == "relu"; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    return std::vector<Shape>{inputs[0]};
  }

  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    const int64_t elements = ElementCount(request.inputs[0]);
    if (kind_ == "relu") return Make<Relu>(elements);
    if (kind_ == "sigmoid") return Make<Sigmoid>(elements);
    if (kind_ == "tanh") return Make<Tanh>(elements);
    if (kind_ == "softrelu") return Make<SoftRelu>(elements);
    TRIMS_CHECK(kind_ == "softsign");
    return Make<SoftSign>(elements);
  }

 private:
  template <typename Function>
  static std::unique_ptr<CpuKernel> Make(int64_t elements) {
    return std::make_unique<ElementwiseKernel<Function>>(elements);
  }

  const std::string kind_;
};

std::unique_ptr<Operator> ParseActivation(AttributeReader& reader) {
  return std::make_unique<Activation>(
      reader.RequiredChoice("act_type", {"relu", "sigmoid", "tanh", "softrelu", "softsign"}));
}

}  // namespace

void AddActivation(OperatorRegistry& registry) { registry.Add({"Activation"}, ParseActivation); }

}  // namespace trims::predict

#include "predict/op/softmax.h"

#include <algorithm>
#include <cmath>

#include "predict/cpu/kernels.h"

namespace trims::predict {
namespace {

class SoftmaxKernel final : public Kernel {
 public:
  explicit SoftmaxKernel(const SoftmaxRuns& runs) : runs_(runs) {}

  Status Run(const KernelArguments& arguments) override {
    const float* in = arguments.In<float>(0);
    float* out = arguments.Out<float>(0);
    for (int64_t o = 0; o < runs_.outer; ++o) {
      for (int64_t i = 0; i < runs_.inner; ++i) {
        const int64_t start = o * runs_.count * runs_.inner + i;
        Normalise(in + start, out + start);
      }
    }
    return OkStatus();
  }

 private:
  // The largest element is subtracted first, so that exp cannot overflow.
  void Normalise(const float* in, float* out) const {
    const int64_t end = runs_.count * runs_.inner;
    float highest = in[0];
    for (int64_t k = 0; k < end; k += runs_.inner) highest = std::max(highest, in[k]);
    double sum = 0.0;
    for (int64_t k = 0; k < end; k += runs_.inner) {
      out[k] = std::exp((in[k] - highest) / runs_.temperature);
      sum += out[k];
    }
    const auto scale = static_cast<float>(1.0 / sum);
    for (int64_t k = 0; k < end; k += runs_.inner) out[k] *= scale;
  }

  const SoftmaxRuns runs_;
};

template <typename Class>
std::unique_ptr<Kernel> Build(const KernelRequest& request) {
  return std::make_unique<SoftmaxKernel>(As<Class>(request.op).Runs(request.inputs[0]));
}

}  // namespace

std::unique_ptr<Kernel> BuildSoftmaxOutput(const KernelRequest& request, const BackendOptions&) {
  return Build<SoftmaxOutput>(request);
}
std::unique_ptr<Kernel> BuildSoftmax(const KernelRequest& request, const BackendOptions&) {
  return Build<Softmax>(request);
}
std::unique_ptr<Kernel> BuildSoftmaxActivation(const KernelRequest& request,
                                               const BackendOptions&) {
  return Build<SoftmaxActivation>(request);
}

}  // namespace trims::predict

// The four softmaxes of MXNet. They differ only in which elements sum to one:
//
//   SoftmaxOutput, Softmax  by default all elements of one image; multi_output: the
//                           channels of one position; preserve_shape: the last axis.
//                           Their label is for training: never read, may be absent.
//   softmax                 along `axis`, the last by default, divided by temperature
//   SoftmaxActivation       mode instance: all elements of one image; channel: axis 1
#include <algorithm>
#include <cmath>

#include "predict/ops/families.h"

namespace trims::predict {
namespace {

// The data seen as (outer, count, inner); each run along `count` sums to one.
struct SoftmaxView {
  int64_t outer;
  int64_t count;
  int64_t inner;
};

SoftmaxView AlongAxis(const Shape& shape, size_t axis) {
  const std::span<const int64_t> dims(shape);
  return {ElementCount(dims.first(axis)), shape[axis], ElementCount(dims.subspan(axis + 1))};
}
SoftmaxView OverImage(const Shape& shape) { return {shape[0], ElementCount(shape) / shape[0], 1}; }

class SoftmaxKernel final : public CpuKernel {
 public:
  SoftmaxKernel(SoftmaxView view, float temperature) : view_(view), temperature_(temperature) {}

  Status Run(const KernelArguments& arguments) override {
    const float* in = arguments.inputs[0];
    float* out = arguments.outputs[0];
    for (int64_t o = 0; o < view_.outer; ++o) {
      for (int64_t i = 0; i < view_.inner; ++i) {
        const int64_t start = o * view_.count * view_.inner + i;
        Normalise(in + start, out + start);
      }
    }
    return OkStatus();
  }

 private:
  // The largest element is subtracted first, so that exp cannot overflow.
  void Normalise(const float* in, float* out) const {
    const int64_t end = view_.count * view_.inner;
    float highest = in[0];
    for (int64_t k = 0; k < end; k += view_.inner) highest = std::max(highest, in[k]);
    double sum = 0.0;
    for (int64_t k = 0; k < end; k += view_.inner) {
      out[k] = std::exp((in[k] - highest) / temperature_);
      sum += out[k];
    }
    const auto scale = static_cast<float>(1.0 / sum);
    for (int64_t k = 0; k < end; k += view_.inner) out[k] *= scale;
  }

  const SoftmaxView view_;
  const float temperature_;
};

std::unique_ptr<CpuKernel> MakeKernel(SoftmaxView view, float temperature = 1.0f) {
  return std::make_unique<SoftmaxKernel>(view, temperature);
}

class SoftmaxOutput final : public Operator {
 public:
  SoftmaxOutput(bool multi_output, bool preserve_shape)
      : multi_output_(multi_output), preserve_shape_(preserve_shape) {}

  std::vector<std::string> InputNames() const override { return {"data", "label"}; }
  bool CanOverwriteInput() const override { return true; }
  bool IgnoresInput(size_t index) const override { return index == 1; }

  // A label's shape is only filled in, never checked: nothing reads the label.
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    const Shape& data = inputs[0];
    if (multi_output_) RETURN_IF_ERROR(ExpectRank(data, 2, kMaxShapeRank));
    if (inputs[1].empty()) {
      inputs[1] = data;
      inputs[1].erase(multi_output_ ? inputs[1].begin() + 1 : inputs[1].end() - 1);
      if (inputs[1].empty()) inputs[1] = {1};
    }
    return std::vector<Shape>{data};
  }

  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    const Shape& data = request.inputs[0];
    if (multi_output_) return MakeKernel(AlongAxis(data, 1));
    if (preserve_shape_) return MakeKernel(AlongAxis(data, data.size() - 1));
    return MakeKernel(OverImage(data));
  }

 private:
  const bool multi_output_;
  const bool preserve_shape_;
};

class Softmax final : public Operator {
 public:
  Softmax(int64_t axis, double temperature)
      : axis_(axis), temperature_(static_cast<float>(temperature)) {}

  std::vector<std::string> InputNames() const override { return {"data"}; }
  bool CanOverwriteInput() const override { return true; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    const auto rank = static_cast<int64_t>(inputs[0].size());
    if (axis_ < -rank || axis_ >= rank) {
      return InvalidArgumentError("axis " + std::to_string(axis_) +
                                  " does not exist in data of shape " + ShapeToString(inputs[0]));
    }
    return std::vector<Shape>{inputs[0]};
  }
  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    const Shape& data = request.inputs[0];
    const auto rank = static_cast<int64_t>(data.size());
    return MakeKernel(AlongAxis(data, static_cast<size_t>(axis_ < 0 ? axis_ + rank : axis_)),
                      temperature_);
  }

 private:
  const int64_t axis_;
  const float temperature_;
};

class SoftmaxActivation final : public Operator {
 public:
  explicit SoftmaxActivation(bool channel) : channel_(channel) {}

  std::vector<std::string> InputNames() const override { return {"data"}; }
  bool CanOverwriteInput() const override { return true; }
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    if (channel_) RETURN_IF_ERROR(ExpectRank(inputs[0], 3, kMaxShapeRank));
    return std::vector<Shape>{inputs[0]};
  }
  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    const Shape& data = request.inputs[0];
    return MakeKernel(channel_ ? AlongAxis(data, 1) : OverImage(data));
  }

 private:
  const bool channel_;
};

std::unique_ptr<Operator> ParseSoftmaxOutput(AttributeReader& reader) {
  const bool multi_output = reader.Bool("multi_output", false);
  const bool preserve_shape = reader.Bool("preserve_shape", false);
  reader.Ignore(
      {"grad_scale", "ignore_label", "use_ignore", "normalization", "out_grad", "smooth_alpha"});
  return std::make_unique<SoftmaxOutput>(multi_output, preserve_shape);
}

std::unique_ptr<Operator> ParseSoftmax(AttributeReader& reader) {
  const int64_t axis = reader.Int("axis", -1, {-16, 15});
  double temperature = 1.0;
  if (reader.Has("temperature")) temperature = reader.Float("temperature", 1.0);
  if (!(temperature > 0.0)) reader.Fail("attribute temperature must be above 0");
  reader.Ignore({"temperature"});
  return std::make_unique<Softmax>(axis, temperature);
}

std::unique_ptr<Operator> ParseSoftmaxActivation(AttributeReader& reader) {
  return std::make_unique<SoftmaxActivation>(reader.Choice("mode", {"instance", "channel"}) ==
                                             "channel");
}

}  // namespace

void AddSoftmax(OperatorRegistry& registry) {
  registry.Add({"SoftmaxOutput", "Softmax"}, ParseSoftmaxOutput);
  registry.Add({"softmax"}, ParseSoftmax);
  registry.Add({"SoftmaxActivation"}, ParseSoftmaxActivation);
}

}  // namespace trims::predict

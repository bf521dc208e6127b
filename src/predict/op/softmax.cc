#include "predict/op/softmax.h"

#include <memory>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

SoftmaxRuns AlongAxis(const Shape& shape, size_t axis) {
  const std::span<const int64_t> dims(shape);
  return {ElementCount(dims.first(axis)), shape[axis], ElementCount(dims.subspan(axis + 1))};
}
SoftmaxRuns OverImage(const Shape& shape) { return {shape[0], ElementCount(shape) / shape[0], 1}; }

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
  return std::make_unique<Softmax>(axis, static_cast<float>(temperature));
}

std::unique_ptr<Operator> ParseSoftmaxActivation(AttributeReader& reader) {
  return std::make_unique<SoftmaxActivation>(reader.Choice("mode", {"instance", "channel"}) ==
                                             "channel");
}

}  // namespace

SoftmaxRuns SoftmaxOutput::Runs(const Shape& data) const {
  if (multi_output_) return AlongAxis(data, 1);
  if (preserve_shape_) return AlongAxis(data, data.size() - 1);
  return OverImage(data);
}

// A label's shape is only filled in, never checked: nothing reads the label.
Result<std::vector<Shape>> SoftmaxOutput::InferShapes(std::span<Shape> inputs) const {
  const Shape& data = inputs[0];
  if (multi_output_) RETURN_IF_ERROR(ExpectRank(data, 2, kMaxShapeRank));
  if (inputs[1].empty()) {
    inputs[1] = data;
    inputs[1].erase(multi_output_ ? inputs[1].begin() + 1 : inputs[1].end() - 1);
    if (inputs[1].empty()) inputs[1] = {1};
  }
  return std::vector<Shape>{data};
}

SoftmaxRuns Softmax::Runs(const Shape& data) const {
  const auto rank = static_cast<int64_t>(data.size());
  SoftmaxRuns runs = AlongAxis(data, static_cast<size_t>(axis_ < 0 ? axis_ + rank : axis_));
  runs.temperature = temperature_;
  return runs;
}

Result<std::vector<Shape>> Softmax::InferShapes(std::span<Shape> inputs) const {
  const auto rank = static_cast<int64_t>(inputs[0].size());
  if (axis_ < -rank || axis_ >= rank) {
    return InvalidArgumentError("axis " + std::to_string(axis_) +
                                " does not exist in data of shape " + ShapeToString(inputs[0]));
  }
  return std::vector<Shape>{inputs[0]};
}

SoftmaxRuns SoftmaxActivation::Runs(const Shape& data) const {
  return channel_ ? AlongAxis(data, 1) : OverImage(data);
}

Result<std::vector<Shape>> SoftmaxActivation::InferShapes(std::span<Shape> inputs) const {
  if (channel_) RETURN_IF_ERROR(ExpectRank(inputs[0], 3, kMaxShapeRank));
  return std::vector<Shape>{inputs[0]};
}

void AddSoftmax(OperatorRegistry& registry) {
  registry.Add(
      {.name = SoftmaxOutput::kName, .parse = ParseSoftmaxOutput, .other_spellings = {"Softmax"}});
  registry.Add({.name = Softmax::kName, .parse = ParseSoftmax});
  registry.Add({.name = SoftmaxActivation::kName, .parse = ParseSoftmaxActivation});
}

}  // namespace trims::predict

#include "predict/predictor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/limits.h"
#include "base/round.h"
#include "format/mxnet_symbol.h"

namespace trims::predict {
namespace {

// A variable whose weight can not be used where it lies.
struct Conversion {
  uint32_t node;
  std::optional<Weight> weight;  // Absent: zeros.
  int64_t elements;
  uint64_t offset;
};

Result<bool> BoolVariable(const char* name, bool default_value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return default_value;
  const Result<bool> value = format::ParseBoolAttribute(text);
  if (!value.ok()) {
    return InvalidArgumentError(std::string(name) + "='" + text +
                                "': true, false, 1 or 0 was expected");
  }
  return *value;
}

}  // namespace

Result<PredictorOptions> PredictorOptions::FromEnvironment() {
  PredictorOptions options;
  ASSIGN_OR_RETURN(options.allow_missing, BoolVariable("TRIMS_PREDICT_ALLOW_MISSING", false));
  ASSIGN_OR_RETURN(options.pack_weights, BoolVariable("TRIMS_PREDICT_PACK", false));
  return options;
}

Result<std::unique_ptr<Predictor>> Predictor::Create(std::shared_ptr<const Graph> graph,
                                                     std::shared_ptr<WeightProvider> weights,
                                                     const InputShapes& inputs,
                                                     const PredictorOptions& options) {
  if (!options.outputs.empty()) {
    ASSIGN_OR_RETURN(graph, graph->WithOutputs(options.outputs));
  }
  std::unique_ptr<Predictor> predictor(
      new Predictor(std::move(graph), std::move(weights), inputs, options));
  RETURN_IF_ERROR(predictor->Bind());
  return predictor;
}

Status Predictor::Bind() {
  const std::vector<GraphNode>& nodes = graph_->nodes();
  ASSIGN_OR_RETURN(GraphShapes shapes, InferShapes(*graph_, inputs_));
  const std::vector<bool> required = RequiredNodes(*graph_);
  bindings_.resize(nodes.size());
  variable_elements_.resize(nodes.size(), 0);

  std::vector<Conversion> conversions;
  uint64_t converted_bytes = 0;
  std::string missing;
  size_t missing_count = 0;
  for (uint32_t i = 0; i < nodes.size(); ++i) {
    if (!nodes[i].is_variable()) continue;
    const Shape& shape = shapes[i][0];
    const int64_t elements = ElementCount(shape);
    variable_elements_[i] = elements;
    if (!required[i]) continue;
    std::optional<Weight> weight = FindWeight(*weights_, nodes[i].name);
    if (!weight && inputs_.contains(nodes[i].name)) {
      bindings_[i].kind = VariableBinding::Kind::kInput;
      continue;
    }
    if (weight && weight->shape != shape) {
      return InvalidArgumentError("parameter '" + nodes[i].name + "' has shape " +
                                  ShapeToString(weight->shape) + " in " + weights_->Describe() +
                                  ", and the graph needs " + ShapeToString(shape) +
                                  " for these inputs");
    }
    bindings_[i].kind = VariableBinding::Kind::kWeight;
    if (weight && weight->dtype == DType::kF32 &&
        reinterpret_cast<uintptr_t>(weight->bytes) % alignof(float) == 0) {
      // SAFETY: float32 elements at an aligned address, as many as the shape says;
      // read only.
      TRIMS_CHECK(weight->size_bytes == FloatBytes(shape));
      bindings_[i].address = reinterpret_cast<const float*>(weight->bytes);
      continue;
    }
    if (!weight && !options_.allow_missing) {
      if (++missing_count <= 20) missing += (missing.empty() ? "" : ", ") + nodes[i].name;
      continue;
    }
    conversions.push_back({i, weight, elements, converted_bytes});
    converted_bytes += RoundUp(FloatBytes(shape), kTensorAlignment);
  }
  if (missing_count > 0) {
    if (missing_count > 20) missing += " and " + std::to_string(missing_count - 20) + " more";
    return NotFoundError(weights_->Describe() + " lacks " + std::to_string(missing_count) +
                         " parameter(s) of the graph: " + missing +
                         ". Is it the right file for this graph? An input among them needs a "
                         "shape; TRIMS_PREDICT_ALLOW_MISSING=1 takes the missing ones as zero");
  }

  ASSIGN_OR_RETURN(converted_, AnonymousMemory::Allocate(converted_bytes, "converted parameters"));
  for (const Conversion& conversion : conversions) {
    auto* const out = reinterpret_cast<float*>(converted_.data() + conversion.offset);
    if (conversion.weight) {
      const Status status = ConvertToFloat(conversion.weight->dtype, conversion.weight->bytes,
                                           static_cast<size_t>(conversion.elements), out);
      if (!status.ok()) {
        return Status(status.code(), "parameter '" + nodes[conversion.node].name + "' of " +
                                         weights_->Describe() + ": " + status.message());
      }
    }
    bindings_[conversion.node].address = out;
  }
  RETURN_IF_ERROR(converted_.MakeReadOnly());

  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                   OpenBackend(options_.device, {.pack_weights = options_.pack_weights}));
  ASSIGN_OR_RETURN(executor_,
                   Executor::Build(graph_, std::move(shapes), bindings_, std::move(backend)));
  weights_->AddInternalBytes(private_bytes());
  return OkStatus();
}

Predictor::~Predictor() {
  if (executor_) weights_->RemoveInternalBytes(private_bytes());
}

Result<std::unique_ptr<Predictor>> Predictor::Reshape(const InputShapes& inputs) const {
  InputShapes shapes = inputs_;
  for (const auto& [name, shape] : inputs) {
    const std::optional<uint32_t> node = graph_->FindVariable(name);
    if (!node) return NotFoundError("the graph has no input '" + name + "'");
    shapes[name] = shape;
  }
  std::unique_ptr<Predictor> predictor(
      new Predictor(graph_, weights_, std::move(shapes), options_));
  RETURN_IF_ERROR(predictor->Bind());
  return predictor;
}

Status Predictor::SetInput(std::string_view name, std::span<const float> values) {
  const std::optional<uint32_t> node = graph_->FindVariable(name);
  if (!node) {
    std::string names;
    for (uint32_t i = 0; i < bindings_.size(); ++i) {
      if (bindings_[i].kind != VariableBinding::Kind::kInput) continue;
      names += (names.empty() ? "" : ", ") + graph_->nodes()[i].name;
    }
    return NotFoundError("the graph has no input '" + std::string(name) + "'; its inputs are " +
                         names);
  }
  if (bindings_[*node].kind == VariableBinding::Kind::kWeight) {
    return PermissionDeniedError("'" + std::string(name) +
                                 "' is a parameter of the model: shared weights are read-only and "
                                 "can not be set");
  }
  if (values.size() != static_cast<size_t>(variable_elements_[*node])) {
    return InvalidArgumentError("input '" + std::string(name) + "' has " +
                                std::to_string(variable_elements_[*node]) + " elements, " +
                                std::to_string(values.size()) + " were given");
  }
  if (bindings_[*node].kind == VariableBinding::Kind::kInput) {
    return executor_->SetInput(*node, values);
  }
  return OkStatus();
}

Status Predictor::Forward() {
  RETURN_IF_ERROR(executor_->Forward());
  has_run_ = true;
  return OkStatus();
}

Result<int> Predictor::PartialForward(int step) {
  const auto count = static_cast<int>(executor_->step_count());
  if (step < 0 || step >= count) return 0;
  RETURN_IF_ERROR(executor_->RunStep(static_cast<uint32_t>(step)));
  has_run_ = true;
  return count - step - 1;
}

Result<Shape> Predictor::OutputShape(size_t index) const {
  if (index >= output_count()) {
    return OutOfRangeError("output " + std::to_string(index) + " does not exist; there are " +
                           std::to_string(output_count()));
  }
  return executor_->OutputShape(index);
}

Result<std::span<const float>> Predictor::PeekOutput(size_t index) const {
  RETURN_IF_ERROR(OutputShape(index).status());
  if (!has_run_) return FailedPreconditionError("there is no output before the first Forward");
  return executor_->Output(index);
}

Status Predictor::GetOutput(size_t index, std::span<float> out) const {
  ASSIGN_OR_RETURN(const std::span<const float> values, PeekOutput(index));
  if (out.size() != values.size()) {
    return InvalidArgumentError("output " + std::to_string(index) + " has " +
                                std::to_string(values.size()) + " elements, room for " +
                                std::to_string(out.size()) + " was given");
  }
  std::memcpy(out.data(), values.data(), values.size_bytes());
  return OkStatus();
}

}  // namespace trims::predict

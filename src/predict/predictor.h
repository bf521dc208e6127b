// A network ready to run: graph, shapes, weights and an executor.
//
// Weights are bound in place; only a tensor that is not float32, or not aligned
// to 4 bytes, is converted into a private copy, which private_bytes() counts.
// Thread-compatible: one thread at a time per predictor. Predictors that share a
// graph or weights are independent. On a CPU, kernels run on oneDNN's threads: one per
// core, or OMP_NUM_THREADS. That thread pool does not survive fork(): create predictors
// in the process that runs them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/backend.h"
#include "predict/executor.h"
#include "predict/graph.h"
#include "predict/weights.h"

namespace trims::predict {

using InputShapes = std::map<std::string, Shape, std::less<>>;

struct PredictorOptions {
  // Compute these outputs instead of the graph's (Graph::WithOutputs).
  std::vector<std::string> outputs;
  // A parameter that the weights lack is zero instead of an error. MXNet leaves
  // such arrays uninitialised. TRIMS_PREDICT_ALLOW_MISSING=1.
  bool allow_missing = false;
  // Private, faster copies of convolution weights. TRIMS_PREDICT_PACK=1.
  bool pack_weights = false;
  // What computes. UNIMPLEMENTED from Create if this build has no backend for it.
  Device device = {};

  // With the two variables applied; INVALID_ARGUMENT names one that is not a boolean.
  static Result<PredictorOptions> FromEnvironment();
};

class Predictor final {
 public:
  // `inputs` gives the shapes of the graph's inputs; everything else follows.
  // NOT_FOUND lists the parameters that `weights` lacks.
  static Result<std::unique_ptr<Predictor>> Create(std::shared_ptr<const Graph> graph,
                                                   std::shared_ptr<WeightProvider> weights,
                                                   const InputShapes& inputs,
                                                   const PredictorOptions& options);
  ~Predictor();
  Predictor(const Predictor&) = delete;
  Predictor& operator=(const Predictor&) = delete;

  // Another predictor over the same weights, with these inputs' shapes replaced.
  // This one stays as it is.
  Result<std::unique_ptr<Predictor>> Reshape(const InputShapes& inputs) const;

  // PERMISSION_DENIED for a weight: those are shared and read-only. Values for an
  // input that inference ignores (a label) are checked and dropped.
  Status SetInput(std::string_view name, std::span<const float> values);
  Status Forward();
  // Runs step `step` (0, 1, …) and returns how many are left; 0 past the end.
  Result<int> PartialForward(int step);

  size_t output_count() const { return graph_->heads().size(); }
  // OUT_OF_RANGE for an index that does not exist.
  Result<Shape> OutputShape(size_t index) const;
  // FAILED_PRECONDITION before the first Forward(). Valid until the next one.
  Result<std::span<const float>> PeekOutput(size_t index) const;
  // INVALID_ARGUMENT unless `out` has exactly the output's number of elements.
  Status GetOutput(size_t index, std::span<float> out) const;

  // Memory of this predictor alone, weights that are used in place not included.
  uint64_t private_bytes() const { return executor_->private_bytes() + converted_.size(); }

 private:
  Predictor(std::shared_ptr<const Graph> graph, std::shared_ptr<WeightProvider> weights,
            InputShapes inputs, PredictorOptions options)
      : graph_(std::move(graph)),
        weights_(std::move(weights)),
        inputs_(std::move(inputs)),
        options_(std::move(options)) {}
  Status Bind();

  const std::shared_ptr<const Graph> graph_;
  const std::shared_ptr<WeightProvider> weights_;
  const InputShapes inputs_;
  const PredictorOptions options_;
  std::vector<VariableBinding> bindings_;
  std::vector<int64_t> variable_elements_;  // Per node.
  AnonymousMemory converted_;               // Private float32 copies, and zeros.
  std::unique_ptr<Executor> executor_;
  bool has_run_ = false;
};

}  // namespace trims::predict

// Runs a graph on a backend.
//
// Holds one arena for inputs, intermediate values and outputs, and one kernel
// per operator. Weights are read where they lie and never written. Building does
// all planning, allocation and code generation; Forward() allocates nothing. Which
// backend it is (backend.h), nothing here knows.
// Thread-compatible: one thread at a time per executor, any number of executors
// over the same graph and weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "predict/backend.h"
#include "predict/graph.h"

namespace trims::predict {

// Where a variable's elements come from.
struct VariableBinding {
  enum class Kind : uint8_t {
    kUnused,  // Nothing reads it (a label): it has no memory.
    kInput,   // Written by the caller before Forward(); memory of the executor.
    kWeight,  // At `address`, which stays valid and unchanged for the executor's life and
              // which the backend can read.
  };
  Kind kind = Kind::kUnused;
  const float* address = nullptr;
};

class Executor final {
 public:
  // `bindings` has one element per node; those of operators are not read.
  static Result<std::unique_ptr<Executor>> Build(std::shared_ptr<const Graph> graph,
                                                 GraphShapes shapes,
                                                 std::span<const VariableBinding> bindings,
                                                 std::unique_ptr<Backend> backend);

  // Fills an input variable with just as many values as it has elements. They survive
  // Forward().
  Status SetInput(uint32_t node, std::span<const float> values);

  Status Forward();
  // Steps are node indices. A step may be run only after those before it; what
  // it reads is otherwise unspecified, but always memory of this executor.
  uint32_t step_count() const { return static_cast<uint32_t>(graph_->nodes().size()); }
  Status RunStep(uint32_t step);

  // Waits for what was run. Valid until something is run again.
  Result<std::span<const float>> Output(size_t head) const;
  const Shape& OutputShape(size_t head) const;

  // Memory of this executor alone: arena and private copies of weights.
  uint64_t private_bytes() const { return arena_bytes_ + packed_bytes_; }

 private:
  struct Step {
    std::unique_ptr<Kernel> kernel;  // Null: nothing to do.
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    std::byte* scratch = nullptr;
  };

  Executor(std::shared_ptr<const Graph> graph, GraphShapes shapes, std::unique_ptr<Backend> backend)
      : graph_(std::move(graph)), shapes_(std::move(shapes)), backend_(std::move(backend)) {}
  Status BuildSteps(std::span<const VariableBinding> bindings);

  const std::shared_ptr<const Graph> graph_;
  const GraphShapes shapes_;
  const std::unique_ptr<Backend> backend_;  // Outlives the kernels; owns the arena.
  std::vector<Step> steps_;
  std::vector<std::byte*> input_addresses_;  // Per node; null unless an input.
  std::vector<const void*> head_addresses_;
  uint64_t arena_bytes_ = 0;
  uint64_t packed_bytes_ = 0;
};

}  // namespace trims::predict

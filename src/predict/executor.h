// Runs a graph on the CPU.
//
// Holds one arena for inputs, intermediate values and outputs, and one kernel
// per operator. Weights are read where they lie and never written. Building does
// all planning, allocation and code generation; Forward() allocates nothing.
// Thread-compatible: one thread at a time per executor, any number of executors
// over the same graph and weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "predict/anonymous_memory.h"
#include "predict/graph.h"
#include "predict/operator.h"

namespace trims::predict {

// Where a variable's elements come from.
struct VariableBinding {
  enum class Kind : uint8_t {
    kUnused,  // Nothing reads it (a label): it has no memory.
    kInput,   // Written by the caller before Forward(); memory of the executor.
    kWeight,  // At `address`, which stays valid and unchanged for the executor's life.
  };
  Kind kind = Kind::kUnused;
  const float* address = nullptr;
};

struct ExecutorOptions {
  bool pack_weights = false;  // See CpuKernelRequest.
};

class Executor final {
 public:
  // `bindings` has one element per node; those of operators are not read.
  static Result<std::unique_ptr<Executor>> Build(std::shared_ptr<const Graph> graph,
                                                 GraphShapes shapes,
                                                 std::span<const VariableBinding> bindings,
                                                 const ExecutorOptions& options);

  // The memory of an input variable. Its contents survive Forward().
  std::span<float> Input(uint32_t node);

  Status Forward();
  // Steps are node indices. A step may be run only after those before it; what
  // it reads is otherwise unspecified, but always memory of this executor.
  uint32_t step_count() const { return static_cast<uint32_t>(graph_->nodes().size()); }
  Status RunStep(uint32_t step);

  // Valid until the executor is destroyed; contents change with each Forward().
  std::span<const float> Output(size_t head) const;
  const Shape& OutputShape(size_t head) const;

  // Memory of this executor alone: arena and private copies of weights.
  uint64_t private_bytes() const { return arena_.size() + packed_bytes_; }

 private:
  struct Step {
    std::unique_ptr<CpuKernel> kernel;  // Null: nothing to do.
    std::vector<const float*> inputs;
    std::vector<float*> outputs;
    std::byte* scratch = nullptr;
    bool single_thread = false;
  };

  Executor(std::shared_ptr<const Graph> graph, GraphShapes shapes)
      : graph_(std::move(graph)), shapes_(std::move(shapes)) {}
  Status BuildSteps(std::span<const VariableBinding> bindings, const ExecutorOptions& options);

  const std::shared_ptr<const Graph> graph_;
  const GraphShapes shapes_;
  AnonymousMemory arena_;
  std::vector<Step> steps_;
  std::vector<float*> input_addresses_;  // Per node; null unless an input.
  std::vector<const float*> head_addresses_;
  uint64_t packed_bytes_ = 0;
};

}  // namespace trims::predict

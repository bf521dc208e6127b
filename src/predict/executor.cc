// Planning happens in the order of the sections below:
//
//   1. Values. Every output of every node gets a number.
//   2. Fusion. A relu that is the only user of a value whose kernel can compute it as
//      well (a convolution's) becomes a view.
//   3. Buffers. Views share the buffer of what they view. An element-wise operator
//      takes over its input's buffer when it is the last to read it and the buffer
//      is ours: never a weight, never an input, never an output of the graph.
//   4. Kernels. Built before the arena, because they say how much scratch they need.
//   5. Arena. Buffers and scratch are placed by their lifetimes.
//
// From then on every address is fixed.
#include "predict/executor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "predict/memory_plan.h"

namespace trims::predict {
namespace {

constexpr uint32_t kForEver = UINT32_MAX;
constexpr uint32_t kNone = UINT32_MAX;

// One block of memory that several values may share in turn.
struct Buffer {
  VariableBinding::Kind kind = VariableBinding::Kind::kUnused;
  const float* weight = nullptr;
  bool own = false;       // An intermediate value: may be written over.
  Lifetime lifetime;      // Where it is in the arena.
  uint32_t slot = kNone;  // Index of its lifetime in the plan.
};

}  // namespace

Result<std::unique_ptr<Executor>> Executor::Build(std::shared_ptr<const Graph> graph,
                                                  GraphShapes shapes,
                                                  std::span<const VariableBinding> bindings,
                                                  std::unique_ptr<Backend> backend) {
  TRIMS_CHECK(bindings.size() == graph->nodes().size());
  TRIMS_CHECK(shapes.size() == graph->nodes().size());
  std::unique_ptr<Executor> executor(
      new Executor(std::move(graph), std::move(shapes), std::move(backend)));
  RETURN_IF_ERROR(executor->BuildSteps(bindings));
  return executor;
}

Status Executor::BuildSteps(std::span<const VariableBinding> bindings) {
  const std::vector<GraphNode>& nodes = graph_->nodes();
  const auto count = static_cast<uint32_t>(nodes.size());

  // Values.
  std::vector<uint32_t> first_value(count + 1, 0);
  for (uint32_t i = 0; i < count; ++i) {
    first_value[i + 1] = first_value[i] + static_cast<uint32_t>(shapes_[i].size());
  }
  const auto value_of = [&](const ValueRef& ref) { return first_value[ref.node] + ref.output; };
  std::vector<uint32_t> users(first_value[count], 0);
  std::vector<uint32_t> last_use(first_value[count], 0);
  for (uint32_t i = 0; i < count; ++i) {
    for (const ValueRef& input : nodes[i].inputs) {
      ++users[value_of(input)];
      last_use[value_of(input)] = i;
    }
  }
  for (const ValueRef& head : graph_->heads()) {
    ++users[value_of(head)];
    last_use[value_of(head)] = kForEver;
  }

  // Fusion.
  std::vector<bool> is_view(count, false);
  std::vector<bool> fused_relu(count, false);
  for (uint32_t i = 0; i < count; ++i) {
    if (nodes[i].is_variable()) continue;
    is_view[i] = nodes[i].op->IsView();
    if (!nodes[i].op->IsRelu()) continue;
    const ValueRef& input = nodes[i].inputs[0];
    const GraphNode& producer = nodes[input.node];
    if (!producer.is_variable() && backend_->FusesRelu(*producer.op) &&
        users[value_of(input)] == 1) {
      fused_relu[input.node] = true;
      is_view[i] = true;
    }
  }
  // A value lives for as long as any view of it.
  for (uint32_t i = count; i-- > 0;) {
    if (!is_view[i]) continue;
    uint32_t& input_last = last_use[value_of(nodes[i].inputs[0])];
    input_last = std::max(input_last, last_use[first_value[i]]);
  }

  // Buffers.
  std::vector<Buffer> buffers;
  std::vector<uint32_t> buffer_of(first_value[count], kNone);
  std::vector<uint32_t> root(first_value[count]);  // The value that a view shows.
  for (uint32_t i = 0; i < count; ++i) {
    const GraphNode& node = nodes[i];
    for (uint32_t k = 0; k < shapes_[i].size(); ++k) {
      const uint32_t value = first_value[i] + k;
      root[value] = value;
      const uint64_t bytes = FloatBytes(shapes_[i][k]);
      if (node.is_variable()) {
        buffer_of[value] = static_cast<uint32_t>(buffers.size());
        buffers.push_back({.kind = bindings[i].kind,
                           .weight = bindings[i].address,
                           .lifetime = {bytes, 0, kForEver}});
        continue;
      }
      const uint32_t input = node.inputs.empty() ? kNone : value_of(node.inputs[0]);
      if (is_view[i]) {
        root[value] = root[input];
        buffer_of[value] = buffer_of[input];
        continue;
      }
      if (k == 0 && input != kNone && node.op->CanOverwriteInput()) {
        Buffer& buffer = buffers[buffer_of[input]];
        const bool last_reader =
            last_use[root[input]] == i &&
            std::none_of(node.inputs.begin() + 1, node.inputs.end(), [&](const ValueRef& other) {
              return buffer_of[value_of(other)] == buffer_of[input];
            });
        if (buffer.own && last_reader && bytes <= buffer.lifetime.bytes) {
          buffer_of[value] = buffer_of[input];
          buffer.lifetime.last = std::max(i, last_use[value]);
          continue;
        }
      }
      buffer_of[value] = static_cast<uint32_t>(buffers.size());
      buffers.push_back({.own = true, .lifetime = {bytes, i, std::max(i, last_use[value])}});
    }
  }

  // Kernels.
  const std::vector<bool> required = RequiredNodes(*graph_);
  steps_.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    const GraphNode& node = nodes[i];
    if (node.is_variable() || is_view[i] || !required[i]) continue;
    std::vector<Shape> inputs;
    std::vector<const void*> constants;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      inputs.push_back(shapes_[node.inputs[k].node][node.inputs[k].output]);
      const Buffer& buffer = buffers[buffer_of[value_of(node.inputs[k])]];
      const bool variable = !buffer.own && !node.op->IgnoresInput(k);
      if (variable && buffer.kind == VariableBinding::Kind::kUnused) {
        return InternalError("node " + graph_->Describe(i) + " reads '" +
                             nodes[node.inputs[k].node].name + "', which is not bound");
      }
      constants.push_back(buffer.own ? nullptr : buffer.weight);
    }
    Result<std::unique_ptr<Kernel>> kernel = backend_->BuildKernel({.op = *node.op,
                                                                    .inputs = inputs,
                                                                    .outputs = shapes_[i],
                                                                    .constants = constants,
                                                                    .fuse_relu = fused_relu[i]});
    if (!kernel.ok()) return AtNode(*graph_, i, kernel.status());
    steps_[i].kernel = *std::move(kernel);
    packed_bytes_ += steps_[i].kernel->private_bytes();
  }

  // Arena.
  std::vector<Lifetime> lifetimes;
  for (Buffer& buffer : buffers) {
    if (!buffer.own && buffer.kind != VariableBinding::Kind::kInput) continue;
    buffer.slot = static_cast<uint32_t>(lifetimes.size());
    lifetimes.push_back(buffer.lifetime);
  }
  std::vector<uint32_t> scratch_slot(count, kNone);
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t bytes = steps_[i].kernel ? steps_[i].kernel->scratch_bytes() : 0;
    if (bytes == 0) continue;
    scratch_slot[i] = static_cast<uint32_t>(lifetimes.size());
    lifetimes.push_back({bytes, i, i});
  }
  const MemoryPlan plan = PlanMemory(lifetimes);
  ASSIGN_OR_RETURN(std::byte* const arena,
                   backend_->Allocate(plan.total_bytes, "intermediate values"));
  arena_bytes_ = plan.total_bytes;

  // Addresses.
  const auto writable = [&](uint32_t buffer) -> std::byte* {
    if (buffers[buffer].slot == kNone) return nullptr;
    return arena + plan.offsets[buffers[buffer].slot];
  };
  const auto readable = [&](const ValueRef& ref) -> const void* {
    const uint32_t buffer = buffer_of[value_of(ref)];
    if (buffers[buffer].slot == kNone) return buffers[buffer].weight;
    return writable(buffer);
  };
  input_addresses_.assign(count, nullptr);
  for (uint32_t i = 0; i < count; ++i) {
    if (nodes[i].is_variable()) {
      input_addresses_[i] = writable(buffer_of[first_value[i]]);
      continue;
    }
    if (!steps_[i].kernel) continue;
    for (const ValueRef& input : nodes[i].inputs) steps_[i].inputs.push_back(readable(input));
    for (uint32_t k = 0; k < shapes_[i].size(); ++k) {
      steps_[i].outputs.push_back(writable(buffer_of[first_value[i] + k]));
    }
    if (scratch_slot[i] != kNone) steps_[i].scratch = arena + plan.offsets[scratch_slot[i]];
  }
  for (const ValueRef& head : graph_->heads()) {
    head_addresses_.push_back(readable(head));
    if (head_addresses_.back() == nullptr) {
      return InvalidArgumentError("an output of the graph is '" + nodes[head.node].name +
                                  "', which has no value at inference");
    }
  }
  return OkStatus();
}

Status Executor::SetInput(uint32_t node, std::span<const float> values) {
  TRIMS_CHECK(input_addresses_[node] != nullptr);
  TRIMS_CHECK(values.size_bytes() == FloatBytes(shapes_[node][0]));
  return AtNode(*graph_, node, backend_->Write(input_addresses_[node], std::as_bytes(values)));
}

Status Executor::RunStep(uint32_t step) {
  Step& s = steps_[step];
  if (!s.kernel) return OkStatus();
  return AtNode(*graph_, step,
                s.kernel->Run({.inputs = s.inputs, .outputs = s.outputs, .scratch = s.scratch}));
}

Status Executor::Forward() {
  for (uint32_t step = 0; step < step_count(); ++step) RETURN_IF_ERROR(RunStep(step));
  return OkStatus();
}

Result<std::span<const float>> Executor::Output(size_t head) const {
  const uint64_t bytes = FloatBytes(OutputShape(head));
  const Result<const std::byte*> values = backend_->Peek(head_addresses_[head], bytes);
  if (!values.ok()) return AtNode(*graph_, graph_->heads()[head].node, values.status());
  // SAFETY: the kernels of this graph compute in float32, at addresses aligned for it.
  return std::span(reinterpret_cast<const float*>(*values), bytes / sizeof(float));
}

const Shape& Executor::OutputShape(size_t head) const {
  const ValueRef& ref = graph_->heads()[head];
  return shapes_[ref.node][ref.output];
}

}  // namespace trims::predict

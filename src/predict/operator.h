// What an operator of the graph is: its parameters, its arguments, how shapes
// follow from shapes, and how to build its kernel for a backend.
//
// An Operator is immutable and knows neither addresses nor the graph around it;
// it is shared by every executor of a graph. A CpuKernel is an operator bound to
// shapes: it may hold compiled code and is used by one thread at a time.
//
// Adding an operator: one class in a file of its family under ops/, one line in
// ops/registry.cc, cases in operator_test.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/attributes.h"
#include "predict/shape.h"

namespace trims::predict {

struct KernelArguments {
  std::span<const float* const> inputs;  // Dense, row-major; null where IgnoresInput().
  std::span<float* const> outputs;
  std::byte* scratch = nullptr;  // scratch_bytes() bytes, 64-byte aligned.
};

class CpuKernel {
 public:
  virtual ~CpuKernel() = default;
  // Memory needed during Run only; constant for a kernel.
  virtual uint64_t scratch_bytes() const { return 0; }
  // Memory held for as long as the kernel lives: packed copies of weights.
  virtual uint64_t private_bytes() const { return 0; }
  // Never writes to an input, except that output 0 may be input 0 where the
  // operator CanOverwriteInput().
  virtual Status Run(const KernelArguments& arguments) = 0;
};

struct CpuKernelRequest {
  std::span<const Shape> inputs;
  std::span<const Shape> outputs;
  // Addresses of the inputs that are weights and stay valid for the kernel's
  // life; null for the others.
  std::span<const float* const> constants;
  bool fuse_relu = false;     // Apply max(x, 0) to the output. Only if CanFuseRelu().
  bool pack_weights = false;  // May keep a private, faster copy of convolution weights.
};

class Operator {
 public:
  virtual ~Operator() = default;

  // In the order of the node's inputs: "data", "weight", "bias".
  virtual std::vector<std::string> InputNames() const = 0;
  // Visible outputs. "<node>_<name>" is what a partial output is asked for by.
  virtual std::vector<std::string> OutputNames() const { return {"output"}; }

  // `inputs` has one shape for each input, empty where not known. Fills in
  // those that follow from the others (weights, labels), checks those that are
  // known and returns the outputs' shapes. The first input is always known.
  virtual Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const = 0;

  // The output is the first input's elements under another shape: nothing runs.
  virtual bool IsView() const { return false; }
  // Element by element: the output may be written over the first input.
  virtual bool CanOverwriteInput() const { return false; }
  // The contents of input `index` are never read at inference (labels).
  virtual bool IgnoresInput(size_t index) const { return static_cast<void>(index), false; }
  // Multiply-adds, or elements read and written: what decides whether a kernel is
  // worth more than one thread.
  virtual uint64_t Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const;
  virtual bool CanFuseRelu() const { return false; }
  virtual bool IsRelu() const { return false; }

  // May throw what oneDNN throws; the executor catches. Not called for views.
  virtual Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const = 0;
};

// Reads the attributes; problems go into the reader. Never null.
using OperatorParser = std::unique_ptr<Operator> (*)(AttributeReader&);

class OperatorRegistry final {
 public:
  // All operators of this build. Thread-safe.
  static const OperatorRegistry& Get();

  // UNIMPLEMENTED for an operator that does not exist, listing those that do;
  // INVALID_ARGUMENT for bad attributes.
  Result<std::shared_ptr<const Operator>> Create(
      const std::string& name, const std::map<std::string, std::string>& attributes) const;
  std::vector<std::string> Names() const;

  void Add(std::initializer_list<std::string_view> names, OperatorParser parser);

 private:
  OperatorRegistry() = default;
  std::map<std::string, OperatorParser, std::less<>> parsers_;
};

}  // namespace trims::predict

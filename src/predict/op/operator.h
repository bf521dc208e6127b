// What an operator of the graph is: its parameters, its arguments and how shapes follow
// from shapes. It knows no backend, no addresses and not the graph around it.
//
// An Operator is immutable and shared by every executor of a graph. Thread-safe.
//
// Adding an operator:
//   1. op/: one class, in the file of its family. Its header holds what kernels need to
//      know (parameters, and everything that follows from parameters and shapes alone), so
//      that no backend works it out a second time.
//   2. op/<family>.cc: a declaration in Add<Family>(), with the names that files use.
//   3. cpu/<family>.cc: a kernel, with its line in the table of cpu/backend.cc. Views
//      need none.
//   4. A sample in op/test_samples.h, cases in op/operator_test.cc (attributes, shapes) and in
//      cpu/<family>_test.cc (numbers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/op/shape.h"

namespace trims::predict {

class Operator {
 public:
  virtual ~Operator() = default;

  // The declaration's name, however the file spelt it: what a backend finds its kernel by.
  virtual std::string_view Name() const = 0;

  // In the order of the node's inputs: "data", "weight", "bias".
  virtual std::vector<std::string> InputNames() const = 0;
  // Visible outputs. "<node>_<name>" is what a partial output is asked for by.
  virtual std::vector<std::string> OutputNames() const { return {"output"}; }

  // `inputs` has one shape for each input, empty where not known. Fills in
  // those that follow from the others (weights, labels), checks those that are
  // known and returns the outputs' shapes. The first input is always known.
  virtual Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const = 0;

  // The output is the first input's elements under another shape: nothing runs, and no
  // backend has a kernel for it.
  virtual bool IsView() const { return false; }
  // The output may be written over the first input. Binds every backend's kernel.
  virtual bool CanOverwriteInput() const { return false; }
  // The contents of input `index` are never read at inference (labels).
  virtual bool IgnoresInput(size_t index) const { return static_cast<void>(index), false; }
  // Nothing but max(x, 0): a backend may fuse it into the kernel before.
  virtual bool IsRelu() const { return false; }
  // Multiply-adds, or elements read and written: what decides whether a kernel is
  // worth more than one thread.
  virtual uint64_t Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const;
};

// `op` as the class that its name stands for. The name is checked and not the type: a
// backend may come from another library, where types of one name need not be equal.
template <typename Class>
const Class& As(const Operator& op) {
  TRIMS_CHECK(op.Name() == Class::kName);
  return static_cast<const Class&>(op);
}

}  // namespace trims::predict

// A network as nodes with checked operators.
//
// Built from a parsed symbol; immutable afterwards and shared by everything that
// runs it. Knows names and connections, no shapes and no addresses. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "format/mxnet_symbol.h"
#include "predict/op/operator.h"
#include "predict/op/shape.h"

namespace trims::predict {

// Output `output` of node `node`.
struct ValueRef {
  uint32_t node = 0;
  uint32_t output = 0;
  friend auto operator<=>(const ValueRef&, const ValueRef&) = default;
};

struct GraphNode {
  std::string name;
  std::string op_name;                 // "" for a variable.
  std::shared_ptr<const Operator> op;  // Null for a variable.
  std::vector<ValueRef> inputs;        // Of earlier nodes.
  std::vector<std::string> output_names;
  Shape declared_shape;  // A variable's complete "__shape__", else empty.

  bool is_variable() const { return op == nullptr; }
};

class Graph final {
 public:
  // UNIMPLEMENTED names an operator that does not exist here, its node and the
  // operators that do; INVALID_ARGUMENT a bad attribute or a wrong number of inputs.
  static Result<std::shared_ptr<const Graph>> FromSymbol(const format::Symbol& symbol);
  // Parses first.
  static Result<std::shared_ptr<const Graph>> FromJson(std::string_view json);

  // The part of this graph that computes certain outputs, in the order of `keys`.
  // A key is a node's name, whose first output it then is, or "<node>_<output>".
  // NOT_FOUND lists the nodes there are.
  Result<std::shared_ptr<const Graph>> WithOutputs(const std::vector<std::string>& keys) const;

  const std::vector<GraphNode>& nodes() const { return nodes_; }  // Inputs before users.
  const std::vector<ValueRef>& heads() const { return heads_; }   // Never empty.
  // The node of the variable `name`.
  std::optional<uint32_t> FindVariable(std::string_view name) const;
  // "conv1 (Convolution)", for messages.
  std::string Describe(uint32_t node) const;

 private:
  Graph() = default;
  // Drops what no head needs and indexes the variables.
  static Result<std::shared_ptr<const Graph>> Finish(std::vector<GraphNode> nodes,
                                                     std::vector<ValueRef> heads);

  std::vector<GraphNode> nodes_;
  std::vector<ValueRef> heads_;
  std::map<std::string, uint32_t, std::less<>> variables_;
};

// `status` with the node's name before its text. OK stays OK.
Status AtNode(const Graph& graph, uint32_t node, const Status& status);

// Which nodes some head depends on through inputs that are read: not so a label
// and what computes it.
std::vector<bool> RequiredNodes(const Graph& graph);

// For each node the shapes of its outputs.
using GraphShapes = std::vector<std::vector<Shape>>;

// Every shape of the graph from those of its inputs: shapes of weights and labels
// follow from the operators that use them. `known` may name variables the graph
// does not have; they are ignored as MXNet does. INVALID_ARGUMENT names the node
// whose shapes do not fit, or the variables whose shape nothing determines.
Result<GraphShapes> InferShapes(const Graph& graph,
                                const std::map<std::string, Shape, std::less<>>& known);

}  // namespace trims::predict

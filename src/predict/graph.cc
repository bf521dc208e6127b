#include "predict/graph.h"

#include <algorithm>

#include "predict/op/registry.h"

namespace trims::predict {
namespace {

// "__shape__" of a variable, where complete; a 0 in it means not known.
Shape DeclaredShape(const format::SymbolNode& node) {
  const auto it = node.annotations.find("__shape__");
  if (it == node.annotations.end()) return {};
  Result<std::vector<int64_t>> shape = format::ParseTupleAttribute(it->second);
  if (!shape.ok() || !CheckShape(*shape).ok()) return {};
  return *std::move(shape);
}

}  // namespace

std::string Graph::Describe(uint32_t node) const {
  const GraphNode& n = nodes_[node];
  return "'" + n.name + "' (" + (n.is_variable() ? "variable" : n.op_name) + ")";
}

Status AtNode(const Graph& graph, uint32_t node, const Status& status) {
  if (status.ok()) return status;
  return Status(status.code(), "node " + graph.Describe(node) + ": " + status.message());
}

std::optional<uint32_t> Graph::FindVariable(std::string_view name) const {
  const auto it = variables_.find(name);
  if (it == variables_.end()) return std::nullopt;
  return it->second;
}

Result<std::shared_ptr<const Graph>> Graph::FromJson(std::string_view json) {
  ASSIGN_OR_RETURN(const format::Symbol symbol, format::ParseMxnetSymbol(json));
  return FromSymbol(symbol);
}

Result<std::shared_ptr<const Graph>> Graph::FromSymbol(const format::Symbol& symbol) {
  std::vector<GraphNode> nodes;
  nodes.reserve(symbol.nodes.size());
  for (const format::SymbolNode& source : symbol.nodes) {
    GraphNode node;
    node.name = source.name;
    node.op_name = source.op;
    const auto fail = [&](StatusCode code, const std::string& message) {
      return Status(code, "node '" + node.name + "' (" +
                              (source.op.empty() ? "variable" : source.op) + "): " + message);
    };
    if (source.op.empty()) {
      node.output_names = {""};
      node.declared_shape = DeclaredShape(source);
    } else {
      Result<std::shared_ptr<const Operator>> op =
          OperatorRegistry::Get().Create(source.op, source.attributes);
      if (!op.ok()) return fail(op.status().code(), op.status().message());
      node.op = *std::move(op);
      node.output_names = node.op->OutputNames();
      const std::vector<std::string> names = node.op->InputNames();
      if (source.inputs.size() != names.size()) {
        std::string expected;
        for (const std::string& name : names) expected += (expected.empty() ? "" : ", ") + name;
        return fail(StatusCode::kInvalidArgument, "has " + std::to_string(source.inputs.size()) +
                                                      " inputs, " + std::to_string(names.size()) +
                                                      " were expected (" + expected + ")");
      }
    }
    for (const format::SymbolInput& input : source.inputs) {
      if (input.node >= nodes.size()) {
        return fail(StatusCode::kInvalidArgument, "uses a node that does not precede it");
      }
      if (input.output >= nodes[input.node].output_names.size()) {
        return fail(StatusCode::kInvalidArgument, "uses output " + std::to_string(input.output) +
                                                      " of '" + nodes[input.node].name +
                                                      "', which does not exist at inference");
      }
      node.inputs.push_back({input.node, input.output});
    }
    nodes.push_back(std::move(node));
  }
  std::vector<ValueRef> heads;
  for (const format::SymbolInput& head : symbol.heads) {
    if (head.node >= nodes.size() || head.output >= nodes[head.node].output_names.size()) {
      return InvalidArgumentError("a head of the graph names output " +
                                  std::to_string(head.output) + " of node " +
                                  std::to_string(head.node) + ", which does not exist");
    }
    heads.push_back({head.node, head.output});
  }
  return Finish(std::move(nodes), std::move(heads));
}

Result<std::shared_ptr<const Graph>> Graph::Finish(std::vector<GraphNode> nodes,
                                                   std::vector<ValueRef> heads) {
  if (heads.empty()) return InvalidArgumentError("the graph has no outputs");
  std::vector<bool> needed(nodes.size(), false);
  for (const ValueRef& head : heads) needed[head.node] = true;
  for (size_t i = nodes.size(); i-- > 0;) {
    if (!needed[i]) continue;
    for (const ValueRef& input : nodes[i].inputs) needed[input.node] = true;
  }
  std::shared_ptr<Graph> graph(new Graph());
  std::vector<uint32_t> renumbered(nodes.size(), 0);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!needed[i]) continue;
    renumbered[i] = static_cast<uint32_t>(graph->nodes_.size());
    for (ValueRef& input : nodes[i].inputs) input.node = renumbered[input.node];
    if (nodes[i].is_variable() && !graph->variables_.emplace(nodes[i].name, renumbered[i]).second) {
      return InvalidArgumentError("two variables of the graph are named '" + nodes[i].name + "'");
    }
    graph->nodes_.push_back(std::move(nodes[i]));
  }
  for (ValueRef& head : heads) head.node = renumbered[head.node];
  graph->heads_ = std::move(heads);
  return std::shared_ptr<const Graph>(std::move(graph));
}

Result<std::shared_ptr<const Graph>> Graph::WithOutputs(
    const std::vector<std::string>& keys) const {
  std::vector<ValueRef> heads;
  for (const std::string& key : keys) {
    std::optional<ValueRef> found;
    std::string similar;
    for (uint32_t i = 0; i < nodes_.size() && !found; ++i) {
      if (nodes_[i].is_variable()) continue;
      if (nodes_[i].name == key) found = ValueRef{i, 0};
      for (uint32_t output = 0; output < nodes_[i].output_names.size() && !found; ++output) {
        if (nodes_[i].name + "_" + nodes_[i].output_names[output] == key) {
          found = ValueRef{i, output};
        }
      }
      if (similar.size() < 200) similar += (similar.empty() ? "" : ", ") + nodes_[i].name;
    }
    if (!found) {
      return NotFoundError("the graph has no output '" + key + "'; its nodes are " + similar +
                           (similar.size() < 200 ? "" : ", …"));
    }
    heads.push_back(*found);
  }
  return Finish(nodes_, std::move(heads));
}

std::vector<bool> RequiredNodes(const Graph& graph) {
  const std::vector<GraphNode>& nodes = graph.nodes();
  std::vector<bool> required(nodes.size(), false);
  for (const ValueRef& head : graph.heads()) required[head.node] = true;
  for (size_t i = nodes.size(); i-- > 0;) {
    if (!required[i]) continue;
    for (size_t k = 0; k < nodes[i].inputs.size(); ++k) {
      if (!nodes[i].op->IgnoresInput(k)) required[nodes[i].inputs[k].node] = true;
    }
  }
  return required;
}

Result<GraphShapes> InferShapes(const Graph& graph,
                                const std::map<std::string, Shape, std::less<>>& known) {
  const std::vector<GraphNode>& nodes = graph.nodes();
  GraphShapes shapes(nodes.size());
  for (uint32_t i = 0; i < nodes.size(); ++i) {
    const GraphNode& node = nodes[i];
    if (node.is_variable()) {
      const auto it = known.find(node.name);
      if (it != known.end()) {
        if (const Status status = CheckShape(it->second); !status.ok()) {
          return AtNode(graph, i, status);
        }
      }
      shapes[i] = {it != known.end() ? it->second : node.declared_shape};
      continue;
    }
    std::vector<Shape> inputs;
    for (const ValueRef& input : node.inputs) inputs.push_back(shapes[input.node][input.output]);
    if (!inputs.empty() && inputs[0].empty()) {
      std::string given;
      for (const auto& [name, shape] : known) {
        given += (given.empty() ? "" : ", ") + name + " " + ShapeToString(shape);
      }
      return InvalidArgumentError("the shape information is not enough: node " + graph.Describe(i) +
                                  " needs the shape of '" + nodes[node.inputs[0].node].name +
                                  "', and the shapes given are of " +
                                  (given.empty() ? "nothing" : given));
    }
    Result<std::vector<Shape>> outputs = node.op->InferShapes(inputs);
    if (!outputs.ok()) return AtNode(graph, i, outputs.status());
    for (size_t k = 0; k < inputs.size(); ++k) {
      Shape& shape = shapes[node.inputs[k].node][node.inputs[k].output];
      if (shape.empty()) shape = inputs[k];
    }
    shapes[i] = *std::move(outputs);
  }
  for (uint32_t i = 0; i < nodes.size(); ++i) {
    for (const Shape& shape : shapes[i]) {
      if (shape.empty()) {
        return InvalidArgumentError(
            "the shape information is not enough: nothing determines the "
            "shape of node " +
            graph.Describe(i));
      }
    }
  }
  return shapes;
}

}  // namespace trims::predict

// From JSON to a checked graph, in five steps:
//
//   1. Read     the JSON into nodes as the file has them (SymbolSink)
//   2. Check    every reference between nodes; from here on the graph is acyclic
//   3. Upgrade  one layout for all versions: merged attributes, annotations apart,
//               auxiliary variables present
//   4. Visit    depth first from the heads: which nodes count, in what order the
//               variables are listed
//   5. Prune    the rest
//
// Steps 3 and 4 do what MXNet's LoadLegacyJSON pass and NNVM's graph loading do,
// without their recursion.

#include "format/mxnet_symbol.h"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#include "base/limits.h"
#include "format/json_events.h"
#include "format/sniff.h"
#include "format/text.h"

namespace trims::format {
namespace {

constexpr std::string_view kSubject = "the MXNet symbol";
constexpr uint32_t kMaxSymbolReferences = 4'000'000;  // Inputs and heads of all nodes together.
constexpr int kVersion_0_9_0 = 900;
constexpr int kVersion_0_9_5 = 905;

Status Error(std::string message) {
  return InvalidArgumentError(std::string(kSubject) + ": " + std::move(message));
}

// A node as the file has it.
struct FileNode {
  SymbolNode node;  // op is "" until the end of the node; attributes are "attr" and "attrs".
  std::map<std::string, std::string> param;
  std::vector<uint32_t> control_deps;
};

std::string NodeText(size_t index, const SymbolNode& node) {
  return "node " + std::to_string(index) + " (" + Quoted(node.name) + ")";
}

// --- 1. Read ------------------------------------------------------------------

class SymbolSink final : public JsonSink {
 public:
  Status OnEvent(const JsonEvent& event) override;
  Status CheckComplete() const;

  std::vector<FileNode> nodes;
  std::vector<uint32_t> arg_nodes;
  std::vector<SymbolInput> heads;
  int version = 800;

 private:
  enum class State : uint8_t {
    kStart,
    kTop,
    kSkipTop,     // node_row_ptr.
    kNodesBegin,  // After "nodes":
    kNodes,       // Between nodes.
    kNode,        // Between a node's fields.
    kOp,
    kName,
    kNumber,  // backward_source_id.
    kSubgraphsBegin,
    kSubgraphs,
    kDictBegin,  // attr, attrs, param.
    kDict,
    kDictValue,
    kListBegin,  // control_deps, arg_nodes: numbers.
    kList,
    kEntriesBegin,  // inputs, heads: [node, output] or [node, output, version].
    kEntries,
    kEntry,
    kGraphAttrsBegin,  // The graph's own attrs.
    kGraphAttrs,
    kSkipGraphAttr,
    kVersionBegin,  // ["int", 1200]
    kVersionType,
    kVersionNumber,
    kVersionEnd,
  };

  enum Field : uint32_t {
    kFieldOp = 1 << 0,
    kFieldName = 1 << 1,
    kFieldInputs = 1 << 2,
    kFieldAttrs = 1 << 3,
    kFieldAttr = 1 << 4,
    kFieldParam = 1 << 5,
    kFieldControlDeps = 1 << 6,
    kFieldBackward = 1 << 7,
    kFieldSubgraphs = 1 << 8,
    kTopNodes = 1 << 0,
    kTopArgNodes = 1 << 1,
    kTopHeads = 1 << 2,
    kTopRowPtr = 1 << 3,
    kTopAttrs = 1 << 4,
  };

  struct FieldRule {
    std::string_view name;
    uint32_t bit;
    State state;
  };

  Status OnField(std::span<const FieldRule> rules, uint32_t& seen, const std::string& name,
                 std::string_view owner);
  Status OnNodeField(const std::string& name);
  Status OnTopField(const std::string& name);
  Status EndNode();
  Status OnDict(const JsonEvent& event);
  Status OnList(const JsonEvent& event);
  Status OnEntries(const JsonEvent& event);
  Status OnGraphAttrs(const JsonEvent& event);
  Status CountReference();

  // Moves on to `next` if the event is what belongs here.
  Status Expect(const JsonEvent& event, JsonKind kind, std::string_view where,
                std::string_view expected, State next) {
    if (event.kind != kind) return Unexpected(event, where, expected);
    state_ = next;
    return OkStatus();
  }
  Status Unexpected(const JsonEvent& event, std::string_view where,
                    std::string_view expected) const {
    const std::string prefix = in_node_ ? CurrentNode() + ": " : "";
    return Error(prefix + std::string(where) + " is " + std::string(JsonKindName(event.kind)) +
                 "; expected " + std::string(expected));
  }
  std::string CurrentNode() const { return NodeText(nodes.size() - 1, nodes.back().node); }
  FileNode& current() { return nodes.back(); }

  State state_ = State::kStart;
  uint32_t top_seen_ = 0;
  uint32_t node_seen_ = 0;
  bool in_node_ = false;
  uint32_t attribute_count_ = 0;
  uint32_t reference_count_ = 0;
  std::map<std::string, std::string>* dict_ = nullptr;
  std::string dict_key_;
  std::vector<uint32_t>* list_ = nullptr;
  std::vector<SymbolInput>* entries_ = nullptr;
  std::string_view list_name_;
  std::array<uint64_t, 3> entry_ = {};
  size_t entry_size_ = 0;
  bool has_version_ = false;
  JsonSkipper skipper_;
};

Status SymbolSink::OnEvent(const JsonEvent& event) {
  switch (state_) {
    case State::kStart:
      return Expect(event, JsonKind::kObjectBegin, "the text", "an object", State::kTop);
    case State::kTop:
      return event.kind == JsonKind::kKey ? OnTopField(*event.text) : OkStatus();
    case State::kSkipTop:
      if (skipper_.Feed(event.kind)) state_ = State::kTop;
      return OkStatus();
    case State::kNodesBegin:
      return Expect(event, JsonKind::kArrayBegin, "'nodes'", "an array of nodes", State::kNodes);
    case State::kNodes:
      if (event.kind == JsonKind::kArrayEnd) {
        state_ = State::kTop;
        return OkStatus();
      }
      if (nodes.size() == kMaxSymbolNodes) {
        return Error("more than " + std::to_string(kMaxSymbolNodes) + " nodes");
      }
      RETURN_IF_ERROR(Expect(event, JsonKind::kObjectBegin, "node " + std::to_string(nodes.size()),
                             "an object", State::kNode));
      nodes.emplace_back();
      node_seen_ = 0;
      in_node_ = true;
      return OkStatus();
    case State::kNode:
      return event.kind == JsonKind::kObjectEnd ? EndNode() : OnNodeField(*event.text);
    case State::kOp:
      RETURN_IF_ERROR(Expect(event, JsonKind::kString, "'op'", "a string", State::kNode));
      current().node.op = std::move(*event.text);
      return OkStatus();
    case State::kName:
      RETURN_IF_ERROR(Expect(event, JsonKind::kString, "'name'", "a string", State::kNode));
      current().node.name = std::move(*event.text);
      return OkStatus();
    case State::kNumber:
      if (event.kind != JsonKind::kUnsigned && event.kind != JsonKind::kNegative) {
        return Unexpected(event, "'backward_source_id'", "a whole number");
      }
      state_ = State::kNode;
      return OkStatus();
    case State::kSubgraphsBegin:
      return Expect(event, JsonKind::kArrayBegin, "'subgraphs'", "an array", State::kSubgraphs);
    case State::kSubgraphs:
      if (event.kind != JsonKind::kArrayEnd) {
        return UnimplementedError(std::string(kSubject) + ": " + CurrentNode() +
                                  " has subgraphs; control flow operators are not supported");
      }
      state_ = State::kNode;
      return OkStatus();
    case State::kDictBegin:
    case State::kDict:
    case State::kDictValue:
      return OnDict(event);
    case State::kListBegin:
    case State::kList:
      return OnList(event);
    case State::kEntriesBegin:
    case State::kEntries:
    case State::kEntry:
      return OnEntries(event);
    case State::kGraphAttrsBegin:
    case State::kGraphAttrs:
    case State::kSkipGraphAttr:
    case State::kVersionBegin:
    case State::kVersionType:
    case State::kVersionNumber:
    case State::kVersionEnd:
      return OnGraphAttrs(event);
  }
  return InternalError(std::string(kSubject) + ": unknown state of the parser");
}

Status SymbolSink::OnField(std::span<const FieldRule> rules, uint32_t& seen,
                           const std::string& name, std::string_view owner) {
  for (const FieldRule& rule : rules) {
    if (rule.name != name) continue;
    if ((seen & rule.bit) != 0) {
      return Error(std::string(owner) + " has the field " + Quoted(name) + " twice");
    }
    seen |= rule.bit;
    state_ = rule.state;
    list_name_ = rule.name;
    return OkStatus();
  }
  return Error(std::string(owner) + " has the unknown field " + Quoted(name) +
               ": no MXNet of 0.8 to 1.9 writes it");
}

Status SymbolSink::OnNodeField(const std::string& name) {
  static constexpr FieldRule kRules[] = {
      {"op", kFieldOp, State::kOp},
      {"name", kFieldName, State::kName},
      {"inputs", kFieldInputs, State::kEntriesBegin},
      {"attrs", kFieldAttrs, State::kDictBegin},
      {"attr", kFieldAttr, State::kDictBegin},
      {"param", kFieldParam, State::kDictBegin},
      {"control_deps", kFieldControlDeps, State::kListBegin},
      {"backward_source_id", kFieldBackward, State::kNumber},
      {"subgraphs", kFieldSubgraphs, State::kSubgraphsBegin},
  };
  RETURN_IF_ERROR(OnField(kRules, node_seen_, name, CurrentNode()));
  if (state_ == State::kDictBegin) {
    dict_ = name == "param" ? &current().param : &current().node.attributes;
  } else if (state_ == State::kListBegin) {
    list_ = &current().control_deps;
  } else if (state_ == State::kEntriesBegin) {
    entries_ = &current().node.inputs;
  }
  return OkStatus();
}

Status SymbolSink::OnTopField(const std::string& name) {
  static constexpr FieldRule kRules[] = {
      {"nodes", kTopNodes, State::kNodesBegin},      {"arg_nodes", kTopArgNodes, State::kListBegin},
      {"heads", kTopHeads, State::kEntriesBegin},    {"node_row_ptr", kTopRowPtr, State::kSkipTop},
      {"attrs", kTopAttrs, State::kGraphAttrsBegin},
  };
  RETURN_IF_ERROR(OnField(kRules, top_seen_, name, "the graph"));
  if (state_ == State::kListBegin) list_ = &arg_nodes;
  if (state_ == State::kEntriesBegin) entries_ = &heads;
  if (state_ == State::kSkipTop) skipper_ = JsonSkipper();
  return OkStatus();
}

Status SymbolSink::EndNode() {
  const char* missing = (node_seen_ & kFieldOp) == 0       ? "op"
                        : (node_seen_ & kFieldName) == 0   ? "name"
                        : (node_seen_ & kFieldInputs) == 0 ? "inputs"
                                                           : nullptr;
  if (missing != nullptr) return Error(CurrentNode() + " has no field '" + missing + "'");
  SymbolNode& node = current().node;
  if (node.op.empty()) return Error(CurrentNode() + " has an empty op; a variable's is \"null\"");
  if (node.op == "null") node.op.clear();
  if (node.op.empty() || !node.name.empty()) {  // An operator may do without a name.
    const Status named = CheckName(node.name, "node " + std::to_string(nodes.size() - 1));
    if (!named.ok()) return Error(named.message());
  }
  // As MXNet merges them: where both have a key, "param" yields.
  node.attributes.merge(current().param);
  current().param.clear();
  in_node_ = false;
  state_ = State::kNodes;
  return OkStatus();
}

Status SymbolSink::OnDict(const JsonEvent& event) {
  const std::string where = "'" + std::string(list_name_) + "'";
  if (state_ == State::kDictBegin) {
    return Expect(event, JsonKind::kObjectBegin, where, "an object of strings", State::kDict);
  }
  if (state_ == State::kDict) {
    if (event.kind == JsonKind::kObjectEnd) {
      state_ = State::kNode;
      return OkStatus();
    }
    dict_key_ = std::move(*event.text);
    state_ = State::kDictValue;
    return OkStatus();
  }
  RETURN_IF_ERROR(Expect(event, JsonKind::kString, Quoted(dict_key_) + " in " + where, "a string",
                         State::kDict));
  if (++attribute_count_ > kMaxSymbolAttributes) {
    return Error("more than " + std::to_string(kMaxSymbolAttributes) + " attributes");
  }
  if (!dict_->try_emplace(std::move(dict_key_), std::move(*event.text)).second) {
    return Error(CurrentNode() + " has an attribute twice: " + Quoted(dict_key_));
  }
  return OkStatus();
}

Status SymbolSink::CountReference() {
  if (++reference_count_ > kMaxSymbolReferences) {
    return Error("more than " + std::to_string(kMaxSymbolReferences) + " inputs");
  }
  return OkStatus();
}

Status SymbolSink::OnList(const JsonEvent& event) {
  const std::string where = "'" + std::string(list_name_) + "'";
  if (state_ == State::kListBegin) {
    return Expect(event, JsonKind::kArrayBegin, where, "an array of node numbers", State::kList);
  }
  if (event.kind == JsonKind::kArrayEnd) {
    state_ = in_node_ ? State::kNode : State::kTop;
    return OkStatus();
  }
  if (event.kind != JsonKind::kUnsigned || event.number > std::numeric_limits<uint32_t>::max()) {
    return Unexpected(event, "an item of " + where, "the number of a node");
  }
  RETURN_IF_ERROR(CountReference());
  list_->push_back(static_cast<uint32_t>(event.number));
  return OkStatus();
}

Status SymbolSink::OnEntries(const JsonEvent& event) {
  const std::string where = "'" + std::string(list_name_) + "'";
  constexpr std::string_view kExpected = "[node, output] or [node, output, version]";
  if (state_ == State::kEntriesBegin) {
    return Expect(event, JsonKind::kArrayBegin, where, "an array", State::kEntries);
  }
  if (state_ == State::kEntries) {
    if (event.kind == JsonKind::kArrayEnd) {
      state_ = in_node_ ? State::kNode : State::kTop;
      return OkStatus();
    }
    entry_size_ = 0;
    return Expect(event, JsonKind::kArrayBegin, "an item of " + where, kExpected, State::kEntry);
  }
  if (event.kind != JsonKind::kArrayEnd) {
    if (event.kind != JsonKind::kUnsigned || event.number > std::numeric_limits<uint32_t>::max() ||
        entry_size_ == entry_.size()) {
      return Unexpected(event, "part " + std::to_string(entry_size_) + " of an item of " + where,
                        kExpected);
    }
    entry_[entry_size_++] = event.number;
    return OkStatus();
  }
  if (entry_size_ < 2) {
    const std::string prefix = in_node_ ? CurrentNode() + ": " : "";
    return Error(prefix + "an item of " + where + " has " + std::to_string(entry_size_) +
                 " numbers; expected " + std::string(kExpected));
  }
  RETURN_IF_ERROR(CountReference());
  // The version counts writes to a mutable input, of which inference has none.
  entries_->push_back(
      {.node = static_cast<uint32_t>(entry_[0]), .output = static_cast<uint32_t>(entry_[1])});
  state_ = State::kEntries;
  return OkStatus();
}

Status SymbolSink::OnGraphAttrs(const JsonEvent& event) {
  constexpr std::string_view kVersion = "'mxnet_version'";
  constexpr std::string_view kExpected = "[\"int\", number]";
  switch (state_) {
    case State::kGraphAttrsBegin:
      return Expect(event, JsonKind::kObjectBegin, "'attrs' of the graph", "an object",
                    State::kGraphAttrs);
    case State::kGraphAttrs:
      if (event.kind == JsonKind::kObjectEnd) {
        state_ = State::kTop;
      } else if (*event.text == "mxnet_version") {
        if (std::exchange(has_version_, true)) return Error("the graph has mxnet_version twice");
        state_ = State::kVersionBegin;
      } else {
        skipper_ = JsonSkipper();
        state_ = State::kSkipGraphAttr;
      }
      return OkStatus();
    case State::kSkipGraphAttr:
      if (skipper_.Feed(event.kind)) state_ = State::kGraphAttrs;
      return OkStatus();
    case State::kVersionBegin:
      return Expect(event, JsonKind::kArrayBegin, kVersion, kExpected, State::kVersionType);
    case State::kVersionType:
      RETURN_IF_ERROR(Expect(event, JsonKind::kString, "the first part of 'mxnet_version'",
                             kExpected, State::kVersionNumber));
      if (*event.text != "int") {
        return Error("mxnet_version is of the type " + Quoted(*event.text) + "; expected 'int'");
      }
      return OkStatus();
    case State::kVersionNumber:
      if (event.kind != JsonKind::kUnsigned ||
          event.number > uint64_t{std::numeric_limits<int>::max()}) {
        return Unexpected(event, "the second part of 'mxnet_version'", kExpected);
      }
      version = static_cast<int>(event.number);
      state_ = State::kVersionEnd;
      return OkStatus();
    default:
      return Expect(event, JsonKind::kArrayEnd, "the third part of 'mxnet_version'", kExpected,
                    State::kGraphAttrs);
  }
}

Status SymbolSink::CheckComplete() const {
  if ((top_seen_ & kTopNodes) == 0) return Error("no 'nodes': this is not a symbol");
  if ((top_seen_ & kTopHeads) == 0) return Error("no 'heads': this is not a symbol");
  if (nodes.empty()) return Error("'nodes' is empty");
  if (heads.empty()) return Error("'heads' is empty: the graph has no output");
  return OkStatus();
}

// --- 2. Check -----------------------------------------------------------------

Status CheckOutput(const SymbolInput& entry, const std::vector<FileNode>& nodes,
                   const std::string& who) {
  const SymbolNode& node = nodes[entry.node].node;
  if (entry.output < (node.op.empty() ? 1 : kMaxSymbolOutputs)) return OkStatus();
  return Error(who + " refers to output " + std::to_string(entry.output) + " of " +
               NodeText(entry.node, node) +
               (node.op.empty() ? ", a variable, which has only output 0"
                                : "; at most " + std::to_string(kMaxSymbolOutputs) +
                                      " outputs of a node are supported"));
}

Status CheckReferences(const SymbolSink& sink) {
  const std::vector<FileNode>& nodes = sink.nodes;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const SymbolNode& node = nodes[i].node;
    if (node.op.empty() && !node.inputs.empty()) {
      return Error(NodeText(i, node) + " is a variable and has inputs");
    }
    for (const SymbolInput& input : node.inputs) {
      if (input.node >= i) {
        return Error(NodeText(i, node) + " has node " + std::to_string(input.node) +
                     " as an input; expected an earlier node");
      }
      RETURN_IF_ERROR(CheckOutput(input, nodes, NodeText(i, node)));
    }
    for (const uint32_t dependency : nodes[i].control_deps) {
      if (dependency >= i) {
        return Error(NodeText(i, node) + " has node " + std::to_string(dependency) +
                     " as a control dependency; expected an earlier node");
      }
    }
  }
  for (const uint32_t argument : sink.arg_nodes) {
    if (argument >= nodes.size()) {
      return Error("'arg_nodes' has node " + std::to_string(argument) + "; there are " +
                   std::to_string(nodes.size()) + " nodes");
    }
    if (!nodes[argument].node.op.empty()) {
      return Error("'arg_nodes' has " + NodeText(argument, nodes[argument].node) +
                   ", which is not a variable");
    }
  }
  for (const SymbolInput& head : sink.heads) {
    if (head.node >= nodes.size()) {
      return Error("'heads' has node " + std::to_string(head.node) + "; there are " +
                   std::to_string(nodes.size()) + " nodes");
    }
    RETURN_IF_ERROR(CheckOutput(head, nodes, "'heads'"));
  }
  return OkStatus();
}

// --- 3. Upgrade ---------------------------------------------------------------

// Names of an operator's inputs, for the few whose files need them.
struct InputNames {
  std::string_view op;
  std::array<std::string_view, 5> names;  // Unused ones are empty.
  bool has_auxiliary;                     // Files up to 0.8 leave some of them out.
};
constexpr InputNames kInputNames[] = {
    {"BatchNorm", {"data", "gamma", "beta", "moving_mean", "moving_var"}, true},
    {"BatchNorm_v1", {"data", "gamma", "beta", "moving_mean", "moving_var"}, true},
    {"CuDNNBatchNorm", {"data", "gamma", "beta", "moving_mean", "moving_var"}, true},
    {"IdentityAttachKLSparseReg", {"data", "moving_avg"}, true},
    {"Convolution", {"data", "weight", "bias"}, false},
    {"Convolution_v1", {"data", "weight", "bias"}, false},
    {"Deconvolution", {"data", "weight", "bias"}, false},
    {"FullyConnected", {"data", "weight", "bias"}, false},
    {"Embedding", {"data", "weight"}, false},
    {"InstanceNorm", {"data", "gamma", "beta"}, false},
    {"LeakyReLU", {"data", "gamma"}, false},
};

const InputNames* FindInputNames(std::string_view op) {
  for (const InputNames& entry : kInputNames) {
    if (entry.op == op) return &entry;
  }
  return nullptr;
}

std::string VariableName(const std::string& node, std::string_view argument) {
  return node.empty() ? std::string(argument) : node + "_" + std::string(argument);
}

constexpr std::string_view kHiddenKeys[] = {"ctx_group", "lr_mult", "wd_mult", "force_mirroring",
                                            "mirror_stage"};

std::string AnnotationKey(std::string_view hidden) { return "__" + std::string(hidden) + "__"; }

bool IsAnnotationKey(std::string_view key) {
  return key.size() > 4 && key.starts_with("__") && key.ends_with("__");
}

// Finds the variables among a node's inputs by the names of its arguments.
class ArgumentFinder final {
 public:
  ArgumentFinder(std::vector<FileNode>& nodes, const SymbolNode& node)
      : nodes_(nodes), node_(node), known_(FindInputNames(node.op)) {}

  // Null if there is no such input or it is not a variable.
  SymbolNode* Find(std::string_view argument) {
    if (known_ != nullptr) {
      for (size_t i = 0; i < std::min(node_.inputs.size(), known_->names.size()); ++i) {
        SymbolNode& input = nodes_[node_.inputs[i].node].node;
        if (known_->names[i] == argument) return input.op.empty() ? &input : nullptr;
      }
      return nullptr;
    }
    // Other operators' variables bear the usual names. Indexed once, as a hostile
    // node may have millions of inputs and as many keys.
    if (!std::exchange(indexed_, true)) {
      for (const SymbolInput& entry : node_.inputs) {
        SymbolNode& input = nodes_[entry.node].node;
        if (input.op.empty()) by_name_.try_emplace(input.name, &input);
      }
    }
    const auto found = by_name_.find(VariableName(node_.name, argument));
    return found == by_name_.end() ? nullptr : found->second;
  }

 private:
  std::vector<FileNode>& nodes_;
  const SymbolNode& node_;
  const InputNames* known_;
  bool indexed_ = false;
  std::map<std::string_view, SymbolNode*> by_name_;
};

// Sorts a node's merged dictionary into attributes and annotations.
void SplitAnnotations(std::vector<FileNode>& nodes, size_t index) {
  SymbolNode& node = nodes[index].node;
  std::map<std::string, std::string> merged = std::move(node.attributes);
  node.attributes.clear();
  ArgumentFinder arguments(nodes, node);
  while (!merged.empty()) {
    auto entry = merged.extract(merged.begin());
    const std::string& key = entry.key();
    if (IsAnnotationKey(key)) {
      // A renamed bare key, which sorts later, replaces it as in MXNet.
      node.annotations.insert(std::move(entry));
      continue;
    }
    const auto hidden = std::find_if(
        std::begin(kHiddenKeys), std::end(kHiddenKeys),
        [&](std::string_view suffix) { return std::string_view(key).ends_with(suffix); });
    if (hidden == std::end(kHiddenKeys)) {
      if (!node.op.empty()) node.attributes.insert(std::move(entry));
      continue;
    }
    if (key.size() == hidden->size()) {
      node.annotations[AnnotationKey(*hidden)] = std::move(entry.mapped());
      continue;
    }
    std::string_view argument = std::string_view(key).substr(0, key.size() - hidden->size());
    SymbolNode* variable = nullptr;
    if (!node.op.empty() && argument.size() > 1 && argument.ends_with('_')) {
      argument.remove_suffix(1);
      variable = arguments.Find(argument);
    }
    if (variable != nullptr) {
      variable->annotations[AnnotationKey(*hidden)] = std::move(entry.mapped());
    } else {
      node.annotations.insert(std::move(entry));
    }
  }
}

// Files before 0.9 have no nodes for auxiliary states. Returns the nodes with
// those created before their users; heads are renumbered along.
std::vector<FileNode> AddAuxiliaryVariables(std::vector<FileNode> nodes,
                                            std::vector<SymbolInput>& heads) {
  std::vector<FileNode> out;
  out.reserve(nodes.size());
  std::vector<uint32_t> moved(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    SymbolNode& node = nodes[i].node;
    for (SymbolInput& input : node.inputs) input.node = moved[input.node];
    for (uint32_t& dependency : nodes[i].control_deps) dependency = moved[dependency];
    const InputNames* known = FindInputNames(node.op);
    if (known != nullptr && known->has_auxiliary) {
      for (size_t k = node.inputs.size(); k < known->names.size(); ++k) {
        if (known->names[k].empty()) break;
        node.inputs.push_back({.node = static_cast<uint32_t>(out.size()), .output = 0});
        FileNode& variable = out.emplace_back();
        variable.node.name = VariableName(node.name, known->names[k]);
      }
    }
    moved[i] = static_cast<uint32_t>(out.size());
    out.push_back(std::move(nodes[i]));
  }
  for (SymbolInput& head : heads) head.node = moved[head.node];
  return out;
}

// --- 4. Visit -----------------------------------------------------------------

// Every node that a head needs, each after its inputs and control dependencies,
// taking these from first to last.
std::vector<uint32_t> PostOrder(const std::vector<FileNode>& nodes,
                                const std::vector<SymbolInput>& heads) {
  struct Frame {
    uint32_t node;
    size_t next;  // Of its inputs, then of its control dependencies.
  };
  std::vector<uint32_t> order;
  std::vector<bool> seen(nodes.size());
  std::vector<Frame> stack;
  const auto visit = [&](uint32_t node) {
    if (seen[node]) return;
    seen[node] = true;
    stack.push_back({node, 0});
  };
  for (const SymbolInput& head : heads) {
    visit(head.node);
    while (!stack.empty()) {
      Frame& top = stack.back();
      const FileNode& node = nodes[top.node];
      const size_t next = top.next++;
      const size_t inputs = node.node.inputs.size();
      if (next < inputs) {
        visit(node.node.inputs[next].node);
      } else if (next < inputs + node.control_deps.size()) {
        visit(node.control_deps[next - inputs]);
      } else {
        order.push_back(top.node);
        stack.pop_back();
      }
    }
  }
  return order;
}

}  // namespace

Result<Symbol> ParseMxnetSymbol(std::string_view json) {
  if (json.size() > kMaxSymbolJsonBytes) {
    return Error(std::to_string(json.size()) + " bytes of JSON; at most " +
                 std::to_string(kMaxSymbolJsonBytes) + " are read");
  }
  RETURN_IF_ERROR(CheckNotForeign(json.substr(0, kSniffBytes), std::string(kSubject)));
  SymbolSink sink;
  RETURN_IF_ERROR(WalkJson(json, kSubject, sink));
  RETURN_IF_ERROR(sink.CheckComplete());
  RETURN_IF_ERROR(CheckReferences(sink));

  // From here on every reference is to an earlier node that exists.
  std::vector<FileNode> nodes = std::move(sink.nodes);
  for (size_t i = 0; i < nodes.size(); ++i) SplitAnnotations(nodes, i);
  if (sink.version < kVersion_0_9_0) nodes = AddAuxiliaryVariables(std::move(nodes), sink.heads);
  if (sink.version < kVersion_0_9_5) {
    // -1 used to mean all axes, which is now said by leaving the axis out.
    for (FileNode& file_node : nodes) {
      SymbolNode& node = file_node.node;
      if (node.op != "argmin" && node.op != "argmax") continue;
      const auto axis = node.attributes.find("axis");
      if (axis != node.attributes.end() && axis->second == "-1") node.attributes.erase(axis);
    }
  }

  const std::vector<uint32_t> order = PostOrder(nodes, sink.heads);
  std::vector<uint32_t> kept = order;
  std::sort(kept.begin(), kept.end());
  std::vector<uint32_t> moved(nodes.size());
  Symbol symbol;
  symbol.mxnet_version = sink.version;
  symbol.nodes.reserve(kept.size());
  for (const uint32_t old : kept) {
    moved[old] = static_cast<uint32_t>(symbol.nodes.size());
    SymbolNode& node = symbol.nodes.emplace_back(std::move(nodes[old].node));
    for (SymbolInput& input : node.inputs) input.node = moved[input.node];
  }
  symbol.heads = std::move(sink.heads);
  for (SymbolInput& head : symbol.heads) head.node = moved[head.node];

  std::vector<std::string_view> names;
  for (const uint32_t old : order) {
    const SymbolNode& node = symbol.nodes[moved[old]];
    if (!node.op.empty()) continue;
    symbol.argument_nodes.push_back(moved[old]);
    names.push_back(node.name);
  }
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) {
    return Error("two variables are named " + Quoted(*twin) +
                 "; names of variables must be unique");
  }
  return symbol;
}

}  // namespace trims::format

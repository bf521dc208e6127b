// MXNet symbol JSON: a network's graph as text in, a checked graph out.
//
// Reads every layout that MXNet 0.8 to 1.9 wrote and applies MXNet's own
// upgrades, so that a caller sees one layout. Knows no operator's meaning:
// operator names and parameters are passed on as strings, and it is the caller
// who rejects those it does not know. Pure; safe on any thread. The result owns
// all of its strings.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace trims::format {

// One output of one node.
struct SymbolInput {
  uint32_t node = 0;    // Index into Symbol::nodes.
  uint32_t output = 0;  // 0 for a variable; below kMaxSymbolOutputs for an operator.

  friend bool operator==(const SymbolInput&, const SymbolInput&) = default;
};

struct SymbolNode {
  std::string op;  // "" for a variable, which is spelt "null" in the file.
  std::string name;
  // Operator parameters. Always empty for a variable: the copies of an operator's
  // parameters that some files leave on variables mean nothing.
  std::map<std::string, std::string> attributes;
  // What users and tools attached: "__lr_mult__", "__shape__" and the like. The
  // old bare spelling ("lr_mult") is renamed to "__lr_mult__", and
  // "weight_lr_mult" on an operator becomes "__lr_mult__" of its weight; where
  // no such input exists it stays here under its own name.
  std::map<std::string, std::string> annotations;
  std::vector<SymbolInput> inputs;
};

struct Symbol {
  // Only nodes that a head needs, in file order, which is topological: inputs
  // precede users. Files up to 0.8 leave auxiliary variables out; they are
  // created just before their operator and named "<node>_<argument>".
  std::vector<SymbolNode> nodes;
  // Every variable, auxiliary ones included, in depth-first order from the
  // heads: the order in which MXNet lists a symbol's inputs. Names are unique.
  std::vector<uint32_t> argument_nodes;
  std::vector<SymbolInput> heads;  // Never empty.
  // 10000 * major + 100 * minor + patch, as stamped; 800 where there is no stamp.
  int mxnet_version = 800;
};

inline constexpr uint32_t kMaxSymbolNodes = 200'000;
inline constexpr uint32_t kMaxSymbolAttributes = 1'000'000;  // Of all nodes together.
inline constexpr uint32_t kMaxSymbolOutputs = 65'536;        // Of one node.

// INVALID_ARGUMENT, naming the node and what was expected, for text that is not
// a graph: among others for an input that is not an earlier node, which MXNet
// itself does not check. UNIMPLEMENTED for subgraphs (control flow operators).
Result<Symbol> ParseMxnetSymbol(std::string_view json);

// The value syntax of attributes. Spaces around a value are allowed.
// "True", "false", "1", "0"; case does not matter.
Result<bool> ParseBoolAttribute(std::string_view text);
// A decimal integer, Python 2's trailing L allowed.
Result<int64_t> ParseIntAttribute(std::string_view text);
// "0.9", "2e-05", "inf"; never NaN.
Result<double> ParseFloatAttribute(std::string_view text);
// "(3, 3)", "[3,3]", "(3L, 3L)", "(3,)", "()", a single integer, or "None",
// which like "()" is the empty tuple.
Result<std::vector<int64_t>> ParseTupleAttribute(std::string_view text);
// Whether an optional attribute is written as absent: "None".
bool IsNoneAttribute(std::string_view text);

}  // namespace trims::format

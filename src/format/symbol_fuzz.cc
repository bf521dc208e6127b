// Fuzzes MXNet's symbol JSON and the syntax of attribute values.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string_view>
#include <vector>

#include "format/fuzz_checks.h"
#include "format/mxnet_symbol.h"

namespace {

using trims::format::Symbol;
using trims::format::SymbolInput;
using trims::format::SymbolNode;

void CheckEntry(const Symbol& symbol, const SymbolInput& entry, size_t before) {
  TRIMS_CHECK(entry.node < before);
  const bool is_variable = symbol.nodes[entry.node].op.empty();
  TRIMS_CHECK(entry.output < (is_variable ? 1 : trims::format::kMaxSymbolOutputs));
}

void CheckSymbol(const Symbol& symbol) {
  TRIMS_CHECK(!symbol.heads.empty() && symbol.mxnet_version >= 0);
  for (const SymbolInput& head : symbol.heads) {
    CheckEntry(symbol, head, symbol.nodes.size());
  }
  size_t variables = 0;
  for (size_t i = 0; i < symbol.nodes.size(); ++i) {
    const SymbolNode& node = symbol.nodes[i];
    for (const SymbolInput& input : node.inputs) {
      CheckEntry(symbol, input, i);
    }
    if (!node.op.empty()) continue;
    ++variables;
    TRIMS_CHECK(node.inputs.empty() && node.attributes.empty() && !node.name.empty());
  }
  TRIMS_CHECK(symbol.argument_nodes.size() == variables);
  std::set<std::string_view> names;
  for (const uint32_t node : symbol.argument_nodes) {
    TRIMS_CHECK(node < symbol.nodes.size() && symbol.nodes[node].op.empty());
    TRIMS_CHECK(names.insert(symbol.nodes[node].name).second);
  }
}

void ParseValue(std::string_view text) {
  const bool is_bool = trims::format::ParseBoolAttribute(text).ok();
  const trims::Result<int64_t> integer = trims::format::ParseIntAttribute(text);
  const trims::Result<double> number = trims::format::ParseFloatAttribute(text);
  const trims::Result<std::vector<int64_t>> tuple = trims::format::ParseTupleAttribute(text);
  if (number.ok()) TRIMS_CHECK(!std::isnan(*number));
  // Every integer is also a tuple of one item, and only None is none.
  if (integer.ok()) TRIMS_CHECK(tuple.ok() && *tuple == std::vector<int64_t>{*integer});
  if (trims::format::IsNoneAttribute(text)) {
    TRIMS_CHECK(!is_bool && !integer.ok() && !number.ok() && tuple.ok() && tuple->empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  ParseValue(text);
  const trims::Result<Symbol> symbol = trims::format::ParseMxnetSymbol(text);
  if (!symbol.ok()) {
    trims::format::CheckMessage(symbol.status());
    return 0;
  }
  CheckSymbol(*symbol);
  for (const SymbolNode& node : symbol->nodes) {
    for (const auto& [key, value] : node.attributes) ParseValue(value);
  }
  return 0;
}

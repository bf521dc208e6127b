// The value syntax of symbol attributes: what Python's str() made of a value,
// read as MXNet's parameter structures read it.

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <system_error>

#include "base/text.h"
#include "base/units.h"
#include "format/mxnet_symbol.h"
#include "format/text.h"

namespace trims::format {
namespace {

constexpr size_t kMaxTupleItems = 4096;

// What stands around values and their commas.
constexpr std::string_view kSpaces = " \t\n\r";

Status Expected(std::string_view text, std::string_view what) {
  return InvalidArgumentError(Quoted(text) + " is not " + std::string(what));
}

// One integer at the start of `text`, which is advanced past it.
bool TakeInt(std::string_view& text, int64_t& value) {
  if (text.starts_with('+') && text.size() > 1 && text[1] != '-') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  if (text.starts_with('L')) text.remove_prefix(1);  // A long of Python 2.
  return true;
}

}  // namespace

Result<bool> ParseBoolAttribute(std::string_view text) {
  if (const Result<bool> value = ParseBool(Trim(text, kSpaces)); value.ok()) return value;
  return Expected(text, "a boolean; expected True or False");
}

Result<int64_t> ParseIntAttribute(std::string_view text) {
  std::string_view rest = Trim(text, kSpaces);
  int64_t value = 0;
  if (!TakeInt(rest, value) || !rest.empty()) return Expected(text, "a 64-bit integer");
  return value;
}

Result<double> ParseFloatAttribute(std::string_view text) {
  std::string_view rest = Trim(text, kSpaces);
  if (rest.starts_with('+') && rest.size() > 1 && rest[1] != '-') rest.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error != std::errc() || end != rest.data() + rest.size() || std::isnan(value)) {
    return Expected(text, "a number");
  }
  return value;
}

Result<std::vector<int64_t>> ParseTupleAttribute(std::string_view text) {
  std::vector<int64_t> items;
  std::string_view rest = Trim(text, kSpaces);
  if (rest == "None") return items;
  constexpr std::string_view kWhat = "a tuple of integers such as (3, 3)";
  if (!rest.starts_with('(') && !rest.starts_with('[')) {
    ASSIGN_OR_RETURN(const int64_t value, ParseIntAttribute(text));
    return std::vector<int64_t>{value};
  }
  const char close = rest.front() == '(' ? ')' : ']';
  if (rest.size() < 2 || rest.back() != close) return Expected(text, kWhat);
  rest = Trim(rest.substr(1, rest.size() - 2), kSpaces);
  while (!rest.empty()) {
    int64_t value = 0;
    if (!TakeInt(rest, value)) return Expected(text, kWhat);
    if (items.size() == kMaxTupleItems) {
      return InvalidArgumentError(Quoted(text) + " has more than " +
                                  std::to_string(kMaxTupleItems) + " items");
    }
    items.push_back(value);
    rest = Trim(rest, kSpaces);
    if (rest.empty()) break;
    if (rest.front() != ',') return Expected(text, kWhat);
    rest = Trim(rest.substr(1), kSpaces);  // "(3,)" ends here.
  }
  return items;
}

bool IsNoneAttribute(std::string_view text) { return Trim(text, kSpaces) == "None"; }

}  // namespace trims::format

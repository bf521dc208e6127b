// Reads one operator's attributes from the strings of a symbol file.
//
// The first thing that is wrong is remembered and reads after it return their
// defaults, so a parse function reads everything in a row and the graph asks
// Finish() once. An attribute that no call named is an error: an option we do
// not know would silently change what the network computes. Borrows the map it
// is given. Thread-compatible.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace trims::predict {

class AttributeReader final {
 public:
  explicit AttributeReader(const std::map<std::string, std::string>& attributes)
      : attributes_(attributes) {}

  struct Range {
    int64_t min;
    int64_t max;
  };

  bool Bool(std::string_view name, bool default_value);
  int64_t Int(std::string_view name, int64_t default_value, Range range);
  int64_t RequiredInt(std::string_view name, Range range);
  double Float(std::string_view name, double default_value);
  // Absent, "None" and "()" are the empty tuple. Each element must lie in `range`.
  std::vector<int64_t> Tuple(std::string_view name, Range range);
  // One of `choices`; the first is the default.
  std::string Choice(std::string_view name, std::initializer_list<std::string_view> choices);
  std::string RequiredChoice(std::string_view name,
                             std::initializer_list<std::string_view> choices);
  // Attributes that exist and have no effect on inference.
  void Ignore(std::initializer_list<std::string_view> names);
  // Written, and not as "None".
  bool Has(std::string_view name) const;

  // Records an error found by the operator itself.
  void Fail(std::string message);
  // The first error, or the attributes that nothing asked for.
  Status Finish() const;

 private:
  const std::string* Find(std::string_view name);
  void FailAttribute(std::string_view name, std::string_view message);
  std::string ChoiceOrDefault(std::string_view name,
                              std::initializer_list<std::string_view> choices, bool required);

  const std::map<std::string, std::string>& attributes_;
  std::set<std::string, std::less<>> known_;
  Status status_;
};

}  // namespace trims::predict

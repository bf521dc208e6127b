// Which operators there are, and under which names files ask for them.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/op/attributes.h"
#include "predict/op/operator.h"

namespace trims::predict {

struct OperatorDeclaration {
  std::string_view name;  // Operator::Name() of what `parse` makes. Also a spelling.
  // Reads the attributes; problems go into the reader. Never null.
  std::unique_ptr<Operator> (*parse)(AttributeReader&);
  // What else files call it: other versions and front ends of MXNet.
  std::vector<std::string_view> other_spellings = {};
};

class OperatorRegistry final {
 public:
  // All operators of this build. Thread-safe.
  static const OperatorRegistry& Get();

  // UNIMPLEMENTED for an operator that does not exist, listing those that do;
  // INVALID_ARGUMENT for bad attributes.
  Result<std::shared_ptr<const Operator>> Create(
      const std::string& spelling, const std::map<std::string, std::string>& attributes) const;
  // One for each operator, by name.
  const std::map<std::string_view, OperatorDeclaration>& declarations() const {
    return declarations_;
  }

  void Add(OperatorDeclaration declaration);

 private:
  OperatorRegistry() = default;

  std::map<std::string_view, OperatorDeclaration> declarations_;
  std::map<std::string_view, const OperatorDeclaration*> spellings_;
};

}  // namespace trims::predict

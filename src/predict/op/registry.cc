#include "predict/op/registry.h"

#include <utility>

#include "predict/op/families.h"

namespace trims::predict {

uint64_t Operator::Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const {
  uint64_t elements = 0;
  for (const Shape& shape : inputs) elements += static_cast<uint64_t>(ElementCount(shape));
  for (const Shape& shape : outputs) elements += static_cast<uint64_t>(ElementCount(shape));
  return elements;
}

const OperatorRegistry& OperatorRegistry::Get() {
  static const OperatorRegistry* const registry = [] {
    auto* all = new OperatorRegistry();  // Never destroyed: exit order does not matter.
    AddActivation(*all);
    AddConvolution(*all);
    AddFullyConnected(*all);
    AddLrn(*all);
    AddPooling(*all);
    AddShapeOperators(*all);
    AddSoftmax(*all);
    return all;
  }();
  return *registry;
}

void OperatorRegistry::Add(OperatorDeclaration declaration) {
  const std::string_view name = declaration.name;
  const auto [it, added] = declarations_.emplace(name, std::move(declaration));
  TRIMS_CHECK(added);
  TRIMS_CHECK(spellings_.emplace(name, &it->second).second);
  for (const std::string_view spelling : it->second.other_spellings) {
    TRIMS_CHECK(spellings_.emplace(spelling, &it->second).second);
  }
}

Result<std::shared_ptr<const Operator>> OperatorRegistry::Create(
    const std::string& spelling, const std::map<std::string, std::string>& attributes) const {
  const auto it = spellings_.find(spelling);
  if (it == spellings_.end()) {
    std::string supported;
    for (const auto& [known, declaration] : spellings_) {
      if (!supported.empty()) supported += ", ";
      supported += known;
    }
    return UnimplementedError("operator '" + spelling + "' is not supported; supported are " +
                              supported);
  }
  AttributeReader reader(attributes);
  std::unique_ptr<Operator> op = it->second->parse(reader);
  RETURN_IF_ERROR(reader.Finish());
  return std::shared_ptr<const Operator>(std::move(op));
}

Status SettleShape(Shape& shape, const Shape& expected, std::string_view what) {
  if (shape.empty()) {
    RETURN_IF_ERROR(CheckShape(expected));
    shape = expected;
    return OkStatus();
  }
  if (shape != expected) {
    return InvalidArgumentError(std::string(what) + " has shape " + ShapeToString(shape) + ", " +
                                ShapeToString(expected) + " was expected");
  }
  return OkStatus();
}

Status ExpectRank(const Shape& shape, size_t min, size_t max) {
  if (shape.size() >= min && shape.size() <= max) return OkStatus();
  std::string expected = std::to_string(min);
  if (max != min) expected += " to " + std::to_string(max);
  return InvalidArgumentError("data has shape " + ShapeToString(shape) + ", " + expected +
                              " dimensions were expected");
}

}  // namespace trims::predict

#include "predict/ops/families.h"

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

void OperatorRegistry::Add(std::initializer_list<std::string_view> names, OperatorParser parser) {
  for (const std::string_view name : names) {
    TRIMS_CHECK(parsers_.emplace(name, parser).second);
  }
}

std::vector<std::string> OperatorRegistry::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, parser] : parsers_) names.push_back(name);
  return names;
}

Result<std::shared_ptr<const Operator>> OperatorRegistry::Create(
    const std::string& name, const std::map<std::string, std::string>& attributes) const {
  const auto it = parsers_.find(name);
  if (it == parsers_.end()) {
    std::string supported;
    for (const std::string& known : Names()) {
      if (!supported.empty()) supported += ", ";
      supported += known;
    }
    return UnimplementedError("operator '" + name + "' is not supported; supported are " +
                              supported);
  }
  AttributeReader reader(attributes);
  std::unique_ptr<Operator> op = it->second(reader);
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

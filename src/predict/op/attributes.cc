#include "predict/op/attributes.h"

#include "format/mxnet_symbol.h"

namespace trims::predict {
namespace {

std::string Join(const auto& names) {
  std::string text;
  for (const auto& name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

}  // namespace

const std::string* AttributeReader::Find(std::string_view name) {
  known_.insert(std::string(name));
  const auto it = attributes_.find(std::string(name));
  return it == attributes_.end() ? nullptr : &it->second;
}

bool AttributeReader::Has(std::string_view name) const {
  const auto it = attributes_.find(std::string(name));
  return it != attributes_.end() && !format::IsNoneAttribute(it->second);
}

void AttributeReader::Fail(std::string message) {
  if (status_.ok()) status_ = InvalidArgumentError(std::move(message));
}

void AttributeReader::FailAttribute(std::string_view name, std::string_view message) {
  Fail("attribute " + std::string(name) + ": " + std::string(message));
}

bool AttributeReader::Bool(std::string_view name, bool default_value) {
  const std::string* text = Find(name);
  if (text == nullptr) return default_value;
  const Result<bool> value = format::ParseBoolAttribute(*text);
  if (!value.ok()) {
    FailAttribute(name, value.status().message());
    return default_value;
  }
  return *value;
}

int64_t AttributeReader::Int(std::string_view name, int64_t default_value, Range range) {
  const std::string* text = Find(name);
  if (text == nullptr) return default_value;
  const Result<int64_t> value = format::ParseIntAttribute(*text);
  if (!value.ok()) {
    FailAttribute(name, value.status().message());
    return default_value;
  }
  if (*value < range.min || *value > range.max) {
    FailAttribute(name, *text + " is outside [" + std::to_string(range.min) + ", " +
                            std::to_string(range.max) + "]");
    return default_value;
  }
  return *value;
}

int64_t AttributeReader::RequiredInt(std::string_view name, Range range) {
  if (Find(name) == nullptr) FailAttribute(name, "is missing and has no default");
  return Int(name, range.min, range);
}

double AttributeReader::Float(std::string_view name, double default_value) {
  const std::string* text = Find(name);
  if (text == nullptr) return default_value;
  const Result<double> value = format::ParseFloatAttribute(*text);
  if (!value.ok()) {
    FailAttribute(name, value.status().message());
    return default_value;
  }
  return *value;
}

std::vector<int64_t> AttributeReader::Tuple(std::string_view name, Range range) {
  const std::string* text = Find(name);
  if (text == nullptr) return {};
  Result<std::vector<int64_t>> value = format::ParseTupleAttribute(*text);
  if (!value.ok()) {
    FailAttribute(name, value.status().message());
    return {};
  }
  for (const int64_t element : *value) {
    if (element < range.min || element > range.max) {
      FailAttribute(name, "element " + std::to_string(element) + " of " + *text + " is outside [" +
                              std::to_string(range.min) + ", " + std::to_string(range.max) + "]");
      return {};
    }
  }
  return *std::move(value);
}

std::string AttributeReader::ChoiceOrDefault(std::string_view name,
                                             std::initializer_list<std::string_view> choices,
                                             bool required) {
  const std::string* text = Find(name);
  if (text == nullptr) {
    if (required) {
      FailAttribute(name,
                    "is missing and has no default; one of " + Join(choices) + " was expected");
    }
    return std::string(*choices.begin());
  }
  for (const std::string_view choice : choices) {
    if (*text == choice) return *text;
  }
  FailAttribute(name,
                "'" + *text + "' is not supported; one of " + Join(choices) + " was expected");
  return std::string(*choices.begin());
}

std::string AttributeReader::Choice(std::string_view name,
                                    std::initializer_list<std::string_view> choices) {
  return ChoiceOrDefault(name, choices, /*required=*/false);
}

std::string AttributeReader::RequiredChoice(std::string_view name,
                                            std::initializer_list<std::string_view> choices) {
  return ChoiceOrDefault(name, choices, /*required=*/true);
}

void AttributeReader::Ignore(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) known_.insert(std::string(name));
}

Status AttributeReader::Finish() const {
  if (!status_.ok()) return status_;
  std::vector<std::string> unknown;
  for (const auto& [name, value] : attributes_) {
    // Annotations of users and tools ("__ctx_group__") may sit on any operator.
    if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) continue;
    if (!known_.contains(name)) unknown.push_back(name);
  }
  if (!unknown.empty()) {
    return InvalidArgumentError("unknown attribute " + Join(unknown) + "; this operator knows " +
                                Join(known_));
  }
  return OkStatus();
}

}  // namespace trims::predict

#include "predict/op/activation.h"

#include <memory>
#include <utility>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

constexpr std::pair<std::string_view, ActivationKind> kKinds[] = {
    {"relu", ActivationKind::kRelu},         {"sigmoid", ActivationKind::kSigmoid},
    {"tanh", ActivationKind::kTanh},         {"softrelu", ActivationKind::kSoftRelu},
    {"softsign", ActivationKind::kSoftSign},
};

std::unique_ptr<Operator> ParseActivation(AttributeReader& reader) {
  const std::string name =
      reader.RequiredChoice("act_type", {"relu", "sigmoid", "tanh", "softrelu", "softsign"});
  for (const auto& [choice, kind] : kKinds) {
    if (choice == name) return std::make_unique<Activation>(kind);
  }
  TRIMS_CHECK(false);
  return nullptr;
}

}  // namespace

Result<std::vector<Shape>> Activation::InferShapes(std::span<Shape> inputs) const {
  return std::vector<Shape>{inputs[0]};
}

void AddActivation(OperatorRegistry& registry) {
  registry.Add({.name = Activation::kName, .parse = ParseActivation});
}

}  // namespace trims::predict

#include "predict/op/lrn.h"

#include <memory>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

std::unique_ptr<Operator> ParseLrn(AttributeReader& reader) {
  LrnParameters p;
  p.nsize = reader.RequiredInt("nsize", {1, 1'000'001});
  p.alpha = static_cast<float>(reader.Float("alpha", 1e-4));
  p.beta = static_cast<float>(reader.Float("beta", 0.75));
  p.knorm = static_cast<float>(reader.Float("knorm", 2.0));
  if (p.nsize % 2 == 0) {
    reader.Fail("attribute nsize: " + std::to_string(p.nsize) +
                " is even; the window has a middle channel, so it must be odd");
  }
  return std::make_unique<Lrn>(p);
}

}  // namespace

Result<std::vector<Shape>> Lrn::InferShapes(std::span<Shape> inputs) const {
  RETURN_IF_ERROR(ExpectRank(inputs[0], 4, 4));
  return std::vector<Shape>{inputs[0]};
}

void AddLrn(OperatorRegistry& registry) { registry.Add({.name = Lrn::kName, .parse = ParseLrn}); }

}  // namespace trims::predict

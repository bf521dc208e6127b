// One function per file of operators; registry.cc calls them all. Explicit calls
// and not static initialisers, which a linker drops from a static library.
#pragma once

#include "predict/op/registry.h"

namespace trims::predict {

void AddActivation(OperatorRegistry& registry);
void AddConvolution(OperatorRegistry& registry);
void AddFullyConnected(OperatorRegistry& registry);
void AddLrn(OperatorRegistry& registry);
void AddPooling(OperatorRegistry& registry);
void AddShapeOperators(OperatorRegistry& registry);
void AddSoftmax(OperatorRegistry& registry);

// For InferShapes: fills `shape` if it is unknown, otherwise demands that it is
// `expected`. `what` names the input.
Status SettleShape(Shape& shape, const Shape& expected, std::string_view what);
// Rank of the first input, checked.
Status ExpectRank(const Shape& shape, size_t min, size_t max);

}  // namespace trims::predict

#include "store/types.h"

#include <cstddef>
#include <string>
#include <utility>

#include "base/text.h"

namespace trims::store {

namespace {

struct NamedPolicy {
  std::string_view name;
  PolicyKind kind;
};
constexpr NamedPolicy kPolicies[] = {
    {"never", PolicyKind::kNever}, {"lru", PolicyKind::kLru},       {"fifo", PolicyKind::kFifo},
    {"lcu", PolicyKind::kLcu},     {"random", PolicyKind::kRandom}, {"flush", PolicyKind::kFlush},
    {"eager", PolicyKind::kEager}, {"gdsf", PolicyKind::kGdsf},
};

}  // namespace

std::string_view ReplicaStateName(ReplicaState state) {
  switch (state) {
    case ReplicaState::kAbsent:
      return "absent";
    case ReplicaState::kLoading:
      return "loading";
    case ReplicaState::kReady:
      return "ready";
    case ReplicaState::kDraining:
      return "draining";
    case ReplicaState::kQuarantined:
      return "quarantined";
  }
  return "unknown";
}

std::string_view PolicyName(PolicyKind kind) {
  for (const NamedPolicy& policy : kPolicies) {
    if (policy.kind == kind) return policy.name;
  }
  return "unknown";
}

Result<PolicyKind> ParsePolicy(std::string_view name) {
  const std::string lower = Lower(name);
  if (lower == "all") return PolicyKind::kFlush;
  for (const NamedPolicy& policy : kPolicies) {
    if (lower == policy.name) return policy.kind;
  }
  return InvalidArgumentError(
      "unknown eviction policy \"" + std::string(name) +
      "\"; expected one of never, lru, fifo, lcu, random, flush (or all), eager, gdsf");
}

Status UnknownModelError(std::string_view reference) {
  return NotFoundError("no model " + std::string(reference));
}

Status UnknownModelError(const Digest& model) { return UnknownModelError("@" + model.ToString()); }

}  // namespace trims::store

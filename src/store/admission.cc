// Making room: who may go, who has to, and how to say that nobody can.
//
// Victims are chosen first and evicted only when together they free enough, so a
// request that can not be met evicts nothing. What a set of victims frees is
// counted with HeldExtent::chosen, the number of chosen replicas that refer to an
// extent: an extent is freed when all that refer to it are chosen. The replica
// that asks has its resident extents referred to already, so they never count.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "base/units.h"
#include "store/state.h"

namespace trims::store {

namespace {

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max()
                                                      : a + b;
}

// Never less than the bytes themselves, whatever the rate, so that what was
// admitted fits.
uint64_t Estimate(uint64_t missing, double rate, uint64_t internal) {
  uint64_t weights = missing;
  if (rate != 1.0) {
    const double scaled = std::ceil(static_cast<double>(missing) * rate);
    weights = scaled >= 0x1p64 ? std::numeric_limits<uint64_t>::max()
                               : static_cast<uint64_t>(std::max(scaled, 0.0));
  }
  return std::max(missing, SaturatingAdd(weights, internal));
}

// Adds `replica` to the chosen ones; returns what is freed by it in addition.
uint64_t Choose(const Replica& replica) {
  uint64_t freed = 0;
  for (const Slot& slot : replica.slots) {
    if (++slot.held->chosen == slot.held->refs) freed += slot.held->bytes;
  }
  return freed;
}

uint64_t Unchoose(const Replica& replica) {
  uint64_t freed = 0;
  for (const Slot& slot : replica.slots) {
    if (slot.held->chosen-- == slot.held->refs) freed += slot.held->bytes;
  }
  return freed;
}

std::string CountOf(uint64_t count, std::string_view noun) {
  return std::to_string(count) + " " + std::string(noun) + (count == 1 ? "" : "s");
}

}  // namespace

bool Store::State::IsEvictable(const Replica& replica, Time at) const {
  return replica.state == ReplicaState::kReady && replica.leases == 0 && !Pinned(replica) &&
         replica.grace_until <= at;
}

std::string Store::State::WhyKept(const Replica& replica, Time at) const {
  std::string why;
  const auto add = [&why](std::string_view reason) {
    if (!why.empty()) why += ", ";
    why += reason;
  };
  if (replica.state != ReplicaState::kReady) add(ReplicaStateName(replica.state));
  if (replica.leases > 0) add(CountOf(replica.leases, "lease"));
  if (Pinned(replica)) add("pinned");
  if (replica.state == ReplicaState::kReady && replica.grace_until > at) {
    add("adopted just now");
  }
  return why;
}

std::vector<Replica*> Store::State::Evictable(TierIndex tier) {
  std::vector<Replica*> evictable;
  for (Replica& replica : replicas) {
    if (replica.key.tier == tier && IsEvictable(replica)) evictable.push_back(&replica);
  }
  return evictable;
}

Candidate Store::State::CandidateOf(const Replica& replica) const {
  return {.replica = replica.key,
          .bytes = replica.bytes,
          .load_number = replica.load_number,
          .opens = replica.opens,
          .last_open = replica.last_open,
          .priority = replica.priority,
          .reload_cost = replica.reload_cost};
}

std::vector<Replica*> Store::State::InPolicyOrder(const std::vector<Replica*>& candidates) {
  std::vector<Candidate> order;
  order.reserve(candidates.size());
  for (const Replica* replica : candidates) order.push_back(CandidateOf(*replica));
  policy->Order(order);
  std::vector<Replica*> ordered;
  ordered.reserve(order.size());
  for (const Candidate& candidate : order) {
    ordered.push_back(current.find(candidate.replica)->second);
  }
  return ordered;
}

uint64_t Store::State::FreedByEvicting(const std::vector<Replica*>& chosen) {
  uint64_t freed = 0;
  for (const Replica* replica : chosen) freed += Choose(*replica);
  for (const Replica* replica : chosen) Unchoose(*replica);
  return freed;
}

std::vector<Replica*> Store::State::ChooseVictims(const std::vector<Replica*>& ordered,
                                                  uint64_t target, bool all) {
  std::vector<Replica*> victims;
  uint64_t freed = 0;
  for (Replica* replica : ordered) {
    if (!all && freed >= target) break;
    freed += Choose(*replica);
    victims.push_back(replica);
  }
  if (freed < target) {
    for (const Replica* replica : victims) Unchoose(*replica);
    return {};
  }
  // The policy's order may have taken small ones before a large one that alone
  // makes the room, or ones whose extents others keep. Spare what is not needed,
  // first those that the policy values most.
  if (all) target = freed;
  std::vector<Replica*> needed;
  for (auto it = victims.rbegin(); it != victims.rend(); ++it) {
    const uint64_t lost = Unchoose(**it);
    if (freed - lost >= target) {
      freed -= lost;
      continue;
    }
    Choose(**it);
    needed.push_back(*it);
  }
  for (const Replica* replica : needed) Unchoose(*replica);
  std::reverse(needed.begin(), needed.end());
  return needed;
}

void Store::State::EvictVictims(const std::vector<Replica*>& victims) {
  const std::string detail = "policy " + std::string(PolicyName(policy->kind()));
  for (Replica* victim : victims) {
    policy->OnEvict(CandidateOf(*victim));
    TierUse& tier = tiers[victim->key.tier];
    ++tier.evictions;
    tier.last_victim_idle = now - victim->last_open;
    Drop(*victim, Notify::Kind::kEvicted, detail);
  }
}

uint64_t Store::State::InternalBytes(const Replica& replica) const {
  if (!config.estimate_with_internal_memory) return 0;
  const Model& model = *replica.model;
  const Waiter& asker = replica.waiters.front();
  uint64_t internal = model.trusted_peaks[replica.key.tier];
  if (asker.kind != Waiter::Kind::kLoad && !asker.is_admin) {
    const auto own = model.peaks.find({replica.key.tier, asker.uid});
    if (own != model.peaks.end()) internal = std::max(internal, own->second);
  }
  return internal;
}

std::optional<Refusal> Store::State::MakeRoom(const Replica& replica, uint64_t missing) {
  const TierIndex index = replica.key.tier;
  const uint64_t budget = config.tiers[index].budget_bytes;
  Refusal refusal{.missing = missing, .internal = InternalBytes(replica), .free = FreeBytes(index)};
  refusal.need = Estimate(missing, config.estimation_rate, refusal.internal);
  const uint64_t wanted = SaturatingAdd(tiers[index].used, refusal.need);
  if (wanted <= budget) return std::nullopt;

  const std::vector<Replica*> ordered = InPolicyOrder(Evictable(index));
  refusal.evictable = FreedByEvicting(ordered);
  uint64_t resident = 0;
  for (const Slot& slot : replica.slots) {
    if (slot.held != nullptr) resident += slot.held->bytes;
  }
  refusal.too_large = SaturatingAdd(resident, refusal.need) > budget;
  if (refusal.too_large || refusal.evictable < wanted - budget) return refusal;
  EvictVictims(ChooseVictims(ordered, wanted - budget, policy->EvictsAll()));
  return std::nullopt;
}

void Store::State::RetryOrRefuse(Replica& replica, uint64_t missing, uint64_t free,
                                 const Status& status) {
  const TierIndex index = replica.key.tier;
  // Each attempt evicts somebody, so there is an end to them.
  const uint64_t target = missing > free ? missing - free : 1;
  const std::vector<Replica*> ordered = InPolicyOrder(Evictable(index));
  Refusal refusal{.need = missing,
                  .missing = missing,
                  .free = std::min(free, FreeBytes(index)),
                  .evictable = FreedByEvicting(ordered),
                  .found = status.message()};
  if (refusal.evictable < target) return Refuse(replica, refusal);
  EvictVictims(ChooseVictims(ordered, target, policy->EvictsAll()));
  Advance(replica);
}

void Store::State::ShrinkToBudget(TierIndex tier) {
  const uint64_t budget = config.tiers[tier].budget_bytes;
  if (tiers[tier].used <= budget) return;
  const std::vector<Replica*> ordered = InPolicyOrder(Evictable(tier));
  const uint64_t target = std::min(tiers[tier].used - budget, FreedByEvicting(ordered));
  if (target == 0) return;
  EvictVictims(ChooseVictims(ordered, target, policy->EvictsAll()));
}

Status Store::State::Describe(const Refusal& refusal, const Replica& replica,
                              const Waiter& asker) const {
  const TierConfig& tier = config.tiers[replica.key.tier];
  if (refusal.too_large) {
    std::string text = "cannot hold " + replica.name + " in tier " + tier.name + ": it needs " +
                       FormatSize(refusal.need);
    if (refusal.need != refusal.missing) {
      text += " (" + FormatSize(refusal.missing) + " of weights";
      if (config.estimation_rate != 1.0) {
        char rate[32];
        std::snprintf(rate, sizeof rate, "%g", config.estimation_rate);
        text += std::string(" x estimation rate ") + rate;
      }
      if (refusal.internal > 0) {
        text += " + " + FormatSize(refusal.internal) + " of measured internal memory";
      }
      text += ")";
    }
    return ResourceExhaustedError(text + ", more than the whole budget of " +
                                  FormatSize(tier.budget_bytes));
  }

  std::string text = "cannot make room for " + replica.name + " in tier " + tier.name + ": need " +
                     FormatSize(refusal.need) + ", free " + FormatSize(refusal.free);
  const uint64_t used = tiers[replica.key.tier].used;
  if (used > tier.budget_bytes) {
    text += " (" + FormatSize(used - tier.budget_bytes) + " over the budget since it was lowered)";
  }
  text += ", evictable " + FormatSize(refusal.evictable) + " of budget " +
          FormatSize(tier.budget_bytes);
  const bool never = policy->kind() == PolicyKind::kNever;
  std::vector<const Replica*> holders;
  uint64_t hidden = 0;
  for (const Replica& other : replicas) {
    if (&other == &replica || other.key.tier != replica.key.tier) continue;
    if (!never && IsEvictable(other)) continue;
    // Whose model it is not shall not learn of it.
    if (asker.kind == Waiter::Kind::kLoad || MayKnow(*other.model, asker.uid, asker.is_admin)) {
      holders.push_back(&other);
    } else {
      ++hidden;
    }
  }
  std::stable_sort(holders.begin(), holders.end(),
                   [](const Replica* a, const Replica* b) { return a->bytes > b->bytes; });
  const size_t named = std::min(holders.size(), kMaxHoldersInMessage);
  const size_t others = holders.size() - named + hidden;
  std::string list;
  for (size_t i = 0; i < named; ++i) {
    std::string why = WhyKept(*holders[i], now);
    if (why.empty()) why = "policy never";
    list += (list.empty() ? "" : ", ") + holders[i]->name + " (" + why + ")";
  }
  if (others > 0) {
    list += (list.empty() ? "" : " and ") +
            (list.empty() ? CountOf(others, "model") : std::to_string(others) + " more");
  }
  if (!list.empty()) text += "; held by: " + list;
  if (!refusal.found.empty()) text += "; " + refusal.found;
  return ResourceExhaustedError(std::move(text));
}

}  // namespace trims::store

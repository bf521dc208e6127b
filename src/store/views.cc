// What can be seen of the store from outside.
#include <algorithm>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "store/state.h"

namespace trims::store {

ReplicaView Store::State::View(const Replica& replica) const {
  ReplicaView view;
  view.replica = replica.key;
  view.name = replica.name;
  view.state = replica.state;
  view.generation = replica.generation;
  view.bytes = replica.bytes;
  for (const Slot& slot : replica.slots) {
    if (slot.held != nullptr && slot.held->refs == 1) view.unshared_bytes += slot.held->bytes;
    view.extents.push_back({.key = slot.key, .bytes = slot.bytes});
  }
  const Model& model = *replica.model;
  view.leases = replica.leases;
  view.pinned = Pinned(replica);
  view.opens = replica.opens;
  view.peak_internal_bytes = model.trusted_peaks[replica.key.tier];
  for (const auto& [key, peak] : model.peaks) {
    if (key.first != replica.key.tier) continue;
    view.peak_internal_bytes = std::max(view.peak_internal_bytes, peak);
  }
  view.loaded_at = replica.loaded_at;
  view.last_open = replica.last_open;
  view.expires_at = replica.expires_at;
  view.is_public = model.is_public;
  view.proved_uids.assign(model.proved_uids.begin(), model.proved_uids.end());
  std::sort(view.proved_uids.begin(), view.proved_uids.end());
  view.waiting = static_cast<uint32_t>(replica.waiters.size());
  return view;
}

std::vector<TierView> Store::State::Tiers() const {
  std::vector<TierView> views(tiers.size());
  // Each extent once, however many replicas refer to it.
  std::unordered_set<const HeldExtent*> leased;
  std::unordered_set<const HeldExtent*> pinned;
  std::unordered_set<const HeldExtent*> revoked;
  std::unordered_set<const HeldExtent*> in_service;
  for (const Replica& replica : replicas) {
    const bool is_revoked =
        replica.state == ReplicaState::kDraining || replica.state == ReplicaState::kQuarantined;
    for (const Slot& slot : replica.slots) {
      if (slot.held == nullptr) continue;
      if (replica.leases > 0) leased.insert(slot.held);
      if (Pinned(replica) && !is_revoked) pinned.insert(slot.held);
      (is_revoked ? revoked : in_service).insert(slot.held);
    }
  }
  for (const HeldExtent* held : leased) views[held->tier].leased_bytes += held->bytes;
  for (const HeldExtent* held : pinned) views[held->tier].pinned_bytes += held->bytes;
  for (const HeldExtent* held : revoked) {
    if (!in_service.contains(held)) views[held->tier].revoked_bytes += held->bytes;
  }
  // An extent can go when all that refer to it can.
  if (policy->kind() != PolicyKind::kNever) {
    std::unordered_map<const HeldExtent*, uint32_t> evictable;
    for (const Replica& replica : replicas) {
      if (!IsEvictable(replica)) continue;
      for (const Slot& slot : replica.slots) ++evictable[slot.held];
    }
    for (const auto& [held, refs] : evictable) {
      if (refs == held->refs) views[held->tier].evictable_bytes += held->bytes;
    }
  }
  for (size_t i = 0; i < tiers.size(); ++i) {
    views[i].name = config.tiers[i].name;
    views[i].budget_bytes = config.tiers[i].budget_bytes;
    views[i].used_bytes = tiers[i].used;
    views[i].evictions = tiers[i].evictions;
    views[i].last_victim_idle = tiers[i].last_victim_idle;
  }
  return views;
}

std::vector<ReplicaView> Store::Replicas() const {
  std::vector<ReplicaView> views;
  views.reserve(state_->replicas.size());
  for (const Replica& replica : state_->replicas) views.push_back(state_->View(replica));
  std::sort(views.begin(), views.end(), [](const ReplicaView& a, const ReplicaView& b) {
    return std::tie(a.name, a.replica, a.generation) < std::tie(b.name, b.replica, b.generation);
  });
  return views;
}

std::optional<ReplicaView> Store::Find(const ReplicaKey& key) const {
  const auto it = state_->current.find(key);
  if (it != state_->current.end()) return state_->View(*it->second);
  // No new open gets these, but they are still there.
  for (auto replica = state_->replicas.rbegin(); replica != state_->replicas.rend(); ++replica) {
    if (replica->key == key) return state_->View(*replica);
  }
  return std::nullopt;
}

std::vector<LeaseView> Store::Leases() const {
  std::vector<LeaseView> views;
  views.reserve(state_->leases.size());
  for (const auto& [id, lease] : state_->leases) {
    views.push_back({.lease = id,
                     .session = lease.session,
                     .uid = lease.uid,
                     .replica = lease.replica->key,
                     .since = lease.since,
                     .generation = lease.replica->generation});
  }
  std::sort(views.begin(), views.end(),
            [](const LeaseView& a, const LeaseView& b) { return a.lease < b.lease; });
  return views;
}

std::vector<TierView> Store::Tiers() const { return state_->Tiers(); }

}  // namespace trims::store

// What can be seen of the store from outside.
#include <algorithm>
#include <tuple>
#include <utility>

#include "store/state.h"

namespace trims::store {

ReplicaSummary Store::State::Summary(const Replica& replica) const {
  ReplicaSummary summary;
  summary.replica = replica.key;
  summary.state = replica.state;
  summary.generation = replica.generation;
  summary.bytes = replica.bytes;
  summary.unshared_bytes = replica.unshared;
  summary.extent_count = static_cast<uint32_t>(replica.slots.size());
  summary.leases = replica.leases;
  summary.pinned = Pinned(replica);
  summary.opens = replica.opens;
  summary.peak_internal_bytes = replica.model->highest_peaks[replica.key.tier];
  summary.loaded_at = replica.loaded_at;
  summary.last_open = replica.last_open;
  summary.expires_at = replica.expires_at;
  summary.waiting = static_cast<uint32_t>(replica.waiters.size());
  return summary;
}

ReplicaView Store::State::View(const Replica& replica) const {
  ReplicaView view;
  static_cast<ReplicaSummary&>(view) = Summary(replica);
  view.name = replica.name;
  view.extents.reserve(replica.slots.size());
  for (const Slot& slot : replica.slots)
    view.extents.push_back({.key = slot.key, .bytes = slot.bytes});
  const Model& model = *replica.model;
  view.is_public = model.is_public;
  view.proved_uids.assign(model.proved_uids.begin(), model.proved_uids.end());
  std::sort(view.proved_uids.begin(), view.proved_uids.end());
  return view;
}

// Each extent once, however many replicas refer to it. Those of a replica that shares
// none are counted together; the others carry marks of what was met so far.
std::vector<TierView> Store::State::Tiers() {
  std::vector<TierView> views(tiers.size());
  ++last_look;
  const bool may_evict = policy->kind() != PolicyKind::kNever;
  for (const Replica& replica : replicas) {
    TierView& view = views[replica.key.tier];
    const bool is_revoked =
        replica.state == ReplicaState::kDraining || replica.state == ReplicaState::kQuarantined;
    const bool is_leased = replica.leases > 0;
    const bool is_pinned = Pinned(replica) && !is_revoked;
    const bool is_evictable = may_evict && IsEvictable(replica);
    if (replica.shared == 0) {
      if (is_leased) view.leased_bytes += replica.unshared;
      if (is_pinned) view.pinned_bytes += replica.unshared;
      if (is_revoked) view.revoked_bytes += replica.unshared;
      if (is_evictable) view.evictable_bytes += replica.unshared;
      continue;
    }
    for (const Slot& slot : replica.slots) {
      if (slot.held == nullptr) continue;
      HeldExtent& held = *slot.held;
      if (std::exchange(held.look, last_look) != last_look) {
        held.evictable = 0;
        held.leased = held.pinned = held.revoked = held.in_service = false;
      }
      if (is_leased && !std::exchange(held.leased, true)) view.leased_bytes += held.bytes;
      if (is_pinned && !std::exchange(held.pinned, true)) view.pinned_bytes += held.bytes;
      // Revoked is what nothing in service refers to.
      if (is_revoked && !std::exchange(held.revoked, true) && !held.in_service)
        view.revoked_bytes += held.bytes;
      if (!is_revoked && !std::exchange(held.in_service, true) && held.revoked)
        view.revoked_bytes -= held.bytes;
      // An extent can go when all that refer to it can.
      if (is_evictable && ++held.evictable == held.refs) view.evictable_bytes += held.bytes;
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

std::vector<EvictResult::Kept> Store::State::WhyKept(const std::vector<const Replica*>& stay,
                                                     Time at) const {
  std::vector<EvictResult::Kept> kept;
  bool any_leased = false;
  for (const Replica* replica : stay) {
    kept.push_back({.replica = replica->key,
                    .generation = replica->generation,
                    .name = replica->name,
                    .state = replica->state,
                    .reason = WhyKept(*replica, at),
                    .leases = replica->leases});
    any_leased = any_leased || replica->leases > 0;
  }
  if (!any_leased) return kept;
  for (const Lease& lease : leases) {
    const auto it = std::find(stay.begin(), stay.end(), lease.replica);
    if (it == stay.end()) continue;
    kept[static_cast<size_t>(it - stay.begin())].holders.push_back(
        {.lease = lease.id, .session = lease.session, .uid = lease.uid});
  }
  for (EvictResult::Kept& one : kept) {
    std::sort(one.holders.begin(), one.holders.end(),
              [](const Holder& a, const Holder& b) { return a.lease < b.lease; });
    if (one.holders.size() > kMaxHoldersReported) one.holders.resize(kMaxHoldersReported);
  }
  return kept;
}

const Replica* Store::State::Shown(const ReplicaKey& key) const {
  const auto it = current.find(key);
  if (it != current.end()) return it->second;
  // No new open gets these, but they are still there.
  for (auto replica = replicas.rbegin(); replica != replicas.rend(); ++replica) {
    if (replica->key == key) return &*replica;
  }
  return nullptr;
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
  const Replica* const replica = state_->Shown(key);
  if (replica == nullptr) return std::nullopt;
  return state_->View(*replica);
}

std::optional<ReplicaSummary> Store::Summary(const ReplicaKey& key) const {
  const Replica* const replica = state_->Shown(key);
  if (replica == nullptr) return std::nullopt;
  return state_->Summary(*replica);
}

std::vector<LeaseView> Store::Leases() const {
  std::vector<LeaseView> views;
  views.reserve(state_->leases.size());
  ForEachLease([&](const LeaseView& lease) { views.push_back(lease); });
  std::sort(views.begin(), views.end(),
            [](const LeaseView& a, const LeaseView& b) { return a.lease < b.lease; });
  return views;
}

std::vector<TierView> Store::Tiers() const { return state_->Tiers(); }

void Store::ForEachReplica(const std::function<void(const ReplicaSummary&)>& fn) const {
  for (const Replica& replica : state_->replicas) fn(state_->Summary(replica));
}

void Store::ForEachLease(const std::function<void(const LeaseView&)>& fn) const {
  for (const Lease& lease : state_->leases) {
    fn({.lease = lease.id,
        .session = lease.session,
        .uid = lease.uid,
        .replica = lease.replica->key,
        .since = lease.since,
        .generation = lease.replica->generation});
  }
}

void Store::ForEachPin(const std::function<void(const Digest&, TierIndex)>& fn) const {
  for (const auto& [digest, model] : state_->models) {
    for (size_t tier = 0; tier < model.pinned.size(); ++tier) {
      if (model.pinned[tier]) fn(digest, static_cast<TierIndex>(tier));
    }
  }
}

std::vector<EvictResult::Kept> Store::WhatStays(const Digest& model, std::optional<TierIndex> tier,
                                                Time now) const {
  std::vector<const Replica*> stay;
  for (const Replica& replica : state_->replicas) {
    if (replica.key.model != model || (tier.has_value() && replica.key.tier != *tier)) continue;
    const Load* const load = state_->FindLoad(replica.load);
    // As in On(EvictAsked): a load that nobody waits for any more goes by itself.
    const bool is_going = load != nullptr && load->cancelled && replica.waiters.empty();
    if (!is_going && !state_->IsEvictable(replica, now)) stay.push_back(&replica);
  }
  return state_->WhyKept(stay, now);
}

size_t Store::lease_count() const { return state_->leases.size(); }

}  // namespace trims::store

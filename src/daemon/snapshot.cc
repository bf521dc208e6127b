#include "daemon/snapshot.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "daemon/reactor_call.h"
#include "store/store.h"

namespace trims {

SessionTable SessionsOf(const LeaseServer* leases) {
  return {[leases] { return leases->sessions(); },
          [leases](store::SessionId id) { return leases->FindSession(id); }};
}

void Snapshot::Sort() {
  std::sort(replicas.begin(), replicas.end(),
            [](const store::ReplicaSummary& a, const store::ReplicaSummary& b) {
              return std::tie(a.replica, a.generation) < std::tie(b.replica, b.generation);
            });
  std::sort(leases.begin(), leases.end(),
            [](const store::LeaseView& a, const store::LeaseView& b) { return a.lease < b.lease; });
}

const Digest* Snapshot::DigestOf(const std::string& name) const {
  const auto it = names.find(name);
  return it == names.end() ? nullptr : &it->second;
}

const Snapshot::Model* Snapshot::Find(const Digest& digest) const {
  const auto it = models.find(digest);
  return it == models.end() ? nullptr : &it->second;
}

std::span<const store::ReplicaSummary> Snapshot::ReplicasOf(const Digest& digest) const {
  struct ByModel {
    bool operator()(const store::ReplicaSummary& a, const Digest& b) const {
      return a.replica.model < b;
    }
    bool operator()(const Digest& a, const store::ReplicaSummary& b) const {
      return a < b.replica.model;
    }
  };
  const auto [first, last] = std::equal_range(replicas.begin(), replicas.end(), digest, ByModel());
  return {first, last};
}

void LookAt(const Registry& registry, const SessionTable& sessions, const SnapshotRequest& request,
            Snapshot* out) {
  const store::Store& store = registry.store();
  Snapshot& snapshot = *out;
  snapshot.taken = Moment::Current();
  for (const store::TierConfig& tier : store.config().tiers)
    snapshot.tier_names.push_back(tier.name);

  const auto note = [&](const Digest& digest) -> Snapshot::Model& {
    const auto [it, is_new] = snapshot.models.try_emplace(digest);
    Snapshot::Model& model = it->second;
    if (!is_new) return model;
    if (const auto contents = registry.FindContents(digest)) {
      model.is_public = contents->is_public();
      model.name = model.is_public ? contents->names.back() : contents->label;
      model.manifest = contents->manifest;
    }
    return model;
  };
  for (const std::string& name : request.names) {
    if (const std::optional<Digest> digest = registry.DigestOfName(name)) {
      snapshot.names.emplace(name, *digest);
      note(*digest);
    }
  }
  for (const Digest& digest : request.digests) note(digest);
  store.ForEachReplica([&](const store::ReplicaSummary& replica) {
    if (request.only_these && !snapshot.models.contains(replica.replica.model)) return;
    note(replica.replica.model);
    snapshot.replicas.push_back(replica);
  });
  store.ForEachPin([&](const Digest& digest, store::TierIndex) {
    if (request.only_these && !snapshot.models.contains(digest)) return;
    note(digest).is_pinned = true;
  });
  if (request.with_leases) {
    if (!request.only_these) snapshot.leases.reserve(store.lease_count());
    store.ForEachLease([&](const store::LeaseView& lease) {
      if (request.only_these && !snapshot.models.contains(lease.replica.model)) return;
      snapshot.leases.push_back(lease);
    });
  }
  snapshot.session_count = sessions.count();
  snapshot.lease_count = store.lease_count();
  snapshot.loads_running = registry.loads_running();
  snapshot.counters = registry.counters();
  snapshot.rho = registry.rho();
}

void LookAtTiers(const Registry& registry, Snapshot* snapshot) {
  std::vector<store::TierView> views = registry.store().Tiers();
  for (size_t i = 0; i < views.size(); ++i) {
    snapshot->tiers.push_back(
        {std::move(views[i]), registry.tier(static_cast<store::TierIndex>(i)).health()});
  }
}

Result<Snapshot> TakeSnapshot(Reactor* reactor, const Registry* registry,
                              const SessionTable& sessions, const SnapshotRequest& request) {
  Snapshot snapshot;
  if (request.with_leases && !request.only_these) {
    // Fresh memory costs more than what is written there: this thread takes it, and touches
    // it. A few more leases than there are now may come until the pass.
    size_t leases = 0;
    RETURN_IF_ERROR(CallOnReactor(reactor, "leases to come", [&] {
      leases = registry->store().lease_count();
      return OkStatus();
    }));
    snapshot.leases.resize(leases + leases / 8 + 64);
    snapshot.leases.clear();
  }
  RETURN_IF_ERROR(CallOnReactor(reactor, "snapshot", [&] {
    LookAt(*registry, sessions, request, &snapshot);
    return OkStatus();
  }));
  if (request.with_tiers) {
    RETURN_IF_ERROR(CallOnReactor(reactor, "snapshot of tiers", [&] {
      LookAtTiers(*registry, &snapshot);
      return OkStatus();
    }));
  }
  snapshot.Sort();
  std::vector<store::SessionId> ids;
  ids.reserve(snapshot.leases.size());
  for (const store::LeaseView& lease : snapshot.leases) ids.push_back(lease.session);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  snapshot.sessions.reserve(ids.size());
  std::span<const store::SessionId> rest(ids);
  while (!rest.empty()) {
    const auto some = rest.first(std::min(rest.size(), kSessionsPerPass));
    rest = rest.subspan(some.size());
    RETURN_IF_ERROR(CallOnReactor(reactor, "snapshot of sessions", [&] {
      for (const store::SessionId id : some) {
        if (const auto session = sessions.find(id)) snapshot.sessions.emplace(id, *session);
      }
      return OkStatus();
    }));
  }
  return snapshot;
}

}  // namespace trims

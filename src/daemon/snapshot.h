// A snapshot: what is resident, who holds it and what it is called, as plain values that
// any thread may look at for as long as it likes.
//
// The reactor is held for one pass that copies: no sorting, no text, no protobuf, no file
// system, nothing that grows with a model's extents or tensors. Everything else is done by
// whoever asked. The control plane's answers are made from it; metrics and a fleet's agent
// are to be, too.
//
// What one pass finds is consistent: every lease is on a replica that is listed. Peers of
// sessions are looked up afterwards, in passes of kSessionsPerPass, which is as good: a
// session's peer never changes, and its id is never used again. One that has ended by then
// has no peer. What tiers add up to, the costliest part, has a pass of its own as well, and
// may be by a moment ahead of the rest.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "base/status.h"
#include "daemon/lease_server.h"
#include "daemon/registry.h"
#include "store/types.h"
#include "tier/manifest.h"
#include "tier/rho.h"

namespace trims {

inline constexpr size_t kSessionsPerPass = 8192;

// One moment on both clocks.
struct Moment {
  Time steady{};
  std::chrono::system_clock::time_point wall;
  static Moment Current() { return {Now(), std::chrono::system_clock::now()}; }
};

// The sessions there are; the reactor's thread.
struct SessionTable {
  std::function<size_t()> count;
  std::function<std::optional<SessionView>(store::SessionId)> find;
};
SessionTable SessionsOf(const LeaseServer* leases);  // Borrowed.

struct SnapshotRequest {
  std::vector<std::string> names;  // Catalogue names whose contents are wanted.
  std::vector<Digest> digests;     // Contents that are wanted also when they are not resident.
  bool only_these = false;         // Replicas, leases and pins of these, and of no others.
  bool with_leases = false;
  bool with_tiers = false;  // What all extents of each tier add up to.
};

struct Snapshot {
  struct Model {
    std::string name;                               // As Registry::NameOf, but "" for none.
    bool is_public = false;                         // `name` is a catalogue name, no label.
    bool is_pinned = false;                         // In any tier.
    std::shared_ptr<const ModelManifest> manifest;  // Null: nobody knows its contents.
  };
  struct Tier {
    store::TierView view;
    Status health;
  };

  Moment taken;
  std::vector<std::string> tier_names;  // By index.
  // All that are resident or pinned, and those asked for.
  std::unordered_map<Digest, Model> models;
  // Of the names asked for: the contents last looked at under each.
  std::map<std::string, Digest> names;
  std::vector<store::ReplicaSummary> replicas;                 // Sorted by key, then generation.
  std::vector<store::LeaseView> leases;                        // Sorted by id.
  std::unordered_map<store::SessionId, SessionView> sessions;  // Of these leases.
  std::vector<Tier> tiers;                                     // By index.
  size_t session_count = 0;
  size_t lease_count = 0;
  size_t loads_running = 0;
  RegistryCounters counters;
  RhoConstants rho;

  void Sort();

  // Null when there is none.
  const Digest* DigestOf(const std::string& name) const;
  const Model* Find(const Digest& digest) const;
  std::span<const store::ReplicaSummary> ReplicasOf(const Digest& digest) const;
};

// The pass: on the reactor's thread. Without peers and tiers, and without order, which Sort
// brings on any thread.
// `snapshot` is empty; what its vectors have reserved is not asked of the system
// while the reactor waits.
void LookAt(const Registry& registry, const SessionTable& sessions, const SnapshotRequest& request,
            Snapshot* snapshot);

void LookAtTiers(const Registry& registry, Snapshot* snapshot);

// All of it, from another thread than the reactor's. UNAVAILABLE when the reactor has ended.
Result<Snapshot> TakeSnapshot(Reactor* reactor, const Registry* registry,
                              const SessionTable& sessions, const SnapshotRequest& request);

}  // namespace trims

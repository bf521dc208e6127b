// The store: which replicas exist, who leases them, what may be evicted.
//
// A pure state machine. Apply() takes one event and the time and returns what is
// to be done; there are no system calls, no clock, no threads and no I/O in this
// folder, so admission, eviction, leases and single-flight are tested by seeded
// random histories (store_history_test.cc). The daemon's reactor owns the one
// instance. Thread-compatible.
//
// States of a replica:
//
//   absent --open/load/adopt--> loading --finished--> ready --force evict--> draining --last close--> absent
//                                  |                    |                        ^
//                                  +--failed--> absent  +--evicted, expired--> absent
//                                                       +--quarantine--> quarantined --last close--> absent
//
// Invariants (CheckInvariants): no leased, pinned or loading replica is ever
// evicted, under any policy; tier use never exceeds the budget; at most one load
// per replica is running; an extent that two replicas share is counted, loaded
// and released once; every open gets exactly one reply; lease counts equal live
// leases; nothing is visible before its load finished.
//
// Loads: a replica whose missing extents are partly being loaded by another load
// waits for that one, then asks for what is still missing. Admission: need =
// missing bytes x estimation_rate + measured internal memory; when used + need
// is over the budget, the policy names victims among ready, unleased, unpinned
// replicas out of their adoption grace until it fits; the victims are chosen
// first and evicted only when together they make the room, so a request that can
// not be met evicts nothing. Otherwise ReplyError RESOURCE_EXHAUSTED says need,
// free, evictable and names the holders.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "store/types.h"

namespace trims::store {

class Store final {
 public:
  explicit Store(Config config);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Applies one event at `now` (never earlier than the one before). Actions are
  // to be carried out in order. Unknown ids in events are answered or ignored,
  // never fatal: a session may end twice, a lease may be closed twice. The last
  // action for a LeaseClosed of an unknown lease is none; ask HasLease first.
  std::vector<Action> Apply(const Event& event, Time now);

  LoadId NewLoadId();

  // True when this lease is held by this session.
  bool HasLease(SessionId session, LeaseId lease) const;

  std::vector<ReplicaView> Replicas() const;               // Sorted by name, then key.
  std::optional<ReplicaView> Find(const ReplicaKey& key) const;
  std::vector<LeaseView> Leases() const;                   // Sorted by id.
  std::vector<TierView> Tiers() const;
  const Config& config() const;
  // When the next keep_alive runs out, for the caller's timer.
  std::optional<Time> NextDeadline() const;

  // Aborts with a description when an invariant is broken. O(everything).
  void CheckInvariants() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trims::store

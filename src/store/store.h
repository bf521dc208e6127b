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
//   absent --open, load, adopt--> loading --finished--> ready --force evict--> draining
//   loading --failed--> absent
//   ready --evicted, expired--> absent
//   ready, draining --quarantine--> quarantined
//   draining, quarantined --last close--> absent
//
// Invariants (CheckInvariants): no leased, pinned or loading replica is ever
// evicted, under any policy; tier use never exceeds the budget; at most one load
// per replica is running; an extent that two replicas share is counted, loaded
// and released once; every open gets exactly one reply; lease counts equal live
// leases; nothing is visible before its load finished.
//
// Rules, each with its tests in store_test.cc:
//
// Opens. A ready replica is leased at once. A loading one is joined: one load,
// however many wait. An absent one is loaded: access, quota, admission, StartLoad.
// OpenResidentAsked and ReattachAsked never start a load; a reattach is granted
// from a ready replica or one that is being adopted, whatever its generation,
// since equal digests are equal bytes. Every open, prefetch and reattach gets
// exactly one ReplyLease, ReplyReady or ReplyError, also when it is cancelled or
// its session ends (CANCELLED); what comes after that for its id is ignored.
//
// Access. A model whose plan is not public is opened by administrators, with a
// proof, or by a uid that gave one before and is still remembered. Everybody else
// gets UnknownModelError, the answer for a model that does not exist; messages
// about room name no model that the asker may not open. Whether a model is public
// is what its latest plan or VisibilityChanged said, whichever came later.
//
// Loads. A replica whose missing extents are partly being loaded by another load
// waits for that one, then asks for what is still missing. When nobody waits for
// a load any more, directly or through shared extents, CancelLoad is given, once.
// Nothing can be taken back then: an open that comes before the load ended waits
// for the end and, if the load did stop, starts again. Extents that arrive after
// all are kept, and evictable. A failed load gives its error to all that wait,
// once; the next open starts afresh. When an adoption fails, opens go on with a
// load from the source.
//
// Admission. need = missing bytes x estimation_rate + internal memory, and never
// less than the missing bytes. Internal memory is the largest peak that
// administrators, or the asking uid itself, reported at a close of that model in
// that tier. When used + need is over the budget, the policy orders the
// candidates: ready, unleased, unpinned, out of their adoption grace. Victims are
// taken in that order until they make the room, then those that turn out not to
// be needed are spared, the most valued first; so one large victim saves several
// small ones that came before it, and nobody is evicted whose extents stay
// because others share them. Only when the victims together make the room are
// they evicted; a request that can not be met evicts nothing and is answered
// RESOURCE_EXHAUSTED with need, free, evictable and the holders. So is one whose
// load found less memory than the budget promised (LoadFailed with free_bytes), after
// the same search for victims among what is left. flush evicts all
// candidates that free anything; never evicts none; eager has none but what was
// prefetched or adopted, in the order of lru. When the configuration lowers a
// budget, as much as can be is evicted; what is left over the budget stays until
// it may go, and nothing is added before that.
//
// Quotas, per uid: leases and waiting opens together; bytes of the replicas that
// it leases or waits for, each once. Prefetches count for nobody.
//
// Idle time. The countdown of keep_alive starts with the end of the last lease, the
// end of a load that leased nothing, or unpinning, and never runs out before the
// adoption grace. It is stopped by a lease or a pin. Zero, policy eager,
// persist_host = false in host tiers, and persist_only_host in all others drop a replica
// in the Apply that ended its last lease; a prefetched one stays for its first. Longer ones are
// dropped by Tick.
//
// Draining (EvictAsked with force on a leased replica): no new lease; the bytes
// are good, so a fresh open starts a new incarnation, with a new generation, that
// shares the extents and needs no load while the old one drains. A force evict
// also cancels a load, whose waiters get ABORTED. Pin marks outlive evictions.
//
// Quarantine: the bytes are bad. All replicas that refer to a bad extent get no
// new lease, and ReleaseExtents takes the bad extents' keys away at once, so that a
// fresh open loads good copies under the same keys. The bad ones are counted in
// used_bytes until the last lease on them ends. A loading replica that built on
// them loads that part again.
//
// Adoption: comes before opens. Refused (Notify kFailed; ReleaseExtents of what only
// it had) when its key is current, an extent of it is being loaded, or it does not
// fit the free budget. Two adoptions may share extents; one that fails takes
// nothing from the other.
#pragma once

#include <functional>
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
  // Ids of the caller's own making are checked: two waiting opens, or two running
  // loads, of one number abort, as does a ConfigChanged with other tiers.
  // Opening a resident model and closing it take constant time.
  std::vector<Action> Apply(const Event& event, Time now);

  LoadId NewLoadId();

  // True when this lease is held by this session.
  bool HasLease(SessionId session, LeaseId lease) const;
  // The mark that PinAsked set, whether anything of the model is resident or not.
  bool IsPinned(const Digest& model, TierIndex tier) const;
  // nullopt when nothing is remembered of the model.
  std::optional<bool> IsPublic(const Digest& model) const;

  std::vector<ReplicaView> Replicas() const;  // Sorted by name, then key.
  // The incarnation that opens get; without one, the latest that is still leased.
  std::optional<ReplicaView> Find(const ReplicaKey& key) const;
  std::vector<LeaseView> Leases() const;  // Sorted by id.
  // Constant time for each replica, and for each extent of those that share any.
  std::vector<TierView> Tiers() const;

  // One look at everything, for whoever must not keep the caller's thread: in no
  // particular order, constant time each, nothing copied that grows with extents or
  // uids. What `fn` gets is valid until it returns; it must not call Apply.
  void ForEachReplica(const std::function<void(const ReplicaSummary&)>& fn) const;
  void ForEachLease(const std::function<void(const LeaseView&)>& fn) const;
  // Every pin mark, with replicas or without.
  void ForEachPin(const std::function<void(const Digest& model, TierIndex tier)>& fn) const;
  size_t lease_count() const;
  // As Find, in constant time while there is an incarnation that opens get.
  std::optional<ReplicaSummary> Summary(const ReplicaKey& key) const;
  // What an EvictAsked without force would keep at `now`, as its answer would say it.
  std::vector<EvictResult::Kept> WhatStays(const Digest& model, std::optional<TierIndex> tier,
                                           Time now) const;

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

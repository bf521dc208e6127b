// What the store remembers. Internal to src/store: store.cc changes it,
// admission.cc makes room in it, views.cc shows it and invariants.cc checks it.
//
// Replicas refer to extents, leases and waiting opens refer to replicas, replicas
// refer to models. All referring is by plain pointer into containers with stable
// addresses that State owns; whoever removes a record removes what points to it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "store/policy.h"
#include "store/store.h"
#include "store/types.h"

namespace trims::store {

// Limits of what is remembered about models that are not resident, and of what
// clients can make the store remember about resident ones.
inline constexpr size_t kMaxRememberedModels = 65536;
inline constexpr size_t kMaxProvedUidsPerModel = 4096;
inline constexpr size_t kMaxPeaksPerModel = 4096;
// Of holders named in an error message.
inline constexpr size_t kMaxHoldersInMessage = 8;
// Without an estimate or a measurement, loading is taken to run at this rate.
inline constexpr double kAssumedLoadBytesPerSecond = 1e9;

struct Replica;

// The bytes of one extent in one tier, or the place reserved for them.
struct HeldExtent {
  Digest key;
  TierIndex tier = 0;
  // Scratch of Tiers, valid in its look of this number: what was met so far. Beside what else
  // it reads, because it walks through very many of these.
  bool leased = false;
  bool pinned = false;
  bool revoked = false;
  bool in_service = false;
  uint64_t look = 0;
  uint32_t evictable = 0;  // Referring replicas that could go.
  uint32_t refs = 0;       // Replicas with a slot that points here.
  uint64_t bytes = 0;
  uintptr_t referrers = 0;    // Sum of their addresses: with one left, its address.
  bool ready = false;         // Bytes are there and verified.
  bool present = false;       // The caller has a descriptor of it: ready or adopted.
  bool condemned = false;     // Quarantined: counted, but not in TierUse::extents any more.
  uint32_t chosen = 0;        // Scratch of admission: referring replicas chosen as victims.
  std::vector<LoadId> loads;  // That will make it ready. One, or several adoptions.
};

struct Slot {
  Digest key;
  uint64_t bytes = 0;
  HeldExtent* held = nullptr;
};

struct TierUse {
  std::unordered_map<Digest, std::unique_ptr<HeldExtent>> extents;
  std::unordered_map<const HeldExtent*, std::unique_ptr<HeldExtent>> condemned;
  uint64_t used = 0;
  // Use never exceeds this: the budget, or what was in use when the budget was lowered.
  uint64_t ceiling = 0;
  uint64_t evictions = 0;
  std::optional<Duration> last_victim_idle;
};

// What is known of a model in all tiers. Outlives its replicas, up to a limit.
struct Model {
  Digest digest;
  bool is_public = false;
  uint32_t replicas = 0;
  std::vector<bool> pinned;  // By tier.
  std::unordered_set<uint32_t> proved_uids;
  // Peak internal memory by tier, reported by administrators and by each uid. A
  // uid's report counts for its own opens only: else any client could make a
  // model inadmissible for all by one lie.
  std::vector<uint64_t> trusted_peaks;
  std::map<std::pair<TierIndex, uint32_t>, uint64_t> peaks;
  std::vector<uint64_t> highest_peaks;              // By tier, of all reports that are remembered.
  std::optional<std::list<Digest>::iterator> idle;  // In State::idle_models.

  bool AnyPinned() const;
};

// Who waits for an answer.
struct Waiter {
  enum class Kind : uint8_t { kOpen, kResident, kReattach, kLoad };
  OpenId open = 0;
  Kind kind = Kind::kOpen;
  SessionId session = 0;
  uint32_t uid = 0;
  bool is_admin = false;
};

// One incarnation of a ReplicaKey.
struct Replica {
  ReplicaKey key;
  uint64_t serial = 0;  // Unique in this store.
  uint64_t generation = 0;
  Model* model = nullptr;
  std::string name;
  ReplicaState state = ReplicaState::kLoading;
  std::vector<Slot> slots;
  uint64_t bytes = 0;     // Of all slots.
  uint64_t unshared = 0;  // Of what only its slots point to.
  uint32_t shared = 0;    // Slots that point to what others point to as well.
  uint32_t leases = 0;
  uint64_t opens = 0;
  uint64_t load_number = 0;
  double priority = 0;
  Time created_at{};
  Time loaded_at{};
  Time last_open{};
  Time idle_since{};  // While ready: end of the last lease, or of the load, or unpinning.
  Time grace_until{};
  bool ever_leased = false;
  bool had_to_load = false;   // Or to wait for a load; not when all its extents were there.
  bool planned_cost = false;  // reload_cost came with the plan.
  Duration reload_cost{};
  std::optional<std::optional<Duration>> keep_alive;
  std::optional<Time> expires_at;
  // While loading: either a load of its own runs, or it waits for others' loads.
  LoadId load = 0;
  std::vector<LoadId> awaited;
  std::list<Waiter> waiters;
  bool discard = false;  // Evicted while loading: drop when the load ends and nobody wants it.
  std::list<Replica>::iterator self;
};

struct Load {
  LoadId id = 0;
  Replica* replica = nullptr;
  std::vector<HeldExtent*> extents;
  std::vector<Replica*> dependents;  // Other replicas that wait for it.
  bool adoption = false;
  bool cancelled = false;
  Time started{};
  uint64_t bytes = 0;
};

struct Lease {
  LeaseId id = 0;
  SessionId session = 0;
  uint32_t uid = 0;
  bool is_admin = false;
  Replica* replica = nullptr;
  Time since{};
};

// All leases, side by side, so that a look at tens of thousands of them walks through memory
// in order instead of waiting for each. A lease's place changes when others end: a pointer
// holds until the next change only.
class LeaseTable final {
 public:
  void Insert(const Lease& lease) {
    places_.emplace(lease.id, leases_.size());
    leases_.push_back(lease);
  }
  // Null when there is none of that number.
  const Lease* Find(LeaseId id) const {
    const auto it = places_.find(id);
    return it == places_.end() ? nullptr : &leases_[it->second];
  }
  void Erase(LeaseId id) {
    const auto it = places_.find(id);
    if (it == places_.end()) return;
    const size_t place = it->second;
    places_.erase(it);
    if (place + 1 != leases_.size()) {
      leases_[place] = leases_.back();
      places_[leases_[place].id] = place;
    }
    leases_.pop_back();
  }
  size_t size() const { return leases_.size(); }
  std::vector<Lease>::const_iterator begin() const { return leases_.begin(); }
  std::vector<Lease>::const_iterator end() const { return leases_.end(); }

 private:
  std::vector<Lease> leases_;
  std::unordered_map<LeaseId, size_t> places_;
};

struct Session {
  std::unordered_set<LeaseId> leases;
  std::unordered_set<OpenId> waiting;
};

// What one uid holds, for quotas. Waiting opens count: they will be leases.
struct User {
  uint32_t leases = 0;
  uint32_t waiting = 0;
  uint64_t bytes = 0;  // Of the replicas in `holds`, each once.
  std::unordered_map<const Replica*, uint32_t> holds;
};

struct ReplicaKeyHash {
  size_t operator()(const ReplicaKey& key) const noexcept {
    return std::hash<Digest>()(key.model) ^
           ((static_cast<size_t>(key.tier) << 8 | static_cast<size_t>(key.granularity)) *
            0x9e3779b97f4a7c15);
  }
};

// Why a replica can not be loaded now.
struct Refusal {
  bool too_large = false;  // For the whole budget.
  uint64_t need = 0;
  uint64_t missing = 0;
  uint64_t internal = 0;
  uint64_t free = 0;
  uint64_t evictable = 0;
  std::string found;  // What ran out of memory below the budget said; "" when the budget decided.
};

struct Store::State {
  explicit State(Config config_in);

  // --- Events (store.cc) ---
  void On(const OpenAsked& event);
  void On(const OpenResidentAsked& event);
  void On(const OpenCancelled& event);
  void On(const LeaseClosed& event);
  void On(const ReattachAsked& event);
  void On(const SessionEnded& event);
  void On(const LoadFinished& event);
  void On(const LoadFailed& event);
  void On(const AdoptionStarted& event);
  void On(const LoadAsked& event);
  void On(const PinAsked& event);
  void On(const VisibilityChanged& event);
  void On(const EvictAsked& event);
  void On(const QuarantineAsked& event);
  void On(const ConfigChanged& event);
  void On(const Tick& event);

  // --- Asking (store.cc) ---
  // Lease, ready reply, or a place in the queue of the load.
  void Want(const Waiter& waiter, Replica& replica);
  void Grant(const Waiter& waiter, Replica& replica, bool loaded);
  void Reply(OpenId open, Status status);
  Status CheckQuota(uint32_t uid, const Replica* replica, uint64_t bytes) const;
  void Hold(uint32_t uid, const Replica& replica, bool waiting);
  void Unhold(uint32_t uid, const Replica& replica, bool waiting);
  // Takes the waiter out of all tables, without answering.
  Waiter TakeWaiter(Replica& replica, std::list<Waiter>::iterator it);
  // Answers and forgets one waiter; stops what nobody waits for any more.
  void CancelWaiter(OpenId open, const Status& status);
  void EndLease(const Lease& lease);

  // --- Loading (store.cc) ---
  Model& ModelOf(const Digest& digest);
  // Forgets an idle model, or puts it in the queue of those to forget.
  void SettleModel(Model& model);
  Replica& NewReplica(const ReplicaKey& key, const ModelPlan& plan, std::vector<Slot> slots);
  // Finds the replica or starts one. What OpenAsked and LoadAsked share.
  void WantPlanned(const Waiter& waiter, const ReplicaKey& key, const ModelPlan& plan,
                   bool proved_access, const std::optional<std::optional<Duration>>& keep_alive);
  // Refers to whatever of its extents is ready.
  void Attach(Replica& replica);
  // Points an empty slot to bytes, and Deref takes it off them. Only these two touch
  // the references, and what is counted of them.
  void Refer(Replica& replica, Slot& slot, HeldExtent& held);
  // Next step of loading: wait for others, load what is missing, or be ready.
  void Advance(Replica& replica);
  void BecomeReady(Replica& replica);
  // All waiters get their error; the replica is forgotten.
  void Fail(Replica& replica, const Status& status);
  void Refuse(Replica& replica, const Refusal& refusal);
  // Nobody waits for this replica's load, directly or not: tell it to stop.
  void StopIfUnwanted(Replica& replica);
  void Await(Replica& replica, Load& load);
  void Unawait(Replica& replica);
  Load* FindLoad(LoadId id);

  // --- Leaving (store.cc) ---
  void Deref(Replica& replica, Slot& slot, std::vector<Digest>* released);
  void EmitRelease(TierIndex tier, std::vector<Digest> released);
  // Removes a replica that nobody leases, waits for or loads.
  void Drop(Replica& replica, Notify::Kind kind, std::string_view detail);
  void Erase(Replica& replica);
  void MakeNotCurrent(Replica& replica);
  // Starts, restarts or ends the countdown of an unleased ready replica; drops it when due.
  void SettleExpiry(Replica& replica);
  void ClearExpiry(Replica& replica);
  std::optional<Duration> IdleTime(const Replica& replica) const;
  std::string_view ExpiryReason(const Replica& replica) const;

  // Marks the model in that tier, now and in future; returns how many replicas it
  // has there. Unpinning may drop them, and with the last one `model`.
  uint32_t SetPinned(Model& model, TierIndex tier, bool pinned);

  // --- Making room (admission.cc) ---
  std::optional<Refusal> MakeRoom(const Replica& replica, uint64_t missing);
  // After a load found only `free` bytes of memory for its `missing`: starts it again when
  // enough could be evicted, else answers whoever waits.
  void RetryOrRefuse(Replica& replica, uint64_t missing, uint64_t free, const Status& status);
  // Evicts by policy until `used` is at most the budget, or as near as can be.
  void ShrinkToBudget(TierIndex tier);
  bool IsEvictable(const Replica& replica, Time at) const;
  bool IsEvictable(const Replica& replica) const { return IsEvictable(replica, now); }
  std::vector<Replica*> Evictable(TierIndex tier);
  // Of `ordered` the first that free `target` together, without those that are
  // not needed for it. Empty when all of them do not free that much.
  std::vector<Replica*> ChooseVictims(const std::vector<Replica*>& ordered, uint64_t target,
                                      bool all);
  std::vector<Replica*> InPolicyOrder(const std::vector<Replica*>& candidates);
  uint64_t FreedByEvicting(const std::vector<Replica*>& replicas);
  void EvictVictims(const std::vector<Replica*>& victims);
  Candidate CandidateOf(const Replica& replica) const;
  uint64_t InternalBytes(const Replica& replica) const;
  Status Describe(const Refusal& refusal, const Replica& replica, const Waiter& asker) const;
  // "2 leases, pinned": why a replica stays; "" when it is evictable.
  std::string WhyKept(const Replica& replica, Time at) const;
  // The same of several, with who holds them.
  std::vector<EvictResult::Kept> WhyKept(const std::vector<const Replica*>& stay, Time at) const;
  bool MayKnow(const Model& model, uint32_t uid, bool is_admin) const;

  // --- Views and checks (views.cc, invariants.cc) ---
  ReplicaSummary Summary(const Replica& replica) const;
  ReplicaView View(const Replica& replica) const;
  // The incarnation that Find shows; null when there is none.
  const Replica* Shown(const ReplicaKey& key) const;
  std::vector<TierView> Tiers();
  void CheckInvariants() const;

  bool Pinned(const Replica& replica) const { return replica.model->pinned[replica.key.tier]; }
  bool ValidTier(TierIndex tier) const { return tier < tiers.size(); }
  bool IsHost(TierIndex tier) const { return config.tiers[tier].kind == TierKind::kHost; }
  // Remembers that this uid may open the model.
  void Prove(Model& model, uint32_t uid);
  void Say(Notify::Kind kind, const Replica& replica, std::string_view detail = {},
           std::optional<uint32_t> uid = std::nullopt);
  uint64_t FreeBytes(TierIndex tier) const;

  Config config;
  std::unique_ptr<EvictionPolicy> policy;
  Time now{};
  std::vector<Action> out;

  std::vector<TierUse> tiers;
  std::list<Replica> replicas;  // In order of creation.
  // The incarnation that a new open gets: loading or ready.
  std::unordered_map<ReplicaKey, Replica*, ReplicaKeyHash> current;
  std::unordered_map<Digest, Model> models;
  std::list<Digest> idle_models;  // Oldest first.
  std::unordered_map<LoadId, Load> loads;
  LeaseTable leases;
  std::unordered_map<SessionId, Session> sessions;
  std::unordered_map<uint32_t, User> users;
  std::unordered_map<OpenId, std::pair<Replica*, std::list<Waiter>::iterator>> waiting;
  std::map<std::pair<Time, uint64_t>, Replica*> expiry;  // By time and serial.

  uint64_t next_lease = 0;
  uint64_t next_load = 0;
  uint64_t next_generation = 0;
  uint64_t next_serial = 1;
  uint64_t next_load_number = 1;
  uint64_t last_look = 0;  // Of Tiers.
};

}  // namespace trims::store

// Opens on their way from a client's words to an answer.
//
//   Open ──┬─ by name ──── Contents::Current ─┬─────────────┐
//          │                                  └─ look ──────┤
//          ├─ by file ──── Contents::KnownFiles ─┬──────────┤
//          │                                     └─ look ───┤
//          └─ by digest ────────────────────────────────────┴─> the store ──> answer
//
// An open in flight stands in one table, and each stage that it can wait in is a column
// of it: what waits for a look or for a replica is found by an index that only this
// class keeps, and Take() takes an open out of all of it. Exactly one answer comes for
// each open that is not cancelled.
//
// Thread rule: the reactor's thread. Callbacks come on that thread too, possibly before
// the call that takes them returns, and must not call back except by Reactor::Post.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/unique_fd.h"
#include "daemon/contents.h"
#include "daemon/rates.h"
#include "daemon/reactor.h"
#include "daemon/residents.h"
#include "daemon/tiers.h"
#include "store/store.h"
#include "trace/profile.h"

namespace trims {

enum class OpenPhase : uint8_t {
  kQueued = 0,
  kResolving = 1,
  kHashing = 2,
  kLoading = 3,
  kVerifying = 4
};  // As in lease.fbs.

struct OpenRequest {
  store::SessionId session = 0;
  uint32_t uid = 0;
  bool is_admin = false;
  std::string model;                              // Name or digest; ignored with a file.
  UniqueFd file;                                  // A passed weights file.
  std::string label;                              // Of the file, for listings.
  std::optional<store::TierIndex> tier;           // nullopt: the host.
  std::optional<store::Granularity> granularity;  // nullopt: auto.
  std::optional<Digest> expected;
  std::optional<std::optional<Duration>> keep_alive;
  bool take_lease = true;     // false: prefetch for an operator.
  bool resolve_only = false;  // Find out the digest (OpenResult::replica.model), load nothing.
};

struct OpenResult {
  Status status;
  uint64_t need_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t evictable_bytes = 0;
  store::LeaseId lease = 0;
  uint64_t generation = 0;
  bool loaded = false;
  store::ReplicaKey replica;
  std::shared_ptr<const LentReplica> lent;  // Not null with a lease.
};

struct OpenCounters {
  uint64_t answered = 0;
  uint64_t hits = 0;
  uint64_t failed = 0;
};

class Opens final {
 public:
  using Done = std::function<void(OpenResult)>;
  using Progress = std::function<void(OpenPhase phase, uint64_t done_bytes, uint64_t total_bytes)>;
  struct Parts {  // All borrowed.
    Reactor* reactor = nullptr;
    const Tiers* tiers = nullptr;
    Contents* contents = nullptr;
    Residents* residents = nullptr;
    Rates* rates = nullptr;
    Profile* profile = nullptr;
    store::Store* store = nullptr;  // To ask; what happens goes through `apply`.
    std::function<void(const store::Event&)> apply;
  };
  struct Settings {
    uint64_t slab_bytes = 0;
    bool persist_host = true;
  };
  Opens(Parts parts, Settings settings, store::OpenId first_id);
  Opens(const Opens&) = delete;
  Opens& operator=(const Opens&) = delete;

  void SetSettings(const Settings& settings) { settings_ = settings; }
  store::OpenId NewId() { return next_id_++; }
  // Exactly one `done`, unless the open is cancelled first. `progress` may be null.
  void Open(store::OpenId id, OpenRequest request, Done done, Progress progress);
  void Reattach(store::OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                const store::ReplicaKey& replica, uint64_t generation, Done done);
  // Asks for a copy in host memory that nobody waits for, of what was loaded elsewhere from
  // these files.
  void KeepOnHost(const store::ReplicaKey& loaded, const Readable& readable);
  // No `done` comes any more. Unknown ids are ignored.
  void Cancel(store::OpenId id);
  // Those of KeepOnHost: a copy that is on its way only because of a load elsewhere is
  // nobody's wish.
  void CancelOwn(const Digest& model);

  // What the store said.
  void OnReply(const store::ReplyLease& reply);
  void OnReply(const store::ReplyReady& reply);
  void OnReply(store::ReplyError reply);
  // What a look found.
  void OnLookProgress(const LookKey& key, uint64_t done, uint64_t total);
  void OnLooked(const LookKey& key, const Contents::Looked& looked);
  void OnLoadProgress(const store::ReplicaKey& replica, OpenPhase phase, uint64_t done,
                      uint64_t total);

  // For a load of this replica: files that one who waits for it has brought, and whether
  // anybody but the daemon itself waits.
  struct Waiting {
    Readable brought;
    bool is_wanted = false;
    bool is_anybody = false;
  };
  Waiting WaitingFor(const store::ReplicaKey& replica) const;

  const OpenCounters& counters() const { return counters_; }
  size_t in_flight() const { return pending_.size(); }

  // Aborts with a description when the indexes and the table differ.
  void CheckInvariants() const;

 private:
  struct Asked {  // Of the store.
    store::ReplicaKey replica;
    bool resident_only = false;  // As OpenResidentAsked.
  };
  // Where an open waits: nowhere (within a call), for a look, for the store.
  using Stage = std::variant<std::monostate, LookKey, Asked>;
  struct Pending {
    OpenRequest request;
    Done done;
    Progress progress;
    std::shared_ptr<ModelContents> contents;  // Once known.
    Readable brought;                         // Of a passed descriptor.
    bool retried = false;                     // After a file changed under the load.
    bool is_own = false;                      // Asked by the daemon itself, for nobody.
    Time asked_at = Now();
    Time fresh_after = asked_at;  // Looks from before say nothing about its files.
    Stage stage;
  };

  Pending& Add(store::OpenId id, OpenRequest request, Done done, Progress progress);
  Pending* Find(store::OpenId id);
  // Out of the table and every index. Null when unknown.
  std::unique_ptr<Pending> Take(store::OpenId id);
  void Move(store::OpenId id, Pending& pending, Stage stage);

  void StartNamed(store::OpenId id, Pending& pending);
  void StartPassed(store::OpenId id, Pending& pending);
  void Proceed(store::OpenId id, Pending& pending, std::shared_ptr<ModelContents> contents);
  void AskStore(store::OpenId id, Pending& pending, const store::ReplicaKey& replica,
                bool resident_only);
  Result<store::ModelPlan> PlanFor(const Pending& pending, const store::ReplicaKey& replica) const;
  void Fail(store::OpenId id, OpenResult result);

  const Parts parts_;
  Settings settings_;
  store::OpenId next_id_;
  OpenCounters counters_;
  std::unordered_map<store::OpenId, std::unique_ptr<Pending>> pending_;
  // Of `stage`, kept by Move and Take.
  std::unordered_map<LookKey, std::set<store::OpenId>> by_look_;
  std::map<store::ReplicaKey, std::set<store::OpenId>> by_replica_;
};

}  // namespace trims

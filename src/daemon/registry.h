// The registry: what the worker's parts have to do with each other.
//
//              OpenRequest            LoadedReplica, files, names
//   callers ──> Opens ── Contents ──────────────┐
//                 │ events                      │
//                 v                             v
//               Store ── actions ──> Residents, Watchman, Adoption ── Ledger ──> keeper
//
// It feeds the store with events, hands each of the store's actions to the part that
// carries it out, and keeps no fact of its own but counters and observers. It speaks no
// protocol: the lease server and the control plane are its callers.
//
// Thread rule: the reactor's thread only. Callbacks come on that thread too,
// possibly before the call that takes them returns, and must not call back into
// the registry except by Reactor::Post.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/adoption.h"
#include "daemon/catalogue.h"
#include "daemon/config.h"
#include "daemon/contents.h"
#include "daemon/ledger.h"
#include "daemon/loaders.h"
#include "daemon/opens.h"
#include "daemon/rates.h"
#include "daemon/reactor.h"
#include "daemon/residents.h"
#include "daemon/tiers.h"
#include "daemon/watchman.h"
#include "store/store.h"
#include "trace/profile.h"

namespace trims {

struct RegistryCounters {
  uint64_t opens = 0;
  uint64_t opens_hit = 0;
  uint64_t opens_failed = 0;
  uint64_t verifications = 0;  // Replicas checked, and those found wrong.
  uint64_t quarantines = 0;
};

class Registry final {
 public:
  struct Options {
    DaemonConfig config;
    uint64_t id_base = 1;
    int link = -1;                  // To the keeper; borrowed. -1: no ledger (tests).
    std::vector<ServedTier> tiers;  // One of the host, and those of devices.
    Devices* devices = nullptr;     // Borrowed, outlives the registry; null: there are none.
    // A device was lost. On the reactor's thread.
    std::function<void(const std::string& tier)> on_tier_lost;
    std::unique_ptr<Catalogue> catalogue;
    std::unique_ptr<SidecarStore> sidecars;  // May be null.
  };
  Registry(Reactor* reactor, Options options);
  ~Registry();  // Waits for the loader threads.
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // What the keeper kept for us: to be called with every entry, then once
  // FinishAdoption, before anything else.
  void AdoptEntry(LinkMessage entry) { adoption_.Add(std::move(entry)); }
  void FinishAdoption() { adoption_.Start(config_.slab_bytes); }
  // In the background: what an earlier worker has not measured yet, and the scrub of devices.
  void StartBackground();

  using Done = Opens::Done;
  using Progress = Opens::Progress;
  store::OpenId NewOpenId() { return opens_.NewId(); }
  // Exactly one `done`, unless the open is cancelled first. `progress` may be null.
  void Open(store::OpenId id, OpenRequest request, Done done, Progress progress);
  // No `done` comes any more. Unknown ids are ignored.
  void CancelOpen(store::OpenId id) { opens_.Cancel(id); }
  // NOT_FOUND when this session has no such lease.
  Status Close(store::SessionId session, store::LeaseId lease, uint64_t peak_internal_bytes);
  void Reattach(store::OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                const store::ReplicaKey& replica, uint64_t generation, Done done);
  void EndSession(store::SessionId session) { Apply(store::SessionEnded{session}); }

  // --- For the control plane -------------------------------------------------
  struct EvictOutcome {
    std::vector<store::ReplicaSummary> before;  // What the request was about, sorted by key.
    store::EvictResult result;
  };
  EvictOutcome Evict(const Digest& model, std::optional<store::TierIndex> tier, bool force);
  void Pin(const Digest& model, store::TierIndex tier, bool pinned);
  bool IsPinned(const Digest& model, store::TierIndex tier) const {
    return store_.IsPinned(model, tier);
  }
  // As Watchman::Check.
  void Verify(const store::ReplicaKey& replica, std::shared_ptr<LoadControl> control,
              std::function<void(Status)> done) {
    watchman_.Check(replica, std::move(control), std::move(done));
  }
  // A model's contents, whether resident or not. Null when unknown.
  std::shared_ptr<const ModelContents> FindContents(const Digest& digest) const {
    return contents_.Find(digest);
  }
  std::optional<Digest> DigestOfName(const std::string& name) const {
    return contents_.DigestOfName(name);
  }
  // The name has been removed, or stands for other files now.
  void ForgetName(const std::string& name) { contents_.ForgetName(name); }
  // A short name for messages and listings.
  std::string NameOf(const Digest& model) const { return contents_.NameOf(model); }

  using Observer = std::function<void(const store::Notify&)>;
  uint64_t AddObserver(Observer observer);
  void RemoveObserver(uint64_t id) { observers_.erase(id); }

  void ApplyConfig(const DaemonConfig& config);
  const DaemonConfig& config() const { return config_; }
  const store::Store& store() const { return store_; }
  Catalogue& catalogue() const { return contents_.catalogue(); }
  RegistryCounters counters() const;
  const RhoConstants& rho() const { return rates_.rho(); }
  size_t loads_running() const { return residents_.loads_running(); }
  // Something is being looked at, loaded or adopted.
  bool is_busy() const {
    return loads_running() > 0 || contents_.looks_running() > 0 || !adoption_.is_over();
  }
  const Tiers& tiers() const { return tiers_; }
  std::optional<store::TierIndex> TierByName(const std::string& name) const {
    return tiers_.ByName(name);
  }
  Result<store::TierIndex> ResolveTier(const std::string& text) const {
    return tiers_.Resolve(text);
  }
  const Tier& tier(store::TierIndex index) const { return tiers_[index]; }
  Devices* devices() const { return tiers_.devices(); }
  Profile& profile() { return profile_; }

  // Aborts with a description when a part contradicts itself or another. O(everything).
  void CheckInvariants() const;

 private:
  store::Config StoreConfig() const;
  Opens::Settings OpenSettings() const;
  Watchman::Settings WatchSettings() const;
  void OnNamesChanged(const std::shared_ptr<ModelContents>& contents);
  void OnLoadEnded(const store::ReplicaKey& replica, const Status& status,
                   const Readable& readable);

  void Apply(const store::Event& event);
  void ArmTimer();
  // What the store wants done.
  void Do(store::StartLoad& action);
  void Do(store::CancelLoad& action);
  void Do(store::ReleaseExtents& action) { residents_.Release(action); }
  void Do(store::ReplyLease& action) { opens_.OnReply(action); }
  void Do(store::ReplyReady& action) { opens_.OnReply(action); }
  void Do(store::ReplyError& action) { opens_.OnReply(std::move(action)); }
  void Do(store::AccessProved& action);
  void Do(store::Notify& action);
  void Do(store::EvictResult& action);
  void Do(store::PinResult&) {}

  Reactor* const reactor_;
  DaemonConfig config_;
  const uint64_t id_base_;
  const Tiers tiers_;
  Profile profile_;
  store::Store store_;
  uint64_t quarantines_ = 0;
  EvictOutcome* evict_outcome_ = nullptr;  // Where Do(EvictResult) writes, during Evict.
  std::map<uint64_t, Observer> observers_;
  uint64_t next_observer_ = 1;
  std::optional<Time> timer_at_;
  Reactor::TimerId timer_{};

  // What jobs of the loaders use lies before them, and what they call after: the destructor
  // ends the loaders first of all.
  std::unique_ptr<Loaders> loaders_;
  Ledger ledger_;
  Rates rates_;
  Contents contents_;
  Residents residents_;
  Opens opens_;
  Watchman watchman_;
  Adoption adoption_;
};

}  // namespace trims

// What is resident: the descriptors of extents in every tier, the loads that bring
// them in, and what a lease hands out of them.
//
// The store decides which extents are to be there; this class has them. An extent
// stands here once, whoever shares it, from the moment a tier has made or adopted it
// until the store releases it, and the keeper's ledger is kept equal to that: when a
// client has a lease, the keeper has the memory.
//
// A load runs on a loader thread (LoadOnLoaderThread) and ends on the reactor
// (FinishLoad), which tells the store.
//
// Thread rule: the reactor's thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "daemon/contents.h"
#include "daemon/ledger.h"
#include "daemon/loaders.h"
#include "daemon/rates.h"
#include "daemon/reactor.h"
#include "daemon/tiers.h"
#include "store/store.h"
#include "trace/profile.h"

namespace trims {

// Everything that a lease passes on. Immutable; shared with packets that wait in
// slow clients' queues, so that eviction never closes a descriptor under them.
struct LentReplica {
  store::ReplicaKey key;
  std::shared_ptr<const ModelManifest> manifest;
  std::shared_ptr<const ReadOnlyRegion> index;
  std::vector<std::shared_ptr<const ResidentExtent>> extents;  // In layout order.
  std::vector<uint64_t> extent_bytes;                          // What a client maps.
  uint64_t total_bytes = 0;
  std::string directory;
  std::string device_uuid;  // "" on the host.
};

class Residents final {
 public:
  struct Parts {  // All borrowed.
    Reactor* reactor = nullptr;
    const Tiers* tiers = nullptr;
    Loaders* loaders = nullptr;
    Contents* contents = nullptr;
    Ledger* ledger = nullptr;
    Rates* rates = nullptr;
    Profile* profile = nullptr;
    const store::Store* store = nullptr;  // To ask.
    // What happens goes here: LoadFinished and LoadFailed. Not from inside Start.
    std::function<void(const store::Event&)> apply;
    std::function<void(const store::ReplicaKey&, uint64_t done, uint64_t total)> on_progress;
    // The store knows of its end. `readable`: the files it was read from, if it was.
    std::function<void(const store::ReplicaKey&, const Status&, const Readable& readable)> on_ended;
  };
  Residents(Parts parts, uint64_t slab_bytes) : parts_(std::move(parts)), slab_bytes_(slab_bytes) {}
  Residents(const Residents&) = delete;
  Residents& operator=(const Residents&) = delete;

  void SetSlabBytes(uint64_t slab_bytes) { slab_bytes_ = slab_bytes; }

  // Carries out the store's StartLoad, on `pool` (of a device tier: on its own): from copies that
  // are resident elsewhere, else from `readable`.
  void Start(const store::StartLoad& action, const Readable& readable, LoaderPool& pool);
  // Unknown ids are ignored.
  void Cancel(store::LoadId id);
  void CancelAll();
  size_t loads_running() const { return loads_.size(); }

  // Carries out the store's ReleaseExtents.
  void Release(const store::ReleaseExtents& action);
  // This incarnation of the replica is gone: evicted, expired or quarantined.
  void Forget(const store::ReplicaKey& replica, uint64_t generation);
  // Its name or directory may have changed.
  void Refresh(const std::shared_ptr<ModelContents>& contents);

  // What a lease on this ready replica hands out; made once.
  Result<std::shared_ptr<const LentReplica>> Lend(const store::ReplicaKey& replica);
  bool IsLent(const store::ReplicaKey& replica) const;
  // Writes the ready replica into the ledger, as it is now.
  void Record(const store::ReplicaKey& replica);
  // All that are there of this model: who may have it has changed.
  void RecordAll(const Digest& model);

  // What an earlier worker left, until its bytes are verified: then it may be lent. Adopting
  // what is there already changes nothing.
  std::shared_ptr<const ResidentExtent> Adopt(store::TierIndex tier,
                                              std::shared_ptr<const ResidentExtent> extent);
  std::shared_ptr<const ResidentExtent> FindExtent(store::TierIndex tier, const Digest& key) const;
  void SetVerified(store::TierIndex tier, const Digest& key);
  // What is not verified goes, but for `awaited`.
  void DropUnverified(const std::set<std::pair<store::TierIndex, Digest>>& awaited);

  // Aborts when what is here and what the store believes differ. O(everything).
  void CheckInvariants() const;

 private:
  using ExtentKey = std::pair<store::TierIndex, Digest>;
  struct Held {
    std::shared_ptr<const ResidentExtent> extent;
    bool is_verified = false;
  };
  // A replica that is or was ready.
  struct Resident {
    std::shared_ptr<ModelContents> contents;
    std::shared_ptr<const LentReplica> lent;  // Made by the first lease.
    bool is_recorded = false;                 // In the ledger.
  };
  struct Load {
    store::ReplicaKey replica;
    std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
    Readable readable;  // Empty when no file is read.
    Time started = Now();
    uint64_t bytes = 0;
  };
  // Everything that a load needs and finds, on a loader thread.
  struct LoadWork;

  std::shared_ptr<LoadWork> PrepareLoad(const store::StartLoad& action, const Readable& readable);
  // Which of `job`'s extents can be copied from where they are resident already.
  void OfferCopies(store::TierIndex tier, LoadJob& job) const;
  static void LoadOnLoaderThread(LoadWork& work);
  static Result<std::vector<ResidentExtent>> LoadExtents(LoadWork& work);
  void FinishLoad(store::LoadId id, LoadWork& work);
  Resident& ResidentOf(const store::ReplicaKey& replica);
  void Hold(store::TierIndex tier, ResidentExtent extent);

  const Parts parts_;
  uint64_t slab_bytes_;
  std::unordered_map<store::LoadId, Load> loads_;
  std::map<ExtentKey, Held> extents_;
  std::map<store::ReplicaKey, Resident> replicas_;
};

}  // namespace trims

// The registry: names, contents and residents of one worker, tied together.
//
// It resolves what a client asked for to a model's contents (through the
// catalogue, a passed descriptor or a digest), feeds the store, carries out the
// store's actions with the tiers, and keeps the keeper's ledger equal to what is
// resident. It speaks no protocol: the lease server and the control plane are
// its callers.
//
// Thread rule: the reactor's thread only. Callbacks come on that thread too,
// possibly before the call that takes them returns, and must not call back into
// the registry except by Reactor::Post.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/catalogue.h"
#include "daemon/config.h"
#include "daemon/devices.h"
#include "daemon/ledger_link.h"
#include "daemon/loader_pool.h"
#include "daemon/profile.h"
#include "daemon/reactor.h"
#include "ipc/region.h"
#include "store/store.h"
#include "tier/ingest.h"
#include "tier/manifest.h"
#include "tier/rho.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {

// Files, and the manifest that was made from just these files. Two names may hold
// the same contents in different files; a load needs a pair that fits.
struct Readable {
  std::shared_ptr<const Source> source;
  std::shared_ptr<const ModelManifest> manifest;
};

// A model's contents, whether resident or not.
struct ModelContents {
  std::shared_ptr<const ModelManifest> manifest;
  std::string name;                // Catalogue name, else a client's label.
  std::string directory;           // Of a named model: where its graph and labels are.
  std::string path;                // Of a named model: as the catalogue has it.
  bool is_public = false;          // Reached by a catalogue name at least once.
  std::set<uint32_t> proved_uids;  // Who showed a descriptor of its file.
  // Where a load reads from: of a named model, the files looked at last.
  Readable readable;
  // By granularity (index: its number), made on first use.
  std::array<std::shared_ptr<const Layout>, 4> layouts;
  std::array<std::shared_ptr<const ReadOnlyRegion>, 4> indexes;
  std::optional<store::Granularity> chosen;  // What `auto` means for it.

  Result<std::shared_ptr<const Layout>> LayoutAt(store::Granularity granularity,
                                                 uint64_t slab_bytes);
};

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
  std::string model;  // Name or digest; ignored with a file.
  UniqueFd file;      // A passed weights file.
  std::string label;  // Of the file, for listings.
  store::TierIndex tier = 0;
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
  std::shared_ptr<const LentReplica> lent;  // Null for a prefetch.
};

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
    int link = -1;                             // To the keeper; borrowed. -1: no ledger (tests).
    std::vector<std::unique_ptr<Tier>> tiers;  // Tier 0 is the host, the others are devices.
    std::vector<uint64_t> budgets;             // One per tier.
    Devices* devices = nullptr;  // Borrowed, outlives the registry; null: there are none.
    // A device was lost. On the reactor's thread.
    std::function<void(const std::string& tier)> on_tier_lost;
    std::unique_ptr<Catalogue> catalogue;
    std::unique_ptr<SidecarStore> sidecars;  // May be null.
  };
  Registry(Reactor* reactor, Options options);
  ~Registry();  // Waits for the loader threads.

  // What the keeper kept for us: to be called with every entry, then once
  // FinishAdoption, before anything else.
  void AdoptEntry(LinkMessage entry);
  void FinishAdoption();
  // In the background, unless an earlier worker left its figures: what `auto` decides by,
  // and how fast bytes come to each device.
  void MeasureRho(const std::string& directory);
  void MeasureLinks();
  // Begins to check devices and what is resident on them, again and again.
  void StartScrub();

  using Done = std::function<void(OpenResult)>;
  using Progress = std::function<void(OpenPhase phase, uint64_t done_bytes, uint64_t total_bytes)>;
  store::OpenId NewOpenId() { return next_open_++; }
  // Exactly one `done`, unless the open is cancelled first. `progress` may be null.
  void Open(store::OpenId id, OpenRequest request, Done done, Progress progress);
  // No `done` comes any more. Unknown ids are ignored.
  void CancelOpen(store::OpenId id);

  // NOT_FOUND when this session has no such lease.
  Status Close(store::SessionId session, store::LeaseId lease, uint64_t peak_internal_bytes);
  void Reattach(store::OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                const store::ReplicaKey& replica, uint64_t generation, Done done);
  void EndSession(store::SessionId session);

  // --- For the control plane -------------------------------------------------
  struct EvictOutcome {
    std::vector<store::ReplicaView> before;  // What the request was about.
    store::EvictResult result;
  };
  EvictOutcome Evict(const Digest& model, std::optional<store::TierIndex> tier, bool force);
  void Pin(const Digest& model, store::TierIndex tier, bool pinned);
  bool IsPinned(const Digest& model, store::TierIndex tier) const {
    return pins_.contains({model, tier});
  }
  // Recomputes checksums of one ready replica on a loader thread, then calls
  // `done`; a mismatch has been quarantined by then.
  void Verify(const store::ReplicaKey& replica, std::shared_ptr<LoadControl> control,
              std::function<void(Status)> done);
  // Finds a model's contents without loading: by digest, or by the name's
  // current file when it was seen. Null when unknown.
  std::shared_ptr<const ModelContents> FindContents(const Digest& digest) const;
  std::optional<Digest> DigestOfName(const std::string& name) const;
  void ForgetName(const std::string& name) { records_.erase(name); }

  using Observer = std::function<void(const store::Notify&)>;
  uint64_t AddObserver(Observer observer);
  void RemoveObserver(uint64_t id) { observers_.erase(id); }

  void ApplyConfig(const DaemonConfig& config);
  const DaemonConfig& config() const { return config_; }
  const store::Store& store() const { return *store_; }
  Catalogue& catalogue() { return *catalogue_; }
  const RegistryCounters& counters() const { return counters_; }
  const RhoConstants& rho() const { return rho_; }
  size_t loads_running() const { return loads_.size(); }
  std::optional<store::TierIndex> TierByName(const std::string& name) const;
  // The same for what people write: "host", "gpu" where there is one, "gpu:0", or the first
  // digits of a UUID. NOT_FOUND lists the tiers, and says why a device is none.
  Result<store::TierIndex> ResolveTier(const std::string& text) const;
  const Tier& tier(store::TierIndex index) const { return *tiers_[index]; }
  Devices* devices() const { return devices_; }  // May be null.
  Profile& profile() { return *profile_; }
  // A short name for messages and listings.
  std::string NameOf(const Digest& model) const;

 private:
  struct Pending;
  // What a name stood for when it was last looked at.
  struct Record {
    std::string path;
    uint64_t catalogue_version = 0;
    Readable readable;
    std::shared_ptr<ModelContents> contents;
  };
  struct Resolve;
  struct Load;
  struct AdoptedReplica;
  struct DeviceWork;
  using ExtentKey = std::pair<store::TierIndex, Digest>;

  store::Config StoreConfig(const DaemonConfig& config) const;
  void OpenNamed(store::OpenId id);
  void OpenPassed(store::OpenId id);
  void OpenByDigest(store::OpenId id);
  void StartResolve(const std::string& key, store::OpenId id, LoaderPool& pool,
                    std::function<Result<std::shared_ptr<const Source>>()> open_source);
  void FinishResolve(const std::string& key, std::shared_ptr<const Source> source,
                     Result<IngestResult> result);
  void Proceed(store::OpenId id, std::shared_ptr<ModelContents> contents);
  void Fail(store::OpenId id, OpenResult result);
  Status AskStore(Pending& pending, bool resident_only);

  void Apply(const store::Event& event);
  void Execute(std::vector<store::Action> actions);
  void ArmTimer();
  void Do(store::StartLoad& action);
  void Do(store::CancelLoad& action);
  void Do(store::ReleaseExtents& action);
  void Do(store::ReplyLease& action);
  void Do(store::ReplyReady& action);
  void Do(store::ReplyError& action);
  void Do(store::Notify& action);
  void Do(store::EvictResult& action);
  void Do(store::PinResult&) {}

  // What a loader thread has to say.
  struct Loaded {
    Result<std::vector<ResidentExtent>> extents = std::vector<ResidentExtent>();
    std::shared_ptr<const ReadOnlyRegion> index;
    std::optional<uint64_t> free_bytes;  // Memory ran out, and so much was left.
    Duration took{};
  };
  void FinishLoad(store::LoadId id, Loaded loaded);
  // Which of `job`'s extents can be copied from where they are resident already.
  void OfferCopies(store::TierIndex tier, LoadJob& job) const;
  // Loads to the host tier, in the background, what was loaded to a device.
  void KeepOnHost(const Load& load);
  // Whether a lease's end calls for a look at the bytes.
  bool IsTrusted(uint32_t uid) const;
  void WantCheck(const store::ReplicaKey& replica);
  void StartCheck(const store::ReplicaKey& replica);
  void ScrubStep(store::TierIndex tier);
  void ScrubAfter(store::TierIndex tier, Duration pause);
  // Looks whether a tier has failed; then nothing of it is lent any more.
  void NoticeLost(store::TierIndex tier);
  void FinishAdoptedReplica(store::LoadId id, std::vector<Digest> verified, Status status);
  std::shared_ptr<const LentReplica> LentReplicaOf(const store::ReplicaKey& key);
  void ReportProgress(const store::ReplicaKey& key, OpenPhase phase, uint64_t done, uint64_t total);
  void DropUnusedContents();

  void LedgerPutExtent(store::TierIndex tier, const ResidentExtent& extent);
  void LedgerPutReplica(const store::ReplicaKey& key);
  void LedgerDrop(const std::string& key);
  std::string ExtentEntryKey(store::TierIndex tier, const Digest& extent) const;
  std::string ReplicaEntryKey(const store::ReplicaKey& key) const;

  Reactor* const reactor_;
  DaemonConfig config_;
  const int link_;
  const std::vector<std::unique_ptr<Tier>> tiers_;
  const std::vector<uint64_t> budgets_;
  Devices* const devices_;
  const std::function<void(const std::string& tier)> on_tier_lost_;
  const std::unique_ptr<Catalogue> catalogue_;
  const std::unique_ptr<SidecarStore> sidecars_;
  const uint64_t id_base_;
  const std::unique_ptr<Profile> profile_;
  RhoConstants rho_;
  std::unique_ptr<store::Store> store_;
  RegistryCounters counters_;

  store::OpenId next_open_ = 1;
  std::unordered_map<store::OpenId, std::unique_ptr<Pending>> pending_;
  std::map<store::ReplicaKey, std::set<store::OpenId>>
      waiting_;                                      // In the store's hands, by replica.
  std::unordered_map<std::string, Record> records_;  // By model name.
  std::unordered_map<std::string, std::unique_ptr<Resolve>> resolves_;
  std::unordered_map<Digest, std::shared_ptr<ModelContents>> contents_;
  // Of passed descriptors; only files whose identity can be trusted.
  std::map<std::vector<FileIdentity>, std::shared_ptr<const ModelManifest>> manifests_by_files_;
  std::unordered_map<store::LoadId, std::unique_ptr<Load>> loads_;
  std::map<ExtentKey, std::shared_ptr<const ResidentExtent>> extents_;
  std::map<store::ReplicaKey, std::shared_ptr<const LentReplica>> lent_;
  std::set<std::pair<Digest, store::TierIndex>> pins_;

  // Only between the first AdoptEntry and the end of the last adoption.
  std::string known_links_;  // Measured by an earlier worker.
  std::map<std::string, LinkMessage> adopted_entries_;
  std::map<ExtentKey, std::shared_ptr<const ResidentExtent>> adopting_;
  std::unordered_map<store::LoadId, std::unique_ptr<AdoptedReplica>> adoptions_;

  EvictOutcome* evict_outcome_ = nullptr;  // Where Do(EvictResult) writes, during Evict.
  std::map<uint64_t, Observer> observers_;
  uint64_t next_observer_ = 1;
  std::optional<Time> timer_at_;
  Reactor::TimerId timer_{};

  // Last, so that their threads end before anything they could use goes.
  // Files that clients pass have threads of their own, and those on file systems
  // that a user serves, which may hang for ever, threads of theirs.
  std::unique_ptr<LoaderPool> named_pool_;
  std::unique_ptr<LoaderPool> passed_pool_;
  std::unique_ptr<LoaderPool> foreign_pool_;     // For file systems that a user serves (FUSE).
  std::unique_ptr<LoaderPool> background_pool_;  // What nobody waits for.
  std::vector<std::unique_ptr<DeviceWork>> device_work_;  // By tier; null for the host.
};

}  // namespace trims

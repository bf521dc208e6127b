#include "daemon/residents.h"

#include <algorithm>

#include "base/limits.h"
#include "daemon/config.h"
#include "daemon/log.h"
#include "daemon/progress_throttle.h"
#include "daemon/sealed_bytes.h"

namespace trims {
namespace {

using store::ReplicaKey;

// Memory of a process that was killed comes back a moment after its connection ended, and
// what is freed here takes a moment, too: a load that finds none tries again.
constexpr int kMemoryAttempts = 10;
constexpr auto kMemoryPause = std::chrono::milliseconds(50);

Result<std::shared_ptr<const ReadOnlyRegion>> SealIndex(const ModelManifest& manifest,
                                                        const Layout& layout) {
  return SealBytes("trims-index", BuildTensorIndex(manifest, layout));
}

}  // namespace

struct Residents::LoadWork {
  // Asked.
  ReplicaKey replica;
  Tier* tier = nullptr;
  DeviceLoaders* device = nullptr;
  std::shared_ptr<ModelContents> contents;  // Its manifest only: the rest is the reactor's.
  std::shared_ptr<const Layout> layout;
  Readable readable;
  LoadJob job;
  uint64_t allocated = 0;
  std::shared_ptr<LoadControl> control;
  bool needs_file = false;
  bool uses_peer = false;
  Status refused;  // Nothing to be tried: why.

  // Found. The two regions are made when they were null.
  Result<std::vector<ResidentExtent>> extents = std::vector<ResidentExtent>();
  std::shared_ptr<const ReadOnlyRegion> index;
  std::shared_ptr<const ReadOnlyRegion> sealed_manifest;
  uint64_t sealed_manifest_bytes = 0;
  std::optional<uint64_t> free_bytes;  // Memory ran out, and so much was left.
  Duration took{};
};

// --- Loading -----------------------------------------------------------------------

std::shared_ptr<Residents::LoadWork> Residents::PrepareLoad(const store::StartLoad& action,
                                                            const Readable& readable) {
  const ReplicaKey& replica = action.replica;
  auto work = std::make_shared<LoadWork>();
  work->replica = replica;
  work->tier = &(*parts_.tiers)[replica.tier];
  work->device = parts_.loaders->device(replica.tier);
  work->contents = parts_.contents->Find(replica.model);
  TRIMS_CHECK(work->contents != nullptr);  // Whoever asked for it has it.
  Result<std::shared_ptr<const Layout>> layout =
      work->contents->LayoutAt(replica.granularity, slab_bytes_);
  if (!layout.ok()) {
    work->refused = layout.status();
    return work;
  }
  work->layout = *layout;
  std::set<Digest> missing;
  for (const store::Extent& extent : action.missing) missing.insert(extent.key);
  for (const ExtentSpec& spec : work->layout->extents) {
    if (missing.erase(spec.key) == 0) continue;
    work->job.extents.push_back(&spec);
    work->allocated += work->tier->AllocationBytes(spec.bytes);
  }
  OfferCopies(replica.tier, work->job);
  for (size_t i = 0; i < work->job.extents.size(); ++i) {
    const bool has_host = !work->job.host.empty() && work->job.host[i] != nullptr;
    const bool has_peer = !work->job.peer.empty() && work->job.peer[i] != nullptr;
    work->needs_file = work->needs_file || (!has_host && !has_peer);
    work->uses_peer = work->uses_peer || has_peer;
  }
  if (work->needs_file) {
    work->readable = readable;
    if (readable.source == nullptr) {
      work->refused = FailedPreconditionError("the file of " + work->contents->DisplayName() +
                                              " is no longer open; open it again");
    }
  }
  work->index = work->contents->indexes[static_cast<size_t>(replica.granularity)];
  work->sealed_manifest = work->contents->sealed_manifest;
  work->sealed_manifest_bytes = work->contents->sealed_manifest_bytes;
  return work;
}

void Residents::Start(const store::StartLoad& action, const Readable& readable, LoaderPool& pool) {
  const store::LoadId id = action.load;
  const std::shared_ptr<LoadWork> work = PrepareLoad(action, readable);
  Load& load = loads_[id];
  load.replica = action.replica;
  load.readable = work->readable;
  for (const ExtentSpec* spec : work->job.extents) load.bytes += spec->bytes;
  work->control = load.control;
  if (!work->refused.ok()) {
    work->extents = work->refused;
    parts_.reactor->Post("load refused", [this, id, work] { FinishLoad(id, *work); });
    return;
  }
  auto throttle = std::make_shared<ProgressThrottle>(
      [this, replica = action.replica](uint64_t done, uint64_t total) {
        parts_.reactor->Post("load progress", [this, replica, done, total] {
          parts_.on_progress(replica, done, total);
        });
      });
  load.control->on_progress = [throttle](uint64_t done, uint64_t total) {
    (*throttle)(done, total);
  };
  LogInfo("loading", {{"model", work->contents->DisplayName()},
                      {"digest", action.replica.model.ToShort()},
                      {"tier", work->tier->name()},
                      {"bytes", load.bytes},
                      {"from", work->needs_file  ? "file"
                               : work->uses_peer ? "peer"
                                                 : "host"}});
  LoaderPool& own = work->device != nullptr ? work->device->loads : pool;
  own.Run([this, id, work] {
    LoadOnLoaderThread(*work);
    parts_.reactor->Post("load finished", [this, id, work] { FinishLoad(id, *work); });
  });
}

void Residents::OfferCopies(store::TierIndex tier, LoadJob& job) const {
  const Tiers& tiers = *parts_.tiers;
  if (!tiers.IsDevice(tier)) return;
  const auto find = [this](store::TierIndex where, const Digest& key) {
    const auto it = extents_.find({where, key});
    return it == extents_.end() || !it->second.is_verified ? nullptr : it->second.extent;
  };
  for (const ExtentSpec* spec : job.extents) {
    job.host.push_back(find(tiers.host(), spec->key));
    job.peer.push_back(nullptr);
    for (const store::TierIndex other : tiers.device_tiers()) {
      if (other == tier || !tiers[other].health().ok()) continue;
      const std::shared_ptr<const ResidentExtent> peer = find(other, spec->key);
      if (peer == nullptr) continue;
      // From a device that is no faster than the host only what the host does not have.
      const bool is_faster = tiers.PeerIsFaster(tier, other);
      if (is_faster || job.host.back() == nullptr) job.peer.back() = peer;
      if (is_faster) break;
    }
  }
}

void Residents::LoadOnLoaderThread(LoadWork& work) {
  const Time start = Now();
  work.extents = LoadExtents(work);
  if (work.extents.ok() && work.index == nullptr) {
    Result<std::shared_ptr<const ReadOnlyRegion>> made =
        SealIndex(*work.contents->manifest, *work.layout);
    if (made.ok()) {
      work.index = *made;
    } else {
      work.extents = made.status();
    }
  }
  if (work.extents.ok() && work.sealed_manifest == nullptr) {
    const std::string serialized = SerializeManifest(*work.contents->manifest);
    Result<std::shared_ptr<const ReadOnlyRegion>> sealed = SealBytes("trims-manifest", serialized);
    if (sealed.ok()) {
      work.sealed_manifest = *sealed;
      work.sealed_manifest_bytes = serialized.size();
    } else {
      work.extents = sealed.status();
    }
  }
  // What was offered is not kept alive longer than needed.
  work.job.host.clear();
  work.job.peer.clear();
  work.took = Now() - start;
}

Result<std::vector<ResidentExtent>> Residents::LoadExtents(LoadWork& work) {
  work.job.manifest = work.readable.manifest != nullptr ? work.readable.manifest.get()
                                                        : work.contents->manifest.get();
  work.job.source = work.readable.source.get();
  if (work.job.extents.empty()) return std::vector<ResidentExtent>();
  for (int attempt = 1;; ++attempt) {
    if (work.control->cancelled) return CancelledError("nobody waits for this load any more");
    if (work.device != nullptr) work.device->WaitUntilReleased();
    Result<std::vector<ResidentExtent>> extents = work.tier->Load(work.job, *work.control);
    if (extents.status().code() != StatusCode::kResourceExhausted) return extents;
    const std::optional<uint64_t> free = work.tier->FreeBytes();
    // Something else than this tier's memory ran out.
    if (!free || *free >= work.allocated) return extents;
    if (work.device == nullptr || attempt == kMemoryAttempts) {
      work.free_bytes = free;
      return extents;
    }
    work.device->WaitForRelease(kMemoryPause);
  }
}

void Residents::FinishLoad(store::LoadId id, LoadWork& work) {
  const auto it = loads_.find(id);
  TRIMS_CHECK(it != loads_.end());
  const Load load = std::move(it->second);
  loads_.erase(it);
  const ReplicaKey& replica = load.replica;
  const std::string name = work.contents->DisplayName();
  parts_.profile->Span("load_owned", "load", load.started, Now(), {{"model_name", name}});
  const Status status = work.extents.status();
  if (!status.ok()) {
    if (status.code() != StatusCode::kCancelled) {
      LogWarn("load failed", {{"model", name},
                              {"tier", parts_.tiers->name(replica.tier)},
                              {"reason", status.ToString()}});
    }
    parts_.apply(store::LoadFailed{id, status, work.free_bytes});
    parts_.on_ended(replica, status, load.readable);
    return;
  }
  ModelContents& contents = *work.contents;
  contents.indexes[static_cast<size_t>(replica.granularity)] = work.index;
  contents.sealed_manifest = work.sealed_manifest;
  contents.sealed_manifest_bytes = work.sealed_manifest_bytes;
  uint64_t bytes = 0;
  for (ResidentExtent& extent : *work.extents) {
    bytes += extent.bytes;
    Hold(replica.tier, std::move(extent));
  }
  if (!parts_.tiers->IsDevice(replica.tier)) parts_.rates->NoteLoad(load.bytes, work.took);
  LogInfo("loaded", {{"model", name},
                     {"digest", replica.model.ToShort()},
                     {"tier", parts_.tiers->name(replica.tier)},
                     {"bytes", bytes},
                     {"took", FormatDuration(work.took)}});
  parts_.apply(store::LoadFinished{id});
  parts_.on_ended(replica, OkStatus(), load.readable);
}

void Residents::Cancel(store::LoadId id) {
  if (const auto it = loads_.find(id); it != loads_.end()) it->second.control->cancelled = true;
}

void Residents::CancelAll() {
  for (auto& [id, load] : loads_) load.control->cancelled = true;
}

// --- Extents -----------------------------------------------------------------------

// The ledger first: when a client has a lease, the keeper has the memory.
void Residents::Hold(store::TierIndex tier, ResidentExtent extent) {
  parts_.ledger->PutExtent(parts_.tiers->name(tier), extent);
  const Digest key = extent.key;
  Held& held = extents_[{tier, key}];
  held.extent = std::make_shared<const ResidentExtent>(std::move(extent));
  held.is_verified = true;
  if (!parts_.tiers->IsDevice(tier)) parts_.tiers->HostExtentReady(held.extent);
}

std::shared_ptr<const ResidentExtent> Residents::FindExtent(store::TierIndex tier,
                                                            const Digest& key) const {
  const auto it = extents_.find({tier, key});
  return it == extents_.end() ? nullptr : it->second.extent;
}

std::shared_ptr<const ResidentExtent> Residents::Adopt(
    store::TierIndex tier, std::shared_ptr<const ResidentExtent> extent) {
  const auto [it, is_new] = extents_.try_emplace({tier, extent->key});
  if (is_new) it->second.extent = std::move(extent);
  return it->second.extent;
}

void Residents::SetVerified(store::TierIndex tier, const Digest& key) {
  const auto it = extents_.find({tier, key});
  if (it == extents_.end() || std::exchange(it->second.is_verified, true)) return;
  if (!parts_.tiers->IsDevice(tier)) parts_.tiers->HostExtentReady(it->second.extent);
}

void Residents::DropUnverified(const std::set<ExtentKey>& awaited) {
  for (auto it = extents_.begin(); it != extents_.end();) {
    if (it->second.is_verified || awaited.contains(it->first)) {
      ++it;
      continue;
    }
    parts_.ledger->Drop(ExtentLedgerKey(parts_.tiers->name(it->first.first), it->first.second));
    it = extents_.erase(it);
  }
}

void Residents::Release(const store::ReleaseExtents& action) {
  const std::string& tier = parts_.tiers->name(action.tier);
  const std::set<Digest> released(action.extents.begin(), action.extents.end());
  for (auto& [key, resident] : replicas_) {
    if (key.tier != action.tier || resident.lent == nullptr) continue;
    const auto& extents = resident.lent->extents;
    if (std::any_of(extents.begin(), extents.end(),
                    [&](const auto& extent) { return released.contains(extent->key); })) {
      resident.lent.reset();
    }
  }
  std::vector<std::shared_ptr<const ResidentExtent>> extents;
  for (const Digest& key : action.extents) {
    if (const auto it = extents_.find({action.tier, key}); it != extents_.end()) {
      extents.push_back(std::move(it->second.extent));
      extents_.erase(it);
    }
    if (!parts_.tiers->IsDevice(action.tier)) parts_.tiers->HostExtentGone(key);
    parts_.ledger->Drop(ExtentLedgerKey(tier, key));
  }
  DeviceLoaders* const device = parts_.loaders->device(action.tier);
  if (device != nullptr && !extents.empty()) device->Release(std::move(extents));
}

// --- Replicas ------------------------------------------------------------------------

Residents::Resident& Residents::ResidentOf(const ReplicaKey& replica) {
  Resident& resident = replicas_[replica];
  if (resident.contents == nullptr) resident.contents = parts_.contents->Find(replica.model);
  TRIMS_CHECK(resident.contents != nullptr);  // Whoever asked for it has it.
  return resident;
}

void Residents::Forget(const ReplicaKey& replica, uint64_t generation) {
  // A new incarnation may share the key, the extents and what is said of them here.
  const std::optional<store::ReplicaView> view = parts_.store->Find(replica);
  if (view && view->state == store::ReplicaState::kReady && view->generation != generation) return;
  const auto it = replicas_.find(replica);
  if (it != replicas_.end()) replicas_.erase(it);
  parts_.ledger->Drop(
      ReplicaLedgerKey(parts_.tiers->name(replica.tier), replica.granularity, replica.model));
}

void Residents::Refresh(const std::shared_ptr<ModelContents>& contents) {
  for (auto& [key, resident] : replicas_) {
    if (resident.contents != contents) continue;
    resident.lent.reset();
    if (resident.is_recorded) Record(key);
  }
}

void Residents::RecordAll(const Digest& model) {
  for (const auto& [key, resident] : replicas_) {
    if (key.model == model && resident.is_recorded) Record(key);
  }
}

bool Residents::IsLent(const ReplicaKey& replica) const {
  const auto it = replicas_.find(replica);
  return it != replicas_.end() && it->second.lent != nullptr;
}

void Residents::Record(const ReplicaKey& replica) {
  const std::optional<store::ReplicaView> view = parts_.store->Find(replica);
  if (!view || view->state != store::ReplicaState::kReady) return;
  Resident& resident = ResidentOf(replica);
  ModelContents& contents = *resident.contents;
  if (contents.sealed_manifest == nullptr) {
    // Ready without a load, as all its extents were there.
    const std::string serialized = SerializeManifest(*contents.manifest);
    Result<std::shared_ptr<const ReadOnlyRegion>> sealed = SealBytes("trims-manifest", serialized);
    if (!sealed.ok()) {
      LogError("replica not in the ledger, a crash would lose it",
               {{"model", contents.DisplayName()}, {"reason", sealed.status().message()}});
      return;
    }
    contents.sealed_manifest = *sealed;
    contents.sealed_manifest_bytes = serialized.size();
  }
  ReplicaEntry entry;
  entry.names = parts_.contents->NamesOf(contents);
  entry.label = contents.label;
  entry.generation = view->generation;
  entry.slab_bytes = slab_bytes_;
  entry.manifest_bytes = contents.sealed_manifest_bytes;
  entry.proved_uids = view->proved_uids;
  resident.is_recorded = true;
  parts_.ledger->PutReplica(parts_.tiers->name(replica.tier), replica.granularity, replica.model,
                            entry, contents.sealed_manifest->PeekFd());
}

Result<std::shared_ptr<const LentReplica>> Residents::Lend(const ReplicaKey& replica) {
  Resident& resident = ResidentOf(replica);
  if (resident.lent != nullptr) return resident.lent;
  ModelContents& contents = *resident.contents;
  ASSIGN_OR_RETURN(const std::shared_ptr<const Layout> layout,
                   contents.LayoutAt(replica.granularity, slab_bytes_));
  std::shared_ptr<const ReadOnlyRegion>& index =
      contents.indexes[static_cast<size_t>(replica.granularity)];
  if (index == nullptr) {
    ASSIGN_OR_RETURN(index, SealIndex(*contents.manifest, *layout));
  }
  auto lent = std::make_shared<LentReplica>();
  lent->key = replica;
  lent->manifest = contents.manifest;
  lent->index = index;
  lent->directory = parts_.contents->DirectoryOf(contents);
  lent->device_uuid = parts_.tiers->DeviceUuid(replica.tier);
  for (const ExtentSpec& spec : layout->extents) {
    const auto it = extents_.find({replica.tier, spec.key});
    TRIMS_CHECK(it != extents_.end());  // The store leases only what is resident.
    lent->extents.push_back(it->second.extent);
    lent->extent_bytes.push_back(it->second.extent->map_bytes);
    lent->total_bytes += it->second.extent->map_bytes;
  }
  resident.lent = lent;
  return resident.lent;
}

void Residents::CheckInvariants() const {
  std::set<ExtentKey> known;
  for (const store::ReplicaView& view : parts_.store->Replicas()) {
    const ReplicaKey& replica = view.replica;
    TRIMS_CHECK(parts_.contents->Find(replica.model) != nullptr);
    for (const store::Extent& extent : view.extents) {
      known.insert({replica.tier, extent.key});
      if (view.state != store::ReplicaState::kReady) continue;
      const auto it = extents_.find({replica.tier, extent.key});
      TRIMS_CHECK(it != extents_.end() && it->second.is_verified);
    }
  }
  for (const auto& [key, held] : extents_) {
    TRIMS_CHECK(held.extent != nullptr && held.extent->key == key.second);
    TRIMS_CHECK(known.contains(key));
  }
  for (const auto& [key, resident] : replicas_) {
    TRIMS_CHECK(resident.contents->digest() == key.model);
    if (resident.lent == nullptr) continue;
    TRIMS_CHECK(resident.lent->key == key);
    for (const auto& extent : resident.lent->extents) {
      const auto it = extents_.find({key.tier, extent->key});
      TRIMS_CHECK(it != extents_.end() && it->second.extent == extent && it->second.is_verified);
    }
  }
}

}  // namespace trims

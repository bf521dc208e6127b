#include "daemon/adoption.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "daemon/log.h"
#include "daemon/progress_throttle.h"

namespace trims {

using store::ReplicaKey;

struct Adoption::VerifyWork {
  ReplicaKey replica;
  Tier* tier = nullptr;
  std::vector<std::shared_ptr<const ResidentExtent>> extents;  // In layout order.
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<const ModelManifest> manifest;
  std::shared_ptr<LoadControl> control;
  std::function<void(uint64_t done, uint64_t total)> report;

  // Found.
  Status status;
  std::vector<Digest> verified;
};

void Adoption::Start(uint64_t slab_bytes) {
  std::map<std::string, LinkMessage> entries = std::exchange(entries_, {});
  std::vector<std::string> understood;
  std::map<std::string, LedgerKey> replicas;
  for (auto& [text, entry] : entries) {
    const std::optional<LedgerKey> key = ParseLedgerKey(text);
    if (!key) {
      LogError("entry of the ledger not understood, dropped", {{"entry", text}});
      parts_.ledger->Drop(text);
    } else if (key->kind == LedgerKey::Kind::kReplica) {
      replicas.emplace(text, *key);
    } else if (key->kind == LedgerKey::Kind::kExtent) {
      entries_.emplace(text, std::move(entry));  // For AdoptExtents.
    } else {
      AdoptFacts(*key, entry);
    }
  }
  std::vector<Candidate> candidates;
  std::set<std::pair<store::TierIndex, Digest>> awaited;
  for (const auto& [text, key] : replicas) {
    Result<Candidate> candidate = AdoptReplica(key, std::move(entries.at(text)), slab_bytes);
    if (!candidate.ok()) {
      LogError("replica not adopted", {{"entry", text}, {"reason", candidate.status().message()}});
      parts_.ledger->Drop(text);
      continue;
    }
    for (const ExtentSpec& spec : candidate->layout->extents)
      awaited.insert({candidate->key.tier, spec.key});
    candidates.push_back(*std::move(candidate));
  }
  // What nobody needs, and what was adopted for a replica of which another part is missing.
  for (const auto& [text, entry] : entries_) {
    const LedgerKey key = *ParseLedgerKey(text);
    const auto tier = parts_.tiers->ByName(key.tier);
    if (!tier || !awaited.contains({*tier, key.digest})) parts_.ledger->Drop(text);
  }
  parts_.residents->DropUnverified(awaited);
  entries_.clear();  // Descriptors that nobody adopted are closed.
  if (!candidates.empty())
    LogInfo("adopting what the last worker left", {{"replicas", candidates.size()}});
  for (const Candidate& candidate : candidates) {
    const ReplicaKey& replica = candidate.key;
    if (Verify(candidate)) continue;
    LogError("replica not adopted", {{"model", candidate.contents->DisplayName()},
                                     {"tier", parts_.tiers->name(replica.tier)},
                                     {"reason", "it does not fit the budget any more"}});
    parts_.ledger->Drop(
        ReplicaLedgerKey(parts_.tiers->name(replica.tier), replica.granularity, replica.model));
  }
}

// What is known of no replica: measurements, pins, the worker's own texts.
void Adoption::AdoptFacts(const LedgerKey& key, const LinkMessage& entry) {
  switch (key.kind) {
    case LedgerKey::Kind::kRho: {
      const Result<RhoConstants> rho = ParseRho(entry.body);
      if (rho.ok()) return parts_.rates->AdoptRho(*rho);
      break;
    }
    case LedgerKey::Kind::kDevice:
      if (entry.key == kLinksLedgerKey) parts_.rates->AdoptLinks(entry.body);
      return;
    case LedgerKey::Kind::kPin:
      if (const auto tier = parts_.tiers->ByName(key.tier))
        return parts_.apply(store::PinAsked{key.digest, *tier, true});
      break;
    case LedgerKey::Kind::kExtent:
    case LedgerKey::Kind::kReplica:
      break;
  }
  parts_.ledger->Drop(entry.key);
}

Result<Adoption::Candidate> Adoption::AdoptReplica(const LedgerKey& key, LinkMessage message,
                                                   uint64_t slab_bytes) {
  const auto tier = parts_.tiers->ByName(key.tier);
  if (!tier) return NotFoundError("this worker has no tier " + key.tier);
  Candidate candidate;
  ASSIGN_OR_RETURN(candidate.entry, ParseReplicaEntry(message.body));
  if (candidate.entry.slab_bytes != slab_bytes) {
    // Layouts at another slab size would name other extents.
    return FailedPreconditionError("slab_bytes was " + std::to_string(candidate.entry.slab_bytes) +
                                   " and is " + std::to_string(slab_bytes));
  }
  struct stat info {};
  if (::fstat(message.fd.get(), &info) != 0) return ErrnoStatus(errno, "looking at its manifest");
  ASSIGN_OR_RETURN(
      ReadOnlyRegion region,
      ReadOnlyRegion::Adopt(std::move(message.fd), static_cast<uint64_t>(info.st_size)));
  ASSIGN_OR_RETURN(const ReadOnlyMapping mapping, region.Map());
  ASSIGN_OR_RETURN(ModelManifest manifest,
                   DeserializeManifest(mapping.bytes().first(
                       std::min<uint64_t>(candidate.entry.manifest_bytes, mapping.size()))));
  if (manifest.digest != key.digest)
    return DataLossError("its manifest is that of " + manifest.digest.ToString());
  candidate.key = ReplicaKey{key.digest, *tier, key.granularity};
  candidate.contents = parts_.contents->Adopt(
      candidate.entry, std::make_shared<const ModelManifest>(std::move(manifest)),
      std::make_shared<const ReadOnlyRegion>(std::move(region)));
  ASSIGN_OR_RETURN(candidate.layout, candidate.contents->LayoutAt(key.granularity, slab_bytes));
  RETURN_IF_ERROR(AdoptExtents(candidate));
  return candidate;
}

Status Adoption::AdoptExtents(Candidate& candidate) {
  const store::TierIndex tier = candidate.key.tier;
  for (const ExtentSpec& spec : candidate.layout->extents) {
    if (auto adopted = parts_.residents->FindExtent(tier, spec.key)) {
      candidate.extents.push_back(std::move(adopted));
      continue;
    }
    const auto entry = entries_.find(ExtentLedgerKey(parts_.tiers->name(tier), spec.key));
    if (entry == entries_.end() || !entry->second.fd.valid())
      return NotFoundError("its extent " + spec.key.ToShort() + " is missing");
    ASSIGN_OR_RETURN(
        ResidentExtent adopted,
        (*parts_.tiers)[tier].Adopt(spec, std::move(entry->second.fd), entry->second.body));
    candidate.extents.push_back(
        parts_.residents->Adopt(tier, std::make_shared<const ResidentExtent>(std::move(adopted))));
  }
  return OkStatus();
}

bool Adoption::Verify(const Candidate& candidate) {
  const ReplicaKey& replica = candidate.key;
  store::AdoptionStarted event;
  event.load = parts_.store->NewLoadId();
  event.tier = replica.tier;
  event.granularity = replica.granularity;
  event.generation = candidate.entry.generation;
  event.pinned = parts_.store->IsPinned(replica.model, replica.tier);
  event.plan =
      MakePlan(*candidate.contents->manifest, *candidate.layout, candidate.contents->DisplayName());
  for (store::Extent& extent : event.plan.extents)
    extent.bytes = (*parts_.tiers)[replica.tier].AllocationBytes(extent.bytes);
  event.plan.is_public = candidate.contents->is_public();
  event.proved_uids = candidate.entry.proved_uids;

  auto work = std::make_shared<VerifyWork>();
  work->replica = replica;
  work->tier = &(*parts_.tiers)[replica.tier];
  work->layout = candidate.layout;
  work->manifest = candidate.contents->manifest;
  work->extents = candidate.extents;
  const store::LoadId id = event.load;
  // One that it shares may have gone with a replica for which there was no room.
  for (const auto& extent : candidate.extents) {
    if (parts_.residents->FindExtent(replica.tier, extent->key) != nullptr) continue;
    parts_.residents->Adopt(replica.tier, extent);
    parts_.ledger->PutExtent(parts_.tiers->name(replica.tier), *extent);
  }
  parts_.apply(event);
  const std::optional<store::ReplicaView> view = parts_.store->Find(replica);
  if (!view || view->state != store::ReplicaState::kLoading) return false;
  Running& running = running_[id];
  running.replica = replica;
  work->control = running.control;
  auto throttle =
      std::make_shared<ProgressThrottle>([this, replica](uint64_t done, uint64_t total) {
        parts_.reactor->Post("adoption progress", [this, replica, done, total] {
          parts_.on_progress(replica, done, total);
        });
      });
  work->report = [throttle](uint64_t done, uint64_t total) { (*throttle)(done, total); };
  parts_.loaders->named.Run([this, id, work] {
    VerifyOnLoaderThread(*work);
    parts_.reactor->Post("adopted", [this, id, work] { Finish(id, *work); });
  });
  return true;
}

void Adoption::VerifyOnLoaderThread(VerifyWork& work) {
  uint64_t total = 0, before = 0;
  for (const auto& extent : work.extents) total += extent->bytes;
  for (size_t i = 0; i < work.extents.size(); ++i) {
    LoadControl part;
    part.cancelled = work.control->cancelled.load();
    part.on_progress = [&](uint64_t done, uint64_t) {
      if (work.control->cancelled) part.cancelled = true;
      work.report(before + done, total);
    };
    work.status =
        work.tier->Verify(*work.extents[i], work.layout->extents[i], *work.manifest, part);
    if (!work.status.ok()) return;
    work.verified.push_back(work.extents[i]->key);
    before += work.extents[i]->bytes;
  }
}

void Adoption::Finish(store::LoadId id, const VerifyWork& work) {
  running_.erase(id);
  const ReplicaKey& replica = work.replica;
  const std::string model = parts_.contents->NameOf(replica.model);
  const std::string& tier = parts_.tiers->name(replica.tier);
  if (work.status.ok()) {
    for (const Digest& key : work.verified) parts_.residents->SetVerified(replica.tier, key);
    LogInfo("adopted", {{"model", model}, {"digest", replica.model.ToShort()}, {"tier", tier}});
    parts_.apply(store::LoadFinished{id});
  } else {
    LogError("replica not adopted", {{"model", model}, {"reason", work.status.ToString()}});
    parts_.ledger->Drop(ReplicaLedgerKey(tier, replica.granularity, replica.model));
    parts_.apply(store::LoadFailed{id, work.status, std::nullopt});
  }
  parts_.on_ended(replica, work.status);
  if (is_over()) parts_.residents->DropUnverified({});
}

void Adoption::Cancel(store::LoadId id) {
  if (const auto it = running_.find(id); it != running_.end()) it->second.control->cancelled = true;
}

void Adoption::CancelAll() {
  for (auto& [id, running] : running_) running.control->cancelled = true;
}

}  // namespace trims

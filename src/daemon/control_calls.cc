// Calls that change things, and what all calls share.
#include "daemon/control_calls.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "daemon/control_headers.h"
#include "daemon/control_requests.h"
#include "daemon/log.h"
#include "store/store.h"

namespace trims {
namespace {

std::vector<std::string> TierNames(const store::Config& config) {
  std::vector<std::string> names;
  for (const store::TierConfig& tier : config.tiers) names.push_back(tier.name);
  return names;
}

Status UnknownDigestError(const Digest& digest) {
  return NotFoundError("no model with digest " + digest.ToString() + " is known");
}

Happening CatalogueHappening(v1::EventKind kind, const v1::ModelView& model,
                             std::optional<Digest> digest) {
  Happening happening;
  happening.at = Now();
  happening.kind = kind;
  happening.model = model.name();
  happening.digest = digest;
  happening.detail = model.source();
  return happening;
}

}  // namespace

ControlCalls::ControlCalls(Reactor* reactor, Registry* registry, SessionTable sessions,
                           const WorkerStart& start)
    : reactor_(reactor),
      registry_(registry),
      sessions_(std::move(sessions)),
      start_(start),
      worker_started_at_(::time(nullptr)),
      tier_names_(TierNames(registry->store().config())),
      config_(std::make_shared<const LoadedConfig>(start.config)) {}

void ControlCalls::SetConfig(const LoadedConfig& config) {
  config_ = std::make_shared<const LoadedConfig>(config);
}

// --- Names, contents and tiers -----------------------------------------------------

Result<ControlCalls::Named> ControlCalls::NameOrDigest(const std::string& model) const {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(model));
  Named named;
  named.digest = reference.digest;
  if (!reference.digest) {
    ASSIGN_OR_RETURN(named.entry, registry_->catalogue().Find(reference.name));
  }
  return named;
}

SnapshotRequest ControlCalls::RequestFor(const Named& named) {
  SnapshotRequest request{.only_these = true};
  if (named.digest) request.digests.push_back(*named.digest);
  if (named.entry) request.names.push_back(named.entry->name);
  return request;
}

Result<std::optional<Digest>> ControlCalls::ContentsOf(const Named& named,
                                                       const Snapshot& snapshot) {
  const auto is_known = [&](const Digest& digest) {
    const Snapshot::Model* const model = snapshot.Find(digest);
    return model != nullptr && model->manifest != nullptr;
  };
  if (named.digest) {
    if (!is_known(*named.digest)) return UnknownDigestError(*named.digest);
    return named.digest;
  }
  const Digest* const digest = snapshot.DigestOf(named.entry->name);
  if (digest == nullptr || !is_known(*digest)) return std::optional<Digest>();
  return std::optional<Digest>(*digest);
}

void ControlCalls::FillNamed(const Named& named, const Snapshot& snapshot,
                             const std::optional<Digest>& digest, v1::ModelView* out) const {
  std::optional<CatalogueEntry> entry = named.entry;
  if (!entry && digest) {
    const Snapshot::Model* const model = snapshot.Find(*digest);
    if (model != nullptr && model->is_public) {
      Result<CatalogueEntry> found = registry_->catalogue().Find(model->name);
      if (found.ok()) entry = *std::move(found);
    }
  }
  FillModel(snapshot, entry ? &*entry : nullptr, digest ? &*digest : nullptr, out);
}

Result<Digest> ControlCalls::LookedAtDigest(const std::string& model, const Cancelled& cancelled) {
  const auto later = std::make_shared<Later<Result<Digest>>>();
  store::OpenId open = 0;
  RETURN_IF_ERROR(OnReactor("resolve", [&] {
    OpenRequest request;
    request.model = model;
    request.resolve_only = true;
    open = registry_->NewOpenId();
    registry_->Open(
        open, std::move(request),
        [later](const OpenResult& result) {
          later->Set(result.status.ok() ? Result<Digest>(result.replica.model)
                                        : Result<Digest>(result.status));
        },
        nullptr);
    return OkStatus();
  }));
  const Status waited = Await(
      *later, [&] { return cancelled() ? CancelledError("the caller is gone") : OkStatus(); });
  if (!waited.ok()) {
    (void)!OnReactor("cancel resolve", [&] {
      return registry_->CancelOpen(open), OkStatus();
    }).ok();
    return waited;
  }
  return later->Take();
}

std::optional<store::TierIndex> ControlCalls::TierOf(const std::string& name,
                                                     Status* status) const {
  if (name.empty()) return std::nullopt;
  const Result<store::TierIndex> tier = registry_->ResolveTier(name);
  *status = tier.status();
  return tier.ok() ? std::optional(*tier) : std::nullopt;
}

Result<std::optional<store::TierIndex>> ControlCalls::FindTier(const std::string& name) const {
  std::optional<store::TierIndex> tier;
  if (name.empty()) return tier;
  RETURN_IF_ERROR(OnReactor("find tier", [&] {
    Status status;
    tier = TierOf(name, &status);
    return status;
  }));
  return tier;
}

std::vector<Digest> ControlCalls::DigestsUnder(const std::string& name, bool or_label) const {
  std::vector<Digest> digests;
  if (const auto digest = registry_->DigestOfName(name)) digests.push_back(*digest);
  if (!or_label) return digests;
  registry_->store().ForEachReplica([&](const store::ReplicaSummary& replica) {
    const auto contents = registry_->FindContents(replica.replica.model);
    if (contents != nullptr && !contents->is_public() && contents->label == name)
      digests.push_back(replica.replica.model);
  });
  std::sort(digests.begin(), digests.end());
  digests.erase(std::unique(digests.begin(), digests.end()), digests.end());
  return digests;
}

// --- Pins ----------------------------------------------------------------------------

Status ControlCalls::Pin(const v1::PinRequest& request, v1::PinResponse* response,
                         const Cancelled& cancelled) {
  ASSIGN_OR_RETURN(const Named named, NameOrDigest(request.model()));
  ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, FindTier(request.tier()));
  std::optional<Digest> digest = named.digest;
  if (!digest) {
    ASSIGN_OR_RETURN(digest, LookedAtDigest(request.model(), cancelled));
  }
  RETURN_IF_ERROR(OnReactor("pin", [&]() -> Status {
    if (registry_->FindContents(*digest) == nullptr) return UnknownDigestError(*digest);
    registry_->Pin(*digest, tier.value_or(registry_->tiers().host()), true);
    return OkStatus();
  }));
  SnapshotRequest look = RequestFor(named);
  look.digests = {*digest};
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  FillNamed(named, snapshot, digest, response->mutable_model());
  return OkStatus();
}

Status ControlCalls::Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response,
                           const Cancelled& cancelled) {
  ASSIGN_OR_RETURN(const Named named, NameOrDigest(request.model()));
  ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, FindTier(request.tier()));
  std::vector<Digest> digests;
  bool has_unknown_pins = false;  // Set by an earlier worker, on contents nobody has seen since.
  RETURN_IF_ERROR(OnReactor("find pins", [&]() -> Status {
    if (named.entry) digests = DigestsUnder(named.entry->name, /*or_label=*/false);
    bool is_pinned = false;
    registry_->store().ForEachPin([&](const Digest& digest, store::TierIndex) {
      is_pinned = is_pinned || digest == named.digest;
      has_unknown_pins = has_unknown_pins || registry_->FindContents(digest) == nullptr;
    });
    if (named.digest) {
      if (!is_pinned && registry_->FindContents(*named.digest) == nullptr)
        return UnknownDigestError(*named.digest);
      digests = {*named.digest};
    }
    return OkStatus();
  }));
  // A model that nobody has looked at has no pin, and is not read to find that out; unless
  // there are pins that might be its.
  if (digests.empty() && has_unknown_pins) {
    ASSIGN_OR_RETURN(const Digest digest, LookedAtDigest(request.model(), cancelled));
    digests.push_back(digest);
  }
  RETURN_IF_ERROR(OnReactor("unpin", [&] {
    for (const Digest& digest : digests) {
      for (size_t i = 0; i < tier_names_.size(); ++i) {
        if (!tier || *tier == i) registry_->Pin(digest, static_cast<store::TierIndex>(i), false);
      }
    }
    return OkStatus();
  }));
  SnapshotRequest look = RequestFor(named);
  look.digests = digests;
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  std::optional<Digest> shown = named.digest;
  if (named.entry) {
    const Digest* const digest = snapshot.DigestOf(named.entry->name);
    if (digest != nullptr) shown = *digest;
  }
  FillNamed(named, snapshot, shown, response->mutable_model());
  return OkStatus();
}

// --- Evictions -------------------------------------------------------------------------

void ControlCalls::Note(Registry::EvictOutcome outcome, bool force, Eviction* eviction) const {
  std::erase_if(outcome.result.kept, [&](const store::EvictResult::Kept& kept) {
    // Evicted by force before: it drains, and is not asked to do more.
    return force && (kept.state == store::ReplicaState::kDraining ||
                     kept.state == store::ReplicaState::kQuarantined);
  });
  const auto has = [](const auto& list, uint64_t generation) {
    return std::any_of(list.begin(), list.end(),
                       [&](const auto& one) { return one.generation == generation; });
  };
  for (const store::ReplicaSummary& before : outcome.before) {
    if (!has(outcome.result.kept, before.generation) && !has(eviction->gone, before.generation))
      eviction->gone.push_back(before);
  }
  for (store::EvictResult::Kept& kept : outcome.result.kept) {
    for (const store::Holder& holder : kept.holders) {
      if (const auto session = sessions_.find(holder.session))
        eviction->pids.emplace(holder.session, session->pid);
    }
    eviction->kept.push_back(std::move(kept));
  }
}

ControlCalls::Eviction ControlCalls::Foresee(const std::vector<Digest>& models,
                                             std::optional<store::TierIndex> tier) const {
  Eviction eviction;
  for (const Digest& model : models) {
    Registry::EvictOutcome foreseen;
    foreseen.result.kept = registry_->store().WhatStays(model, tier, Now());
    std::erase_if(foreseen.result.kept, [](const store::EvictResult::Kept& kept) {
      return kept.state == store::ReplicaState::kLoading;
    });
    Note(std::move(foreseen), /*force=*/false, &eviction);
  }
  return eviction;
}

ControlCalls::Eviction ControlCalls::EvictAll(const std::vector<Digest>& models,
                                              std::optional<store::TierIndex> tier, bool force) {
  Eviction eviction;
  if (!force) {
    eviction = Foresee(models, tier);
    if (!eviction.kept.empty()) return eviction;
    // Whether somebody waits for a load or only the registry itself is found out by trying;
    // so what loads is tried before anything else.
    std::vector<store::ReplicaKey> loading;
    registry_->store().ForEachReplica([&](const store::ReplicaSummary& replica) {
      const store::ReplicaKey& key = replica.replica;
      if (replica.state == store::ReplicaState::kLoading && (!tier || key.tier == *tier) &&
          std::find(models.begin(), models.end(), key.model) != models.end())
        loading.push_back(key);
    });
    for (const store::ReplicaKey& key : loading) {
      Note(registry_->Evict(key.model, key.tier, /*force=*/false), /*force=*/false, &eviction);
      if (!eviction.kept.empty()) return eviction;
    }
  }
  for (const Digest& model : models) Note(registry_->Evict(model, tier, force), force, &eviction);
  return eviction;
}

void ControlCalls::FillEvicted(const Eviction& eviction,
                               google::protobuf::RepeatedPtrField<v1::EvictedReplica>* out) const {
  const Moment now = Moment::Current();
  for (const store::ReplicaSummary& before : eviction.gone) {
    v1::EvictedReplica& view = *out->Add();
    FillReplica(now, tier_names_, before, view.mutable_replica());
    view.set_draining(before.leases > 0);
    view.set_freed_bytes(before.leases > 0 ? 0 : before.unshared_bytes);
  }
}

std::string ControlCalls::DescribeKept(const Eviction& eviction) const {
  std::string text;
  for (const store::EvictResult::Kept& kept : eviction.kept)
    text += (text.empty() ? "" : "; ") + trims::DescribeKept(kept, tier_names_, eviction.pids);
  return text;
}

Status ControlCalls::Evict(const v1::EvictRequest& request, v1::EvictResponse* response) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.model()));
  Eviction eviction;
  RETURN_IF_ERROR(OnReactor("evict", [&]() -> Status {
    Status status;
    const std::optional<store::TierIndex> tier = TierOf(request.tier(), &status);
    RETURN_IF_ERROR(status);
    // By name: also what was loaded before its file changed, and what clients called so.
    const std::vector<Digest> models = reference.digest
                                           ? std::vector<Digest>{*reference.digest}
                                           : DigestsUnder(reference.name, /*or_label=*/true);
    eviction = EvictAll(models, tier, request.force());
    return OkStatus();
  }));
  if (!eviction.kept.empty())
    return FailedPreconditionError("not evicted: " + DescribeKept(eviction));
  if (eviction.gone.empty()) {
    if (!reference.digest) {
      RETURN_IF_ERROR(registry_->catalogue().Find(reference.name).status());
    }
    return NotFoundError("\"" + request.model() + "\" is not resident" +
                         (request.tier().empty() ? "" : " in tier " + request.tier()));
  }
  FillEvicted(eviction, response->mutable_replicas());
  return OkStatus();
}

// --- The catalogue ---------------------------------------------------------------------

Status ControlCalls::Add(const v1::AddRequest& request, v1::AddResponse* response) {
  RETURN_IF_ERROR(CheckModelPath(request.path()));
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.name()));
  if (reference.digest) return InvalidArgumentError("a digest can not be registered as a name");
  // A file that can not be a model is refused now, and nothing is registered.
  ASSIGN_OR_RETURN(const ModelHeaders headers, ReadHeaders(request.name(), request.path()));
  Catalogue& catalogue = registry_->catalogue();
  const Result<CatalogueEntry> before = catalogue.Find(request.name());
  if (before.ok() && !before->registered && !request.replace()) {
    return AlreadyExistsError("\"" + request.name() + "\" is the directory " + before->path +
                              " of the base directory; use --replace to let the new entry win");
  }
  RETURN_IF_ERROR(catalogue.Add(request.name(), request.path(), request.replace()));
  // From here on the name is there, whatever else fails.
  const bool is_replaced = before.ok() && before->path != request.path();
  const CatalogueEntry entry{request.name(), request.path(), /*registered=*/true};
  FillModel(Snapshot(), &entry, nullptr, response->mutable_model());
  FillHeaders(headers, response->mutable_model());
  response->set_replaced(is_replaced);
  return OnReactor("added", [&] {
    if (is_replaced) registry_->ForgetName(request.name());
    Tell(CatalogueHappening(v1::EVENT_KIND_ADDED, response->model(), std::nullopt));
    return OkStatus();
  });
}

// The name goes first, because that can fail, and nothing has happened then. What is
// resident under it goes next: whether it may is asked before and, because the world has
// gone on since, again. When the second answer is no the name comes back.
Status ControlCalls::Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) {
  const std::string& name = request.name();
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(name));
  if (reference.digest)
    return InvalidArgumentError("rm takes a name, not a digest; see `trims evict`");
  Catalogue& catalogue = registry_->catalogue();
  const Result<CatalogueEntry> entry = catalogue.Find(name);
  if (!entry.ok() || !entry->registered) return catalogue.Remove(name);  // Says why not.
  // What no other name leads to.
  const auto own_digests = [&] {
    std::vector<Digest> digests = DigestsUnder(name, /*or_label=*/false);
    std::erase_if(digests, [&](const Digest& digest) {
      const auto contents = registry_->FindContents(digest);
      return contents != nullptr && std::any_of(contents->names.begin(), contents->names.end(),
                                                [&](const auto& other) { return other != name; });
    });
    return digests;
  };
  SnapshotRequest look{.names = {name}, .only_these = true};
  Snapshot snapshot;
  Eviction eviction;
  RETURN_IF_ERROR(OnReactor("look before remove", [&] {
    LookAt(*registry_, sessions_, look, &snapshot);
    if (!request.force()) eviction = Foresee(own_digests(), std::nullopt);
    return OkStatus();
  }));
  if (!eviction.kept.empty())
    return FailedPreconditionError("not removed: " + DescribeKept(eviction));
  snapshot.Sort();
  const Digest* const digest = snapshot.DigestOf(name);
  FillModel(snapshot, &*entry, digest, response->mutable_model());

  RETURN_IF_ERROR(catalogue.Remove(name));
  Status evicted = OnReactor("remove", [&] {
    eviction = EvictAll(own_digests(), std::nullopt, request.force());
    if (!eviction.kept.empty()) return FailedPreconditionError("not removed: ");
    registry_->ForgetName(name);
    Tell(CatalogueHappening(v1::EVENT_KIND_REMOVED, response->model(),
                            digest != nullptr ? std::optional(*digest) : std::nullopt));
    return OkStatus();
  });
  if (!evicted.ok()) {
    if (!eviction.kept.empty())
      evicted = FailedPreconditionError(evicted.message() + DescribeKept(eviction));
    if (const Status back = catalogue.Add(name, entry->path, /*replace=*/false); !back.ok()) {
      LogError("a name that could not be removed is gone all the same",
               {{"model", name}, {"path", entry->path}, {"reason", back.message()}});
      return Status(evicted.code(),
                    evicted.message() + "; and its name could not be put back: " + back.message());
    }
    return evicted;
  }
  FillEvicted(eviction, response->mutable_replicas());
  return OkStatus();
}

}  // namespace trims

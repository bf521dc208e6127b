#include "daemon/opens.h"

#include <utility>

#include "base/limits.h"
#include "daemon/log.h"

namespace trims {

using store::Granularity;
using store::OpenId;
using store::ReplicaKey;

Opens::Opens(Parts parts, Settings settings, OpenId first_id)
    : parts_(std::move(parts)), settings_(settings), next_id_(first_id) {}

// --- The table ---------------------------------------------------------------------

Opens::Pending& Opens::Add(OpenId id, OpenRequest request, Done done, Progress progress) {
  auto pending = std::make_unique<Pending>();
  pending->request = std::move(request);
  pending->done = std::move(done);
  pending->progress = std::move(progress);
  const auto [it, is_new] = pending_.emplace(id, std::move(pending));
  TRIMS_CHECK(is_new);
  return *it->second;
}

Opens::Pending* Opens::Find(OpenId id) {
  const auto it = pending_.find(id);
  return it == pending_.end() ? nullptr : it->second.get();
}

std::unique_ptr<Opens::Pending> Opens::Take(OpenId id) {
  const auto it = pending_.find(id);
  if (it == pending_.end()) return nullptr;
  std::unique_ptr<Pending> pending = std::move(it->second);
  pending_.erase(it);
  Move(id, *pending, std::monostate());
  return pending;
}

void Opens::Move(OpenId id, Pending& pending, Stage stage) {
  const auto leave = [id](auto& index, const auto& key) {
    const auto it = index.find(key);
    it->second.erase(id);
    if (it->second.empty()) index.erase(it);
  };
  if (const auto* key = std::get_if<LookKey>(&pending.stage)) leave(by_look_, *key);
  if (const auto* asked = std::get_if<Asked>(&pending.stage)) leave(by_replica_, asked->replica);
  pending.stage = std::move(stage);
  if (const auto* key = std::get_if<LookKey>(&pending.stage)) by_look_[*key].insert(id);
  if (const auto* asked = std::get_if<Asked>(&pending.stage))
    by_replica_[asked->replica].insert(id);
}

void Opens::CheckInvariants() const {
  size_t looking = 0, asked_for = 0;
  for (const auto& [id, pending] : pending_) {
    TRIMS_CHECK(id != 0 && id < next_id_);
    if (const auto* key = std::get_if<LookKey>(&pending->stage)) {
      TRIMS_CHECK(by_look_.at(*key).contains(id));
      ++looking;
    } else if (const auto* asked = std::get_if<Asked>(&pending->stage)) {
      TRIMS_CHECK(by_replica_.at(asked->replica).contains(id));
      ++asked_for;
    }
  }
  for (const auto& [key, ids] : by_look_) {
    TRIMS_CHECK(!ids.empty() && ids.size() <= looking);
    looking -= ids.size();
  }
  for (const auto& [key, ids] : by_replica_) {
    TRIMS_CHECK(!ids.empty() && ids.size() <= asked_for);
    asked_for -= ids.size();
  }
  TRIMS_CHECK(looking == 0 && asked_for == 0);
}

// --- From words to contents ----------------------------------------------------------

void Opens::Open(OpenId id, OpenRequest request, Done done, Progress progress) {
  const store::TierIndex tier = request.tier.value_or(parts_.tiers->host());
  request.tier = tier;
  Status refused = OkStatus();
  Result<ModelReference> reference = ModelReference();
  if (tier >= parts_.tiers->size()) {
    refused = InvalidArgumentError("there is no tier number " + std::to_string(tier));
  } else if (const Status health = (*parts_.tiers)[tier].health(); !health.ok()) {
    refused = health;
  } else if (!request.file.valid()) {
    reference = ParseModelReference(request.model);
    refused = reference.status();
  }
  Pending& pending = Add(id, std::move(request), std::move(done), std::move(progress));
  if (!refused.ok()) return Fail(id, OpenResult{refused});
  if (pending.request.file.valid()) return StartPassed(id, pending);
  if (!reference->digest) return StartNamed(id, pending);
  const std::shared_ptr<ModelContents> contents = parts_.contents->Find(*reference->digest);
  if (contents == nullptr)
    return Fail(id, OpenResult{NotFoundError(UnknownDigestText(*reference->digest))});
  Proceed(id, pending, contents);
}

void Opens::StartNamed(OpenId id, Pending& pending) {
  const std::string& name = pending.request.model;
  if (const std::shared_ptr<ModelContents> contents = parts_.contents->Current(name))
    return Proceed(id, pending, contents);
  if (pending.progress) pending.progress(OpenPhase::kResolving, 0, 0);
  Move(id, pending, parts_.contents->LookAtName(name));
}

void Opens::StartPassed(OpenId id, Pending& pending) {
  const std::string label = pending.request.label.empty()
                                ? "the passed descriptor"
                                : "passed file \"" + pending.request.label + "\"";
  Result<Source> source = Source::FromDescriptor(std::move(pending.request.file), label);
  if (!source.ok()) return Fail(id, OpenResult{source.status()});
  pending.brought.source = std::make_shared<const Source>(*std::move(source));
  if (const auto known = parts_.contents->KnownFiles(*pending.brought.source)) {
    pending.brought.manifest = known->manifest;
    return Proceed(id, pending, known->contents);
  }
  if (pending.progress) pending.progress(OpenPhase::kResolving, 0, 0);
  Move(id, pending, parts_.contents->LookAtFiles(pending.brought.source, id));
}

void Opens::OnLookProgress(const LookKey& key, uint64_t done, uint64_t total) {
  const auto it = by_look_.find(key);
  if (it == by_look_.end()) return;
  for (const OpenId id : it->second) {
    if (const Progress& progress = Find(id)->progress) progress(OpenPhase::kHashing, done, total);
  }
}

void Opens::OnLooked(const LookKey& key, const Contents::Looked& looked) {
  const auto it = by_look_.find(key);
  if (it == by_look_.end()) return;
  const std::set<OpenId> ids = it->second;
  for (const OpenId id : ids) {
    Pending* const pending = Find(id);
    if (pending == nullptr) continue;  // Cancelled by what an answer before it led to.
    Move(id, *pending, std::monostate());
    if (pending->brought.source == nullptr && pending->fresh_after > looked.current_at) {
      StartNamed(id, *pending);  // A look from before it asked: the files may have changed since.
      continue;
    }
    if (!looked.found.ok()) {
      OpenResult failed{looked.found.status()};
      failed.need_bytes = looked.need_bytes;
      Fail(id, std::move(failed));
      continue;
    }
    const Contents::Found& found = *looked.found;
    if (pending->brought.source != nullptr) {
      pending->brought.manifest = found.manifest;
      if (found.contents->label.empty()) found.contents->label = pending->request.label;
    }
    Proceed(id, *pending, found.contents);
  }
}

// --- From contents to the store ------------------------------------------------------

void Opens::Proceed(OpenId id, Pending& pending, std::shared_ptr<ModelContents> contents) {
  pending.contents = contents;
  const OpenRequest& request = pending.request;
  if (request.expected && *request.expected != contents->digest()) {
    return Fail(id,
                OpenResult{DataLossError(
                    "\"" + (request.model.empty() ? request.label : request.model) + "\" holds " +
                    contents->digest().ToString() + ", expected " + request.expected->ToString())});
  }
  if (request.resolve_only) {
    OpenResult result;
    result.replica.model = contents->digest();
    return Take(id)->done(std::move(result));
  }
  Granularity granularity;
  if (request.granularity) {
    granularity = *request.granularity;
  } else {
    if (!contents->chosen)
      contents->chosen =
          ChooseGranularity(parts_.rates->rho(), *contents->manifest, settings_.slab_bytes);
    granularity = *contents->chosen;
  }
  const ReplicaKey replica{contents->digest(), *request.tier, granularity};
  // The common case costs no plan: what is resident is leased by its key. The
  // store answers NOT_FOUND when this client may not have it on these grounds.
  const bool is_simple =
      request.take_lease && pending.brought.source == nullptr && !request.keep_alive;
  AskStore(id, pending, replica, is_simple && parts_.residents->IsLent(replica));
}

void Opens::AskStore(OpenId id, Pending& pending, const ReplicaKey& replica, bool resident_only) {
  const OpenRequest& request = pending.request;
  if (resident_only) {
    Move(id, pending, Asked{replica, true});
    store::OpenResidentAsked asked;
    asked.open = id;
    asked.session = request.session;
    asked.uid = request.uid;
    asked.is_admin = request.is_admin;
    asked.tier = replica.tier;
    asked.granularity = replica.granularity;
    asked.model = replica.model;
    return parts_.apply(asked);
  }
  Result<store::ModelPlan> plan = PlanFor(pending, replica);
  if (!plan.ok()) return Fail(id, OpenResult{plan.status()});
  Move(id, pending, Asked{replica, false});
  if (request.take_lease) {
    store::OpenAsked asked;
    asked.open = id;
    asked.session = request.session;
    asked.uid = request.uid;
    asked.is_admin = request.is_admin;
    asked.tier = replica.tier;
    asked.granularity = replica.granularity;
    asked.plan = *std::move(plan);
    asked.proved_access = pending.brought.source != nullptr;
    asked.keep_alive = request.keep_alive;
    parts_.apply(asked);
  } else {
    store::LoadAsked asked;
    asked.open = id;
    asked.tier = replica.tier;
    asked.granularity = replica.granularity;
    asked.plan = *std::move(plan);
    asked.keep_alive = request.keep_alive;
    parts_.apply(asked);
  }
}

Result<store::ModelPlan> Opens::PlanFor(const Pending& pending, const ReplicaKey& replica) const {
  ModelContents& contents = *pending.contents;
  ASSIGN_OR_RETURN(const std::shared_ptr<const Layout> layout,
                   contents.LayoutAt(replica.granularity, settings_.slab_bytes));
  store::ModelPlan plan = MakePlan(*contents.manifest, *layout, contents.DisplayName());
  for (store::Extent& extent : plan.extents)
    extent.bytes = (*parts_.tiers)[replica.tier].AllocationBytes(extent.bytes);
  plan.is_public = contents.is_public();
  plan.reload_cost = parts_.rates->ReloadCost(plan.weight_bytes);
  return plan;
}

void Opens::Reattach(OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                     const ReplicaKey& replica, uint64_t generation, Done done) {
  OpenRequest request;
  request.session = session;
  request.uid = uid;
  request.is_admin = is_admin;
  request.tier = replica.tier;
  Pending& pending = Add(id, std::move(request), std::move(done), nullptr);
  if (replica.tier >= parts_.tiers->size()) {
    return Fail(id, OpenResult{InvalidArgumentError("there is no tier number " +
                                                    std::to_string(replica.tier))});
  }
  Move(id, pending, Asked{replica, false});
  store::ReattachAsked asked;
  asked.open = id;
  asked.session = session;
  asked.uid = uid;
  asked.replica = replica;
  asked.generation = generation;
  asked.is_admin = is_admin;
  parts_.apply(asked);
}

void Opens::KeepOnHost(const ReplicaKey& loaded, const Readable& readable) {
  const ReplicaKey host{loaded.model, parts_.tiers->host(), loaded.granularity};
  const std::shared_ptr<ModelContents> contents = parts_.contents->Find(host.model);
  if (!settings_.persist_host || contents == nullptr || parts_.store->Find(host)) return;
  // Reading it may hang for ever, and nobody waits for it.
  if (readable.source == nullptr || readable.source->has_forgeable_identity()) return;
  OpenRequest request;
  request.is_admin = true;
  request.take_lease = false;
  request.tier = host.tier;
  request.granularity = host.granularity;
  const OpenId id = NewId();
  Pending& pending = Add(
      id, std::move(request),
      [name = contents->DisplayName()](const OpenResult& result) {
        if (result.status.ok()) return;
        LogInfo("no copy kept in host memory",
                {{"model", name}, {"reason", result.status.message()}});
      },
      nullptr);
  pending.is_own = true;
  pending.contents = contents;
  pending.brought = readable;
  AskStore(id, pending, host, /*resident_only=*/false);
}

// --- Answers -------------------------------------------------------------------------

void Opens::Fail(OpenId id, OpenResult result) {
  const std::unique_ptr<Pending> pending = Take(id);
  if (pending == nullptr) return;
  if (!pending->is_own) ++counters_.failed;
  pending->done(std::move(result));
}

void Opens::Cancel(OpenId id) {
  Pending* const found = Find(id);
  if (found == nullptr) return;
  const Stage stage = found->stage;
  const std::unique_ptr<Pending> pending = Take(id);
  if (const auto* key = std::get_if<LookKey>(&stage)) {
    if (!by_look_.contains(*key)) parts_.contents->CancelLook(*key);
  } else if (std::holds_alternative<Asked>(stage)) {
    parts_.apply(store::OpenCancelled{id});
  }
}

void Opens::CancelOwn(const Digest& model) {
  std::vector<OpenId> own;
  for (const auto& [id, pending] : pending_) {
    if (pending->is_own && pending->contents->digest() == model) own.push_back(id);
  }
  for (const OpenId id : own) Cancel(id);
}

void Opens::OnReply(const store::ReplyLease& reply) {
  const auto close = [this, &reply] {
    // Not from inside the store's own actions.
    parts_.reactor->Post("close unwanted lease",
                         [apply = parts_.apply, session = reply.session, lease = reply.lease] {
                           apply(store::LeaseClosed{session, lease, 0});
                         });
  };
  const std::unique_ptr<Pending> pending = Take(reply.open);
  // Cancelled while the answer was on its way: nobody will close this lease.
  if (pending == nullptr) return close();
  Result<std::shared_ptr<const LentReplica>> lent = parts_.residents->Lend(reply.replica);
  if (!lent.ok()) {
    close();
    ++counters_.failed;
    return pending->done(OpenResult{lent.status()});
  }
  ++counters_.answered;
  if (!reply.loaded) ++counters_.hits;
  OpenResult result;
  result.lease = reply.lease;
  result.generation = reply.generation;
  result.loaded = reply.loaded;
  result.replica = reply.replica;
  result.lent = *std::move(lent);
  if (parts_.profile->enabled()) {
    parts_.profile->Span("open", "grpc", pending->asked_at, Now(),
                         {{"model_name", parts_.contents->NameOf(reply.replica.model)}});
  }
  pending->done(std::move(result));
}

void Opens::OnReply(const store::ReplyReady& reply) {
  const std::unique_ptr<Pending> pending = Take(reply.open);
  if (pending == nullptr) return;
  OpenResult result;
  result.replica = reply.replica;
  pending->done(std::move(result));
}

void Opens::OnReply(store::ReplyError reply) {
  Pending* const pending = Find(reply.open);
  if (pending == nullptr) return;
  const OpenId id = reply.open;
  const Asked asked = std::get<Asked>(pending->stage);
  if (asked.resident_only && reply.status.code() == StatusCode::kNotFound) {
    // Not on the grounds of being resident; perhaps on the grounds of its name.
    Move(id, *pending, std::monostate());
    parts_.reactor->Post("ask the store again", [this, id, replica = asked.replica] {
      if (Pending* const again = Find(id)) AskStore(id, *again, replica, /*resident_only=*/false);
    });
    return;
  }
  const bool is_named = pending->brought.source == nullptr && !pending->request.model.empty() &&
                        !ParseModelReference(pending->request.model)->digest;
  if (reply.status.code() == StatusCode::kAborted && !pending->retried && is_named) {
    // The file changed between looking at it and loading it: look again, once.
    pending->retried = true;
    pending->fresh_after = Now();
    pending->contents.reset();
    Move(id, *pending, std::monostate());
    parts_.contents->Doubt(pending->request.model);
    parts_.reactor->Post("look again", [this, id] {
      if (Pending* const again = Find(id)) StartNamed(id, *again);
    });
    return;
  }
  OpenResult result;
  result.status = std::move(reply.status);
  result.need_bytes = reply.need_bytes;
  result.free_bytes = reply.free_bytes;
  result.evictable_bytes = reply.evictable_bytes;
  // One text for unknown, not resident and not allowed.
  if (result.status.code() == StatusCode::kNotFound)
    result.status = NotFoundError(UnknownDigestText(asked.replica.model));
  Fail(id, std::move(result));
}

void Opens::OnLoadProgress(const ReplicaKey& replica, OpenPhase phase, uint64_t done,
                           uint64_t total) {
  const auto it = by_replica_.find(replica);
  if (it == by_replica_.end()) return;
  for (const OpenId id : it->second) {
    if (const Progress& progress = Find(id)->progress) progress(phase, done, total);
  }
}

Opens::Waiting Opens::WaitingFor(const ReplicaKey& replica) const {
  Waiting waiting;
  const auto it = by_replica_.find(replica);
  if (it == by_replica_.end()) return waiting;
  for (const OpenId id : it->second) {
    const Pending& pending = *pending_.at(id);
    waiting.is_anybody = true;
    waiting.is_wanted = waiting.is_wanted || !pending.is_own;
    if (pending.brought.manifest != nullptr) waiting.brought = pending.brought;
  }
  return waiting;
}

}  // namespace trims

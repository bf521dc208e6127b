#include "daemon/worker_control.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <fstream>
#include <mutex>
#include <set>

#include "base/limits.h"
#include "daemon/devices.h"
#include "daemon/log.h"
#include "format/model_file.h"
#include "trims/v1/control.pb.h"

namespace trims {
namespace {

using store::ReplicaKey;

constexpr size_t kMaxWatchBacklog = 4096;
// A call that waits asks this often whether its caller is still there.
constexpr auto kPollInterval = std::chrono::milliseconds(50);
constexpr auto kProgressEvery = std::chrono::milliseconds(250);

void SetTimestamp(Time when, google::protobuf::Timestamp* out) {
  const auto wall = std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(when - Now());
  const int64_t ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(wall.time_since_epoch()).count();
  out->set_seconds(ns / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
}

void SetDuration(Duration duration, google::protobuf::Duration* out) {
  out->set_seconds(duration.count() / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(duration.count() % 1'000'000'000));
}

v1::SharingGranularity ToProto(store::Granularity granularity) {
  return static_cast<v1::SharingGranularity>(static_cast<int>(granularity) + 1);
}

v1::ReplicaState ToProto(store::ReplicaState state) {
  switch (state) {
    case store::ReplicaState::kAbsent:
      return v1::REPLICA_STATE_ABSENT;
    case store::ReplicaState::kLoading:
      return v1::REPLICA_STATE_LOADING;
    case store::ReplicaState::kReady:
      return v1::REPLICA_STATE_READY;
    case store::ReplicaState::kDraining:
      return v1::REPLICA_STATE_DRAINING;
    case store::ReplicaState::kQuarantined:
      return v1::REPLICA_STATE_QUARANTINED;
  }
  return v1::REPLICA_STATE_UNSPECIFIED;
}

v1::EventKind ToProto(store::Notify::Kind kind) {
  using Kind = store::Notify::Kind;
  switch (kind) {
    case Kind::kLoading:
      return v1::EVENT_KIND_LOADING;
    case Kind::kReady:
      return v1::EVENT_KIND_READY;
    case Kind::kFailed:
      return v1::EVENT_KIND_FAILED;
    case Kind::kEvicted:
      return v1::EVENT_KIND_EVICTED;
    case Kind::kExpired:
      return v1::EVENT_KIND_EXPIRED;
    case Kind::kQuarantined:
      return v1::EVENT_KIND_QUARANTINED;
    case Kind::kLeased:
      return v1::EVENT_KIND_LEASED;
    case Kind::kReleased:
      return v1::EVENT_KIND_RELEASED;
    case Kind::kPinned:
      return v1::EVENT_KIND_PINNED;
    case Kind::kUnpinned:
      return v1::EVENT_KIND_UNPINNED;
    case Kind::kDraining:
      break;  // Told by the replica's state; evicted follows.
  }
  return v1::EVENT_KIND_UNSPECIFIED;
}

v1::Event CatalogueEvent(v1::EventKind kind, const v1::ModelView& model) {
  v1::Event event;
  SetTimestamp(Now(), event.mutable_time());
  event.set_kind(kind);
  event.set_model(model.name());
  event.set_digest(model.digest());
  event.set_detail(model.source());
  return event;
}

// The reactor's thread.
void FillReplica(const Registry& registry, const store::ReplicaView& view, v1::ReplicaView* out) {
  out->set_tier(registry.store().config().tiers[view.replica.tier].name);
  out->set_state(ToProto(view.state));
  out->set_granularity(ToProto(view.replica.granularity));
  out->set_generation(view.generation);
  out->set_bytes(view.bytes);
  out->set_unshared_bytes(view.unshared_bytes);
  out->set_extent_count(static_cast<uint32_t>(view.extents.size()));
  out->set_leases(view.leases);
  out->set_pinned(view.pinned);
  out->set_opens(view.opens);
  out->set_peak_internal_bytes(view.peak_internal_bytes);
  if (view.state != store::ReplicaState::kLoading)
    SetTimestamp(view.loaded_at, out->mutable_loaded_at());
  if (view.opens > 0) SetTimestamp(view.last_open, out->mutable_last_open_at());
  if (view.expires_at) SetTimestamp(*view.expires_at, out->mutable_until());
}

// The reactor's thread. `entry` is null for a model without a catalogue name.
void FillModel(const Registry& registry, const CatalogueEntry* entry, const Digest* digest,
               v1::ModelView* out) {
  if (entry != nullptr) {
    out->set_name(entry->name);
    out->set_origin(entry->registered ? v1::MODEL_ORIGIN_ADDED : v1::MODEL_ORIGIN_BASE_DIR);
    out->set_source(entry->path);
  } else {
    out->set_origin(v1::MODEL_ORIGIN_DESCRIPTOR);
  }
  if (digest == nullptr) return;
  out->set_digest(digest->ToString());
  if (const auto contents = registry.FindContents(*digest)) {
    if (entry == nullptr)
      out->set_name(contents->names.empty() ? contents->label : contents->names.back());
    out->set_weight_bytes(contents->manifest->weight_bytes);
    out->set_tensor_count(static_cast<uint32_t>(contents->manifest->tensors.size()));
  }
  for (size_t tier = 0; tier < registry.store().config().tiers.size(); ++tier) {
    if (registry.IsPinned(*digest, static_cast<store::TierIndex>(tier))) out->set_pinned(true);
  }
  std::vector<store::ReplicaView> views = registry.store().Replicas();
  std::erase_if(views, [&](const auto& view) { return view.replica.model != *digest; });
  std::sort(views.begin(), views.end(),
            [](const auto& a, const auto& b) { return a.replica < b.replica; });
  for (const store::ReplicaView& view : views) FillReplica(registry, view, out->add_replicas());
}

void FillByDigest(const Registry& registry, const Digest& digest, const std::string& asked,
                  Catalogue& catalogue, v1::ModelView* out) {
  const auto contents = registry.FindContents(digest);
  std::string name = asked;
  if (const auto reference = ParseModelReference(asked); !reference.ok() || reference->digest) {
    name = contents == nullptr || contents->names.empty() ? "" : contents->names.back();
  }
  const Result<CatalogueEntry> entry =
      name.empty() ? Result<CatalogueEntry>(NotFoundError("")) : catalogue.Find(name);
  FillModel(registry, entry.ok() ? &*entry : nullptr, &digest, out);
}

void FillLease(const Registry& registry, const LeaseServer& leases, const store::LeaseView& lease,
               v1::LeaseView* out) {
  out->set_lease_id(lease.lease);
  out->set_session_id(lease.session);
  out->set_uid(lease.uid);
  if (const auto session = leases.FindSession(lease.session)) {
    out->set_gid(session->gid);
    out->set_pid(session->pid);
    if (session->pid > 0) {
      std::ifstream comm("/proc/" + std::to_string(session->pid) + "/comm");
      std::string command;
      if (std::getline(comm, command)) out->set_command(command);
    }
  }
  out->set_model(registry.NameOf(lease.replica.model));
  out->set_digest(lease.replica.model.ToString());
  out->set_tier(registry.store().config().tiers[lease.replica.tier].name);
  out->set_granularity(ToProto(lease.replica.granularity));
  out->set_generation(lease.generation);
  if (const auto view = registry.store().Find(lease.replica)) out->set_bytes(view->bytes);
  SetTimestamp(lease.since, out->mutable_since());
}

void FillDevices(const Devices& devices, v1::GetStatusResponse* response) {
  std::map<std::string, int> served;  // By name.
  for (const DeviceFacts& facts : devices.Facts()) {
    v1::DeviceView* out = response->add_devices();
    out->set_ordinal(static_cast<uint32_t>(facts.ordinal));
    out->set_uuid(facts.uuid);
    out->set_name(facts.name);
    out->set_pci_bus_id(facts.pci_bus_id);
    out->set_tier(facts.tier);
    out->set_state(facts.state.ok() ? "ready" : facts.state.message());
    out->set_ready(facts.state.ok());
    out->set_supports_vmm(facts.supports_vmm);
    out->set_supports_posix_fd(facts.supports_posix_fd);
    out->set_total_bytes(facts.total_bytes);
    out->set_free_bytes(facts.free_bytes);
    out->set_pinned_pool_bytes(facts.pinned_pool_bytes);
    out->set_pinned_pool_bytes_max(facts.pinned_pool_bytes_max);
    for (const LinkFacts& link : facts.links) {
      v1::LinkView* each = out->add_links();
      each->set_from(link.from);
      each->set_bytes_per_second(link.bytes_per_second);
      each->set_direct(link.direct);
    }
    if (facts.state.ok()) ++served[facts.name];
  }
  std::string text;
  for (const auto& [name, count] : served)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " x " + name;
  response->set_gpu(!text.empty() ? text : "none: " + devices.WhyNotServed(""));
  response->set_cuda_driver(devices.driver_version());
  response->set_host_pinned_bytes(devices.host_pinned_bytes());
  response->set_host_pinning(devices.is_host_pinning());
}

std::string DescribeHolders(const Registry& registry, const LeaseServer& leases,
                            const store::EvictResult::Kept& kept) {
  std::string text = kept.name + " in tier " +
                     registry.store().config().tiers[kept.replica.tier].name + ": " + kept.reason;
  for (size_t i = 0; i < kept.holders.size() && i < 4; ++i) {
    const auto session = leases.FindSession(kept.holders[i].session);
    text += (i == 0 ? " (held by " : ", ") + std::string("pid ") +
            std::to_string(session ? session->pid : 0) + " uid " +
            std::to_string(kept.holders[i].uid);
  }
  if (kept.holders.size() > 4) text += ", and " + std::to_string(kept.leases - 4) + " more leases";
  if (!kept.holders.empty()) text += ")";
  return text;
}

}  // namespace

WorkerControl::WorkerControl(Reactor* reactor, Registry* registry, LeaseServer* leases,
                             const WorkerStart& start)
    : reactor_(reactor),
      registry_(registry),
      leases_(leases),
      start_(start),
      worker_started_at_(::time(nullptr)) {}

void WorkerControl::TellWatchers(const v1::Event& event) {
  for (const auto& [id, tell] : watchers_) tell(event);
}

void WorkerControl::SetConfig(const LoadedConfig& config) { start_.config = config; }

Status WorkerControl::OnReactor(std::function<Status()> work) {
  struct Answer {
    std::mutex mu;
    std::condition_variable ready;
    std::optional<Status> status;
    ~Answer() = default;
  };
  // Dropped unanswered when the reactor ends first: the guard's destructor answers.
  struct Guard {
    std::shared_ptr<Answer> answer;
    ~Guard() {
      std::lock_guard lock(answer->mu);
      if (!answer->status) answer->status = UnavailableError("the daemon is stopping");
      answer->ready.notify_all();
    }
  };
  auto answer = std::make_shared<Answer>();
  {
    auto guard = std::make_shared<Guard>();
    guard->answer = answer;
    reactor_->Post("control call", [guard, work = std::move(work)] {
      Status status = work();
      std::lock_guard lock(guard->answer->mu);
      guard->answer->status = std::move(status);
    });
  }
  std::unique_lock lock(answer->mu);
  answer->ready.wait(lock, [&] { return answer->status.has_value(); });
  return *answer->status;
}

Result<std::optional<store::TierIndex>> WorkerControl::TierOf(const std::string& name) const {
  if (name.empty()) return std::optional<store::TierIndex>();
  ASSIGN_OR_RETURN(const store::TierIndex tier, registry_->ResolveTier(name));
  return std::optional<store::TierIndex>(tier);
}

Result<Digest> WorkerControl::DigestOf(const std::string& model, bool resolve,
                                       const Cancelled* cancelled) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(model));
  struct State {
    std::mutex mu;
    std::condition_variable ready;
    std::optional<Result<Digest>> digest;
  };
  auto state = std::make_shared<State>();
  store::OpenId open = 0;
  RETURN_IF_ERROR(OnReactor([&]() -> Status {
    if (reference.digest) {
      if (registry_->FindContents(*reference.digest) == nullptr) {
        return NotFoundError("no model with digest " + reference.digest->ToString() + " is known");
      }
      state->digest = *reference.digest;
      return OkStatus();
    }
    RETURN_IF_ERROR(registry_->catalogue().Find(reference.name).status());
    if (!resolve) {
      const auto digest = registry_->DigestOfName(reference.name);
      if (!digest) return FailedPreconditionError("\"" + reference.name + "\" is not resident");
      state->digest = *digest;
      return OkStatus();
    }
    OpenRequest request;
    request.model = model;
    request.resolve_only = true;
    open = registry_->NewOpenId();
    registry_->Open(
        open, std::move(request),
        [state](OpenResult result) {
          std::lock_guard lock(state->mu);
          state->digest = result.status.ok() ? Result<Digest>(result.replica.model)
                                             : Result<Digest>(result.status);
          state->ready.notify_all();
        },
        nullptr);
    return OkStatus();
  }));
  std::unique_lock lock(state->mu);
  while (!state->digest) {
    state->ready.wait_for(lock, kPollInterval);
    if (!state->digest && cancelled != nullptr && (*cancelled)()) {
      lock.unlock();
      (void)!OnReactor([&] { return registry_->CancelOpen(open), OkStatus(); }).ok();
      return CancelledError("the caller is gone");
    }
  }
  return *state->digest;
}

Status WorkerControl::Info(const v1::InfoRequest& request, v1::InfoResponse* response) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.model()));
  std::string unseen;  // Path of a model whose files nobody has looked at yet.
  RETURN_IF_ERROR(OnReactor([&]() -> Status {
    std::optional<Digest> digest = reference.digest;
    if (!digest) {
      ASSIGN_OR_RETURN(const CatalogueEntry entry, registry_->catalogue().Find(reference.name));
      digest = registry_->DigestOfName(reference.name);
      if (!digest) {
        FillModel(*registry_, &entry, nullptr, response->mutable_model());
        unseen = entry.path;
        return OkStatus();
      }
    }
    const auto contents = registry_->FindContents(*digest);
    if (contents == nullptr)
      return NotFoundError("no model with digest " + digest->ToString() + " is known");
    FillByDigest(*registry_, *digest, request.model(), registry_->catalogue(),
                 response->mutable_model());
    for (const auto& [key, value] : contents->manifest->metadata)
      (*response->mutable_metadata())[key] = value;
    if (request.include_tensors()) {
      for (const ManifestTensor& tensor : contents->manifest->tensors) {
        v1::TensorView* out = response->add_tensors();
        out->set_name(tensor.name);
        out->set_dtype(std::string(DTypeName(tensor.dtype)));
        for (const int64_t dim : tensor.shape) out->add_shape(dim);
        out->set_size_bytes(tensor.size_bytes);
        out->set_digest(tensor.content.ToString());
      }
    }
    for (const store::LeaseView& lease : registry_->store().Leases()) {
      if (lease.replica.model == *digest)
        FillLease(*registry_, *leases_, lease, response->add_leases());
    }
    return OkStatus();
  }));
  if (unseen.empty()) return OkStatus();
  // Headers only, on this thread: the identity is computed by the first load.
  ASSIGN_OR_RETURN(const Source source,
                   Source::OpenPath(unseen, CanonicalDirectoryName(reference.name)));
  uint64_t weight_bytes = 0;
  uint32_t count = 0;
  std::map<std::string, v1::TensorView> tensors;
  for (const SourceFile& file : source.files()) {
    ASSIGN_OR_RETURN(const format::FileSource bytes,
                     format::FileSource::Open(file.fd.get(), file.path));
    ASSIGN_OR_RETURN(const format::FileIndex index, format::ParseModelFile(bytes));
    for (const auto& [key, value] : index.metadata) (*response->mutable_metadata())[key] = value;
    for (const format::TensorEntry& tensor : index.tensors) {
      weight_bytes += tensor.size_bytes;
      ++count;
      if (!request.include_tensors()) continue;
      v1::TensorView& out = tensors[tensor.name];
      out.set_name(tensor.name);
      out.set_dtype(std::string(DTypeName(tensor.dtype)));
      for (const int64_t dim : tensor.shape) out.add_shape(dim);
      out.set_size_bytes(tensor.size_bytes);
    }
  }
  response->mutable_model()->set_weight_bytes(weight_bytes);
  response->mutable_model()->set_tensor_count(count);
  for (auto& [name, tensor] : tensors) *response->add_tensors() = std::move(tensor);
  return OkStatus();
}

Status WorkerControl::List(const v1::ListRequest& request, v1::ListResponse* response) {
  const std::vector<CatalogueEntry> entries = registry_->catalogue().List();
  return OnReactor([&]() -> Status {
    std::set<Digest> listed;
    std::vector<v1::ModelView> models;
    for (const CatalogueEntry& entry : entries) {
      const auto digest = registry_->DigestOfName(entry.name);
      v1::ModelView model;
      FillModel(*registry_, &entry, digest ? &*digest : nullptr, &model);
      if (digest) listed.insert(*digest);
      if (!request.resident_only() || model.replicas_size() > 0) models.push_back(std::move(model));
    }
    for (const store::ReplicaView& view : registry_->store().Replicas()) {
      if (!listed.insert(view.replica.model).second) continue;
      v1::ModelView model;
      FillByDigest(*registry_, view.replica.model, "@" + view.replica.model.ToString(),
                   registry_->catalogue(), &model);
      // A catalogue model that was adopted, and not opened by its name since.
      const auto twin = std::find_if(models.begin(), models.end(), [&](const v1::ModelView& other) {
        return !model.name().empty() && other.name() == model.name() && other.digest().empty();
      });
      if (twin != models.end()) {
        *twin = std::move(model);
      } else {
        models.push_back(std::move(model));
      }
    }
    std::sort(models.begin(), models.end(), [](const v1::ModelView& a, const v1::ModelView& b) {
      return std::pair(a.name(), a.digest()) < std::pair(b.name(), b.digest());
    });
    for (v1::ModelView& model : models) *response->add_models() = std::move(model);
    return OkStatus();
  });
}

Status WorkerControl::Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
                           const Cancelled& cancelled) {
  struct State {
    std::mutex mu;
    std::condition_variable changed;
    v1::LoadProgress latest;
    bool fresh = true;
    std::optional<OpenResult> result;
  };
  auto state = std::make_shared<State>();
  state->latest.set_phase(v1::LOAD_PHASE_QUEUED);
  store::OpenId open = 0;
  bool resident = false;
  RETURN_IF_ERROR(OnReactor([&]() -> Status {
    OpenRequest load;
    load.model = request.model();
    load.is_admin = true;
    load.take_lease = false;
    ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, TierOf(request.tier()));
    load.tier = tier;
    switch (request.granularity()) {
      case v1::SHARING_GRANULARITY_AUTO:
        break;
      case v1::SHARING_GRANULARITY_SLAB:
        load.granularity = store::Granularity::kSlab;
        break;
      case v1::SHARING_GRANULARITY_LAYER:
        load.granularity = store::Granularity::kLayer;
        break;
      default:
        load.granularity = store::Granularity::kModel;
    }
    if (request.has_keep_alive()) {
      const auto& keep = request.keep_alive();
      load.keep_alive = keep.seconds() < 0 || keep.nanos() < 0
                            ? std::optional<Duration>()
                            : std::optional<Duration>(std::chrono::seconds(keep.seconds()) +
                                                      std::chrono::nanoseconds(keep.nanos()));
    }
    if (const auto digest = registry_->DigestOfName(request.model()); digest && load.granularity) {
      const auto view = registry_->store().Find(
          ReplicaKey{*digest, tier.value_or(registry_->tiers().host()), *load.granularity});
      resident = view && view->state == store::ReplicaState::kReady;
    }
    open = registry_->NewOpenId();
    registry_->Open(
        open, std::move(load),
        [state](OpenResult result) {
          std::lock_guard lock(state->mu);
          state->result = std::move(result);
          state->changed.notify_all();
        },
        [state](OpenPhase phase, uint64_t done, uint64_t total) {
          std::lock_guard lock(state->mu);
          state->latest.set_phase(static_cast<v1::LoadPhase>(static_cast<int>(phase) + 1));
          state->latest.set_done_bytes(done);
          state->latest.set_total_bytes(total);
          state->fresh = true;
          state->changed.notify_all();
        });
    return OkStatus();
  }));
  Time phase_start = Now();
  Time last_emit{};
  int phase = -1;
  std::unique_lock lock(state->mu);
  while (!state->result) {
    const bool due = state->fresh && Now() - last_emit >= kProgressEvery / 4;
    if (due || Now() - last_emit >= kProgressEvery) {
      v1::LoadProgress progress = state->latest;
      state->fresh = false;
      lock.unlock();
      if (progress.phase() != phase) {
        phase = progress.phase();
        phase_start = Now();
      }
      const double seconds = std::chrono::duration<double>(Now() - phase_start).count();
      if (seconds > 0.05)
        progress.set_bytes_per_second(static_cast<double>(progress.done_bytes()) / seconds);
      last_emit = Now();
      const bool there = emit(progress) && !cancelled();
      if (!there) {
        (void)!OnReactor([&] { return registry_->CancelOpen(open), OkStatus(); }).ok();
        return CancelledError("the caller is gone");
      }
      lock.lock();
      continue;
    }
    state->changed.wait_for(lock, kPollInterval);
  }
  const OpenResult result = *state->result;
  lock.unlock();
  RETURN_IF_ERROR(result.status);
  v1::LoadProgress ready;
  ready.set_phase(v1::LOAD_PHASE_READY);
  RETURN_IF_ERROR(OnReactor([&] {
    FillByDigest(*registry_, result.replica.model, request.model(), registry_->catalogue(),
                 ready.mutable_model());
    return OkStatus();
  }));
  for (const v1::ReplicaView& replica : ready.model().replicas()) {
    if (replica.granularity() != ToProto(result.replica.granularity)) continue;
    ready.set_done_bytes(replica.bytes());
    ready.set_total_bytes(replica.bytes());
  }
  ready.set_already_resident(resident);
  (void)emit(ready);
  return OkStatus();
}

Status WorkerControl::Pin(const v1::PinRequest& request, v1::PinResponse* response) {
  ASSIGN_OR_RETURN(const Digest digest, DigestOf(request.model(), /*resolve=*/true, nullptr));
  return OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const auto tier, TierOf(request.tier()));
    registry_->Pin(digest, tier.value_or(registry_->tiers().host()), true);
    FillByDigest(*registry_, digest, request.model(), registry_->catalogue(),
                 response->mutable_model());
    return OkStatus();
  });
}

Status WorkerControl::Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response) {
  ASSIGN_OR_RETURN(const Digest digest, DigestOf(request.model(), /*resolve=*/true, nullptr));
  return OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const auto tier, TierOf(request.tier()));
    for (size_t i = 0; i < registry_->store().config().tiers.size(); ++i) {
      if (!tier || *tier == i) registry_->Pin(digest, static_cast<store::TierIndex>(i), false);
    }
    FillByDigest(*registry_, digest, request.model(), registry_->catalogue(),
                 response->mutable_model());
    return OkStatus();
  });
}

Status WorkerControl::Evict(const v1::EvictRequest& request, v1::EvictResponse* response) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.model()));
  return OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const auto tier, TierOf(request.tier()));
    // By name: the contents last loaded under it, also when its file has changed since.
    std::set<Digest> digests;
    if (reference.digest) {
      digests.insert(*reference.digest);
    } else {
      if (const auto digest = registry_->DigestOfName(reference.name)) digests.insert(*digest);
      for (const store::ReplicaView& view : registry_->store().Replicas()) {
        const auto contents = registry_->FindContents(view.replica.model);
        if (contents != nullptr && contents->DisplayName() == reference.name)
          digests.insert(view.replica.model);
      }
    }
    uint32_t found = 0;
    std::string kept;
    for (const Digest& digest : digests) {
      Registry::EvictOutcome outcome = registry_->Evict(digest, tier, request.force());
      found += outcome.result.found;
      for (const auto& each : outcome.result.kept) {
        kept += (kept.empty() ? "" : "; ") + DescribeHolders(*registry_, *leases_, each);
      }
      for (const store::ReplicaView& before : outcome.before) {
        const bool stays =
            std::any_of(outcome.result.kept.begin(), outcome.result.kept.end(),
                        [&](const auto& each) { return each.generation == before.generation; });
        if (stays) continue;
        v1::EvictedReplica* out = response->add_replicas();
        FillReplica(*registry_, before, out->mutable_replica());
        out->set_draining(before.leases > 0);
        out->set_freed_bytes(before.leases > 0 ? 0 : before.unshared_bytes);
      }
    }
    if (found == 0) {
      RETURN_IF_ERROR(reference.digest ? OkStatus()
                                       : registry_->catalogue().Find(reference.name).status());
      return NotFoundError("\"" + request.model() + "\" is not resident" +
                           (request.tier().empty() ? "" : " in tier " + request.tier()));
    }
    if (!kept.empty()) return FailedPreconditionError("not evicted: " + kept);
    return OkStatus();
  });
}

Status WorkerControl::Add(const v1::AddRequest& request, v1::AddResponse* response) {
  if (request.path().empty() || request.path()[0] != '/') {
    return InvalidArgumentError("path \"" + request.path() + "\" is not absolute");
  }
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.name()));
  if (reference.digest) return InvalidArgumentError("a digest can not be registered as a name");
  // A file that can not be a model is refused now, and nothing is registered.
  ASSIGN_OR_RETURN(const Source source,
                   Source::OpenPath(request.path(), CanonicalDirectoryName(request.name())));
  uint64_t weight_bytes = 0;
  uint32_t count = 0;
  for (const SourceFile& file : source.files()) {
    ASSIGN_OR_RETURN(const format::FileSource bytes,
                     format::FileSource::Open(file.fd.get(), file.path));
    ASSIGN_OR_RETURN(const format::FileIndex index, format::ParseModelFile(bytes));
    count += static_cast<uint32_t>(index.tensors.size());
    for (const format::TensorEntry& tensor : index.tensors) weight_bytes += tensor.size_bytes;
  }
  const Result<CatalogueEntry> before = registry_->catalogue().Find(request.name());
  if (before.ok() && !before->registered && !request.replace()) {
    return AlreadyExistsError("\"" + request.name() + "\" is the directory " + before->path +
                              " of the base directory; use --replace to let the new entry win");
  }
  RETURN_IF_ERROR(registry_->catalogue().Add(request.name(), request.path(), request.replace()));
  response->set_replaced(before.ok() && before->path != request.path());
  return OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const CatalogueEntry entry, registry_->catalogue().Find(request.name()));
    FillModel(*registry_, &entry, nullptr, response->mutable_model());
    response->mutable_model()->set_weight_bytes(weight_bytes);
    response->mutable_model()->set_tensor_count(count);
    TellWatchers(CatalogueEvent(v1::EVENT_KIND_ADDED, response->model()));
    return OkStatus();
  });
}

Status WorkerControl::Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.name()));
  if (reference.digest)
    return InvalidArgumentError("rm takes a name, not a digest; see `trims evict`");
  return OnReactor([&]() -> Status {
    const Result<CatalogueEntry> entry = registry_->catalogue().Find(request.name());
    if (!entry.ok() || !entry->registered) return registry_->catalogue().Remove(request.name());
    const auto digest = registry_->DigestOfName(request.name());
    FillModel(*registry_, &*entry, digest ? &*digest : nullptr, response->mutable_model());
    bool shared = false;  // Another name leads to the same contents.
    for (const CatalogueEntry& other : registry_->catalogue().List()) {
      if (other.name != request.name() && digest && registry_->DigestOfName(other.name) == digest)
        shared = true;
    }
    if (digest && !shared) {
      Registry::EvictOutcome outcome = registry_->Evict(*digest, std::nullopt, request.force());
      if (!outcome.result.kept.empty()) {
        return FailedPreconditionError(
            "not removed: " + DescribeHolders(*registry_, *leases_, outcome.result.kept[0]));
      }
      for (const store::ReplicaView& before : outcome.before) {
        v1::EvictedReplica* out = response->add_replicas();
        FillReplica(*registry_, before, out->mutable_replica());
        out->set_draining(before.leases > 0);
        out->set_freed_bytes(before.leases > 0 ? 0 : before.unshared_bytes);
      }
    }
    RETURN_IF_ERROR(registry_->catalogue().Remove(request.name()));
    registry_->ForgetName(request.name());
    TellWatchers(CatalogueEvent(v1::EVENT_KIND_REMOVED, response->model()));
    return OkStatus();
  });
}

Status WorkerControl::Verify(const v1::VerifyRequest& request, const Emit<v1::VerifyProgress>& emit,
                             const Cancelled& cancelled) {
  std::optional<Digest> digest;
  if (!request.model().empty()) {
    const Result<Digest> found = DigestOf(request.model(), /*resolve=*/false, nullptr);
    if (found.status().code() == StatusCode::kFailedPrecondition)
      return NotFoundError(found.status().message());
    ASSIGN_OR_RETURN(digest, found);
  }
  struct Target {
    ReplicaKey key;
    uint64_t bytes = 0;
  };
  std::vector<Target> targets;
  uint64_t total = 0;
  RETURN_IF_ERROR(OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const auto tier, TierOf(request.tier()));
    for (const store::ReplicaView& view : registry_->store().Replicas()) {
      if (view.state != store::ReplicaState::kReady || (digest && view.replica.model != *digest) ||
          (tier && view.replica.tier != *tier)) {
        continue;
      }
      targets.push_back({view.replica, view.bytes});
      total += view.bytes;
    }
    if (targets.empty() && digest)
      return NotFoundError("\"" + request.model() + "\" is not resident");
    return OkStatus();
  }));
  uint64_t before = 0;
  for (const Target& target : targets) {
    struct State {
      std::mutex mu;
      std::condition_variable changed;
      std::atomic<uint64_t> done{0};
      std::optional<Status> status;
    };
    auto state = std::make_shared<State>();
    auto control = std::make_shared<LoadControl>();
    control->on_progress = [state](uint64_t done, uint64_t) { state->done = done; };
    const Time start = Now();
    RETURN_IF_ERROR(OnReactor([&] {
      registry_->Verify(target.key, control, [state](Status status) {
        std::lock_guard lock(state->mu);
        state->status = std::move(status);
        state->changed.notify_all();
      });
      return OkStatus();
    }));
    Time last_emit = Now();
    std::unique_lock lock(state->mu);
    while (!state->status) {
      state->changed.wait_for(lock, kPollInterval);
      if (state->status) break;
      const bool due = Now() - last_emit >= kProgressEvery;
      lock.unlock();
      bool there = !cancelled();
      if (there && due) {
        v1::VerifyProgress progress;
        progress.set_done_bytes(before + state->done);
        progress.set_total_bytes(total);
        there = emit(progress);
        last_emit = Now();
      }
      if (!there) {
        control->cancelled = true;
        return CancelledError("the caller is gone");
      }
      lock.lock();
    }
    const Status status = *state->status;
    lock.unlock();
    before += target.bytes;
    if (status.code() == StatusCode::kFailedPrecondition) continue;  // Evicted in the meantime.
    v1::VerifyProgress progress;
    progress.set_done_bytes(before);
    progress.set_total_bytes(total);
    v1::VerifyVerdict* verdict = progress.mutable_verdict();
    verdict->set_digest(target.key.model.ToString());
    verdict->set_intact(status.ok());
    if (!status.ok()) verdict->set_detail(status.message());
    SetDuration(Now() - start, verdict->mutable_took());
    RETURN_IF_ERROR(OnReactor([&] {
      verdict->set_model(registry_->NameOf(target.key.model));
      for (const store::ReplicaView& view : registry_->store().Replicas()) {
        if (view.replica == target.key) FillReplica(*registry_, view, verdict->mutable_replica());
      }
      if (!verdict->has_replica()) {
        verdict->mutable_replica()->set_tier(
            registry_->store().config().tiers[target.key.tier].name);
        verdict->mutable_replica()->set_granularity(ToProto(target.key.granularity));
        verdict->mutable_replica()->set_state(v1::REPLICA_STATE_ABSENT);
      }
      return OkStatus();
    }));
    if (!emit(progress)) return CancelledError("the caller is gone");
  }
  return OkStatus();
}

Status WorkerControl::ListLeases(const v1::ListLeasesRequest& request,
                                 v1::ListLeasesResponse* response) {
  std::optional<Digest> digest;
  if (!request.model().empty()) {
    const Result<Digest> found = DigestOf(request.model(), /*resolve=*/false, nullptr);
    if (found.status().code() == StatusCode::kFailedPrecondition)
      return OkStatus();  // Known and not resident.
    RETURN_IF_ERROR(found.status());
    digest = *found;
  }
  return OnReactor([&]() -> Status {
    ASSIGN_OR_RETURN(const auto tier, TierOf(request.tier()));
    for (const store::LeaseView& lease : registry_->store().Leases()) {
      if ((digest && lease.replica.model != *digest) || (tier && lease.replica.tier != *tier))
        continue;
      FillLease(*registry_, *leases_, lease, response->add_leases());
    }
    return OkStatus();
  });
}

Status WorkerControl::Watch(const v1::WatchRequest& request, const std::function<void()>& watching,
                            const Emit<v1::Event>& emit, const Cancelled& cancelled) {
  struct State {
    std::mutex mu;
    std::condition_variable changed;
    std::deque<v1::Event> events;
    uint64_t dropped = 0;
  };
  auto state = std::make_shared<State>();
  std::optional<Digest> digest;
  std::string name;
  if (!request.model().empty()) {
    ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.model()));
    digest = reference.digest;
    name = reference.name;
  }
  const std::set<int> kinds(request.kinds().begin(), request.kinds().end());
  const std::string wanted_digest = digest ? digest->ToString() : "";
  const auto tell = [state, wanted_digest, name, kinds](const v1::Event& event) {
    if (!kinds.empty() && !kinds.contains(event.kind())) return;
    if (!wanted_digest.empty() && event.digest() != wanted_digest) return;
    if (!name.empty() && event.model() != name) return;
    std::lock_guard lock(state->mu);
    if (state->events.size() >= kMaxWatchBacklog) {
      ++state->dropped;
      return;
    }
    state->events.push_back(event);
    state->changed.notify_all();
  };
  uint64_t observer = 0;
  RETURN_IF_ERROR(OnReactor([&] {
    observer = registry_->AddObserver([this, tell](const store::Notify& notify) {
      const v1::EventKind kind = ToProto(notify.kind);
      if (kind == v1::EVENT_KIND_UNSPECIFIED) return;
      v1::Event event;
      SetTimestamp(Now(), event.mutable_time());
      event.set_kind(kind);
      event.set_model(registry_->NameOf(notify.replica.model));
      event.set_digest(notify.replica.model.ToString());
      event.set_tier(registry_->store().config().tiers[notify.replica.tier].name);
      event.set_granularity(ToProto(notify.replica.granularity));
      if (const auto view = registry_->store().Find(notify.replica)) event.set_bytes(view->bytes);
      event.set_detail(notify.detail);
      tell(event);
    });
    watchers_[observer] = tell;
    return OkStatus();
  }));
  watching();
  bool there = true;
  while (there && !cancelled()) {
    std::deque<v1::Event> batch;
    uint64_t dropped = 0;
    {
      std::unique_lock lock(state->mu);
      if (state->events.empty()) state->changed.wait_for(lock, kPollInterval);
      batch.swap(state->events);
      std::swap(dropped, state->dropped);
    }
    for (const v1::Event& event : batch) there = there && emit(event);
    if (dropped > 0 && there) {
      v1::Event event;
      SetTimestamp(Now(), event.mutable_time());
      event.set_kind(v1::EVENT_KIND_DROPPED);
      event.set_dropped(dropped);
      there = emit(event);
    }
  }
  (void)!OnReactor([&] {
    registry_->RemoveObserver(observer);
    watchers_.erase(observer);
    return OkStatus();
  }).ok();
  return CancelledError("the caller is gone");
}

Status WorkerControl::GetConfig(const v1::GetConfigRequest&, v1::GetConfigResponse* response) {
  return OnReactor([&] {
    for (const ConfigEntry& entry : start_.config.entries) {
      v1::ConfigEntry* out = response->add_entries();
      out->set_key(entry.key);
      out->set_value(entry.value);
      out->set_origin(entry.origin);
      out->set_env(entry.env);
      out->set_help(entry.help);
      out->set_reloadable(entry.reloadable);
    }
    return OkStatus();
  });
}

Status WorkerControl::GetStatus(const v1::GetStatusRequest&, v1::GetStatusResponse* response) {
  RETURN_IF_ERROR(OnReactor([&] {
    const DaemonConfig& config = registry_->config();
    response->set_version(TRIMS_VERSION_STRING);
    response->set_keeper_pid(static_cast<int32_t>(start_.keeper_pid));
    response->set_worker_pid(::getpid());
    response->mutable_started_at()->set_seconds(start_.started_at_unix);
    response->mutable_worker_started_at()->set_seconds(worker_started_at_);
    response->set_worker_restarts(start_.worker_number - 1);
    response->set_uid(::geteuid());
    response->set_runtime_dir(config.runtime_dir);
    response->set_state_dir(config.state_dir);
    response->set_base_dir(config.base_dir);
    response->set_lease_socket(config.runtime_dir + "/lease.sock");
    response->set_control_socket(config.runtime_dir + "/control.sock");
    std::set<Digest> models;
    std::map<store::TierIndex, uint32_t> replicas;
    for (const store::ReplicaView& view : registry_->store().Replicas()) {
      models.insert(view.replica.model);
      ++replicas[view.replica.tier];
    }
    store::TierIndex index = 0;
    for (const store::TierView& tier : registry_->store().Tiers()) {
      v1::TierView* out = response->add_tiers();
      out->set_name(tier.name);
      out->set_budget_bytes(tier.budget_bytes);
      out->set_used_bytes(tier.used_bytes);
      out->set_leased_bytes(tier.leased_bytes);
      out->set_pinned_bytes(tier.pinned_bytes);
      out->set_evictable_bytes(tier.evictable_bytes);
      out->set_evictions(tier.evictions);
      out->set_client_pinned_bytes(tier.revoked_bytes);
      out->set_health(registry_->tier(index).health().message());
      out->set_replicas(replicas[index++]);
    }
    response->set_sessions(static_cast<uint32_t>(leases_->sessions()));
    response->set_leases(static_cast<uint32_t>(registry_->store().Leases().size()));
    response->set_models(static_cast<uint32_t>(models.size()));
    response->set_loads_running(static_cast<uint32_t>(registry_->loads_running()));
    response->set_opens(registry_->counters().opens);
    response->set_opens_hit(registry_->counters().opens_hit);
    response->set_opens_failed(registry_->counters().opens_failed);
    response->set_eviction_policy(std::string(store::PolicyName(config.eviction_policy)));
    response->mutable_rho()->set_read_bytes_per_second(registry_->rho().read_bytes_per_second);
    SetDuration(registry_->rho().export_cost, response->mutable_rho()->mutable_export_cost());
    SetDuration(registry_->rho().open_cost, response->mutable_rho()->mutable_open_cost());
    response->set_verifications(registry_->counters().verifications);
    response->set_quarantines(registry_->counters().quarantines);
    return OkStatus();
  }));
  if (const Devices* const devices = registry_->devices()) {
    // On this thread: a driver that hangs must not take the reactor with it.
    FillDevices(*devices, response);
  } else {
    response->set_gpu("none");
  }
  return OkStatus();
}

}  // namespace trims

#include "daemon/control_views.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <tuple>
#include <utility>

#include "base/dtype.h"

namespace trims {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
// Of those who hold a replica that is not evicted, so many are named.
constexpr size_t kHoldersNamed = 4;

// As Registry::NameOf.
std::string NameIn(const Snapshot& snapshot, const Digest& digest) {
  const Snapshot::Model* const model = snapshot.Find(digest);
  return model != nullptr && !model->name.empty() ? model->name : "@" + digest.ToString();
}

void FillTensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                uint64_t bytes, v1::TensorView* out) {
  out->set_name(name);
  out->set_dtype(std::string(DTypeName(dtype)));
  for (const int64_t dim : shape) out->add_shape(dim);
  out->set_size_bytes(bytes);
}

}  // namespace

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

void SetTimestamp(const Moment& now, Time when, google::protobuf::Timestamp* out) {
  const int64_t ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(now.wall.time_since_epoch()).count() +
      (when - now.steady).count();
  // Rounded down, so that nanos count forward also before 1970.
  int64_t seconds = ns / kSecondNs;
  if (ns % kSecondNs < 0) --seconds;
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(ns - seconds * kSecondNs));
}

void SetDuration(Duration duration, google::protobuf::Duration* out) {
  out->set_seconds(duration.count() / kSecondNs);
  out->set_nanos(static_cast<int32_t>(duration.count() % kSecondNs));
}

void FillReplica(const Moment& now, const std::vector<std::string>& tier_names,
                 const store::ReplicaSummary& replica, v1::ReplicaView* out) {
  out->set_tier(tier_names[replica.replica.tier]);
  out->set_state(ToProto(replica.state));
  out->set_granularity(ToProto(replica.replica.granularity));
  out->set_generation(replica.generation);
  out->set_bytes(replica.bytes);
  out->set_unshared_bytes(replica.unshared_bytes);
  out->set_extent_count(replica.extent_count);
  out->set_leases(replica.leases);
  out->set_pinned(replica.pinned);
  out->set_opens(replica.opens);
  out->set_peak_internal_bytes(replica.peak_internal_bytes);
  if (replica.state != store::ReplicaState::kLoading)
    SetTimestamp(now, replica.loaded_at, out->mutable_loaded_at());
  if (replica.opens > 0) SetTimestamp(now, replica.last_open, out->mutable_last_open_at());
  if (replica.expires_at) SetTimestamp(now, *replica.expires_at, out->mutable_until());
}

void FillModel(const Snapshot& snapshot, const CatalogueEntry* entry, const Digest* digest,
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
  if (const Snapshot::Model* const model = snapshot.Find(*digest)) {
    if (entry == nullptr) out->set_name(model->name);
    out->set_pinned(model->is_pinned);
    if (model->manifest != nullptr) {
      out->set_weight_bytes(model->manifest->weight_bytes);
      out->set_tensor_count(static_cast<uint32_t>(model->manifest->tensors.size()));
    }
  }
  for (const store::ReplicaSummary& replica : snapshot.ReplicasOf(*digest))
    FillReplica(snapshot.taken, snapshot.tier_names, replica, out->add_replicas());
}

void FillList(const Snapshot& snapshot, const std::vector<CatalogueEntry>& entries,
              bool resident_only, v1::ListResponse* out) {
  std::vector<v1::ModelView> models;
  std::set<Digest> listed;
  for (const CatalogueEntry& entry : entries) {
    const Digest* const digest = snapshot.DigestOf(entry.name);
    if (digest != nullptr) listed.insert(*digest);
    if (resident_only && (digest == nullptr || snapshot.ReplicasOf(*digest).empty())) continue;
    FillModel(snapshot, &entry, digest, &models.emplace_back());
  }
  for (const store::ReplicaSummary& replica : snapshot.replicas) {
    const Digest& digest = replica.replica.model;
    if (!listed.insert(digest).second) continue;
    FillModel(snapshot, nullptr, &digest, &models.emplace_back());
  }
  std::sort(models.begin(), models.end(), [](const v1::ModelView& a, const v1::ModelView& b) {
    return std::tie(a.name(), a.digest()) < std::tie(b.name(), b.digest());
  });
  for (v1::ModelView& model : models) *out->add_models() = std::move(model);
}

void FillHeaders(const ModelHeaders& headers, v1::ModelView* out) {
  out->set_weight_bytes(headers.weight_bytes);
  out->set_tensor_count(static_cast<uint32_t>(headers.tensors.size()));
}

void FillContents(const ModelHeaders& headers, bool with_tensors, v1::InfoResponse* out) {
  for (const auto& [key, value] : headers.metadata) (*out->mutable_metadata())[key] = value;
  if (!with_tensors) return;
  for (const auto& [name, tensor] : headers.tensors)
    FillTensor(name, tensor.dtype, tensor.shape, tensor.size_bytes, out->add_tensors());
}

void FillContents(const ModelManifest& manifest, bool with_tensors, v1::InfoResponse* out) {
  for (const auto& [key, value] : manifest.metadata) (*out->mutable_metadata())[key] = value;
  if (!with_tensors) return;
  for (const ManifestTensor& tensor : manifest.tensors) {
    v1::TensorView* const view = out->add_tensors();
    FillTensor(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes, view);
    view->set_digest(tensor.content.ToString());
  }
}

void FillLeases(const Snapshot& snapshot, const Commands& commands,
                const std::optional<Digest>& model, std::optional<store::TierIndex> tier,
                google::protobuf::RepeatedPtrField<v1::LeaseView>* out) {
  for (const store::LeaseView& lease : snapshot.leases) {
    if (model && lease.replica.model != *model) continue;
    if (tier && lease.replica.tier != *tier) continue;
    v1::LeaseView& view = *out->Add();
    view.set_lease_id(lease.lease);
    view.set_session_id(lease.session);
    view.set_uid(lease.uid);
    if (const auto it = snapshot.sessions.find(lease.session); it != snapshot.sessions.end()) {
      view.set_gid(it->second.gid);
      view.set_pid(it->second.pid);
      if (const auto command = commands.find(it->second.pid); command != commands.end())
        view.set_command(command->second);
    }
    view.set_model(NameIn(snapshot, lease.replica.model));
    view.set_digest(lease.replica.model.ToString());
    view.set_tier(snapshot.tier_names[lease.replica.tier]);
    view.set_granularity(ToProto(lease.replica.granularity));
    view.set_generation(lease.generation);
    for (const store::ReplicaSummary& replica : snapshot.ReplicasOf(lease.replica.model)) {
      if (replica.generation == lease.generation) view.set_bytes(replica.bytes);
    }
    SetTimestamp(snapshot.taken, lease.since, view.mutable_since());
  }
}

void FillEvent(const Moment& now, const std::vector<std::string>& tier_names,
               const Happening& happening, v1::Event* out) {
  SetTimestamp(now, happening.at, out->mutable_time());
  out->set_kind(happening.kind);
  out->set_model(happening.model);
  if (happening.digest) out->set_digest(happening.digest->ToString());
  if (happening.replica) {
    out->set_tier(tier_names[happening.replica->tier]);
    out->set_granularity(ToProto(happening.replica->granularity));
  }
  out->set_bytes(happening.bytes);
  out->set_detail(happening.detail);
  out->set_dropped(happening.dropped);
}

void FillStatus(const Snapshot& snapshot, v1::GetStatusResponse* out) {
  std::set<Digest> models;
  std::vector<uint32_t> replicas(snapshot.tiers.size());
  for (const store::ReplicaSummary& replica : snapshot.replicas) {
    models.insert(replica.replica.model);
    ++replicas.at(replica.replica.tier);
  }
  for (size_t i = 0; i < snapshot.tiers.size(); ++i) {
    const store::TierView& tier = snapshot.tiers[i].view;
    v1::TierView* const view = out->add_tiers();
    view->set_name(tier.name);
    view->set_budget_bytes(tier.budget_bytes);
    view->set_used_bytes(tier.used_bytes);
    view->set_leased_bytes(tier.leased_bytes);
    view->set_pinned_bytes(tier.pinned_bytes);
    view->set_evictable_bytes(tier.evictable_bytes);
    view->set_evictions(tier.evictions);
    view->set_client_pinned_bytes(tier.revoked_bytes);
    view->set_health(snapshot.tiers[i].health.message());
    view->set_replicas(replicas[i]);
  }
  out->set_sessions(static_cast<uint32_t>(snapshot.session_count));
  out->set_leases(static_cast<uint32_t>(snapshot.lease_count));
  out->set_models(static_cast<uint32_t>(models.size()));
  out->set_loads_running(static_cast<uint32_t>(snapshot.loads_running));
  out->set_opens(snapshot.counters.opens);
  out->set_opens_hit(snapshot.counters.opens_hit);
  out->set_opens_failed(snapshot.counters.opens_failed);
  out->set_verifications(snapshot.counters.verifications);
  out->set_quarantines(snapshot.counters.quarantines);
  out->mutable_rho()->set_read_bytes_per_second(snapshot.rho.read_bytes_per_second);
  SetDuration(snapshot.rho.export_cost, out->mutable_rho()->mutable_export_cost());
  SetDuration(snapshot.rho.open_cost, out->mutable_rho()->mutable_open_cost());
}

void FillDevices(const std::vector<DeviceFacts>& devices, const std::string& why_none,
                 v1::GetStatusResponse* out) {
  std::map<std::string, int> served;  // By name.
  for (const DeviceFacts& facts : devices) {
    v1::DeviceView* const view = out->add_devices();
    view->set_ordinal(static_cast<uint32_t>(facts.ordinal));
    view->set_uuid(facts.uuid);
    view->set_name(facts.name);
    view->set_pci_bus_id(facts.pci_bus_id);
    view->set_tier(facts.tier);
    view->set_state(facts.state.ok() ? "ready" : facts.state.message());
    view->set_ready(facts.state.ok());
    view->set_supports_vmm(facts.supports_vmm);
    view->set_supports_posix_fd(facts.supports_posix_fd);
    view->set_total_bytes(facts.total_bytes);
    view->set_free_bytes(facts.free_bytes);
    view->set_pinned_pool_bytes(facts.pinned_pool_bytes);
    view->set_pinned_pool_bytes_max(facts.pinned_pool_bytes_max);
    for (const LinkFacts& link : facts.links) {
      v1::LinkView* const each = view->add_links();
      each->set_from(link.from);
      each->set_bytes_per_second(link.bytes_per_second);
      each->set_direct(link.direct);
    }
    if (facts.state.ok()) ++served[facts.name];
  }
  std::string text;
  for (const auto& [name, count] : served)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " x " + name;
  out->set_gpu(!text.empty() ? text : why_none.empty() ? "none" : "none: " + why_none);
}

void FillConfig(const std::vector<ConfigEntry>& entries, v1::GetConfigResponse* out) {
  for (const ConfigEntry& entry : entries) {
    v1::ConfigEntry* const view = out->add_entries();
    view->set_key(entry.key);
    view->set_value(entry.value);
    view->set_origin(entry.origin);
    view->set_env(entry.env);
    view->set_help(entry.help);
    view->set_reloadable(entry.reloadable);
  }
}

std::string DescribeKept(const store::EvictResult::Kept& kept,
                         const std::vector<std::string>& tier_names,
                         const std::map<store::SessionId, int32_t>& pids) {
  std::string text = kept.name + " in tier " + tier_names[kept.replica.tier] + ": " + kept.reason;
  if (kept.holders.empty()) return text;
  const size_t named = std::min(kept.holders.size(), kHoldersNamed);
  for (size_t i = 0; i < named; ++i) {
    const auto pid = pids.find(kept.holders[i].session);
    text += i == 0 ? " (held by " : ", ";
    text += "pid " + std::to_string(pid == pids.end() ? 0 : pid->second) + " uid " +
            std::to_string(kept.holders[i].uid);
  }
  if (kept.leases > named) text += ", and " + std::to_string(kept.leases - named) + " more leases";
  return text + ")";
}

}  // namespace trims

// A ControlBackend over a small table in memory: what the control server and the
// command line program are tested with. It keeps the rules of control.proto, which
// control_conformance.h checks, moves no bytes, and tells watchers only what a test
// publishes. Thread-safe.
#pragma once

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "daemon/control_backend.h"
#include "daemon/control_requests.h"
#include "format/model_name.h"
#include "trims/v1/control.pb.h"

namespace trims {

class FakeControlBackend final : public ControlBackend {
 public:
  struct FakeModel {
    v1::ModelView view;
    std::vector<v1::TensorView> tensors;
    std::map<std::string, std::string> metadata;
    bool corrupt = false;  // What Verify finds.
  };

  // Not resident, two tensors. `fill` is the hexadecimal digit of its digest.
  void AddModel(const std::string& name, char fill, uint64_t bytes) {
    const MutexLock lock(mu_);
    FakeModel& model = models_[name];
    model.view.set_name(name);
    model.view.set_digest("sha256:" + std::string(64, fill));
    model.view.set_origin(v1::MODEL_ORIGIN_ADDED);
    model.view.set_source("/models/" + name);
    model.view.set_weight_bytes(bytes);
    model.view.set_tensor_count(2);
    model.metadata["format"] = "pt";
    for (const char* tensor_name : {"fc.bias", "fc.weight"}) {
      v1::TensorView& tensor = model.tensors.emplace_back();
      tensor.set_name(tensor_name);
      tensor.set_dtype("F32");
      tensor.add_shape(static_cast<int64_t>(bytes / 8));
      tensor.set_size_bytes(bytes / 2);
      tensor.set_digest("sha256:" + std::string(64, '7'));
    }
  }
  void MakeResident(const std::string& name, const std::string& tier = "host") {
    const MutexLock lock(mu_);
    MakeResidentLocked(models_.at(name), tier);
  }
  void AddLease(const std::string& name, uint64_t lease_id, uint32_t uid, int32_t pid,
                const std::string& command, const std::string& tier = "host") {
    const MutexLock lock(mu_);
    FakeModel& model = models_.at(name);
    v1::ReplicaView* replica = model.view.mutable_replicas(0);
    for (v1::ReplicaView& one : *model.view.mutable_replicas()) {
      if (one.tier() == tier) replica = &one;
    }
    replica->set_leases(replica->leases() + 1);
    v1::LeaseView& lease = leases_.emplace_back();
    lease.set_lease_id(lease_id);
    lease.set_session_id(lease_id + 100);
    lease.set_uid(uid);
    lease.set_gid(uid);
    lease.set_pid(pid);
    lease.set_command(command);
    lease.set_model(name);
    lease.set_digest(model.view.digest());
    lease.set_tier(replica->tier());
    lease.set_granularity(replica->granularity());
    lease.set_generation(replica->generation());
    lease.set_bytes(replica->bytes());
    *lease.mutable_since() = google::protobuf::util::TimeUtil::GetCurrentTime();
  }
  void Change(const std::string& name, const std::function<void(FakeModel&)>& change) {
    const MutexLock lock(mu_);
    change(models_.at(name));
  }
  // Changes what GetStatus says, from now on.
  void ChangeStatus(std::function<void(v1::GetStatusResponse*)> change) {
    const MutexLock lock(mu_);
    status_changes_.push_back(std::move(change));
  }
  void Publish(const v1::Event& event) {
    const MutexLock lock(mu_);
    events_.push_back(event);
    changed_.NotifyAll();
  }
  // Loads of models larger than this are RESOURCE_EXHAUSTED.
  void set_capacity_bytes(uint64_t bytes) { capacity_bytes_ = bytes; }
  // Loads go on without end until this is called or their caller goes.
  void HoldLoads(bool hold) { hold_loads_ = hold; }
  void set_unary_error(Status status) {
    const MutexLock lock(mu_);
    unary_error_ = std::move(status);
  }

  // Streams running now, and streams that saw their caller go.
  int running() const { return running_; }
  int abandoned() const { return abandoned_; }
  void WaitForAbandoned(int count) {
    const MutexLock lock(mu_);
    while (abandoned_ < count) changed_.Wait(mu_);
  }
  void WaitForRunning(int count) {
    const MutexLock lock(mu_);
    while (running_ != count) changed_.Wait(mu_);
  }
  std::vector<v1::LoadRequest> load_requests() {
    const MutexLock lock(mu_);
    return load_requests_;
  }

  // --- ControlBackend ---

  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) override {
    const MutexLock lock(mu_);
    RETURN_IF_ERROR(unary_error_);
    ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
    *response->mutable_model() = model->view;
    for (const auto& [key, value] : model->metadata) (*response->mutable_metadata())[key] = value;
    if (request.include_tensors()) {
      for (const v1::TensorView& tensor : model->tensors) *response->add_tensors() = tensor;
    }
    for (const v1::LeaseView& lease : leases_) {
      if (lease.digest() == model->view.digest()) *response->add_leases() = lease;
    }
    return OkStatus();
  }

  Status List(const v1::ListRequest& request, v1::ListResponse* response) override {
    const MutexLock lock(mu_);
    RETURN_IF_ERROR(unary_error_);
    for (const auto& [name, model] : models_) {
      if (request.resident_only() && model.view.replicas().empty()) continue;
      *response->add_models() = model.view;
    }
    return OkStatus();
  }

  Status Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
              const Cancelled& cancelled) override {
    const Running running(this);
    uint64_t bytes = 0;
    bool resident = false;
    const std::string tier = request.tier().empty() ? "host" : request.tier();
    {
      const MutexLock lock(mu_);
      load_requests_.push_back(request);
      RETURN_IF_ERROR(GranularityOf(request).status());
      RETURN_IF_ERROR(KeepAliveOf(request).status());
      ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
      RETURN_IF_ERROR(CheckTierLocked(tier));
      bytes = model->view.weight_bytes();
      for (const v1::ReplicaView& replica : model->view.replicas()) {
        resident =
            resident || (replica.tier() == tier && replica.state() == v1::REPLICA_STATE_READY);
      }
    }
    if (bytes > capacity_bytes_) {
      return ResourceExhaustedError("no room in " + tier + ": need " + std::to_string(bytes) +
                                    " bytes, budget " + std::to_string(capacity_bytes_));
    }
    const auto step = [&](v1::LoadPhase phase, uint64_t done) {
      v1::LoadProgress progress;
      progress.set_phase(phase);
      progress.set_done_bytes(done);
      progress.set_total_bytes(bytes);
      progress.set_bytes_per_second(phase == v1::LOAD_PHASE_LOADING ? 1e9 : 0);
      return emit(progress);
    };
    if (!resident) {
      bool heard = step(v1::LOAD_PHASE_QUEUED, 0) && step(v1::LOAD_PHASE_RESOLVING, 0) &&
                   step(v1::LOAD_PHASE_LOADING, 0) && step(v1::LOAD_PHASE_LOADING, bytes / 2);
      while (heard && hold_loads_) {
        heard = !cancelled();
        std::this_thread::yield();
      }
      heard = heard && step(v1::LOAD_PHASE_LOADING, bytes) && step(v1::LOAD_PHASE_VERIFYING, bytes);
      if (!heard) return Abandon();
    }
    v1::LoadProgress ready;
    ready.set_phase(v1::LOAD_PHASE_READY);
    ready.set_done_bytes(bytes);
    ready.set_total_bytes(bytes);
    ready.set_already_resident(resident);
    {
      const MutexLock lock(mu_);
      ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
      if (!resident) MakeResidentLocked(*model, tier);
      *ready.mutable_model() = model->view;
    }
    emit(ready);
    return OkStatus();
  }

  Status Pin(const v1::PinRequest& request, v1::PinResponse* response, const Cancelled&) override {
    const MutexLock lock(mu_);
    ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
    RETURN_IF_ERROR(CheckTierLocked(request.tier()));
    SetPinLocked(*model, request.tier().empty() ? "host" : request.tier(), true);
    *response->mutable_model() = model->view;
    return OkStatus();
  }
  Status Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response,
               const Cancelled&) override {
    const MutexLock lock(mu_);
    ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
    RETURN_IF_ERROR(CheckTierLocked(request.tier()));
    SetPinLocked(*model, request.tier(), false);
    *response->mutable_model() = model->view;
    return OkStatus();
  }

  Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) override {
    const MutexLock lock(mu_);
    ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.model()));
    return EvictLocked(*model, request.tier(), request.force(), response->mutable_replicas());
  }

  Status Add(const v1::AddRequest& request, v1::AddResponse* response) override {
    RETURN_IF_ERROR(CheckModelPath(request.path()));
    RETURN_IF_ERROR(CheckName(request.name()));
    bool taken = false;
    {
      const MutexLock lock(mu_);
      taken = models_.contains(request.name());
    }
    if (taken && !request.replace()) {
      return AlreadyExistsError("the name " + request.name() + " is taken");
    }
    {
      const MutexLock lock(mu_);
      models_.erase(request.name());  // What was resident under the name is not its any more.
    }
    AddModel(request.name(), 'd', 4096);
    const MutexLock lock(mu_);
    FakeModel& model = models_.at(request.name());
    model.view.set_source(request.path());
    model.view.clear_digest();
    *response->mutable_model() = model.view;
    response->set_replaced(taken);
    return OkStatus();
  }

  Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) override {
    const MutexLock lock(mu_);
    if (request.name().starts_with("@")) return InvalidArgumentError("rm takes a name");
    ASSIGN_OR_RETURN(FakeModel * model, FindLocked(request.name()));
    *response->mutable_model() = model->view;
    if (!model->view.replicas().empty()) {
      RETURN_IF_ERROR(EvictLocked(*model, "", request.force(), response->mutable_replicas()));
    }
    models_.erase(request.name());
    return OkStatus();
  }

  Status Verify(const v1::VerifyRequest& request, const Emit<v1::VerifyProgress>& emit,
                const Cancelled&) override {
    const Running running(this);
    std::vector<v1::VerifyProgress> messages;
    {
      const MutexLock lock(mu_);
      const FakeModel* only = nullptr;
      if (!request.model().empty()) {
        ASSIGN_OR_RETURN(only, FindLocked(request.model()));
      }
      RETURN_IF_ERROR(CheckTierLocked(request.tier()));
      uint64_t total = 0;
      for (auto& [name, model] : models_) {
        for (v1::ReplicaView& replica : *model.view.mutable_replicas()) {
          if (only != nullptr && only != &model) continue;
          if (!request.tier().empty() && request.tier() != replica.tier()) continue;
          if (replica.state() != v1::REPLICA_STATE_READY) continue;
          v1::VerifyProgress& half = messages.emplace_back();
          half.set_done_bytes(total + replica.bytes() / 2);
          total += replica.bytes();
          if (model.corrupt) replica.set_state(v1::REPLICA_STATE_QUARANTINED);
          v1::VerifyProgress& done = messages.emplace_back();
          done.set_done_bytes(total);
          v1::VerifyVerdict* verdict = done.mutable_verdict();
          verdict->set_model(name);
          verdict->set_digest(model.view.digest());
          *verdict->mutable_replica() = replica;
          verdict->set_intact(!model.corrupt);
          if (model.corrupt) verdict->set_detail("tensor fc.weight, chunk 0: checksum differs");
          verdict->mutable_took()->set_nanos(250'000'000);
        }
      }
      if (only != nullptr && messages.empty())
        return NotFoundError(request.model() + " is not resident");
      for (v1::VerifyProgress& message : messages) message.set_total_bytes(total);
    }
    for (const v1::VerifyProgress& message : messages) {
      if (!emit(message)) return Abandon();
    }
    return OkStatus();
  }

  Status ListLeases(const v1::ListLeasesRequest& request,
                    v1::ListLeasesResponse* response) override {
    const MutexLock lock(mu_);
    RETURN_IF_ERROR(unary_error_);
    const FakeModel* only = nullptr;
    if (!request.model().empty()) {
      ASSIGN_OR_RETURN(only, FindLocked(request.model()));
    }
    RETURN_IF_ERROR(CheckTierLocked(request.tier()));
    for (const v1::LeaseView& lease : leases_) {
      if (only != nullptr && only->view.digest() != lease.digest()) continue;
      if (!request.tier().empty() && request.tier() != lease.tier()) continue;
      *response->add_leases() = lease;
    }
    return OkStatus();
  }

  Status Watch(const v1::WatchRequest& request, const std::function<void()>& watching,
               const Emit<v1::Event>& emit, const Cancelled& cancelled) override {
    ASSIGN_OR_RETURN(const std::set<int> kinds, EventKindsOf(request));
    const auto is_asked_for = [&](const v1::Event& event) {
      return (kinds.empty() || kinds.contains(event.kind())) &&
             (request.model().empty() || request.model() == event.model() ||
              request.model() == "@" + event.digest());
    };
    size_t next = 0;
    {
      const MutexLock lock(mu_);
      next = events_.size();
    }
    const Running running(this);
    watching();
    while (!cancelled()) {
      std::vector<v1::Event> news;
      {
        const MutexLock lock(mu_);
        changed_.WaitUntil(mu_, Now() + std::chrono::milliseconds(20));
        for (; next < events_.size(); ++next) {
          if (is_asked_for(events_[next])) news.push_back(events_[next]);
        }
      }
      for (const v1::Event& event : news) {
        if (!emit(event)) return Abandon();
      }
    }
    return Abandon();
  }

  Status GetConfig(const v1::GetConfigRequest&, v1::GetConfigResponse* response) override {
    v1::ConfigEntry* entry = response->add_entries();
    entry->set_key("eviction_policy");
    entry->set_value("lru");
    entry->set_origin("environment UPRD_EVICTION_POLICY");
    entry->set_env("UPRD_EVICTION_POLICY");
    entry->set_help("Which replica makes room.");
    entry->set_reloadable(true);
    return OkStatus();
  }

  Status GetStatus(const v1::GetStatusRequest&, v1::GetStatusResponse* response) override {
    const MutexLock lock(mu_);
    RETURN_IF_ERROR(unary_error_);
    response->set_version(version_);
    response->set_keeper_pid(4000);
    response->set_worker_pid(4001);
    *response->mutable_started_at() = google::protobuf::util::TimeUtil::GetCurrentTime();
    response->set_worker_restarts(2);
    response->set_runtime_dir("/run/trims");
    response->set_eviction_policy("lru");
    response->set_gpu("none: libcuda.so.1 was not found");
    response->set_opens(10);
    response->set_opens_hit(9);
    response->set_sessions(3);
    response->set_leases(static_cast<uint32_t>(leases_.size()));
    v1::TierView* tier = response->add_tiers();
    tier->set_name("host");
    tier->set_budget_bytes(uint64_t{8} << 30);
    tier->set_used_bytes(uint64_t{1} << 30);
    tier->set_evictable_bytes(uint64_t{1} << 29);
    tier->set_evictions(5);
    response->mutable_rho()->set_read_bytes_per_second(2e9);
    response->mutable_rho()->mutable_export_cost()->set_nanos(3'000);
    response->mutable_rho()->mutable_open_cost()->set_nanos(12'000);
    for (const auto& change : status_changes_) change(response);
    return OkStatus();
  }
  void set_version(std::string version) { version_ = std::move(version); }

 private:
  struct Running {
    explicit Running(FakeControlBackend* owner) : backend(owner) { Add(1); }
    ~Running() { Add(-1); }
    void Add(int change) {
      const MutexLock lock(backend->mu_);
      backend->running_ += change;
      backend->changed_.NotifyAll();
    }
    FakeControlBackend* const backend;
  };

  Status Abandon() {
    const MutexLock lock(mu_);
    ++abandoned_;
    changed_.NotifyAll();
    return CancelledError("the caller is gone");
  }

  Status CheckTierLocked(const std::string& name) const TRIMS_REQUIRES(mu_) {
    v1::GetStatusResponse status;
    for (const auto& change : status_changes_) change(&status);
    const auto& tiers = status.tiers();
    const bool has = name.empty() || name == "host" || name == "gpu:GPU-0" ||
                     std::any_of(tiers.begin(), tiers.end(),
                                 [&](const v1::TierView& tier) { return tier.name() == name; });
    return has ? OkStatus() : NotFoundError("no tier named " + name);
  }

  Result<FakeModel*> FindLocked(const std::string& name) TRIMS_REQUIRES(mu_) {
    RETURN_IF_ERROR(CheckName(name));
    for (auto& [key, model] : models_) {
      if (key == name || "@" + model.view.digest() == name) return &model;
    }
    return NotFoundError("no model named " + name);
  }

  static Status CheckName(const std::string& name) { return ParseModelReference(name).status(); }

  static void MakeResidentLocked(FakeModel& model, const std::string& tier) {
    v1::ReplicaView* replica = model.view.add_replicas();
    replica->set_tier(tier);
    replica->set_state(v1::REPLICA_STATE_READY);
    replica->set_granularity(v1::SHARING_GRANULARITY_MODEL);
    replica->set_generation(1);
    replica->set_bytes(model.view.weight_bytes());
    replica->set_unshared_bytes(model.view.weight_bytes());
    replica->set_extent_count(1);
    replica->set_pinned(model.view.pinned());
    *replica->mutable_loaded_at() = google::protobuf::util::TimeUtil::GetCurrentTime();
  }

  static void SetPinLocked(FakeModel& model, const std::string& tier, bool pinned) {
    model.view.set_pinned(pinned);
    for (v1::ReplicaView& replica : *model.view.mutable_replicas()) {
      if (tier.empty() || replica.tier() == tier) replica.set_pinned(pinned);
    }
  }

  Status EvictLocked(FakeModel& model, const std::string& tier, bool force,
                     google::protobuf::RepeatedPtrField<v1::EvictedReplica>* evicted)
      TRIMS_REQUIRES(mu_) {
    google::protobuf::RepeatedPtrField<v1::ReplicaView> kept;
    std::vector<v1::EvictedReplica> gone;
    RETURN_IF_ERROR(CheckTierLocked(tier));
    for (v1::ReplicaView& replica : *model.view.mutable_replicas()) {
      if (!tier.empty() && replica.tier() != tier) {
        *kept.Add() = replica;
        continue;
      }
      if (replica.leases() > 0 && !force) {
        return FailedPreconditionError(model.view.name() + " is leased in " + replica.tier());
      }
      if (replica.pinned() && !force) {
        return FailedPreconditionError(model.view.name() + " is pinned in " + replica.tier());
      }
      v1::EvictedReplica& one = gone.emplace_back();
      *one.mutable_replica() = replica;
      one.set_draining(replica.leases() > 0);
      one.set_freed_bytes(one.draining() ? 0 : replica.bytes());
      if (one.draining()) {
        *kept.Add() = replica;
        kept.rbegin()->set_state(v1::REPLICA_STATE_DRAINING);
      }
    }
    if (gone.empty()) return NotFoundError(model.view.name() + " is not resident");
    if (force) SetPinLocked(model, tier, false);
    for (const v1::EvictedReplica& one : gone) *evicted->Add() = one;
    *model.view.mutable_replicas() = kept;
    return OkStatus();
  }

  Mutex mu_;
  CondVar changed_;
  std::map<std::string, FakeModel> models_ TRIMS_GUARDED_BY(mu_);
  std::vector<v1::LeaseView> leases_ TRIMS_GUARDED_BY(mu_);
  std::deque<v1::Event> events_ TRIMS_GUARDED_BY(mu_);
  std::vector<v1::LoadRequest> load_requests_ TRIMS_GUARDED_BY(mu_);
  std::vector<std::function<void(v1::GetStatusResponse*)>> status_changes_ TRIMS_GUARDED_BY(mu_);
  Status unary_error_ TRIMS_GUARDED_BY(mu_);
  std::string version_ = "0.1.0";
  std::atomic<uint64_t> capacity_bytes_{uint64_t{8} << 30};
  std::atomic<bool> hold_loads_{false};
  std::atomic<int> running_{0};
  std::atomic<int> abandoned_{0};
};

}  // namespace trims

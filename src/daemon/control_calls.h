// The control plane's backend inside the worker: turns every call into work on the
// reactor's thread. What callers write is checked by control_requests.h, what they are
// shown is made by control_views.h; here is what is done between.
//
// In three sources: control_calls.cc changes things, control_reads.cc looks at them, and
// control_streams.cc has what goes on for a while.
//
// Thread rule: as ControlBackend; construction and destruction on the reactor's thread, or
// when it has ended. What a file system can hold up (the catalogue, weights files, /proc)
// is done on the caller's thread, never on the reactor's. Everything borrowed outlives it.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/control_backend.h"
#include "daemon/control_views.h"
#include "daemon/keeper.h"
#include "daemon/reactor.h"
#include "daemon/reactor_call.h"
#include "daemon/registry.h"
#include "daemon/snapshot.h"

namespace trims {

class ControlCalls final : public ControlBackend {
 public:
  ControlCalls(Reactor* reactor, Registry* registry, SessionTable sessions,
               const WorkerStart& start);

  // After a reload.
  void SetConfig(const LoadedConfig& config);  // On the reactor's thread.

  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) override;
  Status List(const v1::ListRequest& request, v1::ListResponse* response) override;
  Status Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
              const Cancelled& cancelled) override;
  Status Pin(const v1::PinRequest& request, v1::PinResponse* response,
             const Cancelled& cancelled) override;
  Status Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response,
               const Cancelled& cancelled) override;
  Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) override;
  Status Add(const v1::AddRequest& request, v1::AddResponse* response) override;
  Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) override;
  Status Verify(const v1::VerifyRequest& request, const Emit<v1::VerifyProgress>& emit,
                const Cancelled& cancelled) override;
  Status ListLeases(const v1::ListLeasesRequest& request,
                    v1::ListLeasesResponse* response) override;
  Status Watch(const v1::WatchRequest& request, const std::function<void()>& watching,
               const Emit<v1::Event>& emit, const Cancelled& cancelled) override;
  Status GetConfig(const v1::GetConfigRequest& request, v1::GetConfigResponse* response) override;
  Status GetStatus(const v1::GetStatusRequest& request, v1::GetStatusResponse* response) override;

 private:
  struct Watcher;

  // What a request calls a model: a name that the catalogue knows, or contents.
  struct Named {
    std::optional<CatalogueEntry> entry;
    std::optional<Digest> digest;
  };
  // What an eviction found, and what became of it.
  struct Eviction {
    std::vector<store::ReplicaSummary> gone;        // As they were.
    std::vector<store::EvictResult::Kept> kept;     // Without force: the reason why none went.
    std::map<store::SessionId, int32_t> pids = {};  // Of who holds what is kept.
  };

  // NOT_FOUND for a name that the catalogue does not know.
  Result<Named> NameOrDigest(const std::string& model) const;
  static SnapshotRequest RequestFor(const Named& named);
  // Which contents that is. NOT_FOUND for a digest that nobody has heard of; nullopt for a
  // name whose files nobody has looked at.
  static Result<std::optional<Digest>> ContentsOf(const Named& named, const Snapshot& snapshot);
  // For showing: of contents, what the catalogue knows under their name.
  void FillNamed(const Named& named, const Snapshot& snapshot, const std::optional<Digest>& digest,
                 v1::ModelView* out) const;
  // Looks at the model's files as they are now, and hashes them when nobody has yet.
  Result<Digest> LookedAtDigest(const std::string& model, const Cancelled& cancelled);
  // Waits for what a callback on the reactor's thread will give, and calls `tick` now and
  // then, until that fails. UNAVAILABLE when nothing will come because the reactor has ended.
  template <typename Value>
  Status Await(Later<Value>& later, const std::function<Status()>& tick) {
    Time checked = Now();
    while (!later.WaitFor(kPollInterval)) {
      RETURN_IF_ERROR(tick());
      if (Now() - checked < kProgressEvery) continue;
      checked = Now();
      RETURN_IF_ERROR(OnReactor("control call waits", [] { return OkStatus(); }));
    }
    return OkStatus();
  }
  Status OnReactor(const char* name, std::function<Status()> work) const {
    return CallOnReactor(reactor_, name, std::move(work));
  }
  Result<Snapshot> Look(const SnapshotRequest& request) const {
    return TakeSnapshot(reactor_, registry_, sessions_, request);
  }
  // nullopt for "".
  Result<std::optional<store::TierIndex>> FindTier(const std::string& name) const;
  void FillEvicted(const Eviction& eviction,
                   google::protobuf::RepeatedPtrField<v1::EvictedReplica>* out) const;
  std::string DescribeKept(const Eviction& eviction) const;

  // --- On the reactor's thread ---
  std::optional<store::TierIndex> TierOf(const std::string& name, Status* status) const;
  // The contents last looked at under the name; with `or_label`, also what is resident and
  // has no name, and was called so by the client that passed it.
  std::vector<Digest> DigestsUnder(const std::string& name, bool or_label) const;
  // What would have to stay without `force`, but for what is loading: changes nothing.
  Eviction Foresee(const std::vector<Digest>& models, std::optional<store::TierIndex> tier) const;
  // Without `force` nothing goes when any has to stay.
  Eviction EvictAll(const std::vector<Digest>& models, std::optional<store::TierIndex> tier,
                    bool force);
  void Note(Registry::EvictOutcome outcome, bool force, Eviction* eviction) const;
  void Tell(const Happening& happening);

  // A call that waits asks this often whether its caller is still there, and says so often
  // how far it is.
  static constexpr Duration kPollInterval = std::chrono::milliseconds(50);
  static constexpr Duration kProgressEvery = std::chrono::milliseconds(250);

  Reactor* const reactor_;
  Registry* const registry_;
  const SessionTable sessions_;
  const WorkerStart start_;  // But for its configuration, which is in config_.
  const int64_t worker_started_at_;
  const std::vector<std::string> tier_names_;
  // The reactor's thread only.
  std::shared_ptr<const LoadedConfig> config_;
  std::vector<std::shared_ptr<Watcher>> watchers_;
  uint64_t observer_ = 0;  // Of the registry's, while there are watchers.
};

}  // namespace trims

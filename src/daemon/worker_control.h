// The control plane's backend inside the worker: turns every call into work on
// the reactor and protocol buffers.
//
// Thread rule: as ControlBackend; construction and destruction on the reactor's
// thread. Everything borrowed outlives it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "daemon/control_backend.h"
#include "daemon/keeper.h"
#include "daemon/lease_server.h"
#include "daemon/reactor.h"
#include "daemon/registry.h"

namespace trims {

class WorkerControl final : public ControlBackend {
 public:
  WorkerControl(Reactor* reactor, Registry* registry, LeaseServer* leases,
                const WorkerStart& start);

  // After a reload.
  void SetConfig(const LoadedConfig& config);  // On the reactor's thread.

  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) override;
  Status List(const v1::ListRequest& request, v1::ListResponse* response) override;
  Status Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
              const Cancelled& cancelled) override;
  Status Pin(const v1::PinRequest& request, v1::PinResponse* response) override;
  Status Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response) override;
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
  // Runs `work` on the reactor's thread and waits for what it returns.
  // UNAVAILABLE when the reactor has ended.
  Status OnReactor(std::function<Status()> work);
  // The digest of a model that was seen; with `resolve`, of any the catalogue
  // knows (its files are hashed when they were never seen).
  Result<Digest> DigestOf(const std::string& model, bool resolve, const Cancelled* cancelled);
  Result<std::optional<store::TierIndex>> TierOf(const std::string& name) const;

  Reactor* const reactor_;
  Registry* const registry_;
  LeaseServer* const leases_;
  void TellWatchers(const v1::Event& event);  // On the reactor's thread.

  WorkerStart start_;  // The reactor's thread only.
  std::map<uint64_t, std::function<void(const v1::Event&)>>
      watchers_;  // The reactor's thread only.
  const int64_t worker_started_at_;
};

}  // namespace trims

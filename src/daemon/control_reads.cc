// Calls that look: everything is rendered from a snapshot, on the caller's thread.
#include <unistd.h>

#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/control_calls.h"
#include "daemon/control_headers.h"
#include "daemon/reactor_call.h"
#include "store/store.h"

namespace trims {
namespace {

// Of the processes at the other ends of these sessions. One that has ended has none.
Commands CommandsOf(const Snapshot& snapshot) {
  Commands commands;
  for (const auto& [id, session] : snapshot.sessions) {
    if (session.pid <= 0 || commands.contains(session.pid)) continue;
    std::ifstream comm("/proc/" + std::to_string(session.pid) + "/comm");
    std::string command;
    if (std::getline(comm, command)) commands.emplace(session.pid, std::move(command));
  }
  return commands;
}

}  // namespace

Status ControlCalls::Info(const v1::InfoRequest& request, v1::InfoResponse* response) {
  ASSIGN_OR_RETURN(const Named named, NameOrDigest(request.model()));
  SnapshotRequest look = RequestFor(named);
  look.with_leases = true;
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  ASSIGN_OR_RETURN(const std::optional<Digest> digest, ContentsOf(named, snapshot));
  FillNamed(named, snapshot, digest, response->mutable_model());
  if (digest) {
    FillContents(*snapshot.Find(*digest)->manifest, request.include_tensors(), response);
    FillLeases(snapshot, CommandsOf(snapshot), digest, std::nullopt, response->mutable_leases());
    return OkStatus();
  }
  // Nobody has looked at its files yet. Headers only: the identity is computed by the first load.
  ASSIGN_OR_RETURN(const ModelHeaders headers, ReadHeaders(named.entry->name, named.entry->path));
  FillHeaders(headers, response->mutable_model());
  FillContents(headers, request.include_tensors(), response);
  return OkStatus();
}

Status ControlCalls::List(const v1::ListRequest& request, v1::ListResponse* response) {
  std::vector<CatalogueEntry> entries = registry_->catalogue().List();
  SnapshotRequest look;
  std::set<std::string> names;
  for (const CatalogueEntry& entry : entries) {
    names.insert(entry.name);
    look.names.push_back(entry.name);
  }
  ASSIGN_OR_RETURN(Snapshot snapshot, Look(look));
  // Names that lead somewhere, though no list has them: those of the base directory's
  // folders within folders.
  for (const auto& [digest, model] : snapshot.models) {
    if (!model.is_public || !names.insert(model.name).second) continue;
    Result<CatalogueEntry> entry = registry_->catalogue().Find(model.name);
    if (!entry.ok()) continue;
    snapshot.names.emplace(model.name, digest);
    entries.push_back(*std::move(entry));
  }
  FillList(snapshot, entries, request.resident_only(), response);
  return OkStatus();
}

Status ControlCalls::ListLeases(const v1::ListLeasesRequest& request,
                                v1::ListLeasesResponse* response) {
  ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, FindTier(request.tier()));
  std::optional<Named> named;
  SnapshotRequest look;
  if (!request.model().empty()) {
    ASSIGN_OR_RETURN(named, NameOrDigest(request.model()));
    look = RequestFor(*named);
  }
  look.with_leases = true;
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  std::optional<Digest> digest;
  if (named) {
    ASSIGN_OR_RETURN(digest, ContentsOf(*named, snapshot));
    if (!digest) return OkStatus();  // Nobody has looked at it, so nobody leases it.
  }
  FillLeases(snapshot, CommandsOf(snapshot), digest, tier, response->mutable_leases());
  return OkStatus();
}

Status ControlCalls::GetConfig(const v1::GetConfigRequest&, v1::GetConfigResponse* response) {
  std::shared_ptr<const LoadedConfig> config;
  RETURN_IF_ERROR(OnReactor("get config", [&] {
    config = config_;
    return OkStatus();
  }));
  FillConfig(config->entries, response);
  return OkStatus();
}

Status ControlCalls::GetStatus(const v1::GetStatusRequest&, v1::GetStatusResponse* response) {
  std::string runtime_dir, state_dir, base_dir;
  store::PolicyKind policy{};
  RETURN_IF_ERROR(OnReactor("get status", [&] {
    const DaemonConfig& config = registry_->config();
    runtime_dir = config.runtime_dir;
    state_dir = config.state_dir;
    base_dir = config.base_dir;
    policy = config.eviction_policy;
    return OkStatus();
  }));
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look({.with_tiers = true}));
  FillStatus(snapshot, response);
  response->set_version(TRIMS_VERSION_STRING);
  response->set_keeper_pid(static_cast<int32_t>(start_.keeper_pid));
  response->set_worker_pid(::getpid());
  response->mutable_started_at()->set_seconds(start_.started_at_unix);
  response->mutable_worker_started_at()->set_seconds(worker_started_at_);
  response->set_worker_restarts(start_.worker_number - 1);
  response->set_uid(::geteuid());
  response->set_runtime_dir(runtime_dir);
  response->set_state_dir(state_dir);
  response->set_base_dir(base_dir);
  response->set_lease_socket(runtime_dir + "/lease.sock");
  response->set_control_socket(runtime_dir + "/control.sock");
  response->set_eviction_policy(std::string(store::PolicyName(policy)));
  response->set_reactor_slow_callbacks(reactor_->slow_callbacks());
  SetDuration(reactor_->longest_callback(), response->mutable_reactor_longest_callback());
  // A driver that hangs must not take the reactor with it.
  if (const Devices* const devices = registry_->devices()) {
    FillDevices(devices->Facts(), devices->WhyNotServed(""), response);
    response->set_cuda_driver(devices->driver_version());
    response->set_host_pinned_bytes(devices->host_pinned_bytes());
    response->set_host_pinning(devices->is_host_pinning());
  } else {
    FillDevices({}, "", response);
  }
  return OkStatus();
}

}  // namespace trims

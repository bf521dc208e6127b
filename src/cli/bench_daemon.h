// The daemon as `trims bench` sees it: an operator's connection for the rig, and its devices by
// the names that people type. One thread.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "base/status.h"
#include "bench/control.h"
#include "bench/observer.h"
#include "bench/rig.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"

namespace trims::cli {

class BenchDaemon final : public bench::Control {
 public:
  // Connects, and asks what it serves.
  static Result<std::unique_ptr<BenchDaemon>> Connect(const Context& context);

  // For what people type: "gpu:1". NOT_FOUND or UNAVAILABLE when the daemon does not serve it.
  Result<bench::Place> FindPlace(const std::string& tier) const;
  // A rig for that device, or for the host when it is "". The error says whether it is this
  // process or the daemon that can not use it. This object and `observer` outlive the rig.
  Result<std::unique_ptr<bench::Rig>> MakeRig(const std::string& device, bench::Observer& observer);

  // What the figures depend on.
  Json Machine() const;
  std::string MachineText(const bench::Rig& rig) const;

  Status GetStatus(const v1::GetStatusRequest& request, v1::GetStatusResponse* response) override {
    return connection_.GetStatus(request, response);
  }
  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) override {
    return connection_.Info(request, response);
  }
  Status Add(const v1::AddRequest& request, v1::AddResponse* response) override {
    return connection_.Add(request, response);
  }
  Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) override {
    return connection_.Remove(request, response);
  }
  Status Pin(const v1::PinRequest& request, v1::PinResponse* response) override {
    return connection_.Pin(request, response);
  }
  Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) override {
    return connection_.Evict(request, response);
  }

 private:
  BenchDaemon(std::string runtime_dir, Connection connection)
      : runtime_dir_(std::move(runtime_dir)), connection_(std::move(connection)) {}

  const std::string runtime_dir_;
  Connection connection_;
  v1::GetStatusResponse status_;
};

}  // namespace trims::cli

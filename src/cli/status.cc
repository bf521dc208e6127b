// trims status: the daemon itself.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <ratio>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

std::string Microseconds(const google::protobuf::Duration& duration) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f us",
                static_cast<double>(duration.seconds()) * 1e6 + duration.nanos() * 1e-3);
  return text;
}

// "from host 55.1 GB/s, from gpu:1 396.0 GB/s"
std::string LinksText(const v1::DeviceView& device, const TierNames& names) {
  std::string text;
  for (const v1::LinkView& link : device.links()) {
    if (!text.empty()) text += ", ";
    text += "from " + (link.from() == "host" ? link.from() : names.DeviceText(link.from()));
    text += link.bytes_per_second() > 0 ? " " + RateText(link.bytes_per_second()) : " not measured";
    if (link.from() != "host" && !link.direct()) text += " (through the host)";
  }
  return text;
}

std::string DeviceTable(const v1::GetStatusResponse& response, const TierNames& names) {
  Table table({"DEVICE", "NAME", "UUID", "STATE", ">FREE", ">TOTAL", "LOAD BUFFERS", "LINKS"});
  for (const v1::DeviceView& device : response.devices()) {
    table.AddRow(
        {names.DeviceText(device.uuid()), device.name(), device.uuid(), device.state(),
         device.ready() ? FormatSize(device.free_bytes()) : "", FormatSize(device.total_bytes()),
         device.pinned_pool_bytes_max() == 0 ? ""
                                             : FormatSize(device.pinned_pool_bytes()) + " of " +
                                                   FormatSize(device.pinned_pool_bytes_max()),
         LinksText(device, names)});
  }
  return table.Render();
}

ExitCode RunStatus(const Context& context, Connection& daemon) {
  v1::GetStatusResponse response;
  if (Status status = daemon.GetStatus(v1::GetStatusRequest(), &response); !status.ok()) {
    return Fail(status);
  }
  if (context.json) {
    PrintJson(ToJson(response));
    return ExitCode::kOk;
  }
  const auto line = [](const char* key, const std::string& value) {
    std::string text(key);
    text.resize(16, ' ');
    Print(text + Printable(value.empty() ? "-" : value) + "\n");
  };
  line("version", response.version());
  line("keeper", "pid " + std::to_string(response.keeper_pid()) + ", started " +
                     RelativeTime(response.has_started_at(), response.started_at()));
  line("worker", "pid " + std::to_string(response.worker_pid()) + ", started " +
                     RelativeTime(response.has_worker_started_at(), response.worker_started_at()) +
                     ", restarted " + std::to_string(response.worker_restarts()) + " times");
  line("lease socket", response.lease_socket());
  line("control socket", response.control_socket());
  line("state", response.state_dir());
  line("base", response.base_dir());
  line("policy", response.eviction_policy());
  line("gpu", response.gpu());
  if (!response.cuda_driver().empty()) line("cuda driver", response.cuda_driver());
  line("sessions", std::to_string(response.sessions()));
  line("leases", std::to_string(response.leases()));
  line("models", std::to_string(response.models()) + " resident, " +
                     std::to_string(response.loads_running()) + " loads running");
  line("opens", std::to_string(response.opens()) + ", of these " +
                    std::to_string(response.opens_hit()) + " without a load; " +
                    std::to_string(response.opens_failed()) + " failed");
  if (response.reactor_slow_callbacks() > 0) {
    const auto& longest = response.reactor_longest_callback();
    const double seconds = static_cast<double>(longest.seconds()) + longest.nanos() * 1e-9;
    line("held up", std::to_string(response.reactor_slow_callbacks()) +
                        " times for longer than 10 ms, for " + SecondsText(seconds) + " at most");
  }
  line("verified", std::to_string(response.verifications()) + " replicas, of these " +
                       std::to_string(response.quarantines()) + " had wrong bytes");
  if (!response.devices().empty()) {
    line("host pinned", FormatSize(response.host_pinned_bytes()) + ", for copies to devices");
  }
  if (response.has_rho()) {
    line("rho", "read " +
                    FormatSize(static_cast<uint64_t>(response.rho().read_bytes_per_second())) +
                    "/s, export " + Microseconds(response.rho().export_cost()) + ", open " +
                    Microseconds(response.rho().open_cost()));
  }
  const TierNames names(response);
  Table table({"TIER", ">BUDGET", ">USED", ">LEASED", ">PINNED", ">EVICTABLE", ">KEPT BY CLIENTS",
               ">REPLICAS", ">EVICTIONS", "HEALTH"});
  for (const v1::TierView& tier : response.tiers()) {
    table.AddRow({names.Text(tier.name()), FormatSize(tier.budget_bytes()),
                  FormatSize(tier.used_bytes()), FormatSize(tier.leased_bytes()),
                  FormatSize(tier.pinned_bytes()), FormatSize(tier.evictable_bytes()),
                  FormatSize(tier.client_pinned_bytes()), std::to_string(tier.replicas()),
                  std::to_string(tier.evictions()),
                  tier.health().empty() ? "good" : "NOT SERVING: " + tier.health()});
  }
  Print("\n" + table.Render());
  if (!response.devices().empty()) Print("\n" + DeviceTable(response, names));
  return ExitCode::kOk;
}

}  // namespace

void AddStatusCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("status", "Show the daemon: processes, tiers, counters");
  OnRunWithDaemon(command, context,
                  [&context](Connection& daemon) { return RunStatus(context, daemon); });
}

}  // namespace trims::cli

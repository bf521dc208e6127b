// trims status: the daemon itself.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

std::string Microseconds(const google::protobuf::Duration& duration) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f us",
                static_cast<double>(duration.seconds()) * 1e6 + duration.nanos() * 1e-3);
  return text;
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
  line("sessions", std::to_string(response.sessions()));
  line("leases", std::to_string(response.leases()));
  line("models", std::to_string(response.models()) + " resident, " +
                     std::to_string(response.loads_running()) + " loads running");
  line("opens", std::to_string(response.opens()) + ", of these " +
                    std::to_string(response.opens_hit()) + " without a load; " +
                    std::to_string(response.opens_failed()) + " failed");
  if (response.has_rho()) {
    line("rho", "read " +
                    FormatSize(static_cast<uint64_t>(response.rho().read_bytes_per_second())) +
                    "/s, export " + Microseconds(response.rho().export_cost()) + ", open " +
                    Microseconds(response.rho().open_cost()));
  }
  Table table(
      {"TIER", ">BUDGET", ">USED", ">LEASED", ">PINNED", ">EVICTABLE", ">REPLICAS", ">EVICTIONS"});
  for (const v1::TierView& tier : response.tiers()) {
    table.AddRow({tier.name(), FormatSize(tier.budget_bytes()), FormatSize(tier.used_bytes()),
                  FormatSize(tier.leased_bytes()), FormatSize(tier.pinned_bytes()),
                  FormatSize(tier.evictable_bytes()), std::to_string(tier.replicas()),
                  std::to_string(tier.evictions())});
  }
  Print("\n" + table.Render());
  return ExitCode::kOk;
}

}  // namespace

void AddStatusCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("status", "Show the daemon: processes, tiers, counters");
  OnRunWithDaemon(command, context,
                  [&context](Connection& daemon) { return RunStatus(context, daemon); });
}

}  // namespace trims::cli

// trims ps: what is resident, who uses it, and when it goes away; and how full the tiers are.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <vector>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

// The leases that one process has of one replica.
struct Holder {
  v1::LeaseView first;
  uint32_t leases = 0;
};

// In the order of the first lease of each.
std::vector<Holder> HoldersOf(const v1::ModelView& model, const v1::ReplicaView& replica,
                              const v1::ListLeasesResponse& leases) {
  std::vector<Holder> holders;
  for (const v1::LeaseView& lease : leases.leases()) {
    if (lease.digest() != model.digest() || lease.tier() != replica.tier() ||
        lease.granularity() != replica.granularity() ||
        lease.generation() != replica.generation()) {
      continue;
    }
    const auto same = std::find_if(holders.begin(), holders.end(), [&lease](const Holder& holder) {
      return lease.pid() != 0 ? holder.first.pid() == lease.pid()
                              : holder.first.session_id() == lease.session_id();
    });
    if (same != holders.end()) {
      ++same->leases;
    } else {
      holders.push_back({.first = lease, .leases = 1});
    }
  }
  return holders;
}

// "pinned, python(4711), trims(12) and 3 more"
std::string HeldBy(const v1::ReplicaView& replica, const std::vector<Holder>& holders, bool all) {
  constexpr size_t kNamed = 2;
  std::string text = replica.pinned() ? "pinned" : "";
  const size_t named = all ? holders.size() : std::min(holders.size(), kNamed);
  for (size_t i = 0; i < named; ++i) {
    const v1::LeaseView& lease = holders[i].first;
    if (!text.empty()) text += ", ";
    // The pid is missing when the process is in a namespace that the daemon can not see into.
    text += lease.command().empty() ? UserText(lease.uid()) : lease.command();
    if (lease.pid() != 0) text += "(" + std::to_string(lease.pid()) + ")";
  }
  if (named < holders.size()) text += " and " + std::to_string(holders.size() - named) + " more";
  return text;
}

Json HeldByJson(const std::vector<Holder>& holders) {
  Json array = Json::array();
  for (const Holder& holder : holders) {
    array.push_back({{"pid", holder.first.pid()},
                     {"command", holder.first.command()},
                     {"uid", holder.first.uid()},
                     {"leases", holder.leases}});
  }
  return array;
}

// One line per tier, and per device that should serve and does not.
std::string TierLines(const v1::GetStatusResponse& status, const TierNames& names, bool whole) {
  std::string text;
  for (const v1::TierView& tier : status.tiers()) {
    text += names.Text(tier.name(), whole);
    for (const v1::DeviceView& device : status.devices()) {
      if (device.tier() == tier.name()) text += " " + Printable(device.name());
    }
    text += ": " + FormatSize(tier.used_bytes()) + " of " + FormatSize(tier.budget_bytes());
    if (tier.client_pinned_bytes() > 0) {
      text += ", " + FormatSize(tier.client_pinned_bytes()) + " pinned by clients";
    }
    if (!tier.health().empty()) text += ": NOT SERVING: " + Printable(tier.health());
    text += "\n";
  }
  for (const v1::DeviceView& device : status.devices()) {
    if (!device.tier().empty() || device.ready()) continue;
    text += names.DeviceText(device.uuid(), whole) + " " + Printable(device.name()) +
            ": not served: " + Printable(device.state()) + "\n";
  }
  return text;
}

ExitCode RunPs(const Context& context, Connection& daemon, const ListOptions& options) {
  v1::ListRequest request;
  request.set_resident_only(true);
  v1::ListResponse response;
  if (Status status = daemon.List(request, &response); !status.ok()) return Fail(status);
  if (options.quiet && !context.json) {
    for (const v1::ModelView& model : response.models()) Print(Printable(ModelText(model)) + "\n");
    return ExitCode::kOk;
  }
  v1::ListLeasesResponse leases;
  if (Status status = daemon.ListLeases(v1::ListLeasesRequest(), &leases); !status.ok()) {
    return Fail(status);
  }
  if (context.json) {
    // One object per replica, as one row per replica below.
    Json array = Json::array();
    for (const v1::ModelView& model : response.models()) {
      for (const v1::ReplicaView& replica : model.replicas()) {
        Json row = {{"name", model.name()}, {"digest", model.digest()}};
        row.update(ToJson(replica));
        row["held_by"] = HeldByJson(HoldersOf(model, replica, leases));
        array.push_back(std::move(row));
      }
    }
    PrintJson(array);
    return ExitCode::kOk;
  }
  v1::GetStatusResponse status;
  if (Status asked = daemon.GetStatus(v1::GetStatusRequest(), &status); !asked.ok()) {
    return Fail(asked);
  }
  const TierNames names(status);
  Table table({"NAME", "DIGEST", ">SIZE", "TIER", ">LEASES", "STATE", "UNTIL", "HELD BY"});
  for (const v1::ModelView& model : response.models()) {
    for (const v1::ReplicaView& replica : model.replicas()) {
      table.AddRow({model.name(), DigestText(model.digest(), options.no_truncate),
                    FormatSize(replica.bytes()), names.Text(replica.tier(), options.no_truncate),
                    std::to_string(replica.leases()), StateText(replica), UntilText(replica),
                    HeldBy(replica, HoldersOf(model, replica, leases), options.no_truncate)});
    }
  }
  Print(table.Render(ColumnsMax(options)));
  Print("\n" + TierLines(status, names, options.no_truncate));
  return ExitCode::kOk;
}

}  // namespace

void AddPsCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("ps", "List resident models, who holds them, and what ends them");
  auto options = std::make_shared<ListOptions>();
  AddListOptions(command, *options, "Names only, one a line");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunPs(context, daemon, *options);
  });
}

}  // namespace trims::cli

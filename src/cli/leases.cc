// trims leases: who holds what.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

struct LeasesOptions {
  std::string model;
  std::string tier;
  ListOptions list;
};

ExitCode RunLeases(const Context& context, Connection& daemon, const LeasesOptions& options) {
  v1::ListLeasesRequest request;
  if (!options.model.empty()) {
    Result<std::string> model = daemon.ResolveModel(options.model);
    if (!model.ok()) return Fail(model.status());
    request.set_model(*model);
  }
  const TierNames names = TierNames::Ask(daemon);
  request.set_tier(names.Resolve(options.tier));
  v1::ListLeasesResponse response;
  if (Status status = daemon.ListLeases(request, &response); !status.ok()) return Fail(status);
  if (context.json) {
    PrintJson(ToJsonArray(response.leases()));
  } else if (options.list.quiet) {
    for (const v1::LeaseView& lease : response.leases()) {
      Print(std::to_string(lease.lease_id()) + "\n");
    }
  } else {
    Print(LeaseTable(response.leases(), names, options.list.no_truncate, ColumnsMax(options.list)));
  }
  return ExitCode::kOk;
}

}  // namespace

void AddLeasesCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("leases", "List who holds which model");
  auto options = std::make_shared<LeasesOptions>();
  command->add_option("MODEL", options->model,
                      "Only this model: name, or first digits of a digest");
  AddTierOptions(command, options->tier, "Only this tier: host, or gpu:0");
  AddListOptions(command, options->list, "Lease ids only, one a line");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunLeases(context, daemon, *options);
  });
}

}  // namespace trims::cli

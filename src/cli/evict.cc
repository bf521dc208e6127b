// trims evict: give a tier's memory back now.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

struct EvictOptions {
  std::vector<std::string> models;
  std::string tier;
  bool force = false;
};

ExitCode RunEvict(const Context& context, Connection& daemon, const EvictOptions& options) {
  const TierNames names = TierNames::Ask(daemon);
  const std::string tier = names.Resolve(options.tier);
  Json results = Json::array();
  const ExitCode code = ForEachModel(daemon, options.models, [&](const std::string& model) {
    v1::EvictRequest request;
    request.set_model(model);
    request.set_tier(tier);
    request.set_force(options.force);
    v1::EvictResponse response;
    if (Status status = daemon.Evict(request, &response); !status.ok()) {
      return FailWithHolders(daemon, status, model, tier);
    }
    if (context.json) {
      results.push_back({{"name", model}, {"replicas", ToJsonArray(response.replicas())}});
    } else {
      PrintEvicted(model, names, response.replicas());
    }
    return ExitCode::kOk;
  });
  if (context.json) PrintJson(results);
  return code;
}

}  // namespace

void AddEvictCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("evict", "Drop models from their tiers; their names stay");
  command->alias("stop");
  auto options = std::make_shared<EvictOptions>();
  command->add_option("MODEL", options->models, "Names, or the first digits of digests")
      ->required();
  AddTierOptions(command, options->tier, "Only this tier: host, or gpu:0");
  command->add_flag("--force", options->force,
                    "Also when leased (goes at the last release), pinned or loading");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunEvict(context, daemon, *options);
  });
}

}  // namespace trims::cli

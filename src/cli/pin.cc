// trims pin, trims unpin: keep a model resident, or no longer.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

struct PinOptions {
  std::vector<std::string> models;
  std::string tier;
};

bool IsResident(const v1::ModelView& model, const std::string& tier) {
  for (const v1::ReplicaView& replica : model.replicas()) {
    if (replica.tier() == tier) return true;
  }
  return false;
}

ExitCode RunPin(const Context& context, Connection& daemon, const PinOptions& options) {
  const std::string tier = ResolveTier(daemon, options.tier);
  Json results = Json::array();
  const ExitCode code = ForEachModel(daemon, options.models, [&](const std::string& model) {
    v1::PinRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::PinResponse response;
    if (Status status = daemon.Pin(request, &response); !status.ok()) return Fail(status);
    if (context.json) {
      results.push_back(ToJson(response.model()));
    } else {
      const bool resident = IsResident(response.model(), tier);
      Print(Printable(model) + " is pinned in " + options.tier +
            (resident ? "\n" : " and not loaded yet; \"trims load\" loads it\n"));
    }
    return ExitCode::kOk;
  });
  if (context.json) PrintJson(results);
  return code;
}

ExitCode RunUnpin(const Context& context, Connection& daemon, const PinOptions& options) {
  const std::string tier = ResolveTier(daemon, options.tier);
  Json results = Json::array();
  const ExitCode code = ForEachModel(daemon, options.models, [&](const std::string& model) {
    v1::UnpinRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::UnpinResponse response;
    if (Status status = daemon.Unpin(request, &response); !status.ok()) return Fail(status);
    if (context.json) {
      results.push_back(ToJson(response.model()));
    } else {
      Print(Printable(model) + " is no longer pinned" +
            (options.tier.empty() ? "\n" : " in " + options.tier + "\n"));
    }
    return ExitCode::kOk;
  });
  if (context.json) PrintJson(results);
  return code;
}

}  // namespace

void AddPinCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("pin", "Keep models resident: no eviction, no keep_alive");
  auto options = std::make_shared<PinOptions>();
  options->tier = "host";
  command->add_option("MODEL", options->models, "Names, or the first digits of digests")
      ->required();
  AddTierOptions(command, options->tier, "Where: host (default), or gpu:0");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunPin(context, daemon, *options);
  });
}

void AddUnpinCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("unpin", "Let models be evicted again");
  auto options = std::make_shared<PinOptions>();
  command->add_option("MODEL", options->models, "Names, or the first digits of digests")
      ->required();
  AddTierOptions(command, options->tier, "Only in this tier; default: in all");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunUnpin(context, daemon, *options);
  });
}

}  // namespace trims::cli

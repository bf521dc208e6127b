// trims rm: take names out of the catalogue.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

struct RmOptions {
  std::vector<std::string> names;
  bool force = false;
};

ExitCode RunRm(const Context& context, Connection& daemon, const RmOptions& options) {
  Json results = Json::array();
  ExitCode first = ExitCode::kOk;
  for (const std::string& name : options.names) {
    v1::RemoveRequest request;
    request.set_name(name);
    request.set_force(options.force);
    v1::RemoveResponse response;
    if (Status status = daemon.Remove(request, &response); !status.ok()) {
      const ExitCode code = FailWithHolders(daemon, status, name, "");
      if (first == ExitCode::kOk) first = code;
      continue;
    }
    if (context.json) {
      results.push_back(ToJson(response));
    } else {
      Print(
          Printable(name) + " removed; its files stay" +
          (response.model().source().empty() ? "" : " at " + Printable(response.model().source())) +
          "\n");
      PrintEvicted(name, TierNames::Ask(daemon), response.replicas());
    }
  }
  if (context.json) PrintJson(results);
  return first;
}

}  // namespace

void AddRmCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("rm", "Take names out of the catalogue and evict what only they led to");
  command->alias("remove");
  auto options = std::make_shared<RmOptions>();
  command->add_option("NAME", options->names, "Names given by \"trims add\"")->required();
  command->add_flag("--force", options->force,
                    "Also when leased (memory goes at the last release), pinned or loading");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunRm(context, daemon, *options);
  });
}

}  // namespace trims::cli

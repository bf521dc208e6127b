// trims ls: the models that the daemon knows.
#include <CLI/CLI.hpp>
#include <memory>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

std::string ResidentText(const v1::ModelView& model, const TierNames& names, bool whole) {
  std::string text;
  for (const v1::ReplicaView& replica : model.replicas()) {
    if (!text.empty()) text += ",";
    text += names.Text(replica.tier(), whole);
    if (replica.state() != v1::REPLICA_STATE_READY) text += "(" + StateText(replica) + ")";
  }
  return text;
}

ExitCode RunLs(const Context& context, Connection& daemon, const ListOptions& options) {
  v1::ListResponse response;
  if (Status status = daemon.List(v1::ListRequest(), &response); !status.ok()) return Fail(status);
  if (context.json) {
    PrintJson(ToJsonArray(response.models()));
    return ExitCode::kOk;
  }
  if (options.quiet) {
    for (const v1::ModelView& model : response.models()) Print(Printable(ModelText(model)) + "\n");
    return ExitCode::kOk;
  }
  const TierNames names = TierNames::Ask(daemon);
  Table table({"NAME", "DIGEST", ">SIZE", ">TENSORS", "RESIDENT", "SOURCE"});
  for (const v1::ModelView& model : response.models()) {
    table.AddRow({model.name(), DigestText(model.digest(), options.no_truncate),
                  model.weight_bytes() == 0 ? "" : FormatSize(model.weight_bytes()),
                  model.tensor_count() == 0 ? "" : std::to_string(model.tensor_count()),
                  ResidentText(model, names, options.no_truncate), model.source()});
  }
  Print(table.Render(ColumnsMax(options)));
  return ExitCode::kOk;
}

}  // namespace

void AddLsCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("ls", "List the models that the daemon knows");
  command->alias("list");
  auto options = std::make_shared<ListOptions>();
  AddListOptions(command, *options, "Names only, one a line");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunLs(context, daemon, *options);
  });
}

}  // namespace trims::cli

// trims ps: what is resident, who uses it, and when it goes away.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

ExitCode RunPs(const Context& context, Connection& daemon, const ListOptions& options) {
  v1::ListRequest request;
  request.set_resident_only(true);
  v1::ListResponse response;
  if (Status status = daemon.List(request, &response); !status.ok()) return Fail(status);
  if (context.json) {
    // One object per replica, as one row per replica below.
    Json array = Json::array();
    for (const v1::ModelView& model : response.models()) {
      for (const v1::ReplicaView& replica : model.replicas()) {
        Json row = {{"name", model.name()}, {"digest", model.digest()}};
        row.update(ToJson(replica));
        array.push_back(std::move(row));
      }
    }
    PrintJson(array);
    return ExitCode::kOk;
  }
  if (options.quiet) {
    for (const v1::ModelView& model : response.models()) Print(Printable(ModelText(model)) + "\n");
    return ExitCode::kOk;
  }
  Table table({"NAME", "DIGEST", ">SIZE", "TIER", ">LEASES", "STATE", "UNTIL"});
  for (const v1::ModelView& model : response.models()) {
    for (const v1::ReplicaView& replica : model.replicas()) {
      table.AddRow({model.name(), DigestText(model.digest(), options.no_truncate),
                    FormatSize(replica.bytes()), replica.tier(), std::to_string(replica.leases()),
                    StateText(replica), UntilText(replica)});
    }
  }
  Print(table.Render(ColumnsMax(options)));
  return ExitCode::kOk;
}

}  // namespace

void AddPsCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("ps", "List resident models, their leases, and what ends them");
  auto options = std::make_shared<ListOptions>();
  AddListOptions(command, *options, "Names only, one a line");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunPs(context, daemon, *options);
  });
}

}  // namespace trims::cli

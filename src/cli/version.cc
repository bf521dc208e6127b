// trims version: of this program, and of the daemon when one answers.
#include <CLI/CLI.hpp>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/text.h"
#include "trims/trims.hpp"

namespace trims::cli {
namespace {

ExitCode RunVersion(const Context& context) {
  std::string daemon_version;
  if (Result<std::string> directory = RuntimeDir(context); directory.ok()) {
    if (Result<Connection> daemon = Connection::Open(*directory); daemon.ok()) {
      v1::GetStatusResponse response;
      if (daemon->GetStatus(v1::GetStatusRequest(), &response).ok()) {
        daemon_version = response.version();
      }
    }
  }
  if (context.json) {
    Json json = {{"version", TRIMS_VERSION_STRING}, {"daemon_version", nullptr}};
    if (!daemon_version.empty()) json["daemon_version"] = daemon_version;
    PrintJson(json);
    return ExitCode::kOk;
  }
  Print("trims " TRIMS_VERSION_STRING "\n");
  Print("daemon " + (daemon_version.empty() ? "not reachable" : Printable(daemon_version)) + "\n");
  return ExitCode::kOk;
}

}  // namespace

void AddVersionCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("version", "Print the versions of this program and of the daemon");
  OnRun(command, context, [&context] { return RunVersion(context); });
}

}  // namespace trims::cli

// trims watch: what happens from now on, a line per event, until interrupted.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

void PrintEvent(const v1::Event& event) {
  if (event.kind() == v1::EVENT_KIND_DROPPED) {
    Print(LocalTime(event.time()) + "  " + std::to_string(event.dropped()) +
          " events were dropped: this reader was too slow\n");
    std::fflush(stdout);
    return;
  }
  std::string kind = EnumText(v1::EventKind_Name(event.kind()), "EVENT_KIND_");
  kind.resize(std::max<size_t>(kind.size(), 11), ' ');
  const std::string name =
      event.model().empty() ? DigestText(event.digest(), false) : event.model();
  std::string line = LocalTime(event.time()) + "  " + kind + "  " + Printable(name);
  if (!event.tier().empty()) line += "  " + Printable(event.tier());
  if (!event.detail().empty()) line += "  " + Printable(event.detail());
  Print(line + "\n");
  std::fflush(stdout);
}

ExitCode RunWatch(const Context& context, Connection& daemon, const std::string& typed) {
  v1::WatchRequest request;
  if (!typed.empty()) {
    Result<std::string> model = daemon.ResolveModel(typed);
    if (!model.ok()) return Fail(model.status());
    request.set_model(*model);
  }
  const Status status = daemon.Watch(
      request, [] {},
      [&](const v1::Event& event) {
        if (context.json) {
          PrintJsonLine(ToJson(event));
        } else {
          PrintEvent(event);
        }
      });
  return status.ok() ? ExitCode::kOk : Fail(status);
}

}  // namespace

void AddWatchCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("watch", "Print what happens, a line per event");
  auto model = std::make_shared<std::string>();
  command->add_option("MODEL", *model, "Only this model: name, or first digits of a digest");
  OnRunWithDaemon(command, context, [&context, model](Connection& daemon) {
    return RunWatch(context, daemon, *model);
  });
}

}  // namespace trims::cli

// trims config: the settings in force, and where each comes from.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>

#include "base/files.h"
#include "base/limits.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/text.h"
#include "daemon/config_layers.h"
#include "daemon/settings_file.h"

namespace trims::cli {
namespace {

struct ConfigOptions {
  bool origin = false;
  bool local = false;
  std::string file;
};

std::optional<std::string> Environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

// What a daemon started here and now, by this user, would use.
Result<v1::GetConfigResponse> LocalConfig(const Context& context) {
  ConfigSources sources;
  if (!context.runtime_dir_flag.empty()) sources.flags["runtime_dir"] = context.runtime_dir_flag;
  sources.files = DefaultConfigFiles(Environment);
  ASSIGN_OR_RETURN(const LoadedConfig loaded, LoadConfig(sources));
  v1::GetConfigResponse response;
  for (const ConfigEntry& from : loaded.entries) {
    v1::ConfigEntry* entry = response.add_entries();
    entry->set_key(from.key);
    entry->set_value(from.value);
    entry->set_origin(from.origin);
    entry->set_env(from.env);
    entry->set_help(from.help);
    entry->set_reloadable(from.reloadable);
  }
  return response;
}

ExitCode PrintConfig(const Context& context, const ConfigOptions& options,
                     const v1::GetConfigResponse& response) {
  if (context.json) {
    PrintJson(ToJsonArray(response.entries()));
    return ExitCode::kOk;
  }
  Table table(options.origin ? std::vector<std::string>{"KEY", "VALUE", "ORIGIN", "VARIABLE"}
                             : std::vector<std::string>{"KEY", "VALUE"});
  for (const v1::ConfigEntry& entry : response.entries()) {
    table.AddRow(options.origin ? std::vector<std::string>{entry.key(), entry.value(),
                                                           entry.origin(), entry.env()}
                                : std::vector<std::string>{entry.key(), entry.value()});
  }
  Print(table.Render());
  return ExitCode::kOk;
}

ExitCode RunShow(const Context& context, const ConfigOptions& options) {
  if (!options.local) {
    Result<std::string> directory = RuntimeDir(context);
    if (!directory.ok()) return Fail(directory.status());
    Result<Connection> daemon = Connection::Open(*directory);
    if (!daemon.ok()) {
      return Fail(daemon.status(), "--local shows what a daemon started here would use");
    }
    v1::GetConfigResponse response;
    if (Status status = daemon->GetConfig(v1::GetConfigRequest(), &response); !status.ok()) {
      return Fail(status);
    }
    return PrintConfig(context, options, response);
  }
  Result<v1::GetConfigResponse> response = LocalConfig(context);
  if (!response.ok()) return Fail(response.status(), "correct the setting that is named");
  return PrintConfig(context, options, *response);
}

ExitCode RunCheck(const ConfigOptions& options) {
  const Result<std::string> text = ReadSmallFile(options.file, kMaxConfigFileBytes);
  if (!text.ok()) return Fail(text.status());
  if (Result<LoadedConfig> parsed = ParseConfigText(*text, options.file); !parsed.ok()) {
    return Fail(parsed.status(), "\"trims config default\" prints every setting with its meaning");
  }
  Print(Printable(options.file) + " is good\n");
  return ExitCode::kOk;
}

}  // namespace

void AddConfigCommand(CLI::App& app, Context& context) {
  CLI::App* group = app.add_subcommand("config", "Show or check settings");
  group->require_subcommand(1);
  auto options = std::make_shared<ConfigOptions>();

  CLI::App* show = group->add_subcommand("show", "The daemon's settings");
  show->add_flag("--origin", options->origin, "Also where each value comes from, and its variable");
  show->add_flag("--local", options->local,
                 "Not the daemon's: what one started here, by this user, would use");
  OnRun(show, context, [&context, options] { return RunShow(context, *options); });

  CLI::App* check = group->add_subcommand("check", "Check a trims.toml without using it");
  check->add_option("FILE", options->file, "The file")->required();
  OnRun(check, context, [options] { return RunCheck(*options); });

  CLI::App* defaults =
      group->add_subcommand("default", "Print a trims.toml that explains every setting");
  OnRun(defaults, context, [] {
    Print(DefaultConfigText());
    return ExitCode::kOk;
  });
}

}  // namespace trims::cli

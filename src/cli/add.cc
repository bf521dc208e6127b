// trims add: give a weights file or model directory of this machine a name.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

struct AddOptions {
  std::string name;
  std::string path;
  bool replace = false;
};

ExitCode RunAdd(const Context& context, Connection& daemon, const AddOptions& options) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(options.path, error);
  if (error) {
    return Fail(ErrnoStatus(error.value(), "making " + options.path + " an absolute path"));
  }
  v1::AddRequest request;
  request.set_name(options.name);
  request.set_path(path.lexically_normal().string());
  request.set_replace(options.replace);
  v1::AddResponse response;
  if (Status status = daemon.Add(request, &response); !status.ok()) {
    if (status.code() == StatusCode::kNotFound) {
      return Fail(status,
                  "give a weights file (.safetensors, .params) or a directory that holds "
                  "one, as the daemon sees it");
    }
    return Fail(status);
  }
  if (context.json) {
    PrintJson(ToJson(response.model()));
    return ExitCode::kOk;
  }
  const v1::ModelView& model = response.model();
  std::string text = Printable(model.name()) + (response.replaced() ? " now names " : " names ") +
                     Printable(model.source());
  if (model.weight_bytes() > 0) {
    text += " (" + FormatSize(model.weight_bytes()) + " in " +
            std::to_string(model.tensor_count()) + " tensors)";
  }
  Print(text + "\n");
  return ExitCode::kOk;
}

}  // namespace

void AddAddCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("add", "Give a weights file or model directory a name");
  auto options = std::make_shared<AddOptions>();
  command->add_option("NAME", options->name, "[namespace/]name[:version]")->required();
  command->add_option("PATH", options->path, "File or directory on the daemon's machine")
      ->required();
  command->add_flag("--replace", options->replace, "Also when the name is taken");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunAdd(context, daemon, *options);
  });
}

}  // namespace trims::cli

// trims show: everything about one model.
#include <CLI/CLI.hpp>
#include <map>
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

struct ShowOptions {
  std::string model;
  bool tensors = false;
  ListOptions list;
};

std::string ShapeText(const v1::TensorView& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.shape_size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.shape(i));
  }
  return text + "]";
}

ExitCode RunShow(const Context& context, Connection& daemon, const ShowOptions& options) {
  Result<std::string> name = daemon.ResolveModel(options.model);
  if (!name.ok()) return Fail(name.status());
  v1::InfoRequest request;
  request.set_model(*name);
  request.set_include_tensors(options.tensors);
  v1::InfoResponse response;
  if (Status status = daemon.Info(request, &response); !status.ok()) return Fail(status);
  if (context.json) {
    Json json = ToJson(response);
    if (!options.tensors) json.erase("tensors");
    PrintJson(json);
    return ExitCode::kOk;
  }
  const v1::ModelView& model = response.model();
  const auto line = [](const char* key, const std::string& value) {
    std::string text(key);
    text.resize(10, ' ');
    Print(text + Printable(value.empty() ? "-" : value) + "\n");
  };
  line("name", model.name());
  line("digest", model.digest().empty() ? "not computed yet: the first load does" : model.digest());
  line("origin", EnumText(v1::ModelOrigin_Name(model.origin()), "MODEL_ORIGIN_"));
  line("source", model.source());
  line("size", model.weight_bytes() == 0 ? ""
                                         : FormatSize(model.weight_bytes()) + " (" +
                                               std::to_string(model.weight_bytes()) + " bytes)");
  line("tensors", model.tensor_count() == 0 ? "" : std::to_string(model.tensor_count()));
  line("pinned", model.pinned() ? "yes" : "no");
  if (!response.metadata().empty()) {
    Print("\nmetadata\n");
    const std::map<std::string, std::string> sorted(response.metadata().begin(),
                                                    response.metadata().end());
    for (const auto& [key, value] : sorted) {
      Print("  " + Printable(key) + " = " + Printable(value) + "\n");
    }
  }
  const size_t columns = ColumnsMax(options.list);
  const TierNames names = TierNames::Ask(daemon);
  if (model.replicas().empty()) {
    Print("\nnot resident in any tier\n");
  } else {
    Table table({"TIER", "STATE", "GRANULARITY", ">EXTENTS", ">SIZE", ">LEASES", ">OPENS", "LOADED",
                 "UNTIL"});
    for (const v1::ReplicaView& replica : model.replicas()) {
      table.AddRow(
          {names.Text(replica.tier(), options.list.no_truncate), StateText(replica),
           EnumText(v1::SharingGranularity_Name(replica.granularity()), "SHARING_GRANULARITY_"),
           std::to_string(replica.extent_count()), FormatSize(replica.bytes()),
           std::to_string(replica.leases()), std::to_string(replica.opens()),
           RelativeTime(replica.has_loaded_at(), replica.loaded_at()), UntilText(replica)});
    }
    Print("\n" + table.Render(columns));
  }
  if (!response.leases().empty()) {
    Print("\n" + LeaseTable(response.leases(), names, options.list.no_truncate, columns));
  }
  if (options.tensors) {
    Table table({"TENSOR", "DTYPE", "SHAPE", ">SIZE", "DIGEST"});
    for (const v1::TensorView& tensor : response.tensors()) {
      table.AddRow({tensor.name(), tensor.dtype(), ShapeText(tensor),
                    FormatSize(tensor.size_bytes()),
                    DigestText(tensor.digest(), options.list.no_truncate)});
    }
    Print("\n" + table.Render(columns));
  }
  return ExitCode::kOk;
}

}  // namespace

void AddShowCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("show", "Show one model: source, replicas, leases, tensors");
  auto options = std::make_shared<ShowOptions>();
  command->add_option("MODEL", options->model, "Name, or the first digits of a digest")->required();
  command->add_flag("--tensors", options->tensors, "Also every tensor");
  command->add_flag("--no-truncate", options->list.no_truncate,
                    "Whole digests, and lines longer than the terminal is wide");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunShow(context, daemon, *options);
  });
}

}  // namespace trims::cli

// trims load: bring models into a tier before anybody asks for them.
#include <CLI/CLI.hpp>
#include <chrono>
#include <map>
#include <memory>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

struct LoadOptions {
  std::vector<std::string> models;
  std::string tier = "host";
  std::string granularity = "model";
  std::string keep_alive;
  bool pin = false;
  bool quiet = false;
};

const std::map<std::string, v1::SharingGranularity>& Granularities() {
  static const std::map<std::string, v1::SharingGranularity> words = {
      {"auto", v1::SHARING_GRANULARITY_AUTO},
      {"model", v1::SHARING_GRANULARITY_MODEL},
      {"slab", v1::SHARING_GRANULARITY_SLAB},
      {"layer", v1::SHARING_GRANULARITY_LAYER}};
  return words;
}

ExitCode LoadOne(const Context& context, Connection& daemon, const LoadOptions& options,
                 const TierNames& names, const v1::LoadRequest& request) {
  const std::string& model = request.model();
  const std::string tier = names.Text(options.tier);
  const auto started = std::chrono::steady_clock::now();
  ProgressBar bar(!options.quiet && !context.json);
  v1::LoadProgress last;
  const Status status = daemon.Load(request, [&](const v1::LoadProgress& progress) {
    last = progress;
    if (context.json) {
      Json line = {{"name", model}};
      line.update(ToJson(progress));
      PrintJsonLine(line);
      return;
    }
    bar.Update(
        {.label = model + " " + EnumText(v1::LoadPhase_Name(progress.phase()), "LOAD_PHASE_"),
         .done_bytes = progress.done_bytes(),
         .total_bytes = progress.total_bytes(),
         .bytes_per_second = progress.bytes_per_second()});
  });
  bar.Clear();
  if (!status.ok()) return Fail(status);
  if (options.pin) {  // After the load: pinning an unknown model would hash it without progress.
    v1::PinRequest pin;
    pin.set_model(model);
    pin.set_tier(options.tier);
    v1::PinResponse response;
    if (Status pinned = daemon.Pin(pin, &response); !pinned.ok()) return Fail(pinned);
  }
  if (context.json || options.quiet) return ExitCode::kOk;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  const uint64_t bytes = last.model().weight_bytes();
  if (last.already_resident()) {
    Print(Printable(model) + " is already in " + tier + " (" + FormatSize(bytes) + ")\n");
  } else {
    const double rate = seconds > 0 ? static_cast<double>(bytes) / seconds : 0;
    Print(Printable(model) + " is in " + tier + ": " + FormatSize(bytes) + " in " +
          SecondsText(seconds) + " (" + FormatSize(static_cast<uint64_t>(rate)) + "/s)\n");
  }
  return ExitCode::kOk;
}

ExitCode RunLoad(const Context& context, Connection& daemon, LoadOptions options) {
  v1::LoadRequest request;
  const TierNames names = TierNames::Ask(daemon);
  options.tier = names.Resolve(options.tier);
  request.set_tier(options.tier);
  request.set_granularity(Granularities().at(options.granularity));
  if (!options.keep_alive.empty()) {
    const Result<std::optional<Duration>> parsed = ParseKeepAlive(options.keep_alive);
    if (!parsed.ok()) return FailUsage("--keep-alive: " + parsed.status().message());
    const std::chrono::nanoseconds keep = parsed->value_or(std::chrono::seconds(-1));
    request.mutable_keep_alive()->set_seconds(keep.count() / 1'000'000'000);
    request.mutable_keep_alive()->set_nanos(static_cast<int32_t>(keep.count() % 1'000'000'000));
  }
  return ForEachModel(daemon, options.models, [&](const std::string& model) {
    request.set_model(model);
    return LoadOne(context, daemon, options, names, request);
  });
}

}  // namespace

void AddLoadCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("load", "Bring models into a tier; shows phases, rate and time left");
  command->alias("prefetch");
  auto options = std::make_shared<LoadOptions>();
  command->add_option("MODEL", options->models, "Names, or the first digits of digests")
      ->required();
  AddTierOptions(command, options->tier, "Where to: host (default), or gpu:0");
  command
      ->add_option("--granularity", options->granularity,
                   "How tensors are cut into extents: auto, model, slab or layer")
      ->transform(CLI::IsMember(Granularities(), CLI::ignore_case))
      ->capture_default_str();
  command->add_option("--keep-alive", options->keep_alive,
                      "How long it stays after its last lease: 5m, 1h30m, 0, forever; default: the "
                      "daemon's setting");
  command->add_flag("--pin", options->pin, "Also pin it in that tier");
  command->add_flag("-q,--quiet", options->quiet, "No output but errors");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunLoad(context, daemon, *options);
  });
}

}  // namespace trims::cli

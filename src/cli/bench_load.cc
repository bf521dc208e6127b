// trims bench load: how fast a model comes into a tier that does not have it, from each place
// that it may be in, beside the rates of the links that it comes over, measured in the same run.
#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/loads.h"
#include "cli/bench_daemon.h"
#include "cli/bench_report.h"
#include "cli/text.h"
#include "cli/tiers.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

using bench::From;
using bench::LinkFloor;
using bench::LoadFigures;
using bench::LoadSource;
using bench::Ratio;
using bench::Rig;

// What --from says. A peer is a tier as it was typed until FindPeer.
Result<LoadSource> ParseFrom(const BenchOptions& options) {
  const std::string& from = options.from;
  if (from == "page-cache") return LoadSource{From::kPageCache, {}, "the page cache"};
  if (from == "disk") return LoadSource{From::kDisk, {}, "disk"};
  if (from != "host" && from != "peer" && !from.starts_with("peer:")) {
    return InvalidArgumentError("--from " + from +
                                ": page-cache, disk, host or peer:gpu:1 were expected");
  }
  if (options.device.empty()) {
    return InvalidArgumentError("--from " + from +
                                " is for loads to a device: give --device gpu:0");
  }
  if (from == "host") return LoadSource{From::kHost, {}, "the host tier"};
  constexpr size_t kPrefix = std::string_view("peer:").size();
  if (from.size() <= kPrefix) {
    return InvalidArgumentError("--from peer: of which device? For example --from peer:gpu:1");
  }
  LoadSource source{From::kPeer, {}, ""};
  ASSIGN_OR_RETURN(source.peer.tier, DeviceTier(from.substr(kPrefix)));
  return source;
}

Status FindPeer(const BenchDaemon& daemon, const Rig& rig, LoadSource* source) {
  if (source->from != From::kPeer) return OkStatus();
  ASSIGN_OR_RETURN(source->peer, daemon.FindPlace(source->peer.tier));
  source->text = source->peer.text;
  if (source->peer.tier != rig.place().tier) return OkStatus();
  return InvalidArgumentError("--from: " + source->text + " is the device that is loaded to");
}

Json FiguresJson(const LoadFigures& figures, const Rig& rig, const std::string& from) {
  Json floors = Json::object();
  for (const LinkFloor& floor : figures.floors) {
    floors[floor.key] = {{"bytes", floor.bytes},
                         {"bytes_per_second", floor.Rate()},
                         {"times", SummaryJson(floor.samples)},
                         {"load_rate_over_floor", Ratio(figures.Rate(), floor.Rate())}};
  }
  return {{"tier", rig.place().tier},
          {"from", from},
          {"bytes", figures.bytes},
          {"allocated_bytes", figures.allocated_bytes},
          {"tensors", figures.tensors},
          {"first_open_seconds", figures.first},
          {"host_pinned", figures.host_pinned},
          {"load", SummaryJson(figures.load)},
          {"bytes_per_second", figures.Rate()},
          {"floors", std::move(floors)}};
}

void PrintFigures(const std::vector<LoadFigures>& all, const Rig& rig, const LoadSource& source,
                  const std::string& machine) {
  Print("Loads to " + rig.place().Title() + " from " + source.text + " (" + machine + ")\n\n");
  Table table({">SIZE", ">TENSORS", "WHAT", ">MEDIAN", ">BEST", ">RATE", ">LOAD IS"});
  for (const LoadFigures& figures : all) {
    const std::string size = FormatSize(figures.bytes);
    const std::string tensors = std::to_string(figures.tensors);
    table.AddRow({size, tensors, "load", TimeText(figures.load.Median()),
                  TimeText(figures.load.Min()), RateText(figures.Rate()), ""});
    for (const LinkFloor& floor : figures.floors) {
      table.AddRow({size, tensors, floor.text, TimeText(floor.samples.Median()),
                    TimeText(floor.samples.Min()), RateText(floor.Rate()),
                    PercentText(Ratio(figures.Rate(), floor.Rate())) + " of it"});
    }
  }
  Print(table.Render());
  if (std::any_of(all.begin(), all.end(),
                  [](const LoadFigures& one) { return !one.host_pinned; })) {
    Print(
        "\nThe daemon did not pin all of the model's host memory: copies of what is not pinned "
        "are slower. \"trims doctor\" says why.\n");
  }
}

}  // namespace

ExitCode RunBenchLoad(const Context& context, const BenchOptions& options) {
  const Result<std::vector<uint64_t>> sizes = BenchSizes(options);
  if (!sizes.ok()) return FailBench(context, sizes.status());
  Result<LoadSource> source = ParseFrom(options);
  if (!source.ok()) return FailBench(context, source.status());
  Result<std::unique_ptr<BenchDaemon>> daemon = BenchDaemon::Connect(context);
  if (!daemon.ok()) return FailBench(context, daemon.status());
  BenchProgress progress(!context.json);
  Result<std::unique_ptr<Rig>> rig = (*daemon)->MakeRig(options.device, progress);
  if (!rig.ok()) return FailBench(context, rig.status());
  if (const Status found = FindPeer(**daemon, **rig, &*source); !found.ok()) {
    return FailBench(context, found);
  }
  std::vector<LoadFigures> all;
  for (const uint64_t bytes : *sizes) {
    for (const uint32_t tensors : options.tensors) {
      const bench::WeightsFileSpec spec = {.bytes = bytes,
                                           .tensors = tensors,
                                           .sparse = options.sparse,
                                           .directory = options.directory};
      Result<LoadFigures> figures = bench::MeasureLoads(**rig, *source, spec, options.runs);
      if (!figures.ok()) return FailBench(context, figures.status());
      all.push_back(std::move(*figures));
    }
  }
  if (!context.json) {
    PrintFigures(all, **rig, *source, (*daemon)->MachineText(**rig));
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const LoadFigures& figures : all) {
    results.push_back(FiguresJson(figures, **rig, options.from));
  }
  PrintJson({{"benchmark", "load"}, {"machine", (*daemon)->Machine()}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

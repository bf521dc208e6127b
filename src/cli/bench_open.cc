// trims bench open: what a process pays to get at a model that is resident, from the call to
// pointers, beside what the same mappings cost without a daemon.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "bench/opens.h"
#include "cli/bench_daemon.h"
#include "cli/bench_report.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

using bench::OpenFigures;
using bench::Ratio;
using bench::Rig;
using bench::Samples;

Json FiguresJson(const OpenFigures& figures, const Rig& rig) {
  return {{"tier", rig.place().tier},
          {"bytes", figures.bytes},
          {"allocated_bytes", figures.allocated_bytes},
          {"tensors", figures.tensors},
          {"cold_open_seconds", figures.cold},
          {"open", SummaryJson(figures.open)},
          {"close", SummaryJson(figures.close)},
          {"floor_open", SummaryJson(figures.floor_open)},
          {"floor_close", SummaryJson(figures.floor_close)},
          {"floor_interleaved", figures.interleaved},
          {"open_ratio", Ratio(figures.open.Median(), figures.floor_open.Median())},
          {"close_ratio", Ratio(figures.close.Median(), figures.floor_close.Median())}};
}

void PrintFigures(const std::vector<OpenFigures>& all, const Rig& rig, const std::string& machine) {
  Print("Opens of a resident model on " + rig.place().Title() + ", from the call to pointers (" +
        machine + ")\n\n");
  Table table({">SIZE", ">TENSORS", "CALL", ">MEDIAN", ">P90", ">P99", ">MIN", ">FLOOR", ">RATIO"});
  for (const OpenFigures& figures : all) {
    const auto row = [&](const char* call, const Samples& samples, const Samples& floor) {
      table.AddRow({FormatSize(figures.bytes), std::to_string(figures.tensors), call,
                    TimeText(samples.Median()), TimeText(samples.Percentile(90)),
                    TimeText(samples.Percentile(99)), TimeText(samples.Min()),
                    TimeText(floor.Median()), RatioText(Ratio(samples.Median(), floor.Median()))});
    };
    row("open", figures.open, figures.floor_open);
    row("close", figures.close, figures.floor_close);
  }
  Print(table.Render());
  Print("\nFLOOR: the median of " + std::to_string(all.front().floor_open.size()) +
        (!rig.place().uuid.empty()
             ? " times the bare driver calls for as many bytes (import, reserve, map, set access; "
               "unmap, free, release)"
             : " times the bare mappings of as many bytes and an index (mmap; munmap), without a "
               "daemon") +
        "\n");
  if (std::any_of(all.begin(), all.end(),
                  [](const OpenFigures& one) { return !one.interleaved; })) {
    Print(
        "The device had no room for some models and their floors at once: these were measured "
        "one after the other.\n");
  }
}

}  // namespace

ExitCode RunBenchOpen(const Context& context, const BenchOptions& options) {
  const Result<std::vector<uint64_t>> sizes = BenchSizes(options);
  if (!sizes.ok()) return FailBench(context, sizes.status());
  Result<std::unique_ptr<BenchDaemon>> daemon = BenchDaemon::Connect(context);
  if (!daemon.ok()) return FailBench(context, daemon.status());
  BenchProgress progress(!context.json);
  Result<std::unique_ptr<Rig>> rig = (*daemon)->MakeRig(options.device, progress);
  if (!rig.ok()) return FailBench(context, rig.status());
  std::vector<OpenFigures> all;
  for (const uint64_t bytes : *sizes) {
    for (const uint32_t tensors : options.tensors) {
      Result<OpenFigures> figures = bench::MeasureOpens(**rig,
                                                        {.bytes = bytes,
                                                         .tensors = tensors,
                                                         .sparse = options.sparse,
                                                         .directory = options.directory},
                                                        options.runs);
      if (!figures.ok()) return FailBench(context, figures.status());
      all.push_back(std::move(*figures));
    }
  }
  if (!context.json) {
    PrintFigures(all, **rig, (*daemon)->MachineText(**rig));
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const OpenFigures& figures : all) results.push_back(FiguresJson(figures, **rig));
  PrintJson({{"benchmark", "open"}, {"machine", (*daemon)->Machine()}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

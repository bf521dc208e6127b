// trims bench open: what a process pays to get at a model that is resident, from the call to
// pointers, beside what the same mappings cost without a daemon.
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cli/bench_rig.h"
#include "cli/bench_samples.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

constexpr int kWarmUps = 10;
constexpr std::chrono::seconds kReleaseWait(10);

struct OpenFigures {
  uint64_t bytes = 0;            // Of the weights.
  uint64_t allocated_bytes = 0;  // Of their extents, which are what is mapped.
  uint32_t tensors = 0;
  double cold = 0;  // Seconds of the first open: hashing and loading.
  Samples open, close, floor_open, floor_close;
  bool interleaved = true;
};

// What the daemon's answer is compared with, in memory of its own.
class MappingFloor final {
 public:
  explicit MappingFloor(BenchRig& rig) : device_(rig.device()) {}
  ~MappingFloor() {
    if (device_ != nullptr) device_->DropShared();
  }
  MappingFloor(const MappingFloor&) = delete;

  Status Make(uint64_t bytes) {
    if (device_ != nullptr) return device_->MakeShared(bytes);
    ASSIGN_OR_RETURN(host_, HostMappingFloor::Make(bytes));
    return OkStatus();
  }
  Result<OpenTimes> Measure() const {
    return device_ != nullptr ? device_->MeasureMapping() : host_->Measure();
  }

 private:
  BenchDevice* const device_;
  std::optional<HostMappingFloor> host_;
};

Status MeasureOpen(BenchRig& rig, const std::string& model, OpenFigures* figures) {
  // What the close before left to be read is no part of this open.
  RETURN_IF_ERROR(rig.Settle());
  Status status;
  trims_lease* lease = nullptr;
  trims_tensor tensor{};
  trims_status found = TRIMS_OK;
  const double opened = TimeOf([&] {
    lease = rig.OpenPlainly(model, rig.place(), &status);
    found = trims_lease_tensor(lease, 0, &tensor);
  });
  RETURN_IF_ERROR(status);
  const bool loaded = trims_lease_was_loaded(lease) != 0;
  const double closed = TimeOf([&] { trims_lease_close(lease); });
  if (found != TRIMS_OK || tensor.data == nullptr) return InternalError("the lease has no tensor");
  if (loaded) return AbortedError("the model was evicted while it was measured");
  figures->open.Add(opened);
  figures->close.Add(closed);
  return OkStatus();
}

Status MeasureFloor(const MappingFloor& floor, OpenFigures* figures) {
  ASSIGN_OR_RETURN(const OpenTimes times, floor.Measure());
  figures->floor_open.Add(times.open);
  figures->floor_close.Add(times.close);
  return OkStatus();
}

// Loads the model, and keeps it whatever the daemon's policy is.
Status Prepare(BenchRig& rig, const BenchModel& model, OpenFigures* figures) {
  std::optional<Result<Lease>> lease;
  figures->cold = TimeOf([&] { lease = rig.Open(model.name(), rig.place()); });
  RETURN_IF_ERROR(lease->status());
  figures->allocated_bytes = trims_lease_total_bytes((*lease)->get());
  v1::PinRequest pin;
  pin.set_model(model.name());
  pin.set_tier(rig.place().tier);
  v1::PinResponse pinned;
  RETURN_IF_ERROR(rig.daemon().Pin(pin, &pinned));
  lease.reset();
  return rig.KeepOnly(model.name(), {rig.place().tier});
}

Result<OpenFigures> Measure(BenchRig& rig, const BenchOptions& options,
                            const BenchModelSpec& spec) {
  OpenFigures figures;
  figures.bytes = spec.bytes;
  figures.tensors = spec.tensors;
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchModel> model, BenchModel::Make(rig, spec));
  RETURN_IF_ERROR(Prepare(rig, *model, &figures));
  MappingFloor floor(rig);
  const Status made = floor.Make(figures.allocated_bytes);
  // A device may have no room for the model and as much again: then one after the other.
  figures.interleaved = made.ok();
  if (!made.ok() && made.code() != StatusCode::kResourceExhausted) return made;

  OpenFigures ignored;
  for (int i = 0; i < kWarmUps; ++i) {
    RETURN_IF_ERROR(MeasureOpen(rig, model->name(), &ignored));
    if (figures.interleaved) RETURN_IF_ERROR(MeasureFloor(floor, &ignored));
  }
  for (int i = 0; i < options.runs; ++i) {
    RETURN_IF_ERROR(rig.interrupts().Check());
    RETURN_IF_ERROR(MeasureOpen(rig, model->name(), &figures));
    if (figures.interleaved) RETURN_IF_ERROR(MeasureFloor(floor, &figures));
  }
  if (!figures.interleaved) {
    RETURN_IF_ERROR(rig.KeepOnly(model->name(), {}));
    RETURN_IF_ERROR(rig.WaitUntilCleared(figures.allocated_bytes));
    // The daemon gives memory back on a thread of its own, which a busy machine delays.
    const auto deadline = std::chrono::steady_clock::now() + kReleaseWait;
    Status room = floor.Make(figures.allocated_bytes);
    while (room.code() == StatusCode::kResourceExhausted &&
           std::chrono::steady_clock::now() < deadline) {
      RETURN_IF_ERROR(rig.interrupts().Wait(std::chrono::milliseconds(50)));
      room = floor.Make(figures.allocated_bytes);
    }
    RETURN_IF_ERROR(room);
    for (int i = 0; i < kWarmUps; ++i) RETURN_IF_ERROR(MeasureFloor(floor, &ignored));
    for (int i = 0; i < options.runs; ++i) {
      RETURN_IF_ERROR(rig.interrupts().Check());
      RETURN_IF_ERROR(MeasureFloor(floor, &figures));
    }
  }
  return figures;
}

Json FiguresJson(const OpenFigures& figures, const BenchRig& rig) {
  return {{"tier", rig.place().tier},
          {"bytes", figures.bytes},
          {"allocated_bytes", figures.allocated_bytes},
          {"tensors", figures.tensors},
          {"cold_open_seconds", figures.cold},
          {"open", figures.open.Summary()},
          {"close", figures.close.Summary()},
          {"floor_open", figures.floor_open.Summary()},
          {"floor_close", figures.floor_close.Summary()},
          {"floor_interleaved", figures.interleaved},
          {"open_ratio", Ratio(figures.open.Median(), figures.floor_open.Median())},
          {"close_ratio", Ratio(figures.close.Median(), figures.floor_close.Median())}};
}

void PrintFigures(const std::vector<OpenFigures>& all, const BenchRig& rig) {
  Print("Opens of a resident model on " + rig.place().Title() + ", from the call to pointers (" +
        rig.MachineText() + ")\n\n");
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
  Result<std::unique_ptr<BenchRig>> rig = BenchRig::Make(context, options.device);
  if (!rig.ok()) return FailBench(context, rig.status());
  std::vector<OpenFigures> all;
  for (const uint64_t bytes : *sizes) {
    for (const uint32_t tensors : options.tensors) {
      Result<OpenFigures> figures = Measure(**rig, options,
                                            {.bytes = bytes,
                                             .tensors = tensors,
                                             .sparse = options.sparse,
                                             .directory = options.directory});
      if (!figures.ok()) return FailBench(context, figures.status());
      all.push_back(std::move(*figures));
    }
  }
  if (!context.json) {
    PrintFigures(all, **rig);
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const OpenFigures& figures : all) results.push_back(FiguresJson(figures, **rig));
  PrintJson({{"benchmark", "open"}, {"machine", (*rig)->Machine()}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

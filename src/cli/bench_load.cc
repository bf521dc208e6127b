// trims bench load: how fast a model comes into a tier that does not have it, from each place
// that it may be in, beside the rates of the links that it comes over, measured in the same run.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cli/bench_rig.h"
#include "cli/bench_samples.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

enum class From { kPageCache, kDisk, kHost, kPeer };

struct LoadSource {
  From from = From::kPageCache;
  BenchPlace peer;   // With kPeer.
  std::string text;  // "page cache", "gpu:1"
};

// A rate that no load can exceed.
struct Floor {
  std::string key;   // In JSON.
  std::string text;  // For people.
  uint64_t bytes = 0;
  std::function<Result<double>()> measure;
  Samples samples;

  double Rate() const { return Ratio(static_cast<double>(bytes), samples.Median()); }
};

struct LoadFigures {
  uint64_t bytes = 0;            // Of the weights.
  uint64_t allocated_bytes = 0;  // Of their extents.
  uint32_t tensors = 0;
  double first = 0;  // Seconds of the first open, which also hashes the file.
  bool host_pinned = true;
  Samples load;
  std::vector<Floor> floors;

  double Rate() const { return Ratio(static_cast<double>(bytes), load.Median()); }
};

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

Status FindPeer(const BenchRig& rig, LoadSource* source) {
  if (source->from != From::kPeer) return OkStatus();
  ASSIGN_OR_RETURN(source->peer, rig.FindPlace(source->peer.tier));
  source->text = source->peer.text;
  if (source->peer.tier != rig.place().tier) return OkStatus();
  return InvalidArgumentError("--from: " + source->text + " is the device that is loaded to");
}

// The disk's best: how many threads read it fastest is different for each.
Result<unsigned> BestDiskThreads(const BenchRig& rig, const BenchModel& model) {
  unsigned best = 1;
  double least = 0;
  for (const unsigned threads : {1U, 2U, 4U}) {
    RETURN_IF_ERROR(DropFromPageCache(model.path(), rig.interrupts()));
    ASSIGN_OR_RETURN(const double seconds,
                     MeasureRead(model.path(), ReadKind::kDirect, threads, rig.interrupts()));
    if (least == 0 || seconds < least) {
      least = seconds;
      best = threads;
    }
  }
  return best;
}

class LoadBench final {
 public:
  LoadBench(BenchRig& rig, const LoadSource& source, const BenchModelSpec& spec)
      : rig_(rig), source_(source), spec_(spec) {}

  Result<LoadFigures> Run(int runs) {
    ASSIGN_OR_RETURN(model_, BenchModel::Make(rig_, spec_));
    figures_.tensors = spec_.tensors;
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(AddFloors());
    for (int i = 0; i < runs; ++i) RETURN_IF_ERROR(RunOnce());
    for (Floor& floor : figures_.floors) floor.measure = nullptr;  // They work with this object.
    return std::move(figures_);
  }

 private:
  // Until the source holds the model, and holds it for good.
  Status Prepare() {
    if (source_.from == From::kPeer) {
      if (rig_.place().uuid.empty()) return InternalError("a peer of the host");
      Result<BenchDevice> peer = BenchDevice::Open(source_.peer.uuid);
      RETURN_IF_ERROR(peer.status());
      peer_ = std::move(*peer);
    }
    const BenchPlace host;
    const BenchPlace& first = source_.from == From::kPeer   ? source_.peer
                              : source_.from == From::kHost ? host
                                                            : rig_.place();
    const uint64_t pinned_before = HostPinnedBytes();
    std::optional<Result<Lease>> lease;
    figures_.first = TimeOf([&] { lease = rig_.Open(model_->name(), first); });
    RETURN_IF_ERROR(lease->status());
    figures_.bytes = spec_.bytes;
    figures_.allocated_bytes = trims_lease_total_bytes((*lease)->get());
    if (source_.from == From::kHost || source_.from == From::kPeer) {
      source_lease_ = std::move(**lease);  // Nothing that is leased is evicted.
      keep_ = {first.tier};
    }
    lease.reset();
    if (source_.from == From::kHost) {
      ASSIGN_OR_RETURN(figures_.host_pinned,
                       WaitUntilPinned(pinned_before + figures_.allocated_bytes));
    }
    if (source_.from == From::kDisk) {
      ASSIGN_OR_RETURN(disk_threads_, BestDiskThreads(rig_, *model_));
    }
    return OkStatus();
  }

  uint64_t HostPinnedBytes() {
    v1::GetStatusResponse now;
    return rig_.daemon().GetStatus(v1::GetStatusRequest(), &now).ok() ? now.host_pinned_bytes() : 0;
  }

  // The daemon pins host memory in the background. False when it has stopped before `bytes`.
  Result<bool> WaitUntilPinned(uint64_t bytes) {
    constexpr std::chrono::milliseconds kPoll(20);
    constexpr int kPollsWithoutGrowth = 500;
    uint64_t last = 0;
    for (int still = 0; still < kPollsWithoutGrowth; ++still) {
      const uint64_t now = HostPinnedBytes();
      if (now >= bytes) return true;
      if (now > last) still = 0;
      last = now;
      RETURN_IF_ERROR(rig_.interrupts().Wait(kPoll));
    }
    return false;
  }

  Status AddFloors() {
    const uint64_t file_bytes = model_->file_bytes();
    const auto add = [this](std::string key, std::string text, uint64_t bytes,
                            std::function<Result<double>()> measure) {
      figures_.floors.push_back({std::move(key), std::move(text), bytes, std::move(measure), {}});
    };
    if (source_.from == From::kPageCache) {
      const unsigned threads = ReadThreads();
      add("page_cache_read", "read of the page cache, " + Threads(threads), file_bytes,
          [this, threads] {
            return MeasureRead(model_->path(), ReadKind::kPageCache, threads, rig_.interrupts());
          });
    }
    if (source_.from == From::kDisk) {
      add("disk_read", "read past the page cache, " + Threads(disk_threads_) + " of 8 MiB blocks",
          file_bytes, [this] {
            return MeasureRead(model_->path(), ReadKind::kDirect, disk_threads_, rig_.interrupts());
          });
    }
    if (source_.from == From::kPeer) {
      add("peer_copy", "copy from " + source_.text + " to " + rig_.place().text, figures_.bytes,
          [this] { return rig_.device()->MeasureCopyFrom(*peer_, figures_.bytes); });
    } else if (rig_.device() != nullptr) {
      add("pinned_copy", "copy of pinned memory to " + rig_.place().text, figures_.bytes, [this] {
        return rig_.device()->MeasureCopy(BenchDevice::Copy::kFromHost, figures_.bytes);
      });
    }
    // Buffers are made and links set up before anything counts.
    for (Floor& floor : figures_.floors) {
      const Result<double> ignored = floor.measure();
      RETURN_IF_ERROR(ignored.status());
    }
    return OkStatus();
  }

  static std::string Threads(unsigned count) {
    return std::to_string(count) + (count == 1 ? " thread" : " threads");
  }

  Status RunOnce() {
    RETURN_IF_ERROR(rig_.KeepOnly(model_->name(), keep_));
    RETURN_IF_ERROR(rig_.WaitUntilCleared(figures_.allocated_bytes));
    if (source_.from == From::kDisk)
      RETURN_IF_ERROR(DropFromPageCache(model_->path(), rig_.interrupts()));
    for (Floor& floor : figures_.floors) {
      ASSIGN_OR_RETURN(const double seconds, floor.measure());
      floor.samples.Add(seconds);
    }
    // From here on nothing happens but the load.
    std::optional<Result<Lease>> lease;
    const double seconds = TimeOf([&] { lease = rig_.Open(model_->name(), rig_.place()); });
    RETURN_IF_ERROR(lease->status());
    const bool loaded = trims_lease_was_loaded((*lease)->get()) != 0;
    lease.reset();
    if (!loaded) return AbortedError("the model was resident: somebody else opened it meanwhile");
    figures_.load.Add(seconds);
    return rig_.interrupts().Check();
  }

  BenchRig& rig_;
  const LoadSource& source_;
  const BenchModelSpec spec_;
  std::unique_ptr<BenchModel> model_;
  std::optional<BenchDevice> peer_;
  Lease source_lease_;  // After model_: closed before that is removed.
  std::vector<std::string> keep_;
  unsigned disk_threads_ = 1;
  LoadFigures figures_;
};

Json FiguresJson(const LoadFigures& figures, const BenchRig& rig, const std::string& from) {
  Json floors = Json::object();
  for (const Floor& floor : figures.floors) {
    floors[floor.key] = {{"bytes", floor.bytes},
                         {"bytes_per_second", floor.Rate()},
                         {"times", floor.samples.Summary()},
                         {"load_rate_over_floor", Ratio(figures.Rate(), floor.Rate())}};
  }
  return {{"tier", rig.place().tier},
          {"from", from},
          {"bytes", figures.bytes},
          {"allocated_bytes", figures.allocated_bytes},
          {"tensors", figures.tensors},
          {"first_open_seconds", figures.first},
          {"host_pinned", figures.host_pinned},
          {"load", figures.load.Summary()},
          {"bytes_per_second", figures.Rate()},
          {"floors", std::move(floors)}};
}

void PrintFigures(const std::vector<LoadFigures>& all, const BenchRig& rig,
                  const LoadSource& source) {
  Print("Loads to " + rig.place().Title() + " from " + source.text + " (" + rig.MachineText() +
        ")\n\n");
  Table table({">SIZE", ">TENSORS", "WHAT", ">MEDIAN", ">BEST", ">RATE", ">LOAD IS"});
  for (const LoadFigures& figures : all) {
    const std::string size = FormatSize(figures.bytes);
    const std::string tensors = std::to_string(figures.tensors);
    table.AddRow({size, tensors, "load", TimeText(figures.load.Median()),
                  TimeText(figures.load.Min()), RateText(figures.Rate()), ""});
    for (const Floor& floor : figures.floors) {
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
  Result<std::unique_ptr<BenchRig>> rig = BenchRig::Make(context, options.device);
  if (!rig.ok()) return FailBench(context, rig.status());
  if (const Status found = FindPeer(**rig, &*source); !found.ok()) return FailBench(context, found);
  std::vector<LoadFigures> all;
  for (const uint64_t bytes : *sizes) {
    for (const uint32_t tensors : options.tensors) {
      const BenchModelSpec spec = {.bytes = bytes,
                                   .tensors = tensors,
                                   .sparse = options.sparse,
                                   .directory = options.directory};
      Result<LoadFigures> figures = LoadBench(**rig, *source, spec).Run(options.runs);
      if (!figures.ok()) return FailBench(context, figures.status());
      all.push_back(std::move(*figures));
    }
  }
  if (!context.json) {
    PrintFigures(all, **rig, *source);
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const LoadFigures& figures : all) {
    results.push_back(FiguresJson(figures, **rig, options.from));
  }
  PrintJson({{"benchmark", "load"}, {"machine", (*rig)->Machine()}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

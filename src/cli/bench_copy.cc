// trims bench copy: how fast this machine moves bytes, without any of TrIMS: what the other
// benchmarks' figures can at best be. Needs no daemon.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cli/bench_rig.h"
#include "cli/bench_samples.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

constexpr uint64_t kMemcpyBytesMax = kGiB;

struct CopyFigures {
  std::string key;   // In JSON: "pinned_to_device".
  std::string text;  // For people.
  std::string from, to;
  unsigned threads = 0;  // 0: not of threads.
  uint64_t bytes = 0;
  Samples samples;

  double Rate(double seconds) const { return Ratio(static_cast<double>(bytes), seconds); }
};

class CopyBench final {
 public:
  CopyBench(const BenchOptions& options, TierNames names, const Interrupts& interrupts, bool json)
      : options_(options), names_(std::move(names)), interrupts_(interrupts), bar_(!json) {}

  // All that can be measured with so many bytes.
  Status Run(uint64_t bytes, std::vector<BenchDevice>& devices, const std::string& only_uuid) {
    RETURN_IF_ERROR(MeasureHost(bytes));
    for (BenchDevice& device : devices) {
      if (!only_uuid.empty() && device.uuid() != only_uuid) continue;
      RETURN_IF_ERROR(MeasureDevice(bytes, device));
      for (BenchDevice& peer : devices) {
        if (&peer == &device) continue;
        RETURN_IF_ERROR(Measure({.key = "peer_to_device",
                                 .text = Name(peer) + " to " + Name(device),
                                 .from = Name(peer),
                                 .to = Name(device),
                                 .bytes = bytes},
                                [&] { return device.MeasureCopyFrom(peer, bytes); }));
      }
    }
    return OkStatus();
  }

  const std::vector<CopyFigures>& figures() const { return figures_; }

 private:
  std::string Name(const BenchDevice& device) const { return names_.DeviceText(device.uuid()); }

  Status Measure(CopyFigures figures, const std::function<Result<double>()>& once) {
    bar_.Update({.label = figures.text});
    // The first one makes buffers and touches memory.
    const Result<double> ignored = once();
    RETURN_IF_ERROR(ignored.status());
    for (int i = 0; i < options_.runs; ++i) {
      RETURN_IF_ERROR(interrupts_.Check());
      ASSIGN_OR_RETURN(const double seconds, once());
      figures.samples.Add(seconds);
    }
    figures_.push_back(std::move(figures));
    bar_.Clear();
    return OkStatus();
  }

  Status MeasureHost(uint64_t bytes) {
    const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
    std::vector<unsigned> counts;
    for (unsigned threads = 1; threads < cores; threads *= 2) counts.push_back(threads);
    counts.push_back(cores);
    const uint64_t copied = std::min(bytes, kMemcpyBytesMax);
    {
      ASSIGN_OR_RETURN(const MemcpyFloor memcpy, MemcpyFloor::Make(copied));
      for (const unsigned threads : counts) {
        RETURN_IF_ERROR(Measure({.key = "host_memcpy",
                                 .text = "host memcpy" + Threads(threads),
                                 .from = "host",
                                 .to = "host",
                                 .threads = threads,
                                 .bytes = copied},
                                [&] { return Result<double>(memcpy.Measure(threads)); }));
      }
    }
    ASSIGN_OR_RETURN(
        const BenchModelFile file,
        BenchModelFile::Write(
            {.bytes = bytes, .directory = options_.directory}, interrupts_, [&](uint64_t done) {
              bar_.Update({.label = "writing a file", .done_bytes = done, .total_bytes = bytes});
            }));
    for (const unsigned threads : counts) {
      if (threads > ReadThreads()) break;
      RETURN_IF_ERROR(Measure(
          {.key = "page_cache_read",
           .text = "page cache to host" + Threads(threads),
           .from = "page cache",
           .to = "host",
           .threads = threads,
           .bytes = file.file_bytes()},
          [&] { return MeasureRead(file.path(), ReadKind::kPageCache, threads, interrupts_); }));
    }
    return OkStatus();
  }

  Status MeasureDevice(uint64_t bytes, BenchDevice& device) {
    using Copy = BenchDevice::Copy;
    const std::string name = Name(device);
    RETURN_IF_ERROR(Measure({.key = "pinned_to_device",
                             .text = "pinned host to " + name,
                             .from = "host",
                             .to = name,
                             .bytes = bytes},
                            [&] { return device.MeasureCopy(Copy::kFromHost, bytes); }));
    RETURN_IF_ERROR(Measure({.key = "device_to_pinned",
                             .text = name + " to pinned host",
                             .from = name,
                             .to = "host",
                             .bytes = bytes},
                            [&] { return device.MeasureCopy(Copy::kToHost, bytes); }));
    return Measure(
        {.key = "on_device", .text = "within " + name, .from = name, .to = name, .bytes = bytes},
        [&] { return device.MeasureCopy(Copy::kOnDevice, bytes); });
  }

  static std::string Threads(unsigned count) {
    return ", " + std::to_string(count) + (count == 1 ? " thread" : " threads");
  }

  const BenchOptions& options_;
  const TierNames names_;
  const Interrupts& interrupts_;
  ProgressBar bar_;
  std::vector<CopyFigures> figures_;
};

// The daemon's numbers of the devices where one runs, because that is what its commands
// accept; else this process's.
TierNames NamesOf(const Context& context, const std::vector<BenchDevice>& devices) {
  if (const Result<std::string> directory = RuntimeDir(context); directory.ok()) {
    if (Result<Connection> daemon = Connection::Open(*directory); daemon.ok()) {
      v1::GetStatusResponse status;
      if (daemon->GetStatus(v1::GetStatusRequest(), &status).ok() && status.devices_size() > 0) {
        return TierNames(status);
      }
    }
  }
  v1::GetStatusResponse own;
  for (const BenchDevice& device : devices) {
    v1::DeviceView* view = own.add_devices();
    view->set_ordinal(static_cast<uint32_t>(device.ordinal()));
    view->set_uuid(device.uuid());
  }
  return TierNames(own);
}

// The UUID of the device that was asked for, "" for all.
Result<std::string> OnlyDevice(const std::string& typed, const TierNames& names,
                               const std::vector<BenchDevice>& devices) {
  if (typed.empty()) return std::string();
  const std::string tier = names.Resolve(typed);
  std::string visible;
  for (const BenchDevice& device : devices) {
    if (tier == DeviceTierName(device.uuid())) return device.uuid();
    visible += (visible.empty() ? "" : ", ") + names.DeviceText(device.uuid());
  }
  return NotFoundError("this process sees no device " + typed + "; it sees " + visible);
}

Json FiguresJson(const CopyFigures& figures) {
  Json json = {{"copy", figures.key}, {"from", figures.from}, {"to", figures.to}};
  if (figures.threads > 0) json["threads"] = figures.threads;
  json.update({{"bytes", figures.bytes},
               {"times", figures.samples.Summary()},
               {"bytes_per_second", figures.Rate(figures.samples.Median())},
               {"best_bytes_per_second", figures.Rate(figures.samples.Min())}});
  return json;
}

Json MachineJson(const std::vector<BenchDevice>& devices, const TierNames& names) {
  Json list = Json::array();
  for (const BenchDevice& device : devices) {
    list.push_back({{"device", names.DeviceText(device.uuid())},
                    {"uuid", device.uuid()},
                    {"name", device.name()},
                    {"total_bytes", device.total_bytes()}});
  }
  return {{"cores", std::thread::hardware_concurrency()}, {"devices", std::move(list)}};
}

void PrintFigures(const std::vector<CopyFigures>& all, const Result<std::vector<BenchDevice>>& gpus,
                  const TierNames& names) {
  std::string machine = std::to_string(std::thread::hardware_concurrency()) + " cores";
  if (gpus.ok()) {
    for (const BenchDevice& device : *gpus) {
      machine += ", " + names.DeviceText(device.uuid()) + " is " + device.name();
    }
  }
  Print("Copies on this machine, without the daemon (" + Printable(machine) + ")\n\n");
  Table table({">SIZE", "COPY", ">MEDIAN", ">BEST", ">RATE", ">BEST RATE"});
  for (const CopyFigures& figures : all) {
    table.AddRow({FormatSize(figures.bytes), figures.text, TimeText(figures.samples.Median()),
                  TimeText(figures.samples.Min()), RateText(figures.Rate(figures.samples.Median())),
                  RateText(figures.Rate(figures.samples.Min()))});
  }
  Print(table.Render());
  if (!gpus.ok()) Print("\nno device: " + Printable(gpus.status().message()) + "\n");
}

}  // namespace

ExitCode RunBenchCopy(const Context& context, const BenchOptions& options) {
  const Result<std::vector<uint64_t>> sizes = BenchSizes(options);
  if (!sizes.ok()) return FailBench(context, sizes.status());
  Result<std::vector<BenchDevice>> opened = BenchDevice::OpenAll();
  if (!opened.ok() && !options.device.empty()) return FailBench(context, opened.status());
  std::vector<BenchDevice> none;
  std::vector<BenchDevice>& devices = opened.ok() ? *opened : none;
  const TierNames names = NamesOf(context, devices);
  const Result<std::string> only = OnlyDevice(options.device, names, devices);
  if (!only.ok()) return FailBench(context, only.status());
  const Interrupts interrupts;
  CopyBench bench(options, names, interrupts, context.json);
  for (const uint64_t bytes : *sizes) {
    if (const Status status = bench.Run(bytes, devices, *only); !status.ok()) {
      return FailBench(context, status);
    }
  }
  if (!context.json) {
    PrintFigures(bench.figures(), opened, names);
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const CopyFigures& figures : bench.figures()) results.push_back(FiguresJson(figures));
  PrintJson(
      {{"benchmark", "copy"}, {"machine", MachineJson(devices, names)}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

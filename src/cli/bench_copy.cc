// trims bench copy: how fast this machine moves bytes, without any of TrIMS: what the other
// benchmarks' figures can at best be. Needs no daemon.
#include <thread>
#include <vector>

#include "base/device_names.h"
#include "bench/copies.h"
#include "cli/bench_report.h"
#include "cli/connection.h"
#include "cli/text.h"
#include "cli/tiers.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

using bench::CopyFigures;
using bench::Device;

// The daemon's numbers of the devices where one runs, because that is what its commands
// accept; else this process's.
TierNames NamesOf(const Context& context, const std::vector<Device>& devices) {
  if (const Result<std::string> directory = RuntimeDir(context); directory.ok()) {
    if (Result<Connection> daemon = Connection::Open(*directory); daemon.ok()) {
      v1::GetStatusResponse status;
      if (daemon->GetStatus(v1::GetStatusRequest(), &status).ok() && status.devices_size() > 0) {
        return TierNames(status);
      }
    }
  }
  v1::GetStatusResponse own;
  for (const Device& device : devices) {
    v1::DeviceView* view = own.add_devices();
    view->set_ordinal(static_cast<uint32_t>(device.ordinal()));
    view->set_uuid(device.uuid());
  }
  return TierNames(own);
}

// The UUID of the device that was asked for, "" for all.
Result<std::string> OnlyDevice(const std::string& typed, const TierNames& names,
                               const std::vector<Device>& devices) {
  if (typed.empty()) return std::string();
  const std::string tier = names.Resolve(typed);
  std::string visible;
  for (const Device& device : devices) {
    if (tier == DeviceTierName(device.uuid())) return device.uuid();
    visible += (visible.empty() ? "" : ", ") + names.DeviceText(device.uuid());
  }
  return NotFoundError("this process sees no device " + typed + "; it sees " + visible);
}

Json FiguresJson(const CopyFigures& figures) {
  Json json = {{"copy", figures.key}, {"from", figures.from}, {"to", figures.to}};
  if (figures.threads > 0) json["threads"] = figures.threads;
  json.update({{"bytes", figures.bytes},
               {"times", SummaryJson(figures.samples)},
               {"bytes_per_second", figures.Rate(figures.samples.Median())},
               {"best_bytes_per_second", figures.Rate(figures.samples.Min())}});
  return json;
}

Json MachineJson(const std::vector<Device>& devices, const TierNames& names) {
  Json list = Json::array();
  for (const Device& device : devices) {
    list.push_back({{"device", names.DeviceText(device.uuid())},
                    {"uuid", device.uuid()},
                    {"name", device.name()},
                    {"total_bytes", device.total_bytes()}});
  }
  return {{"cores", std::thread::hardware_concurrency()}, {"devices", std::move(list)}};
}

void PrintFigures(const std::vector<CopyFigures>& all, const Result<std::vector<Device>>& gpus,
                  const TierNames& names) {
  std::string machine = std::to_string(std::thread::hardware_concurrency()) + " cores";
  if (gpus.ok()) {
    for (const Device& device : *gpus) {
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
  Result<std::vector<Device>> opened = Device::OpenAll();
  if (!opened.ok() && !options.device.empty()) return FailBench(context, opened.status());
  std::vector<Device> none;
  std::vector<Device>& devices = opened.ok() ? *opened : none;
  const TierNames names = NamesOf(context, devices);
  const Result<std::string> only = OnlyDevice(options.device, names, devices);
  if (!only.ok()) return FailBench(context, only.status());
  const bench::Interrupts interrupts;
  BenchProgress progress(!context.json);
  bench::CopyBench copies(
      {.runs = options.runs,
       .directory = options.directory,
       .only_uuid = *only,
       .name_of = [&names](const std::string& uuid) { return names.DeviceText(uuid); }},
      interrupts, progress);
  for (const uint64_t bytes : *sizes) {
    if (const Status status = copies.Run(bytes, devices); !status.ok()) {
      progress.Clear();
      return FailBench(context, status);
    }
  }
  if (!context.json) {
    PrintFigures(copies.figures(), opened, names);
    return ExitCode::kOk;
  }
  Json results = Json::array();
  for (const CopyFigures& figures : copies.figures()) results.push_back(FiguresJson(figures));
  PrintJson(
      {{"benchmark", "copy"}, {"machine", MachineJson(devices, names)}, {"results", results}});
  return ExitCode::kOk;
}

}  // namespace trims::cli

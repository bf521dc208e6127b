#include "bench/copies.h"

#include <algorithm>
#include <thread>

#include "base/limits.h"
#include "bench/memcpy_floor.h"
#include "bench/parallel.h"
#include "bench/read_floor.h"
#include "bench/weights_file.h"

namespace trims::bench {
namespace {

constexpr uint64_t kMemcpyBytesMax = kGiB;

std::string Threads(unsigned count) {
  return ", " + std::to_string(count) + (count == 1 ? " thread" : " threads");
}

}  // namespace

Status CopyBench::Run(uint64_t bytes, std::vector<Device>& devices) {
  RETURN_IF_ERROR(MeasureHost(bytes));
  for (Device& device : devices) {
    if (!options_.only_uuid.empty() && device.uuid() != options_.only_uuid) continue;
    RETURN_IF_ERROR(MeasureDevice(bytes, device));
    for (Device& peer : devices) {
      if (&peer == &device) continue;
      RETURN_IF_ERROR(Measure({.key = "peer_to_device",
                               .text = NameOf(peer) + " to " + NameOf(device),
                               .from = NameOf(peer),
                               .to = NameOf(device),
                               .bytes = bytes},
                              [&] { return device.MeasureCopyFrom(peer, bytes); }));
    }
  }
  return OkStatus();
}

Status CopyBench::Measure(CopyFigures figures, const std::function<Result<double>()>& once) {
  observer_.Show({.label = figures.text});
  // The first one makes buffers and touches memory.
  const Result<double> ignored = once();
  RETURN_IF_ERROR(ignored.status());
  for (int i = 0; i < options_.runs; ++i) {
    RETURN_IF_ERROR(interrupts_.Check());
    ASSIGN_OR_RETURN(const double seconds, once());
    figures.samples.Add(seconds);
  }
  figures_.push_back(std::move(figures));
  observer_.Clear();
  return OkStatus();
}

Status CopyBench::MeasureHost(uint64_t bytes) {
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
      const WeightsFile file,
      WeightsFile::Write(
          {.bytes = bytes, .directory = options_.directory}, interrupts_, [&](uint64_t done) {
            observer_.Show({.label = "writing a file", .done_bytes = done, .total_bytes = bytes});
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

Status CopyBench::MeasureDevice(uint64_t bytes, Device& device) {
  using Copy = Device::Copy;
  const std::string name = NameOf(device);
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

}  // namespace trims::bench

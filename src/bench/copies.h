// Copies: how fast this machine moves bytes, without any of TrIMS: what the other benchmarks'
// figures can at best be. Needs no daemon.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "bench/device.h"
#include "bench/interrupts.h"
#include "bench/observer.h"
#include "bench/samples.h"

namespace trims::bench {

struct CopyFigures {
  std::string key;   // In JSON: "pinned_to_device".
  std::string text;  // For people.
  std::string from, to;
  unsigned threads = 0;  // 0: not of threads.
  uint64_t bytes = 0;
  Samples samples;

  double Rate(double seconds) const { return Ratio(static_cast<double>(bytes), seconds); }
};

struct CopyOptions {
  int runs = 1;
  std::string directory;  // Where a file is written to be read.
  std::string only_uuid;  // Only to and from this device; empty: all.
  // What devices are called, by their UUIDs.
  std::function<std::string(const std::string& uuid)> name_of;
};

// One thread; what it refers to outlives it.
class CopyBench final {
 public:
  CopyBench(CopyOptions options, const Interrupts& interrupts, Observer& observer)
      : options_(std::move(options)), interrupts_(interrupts), observer_(observer) {}

  // All that can be measured with so many bytes: within the host, and with each device.
  Status Run(uint64_t bytes, std::vector<Device>& devices);

  const std::vector<CopyFigures>& figures() const { return figures_; }

 private:
  Status Measure(CopyFigures figures, const std::function<Result<double>()>& once);
  Status MeasureHost(uint64_t bytes);
  Status MeasureDevice(uint64_t bytes, Device& device);
  std::string NameOf(const Device& device) const { return options_.name_of(device.uuid()); }

  const CopyOptions options_;
  const Interrupts& interrupts_;
  Observer& observer_;
  std::vector<CopyFigures> figures_;
};

}  // namespace trims::bench

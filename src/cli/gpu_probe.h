// What this process can see of the machine's GPUs, and do with them. Loads the driver
// (up to 100 ms) and makes no context, so it takes no device memory from anybody.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace trims::cli {

struct GpuView {
  int ordinal = 0;  // In this process.
  std::string uuid;
  std::string name;
  uint64_t total_bytes = 0;
  bool supports_vmm = false;
  bool supports_posix_fd = false;
  // Small memory made, exported, imported again and mapped, as the daemon and a client do.
  Status tried;
  std::vector<std::string> unreachable_peers;  // UUIDs of visible devices that it can not read.
};

struct GpuProbe {
  std::string driver_version;  // "13.0"
  std::vector<GpuView> devices;
};

// UNAVAILABLE when there is no driver or no device, with what to do; UNIMPLEMENTED when
// this program was built without GPU support.
Result<GpuProbe> ProbeGpus();

}  // namespace trims::cli

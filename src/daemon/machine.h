// What this machine has, as far as the daemon's defaults depend on it. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/config.h"

namespace trims {

// Memory that this process may use: the machine's, or less when a control group
// limits it. `root` is "/" but in tests.
uint64_t UsableMemoryBytes(const std::string& root = "/");

// The host tier's budget: host_capacity, else memory_percentage of the usable memory.
uint64_t HostBudgetBytes(const DaemonConfig& config, const std::string& root = "/");

}  // namespace trims

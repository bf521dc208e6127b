// What this machine, and the control groups that this process is in, let it use:
// memory and cores. What they tell changes at any time. `root` is put before the
// paths that are read, for tests. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trims {

// Cores, from 1 to `most`.
int Cores(int most);

// A value of /proc/meminfo in bytes, or in pages where it counts pages:
// "MemTotal", "HugePages_Free". nullopt when the system does not tell it.
std::optional<uint64_t> MemInfo(std::string_view key, const std::string& root = "");

// The least limit of the control groups (v1 and v2) from that of the process up;
// UINT64_MAX without one.
uint64_t MemoryLimitBytes(const std::string& pid = "self", const std::string& root = "");

// Memory that this process may use: the machine's, or less when a control group
// limits it. 0 when the system does not tell how much there is.
uint64_t UsableMemoryBytes(const std::string& root = "");

// How much this process may still take before the kernel would have to kill
// something: the least of MemAvailable and of what each control group (v2) above
// still allows, page cache counted as free. UINT64_MAX when the system tells
// neither. An estimate: others take memory at the same time.
uint64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace trims

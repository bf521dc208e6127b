// How much memory a load may still take before the kernel would have to kill
// something. An estimate: others take memory at the same time. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace trims {

// The least of MemAvailable and of what each control group (v2) above this process
// still allows, page cache counted as free. UINT64_MAX when the system tells
// neither. `root` is put before the paths read, for tests.
uint64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace trims

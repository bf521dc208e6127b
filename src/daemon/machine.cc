#include "daemon/machine.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

namespace trims {
namespace {

uint64_t MemTotal(const std::string& root) {
  std::ifstream in(root + "proc/meminfo");
  std::string key;
  uint64_t value = 0;
  std::string unit;
  while (in >> key >> value) {
    std::getline(in, unit);
    if (key == "MemTotal:") return value * 1024;
  }
  return 0;
}

// The least memory.max on the way from our group (cgroup v2) to the root.
uint64_t ControlGroupLimit(const std::string& root) {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  std::ifstream groups(root + "proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    if (!line.starts_with("0::")) continue;
    std::string path = line.substr(3);
    for (;;) {
      std::ifstream limit(root + "sys/fs/cgroup" + path + "/memory.max");
      uint64_t bytes = 0;
      if (limit >> bytes) least = std::min(least, bytes);  // "max" is no number.
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos || path == "/") break;
      path.resize(slash);
    }
  }
  return least;
}

}  // namespace

uint64_t UsableMemoryBytes(const std::string& root) {
  return std::min(MemTotal(root), ControlGroupLimit(root));
}

uint64_t HostBudgetBytes(const DaemonConfig& config, const std::string& root) {
  if (config.host_capacity_bytes) return *config.host_capacity_bytes;
  return static_cast<uint64_t>(static_cast<double>(UsableMemoryBytes(root)) *
                               config.memory_percentage);
}

}  // namespace trims

// What the daemon was told, as values: no text, no origins, no rules. What each
// setting is called and may be is in daemon/settings.h, where the values come from
// in daemon/config_layers.h. Values; thread-compatible.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/units.h"  // Sizes and durations, for those who show or read settings.
#include "store/types.h"

namespace trims {

struct DaemonConfig {
  // Places.
  // TRIMS_RUNTIME_DIR; /run/trims for root, else $XDG_RUNTIME_DIR/trims, else /tmp/trims-<uid>.
  std::string runtime_dir;
  // TRIMS_STATE_DIR; /var/lib/trims for root, else $XDG_STATE_HOME/trims or ~/.local/state/trims.
  std::string state_dir;
  // UPR_BASE_DIR; $HOME/carml/data/mxnet/. With or without a trailing slash.
  std::string base_dir;
  uint32_t lease_socket_mode = 0666;
  uint32_t control_socket_mode = 0660;
  std::string admin_group;  // Group of control.sock; "" leaves the daemon's own.

  // Eviction and admission.
  store::PolicyKind eviction_policy = store::PolicyKind::kLru;  // UPRD_EVICTION_POLICY
  double estimation_rate = 1.0;                                 // UPRD_ESTIMATION_RATE, > 0
  double memory_percentage = 0.8;                               // UPRD_MEMORY_PERCENTAGE, (0, 1]
  bool persist_cpu = true;                                      // UPRD_PERSIST_CPU
  bool persist_only_cpu = false;                                // UPRD_PERSIST_ONLY_CPU
  bool estimate_with_internal_memory = true;  // UPRD_ESTIMATE_WITH_INTERNAL_MEMORY
  bool write_profile = false;                 // UPRD_WRITE_PROFILE
  std::string profile_target;                 // UPR_PROFILE_TARGET; server_profile.json
  std::optional<Duration> keep_alive;         // nullopt: for ever ("forever").
  // nullopt: memory_percentage of the machine's memory.
  std::optional<uint64_t> host_capacity_bytes;
  bool use_hugetlb = true;
  uint64_t slab_bytes = 0;  // Default kDefaultSlabBytes.

  // Devices.
  // "all", "none", or numbers and UUIDs of GPUs ("0,GPU-5f…"), as this process sees them.
  std::string devices = "all";
  // Of each device; nullopt: memory_percentage of its memory.
  std::optional<uint64_t> device_capacity_bytes;
  uint64_t pinned_pool_bytes = 0;  // For each device. Default kDefaultPinnedPoolBytes.
  uint64_t scrub_bytes_per_second =
      0;  // For each device; 0: no scrub. Default kDefaultScrubBytesPerSecond.
  std::vector<uint32_t> trusted_uids;  // Beside root and the daemon's own.

  // Loading.
  int loader_threads = 0;  // Models loaded at once; 0: min(4, cores).
  int io_threads = 0;      // For one load; 0: min(8, cores).

  // Quotas per uid.
  uint32_t sessions_per_uid_max = 0;
  uint32_t leases_per_uid_max = 0;
  uint64_t leased_bytes_per_uid_max = 0;

  std::string log_level = "info";  // trace, debug, info, warn, error
};

// The host tier's budget on a machine with so much usable memory (base/machine.h).
inline uint64_t HostBudgetBytes(const DaemonConfig& config, uint64_t usable_bytes) {
  return config.host_capacity_bytes.value_or(
      static_cast<uint64_t>(static_cast<double>(usable_bytes) * config.memory_percentage));
}

}  // namespace trims

// Every setting of the daemon, where it came from, and how it is read:
// flag > environment > trims.toml > default. One table in config.cc lists them
// all; flags, environment, file keys, `trims config show --origin` and the
// documentation come from that table. Values; thread-compatible.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
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

// How one setting got its value.
struct ConfigEntry {
  std::string key;     // As in trims.toml: "eviction_policy".
  std::string value;   // As a user would write it.
  std::string origin;  // "default", "/etc/trims/trims.toml:12", "environment UPRD_EVICTION_POLICY",
                       // "flag --eviction-policy".
  std::string env;     // Its variables, the one that wins first: "TRIMS_BASE_DIR, UPR_BASE_DIR".
  std::string help;
  bool reloadable = false;
};

struct LoadedConfig {
  DaemonConfig config;
  std::vector<ConfigEntry> entries;  // Every setting, in the table's order.
};

struct ConfigSources {
  std::map<std::string, std::string> flags;                              // Key -> text.
  std::function<std::optional<std::string>(const std::string&)> getenv;  // Null: the process's own.
  // Names that are set in the environment, so that misspelt ones are found;
  // nullopt: the process's own when `getenv` is null, else none.
  std::optional<std::vector<std::string>> env_names;
  std::vector<std::string> files;  // In rising precedence; a missing one is an error.
};

// What a command line and a document need to know of a setting.
struct ConfigKey {
  std::string key;            // "eviction_policy"
  std::string flag;           // "--eviction-policy"
  std::string env;            // As in ConfigEntry.
  std::string value_name;     // "POLICY", "SIZE", "BOOL" …
  std::string default_value;  // root's, where it depends on the user.
  std::string help;           // One sentence or two.
  bool reloadable = false;    // Else a change needs a restart.
};
// Every setting, in the order of the table.
const std::vector<ConfigKey>& ConfigKeys();

// The default search: /etc/trims/trims.toml, /etc/trims/conf.d/*.toml, or what
// TRIMS_CONFIG or --config names.
std::vector<std::string> DefaultConfigFiles(
    const std::function<std::optional<std::string>(const std::string&)>& getenv);

// INVALID_ARGUMENT names the flag, variable, or file and line, the text found and
// what was expected. Unknown keys are errors with the nearest known key. A
// variable that is set but empty counts as not set. NOT_FOUND for a missing file.
Result<LoadedConfig> LoadConfig(const ConfigSources& sources);
// The defaults with one file's text on top, no environment and no flags;
// `filename` only names the text in messages and origins. For `trims config
// check` and for tests.
Result<LoadedConfig> ParseConfigText(std::string_view text, const std::string& filename);
// A trims.toml that says every setting, each commented out with its default.
std::string DefaultConfigText();

// "64MiB", "8 GiB", "1.5GB"; a bare number is refused. "80%" is not a size.
Result<uint64_t> ParseSize(std::string_view text);
// "250ms", "5m", "1h30m", "0"; "forever" and negative numbers are nullopt. A bare number other than
// 0 is refused.
Result<std::optional<Duration>> ParseKeepAlive(std::string_view text);
// "true", "false", "1", "0", any case.
Result<bool> ParseBool(std::string_view text);
// What stands between commas, without spaces around it. Views into `text`.
std::vector<std::string_view> SplitList(std::string_view text);
std::string FormatSize(uint64_t bytes);         // "528.0 MiB"
std::string FormatDuration(Duration duration);  // "5m0s", "120us"

}  // namespace trims

// Where the value of each setting comes from: flag > environment > trims.toml >
// default. Puts the layers on one another, remembers what won, and says what was
// wrong with its place. What a setting may be is the table's to say
// (daemon/settings.h). Values; thread-compatible.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "daemon/config.h"
#include "daemon/settings.h"

namespace trims {

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
  std::map<std::string, std::string> flags;  // Key -> text.
  Getenv getenv;                             // Null: the process's own.
  // Names that are set in the environment, so that misspelt ones are found;
  // nullopt: the process's own when `getenv` is null, else none.
  std::optional<std::vector<std::string>> env_names;
  std::vector<std::string> files;  // In rising precedence; a missing one is an error.
};

// The default search: /etc/trims/trims.toml, /etc/trims/conf.d/*.toml, or what
// TRIMS_CONFIG or --config names.
std::vector<std::string> DefaultConfigFiles(const Getenv& getenv);

// INVALID_ARGUMENT names the flag, variable, or file and line, the text found and
// what was expected. Unknown keys are errors with the nearest known key. A
// variable that is set but empty counts as not set. NOT_FOUND for a missing file.
Result<LoadedConfig> LoadConfig(const ConfigSources& sources);
// The defaults with one file's text on top, no environment and no flags;
// `filename` only names the text in messages and origins. For `trims config
// check` and for tests.
Result<LoadedConfig> ParseConfigText(std::string_view text, const std::string& filename);
}  // namespace trims

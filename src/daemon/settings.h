// The table of all settings: key, variables, kind, default, help, what may be said
// and what takes effect without a restart. Flags, environment, file keys, `trims
// config show --origin` and the documentation come from it; DaemonConfig holds the
// values. Not here: where a value comes from and which of several wins
// (daemon/config_layers.h). Constant; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/config.h"

namespace trims {

enum class SettingKind : uint8_t {
  kPath,    // A directory; made absolute.
  kText,    // Free text without control characters.
  kChoice,  // One word of a list.
  kBool,
  kNumber,    // Written bare in TOML.
  kQuantity,  // Size or duration: a number with its unit, a string in TOML.
  kMode,      // Octal permission bits.
};

// What went wrong with a value: what was expected instead. nullopt: nothing did.
using Expected = std::optional<std::string>;

struct Setting {
  std::string_view key;
  std::string_view upr_env;  // The name of 2018, "" if there was none.
  SettingKind kind;
  std::string_view value_name;  // In `--help`.
  bool reloadable;
  // The default as the documentation shows it, where it depends on the user or
  // the machine; "" when `show` of a default DaemonConfig says it.
  std::string_view documented_default;
  Expected (*set)(DaemonConfig& config, std::string_view text);
  std::string (*show)(const DaemonConfig& config);  // What `set` reads back to the same value.
  std::string_view help;
};

// Every setting, in the order of documentation.
std::span<const Setting> Settings();
// Its place in the table.
std::optional<size_t> FindSetting(std::string_view key);
// "unknown setting "evict"; did you mean eviction_policy?", with what to do next.
std::string UnknownSetting(std::string_view key);

std::string FlagOf(std::string_view key);        // "--eviction-policy"
std::string VariableOf(const Setting& setting);  // "TRIMS_EVICTION_POLICY"
// All that are read, the one that wins first: "TRIMS_BASE_DIR, UPR_BASE_DIR".
std::string VariablesOf(const Setting& setting);

// The shortest decimal text that reads back to exactly `value`, with a point or an
// exponent, as a TOML float has.
std::string ExactNumber(double value);

// A variable's value. Null stands for the process's own environment.
using Getenv = std::function<std::optional<std::string>(const std::string&)>;
// nullopt when the variable is unset or empty.
std::optional<std::string> NonEmpty(const Getenv& getenv, const std::string& name);

// What holds where nothing was said: directories follow the user and XDG's variables.
DaemonConfig DefaultConfig(const Getenv& getenv);

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

}  // namespace trims

// trims.toml: how its text is read into values for the table of settings, and the
// file that documents them all. Reads no file itself and decides no precedence
// (daemon/config_layers.h). Any text is refused with its line or read; none aborts.
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims {

// One line of a file, before the table's rules have been applied to its value.
struct FileValue {
  size_t setting = 0;  // In Settings().
  std::string text;
  std::string origin;  // "/etc/trims/trims.toml:12"
  std::string where;   // "/etc/trims/trims.toml:12:5: log_level"; opens messages.
};
// Gives each value of `text` to `put`, ordered by key, until that refuses one.
// `filename` only names the text. INVALID_ARGUMENT for what is no TOML, has no
// setting's name, or is of a kind that the setting can not have.
Status ReadSettings(std::string_view text, const std::string& filename,
                    const std::function<Status(const FileValue&)>& put);

// A trims.toml that says every setting, each commented out with its default.
std::string DefaultConfigText();

}  // namespace trims

// Arbitrary text as trims.toml: refused with a message or accepted, and what is
// accepted is what a second reading of the resulting values gives.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "daemon/config_layers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto loaded = trims::ParseConfigText(text, "fuzz.toml");
  if (!loaded.ok()) {
    // An error that does not say where is a bug.
    if (loaded.status().message().find("fuzz.toml:") == std::string::npos) std::abort();
    return 0;
  }
  trims::ConfigSources sources;
  sources.getenv = [](const std::string&) { return std::nullopt; };
  for (const trims::ConfigEntry& entry : loaded->entries) sources.flags[entry.key] = entry.value;
  const auto again = trims::LoadConfig(sources);
  if (!again.ok()) std::abort();
  for (size_t i = 0; i < loaded->entries.size(); ++i) {
    if (again->entries[i].value != loaded->entries[i].value) std::abort();
  }
  return 0;
}

#include "base/device_names.h"

#include <strings.h>

#include <charconv>

namespace trims {
namespace {

constexpr size_t kOrdinalDigitsMax = 4;

std::optional<uint32_t> ParseOrdinal(std::string_view text) {
  uint32_t ordinal = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ordinal);
  if (text.size() > kOrdinalDigitsMax || error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return ordinal;
}

bool BeginsWith(std::string_view text, std::string_view beginning) {
  return text.size() >= beginning.size() &&
         ::strncasecmp(text.data(), beginning.data(), beginning.size()) == 0;
}

}  // namespace

std::string DeviceTierName(std::string_view uuid) {
  return std::string(kDeviceTierPrefix) + std::string(uuid);
}

std::vector<size_t> MatchDevices(std::string_view typed,
                                 const std::vector<NumberedDevice>& devices) {
  if (typed == "gpu") return devices.size() == 1 ? std::vector<size_t>{0} : std::vector<size_t>();
  std::vector<size_t> found;
  if (!typed.starts_with(kDeviceTierPrefix) || typed.size() == kDeviceTierPrefix.size())
    return found;
  const std::string_view rest = typed.substr(kDeviceTierPrefix.size());
  const std::optional<uint32_t> ordinal = ParseOrdinal(rest);
  for (size_t i = 0; i < devices.size(); ++i) {
    const std::string_view uuid = devices[i].uuid;
    // With or without "GPU-" in front.
    const bool is_it =
        ordinal ? devices[i].ordinal == ordinal
                : BeginsWith(uuid, rest) || BeginsWith(uuid.substr(uuid.find('-') + 1), rest);
    if (is_it) found.push_back(i);
  }
  return found;
}

}  // namespace trims

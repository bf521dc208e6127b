#include "base/device_names.h"

#include <strings.h>

#include <limits>

#include "base/units.h"

namespace trims {
namespace {

constexpr size_t kOrdinalDigitsMax = 4;

std::optional<uint32_t> ParseOrdinal(std::string_view text) {
  if (text.size() > kOrdinalDigitsMax) return std::nullopt;
  const std::optional<uint64_t> ordinal = ParseCount(text, std::numeric_limits<uint32_t>::max());
  if (!ordinal) return std::nullopt;
  return static_cast<uint32_t>(*ordinal);
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

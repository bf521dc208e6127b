// What tiers on devices are called, and what people write for them. No thread rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trims {

inline constexpr std::string_view kDeviceTierPrefix = "gpu:";

// "gpu:" and the UUID as the driver spells it.
std::string DeviceTierName(std::string_view uuid);

struct NumberedDevice {
  std::optional<uint32_t> ordinal;  // As the daemon counts.
  std::string uuid;
};

// Indices of the devices that `typed` can mean: "gpu:0" by number, "gpu:GPU-fa4e" and "gpu:fa4e"
// by the first digits of a UUID in any case, "gpu" where there is one device. Up to four decimal
// digits are always a number and never the beginning of a UUID.
std::vector<size_t> MatchDevices(std::string_view typed,
                                 const std::vector<NumberedDevice>& devices);

}  // namespace trims

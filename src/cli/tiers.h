// What tiers are called: people type "gpu:0", the daemon's answers say
// "gpu:GPU-fa4e…". Values; no thread rule.
#pragma once

#include <string>
#include <vector>

#include "base/device_names.h"
#include "base/status.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI
namespace trims::v1 {
class GetStatusResponse;
}

namespace trims::cli {

class Connection;

class TierNames final {
 public:
  TierNames() = default;  // Knows no device: every name stays as it is.
  explicit TierNames(const v1::GetStatusResponse& status);
  // The daemon's devices; none when it does not answer.
  static TierNames Ask(Connection& daemon);

  // For people: "gpu:0" as the daemon counts. With `whole`, and for what is no device
  // of the daemon, the name as it is.
  std::string Text(const std::string& tier, bool whole = false) const;
  std::string DeviceText(const std::string& uuid, bool whole = false) const;  // Of its tier.

  // The daemon's name for what people type (MatchDevices). What means no device, or several,
  // stays as it is, and the daemon says what is wrong with it.
  std::string Resolve(const std::string& typed) const;

 private:
  std::vector<NumberedDevice> devices_;
};

// Makes a tier's name of what is accepted after --device: "gpu:0", "0", "gpu", or a UUID with or
// without "gpu:". INVALID_ARGUMENT for what can not be a device.
Result<std::string> DeviceTier(const std::string& typed);

// --tier and --device, of which one may be given; both set `tier`, as it was typed.
void AddTierOptions(CLI::App* command, std::string& tier, const std::string& tier_help);
// --device alone; sets `tier`.
CLI::Option* AddDeviceOption(CLI::App* command, std::string& tier, const std::string& help);

// `tier` as the daemon calls it; asks the daemon only when that is a device.
std::string ResolveTier(Connection& daemon, const std::string& tier);

}  // namespace trims::cli

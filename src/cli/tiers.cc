#include "cli/tiers.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>

#include "base/text.h"
#include "base/units.h"
#include "cli/connection.h"

namespace trims::cli {
namespace {

constexpr std::string_view kGpu = "gpu";

}  // namespace

TierNames::TierNames(const v1::GetStatusResponse& status) {
  for (const v1::DeviceView& device : status.devices()) {
    devices_.push_back({.ordinal = device.ordinal(), .uuid = device.uuid()});
  }
}

TierNames TierNames::Ask(Connection& daemon) {
  v1::GetStatusResponse status;
  if (!daemon.GetStatus(v1::GetStatusRequest(), &status).ok()) return TierNames();
  return TierNames(status);
}

std::string TierNames::Text(const std::string& tier, bool whole) const {
  if (whole) return tier;
  for (const NumberedDevice& device : devices_) {
    if (tier == DeviceTierName(device.uuid)) {
      return std::string(kDeviceTierPrefix) + std::to_string(*device.ordinal);
    }
  }
  return tier;
}

std::string TierNames::DeviceText(const std::string& uuid, bool whole) const {
  return Text(DeviceTierName(uuid), whole);
}

std::string TierNames::Resolve(const std::string& typed) const {
  const std::vector<size_t> found = MatchDevices(typed, devices_);
  return found.size() == 1 ? DeviceTierName(devices_[found[0]].uuid) : typed;
}

Result<std::string> DeviceTier(const std::string& typed) {
  const std::string lower = Lower(typed);
  if (lower == kGpu) return std::string(kGpu);
  if (lower.starts_with(kDeviceTierPrefix) && lower.size() > kDeviceTierPrefix.size()) {
    return std::string(kDeviceTierPrefix) + typed.substr(kDeviceTierPrefix.size());
  }
  if (lower.starts_with("gpu-") || lower.starts_with("mig-") ||
      ParseCount(lower, std::numeric_limits<uint32_t>::max())) {
    return std::string(kDeviceTierPrefix) + typed;
  }
  return InvalidArgumentError(
      "\"" + typed +
      "\" is no device: gpu:0, a UUID such as GPU-fa4e…, its first digits as gpu:fa4e, or gpu "
      "where there is only one were expected");
}

CLI::Option* AddDeviceOption(CLI::App* command, std::string& tier, const std::string& help) {
  return command
      ->add_option_function<std::string>(
          "--device",
          [&tier](const std::string& typed) {
            Result<std::string> device = DeviceTier(typed);
            if (!device.ok()) throw CLI::ValidationError("--device", device.status().message());
            tier = *device;
          },
          help)
      ->type_name("DEVICE");
}

void AddTierOptions(CLI::App* command, std::string& tier, const std::string& tier_help) {
  CLI::Option* by_tier = command->add_option("--tier", tier, tier_help)->type_name("TIER");
  AddDeviceOption(command, tier, "The same for a GPU: gpu:0, a UUID, or gpu where there is one")
      ->excludes(by_tier);
}

std::string ResolveTier(Connection& daemon, const std::string& tier) {
  return tier.starts_with(kGpu) ? TierNames::Ask(daemon).Resolve(tier) : tier;
}

}  // namespace trims::cli

#include "cli/tiers.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>

#include "cli/connection.h"

namespace trims::cli {
namespace {

constexpr std::string_view kGpu = "gpu";
constexpr std::string_view kGpuColon = "gpu:";

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

std::optional<uint32_t> Ordinal(std::string_view text) {
  uint32_t ordinal = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ordinal);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return ordinal;
}

// Whether a UUID begins with `typed`, which may lack the "GPU-" in front.
bool Begins(const std::string& uuid, const std::string& typed) {
  const std::string whole = Lower(uuid);
  const size_t dash = whole.find('-');
  return whole.starts_with(typed) ||
         (dash != std::string::npos && whole.substr(dash + 1).starts_with(typed));
}

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
  if (whole || !tier.starts_with(kGpuColon)) return tier;
  for (const Device& device : devices_) {
    if (tier.substr(kGpuColon.size()) == device.uuid) {
      return std::string(kGpuColon) + std::to_string(device.ordinal);
    }
  }
  return tier;
}

std::string TierNames::Resolve(const std::string& typed) const {
  const auto name = [](const Device& device) { return std::string(kGpuColon) + device.uuid; };
  if (typed == kGpu) return devices_.size() == 1 ? name(devices_.front()) : typed;
  if (!typed.starts_with(kGpuColon) || typed.size() == kGpuColon.size()) return typed;
  const std::string rest = Lower(typed.substr(kGpuColon.size()));
  if (const std::optional<uint32_t> ordinal = Ordinal(rest)) {
    for (const Device& device : devices_) {
      if (device.ordinal == *ordinal) return name(device);
    }
  }
  const Device* found = nullptr;
  for (const Device& device : devices_) {
    if (!Begins(device.uuid, rest)) continue;
    if (found != nullptr) return typed;
    found = &device;
  }
  return found != nullptr ? name(*found) : typed;
}

Result<std::string> DeviceTier(const std::string& typed) {
  const std::string lower = Lower(typed);
  if (lower == kGpu) return std::string(kGpu);
  if (lower.starts_with(kGpuColon) && lower.size() > kGpuColon.size()) {
    return std::string(kGpuColon) + typed.substr(kGpuColon.size());
  }
  if (lower.starts_with("gpu-") || lower.starts_with("mig-") || Ordinal(lower)) {
    return std::string(kGpuColon) + typed;
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

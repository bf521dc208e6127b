#include "daemon/tiers.h"

#include <strings.h>

#include <algorithm>

#include "base/device_names.h"
#include "daemon/devices.h"

namespace trims {

Tiers::Tiers(std::vector<ServedTier> served, Devices* devices)
    : served_(std::move(served)), devices_(devices) {
  std::optional<store::TierIndex> host;
  for (store::TierIndex i = 0; i < served_.size(); ++i) {
    if (IsDevice(i)) {
      device_tiers_.push_back(i);
    } else {
      TRIMS_CHECK(!host.has_value());
      host = i;
    }
  }
  TRIMS_CHECK(host.has_value());
  host_ = *host;
}

uint64_t Tiers::largest_budget_bytes() const {
  uint64_t largest = 0;
  for (const ServedTier& served : served_) largest = std::max(largest, served.budget_bytes);
  return largest;
}

std::string Tiers::DeviceUuid(store::TierIndex index) const {
  return IsDevice(index) ? name(index).substr(kDeviceTierPrefix.size()) : std::string();
}

std::vector<store::TierConfig> Tiers::ForStore() const {
  std::vector<store::TierConfig> configs;
  for (const ServedTier& served : served_)
    configs.push_back({served.tier->name(), served.budget_bytes, served.tier->kind()});
  return configs;
}

std::optional<store::TierIndex> Tiers::ByName(std::string_view text) const {
  for (store::TierIndex i = 0; i < served_.size(); ++i) {
    const std::string& own = name(i);
    if (own.size() == text.size() && ::strncasecmp(own.data(), text.data(), text.size()) == 0)
      return i;
  }
  return std::nullopt;
}

Result<store::TierIndex> Tiers::Resolve(const std::string& text) const {
  if (const auto tier = ByName(text)) return *tier;
  std::vector<NumberedDevice> numbered;
  for (const store::TierIndex i : device_tiers_) {
    numbered.push_back(
        {devices_ == nullptr ? std::nullopt : devices_->OrdinalOf(name(i)), DeviceUuid(i)});
  }
  const std::vector<size_t> found = MatchDevices(text, numbered);
  if (found.size() == 1) return device_tiers_[found[0]];
  std::string known;
  for (store::TierIndex i = 0; i < served_.size(); ++i)
    known += (known.empty() ? "" : ", ") + name(i);
  std::string why;
  if (found.size() > 1) {
    why = " (several begin so)";
  } else if (text.starts_with("gpu") && device_tiers_.empty() && devices_ != nullptr) {
    why = " (no device: " + devices_->WhyNotServed("") + ")";
  }
  return NotFoundError("no tier \"" + text + "\"; this daemon has: " + known + why);
}

bool Tiers::PeerIsFaster(store::TierIndex to, store::TierIndex from) const {
  return devices_ != nullptr && devices_->PeerIsFaster(name(to), name(from));
}

void Tiers::HostExtentReady(const std::shared_ptr<const ResidentExtent>& extent) const {
  for (const store::TierIndex i : device_tiers_) served_[i].tier->HostExtentReady(extent);
}

void Tiers::HostExtentGone(const Digest& key) const {
  for (const store::TierIndex i : device_tiers_) served_[i].tier->HostExtentGone(key);
}

}  // namespace trims

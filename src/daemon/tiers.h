// The tiers of one worker, by their index in the store: what kind each is, what it
// is called, what it may take. Which of them is the host is known here and nowhere
// by number.
//
// Constant after construction; the tiers themselves are thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "store/types.h"
#include "tier/tier.h"

namespace trims {

class Devices;

struct ServedTier {
  std::unique_ptr<Tier> tier;
  uint64_t budget_bytes = 0;
};

class Tiers final {
 public:
  // Exactly one of `served` is the host's. `devices` is borrowed, and null where there are none.
  Tiers(std::vector<ServedTier> served, Devices* devices);
  Tiers(const Tiers&) = delete;
  Tiers& operator=(const Tiers&) = delete;

  size_t size() const { return served_.size(); }
  Tier& operator[](store::TierIndex index) const { return *served_[index].tier; }
  uint64_t budget_bytes(store::TierIndex index) const { return served_[index].budget_bytes; }
  uint64_t largest_budget_bytes() const;
  const std::string& name(store::TierIndex index) const { return served_[index].tier->name(); }
  bool IsDevice(store::TierIndex index) const {
    return served_[index].tier->kind() == store::TierKind::kDevice;
  }
  store::TierIndex host() const { return host_; }
  // The others, in the order of their index.
  const std::vector<store::TierIndex>& device_tiers() const { return device_tiers_; }
  // "" of the host.
  std::string DeviceUuid(store::TierIndex index) const;
  std::vector<store::TierConfig> ForStore() const;

  // By its whole name, in any case.
  std::optional<store::TierIndex> ByName(std::string_view name) const;
  // The same for what people write: "host", "gpu" where there is one, "gpu:0", or the first
  // digits of a UUID. NOT_FOUND lists the tiers, and says why a device is none.
  Result<store::TierIndex> Resolve(const std::string& text) const;

  Devices* devices() const { return devices_; }  // May be null.
  // Whether a device should take what another has rather than what host memory has.
  bool PeerIsFaster(store::TierIndex to, store::TierIndex from) const;

  // Tells device tiers what they could copy from host memory, or no longer.
  void HostExtentReady(const std::shared_ptr<const ResidentExtent>& extent) const;
  void HostExtentGone(const Digest& key) const;

 private:
  const std::vector<ServedTier> served_;
  Devices* const devices_;
  store::TierIndex host_ = 0;
  std::vector<store::TierIndex> device_tiers_;
};

}  // namespace trims

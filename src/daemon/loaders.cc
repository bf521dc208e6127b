#include "daemon/loaders.h"

#include <algorithm>
#include <thread>

namespace trims {

void DeviceLoaders::Release(std::vector<std::shared_ptr<const ResidentExtent>> extents) {
  {
    const std::lock_guard lock(mu_);
    ++releasing_;
  }
  releases_.Run([this, extents = std::move(extents)]() mutable {
    extents.clear();
    const std::lock_guard lock(mu_);
    --releasing_;
    released_.notify_all();
  });
}

void DeviceLoaders::WaitUntilReleased() {
  std::unique_lock lock(mu_);
  released_.wait(lock, [this] { return releasing_ == 0; });
}

void DeviceLoaders::WaitForRelease(Duration at_most) {
  std::unique_lock lock(mu_);
  released_.wait_for(lock, at_most);
}

Loaders::Loaders(int threads, const std::vector<store::TierIndex>& device_tiers)
    : named("trims-load", threads),
      passed("trims-load-fd", threads),
      foreign("trims-load-fuse", threads),
      background("trims-load-bg", 1),
      files("trims-files", 1) {
  for (const store::TierIndex tier : device_tiers) {
    if (devices_.size() <= tier) devices_.resize(tier + 1);
    devices_[tier] = std::make_unique<DeviceLoaders>();
  }
}

int ThreadCount(int configured, int most) {
  if (configured > 0) return configured;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, most);
}

}  // namespace trims

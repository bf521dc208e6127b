#include "daemon/loaders.h"

#include <utility>

#include "base/machine.h"

namespace trims {

void DeviceLoaders::Release(std::vector<std::shared_ptr<const ResidentExtent>> extents) {
  {
    const MutexLock lock(mu_);
    ++releasing_;
  }
  releases_.Run([this, extents = std::move(extents)]() mutable {
    extents.clear();
    const MutexLock lock(mu_);
    --releasing_;
    released_.NotifyAll();
  });
}

void DeviceLoaders::WaitUntilReleased() {
  const MutexLock lock(mu_);
  while (releasing_ > 0) released_.Wait(mu_);
}

void DeviceLoaders::WaitForRelease(Duration at_most) {
  const MutexLock lock(mu_);
  released_.WaitUntil(mu_, Now() + at_most);
}

Loaders::Loaders(int threads, const std::vector<store::TierIndex>& device_tiers)
    : named("trims-load", threads),
      passed("trims-load-fd", threads),
      foreign("trims-load-fuse", threads),
      background("trims-load-bg", 1),
      files("trims-files", 1),
      closing("trims-close", 1) {
  for (const store::TierIndex tier : device_tiers) {
    if (devices_.size() <= tier) devices_.resize(tier + 1);
    devices_[tier] = std::make_unique<DeviceLoaders>();
  }
}

int ThreadCount(int configured, int most) {
  if (configured > 0) return configured;
  return Cores(most);
}

}  // namespace trims

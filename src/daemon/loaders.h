// The threads on which the worker does what may take long or never end: reading
// files, hashing, loading, checking. Each kind of work has threads of its own, so
// that what hangs takes nothing with it but what is asked of it.
//
// Thread-safe. Destroyed before anything that its jobs use; the destructor waits
// for running jobs and drops queued ones.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "daemon/loader_pool.h"
#include "store/types.h"
#include "tier/tier.h"

namespace trims {

// Of one device.
class DeviceLoaders final {
 public:
  DeviceLoaders() = default;

  // Memory on its way back to the driver, which takes up to milliseconds.
  void Release(std::vector<std::shared_ptr<const ResidentExtent>> extents);
  // A load that follows an eviction counts on its memory. With `at_most` (from now) also
  // returns when anything else may have freed some.
  void WaitUntilReleased();
  void WaitForRelease(Duration at_most);

 private:
  Mutex mu_;
  CondVar released_;
  size_t releasing_ TRIMS_GUARDED_BY(mu_) = 0;

  // Last, and loads, which wait for releases, end first.
  LoaderPool releases_{"trims-release", 1};

 public:
  LoaderPool checks{"trims-check", 1};
  LoaderPool loads{"trims-load-gpu", 2};
};

class Loaders final {
 public:
  // `threads` for each of the pools that load models from files.
  Loaders(int threads, const std::vector<store::TierIndex>& device_tiers);

  // Null for the host.
  DeviceLoaders* device(store::TierIndex tier) const {
    return tier < devices_.size() ? devices_[tier].get() : nullptr;
  }

  LoaderPool named;       // Files that the catalogue names.
  LoaderPool passed;      // Files that clients pass.
  LoaderPool foreign;     // The same on file systems that a user serves (FUSE).
  LoaderPool background;  // Loads and measurements that nobody waits for.
  LoaderPool files;       // Second looks at named files that are watched.
  LoaderPool closing;     // Letting go of named files and watches, whatever they lie on.

 private:
  std::vector<std::unique_ptr<DeviceLoaders>> devices_;  // By tier.
};

// `configured`, or as many as there are cores, at most `most`.
int ThreadCount(int configured, int most);

}  // namespace trims

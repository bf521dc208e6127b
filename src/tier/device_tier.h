// Device memory as a tier: one allocation per extent, mapped for reading by the
// processes that lease it. Exists only in builds with CUDA headers (TRIMS_HAVE_CUDA).
//
// What it lends is the descriptor of the allocation, exported once. Who holds it keeps
// the memory alive, and could map it writable: the driver offers nothing against that.
// Therefore every extent carries the keyed hash of its bytes (ResidentExtent::integrity),
// which Verify computes anew on the device.
//
// Loads read files in chunks into pinned memory, check each against the manifest, and
// copy it while the next is read. Extents that are resident in host memory or on
// another device are copied from there; a copy from a device must have the hash that
// the extent had there, or it is loaded from elsewhere.
//
// Thread-safe, like every Tier. Extents and what clients map outlive the tier. A tier is
// destroyed when none of its calls is running.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/limits.h"
#include "base/status.h"
#include "base/universal_hash.h"
#include "cuda/device.h"
#include "tier/host_pins.h"
#include "tier/tier.h"

namespace trims {

struct DeviceTierOptions {
  cuda::Device device;
  // The same for all devices and for the next worker.
  std::shared_ptr<const UniversalHashKey> key;
  int io_threads = 0;  // For one load; 0: min(16, cores).
  // What loads read files into, prepared in the background. Each thread uses two
  // buffers of kChunkBytes.
  uint64_t pinned_pool_bytes = kDefaultPinnedPoolBytes;
  HostPins* pins = nullptr;  // Borrowed, outlives the tier; null: host extents are not pinned.
};

// Retains the device's context (0.2 s, the first time in this process) and keeps it.
// UNIMPLEMENTED when the device can not share memory between processes, or when
// this build has no code for it.
Result<std::unique_ptr<Tier>> MakeDeviceTier(const DeviceTierOptions& options);

// Of a tier made by MakeDeviceTier: how much of its pinned pool is ready.
uint64_t PinnedPoolBytes(const Tier& device_tier);

// For tests and benchmarks: blocks until a tier made by MakeDeviceTier has prepared its
// pool. Returns why that is smaller than asked for, or OK.
Status WaitUntilPrepared(const Tier& device_tier);

}  // namespace trims

// Extents in device memory, as a client maps them: for reading, by the device they lie on.
//
// The driver is loaded by the first call and never before: a program that opens host
// memory only has nothing of CUDA in it. No context is made or made current; the driver maps
// for the process, so the pointers work in whatever contexts the program has on the device.
//
// In a build without CUDA's headers every call says so (UNIMPLEMENTED). Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims::client {

// A device as this process sees it.
struct TargetDevice {
  std::string uuid;  // As the driver spells it.
  int ordinal = -1;
};

// The device with this UUID or, when that is empty, this number. UNAVAILABLE: there is no driver or
// it does not work here, and what to do; NOT_FOUND: what is visible instead, and
// CUDA_VISIBLE_DEVICES.
Result<TargetDevice> FindTargetDevice(const std::string& uuid, int ordinal);

class DeviceExtent final {
 public:
  // Maps what the daemon sent: `fd` is closed, the mapping keeps the memory. Fails for a descriptor
  // that is no device memory, lies on another device, or has not `bytes` bytes.
  static Result<DeviceExtent> Map(const TargetDevice& device, UniqueFd fd, uint64_t bytes);

  // Its end unmaps and waits for nothing; in a forked child, where the driver may not be
  // called and the mapping is the parent's, it does nothing.
  DeviceExtent(DeviceExtent&&) noexcept = default;
  DeviceExtent& operator=(DeviceExtent&&) noexcept = default;

  uint64_t pointer() const { return pointer_; }  // CUdeviceptr.

 private:
  struct Mapping;
  struct Unmapper {
    void operator()(Mapping* mapping) const;
  };
  DeviceExtent(Mapping* mapping, uint64_t pointer) : mapping_(mapping), pointer_(pointer) {}

  std::unique_ptr<Mapping, Unmapper> mapping_;
  uint64_t pointer_ = 0;
};

}  // namespace trims::client

#include "client/device_extent.h"

#ifdef TRIMS_HAVE_CUDA
#include <strings.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#endif

namespace trims::client {

#ifdef TRIMS_HAVE_CUDA

namespace {

// What this process sees, which does not change while it lives. Reading it costs a dozen
// calls of the driver for each device, so it is read once. Leaked, like the driver.
Result<const std::vector<cuda::Device>*> VisibleDevices() {
  // Also says that a forked child can not use the driver of its parent.
  ASSIGN_OR_RETURN(const cuda::Driver* const driver, cuda::Driver::Load());
  static Mutex& mutex = *new Mutex;
  static const std::vector<cuda::Device>* devices TRIMS_GUARDED_BY(mutex) = nullptr;
  const MutexLock lock(mutex);
  if (devices == nullptr) {
    ASSIGN_OR_RETURN(std::vector<cuda::Device> found, driver->Devices());
    devices = new std::vector<cuda::Device>(std::move(found));
  }
  return devices;
}

}  // namespace

struct DeviceExtent::Mapping {
  cuda::DeviceMapping mapping;
  pid_t owner = ::getpid();
};

void DeviceExtent::Unmapper::operator()(Mapping* mapping) const {
  // In a child it is left behind: nothing but the driver can undo it, and that belongs
  // to the parent.
  if (mapping->owner == ::getpid()) delete mapping;
}

Result<TargetDevice> FindTargetDevice(const std::string& uuid, int ordinal) {
  ASSIGN_OR_RETURN(const std::vector<cuda::Device>* const devices, VisibleDevices());
  std::string seen;
  for (const cuda::Device& device : *devices) {
    const bool is_it = uuid.empty() ? device.ordinal() == ordinal
                                    : ::strcasecmp(device.uuid().c_str(), uuid.c_str()) == 0;
    if (is_it) return TargetDevice{device.uuid(), device.ordinal()};
    seen += (seen.empty() ? "" : ", ") + std::to_string(device.ordinal()) + ": " + device.uuid();
  }
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return NotFoundError(
      (uuid.empty() ? "there is no device " + std::to_string(ordinal) + " in this process"
                    : "device " + uuid + " is not visible to this process") +
      ", which sees " + seen +
      (visible != nullptr ? " (CUDA_VISIBLE_DEVICES is \"" + std::string(visible) + "\")" : "") +
      "; name one of these, or give the process or its container the device");
}

Result<DeviceExtent> DeviceExtent::Map(const TargetDevice& target, UniqueFd fd, uint64_t bytes) {
  ASSIGN_OR_RETURN(const std::vector<cuda::Device>* const devices, VisibleDevices());
  const cuda::Device& device = devices->at(static_cast<size_t>(target.ordinal));
  ASSIGN_OR_RETURN(const cuda::PhysicalMemory memory,
                   cuda::PhysicalMemory::Import(device, fd.get(), bytes));
  ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                   cuda::DeviceMapping::Map(memory, cuda::Access::kRead));
  const uint64_t pointer = mapping.pointer();
  return DeviceExtent(new Mapping{std::move(mapping)}, pointer);
}

#else

struct DeviceExtent::Mapping {};

void DeviceExtent::Unmapper::operator()(Mapping* mapping) const { delete mapping; }

Result<TargetDevice> FindTargetDevice(const std::string&, int) {
  return UnimplementedError(
      "this libtrims was built without GPU support; open on the host tier, or use one that was "
      "built where CUDA's headers are installed");
}

Result<DeviceExtent> DeviceExtent::Map(const TargetDevice& device, UniqueFd, uint64_t) {
  return FindTargetDevice(device.uuid, device.ordinal).status();
}

#endif

}  // namespace trims::client

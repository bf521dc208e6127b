#include "cli/gpu_probe.h"

#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"

namespace trims::cli {
namespace {

Status TrySharing(const cuda::Device& device) {
  ASSIGN_OR_RETURN(const uint64_t bytes, cuda::PhysicalMemory::Granularity(device));
  ASSIGN_OR_RETURN(cuda::PhysicalMemory memory, cuda::PhysicalMemory::Create(device, bytes));
  ASSIGN_OR_RETURN(const UniqueFd fd, memory.Export());
  ASSIGN_OR_RETURN(cuda::PhysicalMemory imported,
                   cuda::PhysicalMemory::Import(device, fd.get(), memory.size()));
  ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                   cuda::DeviceMapping::Map(imported, cuda::Access::kRead));
  RETURN_IF_ERROR(mapping.Unmap());
  RETURN_IF_ERROR(imported.Release());
  return memory.Release();
}

}  // namespace

Result<GpuProbe> ProbeGpus() {
  ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<cuda::Device> devices, driver->Devices());
  GpuProbe probe;
  probe.driver_version = driver->VersionText();
  for (const cuda::Device& device : devices) {
    GpuView view;
    view.ordinal = device.ordinal();
    view.uuid = device.uuid();
    view.name = device.name();
    view.total_bytes = device.total_bytes();
    view.supports_vmm = device.supports_vmm();
    view.supports_posix_fd = device.supports_posix_fd();
    if (view.supports_vmm && view.supports_posix_fd) view.tried = TrySharing(device);
    for (const cuda::Device& peer : devices) {
      const Result<bool> reachable = device.CanAccessPeer(peer);
      if (!reachable.ok() || !*reachable) view.unreachable_peers.push_back(peer.uuid());
    }
    probe.devices.push_back(std::move(view));
  }
  return probe;
}

}  // namespace trims::cli

// The driver's functions for devices and contexts, and those that steer it, over the machine of
// machine.h. fake_cuda.h says what they promise.
#include "fake_cuda/fake_cuda.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fake_cuda/faults.h"
#include "fake_cuda/machine.h"
#include "fake_cuda/process.h"
#include "fake_cuda/work.h"

using fake_cuda::DeviceAt;
using fake_cuda::ErrorOf;
using fake_cuda::Faults;
using fake_cuda::FindRange;
using fake_cuda::KernelEntry;
using fake_cuda::Links;
using fake_cuda::Machine;
using fake_cuda::MachineDevice;
using fake_cuda::PopContext;
using fake_cuda::Process;
using fake_cuda::PushContext;
using fake_cuda::QueuesOf;
using fake_cuda::Range;
using fake_cuda::Registry;
using fake_cuda::WorkQueue;

namespace {

struct ErrorText {
  CUresult result;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {CUDA_ERROR_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE",
     "CUDA-capable device(s) is/are busy or unavailable"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {CUDA_ERROR_ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE",
     "uncorrectable ECC error encountered"},
    {CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {CUDA_ERROR_NVLINK_UNCORRECTABLE, "CUDA_ERROR_NVLINK_UNCORRECTABLE",
     "uncorrectable NVLink error detected during the execution"},
    {CUDA_ERROR_OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM",
     "OS call failed or operation not supported on this OS"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS",
     "an illegal memory access was encountered"},
    {CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
     "peer access is already enabled"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_SYSTEM_NOT_READY, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

CUresult ErrorTextOf(CUresult error, const char** out, const char* ErrorText::*member) {
  for (const ErrorText& known : kErrors) {
    if (known.result == error) {
      *out = known.*member;
      return CUDA_SUCCESS;
    }
  }
  *out = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

extern "C" {

// --- Errors, start, devices ------------------------------------------------------------

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** out) {
  return ErrorTextOf(error, out, &ErrorText::name);
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char** out) {
  return ErrorTextOf(error, out, &ErrorText::text);
}

CUresult CUDAAPI cuInit(unsigned int flags) {
  Process& process = Process::Get();
  if (const CUresult planned = Faults::Get().Count("cuInit"); planned != CUDA_SUCCESS) {
    return planned;
  }
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(process.mutex);
  const size_t devices = Machine::Get().visible().size();
  if (devices == 0) return CUDA_ERROR_NO_DEVICE;
  if (process.pid != 0)
    return process.pid == ::getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
  for (size_t ordinal = 0; ordinal < devices; ++ordinal) {
    process.contexts.push_back(std::make_unique<CUctx_st>());
    process.contexts.back()->ordinal = static_cast<int>(ordinal);
    process.links.push_back(std::make_unique<Links>());
  }
  process.pid = ::getpid();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDriverGetVersion(int* version) {
  if (const CUresult planned = Faults::Get().Count("cuDriverGetVersion"); planned != CUDA_SUCCESS) {
    return planned;
  }
  *version = Machine::Get().version();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetCount(int* count) {
  ENTER("cuDeviceGetCount");
  *count = static_cast<int>(Machine::Get().visible().size());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER("cuDeviceGet");
  if (DeviceAt(ordinal) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
  ENTER("cuDeviceGetName");
  if (DeviceAt(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(name, static_cast<size_t>(length), "Fake CUDA device");
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  ENTER("cuDeviceGetUuid");
  const MachineDevice* found = DeviceAt(device);
  if (found == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::memcpy(uuid->bytes, found->uuid.data(), sizeof uuid->bytes);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
  ENTER("cuDeviceGetPCIBusId");
  const MachineDevice* found = DeviceAt(device);
  if (found == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(id, static_cast<size_t>(length), "0000:%02X:00.0", 0x10 + found->index);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  ENTER("cuDeviceTotalMem");
  const MachineDevice* found = DeviceAt(device);
  if (found == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = found->bytes;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ENTER("cuDeviceGetAttribute");
  if (DeviceAt(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const Machine& machine = Machine::Get();
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = 0;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 4;
      break;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      *value = machine.lacks_vmm() ? 0 : 1;
      break;
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
      *value = machine.lacks_posix_fd() ? 0 : 1;
      break;
    case CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED:
      *value = machine.lacks_read_only_registration() ? 0 : 1;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  ENTER("cuDeviceCanAccessPeer");
  if (DeviceAt(device) == nullptr || DeviceAt(peer) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *can = device != peer && !Machine::Get().lacks_peer() ? 1 : 0;
  return CUDA_SUCCESS;
}

// --- Contexts -------------------------------------------------------------------------

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER("cuDevicePrimaryCtxRetain");
  const MachineDevice* found = DeviceAt(device);
  if (found == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (const CUresult broken = Machine::Get().Broken(found->index); broken != CUDA_SUCCESS) {
    return broken;
  }
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  CUctx_st* primary = process.contexts[static_cast<size_t>(device)].get();
  ++primary->retained;
  *context = primary;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
  ENTER("cuDevicePrimaryCtxRelease");
  if (DeviceAt(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  CUctx_st* primary = process.contexts[static_cast<size_t>(device)].get();
  if (primary->retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--primary->retained == 0) {
    primary->error = 0;  // The next one is a new context.
    primary->peers.clear();
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
  ENTER("cuCtxPushCurrent");
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (context->retained == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return PushContext(context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
  // Never fails as planned: nothing could make up for it.
  CUctx_st* const popped = PopContext();
  if (popped == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *context = popped;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSynchronize(void) {
  ENTER_CONTEXT("cuCtxSynchronize");
  for (const std::shared_ptr<WorkQueue>& queue : QueuesOf(context)) queue->Drain();
  return ErrorOf(context);
}

CUresult CUDAAPI cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
  ENTER_CONTEXT("cuCtxEnablePeerAccess");
  if (peer == nullptr || peer == context || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (Machine::Get().lacks_peer()) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  const std::lock_guard lock(Process::Get().mutex);
  return context->peers.insert(peer).second ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
  ENTER_CONTEXT("cuMemGetInfo");
  const MachineDevice& device = *DeviceAt(context->ordinal);
  *free = Machine::Get().FreeBytes(device);
  *total = device.bytes;
  return CUDA_SUCCESS;
}

// --- Steering -------------------------------------------------------------------------

void fake_cuda_register_kernel(const char* name, fake_cuda_kernel kernel, const size_t* sizes,
                               size_t count) {
  Registry& registry = Registry::Get();
  const std::lock_guard lock(registry.mutex);
  registry.kernels[name] =
      KernelEntry{.run = kernel, .sizes = std::vector<size_t>(sizes, sizes + count)};
}

int fake_cuda_may_access(const void* pointer, size_t bytes, int write, int device) {
  const std::lock_guard lock(Process::Get().mutex);
  const Range* range = FindRange(reinterpret_cast<uintptr_t>(pointer), bytes);
  return range != nullptr && range->Allows(write != 0, device) ? 1 : 0;
}

int fake_cuda_fail(const char* spec) { return Faults::Get().Plan(spec) ? 0 : -1; }

uint64_t fake_cuda_calls(const char* name) { return Faults::Get().Calls(name); }

void fake_cuda_count(fake_cuda_objects* objects) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  *objects = fake_cuda_objects{};
  objects->handles = process.handles.size();
  objects->reservations = process.reservations.size();
  for (const auto& [pointer, range] : process.ranges) {
    ++(range.buffer ? objects->buffers : objects->mappings);
  }
  for (const auto& [pointer, range] : process.host) {
    ++(range.allocated ? objects->pinned_buffers : objects->registrations);
  }
  objects->streams = process.streams.size();
  objects->events = process.events.size();
  objects->modules = process.modules.size();
  for (const std::unique_ptr<CUctx_st>& context : process.contexts) {
    objects->retained_contexts += static_cast<uint64_t>(context->retained.load());
  }
}

void fake_cuda_poison(int device, int result) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (device < 0 || device >= static_cast<int>(process.contexts.size())) return;
  process.contexts[static_cast<size_t>(device)]->Break(static_cast<CUresult>(result));
}

}  // extern "C"

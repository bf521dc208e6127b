// The driver's functions for memory: of devices, by handles and mappings or as buffers, and of
// the host.
#include <fcntl.h>
#include <sys/mman.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "fake_cuda/machine.h"
#include "fake_cuda/process.h"
#include "fake_cuda/work.h"

using fake_cuda::Backing;
using fake_cuda::DeviceAt;
using fake_cuda::Handle;
using fake_cuda::HostRange;
using fake_cuda::kGranularity;
using fake_cuda::Machine;
using fake_cuda::MachineDevice;
using fake_cuda::OrdinalOf;
using fake_cuda::Process;
using fake_cuda::QueuesOf;
using fake_cuda::Range;
using fake_cuda::WorkQueue;

namespace {

// Address space, aligned as device memory is, that nobody may touch.
void* ReserveAddresses(uint64_t bytes) {
  const uint64_t wanted = bytes + kGranularity;
  void* found =
      ::mmap(nullptr, wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(found);
  const uintptr_t aligned = (begin + kGranularity - 1) / kGranularity * kGranularity;
  if (aligned != begin) ::munmap(found, aligned - begin);
  const uintptr_t end = begin + wanted;
  ::munmap(reinterpret_cast<void*>(aligned + bytes), end - aligned - bytes);
  return reinterpret_cast<void*>(aligned);
}

// Waits until nobody works on the range any more. Needs the mutex, as `lock`.
void CloseRange(Range& range, std::unique_lock<std::mutex>& lock) {
  range.closing = true;
  Process::Get().idle.wait(lock, [&range] { return range.busy == 0; });
}

// Whether this process may read, and with `write` write, all of a host range. The
// real driver finds out by pinning the pages.
bool HostAccessible(const void* pointer, uint64_t bytes, bool write) {
  auto at = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t end = at + bytes;
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (at < end && std::getline(maps, line)) {
    unsigned long begin = 0;
    unsigned long past = 0;
    char read = '-';
    char writable = '-';
    if (std::sscanf(line.c_str(), "%lx-%lx %c%c", &begin, &past, &read, &writable) != 4) continue;
    if (past <= at) continue;
    if (begin > at || read != 'r' || (write && writable != 'w')) return false;
    at = past;
  }
  return at >= end;
}

}  // namespace

extern "C" {

// --- Virtual memory management -----------------------------------------------------------

CUresult CUDAAPI cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp* prop,
                                               CUmemAllocationGranularity_flags) {
  ENTER("cuMemGetAllocationGranularity");
  if (DeviceAt(prop->location.id) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *granularity = kGranularity;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                             const CUmemAllocationProp* prop, unsigned long long flags) {
  ENTER("cuMemCreate");
  const Machine& machine = Machine::Get();
  if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || flags != 0 || bytes == 0 ||
      bytes % kGranularity != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (machine.lacks_vmm() ||
      (machine.lacks_posix_fd() &&
       prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const MachineDevice* device = DeviceAt(prop->location.id);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (const CUresult broken = machine.Broken(device->index); broken != CUDA_SUCCESS) return broken;
  Handle made;
  if (const CUresult result = Machine::Get().Allocate(*device, bytes, &made.backing);
      result != CUDA_SUCCESS) {
    return result;
  }
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  *handle = process.next_handle++;
  process.handles.emplace(*handle, std::move(made));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
  ENTER("cuMemRelease");
  Process& process = Process::Get();
  std::string file;
  {
    const std::lock_guard lock(process.mutex);
    const auto found = process.handles.find(handle);
    if (found == process.handles.end()) return CUDA_ERROR_INVALID_VALUE;
    file = found->second.backing.file;
    process.handles.erase(found);
  }
  Machine::Get().Reap(file);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle,
                                              CUmemAllocationHandleType type,
                                              unsigned long long flags) {
  ENTER("cuMemExportToShareableHandle");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.handles.find(handle);
  if (found == process.handles.end() || found->second.imported || flags != 0 ||
      type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Inherited by exec, unless the caller sees to it.
  const int fd = ::fcntl(found->second.backing.fd.get(), F_DUPFD, 0);
  if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  *static_cast<int*>(out) = fd;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* from,
                                                CUmemAllocationHandleType type) {
  ENTER("cuMemImportFromShareableHandle");
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
  Handle made{.imported = true};
  const int fd = static_cast<int>(reinterpret_cast<uintptr_t>(from));
  if (const CUresult result = Machine::Get().Open(fd, &made.backing); result != CUDA_SUCCESS) {
    // So says the driver of what is no memory of its own.
    return result == CUDA_ERROR_INVALID_VALUE ? CUDA_ERROR_UNKNOWN : result;
  }
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  *handle = process.next_handle++;
  process.handles.emplace(*handle, std::move(made));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* prop,
                                                        CUmemGenericAllocationHandle handle) {
  ENTER("cuMemGetAllocationPropertiesFromHandle");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.handles.find(handle);
  if (found == process.handles.end()) return CUDA_ERROR_INVALID_VALUE;
  *prop = CUmemAllocationProp{};
  prop->type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop->requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  prop->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop->location.id = OrdinalOf(found->second.backing.device);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment,
                                     CUdeviceptr wanted, unsigned long long flags) {
  ENTER("cuMemAddressReserve");
  if (bytes == 0 || bytes % kGranularity != 0 || alignment > kGranularity || wanted != 0 ||
      flags != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  void* found = ReserveAddresses(bytes);
  if (found == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  *pointer = reinterpret_cast<CUdeviceptr>(found);
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.reservations.emplace(*pointer, bytes);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
  ENTER("cuMemAddressFree");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.reservations.find(pointer);
  if (found == process.reservations.end() || found->second != bytes ||
      process.ranges.count(pointer) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  ::munmap(reinterpret_cast<void*>(pointer), bytes);
  process.reservations.erase(found);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
                          CUmemGenericAllocationHandle handle, unsigned long long flags) {
  ENTER("cuMemMap");
  if (offset != 0) return CUDA_ERROR_NOT_SUPPORTED;
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.handles.find(handle);
  const auto reserved = process.reservations.find(pointer);
  if (flags != 0 || found == process.handles.end() || reserved == process.reservations.end() ||
      reserved->second != bytes || found->second.backing.bytes != bytes ||
      process.ranges.count(pointer) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Backing& backing = found->second.backing;
  if (::mmap(reinterpret_cast<void*>(pointer), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
             backing.fd.get(), 0) == MAP_FAILED) {
    return CUDA_ERROR_MAP_FAILED;
  }
  process.ranges.emplace(
      pointer, Range{.bytes = bytes, .device = OrdinalOf(backing.device), .file = backing.file});
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
  ENTER("cuMemUnmap");
  Process& process = Process::Get();
  std::string file;
  {
    std::unique_lock lock(process.mutex);
    const auto found = process.ranges.find(pointer);
    if (found == process.ranges.end() || found->second.buffer || found->second.closing ||
        found->second.bytes != bytes) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    CloseRange(found->second, lock);
    file = found->second.file;
    process.ranges.erase(found);
    if (::mmap(reinterpret_cast<void*>(pointer), bytes, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
      return CUDA_ERROR_UNMAP_FAILED;
    }
  }
  Machine::Get().Reap(file);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* wanted,
                                size_t count) {
  ENTER("cuMemSetAccess");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.ranges.find(pointer);
  if (found == process.ranges.end() || found->second.buffer || found->second.closing ||
      found->second.bytes != bytes || count == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Range& range = found->second;
  std::map<int, int> flags = range.flags;
  for (size_t i = 0; i < count; ++i) {
    const int ordinal = wanted[i].location.id;
    if (wanted[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    if (DeviceAt(ordinal) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
    if (ordinal != range.device && Machine::Get().lacks_peer()) return CUDA_ERROR_INVALID_DEVICE;
    flags[ordinal] = wanted[i].flags;
  }
  range.flags = std::move(flags);
  int protection = PROT_NONE;
  if (range.Allows(false, -1)) protection |= PROT_READ;
  if (range.Allows(true, -1)) protection |= PROT_READ | PROT_WRITE;
  if (::mprotect(reinterpret_cast<void*>(pointer), bytes, protection) != 0) {
    return CUDA_ERROR_UNKNOWN;
  }
  return CUDA_SUCCESS;
}

// --- Buffers and host memory -----------------------------------------------------------

CUresult CUDAAPI cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
  ENTER_CONTEXT("cuMemAlloc");
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const MachineDevice& device = *DeviceAt(context->ordinal);
  if (bytes > device.bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const uint64_t rounded = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  Backing backing;
  if (const CUresult result = Machine::Get().Allocate(device, rounded, &backing);
      result != CUDA_SUCCESS) {
    return result;
  }
  void* found = ReserveAddresses(rounded);
  if (found == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  if (::mmap(found, rounded, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, backing.fd.get(), 0) ==
      MAP_FAILED) {
    ::munmap(found, rounded);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *pointer = reinterpret_cast<CUdeviceptr>(found);
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.ranges.emplace(*pointer,
                         Range{.bytes = rounded,
                               .device = context->ordinal,
                               .buffer = true,
                               .file = backing.file,
                               .flags = {{context->ordinal, CU_MEM_ACCESS_FLAGS_PROT_READWRITE}}});
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFree(CUdeviceptr pointer) {
  ENTER_CONTEXT("cuMemFree");
  for (const std::shared_ptr<WorkQueue>& queue : QueuesOf(context)) queue->Drain();
  Process& process = Process::Get();
  std::string file;
  {
    std::unique_lock lock(process.mutex);
    const auto found = process.ranges.find(pointer);
    if (found == process.ranges.end() || !found->second.buffer || found->second.closing) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    CloseRange(found->second, lock);
    file = found->second.file;
    ::munmap(reinterpret_cast<void*>(pointer), found->second.bytes);
    process.ranges.erase(found);
  }
  Machine::Get().Reap(file);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostAlloc(void** pointer, size_t bytes, unsigned int) {
  ENTER_CONTEXT("cuMemHostAlloc");
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  void* found = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *pointer = found;
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.host.emplace(reinterpret_cast<uintptr_t>(found),
                       HostRange{.bytes = bytes, .allocated = true});
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFreeHost(void* pointer) {
  ENTER_CONTEXT("cuMemFreeHost");
  for (const std::shared_ptr<WorkQueue>& queue : QueuesOf(context)) queue->Drain();
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.host.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == process.host.end() || !found->second.allocated) return CUDA_ERROR_INVALID_VALUE;
  ::munmap(pointer, found->second.bytes);
  process.host.erase(found);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostRegister(void* pointer, size_t bytes, unsigned int flags) {
  ENTER_CONTEXT("cuMemHostRegister");
  const bool read_only = (flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
  if (bytes == 0 || !HostAccessible(pointer, bytes, !read_only)) return CUDA_ERROR_INVALID_VALUE;
  if (read_only && Machine::Get().lacks_read_only_registration()) return CUDA_ERROR_NOT_SUPPORTED;
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  for (const auto& [other, range] : process.host) {
    if (other < begin + bytes && begin < other + range.bytes) {
      return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
  }
  process.host.emplace(begin, HostRange{.bytes = bytes});
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostUnregister(void* pointer) {
  ENTER_CONTEXT("cuMemHostUnregister");
  for (const std::shared_ptr<WorkQueue>& queue : QueuesOf(context)) queue->Drain();
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto found = process.host.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == process.host.end() || found->second.allocated) {
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  }
  process.host.erase(found);
  return CUDA_SUCCESS;
}

}  // extern "C"

#include "cuda/memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/round.h"
#include "base/units.h"
#include "cuda/driver_table.h"
#include "cuda/error.h"

namespace trims::cuda {
namespace {

// CudaStatus for calls on the path of an open, which take microseconds: what was done is
// put into words only when it failed.
template <typename What>
Status Check(CUresult result, const What& what) {
  return result == CUDA_SUCCESS ? OkStatus() : CudaStatus(result, what());
}

CUmemAllocationProp Properties(const Device& device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device.ordinal();
  return properties;
}

}  // namespace

// PhysicalMemory

Result<uint64_t> PhysicalMemory::Granularity(const Device& device) {
  const CUmemAllocationProp properties = Properties(device);
  size_t granularity = 0;
  RETURN_IF_ERROR(CudaStatus(Table().cuMemGetAllocationGranularity(
                                 &granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                             "asking for the allocation unit of " + device.uuid()));
  if (granularity == 0) {
    return InternalError("the allocation unit of " + device.uuid() + " is 0");
  }
  return granularity;
}

Result<PhysicalMemory> PhysicalMemory::Create(const Device& device, uint64_t bytes) {
  if (bytes == 0) return InvalidArgumentError("allocating 0 bytes on " + device.uuid());
  if (!device.supports_vmm() || !device.supports_posix_fd()) {
    return UnimplementedError(device.uuid() + " (" + device.name() +
                              ") can not share memory between processes: " +
                              (device.supports_vmm() ? "descriptors of allocations are"
                                                     : "virtual memory management is") +
                              " not supported here");
  }
  ASSIGN_OR_RETURN(const uint64_t granularity, Granularity(device));
  const std::string what = "allocating " + FormatSize(bytes) + " on " + device.uuid();
  if (bytes > std::numeric_limits<uint64_t>::max() - granularity) {
    return ResourceExhaustedError(what + ": no device has that much memory");
  }
  const uint64_t size = RoundUp(bytes, granularity);
  const CUmemAllocationProp properties = Properties(device);
  CUmemGenericAllocationHandle handle = 0;
  RETURN_IF_ERROR(CudaStatus(Table().cuMemCreate(&handle, size, &properties, 0), what));
  return PhysicalMemory(device, size, handle, /*imported=*/false);
}

Result<PhysicalMemory> PhysicalMemory::Import(const Device& device, int fd, uint64_t bytes) {
  const auto what = [&] {
    return "importing " + FormatSize(bytes) + " of device memory from descriptor " +
           std::to_string(fd) + " for " + device.uuid();
  };
  if (fd < 0 || bytes == 0) return InvalidArgumentError(what() + ": no descriptor or no bytes");
  const DriverTable& table = Table();
  CUmemGenericAllocationHandle handle = 0;
  // SAFETY: for this type of handle the driver takes the descriptor in the pointer itself.
  const CUresult result = table.cuMemImportFromShareableHandle(
      &handle, reinterpret_cast<void*>(static_cast<uintptr_t>(fd)),  // NOLINT
      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  // What drivers say of a descriptor that is something else.
  if (result == CUDA_ERROR_UNKNOWN || result == CUDA_ERROR_INVALID_VALUE) {
    return InvalidArgumentError(CudaStatus(result, what()).message() +
                                "; it is no memory that this driver has exported");
  }
  RETURN_IF_ERROR(Check(result, what));
  PhysicalMemory memory(device, bytes, handle, /*imported=*/true);  // Releases it on failure.

  CUmemAllocationProp properties{};
  RETURN_IF_ERROR(Check(table.cuMemGetAllocationPropertiesFromHandle(&properties, handle), what));
  if (properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return InvalidArgumentError(what() + ": it is memory of no device");
  }
  if (properties.location.id < 0) {  // CU_DEVICE_INVALID.
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return FailedPreconditionError(
        what() + ": it lies on a device that this process does not see" +
        (visible != nullptr ? "; CUDA_VISIBLE_DEVICES is \"" + std::string(visible) + "\""
                            : "; give its container that device"));
  }
  if (properties.location.id != device.ordinal()) {
    return FailedPreconditionError(
        what() + ": it lies on device " + std::to_string(properties.location.id) +
        " of this process, not on device " + std::to_string(device.ordinal()));
  }
  return memory;
}

PhysicalMemory::PhysicalMemory(PhysicalMemory&& other) noexcept
    : device_(other.device_),
      size_(other.size_),
      handle_(std::exchange(other.handle_, 0)),
      imported_(other.imported_),
      exported_(other.exported_) {}

PhysicalMemory& PhysicalMemory::operator=(PhysicalMemory&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(Release());
  device_ = other.device_;
  size_ = other.size_;
  handle_ = std::exchange(other.handle_, 0);
  imported_ = other.imported_;
  exported_ = other.exported_;
  return *this;
}

PhysicalMemory::~PhysicalMemory() { static_cast<void>(Release()); }

Result<UniqueFd> PhysicalMemory::Export() {
  const std::string what = "exporting " + FormatSize(size_) + " of " + device_.uuid();
  if (handle_ == 0) return FailedPreconditionError(what + ": the handle was released");
  if (imported_) {
    return FailedPreconditionError(
        what +
        ": the memory was imported, and the driver exports it only where it was made; pass "
        "on the descriptor that it came from");
  }
  if (exported_) {
    return FailedPreconditionError(what + ": done before; duplicate the descriptor of that time");
  }
  int fd = -1;
  RETURN_IF_ERROR(CudaStatus(Table().cuMemExportToShareableHandle(
                                 &fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                             what));
  UniqueFd owned(fd);
  // The driver does not promise close-on-exec.
  const int flags = ::fcntl(fd, F_GETFD);
  if (flags < 0 || ::fcntl(fd, F_SETFD, flags | FD_CLOEXEC) != 0) return ErrnoStatus(errno, what);
  exported_ = true;
  return owned;
}

Status PhysicalMemory::Release() {
  if (handle_ == 0) return OkStatus();
  RETURN_IF_ERROR(Check(Table().cuMemRelease(handle_), [this] {
    return "releasing " + FormatSize(size_) + " of " + device_.uuid();
  }));
  handle_ = 0;
  return OkStatus();
}

// DeviceMapping

Result<DeviceMapping> DeviceMapping::Map(const PhysicalMemory& memory, Access access,
                                         std::span<const Device> peers) {
  const auto what = [&] {
    return "mapping " + FormatSize(memory.size()) + " of " + memory.device().uuid();
  };
  if (memory.handle() == 0) return FailedPreconditionError(what() + ": the handle was released");
  CUdeviceptr address = 0;
  RETURN_IF_ERROR(Check(Table().cuMemAddressReserve(&address, memory.size(), 0, 0, 0), what));
  DeviceMapping mapping(memory.device(), address, memory.size());  // Undoes it all on failure.
  RETURN_IF_ERROR(Check(Table().cuMemMap(address, memory.size(), 0, memory.handle(), 0), what));
  mapping.mapped_ = true;
  RETURN_IF_ERROR(mapping.SetAccess(access, peers));
  return mapping;
}

DeviceMapping::DeviceMapping(DeviceMapping&& other) noexcept
    : device_(other.device_),
      pointer_(std::exchange(other.pointer_, 0)),
      size_(other.size_),
      mapped_(std::exchange(other.mapped_, false)),
      access_(other.access_) {}

DeviceMapping& DeviceMapping::operator=(DeviceMapping&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(Unmap());
  device_ = other.device_;
  pointer_ = std::exchange(other.pointer_, 0);
  size_ = other.size_;
  mapped_ = std::exchange(other.mapped_, false);
  access_ = other.access_;
  return *this;
}

DeviceMapping::~DeviceMapping() { static_cast<void>(Unmap()); }

Status DeviceMapping::SetAccess(Access access, std::span<const Device> peers) {
  const auto what = [this] {
    return "setting access to " + FormatSize(size_) + " of " + device_.uuid();
  };
  if (!mapped_) return FailedPreconditionError(what() + ": it is not mapped");
  std::vector<CUmemAccessDesc> wanted(1 + peers.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    wanted[i].location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wanted[i].location.id = i == 0 ? device_.ordinal() : peers[i - 1].ordinal();
    wanted[i].flags = access == Access::kRead ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                              : CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  RETURN_IF_ERROR(
      Check(Table().cuMemSetAccess(pointer_, size_, wanted.data(), wanted.size()), what));
  access_ = access;
  return OkStatus();
}

Status DeviceMapping::Unmap() {
  if (pointer_ == 0) return OkStatus();
  const auto what = [this] { return "unmapping " + FormatSize(size_) + " of " + device_.uuid(); };
  if (mapped_) {
    RETURN_IF_ERROR(Check(Table().cuMemUnmap(pointer_, size_), what));
    mapped_ = false;
  }
  RETURN_IF_ERROR(Check(Table().cuMemAddressFree(pointer_, size_), what));
  pointer_ = 0;
  return OkStatus();
}

// DeviceBuffer

Result<DeviceBuffer> DeviceBuffer::Allocate(const Context& context, uint64_t bytes) {
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  CUdeviceptr pointer = 0;
  RETURN_IF_ERROR(
      CudaStatus(Table().cuMemAlloc(&pointer, bytes),
                 "allocating a buffer of " + FormatSize(bytes) + " on " + context.device().uuid()));
  return DeviceBuffer(context.retained(), pointer, bytes);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : context_(std::move(other.context_)),
      pointer_(std::exchange(other.pointer_, 0)),
      size_(std::exchange(other.size_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(Free());
  context_ = std::move(other.context_);
  pointer_ = std::exchange(other.pointer_, 0);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

DeviceBuffer::~DeviceBuffer() { static_cast<void>(Free()); }

Status DeviceBuffer::Free() {
  if (pointer_ == 0) return OkStatus();
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(
      CudaStatus(Table().cuMemFree(pointer_),
                 "freeing a buffer of " + FormatSize(size_) + " on " + context_->device().uuid()));
  pointer_ = 0;
  size_ = 0;
  return OkStatus();
}

// HostRegistration

Result<HostRegistration> HostRegistration::Register(const Context& context, const void* data,
                                                    size_t bytes, Access access) {
  const std::string what =
      "pinning " + FormatSize(bytes) + " of host memory for " + context.device().uuid();
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  if (data == nullptr || bytes == 0 || reinterpret_cast<uintptr_t>(data) % page != 0) {
    return InvalidArgumentError(what + ": it must begin at a page and not be empty");
  }
  unsigned int flags = CU_MEMHOSTREGISTER_PORTABLE;
  if (access == Access::kRead) {
    if (!context.device().supports_read_only_registration()) {
      return UnimplementedError(what + ": this device can not pin memory that is only readable");
    }
    flags |= CU_MEMHOSTREGISTER_READ_ONLY;
  }
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  // SAFETY: the driver writes the memory only when a copy to it is asked for.
  RETURN_IF_ERROR(
      CudaStatus(Table().cuMemHostRegister(const_cast<void*>(data), bytes, flags), what));
  return HostRegistration(context.retained(), data, bytes);
}

HostRegistration::HostRegistration(HostRegistration&& other) noexcept
    : context_(std::move(other.context_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

HostRegistration& HostRegistration::operator=(HostRegistration&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(Unregister());
  context_ = std::move(other.context_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

HostRegistration::~HostRegistration() { static_cast<void>(Unregister()); }

Status HostRegistration::Unregister() {
  if (data_ == nullptr) return OkStatus();
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(CudaStatus(Table().cuMemHostUnregister(const_cast<void*>(data_)),
                             "unpinning " + FormatSize(size_) + " of host memory"));
  data_ = nullptr;
  size_ = 0;
  return OkStatus();
}

// PinnedBuffer

Result<PinnedBuffer> PinnedBuffer::Allocate(const Context& context, size_t bytes) {
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  void* data = nullptr;
  RETURN_IF_ERROR(CudaStatus(Table().cuMemHostAlloc(&data, bytes, CU_MEMHOSTALLOC_PORTABLE),
                             "allocating " + FormatSize(bytes) + " of pinned host memory"));
  return PinnedBuffer(context.retained(), static_cast<std::byte*>(data), bytes);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : context_(std::move(other.context_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  if (this == &other) return *this;
  static_cast<void>(Free());
  context_ = std::move(other.context_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

PinnedBuffer::~PinnedBuffer() { static_cast<void>(Free()); }

Status PinnedBuffer::Free() {
  if (data_ == nullptr) return OkStatus();
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(CudaStatus(Table().cuMemFreeHost(data_),
                             "freeing " + FormatSize(size_) + " of pinned host memory"));
  data_ = nullptr;
  size_ = 0;
  return OkStatus();
}

}  // namespace trims::cuda

// Device memory that can be shared between processes, and host memory that the
// device can read at full rate.
//
//   PhysicalMemory     bytes on a device, without an address; made here or imported
//   DeviceMapping      an address range made from all of a PhysicalMemory
//   DeviceBuffer       private scratch memory: an address, never shared
//   HostRegistration   an existing host mapping, pinned for copies
//   PinnedBuffer       new pinned host memory
//
// What the driver does, measured, and what the rules here follow from:
// - An allocation is mapped whole; mapping a part of it is not supported.
// - The first export of an allocation costs 0.8 ms and an imported one can not be
//   exported: Export() once, keep that descriptor and pass it on.
// - The memory lives until every handle, mapping and descriptor of it is gone, in
//   every process, with or without CUDA. A killed exporter frees nothing that
//   others hold.
// - kRead stops mistakes of this process. It does not stop a hostile one that holds
//   the descriptor: it can map the same memory writable.
//
// All types are move-only and thread-compatible. Destructors give back what is
// left and ignore errors; the explicit forms report them, and after a failure the
// object still owns what it owned. Nothing here but DeviceBuffer waits for
// work that is in flight: synchronize before memory goes, or declare its stream after it.
// PhysicalMemory and DeviceMapping need no context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "cuda/device.h"

namespace trims::cuda {

using DevicePointer = uint64_t;  // CUdeviceptr.

enum class Access { kRead, kReadWrite };

class PhysicalMemory final {
 public:
  // The unit of allocation on this device: 2 MiB so far.
  static Result<uint64_t> Granularity(const Device& device);

  // New memory of at least `bytes` bytes, rounded up to the granularity, zeroed by the
  // driver. RESOURCE_EXHAUSTED when the device has too little free; UNIMPLEMENTED
  // when it can not share memory as descriptors; INVALID_ARGUMENT for 0 bytes.
  static Result<PhysicalMemory> Create(const Device& device, uint64_t bytes);

  // The memory behind a descriptor that Export() of some process made; `fd` is
  // borrowed and may be closed afterwards. `bytes` is the exporter's size(): the
  // driver does not tell it, and Map() of a wrong one fails. INVALID_ARGUMENT when
  // `fd` is something else; FAILED_PRECONDITION when it lies on another device, visible here or
  // not.
  static Result<PhysicalMemory> Import(const Device& device, int fd, uint64_t bytes);

  PhysicalMemory(PhysicalMemory&& other) noexcept;
  PhysicalMemory& operator=(PhysicalMemory&& other) noexcept;
  ~PhysicalMemory();

  // The descriptor to lend, close-on-exec. FAILED_PRECONDITION when called twice (duplicate
  // the first one) or on imported memory (pass on the descriptor that was imported).
  Result<UniqueFd> Export();

  // Gives up the handle. Mappings and descriptors keep the memory.
  Status Release();

  const Device& device() const { return device_; }
  uint64_t size() const { return size_; }  // A multiple of the granularity.
  bool imported() const { return imported_; }
  uint64_t handle() const { return handle_; }  // CUmemGenericAllocationHandle; 0: released.

 private:
  PhysicalMemory(Device device, uint64_t size, uint64_t handle, bool imported)
      : device_(std::move(device)), size_(size), handle_(handle), imported_(imported) {}

  Device device_;
  uint64_t size_ = 0;
  uint64_t handle_ = 0;
  bool imported_ = false;
  bool exported_ = false;
};

class DeviceMapping final {
 public:
  // Maps all of `memory` with `access` for the device it lies on, and for `peers`,
  // which must be able to access that device. Outlives `memory`.
  static Result<DeviceMapping> Map(const PhysicalMemory& memory, Access access,
                                   std::span<const Device> peers = {});

  DeviceMapping(DeviceMapping&& other) noexcept;
  DeviceMapping& operator=(DeviceMapping&& other) noexcept;
  ~DeviceMapping();

  // Changes what the memory's device and `peers` may do from now on: a loader
  // maps kReadWrite, fills, synchronizes and goes on with kRead. A device that had
  // access and is not named keeps what it had.
  Status SetAccess(Access access, std::span<const Device> peers = {});

  Status Unmap();

  DevicePointer pointer() const { return pointer_; }  // 0: unmapped.
  uint64_t size() const { return size_; }
  Access access() const { return access_; }

 private:
  DeviceMapping(Device device, DevicePointer pointer, uint64_t size)
      : device_(std::move(device)), pointer_(pointer), size_(size) {}

  Device device_;
  DevicePointer pointer_ = 0;  // The reserved range; 0: nothing is reserved.
  uint64_t size_ = 0;
  bool mapped_ = false;
  Access access_ = Access::kRead;
};

class DeviceBuffer final {
 public:
  // RESOURCE_EXHAUSTED when the device has too little; contents are unspecified.
  static Result<DeviceBuffer> Allocate(const Context& context, uint64_t bytes);

  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  Status Free();  // Waits for work on the device.

  DevicePointer pointer() const { return pointer_; }
  uint64_t size() const { return size_; }

 private:
  DeviceBuffer(std::shared_ptr<const RetainedContext> context, DevicePointer pointer, uint64_t size)
      : context_(std::move(context)), pointer_(pointer), size_(size) {}

  std::shared_ptr<const RetainedContext> context_;
  DevicePointer pointer_ = 0;
  uint64_t size_ = 0;
};

class HostRegistration final {
 public:
  // Pins [data, data + bytes), page-aligned and mapped already, for copies of every
  // device: 20 to 80 ms per GiB. kRead for memory that this process may only read, such
  // as a sealed region: UNIMPLEMENTED when the device can not (see
  // Device::supports_read_only_registration). The mapping must outlive this.
  static Result<HostRegistration> Register(const Context& context, const void* data, size_t bytes,
                                           Access access);

  HostRegistration(HostRegistration&& other) noexcept;
  HostRegistration& operator=(HostRegistration&& other) noexcept;
  ~HostRegistration();

  Status Unregister();

  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  HostRegistration(std::shared_ptr<const RetainedContext> context, const void* data, size_t size)
      : context_(std::move(context)), data_(data), size_(size) {}

  std::shared_ptr<const RetainedContext> context_;
  const void* data_ = nullptr;
  size_t size_ = 0;
};

class PinnedBuffer final {
 public:
  // New pinned memory, usable by copies of every device: 0.6 s per GiB, so ahead of need.
  static Result<PinnedBuffer> Allocate(const Context& context, size_t bytes);

  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  Status Free();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  PinnedBuffer(std::shared_ptr<const RetainedContext> context, std::byte* data, size_t size)
      : context_(std::move(context)), data_(data), size_(size) {}

  std::shared_ptr<const RetainedContext> context_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace trims::cuda

// The driver's functions, over the machine of machine.h and the threads of work.h.
// fake_cuda.h says what they promise.
//
// One mutex guards all tables of the process. Work on memory does not hold it: a range
// counts who is busy with it, and what unmaps the range waits for them.

// What cuda.h declares is what this library exports, and nothing else.
#pragma GCC visibility push(default)
// tidy: allow cuda, because this file implements what it declares.
#include "fake_cuda/fake_cuda.h"

#include <cuda.h>
#pragma GCC visibility pop

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fake_cuda/fake_cuda.h"
#include "fake_cuda/faults.h"
#include "fake_cuda/machine.h"
#include "fake_cuda/work.h"

using fake_cuda::Backing;
using fake_cuda::Faults;
using fake_cuda::kGranularity;
using fake_cuda::Link;
using fake_cuda::Machine;
using fake_cuda::MachineDevice;
using fake_cuda::Mark;
using fake_cuda::WorkQueue;

struct CUctx_st {
  int ordinal = 0;
  std::atomic<int> retained{0};
  std::atomic<int> error{0};  // A CUresult that every call returns from now on.
  std::set<CUctx_st*> peers;  // Guarded by the process's mutex.

  void Break(CUresult result) {
    int none = 0;
    error.compare_exchange_strong(none, result);
  }
};

struct CUstream_st {
  CUctx_st* context = nullptr;
  std::shared_ptr<WorkQueue> queue;
};

struct CUevent_st {
  CUctx_st* context = nullptr;
  bool timed = false;
  std::shared_ptr<Mark> mark;  // Null: never recorded.
};

struct CUfunc_st {
  std::string name;
  fake_cuda_kernel run = nullptr;
  std::vector<size_t> sizes;
};

struct CUmod_st {
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace {

constexpr uint64_t kCopyChunk = uint64_t{4} << 20;

struct Handle {
  Backing backing;
  bool imported = false;
};

// Device memory with an address: a mapping, or a buffer of cuMemAlloc.
struct Range {
  uint64_t bytes = 0;
  int device = 0;  // Ordinal.
  bool buffer = false;
  std::string file;          // Of the machine.
  std::map<int, int> flags;  // CUmemAccess_flags by ordinal.
  int busy = 0;
  bool closing = false;

  bool Allows(bool write, int ordinal) const {  // Ordinal -1: any device.
    for (const auto& [device_ordinal, flag] : flags) {
      if (ordinal >= 0 && device_ordinal != ordinal) continue;
      if (flag == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return true;
      if (!write && flag == CU_MEM_ACCESS_FLAGS_PROT_READ) return true;
    }
    return false;
  }
};

struct HostRange {
  uint64_t bytes = 0;
  bool allocated = false;  // By cuMemHostAlloc; else registered.
};

struct Links {
  Link to_device;
  Link to_host;
  Link from_peer;
};

struct Process {
  std::atomic<pid_t> pid{0};  // Who ran cuInit.
  std::mutex mutex;
  std::condition_variable idle;                     // A range's `busy` fell to 0.
  std::vector<std::unique_ptr<CUctx_st>> contexts;  // By ordinal; made by cuInit.
  std::vector<std::unique_ptr<Links>> links;        // Likewise.
  uint64_t next_handle = 1;
  std::map<uint64_t, Handle> handles;
  std::map<uintptr_t, uint64_t> reservations;
  std::map<uintptr_t, Range> ranges;
  std::map<uintptr_t, HostRange> host;
  std::set<CUstream> streams;
  std::set<CUevent> events;
  std::set<CUmodule> modules;

  static Process& Get() {
    static Process& process = *new Process;
    return process;
  }
};

struct KernelEntry {
  fake_cuda_kernel run = nullptr;
  std::vector<size_t> sizes;
};

struct Registry {
  std::mutex mutex;
  std::map<std::string, KernelEntry> kernels;

  static Registry& Get() {
    static Registry& registry = *new Registry;
    return registry;
  }
};

// The contexts that this thread pushed. Plain and in the static block: ThreadSanitizer
// does not see how glibc hands other thread-local storage of libraries on to new threads.
class ContextStack final {
 public:
  bool empty() const { return depth_ == 0; }
  CUctx_st* back() const { return stack_[depth_ - 1]; }
  bool Push(CUctx_st* context) {
    if (depth_ == kDepth) return false;
    stack_[depth_++] = context;
    return true;
  }
  CUctx_st* Pop() { return stack_[--depth_]; }

 private:
  static constexpr int kDepth = 16;
  CUctx_st* stack_[kDepth];
  int depth_;
};
__attribute__((tls_model("initial-exec"))) thread_local constinit ContextStack current_contexts{};

bool Sticky(int result) {
  return result == CUDA_ERROR_ECC_UNCORRECTABLE || result == CUDA_ERROR_NVLINK_UNCORRECTABLE ||
         (result >= CUDA_ERROR_ILLEGAL_ADDRESS && result <= CUDA_ERROR_LAUNCH_FAILED &&
          result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED &&
          result != CUDA_ERROR_PEER_ACCESS_NOT_ENABLED &&
          result != CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE &&
          result != CUDA_ERROR_CONTEXT_IS_DESTROYED && result != CUDA_ERROR_TOO_MANY_PEERS &&
          result != CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES &&
          result != CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED &&
          result != CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

// How every function begins: counts the call, and says what it must return at once.
CUresult Enter(const char* name) {
  const CUresult planned = Faults::Get().Count(name);
  if (planned != CUDA_SUCCESS) {
    if (Sticky(planned) && !current_contexts.empty()) current_contexts.back()->Break(planned);
    return planned;
  }
  return Process::Get().pid == ::getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

const MachineDevice* DeviceAt(int ordinal) {
  const std::vector<MachineDevice>& visible = Machine::Get().visible();
  if (ordinal < 0 || ordinal >= static_cast<int>(visible.size())) return nullptr;
  return &visible[static_cast<size_t>(ordinal)];
}

// What an imported handle says of a device that this process does not see, too.
int OrdinalOf(int index) {
  const std::vector<MachineDevice>& visible = Machine::Get().visible();
  for (size_t i = 0; i < visible.size(); ++i) {
    if (visible[i].index == index) return static_cast<int>(i);
  }
  return CU_DEVICE_INVALID;
}

CUresult StateOf(const CUctx_st& context) {
  if (context.retained == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (context.error != 0) return static_cast<CUresult>(context.error.load());
  return Machine::Get().Broken(DeviceAt(context.ordinal)->index);
}

// Enter for functions that work in the current context.
CUresult EnterContext(const char* name, CUctx_st** context) {
  if (const CUresult result = Enter(name); result != CUDA_SUCCESS) return result;
  if (current_contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current_contexts.back();
  return StateOf(**context);
}

#define ENTER(name) \
  if (const CUresult entered = Enter(name); entered != CUDA_SUCCESS) return entered
#define ENTER_CONTEXT(name)    \
  CUctx_st* context = nullptr; \
  if (const CUresult entered = EnterContext(name, &context); entered != CUDA_SUCCESS) return entered

// --- Memory ----------------------------------------------------------------------

// The range that holds all of [pointer, pointer + bytes), or null. Needs the mutex.
Range* FindRange(uintptr_t pointer, uint64_t bytes) {
  std::map<uintptr_t, Range>& ranges = Process::Get().ranges;
  auto after = ranges.upper_bound(pointer);
  if (after == ranges.begin()) return nullptr;
  auto& [begin, range] = *std::prev(after);
  const uint64_t offset = pointer - begin;
  if (range.closing || offset > range.bytes || bytes > range.bytes - offset) return nullptr;
  return &range;
}

bool Pinned(const void* pointer, uint64_t bytes) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = process.host.upper_bound(address);
  if (after == process.host.begin()) return false;
  const auto& [begin, range] = *std::prev(after);
  return address - begin <= range.bytes && bytes <= range.bytes - (address - begin);
}

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

// A device range that work needs, for as long as the work of one chunk takes.
class BusyRange final {
 public:
  BusyRange(uintptr_t pointer, uint64_t bytes, bool write) {
    const std::lock_guard lock(Process::Get().mutex);
    range_ = FindRange(pointer, bytes);
    if (range_ != nullptr && !range_->Allows(write, -1)) range_ = nullptr;
    if (range_ != nullptr) ++range_->busy;
  }
  ~BusyRange() {
    if (range_ == nullptr) return;
    const std::lock_guard lock(Process::Get().mutex);
    if (--range_->busy == 0) Process::Get().idle.notify_all();
  }
  BusyRange(const BusyRange&) = delete;
  BusyRange& operator=(const BusyRange&) = delete;
  bool valid() const { return range_ != nullptr; }

 private:
  Range* range_ = nullptr;
};

bool Accessible(CUdeviceptr pointer, uint64_t bytes, bool write) {
  return BusyRange(pointer, bytes, write).valid();
}

// Waits until nobody works on the range any more. Needs the mutex, as `lock`.
void CloseRange(Range& range, std::unique_lock<std::mutex>& lock) {
  range.closing = true;
  Process::Get().idle.wait(lock, [&range] { return range.busy == 0; });
}

// --- Streams ----------------------------------------------------------------------

// A stream's context and queue, or what is wrong with the handle.
CUresult FindStream(CUstream stream, CUctx_st* context, std::shared_ptr<WorkQueue>* queue) {
  if (stream == nullptr) return CUDA_ERROR_NOT_SUPPORTED;  // The default stream.
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.streams.count(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->context != context) return CUDA_ERROR_INVALID_HANDLE;
  *queue = stream->queue;
  return CUDA_SUCCESS;
}

std::vector<std::shared_ptr<WorkQueue>> QueuesOf(const CUctx_st* context) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  std::vector<std::shared_ptr<WorkQueue>> queues;
  for (const CUstream stream : process.streams) {
    if (stream->context == context) queues.push_back(stream->queue);
  }
  return queues;
}

CUresult ErrorOf(const CUctx_st* context) { return static_cast<CUresult>(context->error.load()); }

struct Move {
  uintptr_t to = 0;
  uintptr_t from = 0;
  uint64_t bytes = 0;
  bool to_device = false;
  bool from_device = false;
  Link* link = nullptr;
  double rate = 0;
};

// Queues a copy, and waits for it when a side of it is host memory that is not pinned.
CUresult QueueMove(CUctx_st* context, CUstream stream, const Move& move) {
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  if (move.bytes == 0) return CUDA_SUCCESS;
  if (move.to_device && !Accessible(move.to, move.bytes, true)) return CUDA_ERROR_INVALID_VALUE;
  if (move.from_device && !Accessible(move.from, move.bytes, false)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  queue->Add([context, move] {
    for (uint64_t done = 0; done < move.bytes && context->error == 0; done += kCopyChunk) {
      const uint64_t chunk = std::min(kCopyChunk, move.bytes - done);
      {
        const BusyRange to(move.to + done, move.to_device ? chunk : 0, true);
        const BusyRange from(move.from + done, move.from_device ? chunk : 0, false);
        if ((move.to_device && !to.valid()) || (move.from_device && !from.valid())) {
          context->Break(CUDA_ERROR_ILLEGAL_ADDRESS);
          return;
        }
        std::memmove(reinterpret_cast<void*>(move.to + done),
                     reinterpret_cast<const void*>(move.from + done), chunk);
      }
      if (move.link != nullptr) move.link->Carry(chunk, move.rate);
    }
  });
  const bool pageable =
      (!move.to_device && !Pinned(reinterpret_cast<const void*>(move.to), move.bytes)) ||
      (!move.from_device && !Pinned(reinterpret_cast<const void*>(move.from), move.bytes));
  if (pageable) queue->Drain();
  return ErrorOf(context);
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
  return current_contexts.Push(context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
  // Never fails as planned: nothing could make up for it.
  if (current_contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current_contexts.Pop();
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

// --- Copies ----------------------------------------------------------------------------

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes,
                                   CUstream stream) {
  ENTER_CONTEXT("cuMemcpyHtoDAsync");
  return QueueMove(context, stream,
                   {.to = to,
                    .from = reinterpret_cast<uintptr_t>(from),
                    .bytes = bytes,
                    .to_device = true,
                    .link = &Process::Get().links[static_cast<size_t>(context->ordinal)]->to_device,
                    .rate = Machine::Get().copy_bytes_per_second()});
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER_CONTEXT("cuMemcpyDtoHAsync");
  return QueueMove(context, stream,
                   {.to = reinterpret_cast<uintptr_t>(to),
                    .from = from,
                    .bytes = bytes,
                    .from_device = true,
                    .link = &Process::Get().links[static_cast<size_t>(context->ordinal)]->to_host,
                    .rate = Machine::Get().copy_bytes_per_second()});
}

CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                   CUstream stream) {
  ENTER_CONTEXT("cuMemcpyDtoDAsync");
  return QueueMove(
      context, stream,
      {.to = to, .from = from, .bytes = bytes, .to_device = true, .from_device = true});
}

CUresult CUDAAPI cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                                   CUcontext from_context, size_t bytes, CUstream stream) {
  ENTER_CONTEXT("cuMemcpyPeerAsync");
  if (to_context == nullptr || from_context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult state = StateOf(*from_context); state != CUDA_SUCCESS) return state;
  return QueueMove(
      context, stream,
      {.to = to,
       .from = from,
       .bytes = bytes,
       .to_device = true,
       .from_device = true,
       .link = &Process::Get().links[static_cast<size_t>(to_context->ordinal)]->from_peer,
       .rate = Machine::Get().peer_bytes_per_second()});
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes,
                                 CUstream stream) {
  ENTER_CONTEXT("cuMemsetD8Async");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  if (bytes == 0) return CUDA_SUCCESS;
  if (!Accessible(to, bytes, true)) return CUDA_ERROR_INVALID_VALUE;
  queue->Add([context, to, value, bytes] {
    if (context->error != 0) return;
    const BusyRange range(to, bytes, true);
    if (!range.valid()) {
      context->Break(CUDA_ERROR_ILLEGAL_ADDRESS);
      return;
    }
    std::memset(reinterpret_cast<void*>(to), value, bytes);
  });
  return CUDA_SUCCESS;
}

// --- Streams and events ------------------------------------------------------------------

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned int) {
  ENTER_CONTEXT("cuStreamCreate");
  auto* made = new CUstream_st{.context = context, .queue = WorkQueue::Start()};
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.streams.insert(made);
  *stream = made;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
  // Like the real one, works in a broken context, and returns before the work is done.
  ENTER("cuStreamDestroy");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.streams.erase(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  stream->queue->Close();
  delete stream;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
  ENTER_CONTEXT("cuStreamSynchronize");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  queue->Drain();
  return ErrorOf(context);
}

CUresult CUDAAPI cuStreamQuery(CUstream stream) {
  ENTER_CONTEXT("cuStreamQuery");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  if (!queue->idle()) return CUDA_ERROR_NOT_READY;
  return ErrorOf(context);
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int) {
  ENTER_CONTEXT("cuStreamWaitEvent");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  std::shared_ptr<Mark> mark;
  {
    Process& process = Process::Get();
    const std::lock_guard lock(process.mutex);
    if (process.events.count(event) == 0) return CUDA_ERROR_INVALID_HANDLE;
    mark = event->mark;
  }
  if (mark != nullptr) queue->Add([mark] { mark->Wait(); });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned int flags) {
  ENTER_CONTEXT("cuEventCreate");
  auto* made = new CUevent_st{.context = context, .timed = (flags & CU_EVENT_DISABLE_TIMING) == 0};
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.events.insert(made);
  *event = made;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventDestroy(CUevent event) {
  ENTER("cuEventDestroy");
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.events.erase(event) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete event;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  ENTER_CONTEXT("cuEventRecord");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  const auto mark = std::make_shared<Mark>();
  {
    Process& process = Process::Get();
    const std::lock_guard lock(process.mutex);
    if (process.events.count(event) == 0 || event->context != context) {
      return CUDA_ERROR_INVALID_HANDLE;
    }
    event->mark = mark;
  }
  queue->Add([mark] { mark->Pass(); });
  return CUDA_SUCCESS;
}

namespace {

CUresult MarkOf(CUevent event, std::shared_ptr<Mark>* mark) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.events.count(event) == 0) return CUDA_ERROR_INVALID_HANDLE;
  *mark = event->mark;
  return CUDA_SUCCESS;
}

}  // namespace

CUresult CUDAAPI cuEventQuery(CUevent event) {
  ENTER_CONTEXT("cuEventQuery");
  std::shared_ptr<Mark> mark;
  if (const CUresult found = MarkOf(event, &mark); found != CUDA_SUCCESS) return found;
  if (mark != nullptr && !mark->passed()) return CUDA_ERROR_NOT_READY;
  return ErrorOf(context);
}

CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  ENTER_CONTEXT("cuEventSynchronize");
  std::shared_ptr<Mark> mark;
  if (const CUresult found = MarkOf(event, &mark); found != CUDA_SUCCESS) return found;
  if (mark != nullptr) mark->Wait();
  return ErrorOf(context);
}

// The macro of cuda.h would make it cuEventElapsedTime_v2, which src/cuda does not call.
#undef cuEventElapsedTime
__attribute__((visibility("default"))) CUresult CUDAAPI cuEventElapsedTime(float* milliseconds,
                                                                           CUevent from,
                                                                           CUevent to) {
  ENTER_CONTEXT("cuEventElapsedTime");
  std::shared_ptr<Mark> first;
  std::shared_ptr<Mark> last;
  if (const CUresult found = MarkOf(from, &first); found != CUDA_SUCCESS) return found;
  if (const CUresult found = MarkOf(to, &last); found != CUDA_SUCCESS) return found;
  if (first == nullptr || last == nullptr || !from->timed || !to->timed) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (!first->passed() || !last->passed()) return CUDA_ERROR_NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(last->when() - first->when()).count();
  return CUDA_SUCCESS;
}

// --- Kernels --------------------------------------------------------------------------

CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER_CONTEXT("cuModuleLoadData");
  if (image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  // A cubin, a fat binary with or without its wrapper, or what begins as PTX may.
  uint32_t begin = 0;
  std::memcpy(&begin, image, 1);
  const bool text = begin == '.' || begin == '/' || begin == '\n' || begin == ' ';
  if (!text) {
    std::memcpy(&begin, image, sizeof begin);
    if (begin != 0x464c457f && begin != 0xba55ed50 && begin != 0x466243b1) {
      return CUDA_ERROR_INVALID_IMAGE;
    }
  }
  auto* made = new CUmod_st;
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  process.modules.insert(made);
  *module = made;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
  ENTER_CONTEXT("cuModuleUnload");
  for (const std::shared_ptr<WorkQueue>& queue : QueuesOf(context)) queue->Drain();
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.modules.erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete module;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER_CONTEXT("cuModuleGetFunction");
  KernelEntry kernel;
  {
    Registry& registry = Registry::Get();
    const std::lock_guard lock(registry.mutex);
    const auto found = registry.kernels.find(name);
    if (found == registry.kernels.end()) return CUDA_ERROR_NOT_FOUND;
    kernel = found->second;
  }
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  if (process.modules.count(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  std::unique_ptr<CUfunc_st>& made = module->functions[name];
  if (made == nullptr) {
    made = std::make_unique<CUfunc_st>();
    made->name = name;
    made->run = kernel.run;
    made->sizes = kernel.sizes;
  }
  *function = made.get();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                void** parameters, void** extra) {
  ENTER_CONTEXT("cuLaunchKernel");
  std::shared_ptr<WorkQueue> queue;
  if (const CUresult found = FindStream(stream, context, &queue); found != CUDA_SUCCESS) {
    return found;
  }
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || block_x == 0 || block_y == 0 || block_z == 0 ||
      uint64_t{block_x} * block_y * block_z > 1024 || extra != nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Copied now: the caller's are gone when the kernel runs.
  auto values = std::make_shared<std::vector<std::vector<std::byte>>>();
  for (size_t i = 0; i < function->sizes.size(); ++i) {
    const auto* begin = static_cast<const std::byte*>(parameters[i]);
    values->emplace_back(begin, begin + function->sizes[i]);
  }
  const fake_cuda_launch launch{.grid = {grid_x, grid_y, grid_z},
                                .block = {block_x, block_y, block_z},
                                .shared_bytes = shared_bytes,
                                .device = context->ordinal};
  queue->Add([context, values, launch, run = function->run] {
    if (context->error != 0) return;
    std::vector<void*> pointers;
    for (std::vector<std::byte>& value : *values) pointers.push_back(value.data());
    const int result = run(pointers.data(), &launch);
    if (result != CUDA_SUCCESS) context->Break(static_cast<CUresult>(result));
  });
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

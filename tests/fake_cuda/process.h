// What the driver keeps for one process: contexts, handles, ranges of memory, streams, events
// and kernels, and how each of its functions begins.
//
// One mutex guards all tables of the process. Work on memory does not hold it: a range
// counts who is busy with it, and what unmaps the range waits for them.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "fake_cuda/driver_api.h"
#include "fake_cuda/fake_cuda.h"
#include "fake_cuda/machine.h"
#include "fake_cuda/work.h"

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
  std::shared_ptr<fake_cuda::WorkQueue> queue;
};

struct CUevent_st {
  CUctx_st* context = nullptr;
  std::shared_ptr<fake_cuda::Mark> mark;  // Null: never recorded.
};

struct CUfunc_st {
  std::string name;
  fake_cuda_kernel run = nullptr;
  std::vector<size_t> sizes;
};

struct CUmod_st {
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace fake_cuda {

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

// How every function begins: counts the call, and says what it must return at once.
CUresult Enter(const char* name);
// Enter for functions that work in the current context.
CUresult EnterContext(const char* name, CUctx_st** context);

#define ENTER(name) \
  if (const CUresult entered = fake_cuda::Enter(name); entered != CUDA_SUCCESS) return entered
#define ENTER_CONTEXT(name)                                                                      \
  CUctx_st* context = nullptr;                                                                   \
  if (const CUresult entered = fake_cuda::EnterContext(name, &context); entered != CUDA_SUCCESS) \
  return entered

// The contexts that this thread pushed. False: one too many. Null: none.
bool PushContext(CUctx_st* context);
CUctx_st* PopContext();

// A device by its ordinal, or null.
const MachineDevice* DeviceAt(int ordinal);
// What an imported handle says of a device that this process does not see, too.
int OrdinalOf(int index);
CUresult StateOf(const CUctx_st& context);
inline CUresult ErrorOf(const CUctx_st* context) {
  return static_cast<CUresult>(context->error.load());
}

// The range that holds all of [pointer, pointer + bytes), or null. Needs the mutex.
Range* FindRange(uintptr_t pointer, uint64_t bytes);

// A stream's context and queue, or what is wrong with the handle.
CUresult FindStream(CUstream stream, CUctx_st* context, std::shared_ptr<WorkQueue>* queue);
std::vector<std::shared_ptr<WorkQueue>> QueuesOf(const CUctx_st* context);

}  // namespace fake_cuda

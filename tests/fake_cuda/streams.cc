// The driver's functions for work: copies, streams, events and kernels, over the threads of
// work.h.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "fake_cuda/machine.h"
#include "fake_cuda/process.h"
#include "fake_cuda/work.h"

using fake_cuda::ErrorOf;
using fake_cuda::FindRange;
using fake_cuda::FindStream;
using fake_cuda::KernelEntry;
using fake_cuda::Link;
using fake_cuda::Machine;
using fake_cuda::Mark;
using fake_cuda::Process;
using fake_cuda::QueuesOf;
using fake_cuda::Range;
using fake_cuda::Registry;
using fake_cuda::StateOf;
using fake_cuda::WorkQueue;

namespace {

constexpr uint64_t kCopyChunk = uint64_t{4} << 20;

bool Pinned(const void* pointer, uint64_t bytes) {
  Process& process = Process::Get();
  const std::lock_guard lock(process.mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = process.host.upper_bound(address);
  if (after == process.host.begin()) return false;
  const auto& [begin, range] = *std::prev(after);
  return address - begin <= range.bytes && bytes <= range.bytes - (address - begin);
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

}  // namespace

extern "C" {

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
  if ((flags & CU_EVENT_DISABLE_TIMING) == 0) return CUDA_ERROR_NOT_SUPPORTED;
  auto* made = new CUevent_st{.context = context};
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

}  // extern "C"

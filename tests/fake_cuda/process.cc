#include "fake_cuda/process.h"

#include <unistd.h>

#include <iterator>

#include "fake_cuda/faults.h"

namespace fake_cuda {
namespace {

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

}  // namespace

bool PushContext(CUctx_st* context) { return current_contexts.Push(context); }

CUctx_st* PopContext() { return current_contexts.empty() ? nullptr : current_contexts.Pop(); }

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

CUresult EnterContext(const char* name, CUctx_st** context) {
  if (const CUresult result = Enter(name); result != CUDA_SUCCESS) return result;
  if (current_contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current_contexts.back();
  return StateOf(**context);
}

Range* FindRange(uintptr_t pointer, uint64_t bytes) {
  std::map<uintptr_t, Range>& ranges = Process::Get().ranges;
  auto after = ranges.upper_bound(pointer);
  if (after == ranges.begin()) return nullptr;
  auto& [begin, range] = *std::prev(after);
  const uint64_t offset = pointer - begin;
  if (range.closing || offset > range.bytes || bytes > range.bytes - offset) return nullptr;
  return &range;
}

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

}  // namespace fake_cuda

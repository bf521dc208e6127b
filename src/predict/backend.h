// The interface between an executor and what computes: memory, and kernels over it.
//
//   graph + shapes ──> Executor ──> Backend ──┬─ src/predict/cpu   oneDNN and loops
//                                             └─ src/predict/gpu   absent in this build
//
// A backend is a folder; CMake chooses the file of it that is built. What is absent is a
// file too, which says so to whoever asks (gpu/absent.cc). Backends see operators
// (src/predict/op), never the graph, and nothing of an executor but what is declared here.
//
// Memory. The executor plans: it asks once for one block and lays every intermediate value
//   and all scratch into it. Weights are memory of others (a mapping that the daemon lent):
//   read-only, used where they lie, never copied unless `pack_weights` asks for it. All
//   addresses that a kernel is given are the backend's: Allocate()d here, or weights that
//   were mapped for this device. Only Write() and Peek() take or give addresses of the host.
// Order. Kernels of one backend take effect in the order of their Run() calls, each seeing
//   all that the earlier ones and every Write() did. Run() may return before the work is
//   done; Peek() waits for it. Nothing else blocks, save for memory and compilation.
// Threads. Each executor has a backend of its own, and both are thread-compatible: one
//   thread at a time. Kernels may use further threads during Run(). What backends share
//   (engines, contexts) is their own affair and thread-safe.
// Errors. A Status, never an exception, whatever the library below throws. Texts say what
//   failed; the executor adds the node. UNIMPLEMENTED: this backend has no such kernel.
//   RESOURCE_EXHAUSTED: no memory. After a failed Run() the values it should have written
//   are unspecified, and the next Run() of everything may succeed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/dtype.h"
#include "base/status.h"
#include "predict/op/operator.h"

namespace trims::predict {

// Addresses of elements of the request's type, dense and row-major.
struct KernelArguments {
  std::span<const void* const> inputs;  // Null where the operator IgnoresInput().
  std::span<void* const> outputs;
  std::byte* scratch = nullptr;  // scratch_bytes() bytes, aligned to kArenaAlignment.

  template <typename T>
  const T* In(size_t index) const {
    return static_cast<const T*>(inputs[index]);
  }
  template <typename T>
  T* Out(size_t index) const {
    return static_cast<T*>(outputs[index]);
  }
};

// An operator bound to shapes: may hold compiled code and packed weights. It is destroyed
// before the backend that built it.
class Kernel {
 public:
  virtual ~Kernel() = default;
  // Memory needed during Run only; constant for a kernel.
  virtual uint64_t scratch_bytes() const { return 0; }
  // Memory held for as long as the kernel lives: packed copies of weights.
  virtual uint64_t private_bytes() const { return 0; }
  // Never writes to an input, except that output 0 may be input 0 where the
  // operator CanOverwriteInput(). Allocates nothing.
  virtual Status Run(const KernelArguments& arguments) = 0;
};

// Borrows everything but the weights for the call; they outlive the kernel.
struct KernelRequest {
  const Operator& op;             // Not a view.
  std::span<const Shape> inputs;  // As op.InferShapes() settled them: known, and fit.
  std::span<const Shape> outputs;
  DType dtype = DType::kF32;  // Of all inputs and outputs.
  // Addresses of the inputs that are weights, the same at every Run(); null for the others.
  std::span<const void* const> constants;
  bool fuse_relu = false;  // Apply max(x, 0) to output 0. Only where FusesRelu().
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Zero-filled, aligned to kArenaAlignment at least, and the backend's until it ends. `what`
  // says for messages what it is for. 0 bytes are no memory: null.
  virtual Result<std::byte*> Allocate(uint64_t bytes, const char* what) = 0;

  // Whether its kernel for `op` can apply a relu as well.
  virtual bool FusesRelu(const Operator& op) const = 0;
  // Compiles as far as shapes allow. UNIMPLEMENTED without a kernel for op.Name() or dtype.
  virtual Result<std::unique_ptr<Kernel>> BuildKernel(const KernelRequest& request) = 0;

  // Copies from the host to memory of this backend; `from` may be reused on return.
  virtual Status Write(std::byte* to, std::span<const std::byte> from) = 0;
  // Where the host can read `bytes` bytes that lie at `from`, once all kernels that ran have
  // written. Valid until the next Run(), whatever else is peeked at. A backend whose memory
  // the host can read gives that address itself.
  virtual Result<const std::byte*> Peek(const void* from, uint64_t bytes) = 0;
};

enum class DeviceKind : uint8_t { kCpu, kGpu };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int ordinal = 0;  // Among the devices of its kind.
};

struct BackendOptions {
  bool pack_weights = false;  // May keep private, faster copies of convolution weights.
};

// A backend for one executor. UNIMPLEMENTED if this build has none for that kind of device.
Result<std::unique_ptr<Backend>> OpenBackend(const Device& device, const BackendOptions& options);

// What OpenBackend chooses from: each defined in the folder of its backend.
Result<std::unique_ptr<Backend>> OpenCpuBackend(const BackendOptions& options);
Result<std::unique_ptr<Backend>> OpenGpuBackend(int ordinal, const BackendOptions& options);

}  // namespace trims::predict

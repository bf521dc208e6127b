// The CPU: memory of this process, and kernels that run in the calling thread and
// OpenMP's. Everything is done when Run() returns.
#include "predict/backend.h"

#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "predict/anonymous_memory.h"
#include "predict/cpu/kernels.h"
#include "predict/cpu/onednn.h"
#include "predict/cpu/threads.h"
#include "predict/op/activation.h"
#include "predict/op/convolution.h"
#include "predict/op/fully_connected.h"
#include "predict/op/lrn.h"
#include "predict/op/pooling.h"
#include "predict/op/softmax.h"

namespace trims::predict {
namespace {

struct TableEntry {
  std::string_view op;
  std::unique_ptr<Kernel> (*build)(const KernelRequest&, const BackendOptions&);
  bool fuses_relu = false;
};

constexpr TableEntry kTable[] = {
    {Activation::kName, BuildActivation},
    {Convolution::kName, BuildConvolution, true},
    {FullyConnected::kName, BuildFullyConnected, true},
    {Lrn::kName, BuildLrn},
    {Pooling::kName, BuildPooling},
    {Softmax::kName, BuildSoftmax},
    {SoftmaxActivation::kName, BuildSoftmaxActivation},
    {SoftmaxOutput::kName, BuildSoftmaxOutput},
};

const TableEntry* Find(const Operator& op) {
  for (const TableEntry& entry : kTable) {
    if (entry.op == op.Name()) return &entry;
  }
  return nullptr;
}

// Runs `f`, which may throw what oneDNN and the standard library throw.
template <typename F>
Status Guard(F&& f) {
  try {
    return f();
  } catch (const dnnl::error& error) {
    const std::string text =
        std::string("oneDNN: ") + error.what() + " (status " + std::to_string(error.status) + ")";
    switch (error.status) {
      case dnnl_out_of_memory:
        return ResourceExhaustedError(text);
      case dnnl_invalid_arguments:
        return InvalidArgumentError(text);
      case dnnl_unimplemented:
        return UnimplementedError(text);
      default:
        return InternalError(text);
    }
  } catch (const std::bad_alloc&) {
    return ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    return InternalError(error.what());
  }
}

// A kernel of a family, with as many threads as it is worth, and no exceptions.
class GuardedKernel final : public Kernel {
 public:
  GuardedKernel(std::unique_ptr<Kernel> kernel, bool single_thread)
      : kernel_(std::move(kernel)), single_thread_(single_thread) {}

  uint64_t scratch_bytes() const override { return kernel_->scratch_bytes(); }
  uint64_t private_bytes() const override { return kernel_->private_bytes(); }
  Status Run(const KernelArguments& arguments) override {
    return Guard([&] {
      const ThreadScope threads(single_thread_);
      return kernel_->Run(arguments);
    });
  }

 private:
  const std::unique_ptr<Kernel> kernel_;
  const bool single_thread_;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options) : options_(options) {}

  Result<std::byte*> Allocate(uint64_t bytes, const char* what) override {
    ASSIGN_OR_RETURN(AnonymousMemory memory, AnonymousMemory::Allocate(bytes, what));
    return memory_.emplace_back(std::move(memory)).data();
  }

  bool FusesRelu(const Operator& op) const override {
    const TableEntry* const entry = Find(op);
    return entry != nullptr && entry->fuses_relu;
  }

  Result<std::unique_ptr<Kernel>> BuildKernel(const KernelRequest& request) override {
    const TableEntry* const entry = Find(request.op);
    if (entry == nullptr) {
      return UnimplementedError("the CPU backend has no kernel for operator " +
                                std::string(request.op.Name()));
    }
    if (request.dtype != DType::kF32) {
      return UnimplementedError("the CPU backend computes in F32, not in " +
                                std::string(DTypeName(request.dtype)));
    }
    const bool single_thread = request.op.Work(request.inputs, request.outputs) < kParallelWorkMin;
    std::unique_ptr<Kernel> kernel;
    RETURN_IF_ERROR(Guard([&] {
      const ThreadScope threads(single_thread);
      kernel = std::make_unique<GuardedKernel>(entry->build(request, options_), single_thread);
      return OkStatus();
    }));
    return kernel;
  }

  Status Write(std::byte* to, std::span<const std::byte> from) override {
    std::memcpy(to, from.data(), from.size());
    return OkStatus();
  }
  Result<const std::byte*> Peek(const void* from, uint64_t /*bytes*/) override {
    return static_cast<const std::byte*>(from);
  }

 private:
  const BackendOptions options_;
  std::vector<AnonymousMemory> memory_;
};

}  // namespace

Result<std::unique_ptr<Backend>> OpenCpuBackend(const BackendOptions& options) {
  std::unique_ptr<Backend> backend;
  RETURN_IF_ERROR(Guard([&] {
    CpuEngine();  // What can fail of oneDNN fails here and not at the first kernel.
    backend = std::make_unique<CpuBackend>(options);
    return OkStatus();
  }));
  return backend;
}

}  // namespace trims::predict

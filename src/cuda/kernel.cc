#include "cuda/kernel.h"

#include <string>
#include <utility>

#include "cuda/driver_table.h"
#include "cuda/error.h"

namespace trims::cuda {

Result<Module> Module::Load(const Context& context, std::span<const std::byte> image) {
  const std::string what = "loading kernels on " + context.device().uuid();
  if (image.empty()) return InvalidArgumentError(what + ": the image is empty");
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  CUmodule module = nullptr;
  RETURN_IF_ERROR(CudaStatus(Table().cuModuleLoadData(&module, image.data()), what));
  return Module(context.retained(), module);
}

Module::Module(Module&& other) noexcept
    : context_(std::move(other.context_)), handle_(std::exchange(other.handle_, nullptr)) {}

Module& Module::operator=(Module&& other) noexcept {
  if (this == &other) return *this;
  Module old(std::move(*this));
  context_ = std::move(other.context_);
  handle_ = std::exchange(other.handle_, nullptr);
  return *this;
}

Module::~Module() {
  if (handle_ == nullptr) return;
  const CurrentContext current(context_);
  if (current.status().ok()) {
    static_cast<void>(Table().cuModuleUnload(static_cast<CUmodule>(handle_)));
  }
}

Result<Kernel> Module::Find(const char* name) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  CUfunction function = nullptr;
  RETURN_IF_ERROR(
      CudaStatus(Table().cuModuleGetFunction(&function, static_cast<CUmodule>(handle_), name),
                 "finding kernel " + std::string(name)));
  return Kernel(function);
}

Status Kernel::LaunchWith(const Stream& stream, const LaunchShape& shape, void** arguments) const {
  const CurrentContext current(stream.retained());
  RETURN_IF_ERROR(current.status());
  return CudaStatus(
      Table().cuLaunchKernel(static_cast<CUfunction>(handle_), shape.blocks, 1, 1, shape.threads, 1,
                             1, shape.shared_bytes, static_cast<CUstream>(stream.handle()),
                             arguments, nullptr),
      "launching a kernel");
}

}  // namespace trims::cuda

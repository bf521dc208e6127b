// Kernels that are compiled into the binary and run on a device.
//
// A Module is an image (cubin, fat binary or PTX text) loaded into one context; a
// Kernel is a function of it and must not outlive it. Move-only and thread-compatible
// (Module); a value (Kernel).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "base/status.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace trims::cuda {

// One-dimensional grids are all that we need.
struct LaunchShape {
  uint32_t blocks = 1;
  uint32_t threads = 1;  // Per block.
  uint32_t shared_bytes = 0;
};

class Kernel final {
 public:
  // Queues the kernel on a stream of the module's context. Arguments are passed by value and
  // must have exactly the types of the kernel's parameters.
  template <typename... Args>
  Status Launch(const Stream& stream, const LaunchShape& shape, const Args&... args) const {
    // SAFETY: the driver reads the arguments during the call and writes none of them.
    void* pointers[sizeof...(Args) + 1] = {const_cast<Args*>(&args)..., nullptr};
    return LaunchWith(stream, shape, pointers);
  }

 private:
  friend class Module;
  explicit Kernel(void* handle) : handle_(handle) {}
  Status LaunchWith(const Stream& stream, const LaunchShape& shape, void** arguments) const;

  void* handle_ = nullptr;  // CUfunction.
};

class Module final {
 public:
  // `image` must be a complete image: the driver finds its end by itself. PTX text
  // must end in a zero byte. UNIMPLEMENTED when it has no code for this device.
  static Result<Module> Load(const Context& context, std::span<const std::byte> image);

  Module(Module&& other) noexcept;
  Module& operator=(Module&& other) noexcept;
  ~Module();

  // NOT_FOUND names it.
  Result<Kernel> Find(const char* name) const;

 private:
  Module(std::shared_ptr<const RetainedContext> context, void* handle)
      : context_(std::move(context)), handle_(handle) {}

  std::shared_ptr<const RetainedContext> context_;
  void* handle_ = nullptr;  // CUmodule.
};

}  // namespace trims::cuda

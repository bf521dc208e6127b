// Devices and their contexts.
//
// A Device is a value: what one visible GPU is called and can do, read once. A
// Context is a share of the device's primary context, the one that every library
// of the process uses, so that device pointers of ours work in theirs.
//
// Functions of this folder that need a current context make theirs current and
// put the caller's back, so they can be called in anybody's process, from any
// thread. Device copies freely between threads; Context is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims::cuda {

class Driver;

class Device final {
 public:
  // As this process counts, which CUDA_VISIBLE_DEVICES changes: for messages and
  // driver calls only. Between processes a device is known by its UUID.
  int ordinal() const;
  // "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", or "MIG-…" for a slice of a GPU.
  const std::string& uuid() const;
  const std::string& name() const;        // "NVIDIA H200"
  const std::string& pci_bus_id() const;  // "0000:3B:00.0"
  uint64_t total_bytes() const;
  int compute_capability_major() const;
  int compute_capability_minor() const;
  int multiprocessors() const;
  // Virtual memory management (cuMemCreate and the like): what sharing rests on.
  bool supports_vmm() const;
  // Allocations can be passed to other processes as descriptors.
  bool supports_posix_fd() const;
  // Memory that this process may only read can be registered for copies.
  bool supports_read_only_registration() const;

  // Whether this device can read the memory of `peer` over NVLink or PCIe.
  // True for the device itself.
  Result<bool> CanAccessPeer(const Device& peer) const;

  friend bool operator==(const Device& a, const Device& b) { return a.uuid() == b.uuid(); }

 private:
  friend class Driver;
  struct Facts;
  static Result<Device> Read(int ordinal);
  explicit Device(std::shared_ptr<const Facts> facts) : facts_(std::move(facts)) {}

  std::shared_ptr<const Facts> facts_;
};

// The CU_CONTEXT of a device, released when the last share of it goes. Opaque.
class RetainedContext;

class Context final {
 public:
  // Retains the primary context: 90 to 190 ms when this process has none yet.
  static Result<Context> Retain(const Device& device);

  Context(Context&&) noexcept = default;
  Context& operator=(Context&&) noexcept = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Device& device() const;

  // The device's memory, of all processes together.
  struct Memory {
    uint64_t free_bytes = 0;
    uint64_t total_bytes = 0;
  };
  Result<Memory> GetMemory() const;

  // OK while the context works; the error that broke it otherwise. Never blocks on work.
  Status CheckAlive() const { return GetMemory().status(); }

  // Waits for all work of this process on the device, and reports what failed in it.
  Status Synchronize() const;

  // Lets kernels of this context use memory that cuMemAlloc gave to `peer`'s.
  // Mappings (memory.h) do not need it: they name the devices that may use them.
  // OK when it is enabled already; UNIMPLEMENTED when the link does not exist.
  Status EnablePeerAccess(const Context& peer) const;

  // What streams, buffers and modules keep, so that a context outlives them.
  const std::shared_ptr<const RetainedContext>& retained() const { return retained_; }

 private:
  explicit Context(std::shared_ptr<const RetainedContext> retained)
      : retained_(std::move(retained)) {}

  std::shared_ptr<const RetainedContext> retained_;
};

// Makes a context current on this thread for a scope, and puts back the one
// before. Only for calls into other CUDA libraries: this folder does it itself.
class CurrentContext final {
 public:
  explicit CurrentContext(const Context& context);
  explicit CurrentContext(const std::shared_ptr<const RetainedContext>& retained);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  // When not OK the context is not current.
  const Status& status() const { return status_; }

 private:
  Status status_;
};

}  // namespace trims::cuda

// Streams of work on a device, and events in them.
//
// A Stream is an ordered queue that runs beside every other, the default stream
// included. Copies and fills return when they are queued; what fails later is reported by a
// later call on the stream or context. Host memory must stay as it is until the
// stream has passed the copy; copies of memory that is not pinned (memory.h)
// are staged by the driver, at a sixth of the rate, and may block.
//
// Move-only, thread-compatible. A stream waits for its work when it goes: declare it
// after the memory that it works on, and no way out of a scope frees memory under
// work that still uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/status.h"
#include "cuda/device.h"
#include "cuda/memory.h"

namespace trims::cuda {

class Event;

class Stream final {
 public:
  static Result<Stream> Create(const Context& context);

  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();  // Waits for the work, and ignores what failed in it.

  Status CopyToDevice(DevicePointer to, const void* from, uint64_t bytes) const;
  Status CopyToHost(void* to, DevicePointer from, uint64_t bytes) const;
  Status CopyOnDevice(DevicePointer to, DevicePointer from, uint64_t bytes) const;
  // From memory of another device's context into memory of this stream's; over
  // NVLink or PCIe where the devices are peers, else through the host.
  Status CopyFromPeer(DevicePointer to, const Context& peer, DevicePointer from,
                      uint64_t bytes) const;
  Status Fill(DevicePointer to, uint8_t value, uint64_t bytes) const;

  // Work queued after this waits, on the device, for `event`.
  Status WaitFor(const Event& event) const;
  // Blocks until all is done, and reports what failed.
  Status Synchronize() const;
  // True when all is done.
  Result<bool> Done() const;

  void* handle() const { return handle_; }  // CUstream, for other CUDA libraries.
  const std::shared_ptr<const RetainedContext>& retained() const { return context_; }

 private:
  Stream(std::shared_ptr<const RetainedContext> context, void* handle)
      : context_(std::move(context)), handle_(handle) {}

  std::shared_ptr<const RetainedContext> context_;
  void* handle_ = nullptr;
};

// A point in a stream. Measures no time, which would cost more to record.
class Event final {
 public:
  static Result<Event> Create(const Context& context);

  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  // Marks what `stream` has queued so far; recording again moves the mark.
  Status Record(const Stream& stream) const;
  // Blocks, without spinning, until the mark is passed. At once if never recorded.
  Status Synchronize() const;
  Result<bool> Done() const;

  void* handle() const { return handle_; }  // CUevent.

 private:
  Event(std::shared_ptr<const RetainedContext> context, void* handle)
      : context_(std::move(context)), handle_(handle) {}

  std::shared_ptr<const RetainedContext> context_;
  void* handle_ = nullptr;
};

}  // namespace trims::cuda

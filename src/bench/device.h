// What a device can do without a daemon: the floors that benchmarks on it compare with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/timing.h"

namespace trims::bench {

// One device, with a context in this process, which is made beforehand so that no
// measurement pays for it. One thread.
class Device final {
 public:
  // NOT_FOUND when this process does not see it; UNIMPLEMENTED without GPU support.
  static Result<Device> Open(const std::string& uuid);
  static Result<std::vector<Device>> OpenAll();

  Device(Device&&) noexcept;
  Device& operator=(Device&&) noexcept;
  ~Device();

  const std::string& uuid() const;
  const std::string& name() const;
  int ordinal() const;  // In this process.
  uint64_t total_bytes() const;

  // Memory of its own of at least so many bytes, exported once, held by nothing but its
  // descriptor, as a model's is for a client. RESOURCE_EXHAUSTED when there is no room.
  Status MakeShared(uint64_t bytes);
  void DropShared();
  // The bare driver calls of one open of that memory (import, reserve, map, set access) and of
  // its close (unmap, free the range, release).
  Result<OpenTimes> MeasureMapping() const;

  // Copies `bytes` bytes, in pieces of up to 1 GiB of buffers that are kept, and returns
  // seconds until all have arrived. Host memory is pinned.
  enum class Copy { kFromHost, kToHost, kOnDevice };
  Result<double> MeasureCopy(Copy copy, uint64_t bytes);
  Result<double> MeasureCopyFrom(Device& peer, uint64_t bytes);

 private:
  struct State;
  explicit Device(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace trims::bench

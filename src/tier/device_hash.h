// The keyed universal hash of device memory, computed where the memory is: terabytes
// per second, so that checking a model costs less than mapping it.
//
// Only the few partial sums of the kernel come to the host; neither key nor hash ever
// lies in memory that a client can map. Thread-safe; one computation at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/universal_hash.h"
#include "cuda/device.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/stream.h"

namespace trims {

class DeviceHash final {
 public:
  // Loads the kernel. UNIMPLEMENTED when this build has no code for the device.
  static Result<std::unique_ptr<DeviceHash>> Make(const cuda::Context& context,
                                                  std::shared_ptr<const UniversalHashKey> key);
  ~DeviceHash();
  DeviceHash(const DeviceHash&) = delete;
  DeviceHash& operator=(const DeviceHash&) = delete;

  struct Range {
    cuda::DevicePointer begin = 0;
    uint64_t bytes = 0;
  };
  // One value per range. Blocks until they are there; nothing is in flight afterwards, unless
  // the device is broken. `on_done` is called now and then with bytes that were
  // hashed since, and ends everything by not being OK.
  Result<std::vector<HashValue>> Hash(std::span<const Range> ranges,
                                      const std::function<Status(uint64_t bytes)>& on_done) const;

 private:
  struct Launch {
    size_t range;
    uint64_t offset;
    uint64_t bytes;
    uint32_t blocks;
  };

  DeviceHash(std::shared_ptr<const UniversalHashKey> key, cuda::Module module, cuda::Kernel kernel,
             cuda::Stream stream, cuda::DeviceBuffer partials, cuda::PinnedBuffer copies,
             uint32_t multiprocessors);
  Status Flush(std::span<const Launch> launches, std::vector<ChunkedHash>& sums) const;

  const std::shared_ptr<const UniversalHashKey> key_;
  const cuda::Module module_;
  const cuda::Kernel kernel_;
  const uint32_t multiprocessors_;
  mutable std::mutex mutex_;
  // Used under mutex_.
  const cuda::Stream stream_;
  cuda::DeviceBuffer partials_;
  cuda::PinnedBuffer copies_;  // Of the partial sums.
};

}  // namespace trims

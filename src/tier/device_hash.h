// The keyed universal hash of device memory, computed where the memory is: terabytes
// per second, so that checking a model costs less than mapping it.
//
// Only the few partial sums of the kernel come to the host; neither key nor hash ever
// lies in memory that a client can map. Thread-safe; one Hash at a time, beside any number of
// landings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/universal_hash.h"
#include "cuda/device.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/stream.h"

namespace trims {

class DeviceHash final {
  struct Launch {
    size_t range;
    uint64_t offset;
    uint64_t bytes;
    uint32_t blocks;
  };

 public:
  // Loads the kernel. UNIMPLEMENTED when this build has no code for the device.
  static Result<std::unique_ptr<DeviceHash>> Make(std::shared_ptr<const cuda::Context> context,
                                                  std::shared_ptr<const UniversalHashKey> key);
  ~DeviceHash();
  DeviceHash(const DeviceHash&) = delete;
  DeviceHash& operator=(const DeviceHash&) = delete;

  struct Range {
    cuda::DevicePointer begin = 0;
    uint64_t bytes = 0;
  };

  // The hash of ranges that are being filled by copies, piece by piece as they land: beside the
  // copies, and not after them. Thread-safe.
  class Landing final {
   public:
    ~Landing();
    Landing(const Landing&) = delete;
    Landing& operator=(const Landing&) = delete;

    // Queues the hash of a piece behind the copy of it that `stream` has been given. `offset` is
    // a multiple of kUniversalHashBlockBytes, and so is `bytes` but at the range's end.
    Status Queue(const cuda::Stream& stream, size_t range, uint64_t offset, uint64_t bytes);
    // When every stream is done and every piece was queued once.
    Result<std::vector<HashValue>> Finish();

   private:
    friend class DeviceHash;
    Landing(const DeviceHash& hash, std::vector<Range> ranges, cuda::DeviceBuffer partials);

    const DeviceHash& hash_;
    const std::vector<Range> ranges_;
    cuda::DeviceBuffer partials_;
    Mutex mutex_;
    std::vector<Launch> launches_ TRIMS_GUARDED_BY(mutex_);
    uint64_t used_ TRIMS_GUARDED_BY(mutex_) = 0;
  };
  // `pieces`: how often Queue will be called at most. RESOURCE_EXHAUSTED when these are too
  // many. The hash outlives it, and nothing of it is in flight when it goes.
  Result<std::unique_ptr<Landing>> BeginLanding(std::vector<Range> ranges, size_t pieces) const;

  // One value per range. Blocks until they are there; nothing is in flight afterwards, unless
  // the device is broken. `on_done` is called now and then with bytes that were
  // hashed since, and ends everything by not being OK.
  Result<std::vector<HashValue>> Hash(std::span<const Range> ranges,
                                      const std::function<Status(uint64_t bytes)>& on_done) const;

 private:
  DeviceHash(std::shared_ptr<const cuda::Context> context,
             std::shared_ptr<const UniversalHashKey> key, cuda::Module module, cuda::Kernel kernel,
             cuda::Stream stream, cuda::DeviceBuffer partials, cuda::PinnedBuffer copies,
             uint32_t multiprocessors);
  // Brings the partial sums of `launches`, which begin at `begin`, to the host. Waits for all
  // that the stream was given.
  Status AddUp(cuda::DevicePointer begin, std::span<const Launch> launches,
               std::vector<ChunkedHash>& sums) const TRIMS_REQUIRES(mutex_);
  uint32_t BlocksFor(uint64_t bytes) const;

  const std::shared_ptr<const cuda::Context> context_;
  const std::shared_ptr<const UniversalHashKey> key_;
  const cuda::Module module_;
  const cuda::Kernel kernel_;
  const uint32_t multiprocessors_;
  mutable Mutex mutex_;
  const cuda::Stream stream_ TRIMS_GUARDED_BY(mutex_);
  cuda::DeviceBuffer partials_ TRIMS_GUARDED_BY(mutex_);
  cuda::PinnedBuffer copies_ TRIMS_GUARDED_BY(mutex_);  // Of the partial sums.
  // Of landings that are over: freeing them would wait for everybody's work.
  mutable std::vector<cuda::DeviceBuffer> spare_ TRIMS_GUARDED_BY(mutex_);
};

}  // namespace trims

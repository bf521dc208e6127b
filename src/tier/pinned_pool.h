// Pinned host memory to read files into on their way to a device: buffers of
// kPinnedBufferBytes, which the device copies from at full rate.
//
// Pinning costs 25 to 600 ms for each GiB, so a thread of the pool does it in slices
// when the daemon starts, on 2 MiB pages where the machine has free ones. A load takes
// what is there. Where that is nothing, because the pool is not ready or other loads
// have it all, it gets a few buffers of its own: slower, never waiting.
//
// Thread-safe. All buffers must be back before the pool goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/status.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "ipc/region.h"
#include "tier/direct_read.h"

namespace trims {

// A chunk, and what reading whole blocks of a disk brings beyond it.
inline constexpr uint64_t kPinnedBufferBytes = kChunkBytes + DirectFiles::kSlackBytes;

class PinnedPool;

// Buffers in somebody's use; back in the pool at the end. Copies from and to them
// must have ended by then. Move-only, thread-compatible.
class PinnedBuffers final {
 public:
  PinnedBuffers() = default;
  PinnedBuffers(PinnedBuffers&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        pooled_(std::exchange(other.pooled_, 0)),
        buffers_(std::exchange(other.buffers_, {})),
        own_(std::move(other.own_)) {}
  PinnedBuffers& operator=(PinnedBuffers&& other) noexcept;
  ~PinnedBuffers();

  size_t size() const { return buffers_.size(); }
  // Aligned to pages.
  std::span<std::byte> operator[](size_t i) const { return {buffers_[i], kPinnedBufferBytes}; }

  // For buffers that a copy may still use, because the device does not answer: they
  // are nobody's from now on.
  void Abandon();

 private:
  friend class PinnedPool;

  PinnedPool* pool_ = nullptr;  // Borrowed; null: nothing to give back.
  size_t pooled_ = 0;           // The first so many of buffers_ are the pool's.
  std::vector<std::byte*> buffers_;
  std::unique_ptr<cuda::PinnedBuffer> own_;  // What the others lie in.
};

class PinnedPool final {
 public:
  // `bytes` are rounded up to whole buffers. Begins to prepare them, and returns.
  PinnedPool(std::shared_ptr<const cuda::Context> context, uint64_t bytes);
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  // At most `most` buffers that are ready and free; when these are fewer than
  // `least`, `least` new ones (10 ms for two). RESOURCE_EXHAUSTED when that fails.
  Result<PinnedBuffers> Take(size_t most, size_t least);

  // Blocks until no more will be prepared: for tests and benchmarks.
  void WaitUntilPrepared() const;
  uint64_t prepared_bytes() const;
  // Why the pool is smaller than asked for; OK when it is not, or not yet.
  Status status() const;

 private:
  friend class PinnedBuffers;
  struct Slice {
    WritableRegion memory;
    cuda::HostRegistration registration;
  };

  void Prepare(uint64_t bytes);
  Result<Slice> PrepareSlice(uint64_t bytes) const;
  void GiveBack(const std::vector<std::byte*>& buffers, size_t count);

  const std::shared_ptr<const cuda::Context> context_;
  mutable Mutex mutex_;
  mutable CondVar prepared_;
  std::deque<Slice> slices_ TRIMS_GUARDED_BY(mutex_);
  std::vector<std::byte*> free_ TRIMS_GUARDED_BY(mutex_);
  bool is_stopping_ TRIMS_GUARDED_BY(mutex_) = false;
  bool is_prepared_ TRIMS_GUARDED_BY(mutex_) = false;
  Status status_ TRIMS_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace trims

// Pins host extents for the devices' copy engines, in the background, so that a
// model that is resident in host memory comes to a device at the link's rate.
//
// Pinning costs 20 to 80 ms for each GiB and unpinning 16: a thread does both, in
// slices. A load that comes before the thread is done copies through pinned buffers.
// Extents are sealed, so they are mapped and registered for reading only; a device
// that can not register such memory has all its host hits copied through buffers.
//
// One HostPins serves all devices of the process: memory pinned for one is pinned for
// all. Thread-safe; only the destructor and WaitUntilIdle block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/digest.h"
#include "base/mutex.h"
#include "base/status.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "ipc/region.h"
#include "tier/tier.h"

namespace trims {

// A host extent that copies can use. Keeps the memory pinned and alive: every copy
// from it must have ended before it goes. Immutable.
class PinnedExtent final {
 public:
  // A copy must not cross a multiple of this: there one registration ends.
  static constexpr uint64_t kSliceBytes = uint64_t{64} << 20;

  ~PinnedExtent();
  PinnedExtent(const PinnedExtent&) = delete;
  PinnedExtent& operator=(const PinnedExtent&) = delete;

  const std::byte* data() const { return mapping_.data(); }
  uint64_t size() const { return mapping_.size(); }

 private:
  friend class HostPins;
  PinnedExtent() = default;

  ReadOnlyMapping mapping_;
  std::vector<cuda::HostRegistration> slices_;  // Before the mapping goes.
};

class HostPins final {
 public:
  // Any device of the process. UNIMPLEMENTED when it can not pin memory that is only
  // readable: then there is nothing to prepare. Retains its context.
  static Result<std::unique_ptr<HostPins>> Make(const cuda::Device& device);
  ~HostPins();
  HostPins(const HostPins&) = delete;
  HostPins& operator=(const HostPins&) = delete;

  // Begins to pin the extent, if it is not pinned already.
  void Add(std::shared_ptr<const ResidentExtent> extent);
  // Gives up an extent, or the attempt to pin it. Its memory is freed soon afterwards.
  void Remove(const Digest& key);
  // The extent, when all of it is pinned; null otherwise.
  std::shared_ptr<const PinnedExtent> Find(const Digest& key) const;

  // Blocks until there is nothing to pin or unpin: for tests and benchmarks.
  void WaitUntilIdle() const;
  uint64_t pinned_bytes() const;
  // Whether there is something to pin or unpin.
  bool is_busy() const;
  // Why the last extent that could not be pinned could not; OK when all could.
  Status status() const;

 private:
  struct Entry {
    std::shared_ptr<const ResidentExtent> extent;  // Until it is pinned or has failed.
    std::shared_ptr<const PinnedExtent> pinned;
  };

  explicit HostPins(cuda::Context context);
  void Run();
  Result<std::shared_ptr<const PinnedExtent>> Pin(
      const std::shared_ptr<const ResidentExtent>& extent) const;
  bool IsWanted(const std::shared_ptr<const ResidentExtent>& extent) const;

  const cuda::Context context_;
  mutable Mutex mutex_;
  mutable CondVar changed_;
  std::map<Digest, Entry> entries_ TRIMS_GUARDED_BY(mutex_);
  std::deque<Digest> to_pin_ TRIMS_GUARDED_BY(mutex_);
  // To be dropped by the thread, as that takes time.
  std::vector<Entry> gone_ TRIMS_GUARDED_BY(mutex_);
  bool is_busy_ TRIMS_GUARDED_BY(mutex_) = false;
  bool is_stopping_ TRIMS_GUARDED_BY(mutex_) = false;
  Status status_ TRIMS_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace trims

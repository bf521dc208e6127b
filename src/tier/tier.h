// A level of the hierarchy that can hold extents and lend them as descriptors.
//
// The reactor decides (through the store) what is resident; a Tier only moves
// and checks bytes. Load, Adopt and Verify block and run on loader threads;
// implementations are thread-safe. Interface, with one conformance suite
// (tier_conformance.h) that every implementation and the fake must pass.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "store/types.h"
#include "tier/manifest.h"
#include "tier/source.h"

namespace trims {

// One resident extent. Move-only; dropping it frees the memory as soon as no
// client holds the descriptor either.
struct ResidentExtent {
  Digest key;
  uint64_t bytes = 0;      // What the tier allocated, for accounting.
  uint64_t map_bytes = 0;  // What a client maps.
  UniqueFd fd;             // To lend: read-only by construction (host) or by convention (device).
  // The tier's own proof of the bytes: opaque text, as secret as what it is made
  // with. It goes into the keeper's ledger and comes back in Adopt. Host: "".
  std::string integrity;
  // What else the tier keeps alive as long as this: device memory's own mapping.
  std::shared_ptr<const void> allocation;
};

// Shared between the loader thread and the reactor.
struct LoadControl {
  std::atomic<bool> cancelled{false};
  // Called from the loader's threads, never from two at once, with bytes that are
  // done, rising to the total. Must not block: the load waits for it.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> on_progress;
};

struct LoadJob {
  const ModelManifest* manifest = nullptr;  // Borrowed for the call.
  const Source* source = nullptr;           // Borrowed for the call.
  std::vector<const ExtentSpec*> extents;   // Which to bring in.
  // Either may be empty, or is as long as `extents`, with null where there is none:
  // the same extent, in the same layout, where it may be copied from instead of
  // being read from the source. Ignored by tiers that can not.
  std::vector<std::shared_ptr<const ResidentExtent>> host;  // In host memory.
  std::vector<std::shared_ptr<const ResidentExtent>> peer;  // On another device of this process.
};

class Tier {
 public:
  virtual ~Tier() = default;
  virtual const std::string& name() const = 0;
  virtual store::TierKind kind() const = 0;
  // What an extent of `bytes` takes from the budget (page rounding).
  virtual uint64_t AllocationBytes(uint64_t bytes) const = 0;
  // Reads, places and verifies every piece against the manifest's checksums.
  // All or nothing. DATA_LOSS names file, tensor and chunk; CANCELLED when asked;
  // RESOURCE_EXHAUSTED when the machine has no memory; ABORTED when the file has
  // changed since the manifest was made.
  virtual Result<std::vector<ResidentExtent>> Load(const LoadJob& job, LoadControl& control) = 0;
  // Takes over an extent that an earlier worker made, with its `integrity`. Checks
  // type, seals and size, not bytes.
  virtual Result<ResidentExtent> Adopt(const ExtentSpec& spec, UniqueFd fd,
                                       const std::string& integrity) = 0;
  // Recomputes the checksums of the resident bytes. DATA_LOSS names the tensor.
  virtual Status Verify(const ResidentExtent& extent, const ExtentSpec& spec,
                        const ModelManifest& manifest, LoadControl& control) = 0;

  // OK, or UNAVAILABLE with the reason why this tier fails every load until the
  // worker is started again. Any thread, never blocks.
  virtual Status health() const { return OkStatus(); }
  // Finds out whether the tier still works, and returns health(). May block.
  virtual Status Probe() { return health(); }
  // Memory that loads can still take, whatever the budget says; nullopt when nobody can
  // tell. May block.
  virtual std::optional<uint64_t> FreeBytes() const { return std::nullopt; }

  // An extent is resident in host memory, or no longer: for tiers that prepare
  // copies from there, in the background. Any thread, never blocks.
  virtual void HostExtentReady(std::shared_ptr<const ResidentExtent> /*extent*/) {}
  virtual void HostExtentGone(const Digest& /*key*/) {}
};

// Host memory: sealed memfds. Extents from kHugeExtentBytes up lie on hugetlb
// pages while the machine has free ones, all others on plain pages (2 MiB ones
// where the system's shmem_enabled setting grants them).
struct HostTierOptions {
  bool use_hugetlb = true;
  int io_threads = 0;  // For one load; 0: min(8, cores).
  // Memory that plain pages may still take; null: what the kernel and this
  // process's control groups say. A load beyond it is refused, because the kernel
  // would answer it by killing a process.
  std::function<uint64_t()> available_bytes;
};
// Rounding to 2 MiB pages loses at most an eighth of an extent of this size.
inline constexpr uint64_t kHugeExtentBytes = 16 * kMiB;
std::unique_ptr<Tier> MakeHostTier(const HostTierOptions& options);

}  // namespace trims

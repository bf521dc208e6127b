// Loading into device memory.
//
// Every extent gets an allocation, mapped writable for as long as it is being filled.
// What is to be done is cut into tasks, and threads take one after the other:
//
//   export    the descriptor to lend: 0.8 ms in the driver, beside the reading
//   peer      queue a copy of a slice from another device
//   host      queue a copy of a slice of a pinned host extent
//   window    fill a pinned buffer with a piece of the extent, compare the checksum of
//             every chunk in it with the manifest's, queue its copy
//   direct    the same for one large chunk of a file that is not in the page cache
//
// A window is laid out as the extent is, so that a thousand small tensors are one copy.
// A thread has a lane: a stream and two slots, each with a buffer and an event. While the
// copy from one buffer runs, the other is filled; slots without windows bound how far
// a cancelled load runs on.
//
// When all lanes are empty the kernel hashes each extent, the mapping becomes read-only,
// and only then does anything leave this file. On any failure the lanes are drained first
// and the memory goes after, because a copy that is in flight knows nothing of owners.
#include "tier/device_tier.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "base/device_names.h"
#include "base/hash.h"
#include "base/machine.h"
#include "base/mutex.h"
#include "base/round.h"
#include "base/units.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "tier/chunk_read.h"
#include "tier/chunk_work.h"
#include "tier/crew.h"
#include "tier/device_hash.h"
#include "tier/direct_read.h"
#include "tier/pinned_pool.h"

namespace trims {
namespace {

constexpr size_t kSlots = 2;      // Of a lane.
constexpr int kMostThreads = 16;  // 66 GB/s from the page cache, above any link.
// Half of them read, the others check, copy and read small tensors.
constexpr size_t kDirectLanes = 2 * DirectFiles::kReadsAtOnce;
constexpr uint64_t kDirectChunkBytes = kMiB;  // Smaller ones are read ahead by the system.
constexpr uint64_t kDirectModelBytes = 64 * kMiB;
constexpr uint64_t kSliceBytes = PinnedExtent::kSliceBytes;  // A copy: a millisecond of the link.
constexpr uint64_t kPeerSliceBytes = 512 * kMiB;             // The same for NVLink.
static_assert(kPeerSliceBytes % kUniversalHashBlockBytes == 0);
constexpr std::string_view kProofPrefix = "uh1:";

std::string ProofText(const HashValue& value) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(kProofPrefix);
  for (const uint64_t word : {value.hi, value.lo}) {
    for (int shift = 60; shift >= 0; shift -= 4) text.push_back(kDigits[word >> shift & 15]);
  }
  return text;
}

// Messages never show the text: it is secret.
Result<HashValue> ParseProof(const std::string& text) {
  const Status malformed = InvalidArgumentError("the proof of the extent's bytes is malformed");
  if (text.size() != kProofPrefix.size() + 32 || !text.starts_with(kProofPrefix)) return malformed;
  HashValue value;
  const char* at = text.data() + kProofPrefix.size();
  for (uint64_t* const word : {&value.hi, &value.lo}) {
    const auto [end, error] = std::from_chars(at, at + 16, *word, 16);
    if (error != std::errc() || end != at + 16) return malformed;
    at = end;
  }
  return value;
}

// What an extent keeps: this process's mapping, for hashing and for peers. Thread-safe once
// it is filled.
class Allocation final {
 public:
  Allocation(std::shared_ptr<const cuda::Context> context, cuda::DeviceMapping mapping)
      : context_(std::move(context)), mapping_(std::move(mapping)) {}
  // A call of the driver may fail for a reason that passes; the mapping's own destructor
  // tries again.
  ~Allocation() { static_cast<void>(mapping_.Unmap()); }

  const cuda::Context& context() const { return *context_; }
  cuda::DevicePointer pointer() const { return mapping_.pointer(); }
  uint64_t size() const { return mapping_.size(); }

  Status EndFilling() { return mapping_.SetAccess(cuda::Access::kRead); }

  // Lets another device read the memory through this mapping, from now on. A view of its
  // own, of the imported descriptor, would take 11 ms instead of 0.2.
  Status LetRead(const cuda::Device& reader) const {
    const MutexLock lock(mutex_);
    if (std::find(readers_.begin(), readers_.end(), reader) != readers_.end()) return OkStatus();
    RETURN_IF_ERROR(mapping_.SetAccess(cuda::Access::kRead, {&reader, 1}));
    readers_.push_back(reader);
    return OkStatus();
  }

 private:
  const std::shared_ptr<const cuda::Context> context_;
  mutable cuda::DeviceMapping mapping_;  // Its pointer and size never change.
  mutable Mutex mutex_;
  mutable std::vector<cuda::Device> readers_ TRIMS_GUARDED_BY(mutex_);
};

// The same for the handle: with the mapping and the descriptor it is not needed.
class ReleasedHandle final {
 public:
  explicit ReleasedHandle(cuda::PhysicalMemory memory) : memory_(std::move(memory)) {}
  ~ReleasedHandle() { static_cast<void>(memory_.Release()); }
  ReleasedHandle(ReleasedHandle&&) noexcept = default;
  ReleasedHandle& operator=(ReleasedHandle&&) noexcept = delete;
  cuda::PhysicalMemory& operator*() { return memory_; }
  cuda::PhysicalMemory* operator->() { return &memory_; }

 private:
  cuda::PhysicalMemory memory_;
};

// An extent while it is being filled.
struct Filling {
  std::optional<ReleasedHandle> memory;  // Until it is exported.
  std::shared_ptr<Allocation> allocation;
  UniqueFd fd;
  uint64_t bytes = 0;         // Of the spec.
  uint64_t weight_bytes = 0;  // Of the tensors in it.
  // Where it is copied from; at most one.
  std::shared_ptr<const PinnedExtent> pinned;
  const ResidentExtent* host = nullptr;
  const Allocation* peer = nullptr;

  bool NeedsFile() const { return pinned == nullptr && host == nullptr && peer == nullptr; }
};

struct Task {
  enum class Kind { kExport, kPeer, kHost, kWindow, kDirect };
  Kind kind = Kind::kExport;
  uint32_t extent = 0;
  uint64_t begin = 0;  // In the extent.
  uint64_t end = 0;
  size_t first_chunk = 0;  // Of a window.
  size_t chunk_count = 0;  // One for kDirect.
  uint64_t progress_bytes = 0;
};

// The progress of one load, which may take two attempts: the second counts only what the
// first did not.
class LoadProgress final {
 public:
  LoadProgress(LoadControl& control, uint64_t total) : progress_(control, total), left_(total) {}

  Status Add(uint64_t bytes) {
    uint64_t left = left_.load(std::memory_order_relaxed);
    uint64_t counted = 0;
    do {
      counted = std::min(bytes, left);
    } while (!left_.compare_exchange_weak(left, left - counted, std::memory_order_relaxed));
    return progress_.Add(counted);
  }
  Status CheckWanted() const { return progress_.CheckWanted(); }

 private:
  Progress progress_;
  std::atomic<uint64_t> left_;
};

// Waits until a stream is empty. A call of the driver may fail for a reason that passes; a
// second failure in a row is a device that does not answer.
Status Drain(const cuda::Stream& stream) {
  Status drained = stream.Synchronize();
  if (!drained.ok()) drained = stream.Synchronize();
  return drained;
}

// A stream and the events that say when a slot is free. Reused by load after load.
struct Lane {
  cuda::Stream stream;
  std::array<cuda::Event, kSlots> passed;
};

class DeviceTier final : public Tier {
 public:
  DeviceTier(const DeviceTierOptions& options, std::shared_ptr<const cuda::Context> context,
             std::unique_ptr<DeviceHash> hash, uint64_t granularity)
      : options_(options),
        name_(DeviceTierName(options.device.uuid())),
        context_(std::move(context)),
        hash_(std::move(hash)),
        granularity_(granularity),
        pool_(context_, options.pinned_pool_bytes) {
    if (options_.io_threads <= 0) {
      options_.io_threads = Cores(kMostThreads);
    }
  }

  const std::string& name() const override { return name_; }
  store::TierKind kind() const override { return store::TierKind::kDevice; }
  uint64_t AllocationBytes(uint64_t bytes) const override { return RoundUp(bytes, granularity_); }
  Result<std::vector<ResidentExtent>> Load(const LoadJob& job, LoadControl& control) override;
  Result<ResidentExtent> Adopt(const ExtentSpec& spec, UniqueFd fd,
                               const std::string& integrity) override;
  Status Verify(const ResidentExtent& extent, const ExtentSpec& spec, const ModelManifest& manifest,
                LoadControl& control) override;
  const PinnedPool& pool() const { return pool_; }
  Status health() const override {
    const MutexLock lock(mutex_);
    return health_;
  }
  Status Probe() override { return Judge(context_->CheckAlive()); }
  std::optional<uint64_t> FreeBytes() const override {
    const Result<cuda::Context::Memory> memory = context_->GetMemory();
    return memory.ok() ? std::optional(memory->free_bytes) : std::nullopt;
  }
  void HostExtentReady(std::shared_ptr<const ResidentExtent> extent) override {
    if (options_.pins != nullptr) options_.pins->Add(std::move(extent));
  }
  void HostExtentGone(const Digest& key) override {
    if (options_.pins != nullptr) options_.pins->Remove(key);
  }

 private:
  class LaneUse;
  struct Plan {
    std::vector<ChunkWork> chunks;
    std::vector<Task> tasks;
    size_t windows = 0;  // Of both kinds.
    size_t direct_reads = 0;
    size_t peer_slices = 0;
    std::unique_ptr<const DirectFiles> direct;  // Where it is worth it.
    // Of a load that comes from a peer as a whole: its bytes are hashed as they land.
    std::unique_ptr<DeviceHash::Landing> landing;
  };

  Result<std::vector<ResidentExtent>> LoadOnce(const LoadJob& job, bool use_peers,
                                               LoadProgress& progress);
  Result<std::vector<Filling>> Allocate(const LoadJob& job, bool use_peers,
                                        const LoadProgress& progress) const;
  Status ChooseSources(const LoadJob& job, bool use_peers, std::vector<Filling>& fillings) const;
  Status OpenPeer(const ResidentExtent& peer, Filling& filling) const;
  static Result<Plan> MakePlan(const LoadJob& job, const std::vector<Filling>& fillings);
  Status Fill(const LoadJob& job, const Plan& plan, std::vector<Filling>& fillings,
              LoadProgress& progress);
  static Status FillWindow(const LoadJob& job, const Plan& plan, const Task& task,
                           const Filling& filling, std::byte* buffer);
  static Result<const std::byte*> ReadDirect(const LoadJob& job, const Plan& plan, const Task& task,
                                             const Filling& filling, std::span<std::byte> buffer);
  Status Do(const LoadJob& job, const Plan& plan, const Task& task, Filling& filling, LaneUse& use);
  Status NameDamage(const Allocation& allocation, const ExtentSpec& spec,
                    const ModelManifest& manifest, const Progress& progress);

  Result<Lane> TakeLane();
  void GiveBackLane(Lane lane);
  // What a failed call means: the failure, or that the device is lost.
  Status Judge(Status failure);
  void MarkFailed(const Status& reason);

  DeviceTierOptions options_;
  const std::string name_;
  const std::shared_ptr<const cuda::Context> context_;
  const std::unique_ptr<DeviceHash> hash_;
  const uint64_t granularity_;
  mutable Mutex mutex_;
  Status health_ TRIMS_GUARDED_BY(mutex_);
  std::vector<Lane> lanes_ TRIMS_GUARDED_BY(mutex_);

  PinnedPool pool_;
};

// A lane in one thread's use. When it goes nothing is in flight, or the tier has failed
// and `is_drained` is false.
class DeviceTier::LaneUse final {
 public:
  LaneUse(DeviceTier& tier, Lane lane, const std::array<std::span<std::byte>, kSlots>& buffers,
          LoadProgress& progress, std::atomic<bool>& is_drained)
      : tier_(tier),
        lane_(std::move(lane)),
        buffers_(buffers),
        progress_(progress),
        is_drained_(is_drained) {}
  LaneUse(const LaneUse&) = delete;
  LaneUse& operator=(const LaneUse&) = delete;
  ~LaneUse() {
    if (const Status drained = Drain(lane_.stream); !drained.ok()) {
      is_drained_ = false;
      tier_.MarkFailed(drained);
      return;
    }
    tier_.GiveBackLane(std::move(lane_));
  }

  const cuda::Stream& stream() const { return lane_.stream; }

  // Waits until the copy that used the next slot is done; returns that slot's buffer, empty
  // in a load that reads nothing.
  Result<std::span<std::byte>> NextSlot() {
    slot_ = (slot_ + 1) % kSlots;
    RETURN_IF_ERROR(Finish(slot_));
    return buffers_[slot_];
  }
  // The copy that is queued now frees the slot, and is worth so many bytes of progress.
  Status Queued(uint64_t progress_bytes) {
    queued_bytes_[slot_] = progress_bytes;
    is_queued_[slot_] = true;
    return lane_.passed[slot_].Record(lane_.stream);
  }
  Status FinishAll() {
    for (size_t i = 1; i <= kSlots; ++i) RETURN_IF_ERROR(Finish((slot_ + i) % kSlots));
    return OkStatus();
  }

 private:
  Status Finish(size_t slot) {
    if (!is_queued_[slot]) return OkStatus();
    RETURN_IF_ERROR(lane_.passed[slot].Synchronize());
    is_queued_[slot] = false;
    return progress_.Add(queued_bytes_[slot]);
  }

  DeviceTier& tier_;
  Lane lane_;
  const std::array<std::span<std::byte>, kSlots> buffers_;
  LoadProgress& progress_;
  std::atomic<bool>& is_drained_;
  size_t slot_ = 0;
  std::array<bool, kSlots> is_queued_{};
  std::array<uint64_t, kSlots> queued_bytes_{};
};

Result<Lane> DeviceTier::TakeLane() {
  {
    const MutexLock lock(mutex_);
    if (!lanes_.empty()) {
      Lane lane = std::move(lanes_.back());
      lanes_.pop_back();
      return lane;
    }
  }
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create(*context_));
  ASSIGN_OR_RETURN(cuda::Event first, cuda::Event::Create(*context_));
  ASSIGN_OR_RETURN(cuda::Event second, cuda::Event::Create(*context_));
  return Lane{std::move(stream), {std::move(first), std::move(second)}};
}

void DeviceTier::GiveBackLane(Lane lane) {
  const MutexLock lock(mutex_);
  lanes_.push_back(std::move(lane));
}

void DeviceTier::MarkFailed(const Status& reason) {
  const MutexLock lock(mutex_);
  if (!health_.ok()) return;
  health_ = UnavailableError(name_ +
                             " is lost to this process until the daemon's worker is started "
                             "again (other tiers serve on): " +
                             reason.message());
}

Status DeviceTier::Judge(Status failure) {
  if (failure.ok() || failure.code() == StatusCode::kCancelled) return failure;
  // An error that breaks the context fails every later call in it as well.
  const Status alive = context_->CheckAlive();
  if (!alive.ok() && alive.code() != StatusCode::kResourceExhausted) MarkFailed(alive);
  const Status now = health();
  return now.ok() ? failure : now;
}

// --- Loading ------------------------------------------------------------------------

Result<std::vector<ResidentExtent>> DeviceTier::Load(const LoadJob& job, LoadControl& control) {
  RETURN_IF_ERROR(health());
  for (const auto* others : {&job.host, &job.peer}) {
    if (!others->empty() && others->size() != job.extents.size()) {
      return InvalidArgumentError("a load of " + std::to_string(job.extents.size()) +
                                  " extents offers copies of " + std::to_string(others->size()));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<ChunkWork> chunks, ListChunks(*job.manifest, job.extents));
  uint64_t total = 0;
  for (const ChunkWork& chunk : chunks) total += chunk.bytes;
  LoadProgress progress(control, total);
  RETURN_IF_ERROR(progress.CheckWanted());

  const bool has_peers =
      std::any_of(job.peer.begin(), job.peer.end(), [](const auto& peer) { return !!peer; });
  Result<std::vector<ResidentExtent>> resident = LoadOnce(job, has_peers, progress);
  Status status = Judge(resident.status());
  if (!status.ok() && has_peers && status.code() != StatusCode::kCancelled && health().ok()) {
    // The other device may be at fault, or who leases the extent there: neither may
    // cost this load anything but time.
    resident = LoadOnce(job, /*use_peers=*/false, progress);
    status = Judge(resident.status());
  }
  RETURN_IF_ERROR(status);
  return resident;
}

Result<std::vector<ResidentExtent>> DeviceTier::LoadOnce(const LoadJob& job, bool use_peers,
                                                         LoadProgress& progress) {
  ASSIGN_OR_RETURN(std::vector<Filling> fillings, Allocate(job, use_peers, progress));
  const bool needs_file =
      std::any_of(fillings.begin(), fillings.end(), [](const Filling& f) { return f.NeedsFile(); });
  if (needs_file) {
    if (job.source == nullptr) {
      return FailedPreconditionError("extents of model " + job.manifest->digest.ToShort() +
                                     " are resident nowhere, and its file is not open");
    }
    if (job.manifest->file_identities != job.source->Identities()) {
      return AbortedError(job.source->description() +
                          " is no longer the file that this model was read from: open it again");
    }
    RETURN_IF_ERROR(job.source->CheckUnchanged());
  }
  ASSIGN_OR_RETURN(Plan plan, MakePlan(job, fillings));
  std::vector<DeviceHash::Range> ranges;
  bool all_peers = true;
  for (const Filling& filling : fillings) {
    ranges.push_back({filling.allocation->pointer(), filling.bytes});
    all_peers = all_peers && filling.peer != nullptr;
  }
  if (all_peers) {
    Result<std::unique_ptr<DeviceHash::Landing>> landing =
        hash_->BeginLanding(ranges, plan.peer_slices);
    if (landing.ok()) plan.landing = std::move(landing).value();  // Else afterwards, as others.
  }
  const Status filled = Fill(job, plan, fillings, progress);
  if (filled.code() == StatusCode::kDataLoss || filled.code() == StatusCode::kOutOfRange) {
    // A file that is being written explains both, and is not a damaged one.
    if (needs_file) RETURN_IF_ERROR(job.source->CheckUnchanged());
    return DataLossError(filled.message());
  }
  RETURN_IF_ERROR(filled);

  // From here on nothing is in flight and no byte changes any more.
  ASSIGN_OR_RETURN(const std::vector<HashValue> hashes,
                   plan.landing != nullptr
                       ? plan.landing->Finish()
                       : hash_->Hash(ranges, [&](uint64_t) { return progress.CheckWanted(); }));
  std::vector<ResidentExtent> resident;
  resident.reserve(fillings.size());
  for (size_t i = 0; i < fillings.size(); ++i) {
    ResidentExtent extent;
    extent.key = job.extents[i]->key;
    extent.integrity = ProofText(hashes[i]);
    if (fillings[i].peer != nullptr && extent.integrity != job.peer[i]->integrity) {
      return DataLossError("extent " + extent.key.ToShort() + ", copied from " +
                           fillings[i].peer->context().device().uuid() +
                           ": its bytes are not those that were loaded there");
    }
    RETURN_IF_ERROR(fillings[i].allocation->EndFilling());
    extent.bytes = fillings[i].allocation->size();
    extent.map_bytes = extent.bytes;
    extent.fd = std::move(fillings[i].fd);
    extent.allocation = std::move(fillings[i].allocation);
    resident.push_back(std::move(extent));
  }
  return resident;
}

// Memory for each extent, mapped writable.
Result<std::vector<Filling>> DeviceTier::Allocate(const LoadJob& job, bool use_peers,
                                                  const LoadProgress& progress) const {
  std::vector<Filling> fillings(job.extents.size());
  for (size_t i = 0; i < fillings.size(); ++i) {
    RETURN_IF_ERROR(progress.CheckWanted());
    Filling& filling = fillings[i];
    filling.bytes = job.extents[i]->bytes;
    for (const Piece& piece : job.extents[i]->pieces) {
      filling.weight_bytes += job.manifest->tensors[piece.tensor].size_bytes;
    }
    Result<cuda::PhysicalMemory> memory =
        cuda::PhysicalMemory::Create(options_.device, filling.bytes);
    if (memory.status().code() == StatusCode::kResourceExhausted) {
      uint64_t wanted = 0;
      for (const ExtentSpec* extent : job.extents) wanted += AllocationBytes(extent->bytes);
      const Result<cuda::Context::Memory> now = context_->GetMemory();
      return ResourceExhaustedError(
          "loading needs " + FormatSize(wanted) + " of device memory, and with " +
          std::to_string(i) + " of " + std::to_string(fillings.size()) + " extents allocated " +
          (now.ok() ? FormatSize(now->free_bytes) : "too few") + " are free on " +
          options_.device.uuid() +
          ": lower the tier's capacity, or find out who else uses the device; " +
          memory.status().message());
    }
    RETURN_IF_ERROR(memory.status());
    filling.memory.emplace(std::move(memory).value());
    ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                     cuda::DeviceMapping::Map(**filling.memory, cuda::Access::kReadWrite));
    filling.allocation = std::make_shared<Allocation>(context_, std::move(mapping));
  }
  RETURN_IF_ERROR(ChooseSources(job, use_peers, fillings));
  return fillings;
}

Status DeviceTier::ChooseSources(const LoadJob& job, bool use_peers,
                                 std::vector<Filling>& fillings) const {
  for (size_t i = 0; i < fillings.size(); ++i) {
    const ExtentSpec& spec = *job.extents[i];
    const ResidentExtent* const host = job.host.empty() ? nullptr : job.host[i].get();
    const ResidentExtent* const peer = job.peer.empty() ? nullptr : job.peer[i].get();
    for (const ResidentExtent* other : {host, peer}) {
      if (other != nullptr && (other->key != spec.key || other->map_bytes < spec.bytes)) {
        return InvalidArgumentError("extent " + other->key.ToShort() +
                                    " is offered as a copy of extent " + spec.key.ToShort());
      }
    }
    if (peer != nullptr && use_peers) {
      RETURN_IF_ERROR(OpenPeer(*peer, fillings[i]));
    } else if (host != nullptr) {
      if (options_.pins != nullptr) fillings[i].pinned = options_.pins->Find(spec.key);
      if (fillings[i].pinned == nullptr) fillings[i].host = host;
    }
  }
  return OkStatus();
}

Status DeviceTier::OpenPeer(const ResidentExtent& peer, Filling& filling) const {
  // SAFETY: LoadJob::peer holds extents of other devices' tiers, and those are made here.
  const auto* allocation = static_cast<const Allocation*>(peer.allocation.get());
  if (allocation == nullptr) {
    return InvalidArgumentError("extent " + peer.key.ToShort() + " lies on no device");
  }
  filling.peer = allocation;
  // Without a link between the two the driver copies through the host.
  const cuda::Context& context = allocation->context();
  ASSIGN_OR_RETURN(const bool is_linked, options_.device.CanAccessPeer(context.device()));
  if (!is_linked) return OkStatus();
  // Not needed for mappings, but without it the driver takes 10 ms for each. When it fails
  // that is all that is lost.
  static_cast<void>(context_->EnablePeerAccess(context).ok());
  return allocation->LetRead(options_.device);
}

// Cuts the load into tasks, in the order in which they should begin.
Result<DeviceTier::Plan> DeviceTier::MakePlan(const LoadJob& job,
                                              const std::vector<Filling>& fillings) {
  Plan plan;
  ASSIGN_OR_RETURN(plan.chunks, ListChunks(*job.manifest, job.extents));
  std::vector<Task> copies;
  for (uint32_t e = 0; e < fillings.size(); ++e) {
    const Filling& filling = fillings[e];
    if (filling.peer == nullptr && filling.pinned == nullptr) continue;
    const bool is_peer = filling.peer != nullptr;
    const uint64_t slice = is_peer ? kPeerSliceBytes : kSliceBytes;
    for (uint64_t at = 0; at < filling.bytes; at += slice) {
      const uint64_t end = std::min(filling.bytes, at + slice);
      if (is_peer) ++plan.peer_slices;
      copies.push_back({.kind = is_peer ? Task::Kind::kPeer : Task::Kind::kHost,
                        .extent = e,
                        .begin = at,
                        .end = end,
                        // Gaps between tensors are copied and do not count.
                        .progress_bytes = std::min(filling.weight_bytes, end) -
                                          std::min(filling.weight_bytes, at)});
    }
  }
  // What is read from files in large pieces, and whether it lies in the page cache.
  std::vector<DirectFiles::Place> large;
  uint64_t large_bytes = 0;
  for (const ChunkWork& chunk : plan.chunks) {
    if (!fillings[chunk.extent].NeedsFile() || chunk.bytes < kDirectChunkBytes) continue;
    const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
    large.push_back({tensor.file, tensor.offset + chunk.chunk * kChunkBytes});
    large_bytes += chunk.bytes;
  }
  if (large_bytes >= kDirectModelBytes) {
    plan.direct = std::make_unique<const DirectFiles>(*job.source, large);
  }

  std::vector<Task> windows;
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const ChunkWork& chunk = plan.chunks[i];
    const Filling& filling = fillings[chunk.extent];
    if (filling.peer != nullptr || filling.pinned != nullptr) continue;
    const uint64_t end = chunk.extent_offset + chunk.bytes;
    if (plan.direct != nullptr && filling.NeedsFile() && chunk.bytes >= kDirectChunkBytes &&
        plan.direct->Has(job.manifest->tensors[chunk.tensor].file)) {
      windows.push_back({.kind = Task::Kind::kDirect,
                         .extent = chunk.extent,
                         .begin = chunk.extent_offset,
                         .end = end,
                         .first_chunk = i,
                         .chunk_count = 1,
                         .progress_bytes = chunk.bytes});
      ++plan.direct_reads;
      continue;
    }
    Task* const last = windows.empty() ? nullptr : &windows.back();
    if (last != nullptr && last->kind == Task::Kind::kWindow && last->extent == chunk.extent &&
        chunk.extent_offset >= last->end && end - last->begin <= kChunkBytes) {
      last->end = end;
      ++last->chunk_count;
      last->progress_bytes += chunk.bytes;
    } else {
      windows.push_back({.kind = Task::Kind::kWindow,
                         .extent = chunk.extent,
                         .begin = chunk.extent_offset,
                         .end = end,
                         .first_chunk = i,
                         .chunk_count = 1,
                         .progress_bytes = chunk.bytes});
    }
  }
  // In file order, so that a disk sees one pass over the file.
  const auto place = [&](const Task& window) {
    const ChunkWork& chunk = plan.chunks[window.first_chunk];
    const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
    return std::tuple(tensor.file, tensor.offset + chunk.chunk * kChunkBytes);
  };
  std::sort(windows.begin(), windows.end(),
            [&](const Task& a, const Task& b) { return place(a) < place(b); });
  plan.windows = windows.size();
  copies.insert(copies.end(), windows.begin(), windows.end());
  // The driver exports one at a time, and nobody queues a copy meanwhile: so each export
  // comes when there are copies in flight.
  for (size_t e = 0, c = 0; e < fillings.size(); ++e) {
    const size_t before = copies.size() * (2 * e + 1) / (2 * fillings.size());
    for (; c < before; ++c) plan.tasks.push_back(copies[c]);
    plan.tasks.push_back({.kind = Task::Kind::kExport, .extent = static_cast<uint32_t>(e)});
    const size_t share = copies.size() * (e + 1) / fillings.size();
    for (; c < share; ++c) plan.tasks.push_back(copies[c]);
  }
  return plan;
}

// Does all tasks. Afterwards nothing is in flight, whatever happened.
Status DeviceTier::Fill(const LoadJob& job, const Plan& plan, std::vector<Filling>& fillings,
                        LoadProgress& progress) {
  // Copies of whole slices need no more than two lanes to keep the link busy.
  size_t lanes = 2;
  PinnedBuffers buffers;
  if (plan.windows > 0) {
    lanes = std::min(plan.windows, static_cast<size_t>(options_.io_threads));
    if (plan.direct_reads > 0) lanes = std::min(lanes, kDirectLanes);
    ASSIGN_OR_RETURN(PinnedBuffers taken, pool_.Take(lanes * kSlots, kSlots));
    buffers = std::move(taken);
    lanes = std::min(lanes, buffers.size() / kSlots);
  }
  std::atomic<size_t> next_lane{0};
  std::atomic<size_t> next_task{0};
  std::atomic<bool> is_drained{true};
  const Status status =
      RunCrew(CrewSize(static_cast<int>(lanes), plan.tasks.size()),
              [&](const std::atomic<bool>& stop) -> Status {
                const size_t l = next_lane.fetch_add(1, std::memory_order_relaxed);
                std::array<std::span<std::byte>, kSlots> own{};
                for (size_t i = 0; i < kSlots && plan.windows > 0; ++i)
                  own[i] = buffers[l * kSlots + i];
                ASSIGN_OR_RETURN(Lane lane, TakeLane());
                LaneUse use(*this, std::move(lane), own, progress, is_drained);
                while (!stop.load(std::memory_order_relaxed)) {
                  const size_t t = next_task.fetch_add(1, std::memory_order_relaxed);
                  if (t >= plan.tasks.size()) break;
                  RETURN_IF_ERROR(progress.CheckWanted());
                  const Task& task = plan.tasks[t];
                  RETURN_IF_ERROR(Do(job, plan, task, fillings[task.extent], use));
                }
                return use.FinishAll();
              });
  if (!is_drained) buffers.Abandon();
  return status;
}

Status DeviceTier::Do(const LoadJob& job, const Plan& plan, const Task& task, Filling& filling,
                      LaneUse& use) {
  const cuda::DevicePointer to = filling.allocation->pointer() + task.begin;
  const uint64_t bytes = task.end - task.begin;
  switch (task.kind) {
    case Task::Kind::kExport: {
      ASSIGN_OR_RETURN(filling.fd, (*filling.memory)->Export());
      filling.memory.reset();
      return OkStatus();
    }
    case Task::Kind::kPeer: {
      RETURN_IF_ERROR(use.NextSlot().status());
      const Allocation& from = *filling.peer;
      RETURN_IF_ERROR(
          use.stream().CopyFromPeer(to, from.context(), from.pointer() + task.begin, bytes));
      if (plan.landing != nullptr) {
        RETURN_IF_ERROR(plan.landing->Queue(use.stream(), task.extent, task.begin, bytes));
      }
      return use.Queued(task.progress_bytes);
    }
    case Task::Kind::kHost: {
      RETURN_IF_ERROR(use.NextSlot().status());
      RETURN_IF_ERROR(use.stream().CopyToDevice(to, filling.pinned->data() + task.begin, bytes));
      return use.Queued(task.progress_bytes);
    }
    case Task::Kind::kWindow: {
      ASSIGN_OR_RETURN(const std::span<std::byte> buffer, use.NextSlot());
      RETURN_IF_ERROR(FillWindow(job, plan, task, filling, buffer.data()));
      RETURN_IF_ERROR(use.stream().CopyToDevice(to, buffer.data(), bytes));
      return use.Queued(task.progress_bytes);
    }
    case Task::Kind::kDirect: {
      ASSIGN_OR_RETURN(const std::span<std::byte> buffer, use.NextSlot());
      ASSIGN_OR_RETURN(const std::byte* const landed, ReadDirect(job, plan, task, filling, buffer));
      RETURN_IF_ERROR(use.stream().CopyToDevice(to, landed, bytes));
      return use.Queued(task.progress_bytes);
    }
  }
  return OkStatus();
}

// Brings the chunks of a window to their places in `buffer`, and checks what arrived there.
Status DeviceTier::FillWindow(const LoadJob& job, const Plan& plan, const Task& task,
                              const Filling& filling, std::byte* buffer) {
  uint64_t at = task.begin;
  for (size_t i = task.first_chunk; i < task.first_chunk + task.chunk_count; ++i) {
    const ChunkWork& chunk = plan.chunks[i];
    const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
    std::fill(buffer + (at - task.begin), buffer + (chunk.extent_offset - task.begin),
              std::byte{0});
    at = chunk.extent_offset + chunk.bytes;
    const std::span<std::byte> landed(buffer + (chunk.extent_offset - task.begin), chunk.bytes);
    if (filling.host != nullptr) {
      const auto describe = [&] {
        return "resident host memory, " + DescribeChunk(tensor, chunk.chunk);
      };
      // By read(2) and not through a mapping: memory that the hardware has given up is
      // an error here and would be a SIGBUS there.
      RETURN_IF_ERROR(
          ReadExactly(filling.host->fd.get(), chunk.extent_offset, landed, "resident host memory"));
      if (ChecksumOf(landed) != tensor.chunks[chunk.chunk]) {
        return DataLossError(describe() + ": the checksum differs from the one it was loaded with");
      }
      continue;
    }
    const uint64_t file_offset = tensor.offset + uint64_t{chunk.chunk} * kChunkBytes;
    const auto describe = [&] {
      return job.source->DescribeFile(tensor.file) + ", " + DescribeChunk(tensor, chunk.chunk);
    };
    RETURN_IF_ERROR(
        ReadExactly(job.source->files()[tensor.file].fd.get(), file_offset, landed, describe()));
    if (ChecksumOf(landed) != tensor.chunks[chunk.chunk]) {
      return DamagedChunkError(describe(), chunk, file_offset);
    }
  }
  return OkStatus();
}

// Returns where in `buffer` the chunk is.
Result<const std::byte*> DeviceTier::ReadDirect(const LoadJob& job, const Plan& plan,
                                                const Task& task, const Filling& filling,
                                                std::span<std::byte> buffer) {
  const ChunkWork& chunk = plan.chunks[task.first_chunk];
  const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
  const uint64_t file_offset = tensor.offset + uint64_t{chunk.chunk} * kChunkBytes;
  const std::string description =
      job.source->DescribeFile(tensor.file) + ", " + DescribeChunk(tensor, chunk.chunk);
  const Result<std::span<std::byte>> landed =
      plan.direct->Read(tensor.file, file_offset, chunk.bytes, buffer, description);
  if (landed.status().code() == StatusCode::kUnimplemented) {
    RETURN_IF_ERROR(FillWindow(job, plan, task, filling, buffer.data()));
    return buffer.data();
  }
  RETURN_IF_ERROR(landed.status());
  if (ChecksumOf(*landed) != tensor.chunks[chunk.chunk]) {
    return DamagedChunkError(description, chunk, file_offset);
  }
  return landed->data();
}

// --- Adopting and verifying -----------------------------------------------------------

Result<ResidentExtent> DeviceTier::Adopt(const ExtentSpec& spec, UniqueFd fd,
                                         const std::string& integrity) {
  RETURN_IF_ERROR(health());
  RETURN_IF_ERROR(ParseProof(integrity).status());
  ASSIGN_OR_RETURN(
      cuda::PhysicalMemory imported,
      cuda::PhysicalMemory::Import(options_.device, fd.get(), AllocationBytes(spec.bytes)));
  ReleasedHandle memory(std::move(imported));
  ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                   cuda::DeviceMapping::Map(*memory, cuda::Access::kRead));
  ResidentExtent extent;
  extent.key = spec.key;
  extent.bytes = mapping.size();
  extent.map_bytes = mapping.size();
  extent.integrity = integrity;
  extent.allocation = std::make_shared<Allocation>(context_, std::move(mapping));
  extent.fd = std::move(fd);
  return extent;
}

Status DeviceTier::Verify(const ResidentExtent& extent, const ExtentSpec& spec,
                          const ModelManifest& manifest, LoadControl& control) {
  RETURN_IF_ERROR(health());
  const auto* allocation = static_cast<const Allocation*>(extent.allocation.get());
  if (allocation == nullptr || allocation->size() < spec.bytes) {
    return InvalidArgumentError("extent " + extent.key.ToShort() + " is not one of " + name_);
  }
  ASSIGN_OR_RETURN(const HashValue expected, ParseProof(extent.integrity));
  Progress progress(control, spec.bytes);
  RETURN_IF_ERROR(progress.CheckWanted());
  const DeviceHash::Range range{allocation->pointer(), spec.bytes};
  const Result<std::vector<HashValue>> now =
      hash_->Hash({&range, 1}, [&](uint64_t bytes) { return progress.Add(bytes); });
  if (!now.ok()) return Judge(now.status());
  if (now->front() == expected) return OkStatus();
  return Judge(NameDamage(*allocation, spec, manifest, progress));
}

// The hash says that bytes differ, not which: the manifest's checksums do.
Status DeviceTier::NameDamage(const Allocation& allocation, const ExtentSpec& spec,
                              const ModelManifest& manifest, const Progress& progress) {
  const std::string where = "device memory of " + options_.device.uuid() + ", ";
  const std::string what =
      ": its bytes are not those that were loaded; the memory is faulty, or a process that leased "
      "it has written there";
  ASSIGN_OR_RETURN(const std::vector<ChunkWork> chunks, ListChunks(manifest, {&spec}));
  ASSIGN_OR_RETURN(PinnedBuffers buffers, pool_.Take(1, 1));
  const std::span<std::byte> buffer = buffers[0];
  ASSIGN_OR_RETURN(const Lane lane, TakeLane());
  for (const ChunkWork& chunk : chunks) {
    RETURN_IF_ERROR(progress.CheckWanted());
    const Status copied = lane.stream.CopyToHost(
        buffer.data(), allocation.pointer() + chunk.extent_offset, chunk.bytes);
    if (const Status drained = Drain(lane.stream); !drained.ok()) {
      buffers.Abandon();
      MarkFailed(drained);
      return drained;
    }
    RETURN_IF_ERROR(copied);
    const ManifestTensor& tensor = manifest.tensors[chunk.tensor];
    if (ChecksumOf(buffer.first(chunk.bytes)) != tensor.chunks[chunk.chunk]) {
      return DataLossError(where + DescribeChunk(tensor, chunk.chunk) + what);
    }
  }
  return DataLossError(where + "extent " + spec.key.ToShort() + ", between its tensors" + what);
}

}  // namespace

uint64_t PinnedPoolBytes(const Tier& device_tier) {
  return static_cast<const DeviceTier&>(device_tier).pool().prepared_bytes();
}

Status WaitUntilPrepared(const Tier& device_tier) {
  const PinnedPool& pool = static_cast<const DeviceTier&>(device_tier).pool();
  pool.WaitUntilPrepared();
  return pool.status();
}

Result<std::unique_ptr<Tier>> MakeDeviceTier(const DeviceTierOptions& options) {
  const cuda::Device& device = options.device;
  if (!device.supports_vmm() || !device.supports_posix_fd()) {
    return UnimplementedError(
        device.uuid() + " (" + device.name() +
        ") can not share memory between processes: its driver lacks " +
        (device.supports_vmm() ? "descriptors of allocations" : "virtual memory management"));
  }
  ASSIGN_OR_RETURN(const uint64_t granularity, cuda::PhysicalMemory::Granularity(device));
  ASSIGN_OR_RETURN(cuda::Context retained, cuda::Context::Retain(device));
  const auto context = std::make_shared<const cuda::Context>(std::move(retained));
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceHash> hash, DeviceHash::Make(context, options.key));
  return std::unique_ptr<Tier>(
      std::make_unique<DeviceTier>(options, context, std::move(hash), granularity));
}

}  // namespace trims

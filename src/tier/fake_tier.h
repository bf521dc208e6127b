// A tier for tests: real sealed memfds with the model's real bytes, in memory
// accounted in whole pages, and every misfortune at the push of a button. One
// thread a load, no hugetlb. Header only, never part of the product. Thread-safe.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/round.h"
#include "ipc/region.h"
#include "tier/chunk_work.h"
#include "tier/tier.h"

namespace trims {

class FakeTier final : public Tier {
 public:
  // Of the host by this name, of a device by any other.
  explicit FakeTier(std::string name = "host") : name_(std::move(name)) {}

  // --- What a test arranges ---------------------------------------------------

  // The next `count` loads fail with `status`, after their progress reached a half.
  void FailLoads(Status status, int count = 1) {
    const MutexLock lock(mutex_);
    load_failure_ = std::move(status);
    load_failures_left_ = count;
  }
  // Loads wait after their start until Release(), or until they are cancelled.
  void Hold() {
    const MutexLock lock(mutex_);
    is_holding_ = true;
  }
  void Release() {
    const MutexLock lock(mutex_);
    is_holding_ = false;
    changed_.NotifyAll();
  }
  // Returns when `count` loads are waiting behind Hold().
  void WaitUntilHeld(int count = 1) {
    const MutexLock lock(mutex_);
    while (held_ < count) changed_.Wait(mutex_);
  }
  // Checks wait after their start until ReleaseChecks().
  void HoldChecks() {
    const MutexLock lock(mutex_);
    is_holding_checks_ = true;
  }
  void ReleaseChecks() {
    const MutexLock lock(mutex_);
    is_holding_checks_ = false;
    changed_.NotifyAll();
  }
  // From now on, or (with `only_when_probed`) from the next Probe() on, this is its health.
  void SetHealth(Status health, bool only_when_probed = false) {
    const MutexLock lock(mutex_);
    (only_when_probed ? found_by_probe_ : health_) = std::move(health);
  }
  // What FreeBytes() says; nobody knows before.
  void SetFreeBytes(std::optional<uint64_t> bytes) {
    const MutexLock lock(mutex_);
    free_bytes_ = bytes;
  }
  // Called for each extent that is made: what it keeps alive.
  void SetAllocate(std::function<std::shared_ptr<const void>()> allocate) {
    const MutexLock lock(mutex_);
    allocate_ = std::move(allocate);
  }
  // Every later Verify of this extent is DATA_LOSS.
  void Damage(const Digest& key) {
    const MutexLock lock(mutex_);
    damaged_.insert(key);
  }
  // Loads beyond this many bytes at once are RESOURCE_EXHAUSTED.
  void SetMachineBytes(std::optional<uint64_t> bytes) {
    const MutexLock lock(mutex_);
    machine_bytes_ = bytes;
  }
  // Pages without looking into files: for models that exist as manifests only.
  void SetSynthetic(bool is_synthetic) {
    const MutexLock lock(mutex_);
    is_synthetic_ = is_synthetic;
  }

  // --- What a test asks -------------------------------------------------------

  int loads_started() const {
    const MutexLock lock(mutex_);
    return loads_started_;
  }
  int loads_finished() const {
    const MutexLock lock(mutex_);
    return loads_finished_;
  }  // Successfully.
  int loads_failed() const {
    const MutexLock lock(mutex_);
    return loads_failed_;
  }  // Cancelled ones too.
  int adoptions() const {
    const MutexLock lock(mutex_);
    return adoptions_;
  }
  int verifications() const {
    const MutexLock lock(mutex_);
    return verifications_;
  }
  // How often each extent was loaded.
  int loads_of(const Digest& key) const {
    const MutexLock lock(mutex_);
    const auto found = loads_of_.find(key);
    return found == loads_of_.end() ? 0 : found->second;
  }

  int probes() const {
    const MutexLock lock(mutex_);
    return probes_;
  }
  // Extents in the order in which they were checked.
  std::vector<Digest> verified() const {
    const MutexLock lock(mutex_);
    return verified_;
  }
  // Where the extents of the latest load could be copied from.
  struct Offer {
    bool has_source = false;
    std::map<Digest, std::weak_ptr<const ResidentExtent>> host, peer;
  };
  Offer last_offer() const {
    const MutexLock lock(mutex_);
    return last_offer_;
  }
  // What it has been told of host memory.
  std::set<Digest> host_extents() const {
    const MutexLock lock(mutex_);
    return host_extents_;
  }

  // --- Tier -------------------------------------------------------------------

  const std::string& name() const override { return name_; }
  store::TierKind kind() const override {
    return name_ == "host" ? store::TierKind::kHost : store::TierKind::kDevice;
  }
  uint64_t AllocationBytes(uint64_t bytes) const override { return RoundUp(bytes, kHostPageBytes); }

  Result<std::vector<ResidentExtent>> Load(const LoadJob& job, LoadControl& control) override {
    Result<std::vector<ResidentExtent>> result = LoadAll(job, control);
    const MutexLock lock(mutex_);
    ++(result.ok() ? loads_finished_ : loads_failed_);
    if (result.ok()) {
      for (const ExtentSpec* extent : job.extents) ++loads_of_[extent->key];
    }
    return result;
  }

  Result<ResidentExtent> Adopt(const ExtentSpec& spec, UniqueFd fd,
                               const std::string& /*integrity*/) override {
    ASSIGN_OR_RETURN(ReadOnlyRegion region,
                     ReadOnlyRegion::Adopt(std::move(fd), AllocationBytes(spec.bytes)));
    const MutexLock lock(mutex_);
    ++adoptions_;
    return Resident(spec, std::move(region));
  }

  Status Verify(const ResidentExtent& extent, const ExtentSpec& spec, const ModelManifest& manifest,
                LoadControl& control) override {
    bool is_synthetic = false;
    {
      const MutexLock lock(mutex_);
      ++verifications_;
      verified_.push_back(extent.key);
    }
    if (control.on_progress) control.on_progress(0, extent.bytes);
    {
      const MutexLock lock(mutex_);
      while (is_holding_checks_) changed_.Wait(mutex_);
      is_synthetic = is_synthetic_;
      if (damaged_.contains(extent.key)) {
        return DataLossError("resident memory, extent " + extent.key.ToShort() +
                             ": damaged by the test");
      }
    }
    if (control.on_progress) control.on_progress(extent.bytes / 2, extent.bytes);
    if (control.cancelled) return CancelledError("nobody waits for this verification any more");
    if (is_synthetic) return OkStatus();
    ASSIGN_OR_RETURN(const std::vector<ChunkWork> work, ListChunks(manifest, {&spec}));
    std::vector<std::byte> buffer;
    for (const ChunkWork& chunk : work) {
      buffer.resize(chunk.bytes);
      const ManifestTensor& tensor = manifest.tensors[chunk.tensor];
      if (::pread(extent.fd.get(), buffer.data(), buffer.size(),
                  static_cast<off_t>(chunk.extent_offset)) != static_cast<ssize_t>(buffer.size()) ||
          ChecksumOf(buffer) != tensor.chunks[chunk.chunk]) {
        return DataLossError("resident memory, " + DescribeChunk(tensor, chunk.chunk));
      }
    }
    return OkStatus();
  }

  Status health() const override {
    const MutexLock lock(mutex_);
    return health_;
  }
  Status Probe() override {
    const MutexLock lock(mutex_);
    ++probes_;
    if (!found_by_probe_.ok()) health_ = found_by_probe_;
    return health_;
  }
  std::optional<uint64_t> FreeBytes() const override {
    const MutexLock lock(mutex_);
    return free_bytes_;
  }
  void HostExtentReady(std::shared_ptr<const ResidentExtent> extent) override {
    const MutexLock lock(mutex_);
    host_extents_.insert(extent->key);
  }
  void HostExtentGone(const Digest& key) override {
    const MutexLock lock(mutex_);
    host_extents_.erase(key);
  }

 private:
  ResidentExtent Resident(const ExtentSpec& spec, ReadOnlyRegion region) const
      TRIMS_REQUIRES(mutex_) {
    ResidentExtent extent;
    if (allocate_) extent.allocation = allocate_();
    extent.key = spec.key;
    extent.bytes = AllocationBytes(spec.bytes);
    extent.map_bytes = region.size();
    extent.fd = std::move(region).TakeFd();
    return extent;
  }

  // Waits behind the gate. The flag has no notification, so it is looked at often.
  void Wait(const LoadControl& control) {
    const MutexLock lock(mutex_);
    ++loads_started_;
    if (is_holding_) {
      ++held_;
      changed_.NotifyAll();
      while (is_holding_ && !control.cancelled) {
        changed_.WaitUntil(mutex_, std::chrono::steady_clock::now() + std::chrono::milliseconds(1));
      }
      --held_;
    }
  }

  std::optional<Status> TakeFailure() {
    const MutexLock lock(mutex_);
    if (load_failures_left_ <= 0) return std::nullopt;
    --load_failures_left_;
    return load_failure_;
  }

  Result<std::vector<ResidentExtent>> LoadAll(const LoadJob& job, LoadControl& control) {
    Wait(control);
    bool is_synthetic = false;
    {
      const MutexLock lock(mutex_);
      is_synthetic = is_synthetic_;
      NoteOffer(job);
      uint64_t need = 0;
      for (const ExtentSpec* extent : job.extents) need += AllocationBytes(extent->bytes);
      if (machine_bytes_ && need > *machine_bytes_) {
        return ResourceExhaustedError("the fake machine has " + std::to_string(*machine_bytes_) +
                                      " bytes and " + std::to_string(need) + " are needed");
      }
    }
    if (!is_synthetic && job.source != nullptr &&
        job.manifest->file_identities != job.source->Identities()) {
      return AbortedError("the file is no longer the one of the manifest");
    }
    ASSIGN_OR_RETURN(const std::vector<ChunkWork> work, ListChunks(*job.manifest, job.extents));
    uint64_t total = 0;
    for (const ChunkWork& chunk : work) total += chunk.bytes;
    if (control.on_progress) control.on_progress(0, total);
    if (control.cancelled) return CancelledError("nobody waits for this load any more");
    if (std::optional<Status> failure = TakeFailure()) {
      if (control.on_progress) control.on_progress(total / 2, total);
      return *failure;
    }
    std::vector<WritableRegion> regions;
    for (const ExtentSpec* extent : job.extents) {
      ASSIGN_OR_RETURN(WritableRegion region,
                       WritableRegion::Create("trims:fake", extent->bytes, PageKind::kPlain));
      regions.push_back(std::move(region));
    }
    uint64_t done = 0;
    for (const ChunkWork& chunk : work) {
      if (control.cancelled) return CancelledError("nobody waits for this load any more");
      if (!is_synthetic) {
        const std::shared_ptr<const ResidentExtent> copy = Offered(job, chunk.extent);
        RETURN_IF_ERROR(copy != nullptr ? CopyFrom(*copy, job, chunk, regions[chunk.extent])
                                        : Copy(job, chunk, regions[chunk.extent]));
      }
      done += chunk.bytes;
      if (control.on_progress) control.on_progress(done, total);
    }
    std::vector<ResidentExtent> resident;
    for (size_t i = 0; i < regions.size(); ++i) {
      ASSIGN_OR_RETURN(ReadOnlyRegion sealed, std::move(regions[i]).Seal());
      const MutexLock lock(mutex_);
      resident.push_back(Resident(*job.extents[i], std::move(sealed)));
    }
    return resident;
  }

  void NoteOffer(const LoadJob& job) TRIMS_REQUIRES(mutex_) {
    last_offer_ = {.has_source = job.source != nullptr, .host = {}, .peer = {}};
    for (size_t i = 0; i < job.extents.size(); ++i) {
      const Digest& key = job.extents[i]->key;
      if (i < job.host.size() && job.host[i] != nullptr) last_offer_.host[key] = job.host[i];
      if (i < job.peer.size() && job.peer[i] != nullptr) last_offer_.peer[key] = job.peer[i];
    }
  }

  static std::shared_ptr<const ResidentExtent> Offered(const LoadJob& job, size_t extent) {
    if (extent < job.peer.size() && job.peer[extent] != nullptr) return job.peer[extent];
    return extent < job.host.size() ? job.host[extent] : nullptr;
  }

  // The layout is the same in every tier.
  static Status CopyFrom(const ResidentExtent& copy, const LoadJob& job, const ChunkWork& chunk,
                         WritableRegion& region) {
    const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
    const auto place = region.bytes().subspan(chunk.extent_offset, chunk.bytes);
    if (::pread(copy.fd.get(), place.data(), place.size(),
                static_cast<off_t>(chunk.extent_offset)) != static_cast<ssize_t>(place.size()) ||
        ChecksumOf(place) != tensor.chunks[chunk.chunk]) {
      return DataLossError("a resident copy, " + DescribeChunk(tensor, chunk.chunk));
    }
    return OkStatus();
  }

  static Status Copy(const LoadJob& job, const ChunkWork& chunk, WritableRegion& region) {
    const ManifestTensor& tensor = job.manifest->tensors[chunk.tensor];
    const SourceFile& file = job.source->files()[tensor.file];
    const auto place = region.bytes().subspan(chunk.extent_offset, chunk.bytes);
    const ssize_t done =
        ::pread(file.fd.get(), place.data(), place.size(),
                static_cast<off_t>(tensor.offset + uint64_t{chunk.chunk} * kChunkBytes));
    if (done == static_cast<ssize_t>(place.size()) &&
        ChecksumOf(place) == tensor.chunks[chunk.chunk]) {
      return OkStatus();
    }
    RETURN_IF_ERROR(job.source->CheckUnchanged());
    return DataLossError(job.source->DescribeFile(tensor.file) + ", " +
                         DescribeChunk(tensor, chunk.chunk));
  }

  const std::string name_;
  mutable Mutex mutex_;
  CondVar changed_;
  Status load_failure_ TRIMS_GUARDED_BY(mutex_);
  int load_failures_left_ TRIMS_GUARDED_BY(mutex_) = 0;
  bool is_holding_ TRIMS_GUARDED_BY(mutex_) = false;
  bool is_synthetic_ TRIMS_GUARDED_BY(mutex_) = false;
  int held_ TRIMS_GUARDED_BY(mutex_) = 0;
  std::optional<uint64_t> machine_bytes_ TRIMS_GUARDED_BY(mutex_);
  std::optional<uint64_t> free_bytes_ TRIMS_GUARDED_BY(mutex_);
  std::function<std::shared_ptr<const void>()> allocate_ TRIMS_GUARDED_BY(mutex_);
  Status health_ TRIMS_GUARDED_BY(mutex_);
  Status found_by_probe_ TRIMS_GUARDED_BY(mutex_);
  bool is_holding_checks_ TRIMS_GUARDED_BY(mutex_) = false;
  std::vector<Digest> verified_ TRIMS_GUARDED_BY(mutex_);
  std::set<Digest> host_extents_ TRIMS_GUARDED_BY(mutex_);
  Offer last_offer_ TRIMS_GUARDED_BY(mutex_);
  int probes_ TRIMS_GUARDED_BY(mutex_) = 0;
  std::set<Digest> damaged_ TRIMS_GUARDED_BY(mutex_);
  std::map<Digest, int> loads_of_ TRIMS_GUARDED_BY(mutex_);
  int loads_started_ TRIMS_GUARDED_BY(mutex_) = 0;
  int loads_finished_ TRIMS_GUARDED_BY(mutex_) = 0;
  int loads_failed_ TRIMS_GUARDED_BY(mutex_) = 0;
  int adoptions_ TRIMS_GUARDED_BY(mutex_) = 0;
  int verifications_ TRIMS_GUARDED_BY(mutex_) = 0;
};

}  // namespace trims

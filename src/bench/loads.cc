#include "bench/loads.h"

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "bench/device.h"
#include "bench/model.h"
#include "bench/parallel.h"
#include "bench/read_floor.h"
#include "bench/timing.h"

namespace trims::bench {
namespace {

// The disk's best: how many threads read it fastest is different for each.
Result<unsigned> BestDiskThreads(const Rig& rig, const Model& model) {
  unsigned best = 1;
  double least = 0;
  for (const unsigned threads : {1U, 2U, 4U}) {
    RETURN_IF_ERROR(DropFromPageCache(model.path(), rig.interrupts()));
    ASSIGN_OR_RETURN(const double seconds,
                     MeasureRead(model.path(), ReadKind::kDirect, threads, rig.interrupts()));
    if (least == 0 || seconds < least) {
      least = seconds;
      best = threads;
    }
  }
  return best;
}

class LoadBench final {
 public:
  LoadBench(Rig& rig, const LoadSource& source, const WeightsFileSpec& spec)
      : rig_(rig), source_(source), spec_(spec) {}

  Result<LoadFigures> Run(int runs) {
    ASSIGN_OR_RETURN(model_, Model::Make(rig_, spec_));
    figures_.tensors = spec_.tensors;
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(AddFloors());
    for (int i = 0; i < runs; ++i) RETURN_IF_ERROR(RunOnce());
    for (LinkFloor& floor : figures_.floors)
      floor.measure = nullptr;  // They work with this object.
    return std::move(figures_);
  }

 private:
  // Until the source holds the model, and holds it for good.
  Status Prepare() {
    if (source_.from == From::kPeer) {
      if (rig_.place().uuid.empty()) return InternalError("a peer of the host");
      Result<Device> peer = Device::Open(source_.peer.uuid);
      RETURN_IF_ERROR(peer.status());
      peer_ = std::move(*peer);
    }
    const Place host;
    const Place& first = source_.from == From::kPeer   ? source_.peer
                         : source_.from == From::kHost ? host
                                                       : rig_.place();
    const uint64_t pinned_before = HostPinnedBytes();
    std::optional<Result<Lease>> lease;
    figures_.first = TimeOf([&] { lease = rig_.Open(model_->name(), first); });
    RETURN_IF_ERROR(lease->status());
    figures_.bytes = spec_.bytes;
    figures_.allocated_bytes = (*lease)->total_bytes();
    if (source_.from == From::kHost || source_.from == From::kPeer) {
      source_lease_ = std::move(**lease);  // Nothing that is leased is evicted.
      keep_ = {first.tier};
    }
    lease.reset();
    if (source_.from == From::kHost) {
      ASSIGN_OR_RETURN(figures_.host_pinned,
                       WaitUntilPinned(pinned_before + figures_.allocated_bytes));
    }
    if (source_.from == From::kDisk) {
      ASSIGN_OR_RETURN(disk_threads_, BestDiskThreads(rig_, *model_));
    }
    return OkStatus();
  }

  uint64_t HostPinnedBytes() {
    v1::GetStatusResponse now;
    return rig_.control().GetStatus(v1::GetStatusRequest(), &now).ok() ? now.host_pinned_bytes()
                                                                       : 0;
  }

  // The daemon pins host memory in the background. False when it has stopped before `bytes`.
  Result<bool> WaitUntilPinned(uint64_t bytes) {
    constexpr std::chrono::milliseconds kPoll(20);
    constexpr int kPollsWithoutGrowth = 500;
    uint64_t last = 0;
    for (int still = 0; still < kPollsWithoutGrowth; ++still) {
      const uint64_t now = HostPinnedBytes();
      if (now >= bytes) return true;
      if (now > last) still = 0;
      last = now;
      RETURN_IF_ERROR(rig_.interrupts().Wait(kPoll));
    }
    return false;
  }

  Status AddFloors() {
    const uint64_t file_bytes = model_->file_bytes();
    const auto add = [this](std::string key, std::string text, uint64_t bytes,
                            std::function<Result<double>()> measure) {
      figures_.floors.push_back({std::move(key), std::move(text), bytes, std::move(measure), {}});
    };
    if (source_.from == From::kPageCache) {
      const unsigned threads = ReadThreads();
      add("page_cache_read", "read of the page cache, " + Threads(threads), file_bytes,
          [this, threads] {
            return MeasureRead(model_->path(), ReadKind::kPageCache, threads, rig_.interrupts());
          });
    }
    if (source_.from == From::kDisk) {
      add("disk_read", "read past the page cache, " + Threads(disk_threads_) + " of 8 MiB blocks",
          file_bytes, [this] {
            return MeasureRead(model_->path(), ReadKind::kDirect, disk_threads_, rig_.interrupts());
          });
    }
    if (source_.from == From::kPeer) {
      add("peer_copy", "copy from " + source_.text + " to " + rig_.place().text, figures_.bytes,
          [this] { return rig_.device()->MeasureCopyFrom(*peer_, figures_.bytes); });
    } else if (rig_.device() != nullptr) {
      add("pinned_copy", "copy of pinned memory to " + rig_.place().text, figures_.bytes,
          [this] { return rig_.device()->MeasureCopy(Device::Copy::kFromHost, figures_.bytes); });
    }
    // Buffers are made and links set up before anything counts.
    for (LinkFloor& floor : figures_.floors) {
      const Result<double> ignored = floor.measure();
      RETURN_IF_ERROR(ignored.status());
    }
    return OkStatus();
  }

  static std::string Threads(unsigned count) {
    return std::to_string(count) + (count == 1 ? " thread" : " threads");
  }

  Status RunOnce() {
    RETURN_IF_ERROR(rig_.KeepOnly(model_->name(), keep_));
    RETURN_IF_ERROR(rig_.WaitUntilCleared(figures_.allocated_bytes));
    if (source_.from == From::kDisk)
      RETURN_IF_ERROR(DropFromPageCache(model_->path(), rig_.interrupts()));
    for (LinkFloor& floor : figures_.floors) {
      ASSIGN_OR_RETURN(const double seconds, floor.measure());
      floor.samples.Add(seconds);
    }
    // From here on nothing happens but the load.
    std::optional<Result<Lease>> lease;
    const double seconds = TimeOf([&] { lease = rig_.Open(model_->name(), rig_.place()); });
    RETURN_IF_ERROR(lease->status());
    const bool loaded = (*lease)->was_loaded();
    lease.reset();
    if (!loaded) return AbortedError("the model was resident: somebody else opened it meanwhile");
    figures_.load.Add(seconds);
    return rig_.interrupts().Check();
  }

  Rig& rig_;
  const LoadSource& source_;
  const WeightsFileSpec spec_;
  std::unique_ptr<Model> model_;
  std::optional<Device> peer_;
  Lease source_lease_;  // After model_: closed before that is removed.
  std::vector<std::string> keep_;
  unsigned disk_threads_ = 1;
  LoadFigures figures_;
};

}  // namespace

Result<LoadFigures> MeasureLoads(Rig& rig, const LoadSource& source, const WeightsFileSpec& spec,
                                 int runs) {
  return LoadBench(rig, source, spec).Run(runs);
}

}  // namespace trims::bench

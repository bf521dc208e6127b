#include "daemon/watchman.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "daemon/log.h"

namespace trims {
namespace {

using store::ReplicaKey;
using store::ReplicaState;

// Checks after leases take at most a tenth of a device's time.
constexpr int kCheckPauseFactor = 9;
// Between two steps of a scrub at least, and between two looks at an idle device.
constexpr Duration kScrubPauseMin = std::chrono::milliseconds(50);
constexpr Duration kProbeInterval = std::chrono::seconds(1);

}  // namespace

struct Watchman::CheckWork {
  ReplicaKey replica;
  uint64_t generation = 0;
  Tier* tier = nullptr;
  std::shared_ptr<const LentReplica> lent;
  std::shared_ptr<const Layout> layout;
  std::shared_ptr<LoadControl> control;

  // Found.
  Status status;
  std::vector<Digest> wrong;
  Time started{};
  Time ended{};
};

Watchman::Watchman(Parts parts, Settings settings)
    : parts_(std::move(parts)), settings_(std::move(settings)) {
  for (const store::TierIndex tier : parts_.tiers->device_tiers()) devices_[tier];
}

// --- One check ---------------------------------------------------------------------

void Watchman::Check(const ReplicaKey& replica, std::shared_ptr<LoadControl> control,
                     std::function<void(Status)> done) {
  const std::optional<store::ReplicaView> view = parts_.store->Find(replica);
  const std::shared_ptr<ModelContents> contents = parts_.contents->Find(replica.model);
  if (!view || view->state != ReplicaState::kReady || contents == nullptr)
    return done(FailedPreconditionError("this replica is not ready"));
  Result<std::shared_ptr<const LentReplica>> lent = parts_.residents->Lend(replica);
  if (!lent.ok()) return done(lent.status());
  Result<std::shared_ptr<const Layout>> layout =
      contents->LayoutAt(replica.granularity, settings_.slab_bytes);
  if (!layout.ok()) return done(layout.status());
  ++checks_started_;
  auto work = std::make_shared<CheckWork>();
  work->replica = replica;
  work->generation = view->generation;
  work->tier = &(*parts_.tiers)[replica.tier];
  work->lent = *std::move(lent);
  work->layout = *layout;
  work->control = std::move(control);
  DeviceLoaders* const device = parts_.loaders->device(replica.tier);
  LoaderPool& pool = device != nullptr ? device->checks : parts_.loaders->named;
  pool.Run([this, work, done = std::move(done)] {
    CheckOnLoaderThread(*work);
    parts_.reactor->Post("checked", [this, work, done] { FinishCheck(*work, done); });
  });
}

void Watchman::CheckOnLoaderThread(CheckWork& work) {
  work.started = Now();
  uint64_t before = 0;
  for (size_t i = 0; i < work.layout->extents.size(); ++i) {
    LoadControl part;
    part.cancelled = work.control->cancelled.load();
    part.on_progress = [&](uint64_t bytes, uint64_t) {
      if (work.control->cancelled) part.cancelled = true;
      if (work.control->on_progress)
        work.control->on_progress(before + bytes, work.lent->total_bytes);
    };
    const Status one = work.tier->Verify(*work.lent->extents[i], work.layout->extents[i],
                                         *work.lent->manifest, part);
    before += work.lent->extent_bytes[i];
    if (one.ok()) continue;
    if (work.status.ok() || one.code() != StatusCode::kDataLoss) work.status = one;
    if (one.code() != StatusCode::kDataLoss) break;
    work.wrong.push_back(work.layout->extents[i].key);  // The others may be shared and good.
  }
  work.ended = Now();
  work.lent.reset();  // Not the last to let go of it, if it can be helped.
}

void Watchman::FinishCheck(const CheckWork& work, const std::function<void(Status)>& done) {
  parts_.profile->Span("verify", "verify", work.started, work.ended,
                       {{"model_name", parts_.contents->NameOf(work.replica.model)}});
  if (!work.wrong.empty()) {
    parts_.apply(
        store::QuarantineAsked{work.replica, work.status.message(), work.generation, work.wrong});
  }
  NoticeLost(work.replica.tier);
  done(work.status);
}

// --- After leases --------------------------------------------------------------------

bool Watchman::IsTrusted(uint32_t uid) const {
  return uid == 0 || uid == ::geteuid() ||
         std::find(settings_.trusted_uids.begin(), settings_.trusted_uids.end(), uid) !=
             settings_.trusted_uids.end();
}

void Watchman::OnLeaseEnded(const ReplicaKey& replica, uint32_t uid) {
  if (!parts_.tiers->IsDevice(replica.tier) || IsTrusted(uid)) return;
  Wanted& wanted = devices_.at(replica.tier).wanted[replica];
  if (std::exchange(wanted.is_wanted, true) || wanted.is_running) return;
  // Not from inside the store's own actions.
  parts_.reactor->RunAt(std::max(wanted.not_before, Now()), "start check",
                        [this, replica] { StartWanted(replica); });
}

void Watchman::Forget(const ReplicaKey& replica) {
  const auto device = devices_.find(replica.tier);
  if (device == devices_.end()) return;
  const auto it = device->second.wanted.find(replica);
  if (it != device->second.wanted.end() && !it->second.is_running) device->second.wanted.erase(it);
}

// One check at a time for each replica, and a pause after it: a thousand short leases must
// not take the device's memory from those who compute.
void Watchman::StartWanted(const ReplicaKey& replica) {
  auto& all = devices_.at(replica.tier).wanted;
  const auto it = all.find(replica);
  if (it == all.end() || it->second.is_running || !it->second.is_wanted) return;
  if (!parts_.store->Find(replica)) {
    all.erase(it);
    return;
  }
  it->second.is_running = true;
  it->second.is_wanted = false;
  Check(replica, std::make_shared<LoadControl>(),
        [this, replica, started = Now()](const Status& status) {
          FinishWanted(replica, started, status);
        });
}

void Watchman::FinishWanted(const ReplicaKey& replica, Time started, const Status& status) {
  auto& all = devices_.at(replica.tier).wanted;
  const auto it = all.find(replica);
  if (it == all.end()) return;
  Wanted& wanted = it->second;
  wanted.is_running = false;
  wanted.not_before = Now() + kCheckPauseFactor * (Now() - started);
  const bool is_gone = status.code() == StatusCode::kFailedPrecondition;
  if (is_gone || (!wanted.is_wanted && !parts_.store->Find(replica))) {
    all.erase(it);
  } else if (wanted.is_wanted) {
    parts_.reactor->RunAt(wanted.not_before, "start check",
                          [this, replica] { StartWanted(replica); });
  }
}

// --- The scrub -----------------------------------------------------------------------

void Watchman::StartScrub() {
  for (const auto& [tier, device] : devices_) ScrubAfter(tier, kProbeInterval);
}

void Watchman::ScrubAfter(store::TierIndex tier, Duration pause) {
  if (devices_.at(tier).is_lost) return;
  parts_.reactor->RunAt(Now() + pause, "scrub", [this, tier] { ScrubStep(tier); });
}

// The one after the last, in the order of their keys.
std::optional<store::ReplicaSummary> Watchman::NextToScrub(store::TierIndex tier) const {
  if (settings_.scrub_bytes_per_second == 0) return std::nullopt;
  const std::optional<ReplicaKey>& last = devices_.at(tier).last_scrubbed;
  std::optional<store::ReplicaSummary> first, next;
  parts_.store->ForEachReplica([&](const store::ReplicaSummary& each) {
    if (each.replica.tier != tier || each.state != ReplicaState::kReady) return;
    const bool is_later = !last || *last < each.replica;
    if (is_later && (!next || each.replica < next->replica)) next = each;
    if (!first || each.replica < first->replica) first = each;
  });
  return next ? next : first;
}

// Checks one replica, then rests as long as its bytes take at the configured rate. A device
// without any is looked at now and then, too.
void Watchman::ScrubStep(store::TierIndex tier) {
  const std::optional<store::ReplicaSummary> next = NextToScrub(tier);
  if (!next) {
    parts_.loaders->device(tier)->checks.Run([this, tier, device = &(*parts_.tiers)[tier]] {
      (void)!device->Probe().ok();
      parts_.reactor->Post("probed", [this, tier] {
        NoticeLost(tier);
        ScrubAfter(tier, kProbeInterval);
      });
    });
    return;
  }
  devices_.at(tier).last_scrubbed = next->replica;
  const auto pause = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
      static_cast<double>(next->bytes) / static_cast<double>(settings_.scrub_bytes_per_second)));
  Check(next->replica, std::make_shared<LoadControl>(),
        [this, tier, pause](const Status&) { ScrubAfter(tier, std::max(pause, kScrubPauseMin)); });
}

void Watchman::NoticeLost(store::TierIndex tier) {
  const auto device = devices_.find(tier);
  if (device == devices_.end() || device->second.is_lost) return;
  const Status health = (*parts_.tiers)[tier].health();
  if (health.ok()) return;
  device->second.is_lost = true;
  const std::string& name = parts_.tiers->name(tier);
  LogError("device lost, other tiers serve on", {{"tier", name}, {"reason", health.message()}});
  std::set<Digest> models;
  parts_.store->ForEachReplica([&](const store::ReplicaSummary& each) {
    if (each.replica.tier == tier && each.state == ReplicaState::kReady)
      models.insert(each.replica.model);
  });
  // Clients may still hold the memory; nobody new gets it.
  for (const Digest& model : models) parts_.apply(store::EvictAsked{model, tier, /*force=*/true});
  if (parts_.on_tier_lost) parts_.on_tier_lost(name);
}

}  // namespace trims

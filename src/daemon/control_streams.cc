// Calls that go on for a while: their progress is noted down on the reactor's and the
// loaders' threads, and told by the caller's.
#include <algorithm>
#include <atomic>
#include <deque>
#include <set>
#include <utility>

#include "base/mutex.h"
#include "daemon/control_calls.h"
#include "daemon/control_requests.h"
#include "store/store.h"

namespace trims {
namespace {

// Events that a watcher who reads slowly may leave unread.
constexpr size_t kMaxWatchBacklog = 4096;

Status CallerIsGone() { return CancelledError("the caller is gone"); }

// Of Load: what was heard last.
class ProgressBoard final {
 public:
  void Note(OpenPhase phase, uint64_t done, uint64_t total) {
    const MutexLock lock(mu_);
    if (phase != phase_) began_ = Now();
    phase_ = phase;
    done_ = done;
    total_ = total;
    is_fresh_ = true;
  }
  // Nothing when it was told already less than `every` ago.
  std::optional<v1::LoadProgress> Tell(Duration every) {
    const MutexLock lock(mu_);
    const Time now = Now();
    if (now - told_ < (is_fresh_ ? every / 4 : every)) return std::nullopt;
    told_ = now;
    is_fresh_ = false;
    v1::LoadProgress progress;
    progress.set_phase(static_cast<v1::LoadPhase>(static_cast<int>(phase_) + 1));
    progress.set_done_bytes(done_);
    progress.set_total_bytes(total_);
    const double seconds = std::chrono::duration<double>(now - began_).count();
    if (seconds > 0.05) progress.set_bytes_per_second(static_cast<double>(done_) / seconds);
    return progress;
  }

 private:
  Mutex mu_;
  OpenPhase phase_ TRIMS_GUARDED_BY(mu_) = OpenPhase::kQueued;
  uint64_t done_ TRIMS_GUARDED_BY(mu_) = 0;
  uint64_t total_ TRIMS_GUARDED_BY(mu_) = 0;
  bool is_fresh_ TRIMS_GUARDED_BY(mu_) = true;
  Time began_ TRIMS_GUARDED_BY(mu_) = Now();
  Time told_ TRIMS_GUARDED_BY(mu_){};
};

struct LoadAnswer {
  Status status;
  store::ReplicaKey replica;
  uint64_t bytes = 0;
  bool was_resident = false;
};

}  // namespace

Status ControlCalls::Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
                          const Cancelled& cancelled) {
  OpenRequest load;
  load.model = request.model();
  load.is_admin = true;
  load.take_lease = false;
  ASSIGN_OR_RETURN(load.granularity, GranularityOf(request));
  ASSIGN_OR_RETURN(load.keep_alive, KeepAliveOf(request));
  ASSIGN_OR_RETURN(const Named named, NameOrDigest(request.model()));
  ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, FindTier(request.tier()));
  load.tier = tier;

  const auto board = std::make_shared<ProgressBoard>();
  const auto later = std::make_shared<Later<LoadAnswer>>();
  store::OpenId open = 0;
  RETURN_IF_ERROR(OnReactor("load", [&] {
    // What is answered while it is asked, or was ready before, needed no load.
    const auto is_asking = std::make_shared<bool>(true);
    const Time asked = Now();
    open = registry_->NewOpenId();
    registry_->Open(
        open, std::move(load),
        [registry = registry_, later, is_asking, asked](const OpenResult& result) {
          LoadAnswer answer{.status = result.status, .replica = result.replica};
          const auto replica = result.status.ok() ? registry->store().Summary(result.replica)
                                                  : std::optional<store::ReplicaSummary>();
          if (replica) {
            answer.bytes = replica->bytes;
            answer.was_resident = *is_asking || replica->loaded_at < asked;
          }
          later->Set(std::move(answer));
        },
        [board](OpenPhase phase, uint64_t done, uint64_t total) {
          board->Note(phase, done, total);
        });
    *is_asking = false;
    return OkStatus();
  }));
  const auto tell = [&]() -> Status {
    if (cancelled()) return CallerIsGone();
    const std::optional<v1::LoadProgress> progress = board->Tell(kProgressEvery);
    return progress && !emit(*progress) ? CallerIsGone() : OkStatus();
  };
  Status waited = later->WaitFor(Duration::zero()) ? OkStatus() : tell();
  if (waited.ok()) waited = Await(*later, tell);
  if (!waited.ok()) {
    (void)!OnReactor("cancel load", [&] { return registry_->CancelOpen(open), OkStatus(); }).ok();
    return waited;
  }
  const LoadAnswer answer = later->Take();
  RETURN_IF_ERROR(answer.status);

  v1::LoadProgress ready;
  ready.set_phase(v1::LOAD_PHASE_READY);
  ready.set_done_bytes(answer.bytes);
  ready.set_total_bytes(answer.bytes);
  ready.set_already_resident(answer.was_resident);
  SnapshotRequest look = RequestFor(named);
  look.digests = {answer.replica.model};
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  FillNamed(named, snapshot, answer.replica.model, ready.mutable_model());
  (void)emit(ready);
  return OkStatus();
}

Status ControlCalls::Verify(const v1::VerifyRequest& request, const Emit<v1::VerifyProgress>& emit,
                            const Cancelled& cancelled) {
  ASSIGN_OR_RETURN(const std::optional<store::TierIndex> tier, FindTier(request.tier()));
  SnapshotRequest look;
  std::optional<Digest> model;
  std::optional<Named> named;
  if (!request.model().empty()) {
    ASSIGN_OR_RETURN(named, NameOrDigest(request.model()));
    look = RequestFor(*named);
  }
  ASSIGN_OR_RETURN(const Snapshot snapshot, Look(look));
  if (named) {
    ASSIGN_OR_RETURN(model, ContentsOf(*named, snapshot));
  }
  std::vector<store::ReplicaSummary> targets;
  uint64_t total = 0;
  for (const store::ReplicaSummary& replica : snapshot.replicas) {
    if (replica.state != store::ReplicaState::kReady || (named && replica.replica.model != model) ||
        (tier && replica.replica.tier != *tier)) {
      continue;
    }
    targets.push_back(replica);
    total += replica.bytes;
  }
  if (targets.empty() && named) {
    return NotFoundError("\"" + request.model() + "\" is not resident" +
                         (request.tier().empty() ? "" : " in tier " + request.tier()));
  }
  Status failed;  // What could not be checked, first of all.
  uint64_t before = 0;
  for (const store::ReplicaSummary& target : targets) {
    const store::ReplicaKey& key = target.replica;
    const auto later = std::make_shared<Later<Status>>();
    const auto done = std::make_shared<std::atomic<uint64_t>>(0);
    const auto control = std::make_shared<LoadControl>();
    control->on_progress = [done](uint64_t bytes, uint64_t) { *done = bytes; };
    const Time start = Now();
    RETURN_IF_ERROR(OnReactor("verify", [&] {
      registry_->Verify(key, control, [later](Status status) { later->Set(std::move(status)); });
      return OkStatus();
    }));
    Time told = start;
    const Status waited = Await(*later, [&]() -> Status {
      if (cancelled()) return CallerIsGone();
      if (Now() - told < kProgressEvery) return OkStatus();
      told = Now();
      v1::VerifyProgress progress;
      progress.set_done_bytes(before + std::min(done->load(), target.bytes));
      progress.set_total_bytes(total);
      return emit(progress) ? OkStatus() : CallerIsGone();
    });
    if (!waited.ok()) {
      control->cancelled = true;
      return waited;
    }
    const Status status = later->Take();
    before += target.bytes;
    const std::string name = snapshot.models.at(key.model).name.empty()
                                 ? "@" + key.model.ToString()
                                 : snapshot.models.at(key.model).name;
    if (status.code() == StatusCode::kFailedPrecondition) continue;  // It went away meanwhile.
    if (!status.ok() && status.code() != StatusCode::kDataLoss) {
      if (failed.ok()) {
        failed = Status(status.code(), name + " in tier " + tier_names_[key.tier] +
                                           " could not be checked: " + status.message());
      }
      continue;
    }
    v1::VerifyProgress progress;
    progress.set_done_bytes(before);
    progress.set_total_bytes(total);
    v1::VerifyVerdict* const verdict = progress.mutable_verdict();
    verdict->set_model(name);
    verdict->set_digest(key.model.ToString());
    verdict->set_intact(status.ok());
    if (!status.ok()) verdict->set_detail(status.message());
    SetDuration(Now() - start, verdict->mutable_took());
    store::ReplicaSummary afterwards = target;
    afterwards.state = store::ReplicaState::kAbsent;
    RETURN_IF_ERROR(OnReactor("verdict", [&] {
      registry_->store().ForEachReplica([&](const store::ReplicaSummary& replica) {
        if (replica.generation == target.generation) afterwards = replica;
      });
      return OkStatus();
    }));
    v1::ReplicaView* const view = verdict->mutable_replica();
    if (afterwards.state != store::ReplicaState::kAbsent) {
      FillReplica(Moment::Current(), tier_names_, afterwards, view);
    } else {
      view->set_tier(tier_names_[key.tier]);
      view->set_granularity(ToProto(key.granularity));
      view->set_state(v1::REPLICA_STATE_ABSENT);
    }
    if (!emit(progress)) return CallerIsGone();
  }
  return failed;
}

// --- Watching ----------------------------------------------------------------------------

struct ControlCalls::Watcher {
  std::string name;              // "": of all names.
  std::optional<Digest> digest;  // nullopt: of all contents.
  std::set<int> kinds;           // Empty: all.

  Mutex mu;
  CondVar changed;
  std::deque<Happening> events TRIMS_GUARDED_BY(mu);
  uint64_t dropped TRIMS_GUARDED_BY(mu) = 0;

  void Put(const Happening& happening) {
    const MutexLock lock(mu);
    if (events.size() >= kMaxWatchBacklog) {
      ++dropped;
      return;
    }
    events.push_back(happening);
    changed.NotifyAll();
  }
};

void ControlCalls::Tell(const Happening& happening) {
  for (const std::shared_ptr<Watcher>& watcher : watchers_) {
    if (!watcher->kinds.empty() && !watcher->kinds.contains(happening.kind)) continue;
    if (watcher->digest && watcher->digest != happening.digest) continue;
    // Contents bear the name that led to them last; others lead to them, too.
    const bool is_named = watcher->name.empty() || watcher->name == happening.model ||
                          (happening.replica && registry_->DigestOfName(watcher->name) ==
                                                    std::optional(happening.replica->model));
    if (is_named) watcher->Put(happening);
  }
}

Status ControlCalls::Watch(const v1::WatchRequest& request, const std::function<void()>& watching,
                           const Emit<v1::Event>& emit, const Cancelled& cancelled) {
  const auto watcher = std::make_shared<Watcher>();
  ASSIGN_OR_RETURN(watcher->kinds, EventKindsOf(request));
  if (!request.model().empty()) {
    ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(request.model()));
    watcher->digest = reference.digest;
    watcher->name = reference.name;
  }
  RETURN_IF_ERROR(OnReactor("watch", [&] {
    watchers_.push_back(watcher);
    if (watchers_.size() > 1) return OkStatus();
    observer_ = registry_->AddObserver([this](const store::Notify& notify) {
      Happening happening;
      happening.kind = ToProto(notify.kind);
      if (happening.kind == v1::EVENT_KIND_UNSPECIFIED) return;
      happening.at = Now();
      happening.model = registry_->NameOf(notify.replica.model);
      happening.digest = notify.replica.model;
      happening.replica = notify.replica;
      if (const auto replica = registry_->store().Summary(notify.replica))
        happening.bytes = replica->bytes;
      happening.detail = notify.detail;
      Tell(happening);
    });
    return OkStatus();
  }));
  watching();
  bool is_there = true;
  const auto tell = [&](const Happening& happening) {
    v1::Event event;
    FillEvent(Moment::Current(), tier_names_, happening, &event);
    is_there = is_there && emit(event);
  };
  while (is_there && !cancelled()) {
    std::deque<Happening> batch;
    uint64_t dropped = 0;
    {
      const MutexLock lock(watcher->mu);
      const Time deadline = Now() + kPollInterval;
      while (watcher->events.empty() && watcher->changed.WaitUntil(watcher->mu, deadline)) {
      }
      batch.swap(watcher->events);
      std::swap(dropped, watcher->dropped);
    }
    for (const Happening& happening : batch) tell(happening);
    if (dropped > 0) {
      Happening missing;
      missing.at = Now();
      missing.kind = v1::EVENT_KIND_DROPPED;
      missing.dropped = dropped;
      tell(missing);
    }
  }
  const Status ended = OnReactor("end watch", [&] {
    std::erase(watchers_, watcher);
    if (watchers_.empty()) registry_->RemoveObserver(observer_);
    return OkStatus();
  });
  return ended.ok() ? CallerIsGone() : ended;
}

}  // namespace trims

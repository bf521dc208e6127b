#include "daemon/registry.h"

#include <algorithm>
#include <tuple>
#include <variant>

#include "daemon/log.h"

namespace trims {
namespace {

using store::ReplicaKey;

// Threads of each pool that loads models, and of one load or look.
constexpr int kLoaderThreadsMax = 4;
constexpr int kIoThreadsMax = 8;

ProfileServer ProfiledServer(const DaemonConfig& config) {
  return {std::string(store::PolicyName(config.eviction_policy)), config.estimation_rate,
          config.persist_cpu, config.memory_percentage, config.base_dir};
}

}  // namespace

// The parts, each with what it may use and whom it tells. Nothing is called before all of
// them are there.
Registry::Registry(Reactor* reactor, Options options)
    : reactor_(reactor),
      config_(std::move(options.config)),
      id_base_(options.id_base),
      tiers_(std::move(options.tiers), options.devices),
      profile_(config_.write_profile ? Profile(ProfiledServer(config_)) : Profile()),
      store_(StoreConfig()),
      loaders_(std::make_unique<Loaders>(ThreadCount(config_.loader_threads, kLoaderThreadsMax),
                                         tiers_.device_tiers())),
      ledger_(options.link),
      rates_(reactor, loaders_.get(), &tiers_, &ledger_),
      contents_(
          reactor, loaders_.get(),
          {.catalogue = std::move(options.catalogue),
           .sidecars = std::move(options.sidecars),
           .bytes_max = tiers_.largest_budget_bytes(),
           .threads = ThreadCount(config_.io_threads, kIoThreadsMax),
           .on_names_changed = [this](const auto& contents) { OnNamesChanged(contents); },
           .on_look_progress = [this](const LookKey& key, uint64_t done,
                                      uint64_t total) { opens_.OnLookProgress(key, done, total); },
           .on_looked = [this](const LookKey& key,
                               const Contents::Looked& looked) { opens_.OnLooked(key, looked); }}),
      residents_({.reactor = reactor,
                  .tiers = &tiers_,
                  .loaders = loaders_.get(),
                  .contents = &contents_,
                  .ledger = &ledger_,
                  .rates = &rates_,
                  .profile = &profile_,
                  .store = &store_,
                  .apply = [this](const store::Event& event) { Apply(event); },
                  .on_progress =
                      [this](const ReplicaKey& replica, uint64_t done, uint64_t total) {
                        opens_.OnLoadProgress(replica, OpenPhase::kLoading, done, total);
                      },
                  .on_ended =
                      [this](const ReplicaKey& replica, const Status& status,
                             const Readable& readable) { OnLoadEnded(replica, status, readable); }},
                 config_.slab_bytes),
      opens_({.reactor = reactor,
              .tiers = &tiers_,
              .contents = &contents_,
              .residents = &residents_,
              .rates = &rates_,
              .profile = &profile_,
              .store = &store_,
              .apply = [this](const store::Event& event) { Apply(event); }},
             OpenSettings(), id_base_),
      watchman_({.reactor = reactor,
                 .tiers = &tiers_,
                 .loaders = loaders_.get(),
                 .contents = &contents_,
                 .residents = &residents_,
                 .profile = &profile_,
                 .store = &store_,
                 .apply = [this](const store::Event& event) { Apply(event); },
                 .on_tier_lost = std::move(options.on_tier_lost)},
                WatchSettings()),
      adoption_({.reactor = reactor,
                 .tiers = &tiers_,
                 .loaders = loaders_.get(),
                 .contents = &contents_,
                 .residents = &residents_,
                 .ledger = &ledger_,
                 .rates = &rates_,
                 .store = &store_,
                 .apply = [this](const store::Event& event) { Apply(event); },
                 .on_progress =
                     [this](const ReplicaKey& replica, uint64_t done, uint64_t total) {
                       opens_.OnLoadProgress(replica, OpenPhase::kVerifying, done, total);
                     },
                 .on_ended =
                     [this](const ReplicaKey& replica, const Status& status) {
                       if (status.code() == StatusCode::kDataLoss) ++quarantines_;
                       if (!status.ok()) watchman_.NoticeLost(replica.tier);
                     }}) {}

Registry::~Registry() {
  contents_.CancelLooks();
  residents_.CancelAll();
  adoption_.CancelAll();
  loaders_.reset();
  if (timer_at_) reactor_->CancelTimer(timer_);
}

void Registry::StartBackground() {
  rates_.Measure(config_.state_dir);
  watchman_.StartScrub();
}

// --- Settings ------------------------------------------------------------------------

store::Config Registry::StoreConfig() const {
  store::Config result;
  result.tiers = tiers_.ForStore();
  result.policy = config_.eviction_policy;
  result.estimation_rate = config_.estimation_rate;
  result.estimate_with_internal_memory = config_.estimate_with_internal_memory;
  result.keep_alive = config_.keep_alive;
  result.persist_host = config_.persist_cpu;
  result.persist_only_host = config_.persist_only_cpu;
  result.leases_per_uid_max = config_.leases_per_uid_max;
  result.leased_bytes_per_uid_max = config_.leased_bytes_per_uid_max;
  result.id_base = id_base_;
  result.random_seed = id_base_ ^ 0x9E3779B97F4A7C15u;
  return result;
}

Opens::Settings Registry::OpenSettings() const {
  return {.slab_bytes = config_.slab_bytes, .persist_host = config_.persist_cpu};
}

Watchman::Settings Registry::WatchSettings() const {
  return {.slab_bytes = config_.slab_bytes,
          .scrub_bytes_per_second = config_.scrub_bytes_per_second,
          .trusted_uids = config_.trusted_uids};
}

void Registry::ApplyConfig(const DaemonConfig& config) {
  config_ = config;
  opens_.SetSettings(OpenSettings());
  residents_.SetSlabBytes(config_.slab_bytes);
  watchman_.SetSettings(WatchSettings());
  Apply(store::ConfigChanged{StoreConfig()});
}

RegistryCounters Registry::counters() const {
  const OpenCounters& opens = opens_.counters();
  return {.opens = opens.answered,
          .opens_hit = opens.hits,
          .opens_failed = opens.failed,
          .verifications = watchman_.checks_started(),
          .quarantines = quarantines_};
}

// --- For callers ---------------------------------------------------------------------

void Registry::Open(store::OpenId id, OpenRequest request, Done done, Progress progress) {
  opens_.Open(id, std::move(request), std::move(done), std::move(progress));
}

Status Registry::Close(store::SessionId session, store::LeaseId lease,
                       uint64_t peak_internal_bytes) {
  if (!store_.HasLease(session, lease)) {
    return NotFoundError("this session holds no lease " + std::to_string(lease));
  }
  const Time start = Now();
  Apply(store::LeaseClosed{session, lease, peak_internal_bytes});
  profile_.Span("close", "grpc", start, Now(), {});
  return OkStatus();
}

void Registry::Reattach(store::OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                        const ReplicaKey& replica, uint64_t generation, Done done) {
  opens_.Reattach(id, session, uid, is_admin, replica, generation, std::move(done));
}

Registry::EvictOutcome Registry::Evict(const Digest& model, std::optional<store::TierIndex> tier,
                                       bool force) {
  EvictOutcome outcome;
  store_.ForEachReplica([&](const store::ReplicaSummary& replica) {
    if (replica.replica.model == model && (!tier || replica.replica.tier == *tier))
      outcome.before.push_back(replica);
  });
  std::sort(outcome.before.begin(), outcome.before.end(), [](const auto& a, const auto& b) {
    return std::tie(a.replica, a.generation) < std::tie(b.replica, b.generation);
  });
  if (!tier || *tier == tiers_.host()) opens_.CancelOwn(model);
  evict_outcome_ = &outcome;
  for (store::TierIndex each = 0; force && each < tiers_.size(); ++each) {
    if ((!tier || each == *tier) && store_.IsPinned(model, each)) Pin(model, each, false);
  }
  Apply(store::EvictAsked{model, tier, force});
  evict_outcome_ = nullptr;
  return outcome;
}

void Registry::Do(store::EvictResult& action) {
  if (evict_outcome_ != nullptr) evict_outcome_->result = std::move(action);
}

// Outlives this worker, as the keeper has it.
void Registry::Pin(const Digest& model, store::TierIndex tier, bool pinned) {
  if (pinned) {
    ledger_.PutPin(tiers_.name(tier), model);
  } else {
    ledger_.Drop(PinLedgerKey(tiers_.name(tier), model));
  }
  Apply(store::PinAsked{model, tier, pinned});
}

uint64_t Registry::AddObserver(Observer observer) {
  observers_[next_observer_] = std::move(observer);
  return next_observer_++;
}

// --- What parts tell ------------------------------------------------------------------

void Registry::OnNamesChanged(const std::shared_ptr<ModelContents>& contents) {
  Apply(store::VisibilityChanged{contents->digest(), contents->is_public()});
  residents_.Refresh(contents);
}

void Registry::OnLoadEnded(const ReplicaKey& replica, const Status& status,
                           const Readable& readable) {
  if (!status.ok()) return watchman_.NoticeLost(replica.tier);
  if (tiers_.IsDevice(replica.tier)) opens_.KeepOnHost(replica, readable);
}

// --- The store ------------------------------------------------------------------------

void Registry::Apply(const store::Event& event) {
  for (store::Action& action : store_.Apply(event, Now()))
    std::visit([this](auto& what) { Do(what); }, action);
  ArmTimer();
}

void Registry::ArmTimer() {
  const std::optional<Time> next = store_.NextDeadline();
  if (next == timer_at_) return;
  if (timer_at_) reactor_->CancelTimer(timer_);
  timer_at_ = next;
  if (!next) return;
  timer_ = reactor_->RunAt(*next, "store deadline", [this] {
    timer_at_.reset();
    Apply(store::Tick{});
  });
}

void Registry::Do(store::StartLoad& action) {
  const std::shared_ptr<ModelContents> contents = contents_.Find(action.replica.model);
  TRIMS_CHECK(contents != nullptr);
  const Opens::Waiting waiting = opens_.WaitingFor(action.replica);
  Readable readable = contents_.FilesOf(*contents);
  LoaderPool* pool = &loaders_->named;
  if (readable.source == nullptr && waiting.brought.source != nullptr) {
    readable = waiting.brought;
    pool = readable.source->has_forgeable_identity() ? &loaders_->foreign : &loaders_->passed;
  }
  if (waiting.is_anybody && !waiting.is_wanted) pool = &loaders_->background;
  residents_.Start(action, readable, *pool);
}

// Who may have it outlives this worker.
void Registry::Do(store::AccessProved& action) { residents_.RecordAll(action.model); }

void Registry::Do(store::CancelLoad& action) {
  residents_.Cancel(action.load);
  adoption_.Cancel(action.load);
}

void Registry::Do(store::Notify& action) {
  using Kind = store::Notify::Kind;
  const ReplicaKey& replica = action.replica;
  switch (action.kind) {
    case Kind::kReady:
      // The ledger before any reply: when a client has a lease, the keeper knows of it.
      residents_.Record(replica);
      break;
    case Kind::kQuarantined:
      ++quarantines_;
      LogError("wrong bytes in a resident model, quarantined",
               {{"model", NameOf(replica.model)},
                {"digest", replica.model.ToString()},
                {"tier", tiers_.name(replica.tier)},
                {"detail", action.detail}});
      residents_.Forget(replica, action.generation);
      watchman_.Forget(replica);
      break;
    case Kind::kEvicted:
    case Kind::kExpired:
      LogInfo(action.kind == Kind::kEvicted ? "evicted" : "expired",
              {{"model", NameOf(replica.model)},
               {"tier", tiers_.name(replica.tier)},
               {"detail", action.detail}});
      profile_.Span("perform_eviction", "evict", Now(), Now(),
                    {{"policy", std::string(store::PolicyName(config_.eviction_policy))},
                     {"model_name", NameOf(replica.model)}});
      residents_.Forget(replica, action.generation);
      watchman_.Forget(replica);
      break;
    case Kind::kReleased:
      if (action.uid) watchman_.OnLeaseEnded(replica, *action.uid);
      break;
    default:
      break;
  }
  for (const auto& [id, observer] : observers_) observer(action);
}

void Registry::CheckInvariants() const {
  store_.CheckInvariants();
  contents_.CheckInvariants();
  opens_.CheckInvariants();
  residents_.CheckInvariants();
  for (const store::ReplicaView& view : store_.Replicas()) {
    const std::shared_ptr<ModelContents> contents = contents_.Find(view.replica.model);
    TRIMS_CHECK(contents != nullptr && contents->is_public() == view.is_public);
  }
}

}  // namespace trims

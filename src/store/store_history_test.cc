// Seeded random histories over the store, at least 1,000,000 events in all,
// judged by a model of the outside world that knows nothing of how the store
// works: it carries out the actions (memory that is loaded, held and released in
// each tier; leases; opens that wait) and says what must never happen:
//
//   - an extent is loaded while it is there or on its way, or two loads run for one replica;
//   - an extent is released while a lease uses it (unless it was found bad), or twice;
//   - a lease is given on memory that is not there or not verified;
//   - an open is answered twice or never, or waits while nothing is being loaded;
//   - a replica in use, pinned, loading or just adopted is evicted;
//   - the memory in use exceeds the budget, or is not what the store says it is;
//   - something is evicted for a request that is then refused.
//
// A failure prints the seed. TRIMS_TEST_SEED=n repeats one seed; TRIMS_TEST_EVENTS=n
// sets the number of events of each history. Under sanitizers, and without
// optimisation, histories are a tenth as long.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "store/store_fixture.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TRIMS_SLOW_BUILD 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define TRIMS_SLOW_BUILD 1
#endif

namespace trims::store {
namespace {

constexpr int kHistoriesPerPolicy = 24;
#ifdef TRIMS_SLOW_BUILD
constexpr uint64_t kEvents = 550;
#else
constexpr uint64_t kEvents = 5'500;
static_assert(kEvents * kHistoriesPerPolicy * 8 >= 1'000'000);
#endif

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

// SplitMix64: the same history for the same seed on every platform.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return Next() % n; }
  bool Percent(uint64_t percent) { return Below(100) < percent; }
  template <typename Container>
  const auto& Of(const Container& container) {
    auto it = container.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(Below(container.size())));
    return *it;
  }

 private:
  uint64_t state_;
};

// One allocation in a tier. Another allocation of the same key is another copy.
struct Copy {
  uint64_t bytes = 0;
  bool verified = false;
  uint32_t leases = 0;
};
using CopyPointer = std::shared_ptr<Copy>;

struct OutsideTier {
  std::map<Digest, CopyPointer> copies;
  std::map<Digest, LoadId> arriving;
  std::vector<CopyPointer> bad;  // Let go by the store, but mapped by clients.
  uint64_t ceiling = 0;
};

struct OutsideLoad {
  ReplicaKey replica;
  std::vector<Extent> extents;
  bool adoption = false;
  bool cancelled = false;
};

struct OutsideLease {
  SessionId session = 0;
  uint32_t uid = 0;
  ReplicaKey replica;
  uint64_t generation = 0;
  std::vector<CopyPointer> copies;
};

struct OutsideOpen {
  enum class Kind { kOpen, kResident, kReattach, kLoad };
  Kind kind = Kind::kOpen;
  SessionId session = 0;
  uint32_t uid = 0;
  bool may_see = false;  // Public, administrator or proved, now or earlier.
  ReplicaKey replica;
};

class History {
 public:
  History(PolicyKind policy, uint64_t seed) : dice_(seed) {
    Invent(policy);
    store_ = std::make_unique<Store>(config_);
  }

  void Run(uint64_t events) {
    for (uint64_t i = 0; i < events && !::testing::Test::HasFailure(); ++i) {
      now_ += std::chrono::milliseconds(dice_.Below(400));
      Play();
      // Every event while there is little to check, else often.
      if (leases_.size() < 24 || i % 16 == 0) Compare();
    }
    if (!::testing::Test::HasFailure()) GoHome();
  }

  uint64_t leases_given() const { return leases_given_; }
  uint64_t evictions() const { return evictions_; }
  uint64_t refusals() const { return refusals_; }
  uint64_t quarantines() const { return quarantines_; }

 private:
  // --- The world -----------------------------------------------------------------

  void Invent(PolicyKind policy) {
    policy_ = policy;
    const uint64_t tiers = 1 + dice_.Below(3);
    const uint64_t models = 3 + dice_.Below(12);
    const uint64_t pieces = 4 + dice_.Below(24);
    std::vector<Extent> pool;
    for (uint64_t i = 0; i < pieces; ++i) {
      pool.push_back({.key = NumberedDigest(10'000 + i), .bytes = 1 + dice_.Below(40)});
    }
    uint64_t total = 0;
    for (uint64_t i = 0; i < models; ++i) {
      for (Granularity granularity :
           {Granularity::kModel, Granularity::kSlab, Granularity::kLayer}) {
        ModelPlan plan;
        plan.model = NumberedDigest(i);
        plan.name = "m" + std::to_string(i);
        plan.is_public = i % 4 != 3;
        if (granularity == Granularity::kModel) {
          plan.extents = {{.key = NumberedDigest(20'000 + i), .bytes = 1 + dice_.Below(120)}};
          total += plan.extents[0].bytes;
        } else {
          const uint64_t count = dice_.Below(7);
          for (uint64_t k = 0; k < count; ++k) plan.extents.push_back(dice_.Of(pool));
        }
        if (dice_.Percent(30)) plan.reload_cost = std::chrono::milliseconds(dice_.Below(5000));
        plans_[{plan.model, granularity}] = plan;
      }
      models_.push_back(NumberedDigest(i));
    }
    for (uint64_t i = 0; i < tiers; ++i) {
      config_.tiers.push_back(
          {.name = "tier" + std::to_string(i), .budget_bytes = 1 + total / 4 + dice_.Below(total)});
    }
    tiers_.resize(tiers);
    config_.policy = policy;
    config_.random_seed = dice_.Next();
    config_.id_base = 1'000'000 + dice_.Below(1000);
    Reconfigure();
    for (size_t i = 0; i < tiers; ++i) tiers_[i].ceiling = config_.tiers[i].budget_bytes;
  }

  void Reconfigure() {
    config_.estimation_rate =
        dice_.Percent(70) ? 1.0 : 0.5 + 0.1 * static_cast<double>(dice_.Below(20));
    config_.estimate_with_internal_memory = dice_.Percent(70);
    config_.keep_alive.reset();
    if (dice_.Percent(50)) config_.keep_alive = std::chrono::milliseconds(dice_.Below(20'000));
    config_.persist_host = dice_.Percent(80);
    config_.persist_only_host = dice_.Percent(20);
    config_.leases_per_uid_max =
        dice_.Percent(60) ? 65536 : 3 + static_cast<uint32_t>(dice_.Below(20));
    config_.leased_bytes_per_uid_max = dice_.Percent(80) ? 0 : 50 + dice_.Below(300);
    config_.adoption_grace = std::chrono::milliseconds(dice_.Below(5000));
  }

  TierIndex AnyTier() { return static_cast<TierIndex>(dice_.Below(tiers_.size())); }
  Granularity AnyGranularity() {
    return dice_.Percent(50) ? Granularity::kModel : static_cast<Granularity>(1 + dice_.Below(3));
  }
  SessionId AnySession() { return session_base_ + dice_.Below(8); }
  // The uid of a session; four uids, the last of them an administrator.
  static uint32_t UidOf(SessionId session) { return 1000 + static_cast<uint32_t>(session % 4); }
  static bool IsAdmin(uint32_t uid) { return uid == 1003; }
  const ModelPlan& PlanFor(const Digest& model, Granularity granularity) {
    return plans_.at({model, granularity});
  }
  std::optional<std::optional<Duration>> AnyKeepAlive() {
    if (!dice_.Percent(10)) return std::nullopt;
    if (dice_.Percent(30)) return std::optional<Duration>();
    return std::optional<Duration>(std::chrono::milliseconds(dice_.Below(8000)));
  }
  Status AnyError() {
    return dice_.Percent(50) ? DataLossError("wrong sum") : UnavailableError("no answer");
  }

  // --- Events --------------------------------------------------------------------

  void Play() {
    const uint64_t roll = dice_.Below(1000);
    if (roll < 300) return PlayOpen();
    if (roll < 360) return PlayOpenResident();
    if (roll < 540) return PlayClose();
    if (roll < 760) return PlayLoadEnd();
    if (roll < 800) return PlayCancel();
    if (roll < 830) return PlaySessionEnd();
    if (roll < 860) return PlayPrefetch();
    if (roll < 885) return PlayAdoption();
    if (roll < 905) return PlayReattach();
    if (roll < 915) return PlayPin();
    if (roll < 925) return PlayVisibility();
    if (roll < 945) return PlayEvict();
    if (roll < 957) return PlayQuarantine();
    if (roll < 962) return PlayConfig();
    Apply(Tick{});
  }

  void PlayOpen() {
    const SessionId session = AnySession();
    OpenAsked event;
    event.open = next_open_++;
    event.session = session;
    event.uid = UidOf(session);
    event.is_admin = IsAdmin(event.uid);
    event.tier = AnyTier();
    event.granularity = AnyGranularity();
    event.plan = PlanFor(dice_.Of(models_), event.granularity);
    event.proved_access = dice_.Percent(15);
    event.keep_alive = AnyKeepAlive();
    if (event.proved_access) proved_.insert({event.plan.model, event.uid});
    Await(event.open, {.kind = OutsideOpen::Kind::kOpen,
                       .session = session,
                       .uid = event.uid,
                       .may_see = MaySee(event.plan.model, event.uid),
                       .replica = {event.plan.model, event.tier, event.granularity}});
    Apply(event);
  }

  void PlayOpenResident() {
    const SessionId session = AnySession();
    OpenResidentAsked event;
    event.open = next_open_++;
    event.session = session;
    event.uid = UidOf(session);
    event.is_admin = IsAdmin(event.uid);
    event.tier = AnyTier();
    if (dice_.Percent(50)) event.granularity = AnyGranularity();
    event.model = dice_.Of(models_);
    event.proved_access = dice_.Percent(10);
    event.keep_alive = AnyKeepAlive();
    if (event.proved_access) proved_.insert({event.model, event.uid});
    Await(event.open,
          {.kind = OutsideOpen::Kind::kResident,
           .session = session,
           .uid = event.uid,
           .may_see = MaySee(event.model, event.uid),
           .replica = {event.model, event.tier, event.granularity.value_or(Granularity::kModel)}});
    Apply(event);
  }

  void PlayPrefetch() {
    LoadAsked event;
    event.open = next_open_++;
    event.tier = AnyTier();
    event.granularity = AnyGranularity();
    event.plan = PlanFor(dice_.Of(models_), event.granularity);
    event.keep_alive = AnyKeepAlive();
    Await(event.open, {.kind = OutsideOpen::Kind::kLoad,
                       .may_see = true,
                       .replica = {event.plan.model, event.tier, event.granularity}});
    Apply(event);
  }

  void PlayReattach() {
    const SessionId session = AnySession();
    ReattachAsked event;
    event.open = next_open_++;
    event.session = session;
    event.uid = UidOf(session);
    event.is_admin = IsAdmin(event.uid);
    event.replica = {dice_.Of(models_), AnyTier(), AnyGranularity()};
    event.generation = dice_.Below(50);
    Await(event.open, {.kind = OutsideOpen::Kind::kReattach,
                       .session = session,
                       .uid = event.uid,
                       .may_see = MaySee(event.replica.model, event.uid),
                       .replica = event.replica});
    Apply(event);
  }

  void PlayClose() {
    if (leases_.empty() || dice_.Percent(5)) {
      // Unknown, closed before, or another session's: no effect at all.
      LeaseClosed event{.session = AnySession(),
                        .lease = config_.id_base + dice_.Below(leases_given_ + 3)};
      if (!leases_.empty() && dice_.Percent(50)) {
        event.lease = dice_.Of(leases_).first;
        event.session = leases_.at(event.lease).session + 1;
      }
      const auto it = leases_.find(event.lease);
      if (it != leases_.end() && it->second.session == event.session) return;
      EXPECT_FALSE(store_->HasLease(event.session, event.lease));
      EXPECT_TRUE(Apply(event).empty());
      return;
    }
    const LeaseId lease = dice_.Of(leases_).first;
    LeaseClosed event{.session = leases_.at(lease).session, .lease = lease};
    EXPECT_TRUE(store_->HasLease(event.session, event.lease));
    if (dice_.Percent(30)) event.peak_internal_bytes = dice_.Below(60);
    if (dice_.Percent(1)) event.peak_internal_bytes = ~uint64_t{0};
    EndLease(lease);
    Apply(event);
  }

  void PlayLoadEnd() {
    if (loads_.empty() || dice_.Percent(3)) {
      const LoadId unknown = 1'000'000'000 + dice_.Below(5);
      EXPECT_TRUE(dice_.Percent(50) ? Apply(LoadFinished{.load = unknown}).empty()
                                    : Apply(LoadFailed{.load = unknown}).empty());
      return;
    }
    const LoadId id = dice_.Of(loads_).first;
    const bool fails = loads_.at(id).cancelled ? dice_.Percent(80) : dice_.Percent(15);
    EndLoad(id, fails);
  }

  void EndLoad(LoadId id, bool fails) {
    const OutsideLoad load = loads_.at(id);
    loads_.erase(id);
    OutsideTier& tier = tiers_[load.replica.tier];
    for (const Extent& extent : load.extents) {
      if (load.adoption) {
        const auto it = tier.copies.find(extent.key);
        // May have been found bad by another check meanwhile.
        if (!fails && it != tier.copies.end()) it->second->verified = true;
        continue;
      }
      EXPECT_EQ(tier.arriving.erase(extent.key), 1u);
      if (fails) continue;
      EXPECT_FALSE(tier.copies.contains(extent.key));
      tier.copies[extent.key] =
          std::make_shared<Copy>(Copy{.bytes = extent.bytes, .verified = true});
    }
    if (fails) {
      LoadFailed event{.load = id, .status = load.cancelled ? CancelledError("") : AnyError()};
      uint64_t bytes = 0;
      for (const Extent& extent : load.extents) bytes += extent.bytes;
      if (!load.cancelled && !load.adoption && bytes > 0 && dice_.Percent(50)) {
        event.status = ResourceExhaustedError("others use the memory, too");
        event.free_bytes = dice_.Below(bytes);
      }
      Apply(event);
    } else {
      if (load.adoption) {
        grace_[load.replica] = now_ + config_.adoption_grace;
      }
      Apply(LoadFinished{.load = id});
    }
  }

  void PlayCancel() {
    if (waiting_.empty()) return;
    const OpenId open = dice_.Percent(90) ? dice_.Of(waiting_).first : dice_.Below(next_open_);
    const bool waits = waiting_.contains(open);
    const auto actions = Apply(OpenCancelled{.open = open});
    if (!waits) {
      EXPECT_TRUE(actions.empty());
    } else {
      EXPECT_EQ(All<ReplyError>(actions).size(), 1u);
      EXPECT_EQ(All<ReplyError>(actions)[0].status.code(), StatusCode::kCancelled);
    }
    EXPECT_FALSE(waiting_.contains(open));
  }

  void PlaySessionEnd() {
    const SessionId session = AnySession();
    std::vector<LeaseId> gone;
    for (const auto& [id, lease] : leases_) {
      if (lease.session == session) gone.push_back(id);
    }
    for (LeaseId id : gone) EndLease(id);
    Apply(SessionEnded{.session = session});
    for (const auto& [open, who] : waiting_) {
      EXPECT_TRUE(who.kind == OutsideOpen::Kind::kLoad || who.session != session)
          << "an open outlives its session";
    }
    EXPECT_TRUE(Apply(SessionEnded{.session = session}).empty());
    if (dice_.Percent(50)) ++session_base_;  // Session numbers move on.
  }

  void PlayAdoption() {
    AdoptionStarted event;
    event.load = store_->NewLoadId();
    event.tier = AnyTier();
    event.granularity = AnyGranularity();
    event.plan = PlanFor(dice_.Of(models_), event.granularity);
    event.generation = dice_.Percent(20) ? 0 : adopted_generation_++;
    event.pinned = dice_.Percent(10);
    OutsideTier& tier = tiers_[event.tier];
    const ReplicaKey key{event.plan.model, event.tier, event.granularity};
    std::set<Digest> brought;
    for (const Extent& extent : event.plan.extents) {
      if (tier.copies.contains(extent.key) || tier.arriving.contains(extent.key)) continue;
      tier.copies[extent.key] = std::make_shared<Copy>(Copy{.bytes = extent.bytes});
      brought.insert(extent.key);
    }
    // Accepted unless it is refused below.
    const LoadId load = event.load;
    loads_[load] = {.replica = key, .extents = event.plan.extents, .adoption = true};
    refused_adoption_ = false;
    const auto actions = Apply(event);
    if (refused_adoption_) {
      loads_.erase(load);
      for (const Digest& digest : brought) {
        EXPECT_FALSE(tier.copies.contains(digest)) << "a refused adoption is not let go";
      }
      return;
    }
    EXPECT_TRUE(Released(actions).empty());
    if (event.pinned) pinned_.insert({event.plan.model, event.tier});
    for (const auto& [id, other] : loads_) {
      EXPECT_TRUE(id == load || other.replica != key) << "adopted while it is loading";
    }
  }

  void PlayPin() {
    PinAsked event{.model = dice_.Of(models_), .tier = AnyTier(), .pinned = dice_.Percent(30)};
    const bool was = pinned_.contains({event.model, event.tier});
    if (event.pinned) {
      pinned_.insert({event.model, event.tier});
    } else {
      pinned_.erase({event.model, event.tier});
    }
    const auto results = All<PinResult>(Apply(event));
    ASSERT_EQ(results.size(), 1u);
    EXPECT_EQ(results[0].changed, was != event.pinned);
  }

  // Names come and go. What opens say later agrees with it.
  void PlayVisibility() {
    const VisibilityChanged event{.model = dice_.Of(models_), .is_public = dice_.Percent(50)};
    for (Granularity granularity : {Granularity::kModel, Granularity::kSlab, Granularity::kLayer}) {
      const auto plan = plans_.find({event.model, granularity});
      if (plan != plans_.end()) plan->second.is_public = event.is_public;
    }
    EXPECT_TRUE(Apply(event).empty());
    const std::optional<bool> is_public = store_->IsPublic(event.model);
    EXPECT_TRUE(!is_public.has_value() || *is_public == event.is_public);
  }

  void PlayEvict() {
    EvictAsked event{.model = dice_.Of(models_), .force = dice_.Percent(30)};
    if (dice_.Percent(60)) event.tier = AnyTier();
    const auto results = All<EvictResult>(Apply(event));
    ASSERT_EQ(results.size(), 1u);
    const EvictResult& result = results[0];
    EXPECT_EQ(result.found,
              result.evicted + result.draining + result.cancelled + result.kept.size());
    for (const EvictResult::Kept& kept : result.kept) {
      EXPECT_FALSE(kept.reason.empty());
      EXPECT_EQ(kept.leases, LeasesOn(kept.replica, kept.generation));
      EXPECT_EQ(kept.holders.size(), std::min<size_t>(kept.leases, kMaxHoldersReported));
    }
  }

  void PlayQuarantine() {
    const auto views = store_->Replicas();
    if (views.empty()) return;
    const ReplicaView& view = dice_.Of(views);
    QuarantineAsked event{.replica = view.replica, .reason = "scrub"};
    if (dice_.Percent(50)) event.generation = view.generation;
    if (dice_.Percent(50) && !view.extents.empty()) {
      event.extents = {dice_.Of(view.extents).key};
    }
    for (const Extent& extent : view.extents) quarantinable_.insert(extent.key);
    ++quarantines_;
    Apply(event);
    quarantinable_.clear();
  }

  void PlayConfig() {
    if (dice_.Percent(50)) Reconfigure();
    if (dice_.Percent(30)) {
      for (TierConfig& tier : config_.tiers) {
        tier.budget_bytes = 1 + tier.budget_bytes / 2 + dice_.Below(tier.budget_bytes + 40);
      }
    }
    // A visit to another policy, mostly home again.
    config_.policy = dice_.Percent(70) ? policy_ : static_cast<PolicyKind>(dice_.Below(8));
    Apply(ConfigChanged{.config = config_});
    for (size_t i = 0; i < tiers_.size(); ++i) {
      tiers_[i].ceiling = std::max(config_.tiers[i].budget_bytes, UsedIn(i));
    }
  }

  // --- What the outside knows ------------------------------------------------------

  bool MaySee(const Digest& model, uint32_t uid) {
    return PlanFor(model, Granularity::kModel).is_public || IsAdmin(uid) ||
           proved_.contains({model, uid});
  }

  void Await(OpenId open, OutsideOpen who) { waiting_.emplace(open, std::move(who)); }

  uint32_t LeasesOn(const ReplicaKey& key, uint64_t generation) const {
    const auto it = lease_counts_.find({key, generation});
    return it == lease_counts_.end() ? 0 : it->second;
  }

  void EndLease(LeaseId id) {
    const auto it = leases_.find(id);
    const OutsideLease& lease = it->second;
    const auto count = lease_counts_.find({lease.replica, lease.generation});
    if (--count->second == 0) lease_counts_.erase(count);
    for (const CopyPointer& copy : lease.copies) --copy->leases;
    std::erase_if(tiers_[lease.replica.tier].bad,
                  [](const CopyPointer& copy) { return copy->leases == 0; });
    leases_.erase(it);
  }

  uint64_t UsedIn(size_t tier) const {
    uint64_t used = 0;
    for (const auto& [key, copy] : tiers_[tier].copies) used += copy->bytes;
    for (const auto& [key, load] : tiers_[tier].arriving) {
      for (const Extent& extent : loads_.at(load).extents) {
        if (extent.key == key) used += extent.bytes;
      }
    }
    for (const CopyPointer& copy : tiers_[tier].bad) used += copy->bytes;
    return used;
  }

  // --- Carrying out ----------------------------------------------------------------

  static std::vector<Digest> Released(const std::vector<Action>& actions) {
    std::vector<Digest> keys;
    for (const ReleaseExtents& release : All<ReleaseExtents>(actions)) {
      keys.insert(keys.end(), release.extents.begin(), release.extents.end());
    }
    return keys;
  }

  std::vector<Action> Apply(const Event& event) {
    std::vector<Action> actions = store_->Apply(event, now_);
    for (const Action& action : actions) {
      std::visit([&](const auto& one) { Carry(one, event); }, action);
    }
    // Nothing is evicted for what is then not loaded.
    if (std::holds_alternative<OpenAsked>(event) || std::holds_alternative<LoadAsked>(event)) {
      if (!Notices(actions, Notify::Kind::kEvicted).empty()) {
        EXPECT_EQ(All<StartLoad>(actions).size(), 1u) << "evicted for nothing";
      }
    }
    return actions;
  }

  // The proof is known, and new.
  void Carry(const AccessProved& action, const Event& event) {
    EXPECT_TRUE(std::holds_alternative<OpenAsked>(event) ||
                std::holds_alternative<OpenResidentAsked>(event));
    EXPECT_TRUE(proved_.contains({action.model, action.uid}));
    EXPECT_TRUE(told_proved_.insert({action.model, action.uid}).second) << "told twice";
  }
  void Carry(const StartLoad& action, const Event&) {
    OutsideTier& tier = tiers_[action.replica.tier];
    EXPECT_FALSE(action.missing.empty());
    EXPECT_FALSE(loads_.contains(action.load)) << "a load number is used twice";
    for (const auto& [id, load] : loads_) {
      EXPECT_NE(load.replica, action.replica) << "two loads for one replica";
    }
    for (const Extent& extent : action.missing) {
      EXPECT_FALSE(tier.copies.contains(extent.key)) << "loaded though it is there";
      EXPECT_FALSE(tier.arriving.contains(extent.key)) << "loaded though it is on its way";
      tier.arriving[extent.key] = action.load;
    }
    loads_[action.load] = {.replica = action.replica, .extents = action.missing};
  }

  void Carry(const CancelLoad& action, const Event&) {
    const auto it = loads_.find(action.load);
    ASSERT_NE(it, loads_.end()) << "a load that does not run is cancelled";
    EXPECT_FALSE(it->second.cancelled) << "cancelled twice";
    // Who waits for the replica, or for an extent that it brings, still wants it.
    for (const auto& entry : waiting_) {
      const OutsideOpen& who = entry.second;
      if (who.replica.tier != it->second.replica.tier) continue;
      // May have joined another granularity than the one noted here.
      if (who.kind == OutsideOpen::Kind::kResident) continue;
      EXPECT_NE(who.replica, it->second.replica) << "cancelled though an open waits";
      const bool has_own_load = std::any_of(loads_.begin(), loads_.end(), [&](const auto& one) {
        return one.second.replica == who.replica;
      });
      if (has_own_load) continue;
      for (const Extent& extent : PlanFor(who.replica.model, who.replica.granularity).extents) {
        const auto arriving = tiers_[who.replica.tier].arriving.find(extent.key);
        EXPECT_TRUE(arriving == tiers_[who.replica.tier].arriving.end() ||
                    arriving->second != action.load)
            << "cancelled though an open waits for a shared extent";
      }
    }
    it->second.cancelled = true;
  }

  void Carry(const ReleaseExtents& action, const Event& event) {
    OutsideTier& tier = tiers_[action.tier];
    for (const Digest& key : action.extents) {
      const auto it = tier.copies.find(key);
      ASSERT_NE(it, tier.copies.end()) << "released though it is not there";
      if (it->second->leases > 0) {
        EXPECT_TRUE(std::holds_alternative<QuarantineAsked>(event) && quarantinable_.contains(key))
            << "released while a lease uses it";
        tier.bad.push_back(it->second);
      }
      tier.copies.erase(it);
    }
  }

  // Takes the open out of those that wait.
  OutsideOpen Answer(OpenId open) {
    const auto it = waiting_.find(open);
    EXPECT_NE(it, waiting_.end()) << "an open is answered twice";
    if (it == waiting_.end()) return {};
    OutsideOpen who = it->second;
    waiting_.erase(it);
    return who;
  }

  std::vector<CopyPointer> Usable(const ReplicaKey& key) {
    std::vector<CopyPointer> copies;
    std::set<Digest> seen;
    for (const Extent& extent : PlanFor(key.model, key.granularity).extents) {
      if (!seen.insert(extent.key).second) continue;
      const auto it = tiers_[key.tier].copies.find(extent.key);
      EXPECT_NE(it, tiers_[key.tier].copies.end()) << "an extent is lent that is not there";
      if (it == tiers_[key.tier].copies.end()) continue;
      EXPECT_TRUE(it->second->verified) << "an extent is lent that was not verified";
      copies.push_back(it->second);
    }
    return copies;
  }

  void Carry(const ReplyLease& action, const Event&) {
    const OutsideOpen who = Answer(action.open);
    EXPECT_NE(who.kind, OutsideOpen::Kind::kLoad);
    EXPECT_EQ(who.session, action.session);
    EXPECT_EQ(who.replica.model, action.replica.model);
    EXPECT_EQ(who.replica.tier, action.replica.tier);
    if (who.kind != OutsideOpen::Kind::kResident) {
      EXPECT_EQ(who.replica.granularity, action.replica.granularity);
    }
    EXPECT_TRUE(who.may_see) << "lent to somebody who may not know of it";
    EXPECT_GT(action.lease, last_lease_) << "a lease number is used twice";
    last_lease_ = action.lease;
    ++leases_given_;
    OutsideLease lease{.session = action.session,
                       .uid = who.uid,
                       .replica = action.replica,
                       .generation = action.generation,
                       .copies = Usable(action.replica)};
    for (const CopyPointer& copy : lease.copies) ++copy->leases;
    ++lease_counts_[{action.replica, action.generation}];
    leases_.emplace(action.lease, std::move(lease));
  }

  void Carry(const ReplyReady& action, const Event&) {
    const OutsideOpen who = Answer(action.open);
    EXPECT_EQ(who.kind, OutsideOpen::Kind::kLoad);
    EXPECT_EQ(who.replica, action.replica);
    Usable(action.replica);
  }

  void Carry(const ReplyError& action, const Event& event) {
    const OutsideOpen who = Answer(action.open);
    EXPECT_FALSE(action.status.ok());
    if (action.need_bytes > 0) {
      ++refusals_;
      EXPECT_EQ(action.status.code(), StatusCode::kResourceExhausted);
      // More than the budget is in use after it was lowered.
      const uint64_t used = UsedIn(who.replica.tier);
      const uint64_t budget = config_.tiers[who.replica.tier].budget_bytes;
      const LoadFailed* failed = std::get_if<LoadFailed>(&event);
      const bool is_short = failed != nullptr && failed->free_bytes.has_value();
      if (is_short) {
        EXPECT_LE(action.free_bytes, budget - std::min(budget, used));
      } else {
        EXPECT_EQ(action.free_bytes, budget - std::min(budget, used));
      }
      const uint64_t over = used - std::min(budget, used);
      EXPECT_GT(std::max(action.need_bytes, action.need_bytes + over),
                action.free_bytes + action.evictable_bytes)
          << "refused though there is room: " << action.status.message();
    }
    if (who.kind == OutsideOpen::Kind::kOpen && !who.may_see) {
      EXPECT_EQ(action.status, UnknownModelError(who.replica.model));
    }
  }

  void Carry(const Notify& action, const Event& event) {
    const EvictAsked* asked = std::get_if<EvictAsked>(&event);
    const bool forced = asked != nullptr && asked->force;
    switch (action.kind) {
      case Notify::Kind::kEvicted:
        ++evictions_;
        EXPECT_EQ(LeasesOn(action.replica, action.generation), 0u) << "evicted while leased";
        // Those leave with their last lease; by now another generation may have the key.
        if (action.detail == "draining" || action.detail == "quarantined") break;
        // A forced evict that takes effect when the load ends.
        if (!forced && action.detail != "evicted while it was loading") {
          EXPECT_FALSE(pinned_.contains({action.replica.model, action.replica.tier}))
              << "evicted while pinned";
          const auto grace = grace_.find(action.replica);
          EXPECT_TRUE(grace == grace_.end() || grace->second <= now_)
              << "evicted when just adopted";
        }
        for (const auto& [id, load] : loads_) {
          EXPECT_NE(load.replica, action.replica) << "evicted while loading";
        }
        grace_.erase(action.replica);
        break;
      case Notify::Kind::kExpired: {
        EXPECT_EQ(LeasesOn(action.replica, action.generation), 0u) << "expired while leased";
        EXPECT_FALSE(pinned_.contains({action.replica.model, action.replica.tier}))
            << "expired while pinned";
        const auto grace = grace_.find(action.replica);
        EXPECT_TRUE(grace == grace_.end() || grace->second <= now_) << "expired when just adopted";
        grace_.erase(action.replica);
        break;
      }
      case Notify::Kind::kDraining:
        EXPECT_TRUE(forced);
        grace_.erase(action.replica);
        break;
      case Notify::Kind::kQuarantined:
        EXPECT_TRUE(std::holds_alternative<QuarantineAsked>(event));
        grace_.erase(action.replica);
        break;
      case Notify::Kind::kFailed:
        if (std::holds_alternative<AdoptionStarted>(event)) {
          refused_adoption_ = true;
        } else {
          grace_.erase(action.replica);
        }
        break;
      default:
        break;
    }
  }

  void Carry(const EvictResult&, const Event& event) {
    EXPECT_TRUE(std::holds_alternative<EvictAsked>(event));
  }
  void Carry(const PinResult&, const Event& event) {
    EXPECT_TRUE(std::holds_alternative<PinAsked>(event));
  }

  // --- Comparing -------------------------------------------------------------------

  void Compare() {
    store_->CheckInvariants();
    const std::vector<TierView> views = store_->Tiers();
    for (size_t i = 0; i < tiers_.size(); ++i) {
      OutsideTier& tier = tiers_[i];
      const uint64_t used = UsedIn(i);
      tier.ceiling = std::max(config_.tiers[i].budget_bytes, std::min(tier.ceiling, used));
      EXPECT_EQ(views[i].used_bytes, used);
      EXPECT_LE(used, std::max(tier.ceiling, config_.tiers[i].budget_bytes)) << "over the budget";
      uint64_t leased = 0;
      for (const auto& [key, copy] : tier.copies) leased += copy->leases > 0 ? copy->bytes : 0;
      for (const CopyPointer& copy : tier.bad) leased += copy->bytes;
      EXPECT_EQ(views[i].leased_bytes, leased);
      EXPECT_LE(views[i].evictable_bytes + leased, used);
    }
    const std::vector<LeaseView> leases = store_->Leases();
    ASSERT_EQ(leases.size(), leases_.size());
    for (const LeaseView& view : leases) {
      const auto it = leases_.find(view.lease);
      ASSERT_NE(it, leases_.end());
      EXPECT_EQ(view.session, it->second.session);
      EXPECT_EQ(view.uid, it->second.uid);
      EXPECT_EQ(view.replica, it->second.replica);
      EXPECT_EQ(view.generation, it->second.generation);
    }
    for (const auto& entry : waiting_) {
      const TierIndex tier = entry.second.replica.tier;
      const bool moving = std::any_of(loads_.begin(), loads_.end(), [&](const auto& one) {
        return one.second.replica.tier == tier;
      });
      EXPECT_TRUE(moving) << "an open waits for nothing";
    }
  }

  // Everything ends: what was asked is answered, and all memory is let go.
  void GoHome() {
    while (!loads_.empty() && !::testing::Test::HasFailure()) {
      EndLoad(dice_.Of(loads_).first, dice_.Percent(30));
    }
    EXPECT_TRUE(waiting_.empty()) << "an open was never answered";
    std::set<SessionId> sessions;
    for (const auto& [id, lease] : leases_) sessions.insert(lease.session);
    while (!leases_.empty()) EndLease(leases_.begin()->first);
    for (SessionId session : sessions) Apply(SessionEnded{.session = session});
    EXPECT_TRUE(store_->Leases().empty());
    for (const Digest& model : models_) Apply(EvictAsked{.model = model, .force = true});
    Compare();
    EXPECT_TRUE(store_->Replicas().empty());
    for (size_t i = 0; i < tiers_.size(); ++i) {
      EXPECT_TRUE(tiers_[i].copies.empty()) << "memory is leaked";
      EXPECT_EQ(store_->Tiers()[i].used_bytes, 0u);
    }
    EXPECT_FALSE(store_->NextDeadline().has_value());
  }

  Dice dice_;
  PolicyKind policy_{};
  Config config_;
  std::unique_ptr<Store> store_;
  Time now_{};

  std::vector<Digest> models_;
  std::map<std::pair<Digest, Granularity>, ModelPlan> plans_;
  std::vector<OutsideTier> tiers_;
  std::map<LoadId, OutsideLoad> loads_;
  std::map<LeaseId, OutsideLease> leases_;
  std::map<std::pair<ReplicaKey, uint64_t>, uint32_t> lease_counts_;
  std::map<OpenId, OutsideOpen> waiting_;
  std::set<std::pair<Digest, TierIndex>> pinned_;
  std::set<std::pair<Digest, uint32_t>> proved_;
  std::set<std::pair<Digest, uint32_t>> told_proved_;
  std::map<ReplicaKey, Time> grace_;
  std::set<Digest> quarantinable_;
  bool refused_adoption_ = false;

  OpenId next_open_ = 1;
  SessionId session_base_ = 1;
  uint64_t adopted_generation_ = 1;  // Of workers before: below id_base.
  LeaseId last_lease_ = 0;
  uint64_t leases_given_ = 0;
  uint64_t evictions_ = 0;
  uint64_t refusals_ = 0;
  uint64_t quarantines_ = 0;
};

class StoreHistory : public ::testing::TestWithParam<PolicyKind> {};

TEST_P(StoreHistory, KeepsEveryPromise) {
  const uint64_t one_seed = FromEnvironment("TRIMS_TEST_SEED", 0);
  const uint64_t events = FromEnvironment("TRIMS_TEST_EVENTS", kEvents);
  const int histories = one_seed != 0 ? 1 : kHistoriesPerPolicy;
  uint64_t leases = 0;
  uint64_t evictions = 0;
  uint64_t refusals = 0;
  uint64_t quarantines = 0;
  for (int i = 0; i < histories; ++i) {
    const uint64_t seed =
        one_seed != 0 ? one_seed
                      : 1000 * (1 + static_cast<uint64_t>(GetParam())) + static_cast<uint64_t>(i);
    SCOPED_TRACE("repeat with TRIMS_TEST_SEED=" + std::to_string(seed) + " --gtest_filter=*" +
                 std::string(PolicyName(GetParam())));
    // An invariant that breaks aborts; the seed has to be known then too.
    std::fprintf(stderr, "policy %s, seed %llu\n", std::string(PolicyName(GetParam())).c_str(),
                 static_cast<unsigned long long>(seed));
    History history(GetParam(), seed);
    history.Run(events);
    if (HasFailure()) return;
    leases += history.leases_given();
    evictions += history.evictions();
    refusals += history.refusals();
    quarantines += history.quarantines();
  }
  // A history in which nothing happens proves nothing; a single one may be dull.
  if (one_seed != 0) return;
  const uint64_t total = events * static_cast<uint64_t>(histories);
  EXPECT_GT(leases, total / 20);
  EXPECT_GT(evictions, total / 500);
  EXPECT_GT(refusals, total / 1000);
  EXPECT_GT(quarantines, total / 500);
  RecordProperty("leases", std::to_string(leases));
  RecordProperty("evictions", std::to_string(evictions));
  RecordProperty("refusals", std::to_string(refusals));
}

INSTANTIATE_TEST_SUITE_P(Policies, StoreHistory,
                         ::testing::Values(PolicyKind::kNever, PolicyKind::kLru, PolicyKind::kFifo,
                                           PolicyKind::kLcu, PolicyKind::kRandom,
                                           PolicyKind::kFlush, PolicyKind::kEager,
                                           PolicyKind::kGdsf),
                         [](const auto& one) { return std::string(PolicyName(one.param)); });

}  // namespace
}  // namespace trims::store

#include "daemon/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/test_keeper.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using store::Granularity;
using store::Notify;
using store::ReplicaKey;
using store::ReplicaState;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using WaitingPtr = std::shared_ptr<const TestTrunk::Waiting>;

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() { Start(nullptr); }

  void Start(const std::function<void(TestTrunk::Options&)>& change) {
    trunk_.reset();
    TestTrunk::Options options;
    options.devices = {"GPU-a"};
    options.link = keeper_.link();
    options.config.persist_cpu = true;
    if (change) change(options);
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
    trunk_->AddModel("a");
    trunk_->AddModel("b");
  }
  Registry& registry() { return trunk_->registry(); }
  const store::Store& store() { return trunk_->registry().store(); }
  OpenResult Open(const std::string& name, store::TierIndex tier = 0,
                  store::SessionId session = 1) {
    OpenRequest request = TestTrunk::Named(name, session);
    request.tier = tier;
    request.granularity = Granularity::kModel;
    OpenResult result = trunk_->Open(std::move(request));
    EXPECT_TRUE(result.status.ok()) << result.status.ToString();
    return result;
  }
  void Close(const OpenResult& result) { EXPECT_TRUE(registry().Close(1, result.lease, 0).ok()); }
  void Change(const std::function<void(DaemonConfig&)>& change) {
    DaemonConfig config = registry().config();
    change(config);
    registry().ApplyConfig(config);
  }
  bool IsThere(const OpenResult& result) { return store().Find(result.replica).has_value(); }

  TestKeeper keeper_;
  std::unique_ptr<TestTrunk> trunk_;
};

// --- Leases ----------------------------------------------------------------------------------

TEST_F(RegistryTest, ALeaseIsClosedBySessionAndNumberOnce) {
  const OpenResult lease = Open("a");
  EXPECT_EQ(registry().Close(2, lease.lease, 0).code(), StatusCode::kNotFound);
  EXPECT_EQ(registry().Close(1, lease.lease + 1, 0).code(), StatusCode::kNotFound);
  EXPECT_TRUE(registry().Close(1, lease.lease, 0).ok());
  EXPECT_EQ(registry().Close(1, lease.lease, 0).code(), StatusCode::kNotFound);
  EXPECT_THAT(store().Leases(), IsEmpty());
}

TEST_F(RegistryTest, WhatASessionHeldEndsWithIt) {
  Open("a");
  Open("b");
  const OpenResult other = Open("a", 0, 2);
  registry().EndSession(1);
  registry().EndSession(1);
  ASSERT_EQ(store().Leases().size(), 1u);
  EXPECT_EQ(store().Leases()[0].lease, other.lease);
}

// --- Evicting and pinning ----------------------------------------------------------------------

TEST_F(RegistryTest, EvictsNothingThatIsLeasedOrPinnedUnlessForced) {
  const OpenResult leased = Open("a"), pinned = Open("b");
  Close(pinned);
  registry().Pin(pinned.replica.model, 0, true);
  Registry::EvictOutcome outcome = registry().Evict(leased.replica.model, std::nullopt, false);
  ASSERT_EQ(outcome.before.size(), 1u);
  EXPECT_EQ(outcome.before[0].replica, leased.replica);
  EXPECT_EQ(outcome.before[0].leases, 1u);
  EXPECT_EQ(outcome.result.evicted, 0u);
  ASSERT_EQ(outcome.result.kept.size(), 1u);
  EXPECT_THAT(outcome.result.kept[0].reason, HasSubstr("1 lease"));
  outcome = registry().Evict(pinned.replica.model, std::nullopt, false);
  EXPECT_EQ(outcome.result.evicted, 0u);
  ASSERT_EQ(outcome.result.kept.size(), 1u);
  EXPECT_THAT(outcome.result.kept[0].reason, HasSubstr("pinned"));

  outcome = registry().Evict(leased.replica.model, std::nullopt, true);
  EXPECT_EQ(outcome.result.draining, 1u);
  EXPECT_EQ(store().Find(leased.replica)->state, ReplicaState::kDraining);
  Close(leased);
  EXPECT_FALSE(IsThere(leased));
  outcome = registry().Evict(pinned.replica.model, std::nullopt, true);
  EXPECT_EQ(outcome.result.evicted, 1u);
  EXPECT_GT(outcome.result.freed_bytes, 0u);
  EXPECT_FALSE(registry().IsPinned(pinned.replica.model, 0)) << "forced, so no longer wished";
  EXPECT_THAT(store().Replicas(), IsEmpty());
}

TEST_F(RegistryTest, EvictsInTheTierThatIsNamedAndElseInAll) {
  const OpenResult device = Open("a", 1), host = Open("a", 0);
  Close(device);
  Close(host);
  registry().Pin(host.replica.model, 0, true);
  registry().Pin(host.replica.model, 1, true);
  Registry::EvictOutcome outcome = registry().Evict(host.replica.model, 1, true);
  EXPECT_EQ(outcome.before.size(), 1u);
  EXPECT_EQ(outcome.result.found, 1u);
  EXPECT_TRUE(IsThere(host));
  EXPECT_FALSE(IsThere(device));
  EXPECT_TRUE(registry().IsPinned(host.replica.model, 0));
  EXPECT_FALSE(registry().IsPinned(host.replica.model, 1));
  Close(Open("a", 1));
  outcome = registry().Evict(host.replica.model, std::nullopt, true);
  EXPECT_EQ(outcome.result.evicted, 2u);
  EXPECT_THAT(store().Replicas(), IsEmpty());
  // Nothing of it is there.
  outcome = registry().Evict(host.replica.model, std::nullopt, true);
  EXPECT_EQ(outcome.result.found, 0u);
  EXPECT_THAT(outcome.before, IsEmpty());
}

TEST_F(RegistryTest, APinIsInTheLedgerAsLongAsItHolds) {
  const OpenResult lease = Open("a");
  const std::string key = PinLedgerKey("host", lease.replica.model);
  registry().Pin(lease.replica.model, 0, true);
  EXPECT_TRUE(keeper_.Ledger().contains(key));
  EXPECT_TRUE(registry().IsPinned(lease.replica.model, 0));
  registry().Pin(lease.replica.model, 0, false);
  EXPECT_FALSE(keeper_.Ledger().contains(key));
  registry().Pin(lease.replica.model, 0, true);
  registry().Evict(lease.replica.model, 0, true);
  EXPECT_FALSE(keeper_.Ledger().contains(key));
}

TEST_F(RegistryTest, AForcedEvictionOfALoadAnswersWhoWaits) {
  OpenRequest first = TestTrunk::Named("a");
  first.resolve_only = true;
  const std::string digest = "@" + trunk_->Open(std::move(first)).replica.model.ToString();
  trunk_->host().Hold();
  const WaitingPtr waiting = trunk_->Ask(TestTrunk::Named(digest));
  trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; });
  const ReplicaKey replica = store().Replicas().at(0).replica;
  EXPECT_EQ(registry().Evict(replica.model, 0, true).result.cancelled, 1u);
  ASSERT_TRUE(waiting->is_answered());
  EXPECT_EQ(waiting->result().status.code(), StatusCode::kAborted);
  trunk_->Settle();
  EXPECT_THAT(store().Replicas(), IsEmpty());
  trunk_->host().Release();
}

// --- What is told ------------------------------------------------------------------------------

TEST_F(RegistryTest, ObserversAreToldWhatHappensAsLongAsTheyWish) {
  std::vector<Notify::Kind> kinds;
  const uint64_t observer =
      registry().AddObserver([&](const Notify& notify) { kinds.push_back(notify.kind); });
  int others = 0;
  const uint64_t other = registry().AddObserver([&](const Notify&) { ++others; });
  EXPECT_NE(observer, other);
  const OpenResult lease = Open("a");
  EXPECT_THAT(kinds,
              ElementsAre(Notify::Kind::kLoading, Notify::Kind::kReady, Notify::Kind::kLeased));
  Close(lease);
  registry().Evict(lease.replica.model, 0, false);
  EXPECT_THAT(kinds, Contains(Notify::Kind::kReleased));
  EXPECT_EQ(kinds.back(), Notify::Kind::kEvicted);
  const int told = others;
  EXPECT_EQ(told, static_cast<int>(kinds.size()));
  registry().RemoveObserver(other);
  Open("a");
  EXPECT_EQ(others, told);
}

TEST_F(RegistryTest, ReadyIsToldWhenTheKeeperKnows) {
  bool is_kept = false;
  registry().AddObserver([&](const Notify& notify) {
    if (notify.kind != Notify::Kind::kReady) return;
    is_kept = keeper_.Ledger().contains(
        ReplicaLedgerKey("host", notify.replica.granularity, notify.replica.model));
  });
  Open("a");
  EXPECT_TRUE(is_kept);
}

TEST_F(RegistryTest, CountsChecksAndWhatTheyFound) {
  const OpenResult lease = Open("a");
  trunk_->host().Damage(lease.lent->extents[0]->key);
  InitLog({});
  ::testing::internal::CaptureStderr();
  std::optional<Status> checked;
  registry().Verify(lease.replica, std::make_shared<LoadControl>(),
                    [&](Status status) { checked = std::move(status); });
  trunk_->RunUntil([&] { return checked.has_value(); });
  const std::string log = ::testing::internal::GetCapturedStderr();
  InitLog({});
  EXPECT_THAT(log, HasSubstr("wrong bytes in a resident model"));
  EXPECT_THAT(log, HasSubstr(lease.replica.model.ToString()));
  EXPECT_EQ(registry().counters().verifications, 1u);
  EXPECT_EQ(registry().counters().quarantines, 1u);
  EXPECT_FALSE(keeper_.Ledger().contains(
      ReplicaLedgerKey("host", Granularity::kModel, lease.replica.model)));
}

TEST_F(RegistryTest, WhoAsksForANameOfATierOrAModelGetsIt) {
  const OpenResult lease = Open("a");
  EXPECT_EQ(registry().TierByName("gpu:gpu-a"), 1u);
  EXPECT_EQ(registry().ResolveTier("gpu").value(), 1u);
  EXPECT_EQ(&registry().tier(0), &trunk_->host());
  EXPECT_EQ(registry().devices(), nullptr);
  EXPECT_EQ(registry().NameOf(lease.replica.model), "a");
  EXPECT_EQ(registry().DigestOfName("a"), lease.replica.model);
  EXPECT_EQ(registry().FindContents(lease.replica.model)->digest(), lease.replica.model);
  registry().ForgetName("a");
  EXPECT_FALSE(registry().DigestOfName("a").has_value());
  EXPECT_FALSE(*store().IsPublic(lease.replica.model));
  registry().CheckInvariants();
}

// Loads that nobody waits for take nothing from those that somebody does.
TEST_F(RegistryTest, ACopyThatNobodyAskedForHoldsUpNoLoad) {
  Start([](TestTrunk::Options& options) { options.config.loader_threads = 1; });
  trunk_->host().Hold();
  const OpenResult device = Open("a", 1);  // Its copy on the host waits in the background.
  trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; });
  const WaitingPtr waiting = trunk_->Ask(TestTrunk::Named("b"));
  EXPECT_TRUE(trunk_->RunUntil([&] { return trunk_->host().loads_started() == 2; }));
  trunk_->host().Release();
  trunk_->Answer(waiting);
  EXPECT_TRUE(waiting->result().status.ok());
}

// --- Settings ------------------------------------------------------------------------------------

TEST_F(RegistryTest, ANewIdleTimeReachesWhatIsResident) {
  const OpenResult first = Open("a");
  Close(first);
  EXPECT_TRUE(IsThere(first));
  Change([](DaemonConfig& config) { config.keep_alive = std::chrono::milliseconds(1); });
  const OpenResult second = Open("b");
  Close(second);
  // Nobody asks: a timer is set to the store's deadline.
  EXPECT_TRUE(trunk_->RunUntil([&] { return !IsThere(second); }));
}

TEST_F(RegistryTest, TheTimerFollowsTheStoresDeadline) {
  Change([](DaemonConfig& config) { config.keep_alive = std::chrono::hours(1); });
  const OpenResult late = Open("a");
  Close(late);
  // An earlier one comes after a later one.
  OpenRequest request = TestTrunk::Named("b");
  request.keep_alive = std::optional<Duration>(std::chrono::milliseconds(1));
  const OpenResult early = trunk_->Open(std::move(request));
  Close(early);
  EXPECT_TRUE(trunk_->RunUntil([&] { return !IsThere(early); }));
  EXPECT_TRUE(IsThere(late));
  EXPECT_TRUE(store().NextDeadline().has_value());
  // It is still the timer of the other.
  Change([](DaemonConfig& config) { config.keep_alive = std::chrono::milliseconds(1); });
  Open("b");
  registry().EndSession(1);
  EXPECT_TRUE(trunk_->RunUntil([&] { return !store().NextDeadline() || !IsThere(late); }));
}

TEST_F(RegistryTest, NewSettingsReachEveryPart) {
  // The store.
  const OpenResult one = Open("a");
  Change([](DaemonConfig& config) { config.leases_per_uid_max = 1; });
  EXPECT_EQ(trunk_->Open(TestTrunk::Named("b")).status.code(), StatusCode::kResourceExhausted);
  Change([](DaemonConfig& config) {
    config.leases_per_uid_max = 0;
    config.persist_cpu = false;
    config.eviction_policy = store::PolicyKind::kNever;
  });
  EXPECT_EQ(store().config().policy, store::PolicyKind::kNever);
  Close(one);
  EXPECT_FALSE(IsThere(one)) << "the host's copies are not kept any more";
  // Opens: no copy is asked for.
  const OpenResult device = Open("a", 1);
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_started(), 1);
  Close(device);
  // Residents, which say in the ledger what layouts were made with.
  Change([](DaemonConfig& config) { config.slab_bytes = 4 * kMiB; });
  const OpenResult small = Open("b");
  const auto entry = ParseReplicaEntry(
      keeper_.Ledger().at(ReplicaLedgerKey("host", Granularity::kModel, small.replica.model)).body);
  EXPECT_EQ(entry->slab_bytes, 4 * kMiB);
  EXPECT_EQ(registry().config().slab_bytes, 4 * kMiB);
}

TEST_F(RegistryTest, ABudgetIsWhatItsTierMayHold) {
  Start([](TestTrunk::Options& options) { options.host_bytes = 16 * kKiB; });
  const OpenResult a = Open("a");  // 12 KiB.
  OpenRequest request = TestTrunk::Named("b");
  request.granularity = Granularity::kModel;
  const OpenResult refused = trunk_->Open(std::move(request));
  EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.need_bytes, 12 * kKiB);
  EXPECT_EQ(refused.free_bytes, 4 * kKiB);
  EXPECT_EQ(refused.evictable_bytes, 0u);
  Close(a);
  const OpenResult b = Open("b");
  EXPECT_FALSE(IsThere(a));
}

TEST_F(RegistryTest, AModelLargerThanEveryBudgetSaysWhatItNeedsBeforeItIsRead) {
  Start([](TestTrunk::Options& options) { options.host_bytes = options.device_bytes = 4 * kKiB; });
  const OpenResult refused = trunk_->Open(TestTrunk::Named("a"));
  EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted);
  EXPECT_GT(refused.need_bytes, 8 * kKiB);
  EXPECT_EQ(trunk_->host().loads_started(), 0);
}

// --- Contradictions ------------------------------------------------------------------------------

using RegistryDeathTest = RegistryTest;

TEST_F(RegistryDeathTest, AContradictionBetweenPartsEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const OpenResult lease = Open("a");
  registry().CheckInvariants();
  EXPECT_DEATH(
      {
        // A name that leads to it goes, and nobody is told.
        const auto contents = registry().FindContents(lease.replica.model);
        const_cast<ModelContents&>(*contents).names.clear();
        registry().CheckInvariants();
      },
      "names");
}

}  // namespace
}  // namespace trims

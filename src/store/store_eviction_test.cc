// What goes although nobody needs its room, and what stays: idle time, persistence, pins, and
// evictions that were asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// --- Idle time -------------------------------------------------------------------

class KeepAlive : public StoreFixture {
 protected:
  void StartWith(std::optional<Duration> keep_alive) {
    Config config = OneTier(100);
    config.keep_alive = keep_alive;
    Start(config);
  }
};

TEST_F(KeepAlive, RunsFromTheLastCloseToTheTick) {
  StartWith(seconds(10));
  const LeaseId one = Load(Plan(1, 60));
  const LeaseId two = LeaseOf(Open(Plan(1, 60)));
  Close(one);
  EXPECT_FALSE(store().NextDeadline().has_value());
  Pass(seconds(3));
  Close(two);
  EXPECT_EQ(store().NextDeadline(), now() + seconds(10));
  EXPECT_EQ(store().Find(KeyOf(1))->expires_at, now() + seconds(10));
  Pass(seconds(10) - std::chrono::nanoseconds(1));
  EXPECT_THAT(Step(Tick{}), IsEmpty());
  Pass(std::chrono::nanoseconds(1));
  const auto expired = Step(Tick{});
  EXPECT_THAT(Notices(expired, Notify::Kind::kExpired), SizeIs(1));
  EXPECT_THAT(Released(expired), SizeIs(1));
  EXPECT_EQ(Used(), 0u);
}

TEST_F(KeepAlive, IsStoppedByAnOpen) {
  StartWith(seconds(10));
  Put(Plan(1, 60));
  Pass(seconds(9));
  const LeaseId lease = LeaseOf(Open(Plan(1, 60)));
  EXPECT_FALSE(store().NextDeadline().has_value());
  Pass(seconds(100));
  EXPECT_THAT(Step(Tick{}), IsEmpty());
  Close(lease);
  EXPECT_EQ(store().NextDeadline(), now() + seconds(10));
}

TEST_F(KeepAlive, OfAnOpenOverridesTheConfigured) {
  StartWith(std::nullopt);
  OpenAsked event = Asks(Plan(1, 20));
  event.keep_alive = std::optional<Duration>(seconds(5));
  Close(LeaseOf(Step(LoadFinished{.load = StartedLoad(Step(event))})));
  Put(Plan(2, 20));
  EXPECT_EQ(store().NextDeadline(), now() + seconds(5));
  Pass(seconds(5));
  Step(Tick{});
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
  EXPECT_EQ(StateOf(2), ReplicaState::kReady);

  StartWith(seconds(5));
  event = Asks(Plan(1, 20));
  event.keep_alive = std::optional<Duration>();  // For ever.
  Close(LeaseOf(Step(LoadFinished{.load = StartedLoad(Step(event))})));
  EXPECT_FALSE(store().NextDeadline().has_value());
}

TEST_F(KeepAlive, ZeroDropsAtTheLastClose) {
  StartWith(Duration::zero());
  const LeaseId lease = Load(Plan(1, 60));
  const auto closed = Close(lease);
  EXPECT_THAT(Notices(closed, Notify::Kind::kExpired), SizeIs(1));
  EXPECT_THAT(Released(closed), SizeIs(1));
}

TEST_F(KeepAlive, OfZeroStillLetsAPrefetchWaitForItsFirstOpen) {
  StartWith(Duration::zero());
  Step(LoadFinished{.load = StartedLoad(Step(Prefetches(Plan(1, 60))))});
  Pass(seconds(100));
  Step(Tick{});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  Close(LeaseOf(Open(Plan(1, 60))));
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
}

TEST_F(KeepAlive, OfAPrefetchRunsFromTheEndOfTheLoadAndCanBeSetLater) {
  StartWith(seconds(10));
  Step(LoadFinished{.load = StartedLoad(Step(Prefetches(Plan(1, 60))))});
  EXPECT_EQ(store().NextDeadline(), now() + seconds(10));
  LoadAsked longer = Prefetches(Plan(1, 60));
  longer.keep_alive = std::optional<Duration>(seconds(60));
  Step(longer);
  EXPECT_EQ(store().NextDeadline(), now() + seconds(60));
}

TEST_F(KeepAlive, IsStoppedByAPinAndStartsAnewWithUnpinning) {
  StartWith(seconds(10));
  Put(Plan(1, 60));
  Step(PinAsked{.model = NumberedDigest(1)});
  EXPECT_FALSE(store().NextDeadline().has_value());
  Pass(seconds(100));
  Step(Tick{});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  Step(PinAsked{.model = NumberedDigest(1), .pinned = false});
  EXPECT_EQ(store().NextDeadline(), now() + seconds(10));
}

TEST_F(KeepAlive, OfAnyLengthDoesNotOverflow) {
  StartWith(Duration::max());
  Put(Plan(1, 60));
  EXPECT_FALSE(store().NextDeadline().has_value());
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(KeepAlive, FollowsAChangedConfiguration) {
  StartWith(std::nullopt);
  Put(Plan(1, 30));
  Put(Plan(2, 30));
  Load(Plan(3, 30));
  Config config = store().config();
  config.keep_alive = seconds(10);
  Step(ConfigChanged{.config = config});
  EXPECT_EQ(store().NextDeadline(), now() + seconds(10));
  config.policy = PolicyKind::kEager;
  const auto changed = Step(ConfigChanged{.config = config});
  EXPECT_THAT(Notices(changed, Notify::Kind::kExpired), SizeIs(2));
  EXPECT_EQ(StateOf(3), ReplicaState::kReady);
}

TEST_F(StoreTest, EagerDropsAtTheLastCloseAndNotBefore) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kEager;
  Start(config);
  const LeaseId one = Load(Plan(1, 60));
  const LeaseId two = LeaseOf(Open(Plan(1, 60)));
  EXPECT_THAT(Released(Close(one)), IsEmpty());
  const auto closed = Close(two);
  EXPECT_THAT(Released(closed), SizeIs(1));
  EXPECT_EQ(Notices(closed, Notify::Kind::kExpired)[0].detail, "policy eager");
}

TEST_F(StoreTest, EagerKeepsWhatIsPinned) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kEager;
  Start(config);
  Step(PinAsked{.model = NumberedDigest(1)});
  Put(Plan(1, 60));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  Step(PinAsked{.model = NumberedDigest(1), .pinned = false});
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
}

TEST_F(StoreTest, HostCopiesThatAreNotToPersistGoWithTheirLastLeaseAndDeviceCopiesStay) {
  Config config = OneTier(100);
  config.tiers.push_back({.name = "gpu:0", .budget_bytes = 100, .kind = TierKind::kDevice});
  config.persist_host = false;
  Start(config);
  Put(Plan(1, 60));
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
  OpenAsked device = Asks(Plan(1, 60));
  device.tier = 1;
  Close(LeaseOf(Step(LoadFinished{.load = StartedLoad(Step(device))})));
  EXPECT_EQ(StateOf(1, 1), ReplicaState::kReady);
}

TEST_F(StoreTest, WithOnlyHostCopiesToKeepDeviceCopiesGoWithTheirLastLeaseAndHostCopiesStay) {
  Config config = OneTier(100);
  config.tiers.push_back({.name = "gpu:0", .budget_bytes = 100, .kind = TierKind::kDevice});
  config.persist_only_host = true;
  Start(config);
  Put(Plan(1, 60));
  OpenAsked device = Asks(Plan(1, 60));
  device.tier = 1;
  const LeaseId lease = LeaseOf(Step(LoadFinished{.load = StartedLoad(Step(device))}));
  EXPECT_EQ(StateOf(1, 1), ReplicaState::kReady);
  const auto closed = Close(lease);
  EXPECT_EQ(Notices(closed, Notify::Kind::kExpired).at(0).detail, "only host copies are kept");
  EXPECT_EQ(StateOf(1, 1), ReplicaState::kAbsent);
  EXPECT_EQ(StateOf(1, 0), ReplicaState::kReady);
}

TEST_F(StoreTest, AnEvictFindsALoadThatNobodyWantsGone) {
  Start(OneTier(100));
  OpenAsked open = Asks(Plan(1, 60));
  const LoadId load = StartedLoad(Step(open));
  EXPECT_TRUE(Has<CancelLoad>(Step(OpenCancelled{.open = open.open})));
  const auto result = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}));
  ASSERT_THAT(result, SizeIs(1));
  EXPECT_EQ(result[0].cancelled, 1u);
  EXPECT_THAT(result[0].kept, IsEmpty());
  // Its loader was too far to stop: what it brought goes all the same.
  EXPECT_THAT(Released(Step(LoadFinished{.load = load})), SizeIs(1));
  EXPECT_EQ(Used(), 0u);
}

// --- Pins ------------------------------------------------------------------------

TEST_F(StoreTest, APinMarkHoldsBeforeDuringAndAfterResidency) {
  const auto early = All<PinResult>(Step(PinAsked{.model = NumberedDigest(1)}));
  ASSERT_THAT(early, SizeIs(1));
  EXPECT_TRUE(early[0].changed);
  EXPECT_EQ(early[0].replicas, 0u) << "not resident yet";
  Put(Plan(1, 60));
  EXPECT_TRUE(store().Find(KeyOf(1))->pinned);
  EXPECT_EQ(store().Tiers()[0].pinned_bytes, 60u);
  EXPECT_EQ(ErrorOf(Open(Plan(2, 60))).code(), StatusCode::kResourceExhausted);
  Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  Put(Plan(1, 60));
  EXPECT_TRUE(store().Find(KeyOf(1))->pinned);

  const auto again = Step(PinAsked{.model = NumberedDigest(1)});
  EXPECT_FALSE(All<PinResult>(again)[0].changed);
  EXPECT_FALSE(Has<Notify>(again));
  const auto off = Step(PinAsked{.model = NumberedDigest(1), .pinned = false});
  EXPECT_EQ(All<PinResult>(off)[0].replicas, 1u);
  EXPECT_THAT(Notices(off, Notify::Kind::kUnpinned), SizeIs(1));
  EXPECT_THAT(Evicted(Open(Plan(2, 60))), ElementsAre(1));
}

TEST_F(StoreTest, UnpinningAnUnknownModelIsHarmless) {
  const auto actions = Step(PinAsked{.model = NumberedDigest(9), .pinned = false});
  EXPECT_FALSE(All<PinResult>(actions)[0].changed);
  EXPECT_THAT(All<PinResult>(Step(PinAsked{.model = NumberedDigest(9), .tier = 7})), SizeIs(1));
}

// --- Evicting on request ---------------------------------------------------------

TEST_F(StoreTest, EvictFreesWhatNobodyUses) {
  Put(Plan(1, 60));
  const auto actions = Step(EvictAsked{.model = NumberedDigest(1)});
  const auto results = All<EvictResult>(actions);
  ASSERT_THAT(results, SizeIs(1));
  EXPECT_EQ(results[0].found, 1u);
  EXPECT_EQ(results[0].evicted, 1u);
  EXPECT_EQ(results[0].freed_bytes, 60u);
  EXPECT_THAT(results[0].kept, IsEmpty());
  EXPECT_THAT(Released(actions), SizeIs(1));
  EXPECT_EQ(All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}))[0].found, 0u);
}

TEST_F(StoreTest, EvictWithoutForceKeepsWhatIsInUseAndSaysWhoHoldsIt) {
  const LeaseId lease = Load(Plan(1, 60), /*session=*/7, /*uid=*/1234);
  Step(PinAsked{.model = NumberedDigest(1)});
  const auto results = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}));
  ASSERT_THAT(results[0].kept, SizeIs(1));
  const EvictResult::Kept& kept = results[0].kept[0];
  EXPECT_EQ(kept.name, "m1");
  EXPECT_EQ(kept.reason, "1 lease, pinned");
  ASSERT_THAT(kept.holders, SizeIs(1));
  EXPECT_EQ(kept.holders[0].lease, lease);
  EXPECT_EQ(kept.holders[0].session, 7u);
  EXPECT_EQ(kept.holders[0].uid, 1234u);
  EXPECT_EQ(results[0].evicted, 0u);
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, EvictIsForOneTierOrForAll) {
  Config config = OneTier(100);
  config.tiers.push_back({.name = "gpu:0", .budget_bytes = 100, .kind = TierKind::kDevice});
  Start(config);
  const auto put_both = [&] {
    for (TierIndex tier : {0u, 1u}) {
      OpenAsked event = Asks(Plan(1, 60));
      event.tier = tier;
      auto actions = Step(event);
      if (Has<StartLoad>(actions)) actions = Step(LoadFinished{.load = StartedLoad(actions)});
      Close(LeaseOf(actions));
    }
  };
  put_both();
  const auto one = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1), .tier = 1}));
  EXPECT_EQ(one[0].evicted, 1u);
  EXPECT_EQ(StateOf(1, 0), ReplicaState::kReady);
  put_both();
  const auto all = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}));
  EXPECT_EQ(all[0].evicted, 2u);
  EXPECT_EQ(all[0].freed_bytes, 120u);
}

TEST_F(StoreTest, ForcedEvictOfALeasedReplicaDrainsUntilTheLastClose) {
  const LeaseId lease = Load(Plan(1, 60));
  const auto evicted = Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  EXPECT_EQ(All<EvictResult>(evicted)[0].draining, 1u);
  EXPECT_THAT(Released(evicted), IsEmpty());
  EXPECT_EQ(StateOf(1), ReplicaState::kDraining);
  EXPECT_EQ(store().Tiers()[0].revoked_bytes, 60u);
  EXPECT_TRUE(store().HasLease(1, lease));
  EXPECT_EQ(
      ErrorOf(Step(OpenResidentAsked{.open = NextOpen(), .session = 2, .model = NumberedDigest(1)}))
          .code(),
      StatusCode::kNotFound);
  EXPECT_EQ(
      ErrorOf(Step(ReattachAsked{.open = NextOpen(), .session = 2, .replica = KeyOf(1)})).code(),
      StatusCode::kNotFound);
  const auto again = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1), .force = true}));
  EXPECT_EQ(again[0].kept[0].reason, "draining, 1 lease");
  EXPECT_THAT(Released(Close(lease)), SizeIs(1));
  EXPECT_EQ(Used(), 0u);
}

TEST_F(StoreTest, AFreshOpenWhileDrainingIsANewGenerationOnTheSameBytes) {
  const auto first = Step(LoadFinished{.load = StartedLoad(Open(Plan(1, 60)))});
  Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  const auto second = Open(Plan(1, 60), 2);
  EXPECT_FALSE(Has<StartLoad>(second));
  EXPECT_GT(All<ReplyLease>(second)[0].generation, All<ReplyLease>(first)[0].generation);
  EXPECT_EQ(Used(), 60u);
  EXPECT_THAT(store().Replicas(), SizeIs(2));
  EXPECT_THAT(Released(Close(LeaseOf(first))), IsEmpty()) << "the new generation has them";
  EXPECT_THAT(store().Replicas(), SizeIs(1));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, ForcedEvictStopsALoadAndTellsWhoWaits) {
  const LoadId load = StartedLoad(Open(Plan(1, 60)));
  const auto gentle = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}));
  EXPECT_EQ(gentle[0].kept[0].reason, "loading");
  const auto forced = Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  EXPECT_EQ(ErrorOf(forced).code(), StatusCode::kAborted);
  EXPECT_THAT(All<CancelLoad>(forced), SizeIs(1));
  EXPECT_EQ(All<EvictResult>(forced)[0].cancelled, 1u);
  const auto finished = Step(LoadFinished{.load = load});
  EXPECT_THAT(Released(finished), SizeIs(1)) << "came too late to stop, and nobody wants it";
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
}

TEST_F(StoreTest, AnOpenAfterAForcedEvictOfALoadIsServed) {
  const LoadId load = StartedLoad(Open(Plan(1, 60)));
  Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  Open(Plan(1, 60), 2);
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = load})), SizeIs(1));
}

TEST_F(StoreTest, AnOpenAfterAForcedEvictOfALoadRevokesTheEvict) {
  const LoadId load = StartedLoad(Open(Plan(1, 60)));
  Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  const OpenAsked second = Asks(Plan(1, 60), 2);
  Step(second);
  Step(OpenCancelled{.open = second.open});
  Step(LoadFinished{.load = load});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

}  // namespace
}  // namespace trims::store

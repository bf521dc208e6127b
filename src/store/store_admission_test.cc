// Who is let in, and what goes to make room: budgets, estimates, quotas, and memory that runs
// out below the budget.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// --- Admission -------------------------------------------------------------------

TEST_F(StoreTest, RoomIsMadeByEvictingWhatNobodyUses) {
  Put(Plan(1, 60));
  const auto asked = Open(Plan(2, 60));
  EXPECT_THAT(Evicted(asked), ElementsAre(1));
  EXPECT_THAT(Released(asked), ElementsAre(Plan(1, 60).extents[0].key));
  EXPECT_TRUE(Has<StartLoad>(asked));
  ASSERT_THAT(Notices(asked, Notify::Kind::kEvicted), SizeIs(1));
  EXPECT_EQ(Notices(asked, Notify::Kind::kEvicted)[0].detail, "policy lru");
  EXPECT_EQ(store().Tiers()[0].evictions, 1u);
}

TEST_F(StoreTest, TheReleaseComesBeforeTheLoadThatNeedsTheRoom) {
  Put(Plan(1, 60));
  const auto actions = Open(Plan(2, 60));
  size_t released = actions.size();
  size_t started = 0;
  for (size_t i = 0; i < actions.size(); ++i) {
    if (std::holds_alternative<ReleaseExtents>(actions[i])) released = i;
    if (std::holds_alternative<StartLoad>(actions[i])) started = i;
  }
  EXPECT_LT(released, started);
}

TEST_F(StoreTest, LeasedPinnedLoadingAndJustAdoptedReplicasAreNeverVictims) {
  Load(Plan(1, 20));
  Put(Plan(2, 20));
  Step(PinAsked{.model = NumberedDigest(2)});
  Open(Plan(3, 20));
  AdoptionStarted adoption;
  adoption.load = store().NewLoadId();
  adoption.plan = Plan(4, 20);
  Step(adoption);
  Step(LoadFinished{.load = adoption.load});
  EXPECT_EQ(store().Tiers()[0].evictable_bytes, 0u);
  const auto actions = Open(Plan(5, 21));
  EXPECT_THAT(Evicted(actions), IsEmpty());
  const Status error = ErrorOf(actions);
  EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(error.message(),
            "cannot make room for m5 in tier host: need 21 B, free 20 B, evictable 0 B of budget "
            "100 B; held by: m1 (1 lease), m2 (pinned), m3 (loading), m4 (adopted just now)");
}

TEST_F(StoreTest, ARequestThatCanNotBeMetEvictsNothing) {
  Put(Plan(1, 30));
  Load(Plan(2, 50));
  const auto actions = Open(Plan(3, 60));
  EXPECT_THAT(Evicted(actions), IsEmpty());
  EXPECT_THAT(Released(actions), IsEmpty());
  const auto errors = All<ReplyError>(actions);
  ASSERT_THAT(errors, SizeIs(1));
  EXPECT_EQ(errors[0].need_bytes, 60u);
  EXPECT_EQ(errors[0].free_bytes, 20u);
  EXPECT_EQ(errors[0].evictable_bytes, 30u);
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  EXPECT_EQ(StateOf(3), ReplicaState::kAbsent);
}

TEST_F(StoreTest, OnlyAsManyAreEvictedAsNeeded) {
  for (uint64_t model : {1, 2, 3, 4}) {
    Put(Plan(model, 25));
    Pass(seconds(1));
  }
  EXPECT_THAT(Evicted(Open(Plan(5, 50))), ElementsAre(1, 2));
}

TEST_F(StoreTest, OneLargeVictimSparesTheSmallOnesBeforeIt) {
  Put(Plan(1, 5));
  Pass(seconds(1));
  Put(Plan(2, 5));
  Pass(seconds(1));
  Put(Plan(3, 80));
  EXPECT_THAT(Evicted(Open(Plan(4, 80))), ElementsAre(3));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  EXPECT_EQ(StateOf(2), ReplicaState::kReady);
}

TEST_F(StoreTest, OfUnneededVictimsTheMostValuedAreSparedFirst) {
  // 22 are free, so 82 have to go. The order takes 10, 9, 8 and 65, which is 92: one
  // of 8, 9 and 10 can stay, and the 8 was used last.
  Start(OneTier(114));
  for (const auto& [model, bytes] : {std::pair{1, 10}, {2, 9}, {3, 8}, {4, 65}}) {
    Put(Plan(static_cast<uint64_t>(model), static_cast<uint64_t>(bytes)));
    Pass(seconds(1));
  }
  EXPECT_THAT(Evicted(Open(Plan(5, 104))), ElementsAre(1, 2, 4));
}

TEST_F(StoreTest, AReplicaWhoseExtentsOthersKeepIsNoVictim) {
  Put(PlanOf(1, {Piece(1, 40)}));
  Pass(seconds(1));
  Load(PlanOf(2, {Piece(1, 40), Piece(2, 10)}), 1);
  Put(Plan(3, 40));
  // Model 1 is the oldest, but evicting it would free nothing.
  EXPECT_THAT(Evicted(Open(Plan(4, 40))), ElementsAre(3));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, ReplicasThatShareOnlyWithEachOtherGoTogether) {
  Put(PlanOf(1, {Piece(1, 60)}));
  Put(PlanOf(2, {Piece(1, 60)}));
  const auto actions = Open(Plan(3, 80));
  EXPECT_THAT(Evicted(actions), ElementsAre(1, 2));
  EXPECT_THAT(Released(actions), ElementsAre(Piece(1, 0).key));
}

TEST_F(StoreTest, RoomIsNotMadeFromExtentsThatTheModelItselfNeeds) {
  Put(PlanOf(1, {Piece(1, 50)}));
  Put(Plan(2, 40));
  const auto actions = Open(PlanOf(3, {Piece(1, 50), Piece(2, 30)}));
  EXPECT_THAT(Evicted(actions), ElementsAre(2)) << "model 1 is older, but its extent is reused";
  EXPECT_THAT(All<StartLoad>(actions)[0].missing, ElementsAre(Piece(2, 30)));
}

TEST_F(StoreTest, AModelLargerThanTheBudgetIsRefusedSayingSo) {
  Put(Plan(1, 30));
  const auto actions = Open(Plan(2, 101));
  EXPECT_THAT(Evicted(actions), IsEmpty());
  EXPECT_EQ(ErrorOf(actions),
            ResourceExhaustedError("cannot hold m2 in tier host: it needs 101 B, more than the "
                                   "whole budget of 100 B"));
}

TEST_F(StoreTest, AModelOfExactlyTheBudgetFits) {
  Put(Plan(1, 30));
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(2, 100))));
}

TEST_F(StoreTest, PolicyNeverRefusesWhatDoesNotFit) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kNever;
  Start(config);
  Put(Plan(1, 60));
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(2, 40))));
  const auto actions = Open(Plan(3, 1));
  EXPECT_THAT(Evicted(actions), IsEmpty());
  EXPECT_EQ(ErrorOf(actions).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(ErrorOf(actions).message(), HasSubstr("evictable 0 B"));
  EXPECT_THAT(ErrorOf(actions).message(), HasSubstr("m1 (policy never)"));
}

TEST_F(StoreTest, FlushEvictsAllThatIsEvictableAndNothingElse) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kFlush;
  Start(config);
  Load(Plan(1, 20));
  Put(Plan(2, 20));
  Put(Plan(3, 20));
  Put(Plan(4, 20));
  EXPECT_THAT(Evicted(Open(Plan(5, 21))), ElementsAre(2, 3, 4));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, FlushEvictsNothingWhenThatIsNotEnough) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kFlush;
  Start(config);
  Load(Plan(1, 80));
  Put(Plan(2, 10));
  const auto actions = Open(Plan(3, 30));
  EXPECT_THAT(Evicted(actions), IsEmpty());
  EXPECT_EQ(ErrorOf(actions).code(), StatusCode::kResourceExhausted);
}

TEST_F(StoreTest, GdsfUsesTheMeasuredLoadTimeWhenThePlanHasNone) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kGdsf;
  Start(config);
  LoadId load = StartedLoad(Open(Plan(1, 50)));  // Slow to load, hence worth keeping.
  Pass(seconds(10));
  Close(LeaseOf(Step(LoadFinished{.load = load})));
  load = StartedLoad(Open(Plan(2, 50)));
  Pass(seconds(1));
  Close(LeaseOf(Step(LoadFinished{.load = load})));
  EXPECT_THAT(Evicted(Open(Plan(3, 50))), ElementsAre(2));
}

TEST_F(StoreTest, TheEstimationRateMultipliesWhatIsToBeLoaded) {
  Config config = OneTier(100);
  config.estimation_rate = 1.5;
  Start(config);
  Put(Plan(1, 40));
  EXPECT_EQ(Used(), 40u) << "the estimate decides, the bytes are counted";
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(2, 40))));
  EXPECT_THAT(All<ReplyError>(Open(Plan(3, 41)))[0].need_bytes, 62u);
  EXPECT_THAT(ErrorOf(Open(Plan(4, 70))).message(),
              HasSubstr("it needs 105 B (70 B of weights x estimation rate 1.5)"));
}

TEST_F(StoreTest, ARateUnderOneCanNotAdmitMoreThanFits) {
  Config config = OneTier(100);
  config.estimation_rate = 0.1;
  Start(config);
  Load(Plan(1, 60));
  EXPECT_EQ(ErrorOf(Open(Plan(2, 41))).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(3, 40))));
}

TEST_F(StoreTest, MeasuredInternalMemoryIsPartOfTheNextEstimate) {
  Load(Plan(9, 40), /*session=*/9);
  Close(Load(Plan(1, 20)), 1, /*peak=*/30);
  EXPECT_EQ(store().Find(KeyOf(1))->peak_internal_bytes, 30u);
  Close(LeaseOf(Open(Plan(1, 20))), 1, /*peak=*/10);
  EXPECT_EQ(store().Find(KeyOf(1))->peak_internal_bytes, 30u) << "the largest counts";
  Step(EvictAsked{.model = NumberedDigest(1)});
  Put(Plan(2, 20));
  EXPECT_THAT(Evicted(Open(Plan(1, 20))), ElementsAre(2)) << "20 free of 50 needed";
}

TEST_F(StoreTest, InternalMemoryDoesNotCountWhenTheConfigurationSaysSo) {
  Config config = OneTier(100);
  config.estimate_with_internal_memory = false;
  Start(config);
  Close(Load(Plan(1, 20)), 1, /*peak=*/90);
  Step(EvictAsked{.model = NumberedDigest(1)});
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(1, 20))));
}

TEST_F(StoreTest, AReportOfInternalMemoryOnlyBindsWhoMadeItUnlessAnAdministratorDid) {
  Close(Load(Plan(1, 20), 1, /*uid=*/666), 1, /*peak=*/~0ull);
  Step(EvictAsked{.model = NumberedDigest(1)});
  EXPECT_THAT(ErrorOf(Open(Plan(1, 20), 1, 666)).message(),
              HasSubstr("16.0 EiB of measured internal memory"));
  const LoadId load = StartedLoad(Open(Plan(1, 20), 2, 1000));
  Close(LeaseOf(Step(LoadFinished{.load = load})), 2);

  OpenAsked admin = Asks(Plan(1, 20), 3, 0);
  admin.is_admin = true;
  Close(LeaseOf(Step(admin)), 3, /*peak=*/90);
  Step(EvictAsked{.model = NumberedDigest(1)});
  EXPECT_THAT(ErrorOf(Open(Plan(1, 20), 2, 1000)).message(), HasSubstr("90 B of measured"));
}

TEST_F(StoreTest, TiersChurnIsVisible) {
  EXPECT_FALSE(store().Tiers()[0].last_victim_idle.has_value());
  Put(Plan(1, 60));
  Pass(seconds(7));
  Open(Plan(2, 60));
  EXPECT_EQ(store().Tiers()[0].last_victim_idle, seconds(7));
}

TEST_F(StoreTest, HoldersOfOthersPrivateModelsAreCountedButNotNamed) {
  ModelPlan secret = Plan(1, 60);
  secret.is_public = false;
  OpenAsked owner = Asks(secret, 1, 1000);
  owner.proved_access = true;
  LeaseOf(Step(LoadFinished{.load = StartedLoad(Step(owner))}));
  EXPECT_THAT(ErrorOf(Open(Plan(2, 60), 2, 2000)).message(), HasSubstr("; held by: 1 model"));
  EXPECT_THAT(ErrorOf(Open(Plan(2, 60), 2, 1000)).message(), HasSubstr("held by: m1 (1 lease)"));
  EXPECT_THAT(ErrorOf(Step(Prefetches(Plan(2, 60)))).message(), HasSubstr("m1 (1 lease)"));
}

TEST_F(StoreTest, ManyHoldersAreSummedUp) {
  Start(OneTier(1000));
  for (uint64_t model = 1; model <= 10; ++model) Load(Plan(model, 100 - model));
  const std::string message = ErrorOf(Open(Plan(11, 500))).message();
  EXPECT_THAT(message, HasSubstr("held by: m1 (1 lease), m2 (1 lease)"));
  EXPECT_THAT(message, HasSubstr("m8 (1 lease) and 2 more"));
}

// --- Quotas ----------------------------------------------------------------------

TEST_F(StoreTest, LeasesAndWaitingOpensOfAUidAreLimited) {
  Config config = OneTier(100);
  config.leases_per_uid_max = 3;
  Start(config);
  const LeaseId lease = Load(Plan(1, 10), 1, 1000);
  LeaseOf(Open(Plan(1, 10), 2, 1000));
  const OpenAsked waiting = Asks(Plan(2, 10), 1, 1000);
  Step(waiting);
  const Status error = ErrorOf(Open(Plan(1, 10), 3, 1000));
  EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(error.message(),
            "uid 1000 has 2 leases and 1 opens waiting; the quota leases_per_uid_max is 3");
  EXPECT_TRUE(Has<ReplyLease>(Open(Plan(1, 10), 4, 2000))) << "another uid is not concerned";
  Close(lease);
  EXPECT_TRUE(Has<ReplyLease>(Open(Plan(1, 10), 3, 1000)));
  EXPECT_TRUE(Has<ReplyError>(Open(Plan(1, 10), 3, 1000)));
  Step(OpenCancelled{.open = waiting.open});
  EXPECT_TRUE(Has<ReplyLease>(Open(Plan(1, 10), 3, 1000)));
}

TEST_F(StoreTest, BytesLeasedByAUidAreLimitedEachReplicaOnce) {
  Config config = OneTier(100);
  config.leased_bytes_per_uid_max = 50;
  Start(config);
  const LeaseId lease = Load(Plan(1, 30), 1, 1000);
  const LeaseId again = LeaseOf(Open(Plan(1, 30), 1, 1000));
  const Status error = ErrorOf(Open(Plan(2, 30), 1, 1000));
  EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(error.message(),
            "uid 1000 has leases on 30 B and asks for 30 B more; the quota "
            "leased_bytes_per_uid_max is 50 B");
  EXPECT_EQ(ErrorOf(Open(Plan(3, 51), 1, 3000)).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(2, 30), 1, 2000)));
  Close(lease);
  EXPECT_TRUE(Has<ReplyError>(Open(Plan(2, 30), 1, 1000)));
  Close(again);
  EXPECT_FALSE(Has<ReplyError>(Open(Plan(2, 30), 1, 1000)));
}

TEST_F(StoreTest, AQuotaRefusalEvictsAndLoadsNothing) {
  Config config = OneTier(100);
  config.leased_bytes_per_uid_max = 50;
  Start(config);
  Close(Load(Plan(1, 50), 1, 2000));
  const auto actions = Open(Plan(2, 60), 1, 1000);
  EXPECT_THAT(actions, SizeIs(1));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

// --- Memory that ran out below the budget -------------------------------------------

TEST_F(StoreTest, ALoadThatFoundTooLittleMemoryEvictsWhatItNeedsAndStartsAgain) {
  Start(OneTier(1000));
  Put(Plan(1, 100));
  Put(Plan(2, 100));
  Put(Plan(3, 100));
  const LoadId first = StartedLoad(Open(Plan(4, 200)));
  // 200 are wanted, 90 were there: two of the three make the rest.
  const auto retried = Step(
      LoadFailed{.load = first, .status = ResourceExhaustedError("no memory"), .free_bytes = 90});
  EXPECT_THAT(Evicted(retried), ElementsAre(1, 2));
  EXPECT_FALSE(Has<ReplyError>(retried));
  const LoadId second = StartedLoad(retried);
  EXPECT_NE(second, first);
  EXPECT_TRUE(Has<ReplyLease>(Step(LoadFinished{.load = second})));
  EXPECT_EQ(StateOf(3), ReplicaState::kReady);
}

TEST_F(StoreTest, ALoadThatFoundTooLittleMemoryAndCanEvictTooLittleEvictsNothingAndSaysTheNumbers) {
  Start(OneTier(1000));
  Put(Plan(1, 100));
  const LeaseId held = Load(Plan(2, 100));
  const LoadId load = StartedLoad(Open(Plan(3, 300)));
  const auto refused = Step(LoadFailed{
      .load = load, .status = ResourceExhaustedError("the device has 150"), .free_bytes = 150});
  EXPECT_THAT(Evicted(refused), IsEmpty());
  const auto errors = All<ReplyError>(refused);
  ASSERT_THAT(errors, SizeIs(1));
  EXPECT_EQ(errors[0].status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(errors[0].need_bytes, 300u);
  EXPECT_EQ(errors[0].free_bytes, 150u);
  EXPECT_EQ(errors[0].evictable_bytes, 100u);
  EXPECT_THAT(errors[0].status.message(), HasSubstr("m2 (1 lease)"));
  EXPECT_THAT(errors[0].status.message(), HasSubstr("the device has 150"));
  EXPECT_EQ(Used(), 200u);
  // The next open starts afresh.
  EXPECT_TRUE(Has<StartLoad>(Open(Plan(3, 300))));
  Close(held);
}

TEST_F(StoreTest, UnderPolicyNeverALackOfMemoryEvictsNothing) {
  Config config = OneTier(1000);
  config.policy = PolicyKind::kNever;
  Start(config);
  Put(Plan(1, 100));
  const LoadId load = StartedLoad(Open(Plan(2, 100)));
  const auto refused = Step(
      LoadFailed{.load = load, .status = ResourceExhaustedError("no memory"), .free_bytes = 99});
  EXPECT_EQ(ErrorOf(refused).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, NoticesOfLeasesSayWhose) {
  Start(OneTier(100));
  const auto opened = Open(Plan(1, 10), 1, 4001);
  const auto leased = Step(LoadFinished{.load = StartedLoad(opened)});
  EXPECT_EQ(Notices(leased, Notify::Kind::kLeased).at(0).uid, 4001u);
  EXPECT_EQ(Notices(Close(LeaseOf(leased)), Notify::Kind::kReleased).at(0).uid, 4001u);
}

}  // namespace
}  // namespace trims::store

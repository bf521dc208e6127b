#include "store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class StoreTest : public StoreFixture {
 protected:
  StoreTest() { Start(OneTier(100)); }
};

// --- Opening -----------------------------------------------------------------

TEST_F(StoreTest, FirstOpenLoadsAndIsLeasedWhenTheLoadFinished) {
  const auto asked = Open(Plan(1, 60));
  ASSERT_THAT(All<StartLoad>(asked), SizeIs(1));
  EXPECT_EQ(All<StartLoad>(asked)[0].replica, KeyOf(1));
  EXPECT_THAT(All<StartLoad>(asked)[0].missing, ElementsAre(Plan(1, 60).extents[0]));
  EXPECT_FALSE(Has<ReplyLease>(asked));
  EXPECT_EQ(StateOf(1), ReplicaState::kLoading);
  EXPECT_EQ(Used(), 60u);

  const auto finished = Step(LoadFinished{.load = StartedLoad(asked)});
  ASSERT_THAT(All<ReplyLease>(finished), SizeIs(1));
  EXPECT_TRUE(All<ReplyLease>(finished)[0].loaded);
  EXPECT_TRUE(store().HasLease(1, LeaseOf(finished)));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, OpenOfAReadyReplicaIsLeasedAtOnce) {
  Load(Plan(1, 60));
  const auto actions = Open(Plan(1, 60), /*session=*/2);
  ASSERT_THAT(All<ReplyLease>(actions), SizeIs(1));
  EXPECT_FALSE(All<ReplyLease>(actions)[0].loaded);
  EXPECT_EQ(All<ReplyLease>(actions)[0].session, 2u);
  EXPECT_FALSE(Has<StartLoad>(actions));
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 2u);
  EXPECT_EQ(store().Find(KeyOf(1))->opens, 2u);
}

TEST_F(StoreTest, OneLoadServesAllWhoWait) {
  const LoadId load = StartedLoad(Open(Plan(1, 60), 1));
  for (SessionId session = 2; session <= 8; ++session) {
    EXPECT_THAT(Open(Plan(1, 60), session), IsEmpty());
  }
  EXPECT_EQ(store().Find(KeyOf(1))->waiting, 8u);
  const auto replies = All<ReplyLease>(Step(LoadFinished{.load = load}));
  ASSERT_THAT(replies, SizeIs(8));
  for (size_t i = 0; i < replies.size(); ++i) {
    EXPECT_EQ(replies[i].session, i + 1) << "not in the order of asking";
    EXPECT_TRUE(replies[i].loaded);
  }
  EXPECT_EQ(Used(), 60u);
}

TEST_F(StoreTest, TiersAndGranularitiesAreSeparateReplicas) {
  Config config = OneTier(1000);
  config.tiers.push_back({.name = "gpu:0", .budget_bytes = 1000, .kind = TierKind::kDevice});
  Start(config);
  Load(Plan(1, 60));
  OpenAsked device = Asks(Plan(1, 60));
  device.tier = 1;
  EXPECT_NE(StartedLoad(Step(device)), 0u);
  OpenAsked layers = Asks(PlanOf(1, {Piece(1, 20), Piece(2, 40)}));
  layers.granularity = Granularity::kLayer;
  EXPECT_NE(StartedLoad(Step(layers)), 0u);
  EXPECT_EQ(Used(0), 120u);
  EXPECT_EQ(Used(1), 60u);
}

TEST_F(StoreTest, AModelWithoutTensorsIsReadyAtOnce) {
  const auto actions = Open(PlanOf(1, {}));
  EXPECT_FALSE(Has<StartLoad>(actions));
  ASSERT_THAT(All<ReplyLease>(actions), SizeIs(1));
  EXPECT_FALSE(All<ReplyLease>(actions)[0].loaded);
}

TEST_F(StoreTest, AnExtentNamedTwiceIsLoadedAndCountedOnce) {
  const auto actions = Open(PlanOf(1, {Piece(1, 30), Piece(2, 10), Piece(1, 30)}));
  EXPECT_THAT(All<StartLoad>(actions)[0].missing, ElementsAre(Piece(1, 30), Piece(2, 10)));
  EXPECT_EQ(Used(), 40u);
  EXPECT_EQ(store().Find(KeyOf(1))->bytes, 40u);
}

TEST_F(StoreTest, ATierThatDoesNotExistIsAnError) {
  OpenAsked event = Asks(Plan(1, 60));
  event.tier = 3;
  EXPECT_EQ(ErrorOf(Step(event)).code(), StatusCode::kInvalidArgument);
  OpenResidentAsked resident;
  resident.tier = 3;
  resident.model = NumberedDigest(1);
  EXPECT_EQ(ErrorOf(Step(resident)).code(), StatusCode::kNotFound);
}

TEST_F(StoreTest, OpenResidentNeverStartsALoad) {
  OpenResidentAsked event{.open = NextOpen(), .session = 1, .uid = 1, .model = NumberedDigest(1)};
  EXPECT_EQ(ErrorOf(Step(event)).code(), StatusCode::kNotFound);
  Put(Plan(1, 60));
  event.open = NextOpen();
  EXPECT_THAT(All<ReplyLease>(Step(event)), SizeIs(1));
}

TEST_F(StoreTest, OpenResidentTakesWhatIsReadyBeforeWhatIsLoadingModelFirst) {
  Start(OneTier(1000));
  const auto open_as = [&](Granularity granularity, std::vector<Extent> extents) {
    OpenAsked event = Asks(PlanOf(1, std::move(extents)));
    event.granularity = granularity;
    return StartedLoad(Step(event));
  };
  const auto resident = [&] {
    return Step(
        OpenResidentAsked{.open = NextOpen(), .session = 2, .uid = 1, .model = NumberedDigest(1)});
  };
  const LoadId model = open_as(Granularity::kModel, {Piece(1, 60)});
  const LoadId layers = open_as(Granularity::kLayer, {Piece(2, 20), Piece(3, 40)});
  EXPECT_THAT(resident(), IsEmpty()) << "joins the load of the whole model";
  Step(LoadFinished{.load = layers});
  EXPECT_EQ(All<ReplyLease>(resident())[0].replica.granularity, Granularity::kLayer);
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = model})), SizeIs(2));
  EXPECT_EQ(All<ReplyLease>(resident())[0].replica.granularity, Granularity::kModel);
}

TEST_F(StoreTest, PrefetchLoadsAndLeasesNothing) {
  const auto asked = Step(Prefetches(Plan(1, 60)));
  const auto finished = Step(LoadFinished{.load = StartedLoad(asked)});
  EXPECT_THAT(All<ReplyReady>(finished), SizeIs(1));
  EXPECT_FALSE(Has<ReplyLease>(finished));
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 0u);
  EXPECT_THAT(All<ReplyReady>(Step(Prefetches(Plan(1, 60)))), SizeIs(1));
}

TEST_F(StoreTest, NumbersStartAtTheirBase) {
  Config config = OneTier(100);
  config.id_base = 1'000'000;
  Start(config);
  const auto asked = Open(Plan(1, 60));
  EXPECT_EQ(StartedLoad(asked), 1'000'000u);
  const auto finished = Step(LoadFinished{.load = StartedLoad(asked)});
  EXPECT_EQ(LeaseOf(finished), 1'000'000u);
  EXPECT_EQ(All<ReplyLease>(finished)[0].generation, 1'000'000u);
  EXPECT_EQ(store().NewLoadId(), 1'000'001u);
}

// --- Closing -----------------------------------------------------------------

TEST_F(StoreTest, ClosedReplicaStaysForTheNextOpen) {
  const LeaseId lease = Load(Plan(1, 60));
  EXPECT_THAT(Released(Close(lease)), IsEmpty());
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  EXPECT_EQ(Used(), 60u);
}

TEST_F(StoreTest, ALeaseIsClosedOnceAndByItsOwnSession) {
  const LeaseId lease = Load(Plan(1, 60), /*session=*/1);
  LeaseOf(Open(Plan(1, 60), /*session=*/2));
  EXPECT_FALSE(store().HasLease(2, lease));
  EXPECT_THAT(Close(lease, /*session=*/2), IsEmpty());
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 2u);
  EXPECT_THAT(Close(lease, /*session=*/1), Not(IsEmpty()));
  EXPECT_FALSE(store().HasLease(1, lease));
  EXPECT_THAT(Close(lease, /*session=*/1), IsEmpty());
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 1u);
}

TEST_F(StoreTest, ASessionsEndEndsItsLeasesAndOpensAndNoOthers) {
  Load(Plan(1, 10), 1);
  LeaseOf(Open(Plan(1, 10), 1));
  LeaseOf(Open(Plan(1, 10), 2));
  const LoadId load = StartedLoad(Open(Plan(2, 10), 1));
  EXPECT_THAT(Open(Plan(2, 10), 2), IsEmpty());

  const auto ended = Step(SessionEnded{.session = 1});
  EXPECT_EQ(ErrorOf(ended).code(), StatusCode::kCancelled);
  EXPECT_FALSE(Has<CancelLoad>(ended)) << "session 2 still waits";
  ASSERT_THAT(store().Leases(), SizeIs(1));
  EXPECT_EQ(store().Leases()[0].session, 2u);
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = load})), SizeIs(1));
  EXPECT_THAT(Step(SessionEnded{.session = 1}), IsEmpty());
}

// --- Cancelling and failing ----------------------------------------------------

TEST_F(StoreTest, TheLastWaitersCancelStopsTheLoad) {
  const OpenAsked first = Asks(Plan(1, 60), 1);
  const OpenAsked second = Asks(Plan(1, 60), 2);
  const LoadId load = StartedLoad(Step(first));
  Step(second);
  const auto one = Step(OpenCancelled{.open = first.open});
  EXPECT_EQ(ErrorOf(one).code(), StatusCode::kCancelled);
  EXPECT_FALSE(Has<CancelLoad>(one));
  const auto two = Step(OpenCancelled{.open = second.open});
  ASSERT_THAT(All<CancelLoad>(two), SizeIs(1));
  EXPECT_EQ(All<CancelLoad>(two)[0].load, load);
  EXPECT_EQ(Used(), 60u) << "the loader has the memory until it says otherwise";
  Step(LoadFailed{.load = load, .status = CancelledError("as asked")});
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
  EXPECT_EQ(Used(), 0u);
}

TEST_F(StoreTest, CancellingAnAnsweredOpenDoesNothing) {
  const OpenAsked open = Asks(Plan(1, 60));
  Step(LoadFinished{.load = StartedLoad(Step(open))});
  EXPECT_THAT(Step(OpenCancelled{.open = open.open}), IsEmpty());
  EXPECT_THAT(Step(OpenCancelled{.open = 999}), IsEmpty());
  EXPECT_THAT(store().Leases(), SizeIs(1));
}

TEST_F(StoreTest, AnOpenDuringACancelledLoadStartsAgainAfterItsEnd) {
  const OpenAsked first = Asks(Plan(1, 60));
  const LoadId load = StartedLoad(Step(first));
  Step(OpenCancelled{.open = first.open});
  EXPECT_THAT(Open(Plan(1, 60), 2), IsEmpty()) << "one load per replica";
  const auto failed = Step(LoadFailed{.load = load, .status = CancelledError("as asked")});
  EXPECT_FALSE(Has<ReplyError>(failed));
  const LoadId again = StartedLoad(failed);
  EXPECT_NE(again, load);
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = again})), SizeIs(1));
}

TEST_F(StoreTest, AnOpenDuringACancelledLoadThatFinishedAfterAllIsServed) {
  const OpenAsked first = Asks(Plan(1, 60));
  const LoadId load = StartedLoad(Step(first));
  Step(OpenCancelled{.open = first.open});
  Open(Plan(1, 60), 2);
  const auto finished = Step(LoadFinished{.load = load});
  EXPECT_FALSE(Has<StartLoad>(finished));
  EXPECT_THAT(All<ReplyLease>(finished), SizeIs(1));
}

TEST_F(StoreTest, ACancelledLoadThatFinishedAfterAllIsKeptAndEvictable) {
  const OpenAsked first = Asks(Plan(1, 60));
  const LoadId load = StartedLoad(Step(first));
  Step(OpenCancelled{.open = first.open});
  Step(LoadFinished{.load = load});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  EXPECT_EQ(store().Tiers()[0].evictable_bytes, 60u);
}

TEST_F(StoreTest, OpenResidentDoesNotJoinALoadThatWasToldToStop) {
  const OpenAsked first = Asks(Plan(1, 60));
  Step(first);
  Step(OpenCancelled{.open = first.open});
  EXPECT_EQ(
      ErrorOf(Step(OpenResidentAsked{.open = NextOpen(), .session = 2, .model = NumberedDigest(1)}))
          .code(),
      StatusCode::kNotFound);
}

TEST_F(StoreTest, AFailedLoadFailsAllWhoWaitOnceAndTheNextOpenStartsAfresh) {
  const LoadId load = StartedLoad(Open(Plan(1, 60), 1));
  Open(Plan(1, 60), 2);
  Step(Prefetches(Plan(1, 60)));
  const auto failed = Step(LoadFailed{.load = load, .status = DataLossError("chunk 3")});
  const auto errors = All<ReplyError>(failed);
  ASSERT_THAT(errors, SizeIs(3));
  for (const ReplyError& error : errors) EXPECT_EQ(error.status, DataLossError("chunk 3"));
  EXPECT_FALSE(Has<ReleaseExtents>(failed)) << "a failed load leaves nothing to release";
  EXPECT_EQ(Used(), 0u);
  EXPECT_NE(StartedLoad(Open(Plan(1, 60), 1)), load);
  EXPECT_THAT(Step(LoadFailed{.load = load, .status = DataLossError("again")}), IsEmpty());
  EXPECT_THAT(Step(LoadFinished{.load = load}), IsEmpty());
}

TEST_F(StoreTest, AFailureWithoutAReasonIsStillAFailure) {
  const LoadId load = StartedLoad(Open(Plan(1, 60)));
  EXPECT_EQ(ErrorOf(Step(LoadFailed{.load = load})).code(), StatusCode::kInternal);
}

// --- Shared extents --------------------------------------------------------------

TEST_F(StoreTest, SharedExtentsAreLoadedCountedAndReleasedOnce) {
  const ModelPlan one = PlanOf(1, {Piece(1, 20), Piece(2, 10)});
  const ModelPlan two = PlanOf(2, {Piece(1, 20), Piece(3, 10)});
  Put(one);
  const auto asked = Open(two);
  EXPECT_THAT(All<StartLoad>(asked)[0].missing, ElementsAre(Piece(3, 10)));
  EXPECT_EQ(Used(), 40u);
  Close(LeaseOf(Step(LoadFinished{.load = StartedLoad(asked)})));
  EXPECT_EQ(store().Find(KeyOf(1))->unshared_bytes, 10u);

  EXPECT_THAT(Released(Step(EvictAsked{.model = NumberedDigest(1)})), ElementsAre(Piece(2, 0).key));
  EXPECT_THAT(Released(Step(EvictAsked{.model = NumberedDigest(2)})),
              UnorderedElementsAre(Piece(1, 0).key, Piece(3, 0).key));
  EXPECT_EQ(Used(), 0u);
}

TEST_F(StoreTest, AModelWhoseExtentsAreAllThereNeedsNoLoad) {
  Put(PlanOf(1, {Piece(1, 20), Piece(2, 10)}));
  const auto actions = Open(PlanOf(2, {Piece(2, 10), Piece(1, 20)}));
  EXPECT_FALSE(Has<StartLoad>(actions));
  ASSERT_THAT(All<ReplyLease>(actions), SizeIs(1));
  EXPECT_FALSE(All<ReplyLease>(actions)[0].loaded);
  EXPECT_EQ(Used(), 30u);
}

TEST_F(StoreTest, AnExtentThatAnotherLoadBringsIsWaitedForAndThenTheRestIsLoaded) {
  const LoadId first = StartedLoad(Open(PlanOf(1, {Piece(1, 20), Piece(2, 10)}), 1));
  EXPECT_FALSE(Has<StartLoad>(Open(PlanOf(2, {Piece(1, 20), Piece(3, 10)}), 2)));
  const auto finished = Step(LoadFinished{.load = first});
  ASSERT_THAT(All<ReplyLease>(finished), SizeIs(1));
  EXPECT_EQ(All<ReplyLease>(finished)[0].session, 1u);
  EXPECT_THAT(All<StartLoad>(finished)[0].missing, ElementsAre(Piece(3, 10)));
  const auto second = Step(LoadFinished{.load = StartedLoad(finished)});
  EXPECT_EQ(All<ReplyLease>(second)[0].session, 2u);
}

TEST_F(StoreTest, WhenTheLoadOfASharedExtentFailsTheOtherLoadsItItself) {
  const LoadId first = StartedLoad(Open(PlanOf(1, {Piece(1, 20), Piece(2, 10)}), 1));
  Open(PlanOf(2, {Piece(1, 20), Piece(3, 10)}), 2);
  const auto failed = Step(LoadFailed{.load = first, .status = DataLossError("bad file")});
  ASSERT_THAT(All<ReplyError>(failed), SizeIs(1));
  EXPECT_THAT(All<StartLoad>(failed)[0].missing, ElementsAre(Piece(1, 20), Piece(3, 10)));
}

TEST_F(StoreTest, ALoadThatAnotherReplicaWaitsForIsNotCancelled) {
  const OpenAsked one = Asks(PlanOf(1, {Piece(1, 20)}), 1);
  const OpenAsked two = Asks(PlanOf(2, {Piece(1, 20), Piece(3, 10)}), 2);
  const LoadId load = StartedLoad(Step(one));
  Step(two);
  EXPECT_FALSE(Has<CancelLoad>(Step(OpenCancelled{.open = one.open})));
  const auto last = Step(OpenCancelled{.open = two.open});
  ASSERT_THAT(All<CancelLoad>(last), SizeIs(1)) << "now nobody wants it";
  EXPECT_EQ(All<CancelLoad>(last)[0].load, load);
  EXPECT_EQ(StateOf(2), ReplicaState::kAbsent);
}

TEST_F(StoreTest, ALoadThatBeganLaterIsNotCancelledEitherWhileAnotherNeedsItsExtents) {
  const LoadId first = StartedLoad(Open(PlanOf(1, {Piece(1, 20)}), 1));
  Open(PlanOf(2, {Piece(1, 20), Piece(2, 10)}), 2);  // Waits for the first load.
  const OpenAsked third = Asks(PlanOf(3, {Piece(2, 10)}), 3);
  const LoadId later = StartedLoad(Step(third));
  EXPECT_FALSE(Has<CancelLoad>(Step(OpenCancelled{.open = third.open})));
  EXPECT_THAT(All<StartLoad>(Step(LoadFinished{.load = first})), IsEmpty());
  const auto last = Step(LoadFinished{.load = later});
  ASSERT_THAT(All<ReplyLease>(last), SizeIs(1));
  EXPECT_EQ(All<ReplyLease>(last)[0].session, 2u);
}

TEST_F(StoreTest, AReplicaCanWaitForSeveralLoads) {
  const LoadId a = StartedLoad(Open(PlanOf(1, {Piece(1, 20)}), 1));
  const LoadId b = StartedLoad(Open(PlanOf(2, {Piece(2, 20)}), 1));
  EXPECT_THAT(Notices(Open(PlanOf(3, {Piece(1, 20), Piece(2, 20)}), 2), Notify::Kind::kLoading),
              SizeIs(1));
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = b})), SizeIs(1));
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = a})), SizeIs(2));
  EXPECT_EQ(Used(), 40u);
}

TEST_F(StoreTest, WhatWasBroughtForAnotherSurvivesItsOwnersDeparture) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kEager;
  Start(config);
  const OpenAsked one = Asks(PlanOf(1, {Piece(1, 20)}), 1);
  const LoadId load = StartedLoad(Step(one));
  Open(PlanOf(2, {Piece(1, 20)}), 2);
  Step(OpenCancelled{.open = one.open});
  const auto finished = Step(LoadFinished{.load = load});
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent) << "nobody wanted it";
  EXPECT_THAT(All<ReplyLease>(finished), SizeIs(1));
  EXPECT_THAT(Released(finished), IsEmpty());
}

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

// --- Access ----------------------------------------------------------------------

class PrivateModel : public StoreTest {
 protected:
  PrivateModel() { plan_.is_public = false; }
  std::vector<Action> OpenAs(uint32_t uid, bool proved, bool admin = false) {
    OpenAsked event = Asks(plan_, uid, uid);
    event.proved_access = proved;
    event.is_admin = admin;
    return Step(event);
  }
  std::vector<Action> OpenResidentAs(uint32_t uid, bool admin = false) {
    return Step(OpenResidentAsked{
        .open = NextOpen(), .session = uid, .uid = uid, .is_admin = admin, .model = plan_.model});
  }
  ModelPlan plan_ = Plan(1, 60);
};

TEST_F(PrivateModel, LooksLikeAnUnknownOneToStrangers) {
  Step(LoadFinished{.load = StartedLoad(OpenAs(1000, true))});
  const Status unknown = UnknownModelError(plan_.model);
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
  EXPECT_EQ(ErrorOf(OpenAs(2000, false)), unknown);
  EXPECT_EQ(ErrorOf(OpenResidentAs(2000)), unknown);
  EXPECT_EQ(ErrorOf(Step(
                ReattachAsked{.open = NextOpen(), .session = 2, .uid = 2000, .replica = KeyOf(1)})),
            unknown);
  Step(EvictAsked{.model = plan_.model, .force = true});
  EXPECT_EQ(ErrorOf(OpenResidentAs(2000)), unknown);
}

TEST_F(PrivateModel, IsOpenedByWhoeverShowedTheFileAndByAdministrators) {
  Step(LoadFinished{.load = StartedLoad(OpenAs(1000, true))});
  EXPECT_TRUE(Has<ReplyLease>(OpenAs(1000, false)));
  EXPECT_TRUE(Has<ReplyLease>(OpenResidentAs(1000)));
  EXPECT_TRUE(Has<ReplyLease>(OpenAs(2000, true)));
  EXPECT_TRUE(Has<ReplyLease>(OpenResidentAs(2000)));
  EXPECT_TRUE(Has<ReplyLease>(OpenAs(3000, false, /*admin=*/true)));
  EXPECT_TRUE(Has<ReplyLease>(OpenResidentAs(3000, /*admin=*/true)));
  EXPECT_EQ(ErrorOf(OpenResidentAs(3000)).code(), StatusCode::kNotFound);
  EXPECT_THAT(store().Find(KeyOf(1))->proved_uids, ElementsAre(1000, 2000));
}

TEST_F(PrivateModel, AProofCanComeWithAnOpenOfWhatIsResident) {
  Step(LoadFinished{.load = StartedLoad(OpenAs(1000, true))});
  OpenResidentAsked event{
      .open = NextOpen(), .session = 2, .uid = 2000, .model = plan_.model, .proved_access = true};
  EXPECT_TRUE(Has<ReplyLease>(Step(event)));
  EXPECT_TRUE(Has<ReplyLease>(OpenResidentAs(2000)));
}

TEST_F(PrivateModel, ARefusedOpenLeavesNoTrace) {
  EXPECT_EQ(ErrorOf(OpenAs(2000, false)).code(), StatusCode::kNotFound);
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_EQ(Used(), 0u);
}

TEST_F(PrivateModel, IsPublicFromWhenItsPlanSaysSo) {
  Step(LoadFinished{.load = StartedLoad(OpenAs(1000, true))});
  Open(Plan(1, 60), 2, 2000);
  EXPECT_TRUE(Has<ReplyLease>(OpenResidentAs(3000)));
  OpenAs(1000, true);
  EXPECT_EQ(ErrorOf(OpenResidentAs(3000)).code(), StatusCode::kNotFound);
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

// --- Quarantine ------------------------------------------------------------------

TEST_F(StoreTest, QuarantinedBytesAreLentToNobodyAndLoadedAgain) {
  const LeaseId lease = Load(Plan(1, 40));
  const auto found = Step(QuarantineAsked{.replica = KeyOf(1), .reason = "tensor w: wrong sum"});
  ASSERT_THAT(Notices(found, Notify::Kind::kQuarantined), SizeIs(1));
  EXPECT_EQ(Notices(found, Notify::Kind::kQuarantined)[0].detail, "tensor w: wrong sum");
  EXPECT_THAT(Released(found), SizeIs(1)) << "the key is free for a good copy";
  EXPECT_EQ(StateOf(1), ReplicaState::kQuarantined);
  EXPECT_EQ(Used(), 40u) << "but the memory is the client's still";
  EXPECT_EQ(store().Tiers()[0].revoked_bytes, 40u);

  const auto reload = Open(Plan(1, 40), 2);
  EXPECT_THAT(All<StartLoad>(reload)[0].missing, SizeIs(1));
  EXPECT_EQ(Used(), 80u);
  Step(LoadFinished{.load = StartedLoad(reload)});
  const auto closed = Close(lease);
  EXPECT_THAT(Released(closed), IsEmpty()) << "the good copy has the same key";
  EXPECT_EQ(Used(), 40u);
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, AnUnleasedQuarantinedReplicaIsGone) {
  Put(Plan(1, 40));
  EXPECT_THAT(Released(Step(QuarantineAsked{.replica = KeyOf(1)})), SizeIs(1));
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
  EXPECT_EQ(Used(), 0u);
  EXPECT_THAT(Step(QuarantineAsked{.replica = KeyOf(1)}), IsEmpty());
}

TEST_F(StoreTest, QuarantineReachesAllThatShareTheBadExtentAndNoOthers) {
  Put(PlanOf(1, {Piece(1, 10), Piece(2, 10)}));
  Load(PlanOf(2, {Piece(1, 10), Piece(3, 10)}), 2);
  Put(PlanOf(3, {Piece(2, 10), Piece(3, 10)}));
  const auto actions = Step(QuarantineAsked{.replica = KeyOf(1), .extents = {Piece(1, 0).key}});
  EXPECT_THAT(Notices(actions, Notify::Kind::kQuarantined), SizeIs(2));
  EXPECT_THAT(Released(actions), ElementsAre(Piece(1, 0).key));
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
  EXPECT_EQ(StateOf(2), ReplicaState::kQuarantined);
  EXPECT_EQ(StateOf(3), ReplicaState::kReady);
  const auto reload = Open(PlanOf(2, {Piece(1, 10), Piece(3, 10)}), 3);
  EXPECT_THAT(All<StartLoad>(reload)[0].missing, ElementsAre(Piece(1, 10)));
}

TEST_F(StoreTest, QuarantineReachesDrainingReplicasOfTheSameBytes) {
  Load(Plan(1, 40));
  Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  LeaseOf(Open(Plan(1, 40), 2));
  EXPECT_THAT(Notices(Step(QuarantineAsked{.replica = KeyOf(1)}), Notify::Kind::kQuarantined),
              SizeIs(2));
}

TEST_F(StoreTest, ALoadThatBuiltOnBadBytesLoadsThemAgain) {
  Put(PlanOf(1, {Piece(1, 10)}));
  const LoadId load = StartedLoad(Open(PlanOf(2, {Piece(1, 10), Piece(2, 10)}), 2));
  Step(QuarantineAsked{.replica = KeyOf(1)});
  const auto finished = Step(LoadFinished{.load = load});
  EXPECT_FALSE(Has<ReplyLease>(finished));
  EXPECT_THAT(All<StartLoad>(finished)[0].missing, ElementsAre(Piece(1, 10)));
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = StartedLoad(finished)})), SizeIs(1));
}

TEST_F(StoreTest, AVerdictOnAGenerationThatIsGoneHitsNoOther) {
  const auto old = Step(LoadFinished{.load = StartedLoad(Open(Plan(1, 40)))});
  const uint64_t generation = All<ReplyLease>(old)[0].generation;
  Close(LeaseOf(old));
  Step(EvictAsked{.model = NumberedDigest(1)});
  Put(Plan(1, 40));
  EXPECT_THAT(Step(QuarantineAsked{.replica = KeyOf(1), .generation = generation}), IsEmpty());
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(StoreTest, AReplicaThatIsLoadingHasNothingToQuarantine) {
  Open(Plan(1, 40));
  EXPECT_THAT(Step(QuarantineAsked{.replica = KeyOf(1)}), IsEmpty());
  EXPECT_EQ(StateOf(1), ReplicaState::kLoading);
}

// --- Adoption and reattaching ----------------------------------------------------

class Adoption : public StoreTest {
 protected:
  AdoptionStarted Adopts(ModelPlan plan, uint64_t generation = 77) {
    AdoptionStarted event;
    event.load = store().NewLoadId();
    event.plan = std::move(plan);
    event.generation = generation;
    return event;
  }
  ReattachAsked Reattaches(uint64_t model, SessionId session = 1, uint32_t uid = 1000) {
    ReattachAsked event;
    event.open = NextOpen();
    event.session = session;
    event.uid = uid;
    event.replica = KeyOf(model);
    event.generation = 77;
    return event;
  }
};

TEST_F(Adoption, IsReadyUnderItsOldGenerationWhenVerified) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  EXPECT_FALSE(Has<StartLoad>(Step(adoption)));
  EXPECT_EQ(Used(), 60u);
  Step(LoadFinished{.load = adoption.load});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
  EXPECT_EQ(store().Find(KeyOf(1))->generation, 77u);
  const auto fresh = Step(LoadFinished{.load = StartedLoad(Open(Plan(2, 10)))});
  EXPECT_GT(All<ReplyLease>(fresh)[0].generation, 77u) << "generations are never repeated";
}

TEST_F(Adoption, ReattachWaitsForItAndIsThenLeased) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  EXPECT_THAT(Step(Reattaches(1)), IsEmpty());
  EXPECT_THAT(Open(Plan(1, 60), 2), IsEmpty()) << "an open joins too";
  const auto finished = Step(LoadFinished{.load = adoption.load});
  EXPECT_THAT(All<ReplyLease>(finished), SizeIs(2));
  EXPECT_EQ(All<ReplyLease>(finished)[0].generation, 77u);
  EXPECT_THAT(All<ReplyLease>(Step(Reattaches(1, 3))), SizeIs(1));
}

TEST_F(Adoption, ReattachOfAnotherGenerationOfTheSameDigestIsGranted) {
  Put(Plan(1, 60));
  const auto replies = All<ReplyLease>(Step(Reattaches(1)));
  ASSERT_THAT(replies, SizeIs(1));
  EXPECT_NE(replies[0].generation, 77u);
}

TEST_F(Adoption, ReattachNeverLoads) {
  EXPECT_EQ(ErrorOf(Step(Reattaches(1))).code(), StatusCode::kNotFound);
  Open(Plan(1, 60));
  EXPECT_EQ(ErrorOf(Step(Reattaches(1))).code(), StatusCode::kNotFound) << "an ordinary load";
}

TEST_F(Adoption, IsNotEvictedForAGracePeriod) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  Step(LoadFinished{.load = adoption.load});
  EXPECT_EQ(ErrorOf(Open(Plan(2, 60))).code(), StatusCode::kResourceExhausted);
  const auto evict = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(1)}));
  EXPECT_EQ(evict[0].kept[0].reason, "adopted just now");
  Pass(seconds(5));
  EXPECT_THAT(Evicted(Open(Plan(2, 60))), ElementsAre(1));
}

TEST_F(Adoption, DoesNotExpireInItsGracePeriod) {
  Config config = OneTier(100);
  config.policy = PolicyKind::kEager;
  Start(config);
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  Step(LoadFinished{.load = adoption.load});
  EXPECT_EQ(store().NextDeadline(), now() + seconds(5));
  const LeaseId first = LeaseOf(Step(Reattaches(1, 1)));
  Close(first, 1);
  EXPECT_TRUE(Has<ReplyLease>(Step(Reattaches(1, 2)))) << "the next client still finds it";
  Step(SessionEnded{.session = 2});
  Pass(seconds(5));
  Step(Tick{});
  EXPECT_EQ(StateOf(1), ReplicaState::kAbsent);
}

TEST_F(Adoption, FailedReleasesItsExtentsAndOpensGoOnWithALoad) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  const ReattachAsked reattach = Reattaches(1, 1);
  Step(reattach);
  Open(Plan(1, 60), 2);
  const auto failed = Step(LoadFailed{.load = adoption.load, .status = DataLossError("flipped")});
  EXPECT_EQ(All<ReplyError>(failed)[0].open, reattach.open);
  EXPECT_EQ(ErrorOf(failed).code(), StatusCode::kNotFound);
  EXPECT_THAT(Released(failed), SizeIs(1));
  const auto finished = Step(LoadFinished{.load = StartedLoad(failed)});
  ASSERT_THAT(All<ReplyLease>(finished), SizeIs(1));
  EXPECT_GT(All<ReplyLease>(finished)[0].generation, 77u);
}

TEST_F(Adoption, WithoutAWaiterIsNotCancelled) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  const OpenAsked open = Asks(Plan(1, 60));
  Step(open);
  EXPECT_FALSE(Has<CancelLoad>(Step(OpenCancelled{.open = open.open})));
  Step(LoadFinished{.load = adoption.load});
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

TEST_F(Adoption, TwoCanShareExtentsAndOneMayFail) {
  const AdoptionStarted one = Adopts(PlanOf(1, {Piece(1, 20), Piece(2, 10)}), 77);
  const AdoptionStarted two = Adopts(PlanOf(2, {Piece(1, 20), Piece(3, 10)}), 78);
  Step(one);
  Step(two);
  EXPECT_EQ(Used(), 40u);
  const auto failed = Step(LoadFailed{.load = one.load, .status = DataLossError("flipped")});
  EXPECT_THAT(Released(failed), ElementsAre(Piece(2, 0).key));
  Step(LoadFinished{.load = two.load});
  EXPECT_EQ(StateOf(2), ReplicaState::kReady);
  EXPECT_EQ(Used(), 30u);
}

TEST_F(Adoption, AnExtentThatOneVerifiedSurvivesTheOthersFailure) {
  const AdoptionStarted one = Adopts(PlanOf(1, {Piece(1, 20)}), 77);
  const AdoptionStarted two = Adopts(PlanOf(2, {Piece(1, 20), Piece(3, 10)}), 78);
  Step(one);
  Step(two);
  Step(LoadFinished{.load = one.load});
  const auto failed = Step(LoadFailed{.load = two.load, .status = DataLossError("flipped")});
  EXPECT_THAT(Released(failed), ElementsAre(Piece(3, 0).key));
  EXPECT_TRUE(Has<ReplyLease>(Step(Reattaches(1))));
}

TEST_F(Adoption, AnOpenOfAnotherModelWaitsForASharedExtentThatIsBeingVerified) {
  const AdoptionStarted adoption = Adopts(PlanOf(1, {Piece(1, 20)}));
  Step(adoption);
  EXPECT_FALSE(Has<StartLoad>(Open(PlanOf(2, {Piece(1, 20), Piece(2, 10)}), 2)));
  const auto failed = Step(LoadFailed{.load = adoption.load, .status = DataLossError("flipped")});
  EXPECT_THAT(Released(failed), ElementsAre(Piece(1, 0).key));
  EXPECT_THAT(All<StartLoad>(failed)[0].missing, ElementsAre(Piece(1, 20), Piece(2, 10)));
}

TEST_F(Adoption, IsRefusedWhenTheReplicaIsThereAlreadyOrDoesNotFit) {
  Load(PlanOf(1, {Piece(1, 60)}));
  const AdoptionStarted twice = Adopts(PlanOf(1, {Piece(1, 60)}));
  const auto refused = Step(twice);
  EXPECT_THAT(Notices(refused, Notify::Kind::kFailed), SizeIs(1));
  EXPECT_THAT(Released(refused), IsEmpty()) << "the extent is in use";
  EXPECT_THAT(Step(LoadFinished{.load = twice.load}), IsEmpty());

  const auto too_large = Step(Adopts(PlanOf(2, {Piece(1, 60), Piece(2, 41)})));
  EXPECT_THAT(Released(too_large), ElementsAre(Piece(2, 0).key));
  EXPECT_EQ(StateOf(2), ReplicaState::kAbsent);
  EXPECT_EQ(Used(), 60u);
}

TEST_F(Adoption, IsRefusedWhenAnExtentOfItIsBeingLoaded) {
  const LoadId load = StartedLoad(Open(PlanOf(1, {Piece(1, 20)})));
  const auto refused = Step(Adopts(PlanOf(2, {Piece(1, 20), Piece(2, 10)})));
  EXPECT_THAT(Released(refused), ElementsAre(Piece(2, 0).key));
  EXPECT_TRUE(Has<ReplyLease>(Step(LoadFinished{.load = load})));
}

TEST_F(Adoption, KeepsPinsAndProofsOfBefore) {
  AdoptionStarted adoption = Adopts(Plan(1, 60));
  adoption.plan.is_public = false;
  adoption.pinned = true;
  adoption.proved_uids = {1000};
  Step(adoption);
  Step(LoadFinished{.load = adoption.load});
  EXPECT_TRUE(store().Find(KeyOf(1))->pinned);
  EXPECT_TRUE(Has<ReplyLease>(Step(Reattaches(1, 1, 1000))));
  EXPECT_EQ(ErrorOf(Step(Reattaches(1, 2, 2000))).code(), StatusCode::kNotFound);
  EXPECT_TRUE(Has<ReplyLease>(Step(Reattaches(1, 3, 0))));
  ReattachAsked proof = Reattaches(1, 4, 3000);
  proof.proved_access = true;
  EXPECT_TRUE(Has<ReplyLease>(Step(proof)));
}

TEST_F(Adoption, CanBeEvictedByForceWhileItIsVerified) {
  const AdoptionStarted adoption = Adopts(Plan(1, 60));
  Step(adoption);
  const auto evicted = Step(EvictAsked{.model = NumberedDigest(1), .force = true});
  EXPECT_THAT(All<CancelLoad>(evicted), SizeIs(1));
  EXPECT_THAT(Released(Step(LoadFailed{.load = adoption.load, .status = CancelledError("")})),
              SizeIs(1));
  EXPECT_EQ(Used(), 0u);
}

// --- Configuration ---------------------------------------------------------------

TEST_F(StoreTest, ALoweredBudgetEvictsWhatItCanAndAdmitsNothingUntilTheRestIsGone) {
  const LeaseId lease = Load(Plan(1, 60));
  Put(Plan(2, 20));
  Put(Plan(3, 20));
  const auto changed = Step(ConfigChanged{.config = OneTier(50)});
  EXPECT_THAT(Evicted(changed), ElementsAre(2, 3));
  EXPECT_EQ(Used(), 60u);
  EXPECT_EQ(ErrorOf(Open(Plan(4, 10))).code(), StatusCode::kResourceExhausted);
  Close(lease);
  EXPECT_THAT(Evicted(Open(Plan(4, 10))), ElementsAre(1));
}

TEST_F(StoreTest, ALoweredBudgetEvictsNoMoreThanItMust) {
  for (uint64_t model : {1, 2, 3, 4}) {
    Put(Plan(model, 25));
    Pass(seconds(1));
  }
  EXPECT_THAT(Evicted(Step(ConfigChanged{.config = OneTier(60)})), ElementsAre(1, 2));
}

TEST_F(StoreTest, AChangedPolicyDecidesTheNextEviction) {
  Put(Plan(1, 40));
  Pass(seconds(1));
  Put(Plan(2, 40));
  Pass(seconds(1));
  Close(LeaseOf(Open(Plan(1, 40))));
  Config config = OneTier(100);
  config.policy = PolicyKind::kFifo;
  Step(ConfigChanged{.config = config});
  EXPECT_THAT(Evicted(Open(Plan(3, 40))), ElementsAre(1)) << "lru would take 2";
}

// --- Memory of what is gone --------------------------------------------------------

TEST_F(StoreTest, NothingIsRememberedOfAModelThatLeftNothingBehind) {
  for (uint64_t model = 1; model <= 100; ++model) {
    Put(Plan(model, 60));
  }
  Step(EvictAsked{.model = NumberedDigest(100)});
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_THAT(store().Leases(), IsEmpty());
  EXPECT_EQ(Used(), 0u);
}

TEST(StoreMemory, OfMeasurementsIsBounded) {
  Config config;
  config.tiers = {{.name = "host", .budget_bytes = 100}};
  Store store(config);
  const auto open_and_close = [&](uint64_t model) {
    OpenAsked open;
    open.open = 1;
    open.session = 1;
    open.uid = 1000;
    open.plan.model = NumberedDigest(model);
    open.plan.extents = {{.key = NumberedDigest(model), .bytes = 60}};
    const auto asked = store.Apply(open, Time{});
    if (Has<ReplyError>(asked)) return false;
    const auto loaded = store.Apply(LoadFinished{.load = All<StartLoad>(asked)[0].load}, Time{});
    store.Apply(
        LeaseClosed{
            .session = 1, .lease = All<ReplyLease>(loaded)[0].lease, .peak_internal_bytes = 90},
        Time{});
    store.Apply(EvictAsked{.model = NumberedDigest(model)}, Time{});
    return true;
  };
  EXPECT_TRUE(open_and_close(0));
  EXPECT_FALSE(open_and_close(0)) << "60 + 90 are too much";
  for (uint64_t model = 1; model <= 65536; ++model) ASSERT_TRUE(open_and_close(model));
  store.CheckInvariants();
  EXPECT_FALSE(open_and_close(65536));
  EXPECT_TRUE(open_and_close(0)) << "the oldest is forgotten";
}

// --- Views -----------------------------------------------------------------------

TEST_F(StoreTest, ReplicasAreListedByNameAndLeasesByNumber) {
  Load(Plan(3, 10), 1, 1000);
  Load(Plan(1, 10), 2, 2000);
  Load(Plan(2, 10), 3, 3000);
  const auto replicas = store().Replicas();
  ASSERT_THAT(replicas, SizeIs(3));
  EXPECT_EQ(replicas[0].name, "m1");
  EXPECT_EQ(replicas[2].name, "m3");
  const auto leases = store().Leases();
  ASSERT_THAT(leases, SizeIs(3));
  EXPECT_LT(leases[0].lease, leases[1].lease);
  EXPECT_EQ(leases[0].replica, KeyOf(3));
  EXPECT_EQ(leases[1].uid, 2000u);
}

TEST_F(StoreTest, TierUseIsSplitByWhoHoldsIt) {
  Load(PlanOf(1, {Piece(1, 10), Piece(2, 20)}));
  Put(PlanOf(2, {Piece(2, 20), Piece(3, 30)}));
  Put(Plan(3, 5));
  Step(PinAsked{.model = NumberedDigest(3)});
  const TierView tier = store().Tiers()[0];
  EXPECT_EQ(tier.name, "host");
  EXPECT_EQ(tier.budget_bytes, 100u);
  EXPECT_EQ(tier.used_bytes, 65u);
  EXPECT_EQ(tier.leased_bytes, 30u);
  EXPECT_EQ(tier.evictable_bytes, 30u);
  EXPECT_EQ(tier.pinned_bytes, 5u);
  EXPECT_EQ(tier.revoked_bytes, 0u);
}

TEST_F(StoreTest, UnknownModelsHaveOneAnswer) {
  EXPECT_EQ(UnknownModelError("x").message(), "no model x");
  EXPECT_EQ(UnknownModelError(NumberedDigest(1)).message(),
            "no model @" + NumberedDigest(1).ToString());
}

}  // namespace
}  // namespace trims::store

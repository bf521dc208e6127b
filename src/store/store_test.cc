// The state machine: opens, closes, failures, extents that models share, who may open what, and
// what can be seen of it. Admission, eviction and recovery have files of their own.
#include "store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

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

// Bytes that are in doubt: quarantine of those that were found wrong, and adoption of those that
// a worker of before has left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

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

}  // namespace
}  // namespace trims::store

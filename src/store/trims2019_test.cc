// The faults of the 2019 implementation that a store can have, one test each: what
// happened then is in the comment, what happens here is in the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr PolicyKind kAllPolicies[] = {PolicyKind::kNever, PolicyKind::kLru,    PolicyKind::kFifo,
                                       PolicyKind::kLcu,   PolicyKind::kRandom, PolicyKind::kFlush,
                                       PolicyKind::kEager, PolicyKind::kGdsf};

class Trims2019 : public StoreFixture {
 protected:
  void StartWith(PolicyKind policy, uint64_t budget = 100) {
    Config config = OneTier(budget);
    config.policy = policy;
    Start(config);
  }
};

// 2019: the comparator of lru, fifo and lcu looked only at its left argument, so a
// first element that was in use kept its place as the minimum and was freed under
// its clients, unless a free one had a smaller key.
TEST_F(Trims2019, TheFirstModelIsNotEvictedWhileInUseThoughAnotherIsFree) {
  for (PolicyKind policy : {PolicyKind::kLru, PolicyKind::kFifo, PolicyKind::kLcu,
                            PolicyKind::kRandom, PolicyKind::kGdsf}) {
    StartWith(policy);
    Load(Plan(1, 40));  // Smallest key under each policy, and in use.
    Pass(seconds(1));
    Put(Plan(2, 40));
    Close(LeaseOf(Open(Plan(2, 40))));
    EXPECT_THAT(Evicted(Open(Plan(3, 40))), ElementsAre(2)) << PolicyName(policy);
    EXPECT_EQ(StateOf(1), ReplicaState::kReady) << PolicyName(policy);
  }
}

// 2019: if all models were in use, the first one was evicted.
TEST_F(Trims2019, NothingIsEvictedWhenAllAreInUse) {
  for (PolicyKind policy : kAllPolicies) {
    StartWith(policy);
    Load(Plan(1, 50));
    Load(Plan(2, 50));
    const auto actions = Open(Plan(3, 10));
    EXPECT_THAT(Evicted(actions), IsEmpty()) << PolicyName(policy);
    EXPECT_THAT(Released(actions), IsEmpty()) << PolicyName(policy);
    EXPECT_EQ(ErrorOf(actions).code(), StatusCode::kResourceExhausted) << PolicyName(policy);
  }
}

// 2019: flush and all freed every model, those in use included, and cleared the
// database.
TEST_F(Trims2019, FlushKeepsWhatIsInUse) {
  StartWith(*ParsePolicy("all"));
  const LeaseId lease = Load(Plan(1, 40));
  Put(Plan(2, 40));
  EXPECT_THAT(Evicted(Open(Plan(3, 50))), ElementsAre(2));
  EXPECT_TRUE(store().HasLease(1, lease));
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

// 2019: an eviction loop freed victims one by one and reported failure at the end
// when they were not enough: the cache was lost and the request refused as well.
TEST_F(Trims2019, ARefusedRequestCostsNoResidentModel) {
  for (PolicyKind policy : kAllPolicies) {
    StartWith(policy);
    Load(Plan(1, 50));
    Step(LoadFinished{.load = StartedLoad(Step(Prefetches(Plan(2, 20))))});
    EXPECT_EQ(ErrorOf(Open(Plan(3, 80))).code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(StateOf(2), ReplicaState::kReady) << PolicyName(policy);
  }
}

// 2019: with eager, perform_eviction had no branch for it: "the eviction policy
// eager is not valid" whenever room was short.
TEST_F(Trims2019, EagerMakesRoomFromWhatNobodyUses) {
  StartWith(PolicyKind::kEager);
  Step(LoadFinished{.load = StartedLoad(Step(Prefetches(Plan(1, 60))))});
  const auto actions = Open(Plan(2, 60));
  EXPECT_THAT(Evicted(actions), ElementsAre(1));
  EXPECT_TRUE(Has<StartLoad>(actions));
}

// 2019: random was a comment.
TEST_F(Trims2019, RandomEvicts) {
  std::set<uint64_t> victims;
  for (uint64_t seed = 1; seed <= 64; ++seed) {
    Config config = OneTier(100);
    config.policy = PolicyKind::kRandom;
    config.random_seed = seed;
    Start(config);
    Put(Plan(1, 40));
    Put(Plan(2, 40));
    const auto evicted = Evicted(Open(Plan(3, 40)));
    ASSERT_THAT(evicted, SizeIs(1));
    victims.insert(evicted[0]);
  }
  EXPECT_THAT(victims, ElementsAre(1, 2));
}

// 2019: names of policies were case-sensitive, while the README printed "LRU"; a
// wrong name was found out at the first eviction.
TEST_F(Trims2019, PolicyNamesAreReadInAnyCaseAndCheckedWhenRead) {
  EXPECT_EQ(*ParsePolicy("LRU"), PolicyKind::kLru);
  EXPECT_EQ(ParsePolicy("lur").status().code(), StatusCode::kInvalidArgument);
}

// 2019: Close decremented the model's count even if the handle was unknown, so a
// double close made it too low, even negative, and the model evictable in use.
TEST_F(Trims2019, ADoubleCloseDoesNotCountTwice) {
  StartWith(PolicyKind::kLru);
  const LeaseId mine = Load(Plan(1, 60), 1);
  LeaseOf(Open(Plan(1, 60), 2));
  Close(mine, 1);
  EXPECT_THAT(Close(mine, 1), IsEmpty());
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 1u);
  EXPECT_EQ(ErrorOf(Open(Plan(2, 60), 3)).code(), StatusCode::kResourceExhausted);
}

// 2019: with eager a double close could reach zero and free memory in use.
TEST_F(Trims2019, ADoubleCloseDoesNotFreeWhatAnotherClientUses) {
  StartWith(PolicyKind::kEager);
  const LeaseId mine = Load(Plan(1, 60), 1);
  LeaseOf(Open(Plan(1, 60), 2));
  Close(mine, 1);
  Close(mine, 1);
  EXPECT_EQ(StateOf(1), ReplicaState::kReady);
}

// 2019: ids of handles could be guessed from Info, which listed the handles of all
// clients, and anybody could close them.
TEST_F(Trims2019, NobodyClosesAnotherSessionsLease) {
  StartWith(PolicyKind::kLru);
  const LeaseId lease = Load(Plan(1, 60), 1);
  EXPECT_THAT(Close(lease, /*session=*/2), IsEmpty());
  EXPECT_TRUE(store().HasLease(1, lease));
}

// 2019: a close of an unknown id scanned all models and failed the call; with a
// known model and an unknown handle it succeeded and miscounted.
TEST_F(Trims2019, ACloseOfAnUnknownLeaseChangesNothing) {
  StartWith(PolicyKind::kLru);
  Load(Plan(1, 60), 1);
  EXPECT_FALSE(store().HasLease(1, 424242));
  EXPECT_THAT(Close(424242, 1), IsEmpty());
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 1u);
}

// 2019: two concurrent first opens of one model both loaded it: the loser's memory
// leaked and was counted twice.
TEST_F(Trims2019, TwoFirstOpensLoadOnceAndCountOnce) {
  StartWith(PolicyKind::kLru);
  const LoadId load = StartedLoad(Open(Plan(1, 60), 1));
  EXPECT_FALSE(Has<StartLoad>(Open(Plan(1, 60), 2)));
  EXPECT_EQ(Used(), 60u);
  EXPECT_THAT(All<ReplyLease>(Step(LoadFinished{.load = load})), SizeIs(2));
  EXPECT_EQ(Used(), 60u);
}

// 2019: a client that died kept its references for ever, and with them the model.
TEST_F(Trims2019, ADeadClientsReferencesGoWithIt) {
  StartWith(PolicyKind::kLru);
  Load(Plan(1, 60), 1);
  LeaseOf(Open(Plan(1, 60), 1));
  Step(SessionEnded{.session = 1});
  EXPECT_EQ(store().Find(KeyOf(1))->leases, 0u);
  EXPECT_THAT(Evicted(Open(Plan(2, 60), 2)), ElementsAre(1));
}

// 2019: a client that died while its open was loading left a counted model behind
// that nobody had.
TEST_F(Trims2019, AClientThatDiesWhileLoadingLeavesNothing) {
  StartWith(PolicyKind::kLru);
  const LoadId load = StartedLoad(Open(Plan(1, 60), 1));
  EXPECT_TRUE(Has<CancelLoad>(Step(SessionEnded{.session = 1})));
  Step(LoadFailed{.load = load, .status = CancelledError("as asked")});
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_EQ(Used(), 0u);
}

// 2019: RESOURCE_EXHAUSTED meant four things: larger than the budget, could not make
// room, invalid policy, and unknown model.
TEST_F(Trims2019, OverBudgetNoRoomAndUnknownModelAreDifferentAnswers) {
  StartWith(PolicyKind::kLru);
  Load(Plan(1, 60));
  const Status over_budget = ErrorOf(Open(Plan(2, 101)));
  const Status no_room = ErrorOf(Open(Plan(3, 60)));
  const Status unknown = ErrorOf(
      Step(OpenResidentAsked{.open = NextOpen(), .session = 1, .model = NumberedDigest(4)}));
  EXPECT_EQ(over_budget.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(over_budget.message(), HasSubstr("more than the whole budget"));
  EXPECT_EQ(no_room.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(no_room.message(), HasSubstr("cannot make room"));
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
}

// 2019: errors after the eviction step were thrown out of the handler, the model
// half registered; in a release build a failed allocation was not even noticed.
TEST_F(Trims2019, AFailedLoadIsAnErrorForItsOpenersAndLeavesNoModel) {
  StartWith(PolicyKind::kLru);
  const LoadId load = StartedLoad(Open(Plan(1, 60)));
  const auto failed =
      Step(LoadFailed{.load = load, .status = ResourceExhaustedError("out of memory")});
  EXPECT_EQ(ErrorOf(failed).message(), "out of memory");
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_EQ(Used(), 0u);
}

// 2019: a reply could come before the copy to the device had ended.
TEST_F(Trims2019, NoReplyComesBeforeTheLoadFinished) {
  StartWith(PolicyKind::kLru);
  const auto asked = Open(Plan(1, 60));
  EXPECT_FALSE(Has<ReplyLease>(asked));
  EXPECT_FALSE(Has<ReplyLease>(Open(Plan(1, 60), 2)));
  EXPECT_TRUE(Has<ReplyLease>(Step(LoadFinished{.load = StartedLoad(asked)})));
}

// 2019: the estimate needed an entry of a compiled table; models that were not in it
// could not be opened at all, and three of its values were knowingly too low.
TEST_F(Trims2019, AModelNeverSeenBeforeIsAdmittedAndThenMeasured) {
  StartWith(PolicyKind::kLru);
  Close(Load(Plan(1, 20)), 1, /*peak=*/50);
  EXPECT_EQ(store().Find(KeyOf(1))->peak_internal_bytes, 50u);
  Step(EvictAsked{.model = NumberedDigest(1)});
  Load(Plan(2, 40), 2);
  EXPECT_THAT(All<ReplyError>(Open(Plan(1, 20)))[0].need_bytes, 70u);
}

// 2019: the copies in host memory were never evicted and without bound.
TEST_F(Trims2019, TheHostTierHasABudget) {
  StartWith(PolicyKind::kLru);
  for (uint64_t model = 1; model <= 50; ++model) {
    Pass(seconds(1));
    Put(Plan(model, 30));
    EXPECT_LE(Used(), 100u);
  }
}

// 2019: the database was keyed by name, so new contents under an old name were
// served from the old memory.
TEST_F(Trims2019, OtherContentsUnderTheSameNameAreAnotherModel) {
  StartWith(PolicyKind::kLru);
  ModelPlan before = Plan(1, 30);
  ModelPlan after = Plan(2, 30);
  after.name = before.name;
  Load(before);
  const auto actions = Open(after);
  EXPECT_THAT(All<StartLoad>(actions), Not(IsEmpty()));
  EXPECT_FALSE(Has<ReplyLease>(actions));
}

// 2019: "needed_eviction" was stored at load and repeated to every later opener.
TEST_F(Trims2019, WhatALoadCostIsToldToThoseWhoWaitedForIt) {
  StartWith(PolicyKind::kLru);
  const auto first = Step(LoadFinished{.load = StartedLoad(Open(Plan(1, 60)))});
  EXPECT_TRUE(All<ReplyLease>(first)[0].loaded);
  EXPECT_FALSE(All<ReplyLease>(Open(Plan(1, 60)))[0].loaded);
}

}  // namespace
}  // namespace trims::store

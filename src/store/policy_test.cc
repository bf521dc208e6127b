#include "store/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// Four models, written out so that each policy has another order:
//
//   model  loaded  opens  last open  bytes  reload  H (first load, L = 0)
//     1     1st      9      40 s      100    1 s    9 x 1 s / 100 B = 0.09
//     2     2nd      2      50 s      100    4 s    2 x 4 s / 100 B = 0.08
//     3     3rd      5      10 s     1000    2 s    5 x 2 s / 1000 B = 0.01
//     4     4th      3      20 s       10    1 s    3 x 1 s / 10 B = 0.3
std::vector<Candidate> Example(EvictionPolicy& policy) {
  const auto candidate = [](uint64_t model, uint64_t load, uint64_t opens, int last, uint64_t bytes,
                            int cost) {
    Candidate c;
    c.replica = {.model = NumberedDigest(model)};
    c.load_number = load;
    c.opens = opens;
    c.last_open = Time(seconds(last));
    c.bytes = bytes;
    c.reload_cost = seconds(cost);
    return c;
  };
  std::vector<Candidate> candidates = {
      candidate(4, 4, 3, 20, 10, 1),
      candidate(2, 2, 2, 50, 100, 4),
      candidate(1, 1, 9, 40, 100, 1),
      candidate(3, 3, 5, 10, 1000, 2),
  };
  for (Candidate& c : candidates) c.priority = policy.OnAccess(c);
  return candidates;
}

std::vector<uint64_t> Order(EvictionPolicy& policy, std::vector<Candidate> candidates) {
  policy.Order(candidates);
  std::vector<uint64_t> order;
  for (const Candidate& c : candidates) order.push_back(c.load_number);
  return order;
}

std::vector<uint64_t> ExampleOrder(PolicyKind kind) {
  const auto policy = MakePolicy(kind, 1);
  EXPECT_EQ(policy->kind(), kind);
  return Order(*policy, Example(*policy));
}

TEST(Policy, NeverOffersNoVictim) { EXPECT_THAT(ExampleOrder(PolicyKind::kNever), IsEmpty()); }

TEST(Policy, LruTakesTheLeastRecentlyOpened) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kLru), ElementsAre(3, 4, 1, 2));
}

TEST(Policy, FifoTakesTheFirstLoaded) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kFifo), ElementsAre(1, 2, 3, 4));
}

TEST(Policy, LcuTakesTheOneWithFewestOpens) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kLcu), ElementsAre(2, 4, 3, 1));
}

TEST(Policy, LcuBreaksTiesByLoadOrder) {
  const auto policy = MakePolicy(PolicyKind::kLcu, 1);
  std::vector<Candidate> candidates = Example(*policy);
  for (Candidate& c : candidates) c.opens = 7;
  EXPECT_THAT(Order(*policy, candidates), ElementsAre(1, 2, 3, 4));
}

TEST(Policy, FlushTakesAllAndSaysSo) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kFlush), ElementsAre(3, 4, 1, 2));
  EXPECT_TRUE(MakePolicy(PolicyKind::kFlush, 1)->EvictsAll());
  EXPECT_FALSE(MakePolicy(PolicyKind::kLru, 1)->EvictsAll());
}

TEST(Policy, EagerHasAnOrderForWhatWasNeverLeased) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kEager), ElementsAre(3, 4, 1, 2));
  EXPECT_TRUE(MakePolicy(PolicyKind::kEager, 1)->EvictsAtZeroLeases());
  EXPECT_FALSE(MakePolicy(PolicyKind::kFlush, 1)->EvictsAtZeroLeases());
}

TEST(Policy, GdsfTakesTheLeastFrequencyTimesCostPerByte) {
  EXPECT_THAT(ExampleOrder(PolicyKind::kGdsf), ElementsAre(3, 2, 1, 4));
}

TEST(Policy, GdsfAgesWhatWasPopularOnce) {
  const auto policy = MakePolicy(PolicyKind::kGdsf, 1);
  std::vector<Candidate> candidates = Example(*policy);
  // Evicting model 1 (H = 0.09) sets L = 0.09: a newcomer with 0.01 of its own has
  // 0.10 and outlives model 2 with its 0.08 of before.
  policy->OnEvict(candidates[2]);
  Candidate newcomer = candidates[3];
  newcomer.load_number = 5;
  newcomer.priority = policy->OnAccess(newcomer);
  EXPECT_DOUBLE_EQ(newcomer.priority, 0.09 + 0.01);
  EXPECT_THAT(Order(*policy, {newcomer, candidates[1]}), ElementsAre(2, 5));
  // L never falls.
  policy->OnEvict(candidates[3]);
  EXPECT_DOUBLE_EQ(policy->OnAccess(newcomer), 0.09 + 0.01);
}

TEST(Policy, GdsfCountsALoadAsTheFirstUse) {
  const auto policy = MakePolicy(PolicyKind::kGdsf, 1);
  Candidate candidate = Example(*policy)[0];
  candidate.opens = 0;
  EXPECT_DOUBLE_EQ(policy->OnAccess(candidate), 1.0 / 10);
}

TEST(Policy, RandomIsTheSameForTheSameSeedAndFairOverSeeds) {
  const auto first = MakePolicy(PolicyKind::kRandom, 7);
  const auto second = MakePolicy(PolicyKind::kRandom, 7);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(Order(*first, Example(*first)), Order(*second, Example(*second)));
  }
  std::map<uint64_t, int> firsts;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const auto policy = MakePolicy(PolicyKind::kRandom, seed);
    const std::vector<uint64_t> order = Order(*policy, Example(*policy));
    EXPECT_THAT(order, UnorderedElementsAre(1, 2, 3, 4));
    ++firsts[order[0]];
  }
  // 1000 expected; the standard deviation is 27.
  for (const auto& [model, count] : firsts) EXPECT_NEAR(count, 1000, 200) << model;
}

TEST(Policy, RandomDoesNotDependOnTheOrderItWasGiven) {
  const auto first = MakePolicy(PolicyKind::kRandom, 7);
  const auto second = MakePolicy(PolicyKind::kRandom, 7);
  std::vector<Candidate> candidates = Example(*first);
  const std::vector<uint64_t> order = Order(*first, candidates);
  std::swap(candidates[0], candidates[3]);
  EXPECT_EQ(Order(*second, candidates), order);
}

TEST(Policy, NamesAreReadInAnyCaseAndAllIsFlush) {
  for (const char* name : {"never", "lru", "fifo", "lcu", "random", "flush", "eager", "gdsf"}) {
    const auto kind = ParsePolicy(name);
    ASSERT_TRUE(kind.ok()) << name;
    EXPECT_EQ(PolicyName(*kind), name);
  }
  EXPECT_EQ(*ParsePolicy("LRU"), PolicyKind::kLru);
  EXPECT_EQ(*ParsePolicy("Gdsf"), PolicyKind::kGdsf);
  EXPECT_EQ(*ParsePolicy("ALL"), PolicyKind::kFlush);
}

TEST(Policy, AWrongNameIsAnsweredWithTheNames) {
  for (const char* name : {"", "lr", "lruu", "least recently used"}) {
    const auto kind = ParsePolicy(name);
    ASSERT_FALSE(kind.ok()) << name;
    EXPECT_EQ(kind.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(kind.status().message(), ::testing::HasSubstr("never, lru, fifo, lcu, random"));
  }
}

// The same example through the store: 1 to 4 are resident, and a fifth wants one
// byte more than is free.
class PolicyInStore : public StoreFixture {
 protected:
  std::vector<uint64_t> FirstVictims(PolicyKind kind) {
    Config config = OneTier(1210);
    config.policy = kind;
    Start(config);
    const auto plan = [](uint64_t model, uint64_t bytes, int cost) {
      ModelPlan one = Plan(model, bytes);
      one.reload_cost = seconds(cost);
      return one;
    };
    const ModelPlan plans[] = {plan(1, 100, 1), plan(2, 100, 4), plan(3, 1000, 2), plan(4, 10, 1)};
    const int opens[] = {9, 2, 5, 3};
    for (int i = 0; i < 4; ++i) {
      Pass(seconds(1));
      const LeaseId lease = Load(plans[i]);
      for (int open = 1; open < opens[i] - 1; ++open) Close(LeaseOf(Open(plans[i])));
      Close(lease);
    }
    for (int i : {2, 3, 0, 1}) {  // The last opens, in the order of the table.
      Pass(seconds(1));
      Close(LeaseOf(Open(plans[i])));
    }
    return Evicted(Open(Plan(5, 1)));
  }
};

TEST_F(PolicyInStore, VictimsFollowThePolicy) {
  EXPECT_THAT(FirstVictims(PolicyKind::kNever), IsEmpty());
  EXPECT_THAT(FirstVictims(PolicyKind::kLru), ElementsAre(3));
  EXPECT_THAT(FirstVictims(PolicyKind::kFifo), ElementsAre(1));
  EXPECT_THAT(FirstVictims(PolicyKind::kLcu), ElementsAre(2));
  EXPECT_THAT(FirstVictims(PolicyKind::kFlush), ElementsAre(3, 4, 1, 2));
  EXPECT_THAT(FirstVictims(PolicyKind::kGdsf), ElementsAre(3));
  EXPECT_EQ(FirstVictims(PolicyKind::kRandom).size(), 1u);
}

}  // namespace
}  // namespace trims::store

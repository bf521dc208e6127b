// What can be seen of the store, compared with a plain recount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "store/store_fixture.h"

namespace trims::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

bool IsSame(const ReplicaSummary& a, const ReplicaSummary& b) {
  const auto all = [](const ReplicaSummary& s) {
    return std::tie(s.replica, s.state, s.generation, s.bytes, s.unshared_bytes, s.extent_count,
                    s.leases, s.pinned, s.opens, s.peak_internal_bytes, s.loaded_at, s.last_open,
                    s.expires_at, s.waiting);
  };
  return all(a) == all(b);
}

class StoreViewsTest : public StoreFixture {
 protected:
  StoreViewsTest() { Start(OneTier(1000)); }

  uint64_t UnsharedOf(uint64_t model) { return store().Find(KeyOf(model))->unshared_bytes; }
  std::vector<std::pair<Digest, TierIndex>> Pins() {
    std::vector<std::pair<Digest, TierIndex>> pins;
    store().ForEachPin(
        [&](const Digest& model, TierIndex tier) { pins.emplace_back(model, tier); });
    return pins;
  }
};

TEST_F(StoreViewsTest, WhatIsUnsharedFollowsWhoComesAndGoes) {
  Put(PlanOf(1, {Piece(1, 10), Piece(2, 20)}));
  EXPECT_EQ(UnsharedOf(1), 30u);
  Put(PlanOf(2, {Piece(2, 20), Piece(3, 40)}));
  EXPECT_EQ(UnsharedOf(1), 10u);
  EXPECT_EQ(UnsharedOf(2), 40u);
  Put(PlanOf(3, {Piece(1, 10), Piece(2, 20)}));
  EXPECT_EQ(UnsharedOf(1), 0u);
  EXPECT_EQ(UnsharedOf(2), 40u);
  EXPECT_EQ(UnsharedOf(3), 0u);
  Step(EvictAsked{.model = NumberedDigest(1)});
  EXPECT_EQ(UnsharedOf(3), 10u);
  Step(EvictAsked{.model = NumberedDigest(2)});
  EXPECT_EQ(UnsharedOf(3), 30u);
}

TEST_F(StoreViewsTest, AnExtentNamedTwiceByOneModelIsNotShared) {
  Put(PlanOf(1, {Piece(1, 10), Piece(1, 10)}));
  EXPECT_EQ(UnsharedOf(1), 10u);
  EXPECT_EQ(store().Find(KeyOf(1))->extent_count, 1u);
}

TEST_F(StoreViewsTest, ALoadThatFailsGivesBackWhatItWouldHaveShared) {
  Put(PlanOf(1, {Piece(1, 10), Piece(2, 20)}));
  const LoadId load = StartedLoad(Open(PlanOf(2, {Piece(1, 10), Piece(3, 40)})));
  EXPECT_EQ(UnsharedOf(1), 20u);
  EXPECT_EQ(UnsharedOf(2), 40u) << "room that is taken for a load is its own";
  Step(LoadFailed{.load = load, .status = DataLossError("no")});
  EXPECT_EQ(UnsharedOf(1), 30u);
}

TEST_F(StoreViewsTest, BadExtentsThatAreStillMappedCountForTheReplicasThatHoldThem) {
  Load(PlanOf(1, {Piece(1, 10), Piece(2, 20)}));
  Load(PlanOf(2, {Piece(2, 20), Piece(3, 40)}));
  Step(QuarantineAsked{.replica = KeyOf(1), .reason = "scrub", .extents = {Piece(2, 20).key}});
  EXPECT_EQ(store().Tiers()[0].revoked_bytes, 70u);
  Load(PlanOf(3, {Piece(1, 10), Piece(2, 20)}));  // A good copy of 2; 1 was good.
  EXPECT_EQ(UnsharedOf(3), 20u);
  EXPECT_EQ(store().Tiers()[0].revoked_bytes, 60u) << "what is in service again is not revoked";
}

TEST_F(StoreViewsTest, ALookSeesWhatTheListsShow) {
  Put(PlanOf(1, {Piece(1, 10), Piece(2, 20)}));
  const LeaseId second = Load(PlanOf(2, {Piece(2, 20), Piece(3, 40)}), /*session=*/7);
  Load(PlanOf(2, {Piece(2, 20), Piece(3, 40)}), /*session=*/8);
  Open(Plan(3, 50), /*session=*/9);
  Step(PinAsked{.model = NumberedDigest(2)});
  Step(EvictAsked{.model = NumberedDigest(2), .force = true});  // Drains.
  Close(second, 7, /*peak=*/123);

  std::map<uint64_t, ReplicaSummary> seen;
  store().ForEachReplica([&](const ReplicaSummary& one) { seen[one.generation] = one; });
  const std::vector<ReplicaView> listed = store().Replicas();
  ASSERT_EQ(seen.size(), listed.size());
  for (const ReplicaView& view : listed) {
    ASSERT_TRUE(seen.contains(view.generation));
    EXPECT_TRUE(IsSame(seen.at(view.generation), view)) << view.name;
    EXPECT_EQ(view.extent_count, view.extents.size());
    EXPECT_TRUE(IsSame(*store().Summary(view.replica), *store().Find(view.replica)));
  }
  EXPECT_EQ(store().Find(KeyOf(2))->peak_internal_bytes, 123u);

  std::vector<LeaseId> leases;
  store().ForEachLease([&](const LeaseView& lease) {
    EXPECT_EQ(lease.session, 8u);
    EXPECT_EQ(lease.replica, KeyOf(2));
    leases.push_back(lease.lease);
  });
  ASSERT_EQ(store().Leases().size(), 1u);
  EXPECT_THAT(leases, ElementsAre(store().Leases()[0].lease));
  EXPECT_EQ(store().lease_count(), 1u);
  EXPECT_FALSE(store().Summary(KeyOf(99)).has_value());
}

TEST_F(StoreViewsTest, WhatStaysIsWhatAnEvictionThenKeeps) {
  Config config = OneTier(1000);
  config.tiers.push_back({.name = "gpu:0", .budget_bytes = 1000, .kind = TierKind::kDevice});
  Start(config);
  Put(Plan(1, 10));
  OpenAsked device = Asks(Plan(1, 10), /*session=*/5, /*uid=*/1001);
  device.tier = 1;
  Step(LoadFinished{.load = StartedLoad(Step(device))});
  Open(Plan(2, 10));
  EXPECT_THAT(store().WhatStays(NumberedDigest(1), 0, now()), IsEmpty());
  EXPECT_THAT(store().WhatStays(NumberedDigest(9), std::nullopt, now()), IsEmpty());
  for (const uint64_t model : {1, 2}) {
    const auto foreseen = store().WhatStays(NumberedDigest(model), std::nullopt, now());
    const auto kept = All<EvictResult>(Step(EvictAsked{.model = NumberedDigest(model)}))[0].kept;
    ASSERT_EQ(foreseen.size(), 1u);
    ASSERT_EQ(kept.size(), 1u);
    EXPECT_EQ(foreseen[0].generation, kept[0].generation);
    EXPECT_EQ(foreseen[0].reason, kept[0].reason);
    EXPECT_EQ(foreseen[0].name, kept[0].name);
    EXPECT_EQ(foreseen[0].holders.size(), kept[0].holders.size());
  }
  EXPECT_EQ(store().WhatStays(NumberedDigest(1), 1, now())[0].holders[0].uid, 1001u);
}

// Nothing happens to an idle store, so nothing tells it the time.
TEST_F(StoreViewsTest, WhatStaysEndsWithTheAdoptionGraceThoughNothingHappens) {
  Start(OneTier(1000));
  AdoptionStarted adopted;
  adopted.load = store().NewLoadId();
  adopted.plan = Plan(1, 10);
  Step(adopted);
  Step(LoadFinished{.load = adopted.load});
  EXPECT_EQ(store().WhatStays(NumberedDigest(1), std::nullopt, now()).size(), 1u);
  Pass(OneTier(1000).adoption_grace + seconds(1));
  EXPECT_THAT(store().WhatStays(NumberedDigest(1), std::nullopt, now()), IsEmpty());
}

TEST_F(StoreViewsTest, PinsAreSeenWithReplicasAndWithout) {
  EXPECT_THAT(Pins(), IsEmpty());
  Put(Plan(1, 10));
  Step(PinAsked{.model = NumberedDigest(1)});
  Step(PinAsked{.model = NumberedDigest(2)});
  EXPECT_THAT(Pins(), UnorderedElementsAre(std::pair(NumberedDigest(1), TierIndex{0}),
                                           std::pair(NumberedDigest(2), TierIndex{0})));
  Step(PinAsked{.model = NumberedDigest(1), .pinned = false});
  Step(PinAsked{.model = NumberedDigest(2), .pinned = false});
  EXPECT_THAT(Pins(), IsEmpty());
}

TEST_F(StoreViewsTest, ThePeakShownIsTheHighestOfAllReports) {
  const auto measured = [&](uint32_t uid, uint64_t peak) {
    Close(Load(Plan(1, 10), /*session=*/uid, uid), uid, peak);
    return store().Find(KeyOf(1))->peak_internal_bytes;
  };
  EXPECT_EQ(measured(1000, 50), 50u);
  EXPECT_EQ(measured(1001, 30), 50u);
  EXPECT_EQ(measured(1001, 70), 70u);
  EXPECT_EQ(measured(1000, 60), 70u);
}

// Tiers() against a recount from the replicas, over models that share a few pieces.
TEST_F(StoreViewsTest, WhatTiersAddUpIsWhatARecountFinds) {
  for (uint32_t seed = 1; seed <= 40 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Start(OneTier(400));
    std::mt19937 random(seed);
    const auto below = [&](uint64_t n) { return random() % n; };
    std::vector<LeaseId> leases;
    for (int step = 0; step < 120; ++step) {
      const uint64_t model = 1 + below(8);
      switch (below(6)) {
        case 0:
        case 1:
        case 2: {
          std::mt19937 own(static_cast<uint32_t>(model));
          std::vector<Extent> extents;
          for (uint64_t i = own() % 4 + 1; i > 0; --i) {
            const uint64_t piece = own() % 10;
            extents.push_back(Piece(piece, 5 + piece));
          }
          const auto actions = Open(PlanOf(model, extents));
          for (const StartLoad& start : All<StartLoad>(actions)) {
            for (const ReplyLease& reply : All<ReplyLease>(Step(LoadFinished{.load = start.load})))
              leases.push_back(reply.lease);
          }
          for (const ReplyLease& reply : All<ReplyLease>(actions)) leases.push_back(reply.lease);
          break;
        }
        case 3:
          if (!leases.empty()) {
            std::swap(leases[below(leases.size())], leases.back());
            Close(leases.back());
            leases.pop_back();
          }
          break;
        case 4:
          Step(PinAsked{.model = NumberedDigest(model), .pinned = below(2) == 0});
          break;
        default:
          Step(EvictAsked{.model = NumberedDigest(model), .force = below(2) == 0});
      }
      std::map<Digest, uint64_t> bytes;
      std::map<Digest, int> referring, evictable;
      std::set<Digest> leased, pinned, in_service;
      for (const ReplicaView& view : store().Replicas()) {
        for (const Extent& extent : view.extents) {
          bytes[extent.key] = extent.bytes;
          ++referring[extent.key];
          if (view.leases > 0) leased.insert(extent.key);
          if (view.state == ReplicaState::kDraining) continue;
          in_service.insert(extent.key);
          if (view.pinned) pinned.insert(extent.key);
          if (!view.pinned && view.leases == 0) ++evictable[extent.key];
        }
      }
      TierView expected;
      for (const auto& [key, size] : bytes) {
        expected.used_bytes += size;
        if (leased.contains(key)) expected.leased_bytes += size;
        if (pinned.contains(key)) expected.pinned_bytes += size;
        if (!in_service.contains(key)) expected.revoked_bytes += size;
        if (evictable[key] == referring[key]) expected.evictable_bytes += size;
      }
      const TierView found = store().Tiers()[0];
      EXPECT_EQ(found.used_bytes, expected.used_bytes);
      EXPECT_EQ(found.leased_bytes, expected.leased_bytes);
      EXPECT_EQ(found.pinned_bytes, expected.pinned_bytes);
      EXPECT_EQ(found.revoked_bytes, expected.revoked_bytes);
      EXPECT_EQ(found.evictable_bytes, expected.evictable_bytes);
    }
  }
}

}  // namespace
}  // namespace trims::store

#include "daemon/watchman.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/ledger.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using store::Granularity;
using store::ReplicaKey;
using store::ReplicaState;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class WatchmanTest : public ::testing::Test {
 protected:
  WatchmanTest() { Start({}); }
  ~WatchmanTest() override {
    for (size_t i = 0; i < 2; ++i) trunk_->device(i).ReleaseChecks();
    trunk_->host().ReleaseChecks();
  }

  void Start(const std::function<void(TestTrunk::Options&)>& change) {
    TestTrunk::Options options;
    options.devices = {"GPU-a", "GPU-b"};
    options.config.persist_cpu = false;
    options.config.trusted_uids = {kTrusted};
    options.on_tier_lost = [this](const std::string& tier) { lost_.push_back(tier); };
    // Known: StartBackground measures nothing.
    RhoConstants rho;
    rho.read_bytes_per_second = 1e9;
    LinkMessage& entry = options.entries.emplace_back();
    entry.type = LinkType::kEntry;
    entry.key = kRhoLedgerKey;
    entry.body = EncodeRho(rho);
    if (change) change(options);
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
    for (const char* name : {"a", "b", "c"}) trunk_->AddModel(name);
  }
  // With `is_held` no check ends before the test says so.
  void StartScrub(uint64_t bytes_per_second, bool is_held = false) {
    Start([&](TestTrunk::Options& options) {
      options.config.scrub_bytes_per_second = bytes_per_second;
      if (is_held) options.prepare = [](FakeTier& tier) { tier.HoldChecks(); };
    });
    trunk_->registry().StartBackground();
  }
  Registry& registry() { return trunk_->registry(); }
  const store::Store& store() { return trunk_->registry().store(); }
  FakeTier& device() { return trunk_->device(0); }

  OpenResult Open(const std::string& name, uint32_t uid = kUntrusted, store::TierIndex tier = 1,
                  Granularity granularity = Granularity::kModel) {
    OpenRequest request = TestTrunk::Named(name);
    request.uid = uid;
    request.tier = tier;
    request.granularity = granularity;
    OpenResult result = trunk_->Open(std::move(request));
    EXPECT_TRUE(result.status.ok()) << result.status.ToString();
    return result;
  }
  void Close(const OpenResult& result) { EXPECT_TRUE(registry().Close(1, result.lease, 0).ok()); }
  // Asks for a check; what came of it.
  std::shared_ptr<std::optional<Status>> Verify(
      const ReplicaKey& replica,
      std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>()) {
    const auto done = std::make_shared<std::optional<Status>>();
    registry().Verify(replica, std::move(control), [this, done, replica](Status status) {
      EXPECT_FALSE(done->has_value()) << "told twice";
      // Before anybody is told, nothing wrong is lent any more.
      EXPECT_FALSE(status.code() == StatusCode::kDataLoss && IsReady(replica));
      *done = std::move(status);
    });
    return done;
  }
  bool IsReady(const ReplicaKey& replica) {
    const auto view = store().Find(replica);
    return view && view->state == ReplicaState::kReady;
  }
  // What is posted, and what is due now.
  void Turn() {
    for (int i = 0; i < 3; ++i) trunk_->RunOnce();
  }

  static constexpr uint32_t kUntrusted = TestTrunk::kUid;
  static constexpr uint32_t kTrusted = TestTrunk::kUid + 1;
  std::unique_ptr<TestTrunk> trunk_;
  std::vector<std::string> lost_;
};

// --- After leases --------------------------------------------------------------------------

TEST_F(WatchmanTest, DeviceMemoryIsCheckedAfterALeaseOfSomebodyUntrusted) {
  const OpenResult lease = Open("a");
  EXPECT_EQ(registry().counters().verifications, 0u);
  Close(lease);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  EXPECT_EQ(registry().counters().verifications, 1u);
  EXPECT_THAT(device().verified(), ElementsAre(lease.lent->extents[0]->key));
  Turn();
  EXPECT_TRUE(IsReady(lease.replica));
}

TEST_F(WatchmanTest, NothingIsCheckedAfterALeaseOfSomebodyTrusted) {
  for (const uint32_t uid : {kTrusted, uint32_t{0}, static_cast<uint32_t>(::geteuid())}) {
    Close(Open("a", uid));
    Turn();
  }
  EXPECT_EQ(registry().counters().verifications, 0u);
  // Who is trusted is a setting.
  DaemonConfig config = registry().config();
  config.trusted_uids = {};
  registry().ApplyConfig(config);
  Close(Open("a", kTrusted));
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  EXPECT_EQ(registry().counters().verifications, 1u);
}

// Nobody can write to sealed memory.
TEST_F(WatchmanTest, HostMemoryIsNotCheckedAfterLeases) {
  Start([](TestTrunk::Options& options) { options.config.persist_cpu = true; });
  Close(Open("a", kUntrusted, 0));
  Turn();
  EXPECT_EQ(registry().counters().verifications, 0u);
}

TEST_F(WatchmanTest, LeasesThatEndTogetherAreCheckedOnceAndOneThatEndsMeanwhileAgainLater) {
  device().HoldChecks();
  const OpenResult first = Open("a"), second = Open("a"), third = Open("a");
  Close(first);
  Close(second);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  Close(third);
  Turn();
  EXPECT_EQ(registry().counters().verifications, 1u) << "two at a time";
  // As long as this takes the check, at least.
  const Time started = Now();
  while (Now() - started < std::chrono::milliseconds(20)) trunk_->RunOnce();
  const Duration took = Now() - started;
  device().ReleaseChecks();
  const Time released = Now();
  trunk_->RunUntil([&] { return registry().counters().verifications == 2; });
  EXPECT_GE(Now() - released, 9 * took) << "checks take more than a tenth of the device's time";
  trunk_->RunUntil([&] { return device().verifications() == 2; });
  Turn();
  EXPECT_EQ(registry().counters().verifications, 2u);
}

TEST_F(WatchmanTest, WhatIsGoneBeforeItsCheckIsNotChecked) {
  const OpenResult lease = Open("a");
  Close(lease);
  registry().Evict(lease.replica.model, 1, false);
  Turn();
  EXPECT_EQ(registry().counters().verifications, 0u);
  // Nor is what went while it was checked, though another lease had ended.
  device().HoldChecks();
  const OpenResult one = Open("b"), two = Open("b");
  Close(one);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  Close(two);
  registry().Evict(one.replica.model, 1, true);
  device().ReleaseChecks();
  Turn();
  // It comes back, and is checked after its own lease.
  Close(Open("b"));
  trunk_->RunUntil([&] { return device().verifications() >= 2; });
  EXPECT_TRUE(IsReady(one.replica));
}

TEST_F(WatchmanTest, WhatALeaseHasSpoiltIsLentToNobodyElse) {
  const OpenResult lease = Open("a");
  device().Damage(lease.lent->extents[0]->key);
  Close(lease);
  trunk_->RunUntil([&] { return registry().counters().quarantines == 1; });
  EXPECT_FALSE(IsReady(lease.replica));
  const OpenResult again = Open("a");
  EXPECT_NE(again.generation, lease.generation);
  EXPECT_EQ(device().loads_started(), 2);
}

// --- When an operator asks -------------------------------------------------------------------

TEST_F(WatchmanTest, ACheckTellsHowItEndedAndHowFarItIs) {
  const OpenResult host = Open("a", kUntrusted, 0, Granularity::kLayer);
  auto control = std::make_shared<LoadControl>();
  std::vector<uint64_t> done;
  std::atomic<uint64_t> total = 0;
  control->on_progress = [&](uint64_t bytes, uint64_t all) {
    done.push_back(bytes);  // One thread.
    total = all;
  };
  const auto checked = Verify(host.replica, control);
  trunk_->RunUntil([&] { return checked->has_value(); });
  EXPECT_TRUE((*checked)->ok());
  EXPECT_EQ(trunk_->host().verifications(), 2);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_GT(done.back(), host.lent->extent_bytes[0]);
  EXPECT_EQ(total, host.lent->total_bytes);
}

TEST_F(WatchmanTest, WhatIsNotReadyCanNotBeChecked) {
  const OpenResult host = Open("a", kUntrusted, 0);
  ReplicaKey other = host.replica;
  other.granularity = Granularity::kLayer;
  const auto checked = Verify(other);
  ASSERT_TRUE(checked->has_value());
  EXPECT_EQ((*checked)->code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(registry().counters().verifications, 0u);
}

TEST_F(WatchmanTest, AllWrongExtentsAreFoundAndTheGoodOnesKept) {
  trunk_->AddModel("d",
                   {NoiseTensor("x", 100, 1), NoiseTensor("y", 200, 2), NoiseTensor("z", 300, 3)});
  const OpenResult lease = Open("d", kUntrusted, 0, Granularity::kLayer);
  ASSERT_EQ(lease.lent->extents.size(), 3u);
  trunk_->host().Damage(lease.lent->extents[0]->key);
  trunk_->host().Damage(lease.lent->extents[2]->key);
  const auto checked = Verify(lease.replica);
  trunk_->RunUntil([&] { return checked->has_value(); });
  EXPECT_EQ((*checked)->code(), StatusCode::kDataLoss);
  EXPECT_THAT((*checked)->message(), HasSubstr(lease.lent->extents[0]->key.ToShort()));
  EXPECT_EQ(registry().counters().quarantines, 1u);
  const OpenResult again = Open("d", kUntrusted, 0, Granularity::kLayer);
  EXPECT_NE(again.lent->extents[0], lease.lent->extents[0]);
  EXPECT_EQ(again.lent->extents[1], lease.lent->extents[1]);
  EXPECT_NE(again.lent->extents[2], lease.lent->extents[2]);
}

TEST_F(WatchmanTest, WrongBytesOfAnEarlierIncarnationAreNotHeldAgainstTheNext) {
  const OpenResult old = Open("a", kUntrusted, 0);
  trunk_->host().HoldChecks();
  std::optional<Status> checked;
  registry().Verify(old.replica, std::make_shared<LoadControl>(),
                    [&](Status status) { checked = std::move(status); });
  trunk_->RunUntil([&] { return trunk_->host().verifications() == 1; });
  Close(old);  // With it the replica goes: nothing is kept on the host.
  ASSERT_FALSE(store().Find(old.replica).has_value());
  const OpenResult fresh = Open("a", kUntrusted, 0);
  ASSERT_NE(fresh.generation, old.generation);
  trunk_->host().Damage(old.lent->extents[0]->key);
  trunk_->host().ReleaseChecks();
  trunk_->RunUntil([&] { return checked.has_value(); });
  EXPECT_EQ(checked->code(), StatusCode::kDataLoss);
  const auto view = store().Find(fresh.replica);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->generation, fresh.generation);
  EXPECT_EQ(view->state, ReplicaState::kReady);
  EXPECT_EQ(registry().counters().quarantines, 0u);
}

TEST_F(WatchmanTest, ACancelledCheckEndsAndSaysNothingOfTheBytes) {
  const OpenResult lease = Open("a", kUntrusted, 0, Granularity::kLayer);
  trunk_->host().HoldChecks();
  auto control = std::make_shared<LoadControl>();
  const auto checked = Verify(lease.replica, control);
  trunk_->RunUntil([&] { return trunk_->host().verifications() == 1; });
  control->cancelled = true;
  trunk_->host().ReleaseChecks();
  trunk_->RunUntil([&] { return checked->has_value(); });
  EXPECT_EQ((*checked)->code(), StatusCode::kCancelled);
  EXPECT_EQ(trunk_->host().verifications(), 1);
  EXPECT_TRUE(IsReady(lease.replica));
}

// --- The scrub -------------------------------------------------------------------------------

TEST_F(WatchmanTest, TheScrubComesRoundToEveryReplicaOfADevice) {
  StartScrub(1 << 30, /*is_held=*/true);
  std::vector<std::pair<ReplicaKey, Digest>> all;
  for (const char* name : {"a", "b", "c"}) {
    const OpenResult lease = Open(name, kTrusted);
    all.emplace_back(lease.replica, lease.lent->extents[0]->key);
  }
  Open("a", kTrusted, 0);  // Nobody can have written there.
  std::sort(all.begin(), all.end());
  // It may have begun with the first one before the others were there, but not ended.
  device().ReleaseChecks();
  trunk_->RunUntil([&] { return device().verifications() >= 6; });
  const std::vector<Digest> verified = device().verified();
  size_t at = 0;
  while (at < 3 && all[at].second != verified[0]) ++at;
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(verified[i], all[(at + i) % 3].second) << i;
  EXPECT_EQ(trunk_->host().verifications(), 0);
  EXPECT_EQ(trunk_->device(1).verifications(), 0);
}

TEST_F(WatchmanTest, TheScrubRestsAsLongAsTheRateSays) {
  const uint64_t bytes = Open("a", kTrusted).lent->extents[0]->bytes;
  StartScrub(bytes * 10, /*is_held=*/true);  // A tenth of a second for each.
  Open("a", kTrusted);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  const Time released = Now();
  device().ReleaseChecks();
  trunk_->RunUntil([&] { return device().verifications() == 2; });
  EXPECT_GE(Now() - released, std::chrono::milliseconds(99));
}

TEST_F(WatchmanTest, WithoutARateNothingIsScrubbedButDevicesAreLookedAt) {
  StartScrub(0);
  Open("a", kTrusted);
  trunk_->RunUntil([&] { return device().probes() >= 2 && trunk_->device(1).probes() >= 2; });
  EXPECT_EQ(registry().counters().verifications, 0u);
  // The rate is a setting.
  DaemonConfig config = registry().config();
  config.scrub_bytes_per_second = 1 << 30;
  registry().ApplyConfig(config);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  EXPECT_EQ(trunk_->device(1).verifications(), 0);
}

TEST_F(WatchmanTest, WhatTheScrubFindsIsQuarantinedAndTheScrubGoesOn) {
  StartScrub(1 << 30);
  const OpenResult bad = Open("a", kTrusted);
  device().Damage(bad.lent->extents[0]->key);
  trunk_->RunUntil([&] { return registry().counters().quarantines == 1; });
  EXPECT_FALSE(IsReady(bad.replica));
  const OpenResult good = Open("b", kTrusted);
  trunk_->RunUntil([&] {
    const auto verified = device().verified();
    return std::count(verified.begin(), verified.end(), good.lent->extents[0]->key) >= 2;
  });
  EXPECT_TRUE(IsReady(good.replica));
}

// --- Lost devices ------------------------------------------------------------------------------

TEST_F(WatchmanTest, ALostDeviceIsToldOnceAndEmptied) {
  const OpenResult idle = Open("a"), held = Open("b");
  const OpenResult other = Open("a", kUntrusted, 2), host = Open("a", kUntrusted, 0);
  registry().Pin(idle.replica.model, 1, true);
  Close(idle);
  trunk_->RunUntil([&] { return device().verifications() == 1; });
  Turn();
  device().SetHealth(UnavailableError("it fell off the bus"));
  device().FailLoads(UnavailableError("it fell off the bus"));
  EXPECT_THAT(lost_, IsEmpty());
  OpenRequest request = TestTrunk::Named("c");
  request.tier = 1;
  EXPECT_FALSE(trunk_->Open(std::move(request)).status.ok());
  // Noticed by what is done with it.
  const auto checked = Verify(held.replica);
  trunk_->RunUntil([&] { return checked->has_value(); });
  EXPECT_THAT(lost_, ElementsAre("gpu:GPU-a"));
  // What nobody holds is gone, pinned or not; what somebody holds is lent no more.
  EXPECT_FALSE(store().Find(idle.replica).has_value());
  EXPECT_EQ(store().Find(held.replica)->state, ReplicaState::kDraining);
  Close(held);
  EXPECT_FALSE(store().Find(held.replica).has_value());
  Turn();
  EXPECT_THAT(lost_, ElementsAre("gpu:GPU-a"));
  // The others serve on.
  EXPECT_TRUE(IsReady(other.replica));
  EXPECT_TRUE(IsReady(host.replica));
  EXPECT_FALSE(Open("b", kUntrusted, 2).lent == nullptr);
}

TEST_F(WatchmanTest, ALoadThatFailsFindsOutThatItsDeviceIsLost) {
  const OpenResult idle = Open("a", kTrusted);
  Close(idle);
  device().Hold();
  OpenRequest request = TestTrunk::Named("b");
  request.tier = 1;
  const auto waiting = trunk_->Ask(std::move(request));
  trunk_->RunUntil([&] { return device().loads_started() == 2; });
  device().FailLoads(UnavailableError("gone"));
  device().SetHealth(UnavailableError("gone"));
  device().Release();
  trunk_->Answer(waiting);
  EXPECT_EQ(waiting->result().status, UnavailableError("gone"));
  Turn();
  EXPECT_THAT(lost_, ElementsAre("gpu:GPU-a"));
  EXPECT_FALSE(store().Find(idle.replica).has_value());
}

TEST_F(WatchmanTest, AnIdleDeviceThatIsLostIsFoundByALookAndLookedAtNoMore) {
  StartScrub(0);
  device().SetHealth(UnavailableError("gone"), /*only_when_probed=*/true);
  trunk_->RunUntil([&] { return !lost_.empty(); });
  EXPECT_THAT(lost_, ElementsAre("gpu:GPU-a"));
  const int probes = device().probes();
  const int others = trunk_->device(1).probes();
  trunk_->RunUntil([&] { return trunk_->device(1).probes() >= others + 2; });
  EXPECT_EQ(device().probes(), probes);
  EXPECT_THAT(lost_, ElementsAre("gpu:GPU-a"));
}

}  // namespace
}  // namespace trims

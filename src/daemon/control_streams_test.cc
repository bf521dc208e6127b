// Load, Verify and Watch over the trunk of a worker with fake tiers; the rules that the fake
// keeps as well are in control_conformance.h.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <utility>
#include <vector>

#include "daemon/control_calls.h"
#include "daemon/test_control_calls.h"

namespace trims {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using ControlStreamsTest = ControlCallsFixture;

// --- Loading -----------------------------------------------------------------------

TEST_F(ControlStreamsTest, WhatIsResidentAtTheGranularityThatAutoChoosesIsFoundResident) {
  trunk().AddModel("m");
  v1::LoadRequest request;
  request.set_model("m");
  request.set_granularity(v1::SHARING_GRANULARITY_AUTO);
  v1::LoadProgress last;
  ASSERT_TRUE(Load(request, &last).ok());
  EXPECT_FALSE(last.already_resident());
  ASSERT_TRUE(Load(request, &last).ok());
  EXPECT_TRUE(last.already_resident());
}

TEST_F(ControlStreamsTest, AFileThatHasChangedIsNotFoundResident) {
  trunk().AddModel("m", TestTrunk::SmallModel(1));
  v1::LoadProgress last;
  ASSERT_TRUE(Load("m", &last).ok());
  trunk().AddModel("m", TestTrunk::SmallModel(2, 16 * kKiB));
  ASSERT_TRUE(Load("m", &last).ok());
  EXPECT_FALSE(last.already_resident());
  EXPECT_EQ(Replicas(), 2u);
  // Both are listed; only one is what the name stands for.
  const v1::ListResponse list = List();
  ASSERT_EQ(list.models_size(), 2);
  EXPECT_EQ(list.models(0).name(), "");
  EXPECT_EQ(list.models(1).name(), "m");
  EXPECT_EQ(Info("m").model().digest(), last.model().digest());
}

TEST_F(ControlStreamsTest, TheTotalIsThatOfTheReplicaThatWasLoadedNotOfOneThatDrains) {
  trunk().AddModel("m");
  world().Lease("m");
  v1::EvictRequest evict;
  evict.set_model("m");
  evict.set_force(true);
  v1::EvictResponse evicted;
  ASSERT_TRUE(calls().Evict(evict, &evicted).ok());
  v1::LoadProgress last;
  ASSERT_TRUE(Load("m", &last).ok());
  // Its bytes were there: the draining one has them.
  EXPECT_TRUE(last.already_resident());
  ASSERT_EQ(last.model().replicas_size(), 2);
  EXPECT_EQ(last.total_bytes(), last.model().replicas(1).bytes());
}

TEST_F(ControlStreamsTest, AFailureKeepsItsReason) {
  trunk().AddModel("m");
  trunk().host().FailLoads(DataLossError("chunk 7 of \"w\" is not what it was"));
  const Status status = Load("m");
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("chunk 7"));
}

TEST_F(ControlStreamsTest, ALoadThatTheReactorLeavesBehindIsUnavailable) {
  trunk().AddModel("m");
  trunk().host().Hold();
  std::future<Status> loading = std::async(std::launch::async, [&] { return Load("m"); });
  trunk().host().WaitUntilHeld();
  trunk().StopThread();
  EXPECT_EQ(loading.get().code(), StatusCode::kUnavailable);
  trunk().host().Release();
}

TEST_F(ControlStreamsTest, WhenTheReactorHasEndedEveryCallIsUnavailable) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  trunk().StopThread();
  v1::ListResponse list;
  EXPECT_EQ(calls().List(v1::ListRequest(), &list).code(), StatusCode::kUnavailable);
  v1::GetStatusResponse status;
  EXPECT_EQ(calls().GetStatus(v1::GetStatusRequest(), &status).code(), StatusCode::kUnavailable);
  v1::ListLeasesResponse leases;
  EXPECT_EQ(calls().ListLeases(v1::ListLeasesRequest(), &leases).code(), StatusCode::kUnavailable);
  EXPECT_EQ(Load("m").code(), StatusCode::kUnavailable);
  v1::UnpinResponse unpinned;
  EXPECT_EQ(Unpin("m", &unpinned).code(), StatusCode::kUnavailable);
  std::vector<v1::VerifyVerdict> verdicts;
  EXPECT_EQ(Verify("", &verdicts).code(), StatusCode::kUnavailable);
  EXPECT_EQ(calls()
                .Watch(
                    v1::WatchRequest(), [] {}, [](const v1::Event&) { return true; }, Never())
                .code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(Remove("m").code(), StatusCode::kUnavailable);
}

// --- Verifying ---------------------------------------------------------------------

TEST_F(ControlStreamsTest, WhatGoesAwayWhileItIsItsTurnGetsNoVerdict) {
  trunk().AddModel("a");
  trunk().AddModel("b");
  ASSERT_TRUE(Load("a").ok());
  ASSERT_TRUE(Load("b").ok());
  std::vector<v1::VerifyVerdict> verdicts;
  bool is_first = true;
  const Status status = calls().Verify(
      v1::VerifyRequest(),
      [&](const v1::VerifyProgress& progress) {
        if (!progress.has_verdict()) return true;
        verdicts.push_back(progress.verdict());
        if (std::exchange(is_first, false)) {
          v1::EvictRequest evict;
          evict.set_model(progress.verdict().model() == "a" ? "b" : "a");
          v1::EvictResponse evicted;
          EXPECT_TRUE(calls().Evict(evict, &evicted).ok());
        }
        return true;
      },
      Never());
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(verdicts.size(), 1u);
}

// --- Watching ----------------------------------------------------------------------

TEST_F(ControlStreamsTest, AWatchOfANameSeesItsContentsUnderTheirOtherName) {
  const std::string path = trunk().AddModel("first");
  v1::AddRequest add;
  add.set_name("second");
  add.set_path(path);
  v1::AddResponse added;
  ASSERT_TRUE(calls().Add(add, &added).ok());
  ASSERT_TRUE(Load("first").ok());
  ASSERT_TRUE(Load("second").ok());  // From now on the contents are called so.
  v1::WatchRequest request;
  request.set_model("first");
  v1::Event seen;
  const Status status = calls().Watch(
      request, [&] { world().Happen("first"); },
      [&](const v1::Event& event) {
        seen = event;
        return false;
      },
      Never());
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(seen.kind(), v1::EVENT_KIND_PINNED);
  EXPECT_EQ(seen.model(), "second");
}

TEST_F(ControlStreamsTest, WhatASlowWatcherMissesIsCounted) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  constexpr int kEvents = 5000;
  uint64_t told = 0, dropped = 0;
  const Status status = calls().Watch(
      v1::WatchRequest(),
      [&] {
        // All before the first is read.
        trunk().OnReactor([&] {
          const Digest digest = *trunk().registry().DigestOfName("m");
          for (int i = 0; i < kEvents; ++i) trunk().registry().Pin(digest, 0, i % 2 == 0);
        });
      },
      [&](const v1::Event& event) {
        if (event.kind() == v1::EVENT_KIND_DROPPED) {
          dropped += event.dropped();
          return false;
        }
        ++told;
        return true;
      },
      Never());
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_GT(dropped, 0u);
  EXPECT_EQ(told + dropped, static_cast<uint64_t>(kEvents));
}

TEST_F(ControlStreamsTest, TheCatalogueTellsWatchersToo) {
  std::vector<v1::EventKind> kinds;
  v1::WatchRequest request;
  request.set_model("new");  // Not there yet.
  const Status status = calls().Watch(
      request,
      [&] {
        v1::AddRequest add;
        add.set_name("new");
        add.set_path(world().MakeFile());
        v1::AddResponse added;
        EXPECT_TRUE(calls().Add(add, &added).ok());
        EXPECT_TRUE(Remove("new").ok());
      },
      [&](const v1::Event& event) {
        kinds.push_back(event.kind());
        return event.kind() != v1::EVENT_KIND_REMOVED;
      },
      Never());
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_THAT(kinds, ElementsAre(v1::EVENT_KIND_ADDED, v1::EVENT_KIND_REMOVED));
}

TEST_F(ControlStreamsTest, NobodyIsToldAfterTheLastWatchHasEnded) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  for (int i = 0; i < 2; ++i) {
    int events = 0;
    (void)!calls()
        .Watch(
            v1::WatchRequest(), [&] { world().Happen("m"); },
            [&](const v1::Event&) { return ++events < 1; }, Never())
        .ok();
    EXPECT_EQ(events, 1);
    v1::UnpinResponse response;
    EXPECT_TRUE(Unpin("m", &response).ok());
  }
}

}  // namespace
}  // namespace trims

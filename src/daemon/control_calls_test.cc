#include "daemon/control_calls.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/control_conformance.h"
#include "daemon/test_control_calls.h"

namespace trims {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Worker, ControlConformance, ::testing::Values(WorldFactory{[] {
                           return std::make_unique<TestControlCalls>();
                         }}));

using ControlCallsTest = ControlCallsFixture;

// --- Pins --------------------------------------------------------------------------

TEST_F(ControlCallsTest, UnpinningAModelThatNobodyHasLookedAtDoesNotReadIt) {
  const std::string path = trunk().AddModel("cold");
  // Whoever looks at this file finds that it is none.
  ASSERT_EQ(::truncate(path.c_str(), 3), 0);
  v1::UnpinResponse response;
  const Status status = Unpin("cold", &response);
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(response.model().name(), "cold");
  EXPECT_TRUE(response.model().digest().empty());
  EXPECT_FALSE(response.model().pinned());
}

TEST_F(ControlCallsTest, APinOfAnEarlierWorkerIsTakenFromAModelThatNobodyHasLookedAt) {
  trunk().AddModel("cold");
  const Digest digest = trunk().OnReactor([&] {
    return Digest::Parse(std::string(64, '5')).value();  // Somebody else's, never seen here.
  });
  // What the worker takes over is a mark on contents: what they are called is not known.
  const std::string own = Info("cold").model().digest();
  ASSERT_TRUE(own.empty());
  TestControlCalls other;
  other.trunk().AddModel("cold");
  v1::LoadRequest request;
  request.set_model("cold");
  ASSERT_TRUE(other.calls()
                  .Load(
                      request, [](const auto&) { return true; }, Never())
                  .ok());
  const Digest cold =
      other.trunk().OnReactor([&] { return *other.trunk().registry().DigestOfName("cold"); });
  trunk().OnReactor([&] {
    trunk().registry().Pin(cold, 0, true);
    trunk().registry().Pin(digest, 0, true);
  });
  v1::UnpinResponse response;
  ASSERT_TRUE(Unpin("cold", &response).ok());
  EXPECT_EQ(response.model().digest(), cold.ToString());
  std::vector<Digest> pinned;
  trunk().OnReactor([&] {
    trunk().registry().store().ForEachPin(
        [&](const Digest& model, store::TierIndex) { pinned.push_back(model); });
  });
  EXPECT_THAT(pinned, ElementsAre(digest));
  // By its digest, too, though nobody knows what it is.
  EXPECT_TRUE(Unpin("@" + digest.ToString(), &response).ok());
  EXPECT_EQ(Unpin("@" + digest.ToString(), &response).code(), StatusCode::kNotFound);
}

TEST(ControlCallsWithOneLoaderTest, APinThatHasToReadTheModelEndsWithItsCaller) {
  TestTrunk::Options options = TestControlCalls::OneGpu();
  options.config.loader_threads = 1;
  TestControlCalls world(std::move(options));
  world.AddModel("held");
  world.AddModel("m");
  // The one loader is busy, so nobody will look at the other model.
  world.HoldLoads(true);
  std::atomic<bool> is_over{false};
  std::thread loading([&] {
    v1::LoadRequest request;
    request.set_model("held");
    (void)!world.calls()
        .Load(
            request, [](const auto&) { return true; }, [&] { return is_over.load(); })
        .ok();
  });
  world.trunk().host().WaitUntilHeld();
  v1::PinRequest request;
  request.set_model("m");
  v1::PinResponse response;
  EXPECT_EQ(world.calls().Pin(request, &response, [] { return true; }).code(),
            StatusCode::kCancelled);
  world.HoldLoads(false);
  loading.join();
}

// --- The catalogue -----------------------------------------------------------------

TEST_F(ControlCallsTest, ARemovalThatCanNotBeWrittenDownHasEvictedNothing) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  BreakCatalogue();
  for (const bool force : {false, true}) {
    EXPECT_FALSE(Remove("m", force).ok());
    EXPECT_EQ(Replicas(), 1u);
    v1::LoadProgress last;
    ASSERT_TRUE(Load("m", &last).ok());
    EXPECT_TRUE(last.already_resident());
  }
}

TEST_F(ControlCallsTest, ANameComesBackWhenWhatItLeadsToMayNotGo) {
  trunk().AddModel("m");
  trunk().host().Hold();
  // Somebody waits for it: that is found out by trying only.
  std::atomic<bool> is_over{false};
  std::thread loading([&] {
    v1::LoadRequest request;
    request.set_model("m");
    (void)!calls()
        .Load(
            request, [](const auto&) { return true; }, [&] { return is_over.load(); })
        .ok();
  });
  trunk().host().WaitUntilHeld();
  const Status refused = Remove("m");
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition) << refused.ToString();
  EXPECT_THAT(refused.message(), HasSubstr("loading"));
  EXPECT_EQ(List().models_size(), 1);
  trunk().host().Release();
  loading.join();
  is_over = true;
  EXPECT_TRUE(Remove("m").ok());
  EXPECT_EQ(List().models_size(), 0);
}

TEST_F(ControlCallsTest, RemoveLeavesWhatAnotherNameLeadsTo) {
  const std::string path = trunk().AddModel("m");
  v1::AddRequest request;
  request.set_name("twin");
  request.set_path(path);
  v1::AddResponse added;
  ASSERT_TRUE(calls().Add(request, &added).ok());
  ASSERT_TRUE(Load("m").ok());
  ASSERT_TRUE(Load("twin").ok());
  EXPECT_EQ(Replicas(), 1u);
  ASSERT_TRUE(Remove("m").ok());
  EXPECT_EQ(Replicas(), 1u);
  ASSERT_TRUE(Remove("twin").ok());
  EXPECT_EQ(Replicas(), 0u);
}

TEST_F(ControlCallsTest, AnAdditionThatCanNotBeWrittenDownIsNoAddition) {
  trunk().AddModel("m");
  BreakCatalogue();
  v1::AddRequest request;
  request.set_name("new");
  request.set_path(world().MakeFile());
  v1::AddResponse response;
  EXPECT_FALSE(calls().Add(request, &response).ok());
  EXPECT_EQ(List().models_size(), 1);
}

TEST_F(ControlCallsTest, AFileThatIsNoModelIsRefusedBeforeItHasAName) {
  v1::AddRequest request;
  request.set_name("new");
  request.set_path(trunk().root().Write("noise.safetensors", "this is no model"));
  v1::AddResponse response;
  EXPECT_FALSE(calls().Add(request, &response).ok());
  request.set_path(request.path() + ".not");
  EXPECT_EQ(calls().Add(request, &response).code(), StatusCode::kNotFound);
  EXPECT_EQ(List().models_size(), 0);
}

TEST_F(ControlCallsTest, ADirectoryOfTheBaseIsReplacedByAnEntryOnDemand) {
  const std::string weights = ReadFile(world().MakeFile());
  trunk().root().Write("base/m/model.safetensors", weights);
  ASSERT_EQ(List().models_size(), 1);
  EXPECT_EQ(List().models(0).origin(), v1::MODEL_ORIGIN_BASE_DIR);
  EXPECT_EQ(Remove("m").code(), StatusCode::kFailedPrecondition);
  v1::AddRequest request;
  request.set_name("m");
  request.set_path(world().MakeFile());
  v1::AddResponse response;
  EXPECT_EQ(calls().Add(request, &response).code(), StatusCode::kAlreadyExists);
  request.set_replace(true);
  ASSERT_TRUE(calls().Add(request, &response).ok());
  EXPECT_TRUE(response.replaced());
  ASSERT_EQ(List().models_size(), 1);
  EXPECT_EQ(List().models(0).origin(), v1::MODEL_ORIGIN_ADDED);
}

TEST_F(ControlCallsTest, AReplacedNameStandsForItsNewFileAtOnce) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  v1::AddRequest request;
  request.set_name("m");
  request.set_path(world().MakeFile());
  request.set_replace(true);
  v1::AddResponse response;
  ASSERT_TRUE(calls().Add(request, &response).ok());
  const v1::ModelView model = Info("m").model();
  EXPECT_EQ(model.source(), request.path());
  EXPECT_TRUE(model.digest().empty()) << "nobody has looked at it yet";
  EXPECT_EQ(model.replicas_size(), 0);
  EXPECT_GT(model.tensor_count(), 0u);
}

// --- Leases and sessions -----------------------------------------------------------

TEST_F(ControlCallsTest, ALeaseSaysWhoHoldsItAndWhatThatProcessIs) {
  trunk().AddModel("m");
  OpenRequest request = TestTrunk::Named("m");
  world().LeaseBy(::getpid(), std::move(request));
  const v1::InfoResponse info = Info("m");
  ASSERT_EQ(info.leases_size(), 1);
  EXPECT_EQ(info.leases(0).pid(), ::getpid());
  EXPECT_EQ(info.leases(0).uid(), TestTrunk::kUid);
  EXPECT_EQ(info.leases(0).gid(), 100u);
  std::string command = ReadFile("/proc/self/comm");
  command.pop_back();
  EXPECT_EQ(info.leases(0).command(), command);
  v1::EvictRequest evict;
  evict.set_model("m");
  v1::EvictResponse evicted;
  EXPECT_THAT(calls().Evict(evict, &evicted).message(),
              HasSubstr("held by pid " + std::to_string(::getpid()) + " uid 4711"));
}

TEST_F(ControlCallsTest, WhatAClientCalledLikeAModelIsNotThatModel) {
  trunk().AddModel("m");
  OpenRequest passed;
  passed.uid = TestTrunk::kUid;
  passed.label = "m";
  const std::string path = trunk().WriteModel("other", TestTrunk::SmallModel(77));
  passed.file = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  world().LeaseBy(1, std::move(passed));
  EXPECT_TRUE(Info("m").model().digest().empty());
  const v1::ListResponse list = List();
  ASSERT_EQ(list.models_size(), 2);
  int named = 0;
  for (const v1::ModelView& model : list.models()) {
    EXPECT_EQ(model.name(), "m");
    EXPECT_EQ(model.origin() == v1::MODEL_ORIGIN_ADDED, model.digest().empty());
    EXPECT_EQ(model.source().empty(), !model.digest().empty());
    if (model.digest().empty()) ++named;
  }
  EXPECT_EQ(named, 1);
  ASSERT_TRUE(Remove("m").ok());
  EXPECT_EQ(Replicas(), 1u) << "it was not resident under that name";
}

// --- The daemon --------------------------------------------------------------------

TEST_F(ControlCallsTest, TheStatusSaysHowLongTheReactorWasHeldUp) {
  trunk().AddModel("m");
  ASSERT_TRUE(Load("m").ok());
  trunk().OnReactor([&] {
    const Time until = Now() + 2 * kReactorHoldWarning;
    while (Now() < until) {
    }
  });
  v1::GetStatusResponse status;
  ASSERT_TRUE(calls().GetStatus(v1::GetStatusRequest(), &status).ok());
  EXPECT_GE(status.reactor_slow_callbacks(), 1u);
  EXPECT_GE(status.reactor_longest_callback().nanos() +
                status.reactor_longest_callback().seconds() * 1'000'000'000,
            20'000'000);
  EXPECT_EQ(status.models(), 1u);
  EXPECT_EQ(status.tiers(0).replicas(), 1u);
  EXPECT_EQ(status.worker_restarts(), 2u);
  EXPECT_EQ(status.keeper_pid(), 4000);
  EXPECT_EQ(status.gpu(), "none");
  EXPECT_EQ(status.lease_socket(), trunk().config().runtime_dir + "/lease.sock");
}

TEST_F(ControlCallsTest, SettingsAreThoseOfTheLastReload) {
  LoadedConfig config;
  config.entries.push_back({.key = "keep_alive", .value = "5m", .origin = "/etc/t.toml:2"});
  trunk().OnReactor([&] { world().calls().SetConfig(config); });
  v1::GetConfigResponse response;
  ASSERT_TRUE(calls().GetConfig(v1::GetConfigRequest(), &response).ok());
  ASSERT_EQ(response.entries_size(), 1);
  EXPECT_EQ(response.entries(0).value(), "5m");
}

}  // namespace
}  // namespace trims

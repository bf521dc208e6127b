// What every ControlBackend must do: the rules of proto/trims/v1/control.proto, as tests.
// Include this in an implementation's test and instantiate the suite with a function that
// makes a world for it.
//
//   INSTANTIATE_TEST_SUITE_P(Fake, ControlConformance, ::testing::Values(WorldFactory([] { … })));
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "daemon/control_backend.h"
#include "daemon/test_control_world.h"
#include "trims/v1/control.pb.h"

namespace trims {

struct WorldFactory {
  std::function<std::unique_ptr<ControlWorld>()> make;
};

class ControlConformance : public ::testing::TestWithParam<WorldFactory> {
 protected:
  static constexpr char kGpu[] = "gpu:GPU-0";
  static constexpr char kUnknownDigest[] =
      "@sha256:0123456789012345678901234567890123456789012345678901234567890123";

  void SetUp() override {
    world_ = GetParam().make();
    world_->AddModel("m");
    world_->AddModel("b:2");
  }

  static ControlBackend::Cancelled Never() {
    return [] { return false; };
  }

  struct Loaded {
    Status status;
    std::vector<v1::LoadProgress> messages;
  };
  Loaded Load(const v1::LoadRequest& request) {
    Loaded loaded;
    loaded.status = backend().Load(
        request,
        [&](const v1::LoadProgress& progress) {
          loaded.messages.push_back(progress);
          return true;
        },
        Never());
    return loaded;
  }
  Loaded Load(const std::string& model, const std::string& tier = "") {
    v1::LoadRequest request;
    request.set_model(model);
    request.set_tier(tier);
    return Load(request);
  }
  void MustLoad(const std::string& model, const std::string& tier = "") {
    const Loaded loaded = Load(model, tier);
    ASSERT_TRUE(loaded.status.ok()) << loaded.status.ToString();
  }
  Status Info(const std::string& model, v1::InfoResponse* response) {
    v1::InfoRequest request;
    request.set_model(model);
    return backend().Info(request, response);
  }
  v1::ModelView Model(const std::string& model) {
    v1::InfoResponse response;
    const Status status = Info(model, &response);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return response.model();
  }
  std::vector<std::string> Names(bool resident_only = false) {
    v1::ListRequest request;
    request.set_resident_only(resident_only);
    v1::ListResponse response;
    const Status status = backend().List(request, &response);
    EXPECT_TRUE(status.ok()) << status.ToString();
    std::vector<std::string> names;
    for (const v1::ModelView& model : response.models()) names.push_back(model.name());
    return names;
  }
  Status Pin(const std::string& model, const std::string& tier = "",
             v1::PinResponse* response = nullptr) {
    v1::PinRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::PinResponse ignored;
    return backend().Pin(request, response != nullptr ? response : &ignored, Never());
  }
  Status Unpin(const std::string& model, const std::string& tier = "",
               v1::UnpinResponse* response = nullptr) {
    v1::UnpinRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::UnpinResponse ignored;
    return backend().Unpin(request, response != nullptr ? response : &ignored, Never());
  }
  Status Evict(const std::string& model, bool force = false, const std::string& tier = "",
               v1::EvictResponse* response = nullptr) {
    v1::EvictRequest request;
    request.set_model(model);
    request.set_force(force);
    request.set_tier(tier);
    v1::EvictResponse ignored;
    return backend().Evict(request, response != nullptr ? response : &ignored);
  }
  Status Add(const std::string& name, const std::string& path, bool replace = false,
             v1::AddResponse* response = nullptr) {
    v1::AddRequest request;
    request.set_name(name);
    request.set_path(path);
    request.set_replace(replace);
    v1::AddResponse ignored;
    return backend().Add(request, response != nullptr ? response : &ignored);
  }
  Status Remove(const std::string& name, bool force = false,
                v1::RemoveResponse* response = nullptr) {
    v1::RemoveRequest request;
    request.set_name(name);
    request.set_force(force);
    v1::RemoveResponse ignored;
    return backend().Remove(request, response != nullptr ? response : &ignored);
  }
  Status Verify(const std::string& model, const std::string& tier = "",
                std::vector<v1::VerifyProgress>* messages = nullptr) {
    v1::VerifyRequest request;
    request.set_model(model);
    request.set_tier(tier);
    return backend().Verify(
        request,
        [&](const v1::VerifyProgress& progress) {
          if (messages != nullptr) messages->push_back(progress);
          return true;
        },
        Never());
  }
  Status Leases(const std::string& model, const std::string& tier = "",
                v1::ListLeasesResponse* response = nullptr) {
    v1::ListLeasesRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::ListLeasesResponse ignored;
    return backend().ListLeases(request, response != nullptr ? response : &ignored);
  }
  // What a watch sees while `happens` runs, up to and with the first event that `is_last`
  // says is the last.
  std::vector<v1::Event> Watched(const v1::WatchRequest& request,
                                 const std::function<void()>& happens,
                                 const std::function<bool(const v1::Event&)>& is_last) {
    std::vector<v1::Event> events;
    std::atomic<bool> is_over{false};
    std::thread other;
    const Status status = backend().Watch(
        request, [&] { other = std::thread(happens); },
        [&](const v1::Event& event) {
          events.push_back(event);
          if (is_last(event)) is_over = true;
          return !is_over.load();
        },
        [&] { return is_over.load(); });
    if (other.joinable()) other.join();
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
    return events;
  }

  ControlWorld& world() { return *world_; }
  ControlBackend& backend() { return world_->backend(); }

 private:
  std::unique_ptr<ControlWorld> world_;
};

// --- Names -------------------------------------------------------------------------

TEST_P(ControlConformance, AListIsSortedByName) {
  world().AddModel("a");
  EXPECT_THAT(Names(), ::testing::ElementsAre("a", "b:2", "m"));
}

TEST_P(ControlConformance, AListOfResidentsLeavesTheOthersOut) {
  EXPECT_THAT(Names(/*resident_only=*/true), ::testing::IsEmpty());
  MustLoad("m");
  EXPECT_THAT(Names(/*resident_only=*/true), ::testing::ElementsAre("m"));
}

TEST_P(ControlConformance, AnUnknownModelIsNotFoundByAnyCall) {
  for (const std::string model : {"nothing", kUnknownDigest}) {
    SCOPED_TRACE(model);
    v1::InfoResponse info;
    EXPECT_EQ(Info(model, &info).code(), StatusCode::kNotFound);
    EXPECT_EQ(Load(model).status.code(), StatusCode::kNotFound);
    EXPECT_EQ(Pin(model).code(), StatusCode::kNotFound);
    EXPECT_EQ(Unpin(model).code(), StatusCode::kNotFound);
    EXPECT_EQ(Evict(model).code(), StatusCode::kNotFound);
    EXPECT_EQ(Verify(model).code(), StatusCode::kNotFound);
    EXPECT_EQ(Leases(model).code(), StatusCode::kNotFound);
  }
  EXPECT_EQ(Remove("nothing").code(), StatusCode::kNotFound);
}

TEST_P(ControlConformance, AMalformedNameIsAnInvalidArgument) {
  for (const std::string& name :
       {std::string("a/b/c"), std::string(".."), std::string("a\0b", 3), std::string("a\nb"),
        std::string("@sha256:12"), std::string(1000, 'a')}) {
    SCOPED_TRACE(name);
    v1::InfoResponse info;
    EXPECT_EQ(Info(name, &info).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Load(name).status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Pin(name).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Unpin(name).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Evict(name).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Remove(name).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Add(name, world().MakeFile()).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Verify(name).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Leases(name).code(), StatusCode::kInvalidArgument);
  }
  // Where "" does not mean all.
  v1::InfoResponse info;
  EXPECT_EQ(Info("", &info).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Load("").status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Evict("").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Remove("").code(), StatusCode::kInvalidArgument);
}

TEST_P(ControlConformance, AnUnknownTierIsNotFoundByAnyCall) {
  MustLoad("m");
  EXPECT_EQ(Load("m", "attic").status.code(), StatusCode::kNotFound);
  EXPECT_EQ(Pin("m", "attic").code(), StatusCode::kNotFound);
  EXPECT_EQ(Unpin("m", "attic").code(), StatusCode::kNotFound);
  EXPECT_EQ(Evict("m", false, "attic").code(), StatusCode::kNotFound);
  EXPECT_EQ(Verify("m", "attic").code(), StatusCode::kNotFound);
  EXPECT_EQ(Leases("m", "attic").code(), StatusCode::kNotFound);
  EXPECT_FALSE(Model("m").pinned());
  EXPECT_EQ(Model("m").replicas_size(), 1);
}

TEST_P(ControlConformance, AModelIsAlsoKnownByItsContents) {
  MustLoad("m");
  const v1::ModelView named = Model("m");
  ASSERT_FALSE(named.digest().empty());
  const v1::ModelView found = Model("@" + named.digest());
  EXPECT_EQ(found.name(), "m");
  EXPECT_EQ(found.source(), named.source());
  EXPECT_EQ(found.replicas_size(), 1);
  EXPECT_TRUE(Evict("@" + named.digest()).ok());
  EXPECT_EQ(Model("m").replicas_size(), 0);
}

TEST_P(ControlConformance, TensorsAreShownWhenAskedForAndSortedByName) {
  for (const bool is_resident : {false, true}) {
    if (is_resident) MustLoad("m");
    v1::InfoRequest request;
    request.set_model("m");
    v1::InfoResponse brief, full;
    ASSERT_TRUE(backend().Info(request, &brief).ok());
    request.set_include_tensors(true);
    ASSERT_TRUE(backend().Info(request, &full).ok());
    EXPECT_EQ(brief.tensors_size(), 0);
    ASSERT_EQ(full.tensors_size(), static_cast<int>(full.model().tensor_count()));
    ASSERT_GE(full.tensors_size(), 2);
    uint64_t bytes = 0;
    for (int i = 0; i < full.tensors_size(); ++i) {
      bytes += full.tensors(i).size_bytes();
      if (i == 0) continue;
      EXPECT_LT(full.tensors(i - 1).name(), full.tensors(i).name());
    }
    EXPECT_EQ(bytes, full.model().weight_bytes());
  }
}

// --- Loading -----------------------------------------------------------------------

TEST_P(ControlConformance, ALoadEndsWithReadyAndTakesNoLease) {
  const Loaded loaded = Load("m");
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.ToString();
  ASSERT_GE(loaded.messages.size(), 2u) << "the first message comes at once";
  for (size_t i = 0; i + 1 < loaded.messages.size(); ++i) {
    EXPECT_NE(loaded.messages[i].phase(), v1::LOAD_PHASE_READY);
    EXPECT_NE(loaded.messages[i].phase(), v1::LOAD_PHASE_UNSPECIFIED);
    EXPECT_FALSE(loaded.messages[i].has_model());
  }
  const v1::LoadProgress& ready = loaded.messages.back();
  EXPECT_EQ(ready.phase(), v1::LOAD_PHASE_READY);
  EXPECT_FALSE(ready.already_resident());
  EXPECT_EQ(ready.done_bytes(), ready.total_bytes());
  EXPECT_EQ(ready.model().name(), "m");
  ASSERT_EQ(ready.model().replicas_size(), 1);
  const v1::ReplicaView& replica = ready.model().replicas(0);
  EXPECT_EQ(replica.tier(), "host");
  EXPECT_EQ(replica.state(), v1::REPLICA_STATE_READY);
  EXPECT_EQ(replica.granularity(), v1::SHARING_GRANULARITY_MODEL);
  EXPECT_EQ(replica.leases(), 0u);
  EXPECT_EQ(replica.bytes(), ready.total_bytes());
  EXPECT_GE(replica.bytes(), ready.model().weight_bytes());
  EXPECT_TRUE(replica.has_loaded_at());
  EXPECT_EQ(Model("b:2").replicas_size(), 0);
}

TEST_P(ControlConformance, ALoadOfWhatIsResidentSaysSo) {
  MustLoad("m");
  const Loaded again = Load("m");
  ASSERT_TRUE(again.status.ok());
  EXPECT_TRUE(again.messages.back().already_resident());
  const Loaded by_digest = Load("@" + Model("m").digest());
  ASSERT_TRUE(by_digest.status.ok()) << by_digest.status.ToString();
  EXPECT_TRUE(by_digest.messages.back().already_resident());
  EXPECT_FALSE(Load("m", kGpu).messages.back().already_resident()) << "it is in another tier";
}

TEST_P(ControlConformance, AGranularityThatNobodyKnowsIsAnInvalidArgument) {
  v1::LoadRequest request;
  request.set_model("m");
  request.set_granularity(static_cast<v1::SharingGranularity>(77));
  const Loaded loaded = Load(request);
  EXPECT_EQ(loaded.status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(loaded.status.message(), ::testing::HasSubstr("77"));
  EXPECT_THAT(loaded.messages, ::testing::IsEmpty());
  EXPECT_EQ(Model("m").replicas_size(), 0);
}

TEST_P(ControlConformance, AKeepAliveThatIsNoDurationIsAnInvalidArgument) {
  for (const auto& [seconds, nanos] : std::vector<std::pair<int64_t, int32_t>>{
           {0, 1'000'000'000}, {0, -1'000'000'000}, {1, -1}, {-1, 1}, {9'223'372'037, 0}}) {
    v1::LoadRequest request;
    request.set_model("m");
    request.mutable_keep_alive()->set_seconds(seconds);
    request.mutable_keep_alive()->set_nanos(nanos);
    EXPECT_EQ(Load(request).status.code(), StatusCode::kInvalidArgument) << seconds << " " << nanos;
  }
  EXPECT_EQ(Model("m").replicas_size(), 0);
  v1::LoadRequest for_ever;
  for_ever.set_model("m");
  for_ever.mutable_keep_alive()->set_seconds(-1);
  EXPECT_TRUE(Load(for_ever).status.ok());
}

TEST_P(ControlConformance, ALoadThatFindsNoRoomLeavesNothing) {
  world().TakeAllRoom();
  EXPECT_EQ(Load("m").status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Model("m").replicas_size(), 0);
}

TEST_P(ControlConformance, ALoadEndsWithItsCaller) {
  world().HoldLoads(true);
  std::atomic<int> messages{0};
  v1::LoadRequest request;
  request.set_model("m");
  const Status status = backend().Load(
      request, [&](const v1::LoadProgress&) { return ++messages > 0; },
      [&] { return messages > 1; });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  world().HoldLoads(false);
  // Not half there: it loads like one that nobody has asked for.
  EXPECT_TRUE(Load("m").status.ok());
  EXPECT_EQ(Model("m").replicas(0).state(), v1::REPLICA_STATE_READY);
}

// --- Pins --------------------------------------------------------------------------

TEST_P(ControlConformance, APinProtectsFromEvictionUntilItIsTakenAway) {
  MustLoad("m");
  v1::PinResponse pinned;
  ASSERT_TRUE(Pin("m", "", &pinned).ok());
  EXPECT_TRUE(pinned.model().pinned());
  EXPECT_TRUE(pinned.model().replicas(0).pinned());
  EXPECT_EQ(Evict("m").code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Model("m").replicas_size(), 1);
  v1::UnpinResponse unpinned;
  ASSERT_TRUE(Unpin("m", "", &unpinned).ok());
  EXPECT_FALSE(unpinned.model().pinned());
  EXPECT_TRUE(Evict("m").ok());
}

TEST_P(ControlConformance, APinLoadsNothingAndHoldsForWhatIsLoadedLater) {
  ASSERT_TRUE(Pin("m").ok());
  EXPECT_EQ(Model("m").replicas_size(), 0);
  EXPECT_TRUE(Model("m").pinned());
  ASSERT_TRUE(Pin("m").ok()) << "pinning a pinned model changes nothing";
  MustLoad("m");
  EXPECT_TRUE(Model("m").replicas(0).pinned());
}

TEST_P(ControlConformance, UnpinningWhatIsNotPinnedChangesNothing) {
  EXPECT_TRUE(Unpin("m").ok());
  EXPECT_FALSE(Model("m").pinned());
  MustLoad("m");
  EXPECT_TRUE(Unpin("m").ok());
  EXPECT_EQ(Model("m").replicas_size(), 1);
}

// --- Evicting ----------------------------------------------------------------------

TEST_P(ControlConformance, AnEvictionSaysWhatItFreed) {
  MustLoad("m");
  const v1::ReplicaView before = Model("m").replicas(0);
  v1::EvictResponse evicted;
  ASSERT_TRUE(Evict("m", false, "host", &evicted).ok());
  ASSERT_EQ(evicted.replicas_size(), 1);
  EXPECT_EQ(evicted.replicas(0).replica().generation(), before.generation());
  EXPECT_EQ(evicted.replicas(0).freed_bytes(), before.unshared_bytes());
  EXPECT_FALSE(evicted.replicas(0).draining());
  EXPECT_EQ(Model("m").replicas_size(), 0);
}

TEST_P(ControlConformance, EvictingWhatIsNotThereIsNotFound) {
  EXPECT_EQ(Evict("m").code(), StatusCode::kNotFound);
  MustLoad("m");
  EXPECT_EQ(Evict("m", true, kGpu).code(), StatusCode::kNotFound);
  EXPECT_EQ(Model("m").replicas_size(), 1);
}

TEST_P(ControlConformance, WithoutForceALeasedModelStaysAsAWhole) {
  world().Lease("m");
  MustLoad("m", kGpu);
  const Status refused = Evict("m");
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), ::testing::HasSubstr("m"));
  EXPECT_EQ(Model("m").replicas_size(), 2) << "the one that nobody leases was evicted";
  EXPECT_TRUE(Evict("m", false, kGpu).ok());
  EXPECT_EQ(Model("m").replicas_size(), 1);
}

TEST_P(ControlConformance, WithForceALeasedReplicaDrains) {
  world().Lease("m");
  v1::EvictResponse evicted;
  ASSERT_TRUE(Evict("m", /*force=*/true, "", &evicted).ok());
  ASSERT_EQ(evicted.replicas_size(), 1);
  EXPECT_TRUE(evicted.replicas(0).draining());
  EXPECT_EQ(evicted.replicas(0).freed_bytes(), 0u);
  EXPECT_EQ(evicted.replicas(0).replica().state(), v1::REPLICA_STATE_READY) << "as it was";
  ASSERT_EQ(Model("m").replicas_size(), 1);
  EXPECT_EQ(Model("m").replicas(0).state(), v1::REPLICA_STATE_DRAINING);
  v1::ListLeasesResponse leases;
  ASSERT_TRUE(Leases("m", "", &leases).ok());
  EXPECT_EQ(leases.leases_size(), 1) << "what clients hold stays valid for them";
  // It is being asked for what it does already.
  EXPECT_TRUE(Evict("m", /*force=*/true).ok());
  // It serves nobody any more: a load makes another.
  const Loaded loaded = Load("m");
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.ToString();
  EXPECT_EQ(Model("m").replicas_size(), 2);
}

TEST_P(ControlConformance, ForceTakesThePinAway) {
  MustLoad("m");
  ASSERT_TRUE(Pin("m").ok());
  ASSERT_TRUE(Evict("m", /*force=*/true).ok());
  EXPECT_EQ(Model("m").replicas_size(), 0);
  EXPECT_FALSE(Model("m").pinned());
}

// --- The catalogue -----------------------------------------------------------------

TEST_P(ControlConformance, AddGivesAFileAName) {
  const std::string path = world().MakeFile();
  v1::AddResponse added;
  const Status status = Add("team/new:1", path, false, &added);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_FALSE(added.replaced());
  EXPECT_EQ(added.model().name(), "team/new:1");
  EXPECT_EQ(added.model().source(), path);
  EXPECT_EQ(added.model().origin(), v1::MODEL_ORIGIN_ADDED);
  EXPECT_GT(added.model().tensor_count(), 0u);
  EXPECT_EQ(added.model().replicas_size(), 0);
  EXPECT_THAT(Names(), ::testing::ElementsAre("b:2", "m", "team/new:1"));
  EXPECT_TRUE(Load("team/new:1").status.ok());
}

TEST_P(ControlConformance, APathThatIsNotAbsoluteIsAnInvalidArgument) {
  const std::string path = world().MakeFile();
  for (const std::string& bad :
       {std::string(), path.substr(1), "." + path, path + std::string("\0.old", 5)}) {
    EXPECT_EQ(Add("new", bad).code(), StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_THAT(Names(), ::testing::ElementsAre("b:2", "m"));
}

TEST_P(ControlConformance, ANameThatIsTakenIsReplacedOnlyOnDemand) {
  MustLoad("m");
  const std::string path = world().MakeFile();
  EXPECT_EQ(Add("m", path).code(), StatusCode::kAlreadyExists);
  EXPECT_NE(Model("m").source(), path);
  v1::AddResponse added;
  ASSERT_TRUE(Add("m", path, /*replace=*/true, &added).ok());
  EXPECT_TRUE(added.replaced());
  EXPECT_EQ(Model("m").source(), path);
  const Loaded loaded = Load("m");
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.ToString();
  EXPECT_FALSE(loaded.messages.back().already_resident()) << "these are other contents";
}

TEST_P(ControlConformance, RemoveTakesTheNameAndWhatIsResidentUnderIt) {
  MustLoad("m");
  v1::RemoveResponse removed;
  const Status status = Remove("m", false, &removed);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(removed.model().name(), "m");
  EXPECT_EQ(removed.model().replicas_size(), 1) << "as it was";
  ASSERT_EQ(removed.replicas_size(), 1);
  EXPECT_FALSE(removed.replicas(0).draining());
  EXPECT_THAT(Names(), ::testing::ElementsAre("b:2"));
  EXPECT_EQ(Load("m").status.code(), StatusCode::kNotFound);
  EXPECT_EQ(Remove("m").code(), StatusCode::kNotFound);
  EXPECT_TRUE(Remove("b:2").ok()) << "nothing of it is resident, which is no reason to stay";
}

TEST_P(ControlConformance, RemovingALeasedModelNeedsForce) {
  world().Lease("m");
  const Status refused = Remove("m");
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Names(), ::testing::ElementsAre("b:2", "m"));
  EXPECT_EQ(Model("m").replicas(0).state(), v1::REPLICA_STATE_READY);
  v1::RemoveResponse removed;
  ASSERT_TRUE(Remove("m", /*force=*/true, &removed).ok());
  ASSERT_EQ(removed.replicas_size(), 1);
  EXPECT_TRUE(removed.replicas(0).draining());
  EXPECT_EQ(Load("m").status.code(), StatusCode::kNotFound);
}

TEST_P(ControlConformance, RemoveTakesNoDigest) {
  MustLoad("m");
  EXPECT_EQ(Remove("@" + Model("m").digest()).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Model("m").replicas_size(), 1);
}

// --- Verifying ---------------------------------------------------------------------

TEST_P(ControlConformance, GoodBytesAreFoundIntact) {
  MustLoad("m");
  MustLoad("b:2");
  std::vector<v1::VerifyProgress> messages;
  const Status status = Verify("m", "", &messages);
  ASSERT_TRUE(status.ok()) << status.ToString();
  ASSERT_FALSE(messages.empty());
  const v1::VerifyProgress& last = messages.back();
  EXPECT_EQ(last.done_bytes(), last.total_bytes());
  EXPECT_EQ(last.total_bytes(), Model("m").replicas(0).bytes());
  ASSERT_TRUE(last.has_verdict());
  EXPECT_TRUE(last.verdict().intact());
  EXPECT_TRUE(last.verdict().detail().empty());
  EXPECT_EQ(last.verdict().model(), "m");
  EXPECT_EQ(last.verdict().digest(), Model("m").digest());
  EXPECT_EQ(last.verdict().replica().state(), v1::REPLICA_STATE_READY);

  messages.clear();
  ASSERT_TRUE(Verify("", "host", &messages).ok());
  int verdicts = 0;
  uint64_t done = 0;
  for (const v1::VerifyProgress& message : messages) {
    EXPECT_GE(message.done_bytes(), done);
    done = message.done_bytes();
    if (message.has_verdict()) ++verdicts;
  }
  EXPECT_EQ(verdicts, 2);
}

TEST_P(ControlConformance, WrongBytesAreToldAndQuarantined) {
  world().Lease("m");
  world().Damage("m");
  std::vector<v1::VerifyProgress> messages;
  ASSERT_TRUE(Verify("m", "", &messages).ok()) << "it could be checked";
  ASSERT_FALSE(messages.empty());
  const v1::VerifyVerdict& verdict = messages.back().verdict();
  EXPECT_FALSE(verdict.intact());
  EXPECT_FALSE(verdict.detail().empty());
  EXPECT_EQ(verdict.replica().state(), v1::REPLICA_STATE_QUARANTINED);
  EXPECT_EQ(Model("m").replicas(0).state(), v1::REPLICA_STATE_QUARANTINED);
  EXPECT_EQ(Model("m").replicas(0).leases(), 1u) << "its leases go on";
}

TEST_P(ControlConformance, WhatIsNotResidentCanNotBeVerified) {
  EXPECT_EQ(Verify("m").code(), StatusCode::kNotFound);
  std::vector<v1::VerifyProgress> messages;
  EXPECT_TRUE(Verify("", "", &messages).ok());
  EXPECT_THAT(messages, ::testing::IsEmpty());
  MustLoad("m");
  EXPECT_EQ(Verify("m", kGpu).code(), StatusCode::kNotFound);
}

// --- Leases ------------------------------------------------------------------------

TEST_P(ControlConformance, LeasesAreListedByTheirIds) {
  world().Lease("m");
  world().Lease("b:2");
  world().Lease("m");
  v1::ListLeasesResponse all, some, none;
  ASSERT_TRUE(Leases("", "", &all).ok());
  ASSERT_EQ(all.leases_size(), 3);
  for (int i = 1; i < all.leases_size(); ++i)
    EXPECT_LT(all.leases(i - 1).lease_id(), all.leases(i).lease_id());
  const v1::LeaseView& lease = all.leases(0);
  EXPECT_EQ(lease.model(), "m");
  EXPECT_EQ(lease.digest(), Model("m").digest());
  EXPECT_EQ(lease.tier(), "host");
  EXPECT_EQ(lease.granularity(), v1::SHARING_GRANULARITY_MODEL);
  EXPECT_EQ(lease.generation(), Model("m").replicas(0).generation());
  EXPECT_EQ(lease.bytes(), Model("m").replicas(0).bytes());
  EXPECT_TRUE(lease.has_since());
  EXPECT_NE(lease.session_id(), 0u);
  ASSERT_TRUE(Leases("m", "host", &some).ok());
  EXPECT_EQ(some.leases_size(), 2);
  ASSERT_TRUE(Leases("m", kGpu, &none).ok());
  EXPECT_EQ(none.leases_size(), 0);
  EXPECT_EQ(Model("m").replicas(0).leases(), 2u);
  v1::InfoResponse info;
  ASSERT_TRUE(Info("m", &info).ok());
  EXPECT_EQ(info.leases_size(), 2);
  v1::GetStatusResponse status;
  ASSERT_TRUE(backend().GetStatus(v1::GetStatusRequest(), &status).ok());
  EXPECT_EQ(status.leases(), 3u);
}

TEST_P(ControlConformance, AModelThatIsNotResidentHasNoLeases) {
  v1::ListLeasesResponse leases;
  EXPECT_TRUE(Leases("m", "", &leases).ok());
  EXPECT_EQ(leases.leases_size(), 0);
}

// --- Watching ----------------------------------------------------------------------

TEST_P(ControlConformance, AWatchSeesWhatHappensAfterItIsInPlace) {
  MustLoad("m");
  const auto events = Watched(
      v1::WatchRequest(), [&] { world().Happen("m"); },
      [](const v1::Event& event) { return event.kind() == v1::EVENT_KIND_PINNED; });
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().model(), "m");
  EXPECT_TRUE(events.back().has_time());
}

TEST_P(ControlConformance, AWatchIsToldOfItsModelAndItsKindsOnly) {
  MustLoad("m");
  MustLoad("b:2");
  v1::WatchRequest request;
  request.set_model("m");
  request.add_kinds(v1::EVENT_KIND_PINNED);
  const auto events = Watched(
      request,
      [&] {
        world().Happen("b:2");
        world().Happen("m");
      },
      [](const v1::Event&) { return true; });
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].model(), "m");
  EXPECT_EQ(events[0].kind(), v1::EVENT_KIND_PINNED);
}

TEST_P(ControlConformance, AnEventKindThatNobodyKnowsIsAnInvalidArgument) {
  for (const int kind : {0, 99, -1}) {
    v1::WatchRequest request;
    request.add_kinds(v1::EVENT_KIND_READY);
    request.add_kinds(static_cast<v1::EventKind>(kind));
    const Status status = backend().Watch(
        request, [] { ADD_FAILURE() << "nothing is in place"; },
        [](const v1::Event&) { return false; }, [] { return true; });
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), ::testing::HasSubstr(std::to_string(kind)));
  }
}

// --- The daemon --------------------------------------------------------------------

TEST_P(ControlConformance, TheStatusListsTheTiers) {
  v1::GetStatusResponse status;
  ASSERT_TRUE(backend().GetStatus(v1::GetStatusRequest(), &status).ok());
  EXPECT_FALSE(status.version().empty());
  ASSERT_GE(status.tiers_size(), 1);
  EXPECT_EQ(status.tiers(0).name(), "host");
  EXPECT_GT(status.tiers(0).budget_bytes(), 0u);
  EXPECT_EQ(status.leases(), 0u);
}

TEST_P(ControlConformance, SettingsSayWhereTheyCameFrom) {
  v1::GetConfigResponse config;
  ASSERT_TRUE(backend().GetConfig(v1::GetConfigRequest(), &config).ok());
  ASSERT_GE(config.entries_size(), 1);
  for (const v1::ConfigEntry& entry : config.entries()) {
    EXPECT_FALSE(entry.key().empty());
    EXPECT_FALSE(entry.origin().empty());
  }
}

}  // namespace trims

#include "daemon/control_views.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace trims {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;

Digest Filled(uint8_t fill) {
  Digest digest;
  digest.bytes.fill(fill);
  return digest;
}

// At 1,000 s of the steady clock it is 1,700,000,000 s of the wall's.
Moment At() {
  return {Time(seconds(1000)), std::chrono::system_clock::time_point(seconds(1'700'000'000))};
}

store::ReplicaSummary Ready(uint8_t model, store::TierIndex tier = 0, uint64_t generation = 1) {
  store::ReplicaSummary replica;
  replica.replica = {Filled(model), tier, store::Granularity::kModel};
  replica.state = store::ReplicaState::kReady;
  replica.generation = generation;
  replica.bytes = 4096;
  replica.loaded_at = Time(seconds(900));
  return replica;
}

class ControlViewsTest : public ::testing::Test {
 protected:
  ControlViewsTest() {
    snapshot_.taken = At();
    snapshot_.tier_names = {"host", "gpu:GPU-0"};
  }
  // Known contents of one tensor.
  Snapshot::Model& Know(uint8_t fill, const std::string& name, bool is_public = true) {
    auto manifest = std::make_shared<ModelManifest>();
    manifest->digest = Filled(fill);
    manifest->weight_bytes = 16;
    manifest->metadata["format"] = "pt";
    manifest->tensors.push_back(
        {.name = "w", .dtype = DType::kF32, .shape = {2, 2}, .size_bytes = 16});
    Snapshot::Model& model = snapshot_.models[Filled(fill)];
    model.name = name;
    model.is_public = is_public;
    model.manifest = std::move(manifest);
    return model;
  }
  void Put(store::ReplicaSummary replica) {
    snapshot_.replicas.push_back(replica);
    snapshot_.Sort();
  }
  std::vector<std::string> Listed(const std::vector<CatalogueEntry>& entries,
                                  bool resident_only = false) {
    v1::ListResponse response;
    FillList(snapshot_, entries, resident_only, &response);
    std::vector<std::string> text;
    for (const v1::ModelView& model : response.models()) {
      text.push_back(model.name() + " " + model.source() + " " +
                     (model.digest().empty() ? "-" : model.digest().substr(7, 2)) + " " +
                     std::to_string(model.replicas_size()) + " " +
                     v1::ModelOrigin_Name(model.origin()).substr(13));
    }
    return text;
  }

  Snapshot snapshot_;
};

// --- Times -------------------------------------------------------------------------

TEST(ControlTimesTest, TimesAreOfTheWallClock) {
  google::protobuf::Timestamp out;
  SetTimestamp(At(), Time(seconds(990)), &out);
  EXPECT_EQ(out.seconds(), 1'699'999'990);
  EXPECT_EQ(out.nanos(), 0);
  SetTimestamp(At(), Time(seconds(1000)) - Duration(1), &out);
  EXPECT_EQ(out.seconds(), 1'699'999'999);
  EXPECT_EQ(out.nanos(), 999'999'999);
}

TEST(ControlTimesTest, NanosAreNeverNegative) {
  google::protobuf::Timestamp out;
  const Moment early{Time(seconds(1000)), std::chrono::system_clock::time_point(seconds(1))};
  SetTimestamp(early, Time(seconds(999)) - Duration(1), &out);
  EXPECT_EQ(out.seconds(), -1);
  EXPECT_EQ(out.nanos(), 999'999'999);
}

TEST(ControlTimesTest, DurationsKeepTheirNanos) {
  google::protobuf::Duration out;
  SetDuration(seconds(3) + Duration(7), &out);
  EXPECT_EQ(out.seconds(), 3);
  EXPECT_EQ(out.nanos(), 7);
}

// --- Enums -------------------------------------------------------------------------

TEST(ControlEnumsTest, EveryStateGranularityAndEventHasItsOwnNumber) {
  EXPECT_EQ(ToProto(store::Granularity::kModel), v1::SHARING_GRANULARITY_MODEL);
  EXPECT_EQ(ToProto(store::Granularity::kSlab), v1::SHARING_GRANULARITY_SLAB);
  EXPECT_EQ(ToProto(store::Granularity::kLayer), v1::SHARING_GRANULARITY_LAYER);
  using State = store::ReplicaState;
  for (const State state :
       {State::kAbsent, State::kLoading, State::kReady, State::kDraining, State::kQuarantined}) {
    const std::string name = v1::ReplicaState_Name(ToProto(state)).substr(14);
    std::string lower;
    for (const char c : name) lower += static_cast<char>(std::tolower(c));
    EXPECT_EQ(lower, store::ReplicaStateName(state));
  }
  using Kind = store::Notify::Kind;
  const std::pair<Kind, v1::EventKind> kinds[] = {{Kind::kLoading, v1::EVENT_KIND_LOADING},
                                                  {Kind::kReady, v1::EVENT_KIND_READY},
                                                  {Kind::kFailed, v1::EVENT_KIND_FAILED},
                                                  {Kind::kEvicted, v1::EVENT_KIND_EVICTED},
                                                  {Kind::kExpired, v1::EVENT_KIND_EXPIRED},
                                                  {Kind::kQuarantined, v1::EVENT_KIND_QUARANTINED},
                                                  {Kind::kLeased, v1::EVENT_KIND_LEASED},
                                                  {Kind::kReleased, v1::EVENT_KIND_RELEASED},
                                                  {Kind::kPinned, v1::EVENT_KIND_PINNED},
                                                  {Kind::kUnpinned, v1::EVENT_KIND_UNPINNED},
                                                  {Kind::kDraining, v1::EVENT_KIND_UNSPECIFIED}};
  for (const auto& [kind, proto] : kinds) EXPECT_EQ(ToProto(kind), proto);
}

// --- Replicas and models -----------------------------------------------------------

TEST_F(ControlViewsTest, AReplicaShowsWhatThereIsToShow) {
  store::ReplicaSummary replica = Ready(1, 1, 7);
  replica.unshared_bytes = 1024;
  replica.extent_count = 3;
  replica.leases = 2;
  replica.pinned = true;
  replica.opens = 5;
  replica.peak_internal_bytes = 99;
  replica.last_open = Time(seconds(950));
  replica.expires_at = Time(seconds(1060));
  v1::ReplicaView view;
  FillReplica(At(), snapshot_.tier_names, replica, &view);
  EXPECT_EQ(view.tier(), "gpu:GPU-0");
  EXPECT_EQ(view.generation(), 7u);
  EXPECT_EQ(view.bytes(), 4096u);
  EXPECT_EQ(view.unshared_bytes(), 1024u);
  EXPECT_EQ(view.extent_count(), 3u);
  EXPECT_EQ(view.leases(), 2u);
  EXPECT_TRUE(view.pinned());
  EXPECT_EQ(view.opens(), 5u);
  EXPECT_EQ(view.peak_internal_bytes(), 99u);
  EXPECT_EQ(view.loaded_at().seconds(), 1'699'999'900);
  EXPECT_EQ(view.last_open_at().seconds(), 1'699'999'950);
  EXPECT_EQ(view.until().seconds(), 1'700'000'060);
}

TEST_F(ControlViewsTest, TimesThatAreNotYetAreAbsent) {
  store::ReplicaSummary replica = Ready(1);
  replica.state = store::ReplicaState::kLoading;
  v1::ReplicaView view;
  FillReplica(At(), snapshot_.tier_names, replica, &view);
  EXPECT_FALSE(view.has_loaded_at());
  EXPECT_FALSE(view.has_last_open_at());
  EXPECT_FALSE(view.has_until());
}

TEST_F(ControlViewsTest, AModelsReplicasComeByTierThenGranularity) {
  Know(1, "m");
  Know(2, "other");
  Put(Ready(1, 1, 3));
  Put(Ready(2, 0, 4));
  store::ReplicaSummary layers = Ready(1, 0, 5);
  layers.replica.granularity = store::Granularity::kLayer;
  Put(layers);
  Put(Ready(1, 0, 6));
  v1::ModelView view;
  const Digest digest = Filled(1);
  FillModel(snapshot_, nullptr, &digest, &view);
  std::vector<uint64_t> generations;
  for (const v1::ReplicaView& replica : view.replicas())
    generations.push_back(replica.generation());
  EXPECT_THAT(generations, ElementsAre(6, 5, 3));
  EXPECT_EQ(view.weight_bytes(), 16u);
  EXPECT_EQ(view.tensor_count(), 1u);
}

// --- Lists -------------------------------------------------------------------------

TEST_F(ControlViewsTest, AListHasTheCatalogueAndWhatIsResidentBeside) {
  Know(1, "m");
  Know(2, "a label", /*is_public=*/false);
  Put(Ready(1));
  Put(Ready(2));
  snapshot_.names["m"] = Filled(1);
  const std::vector<CatalogueEntry> entries = {{"b", "/b", false}, {"m", "/m", true}};
  EXPECT_THAT(Listed(entries),
              ElementsAre("a label  02 1 DESCRIPTOR", "b /b - 0 BASE_DIR", "m /m 01 1 ADDED"));
  EXPECT_THAT(Listed(entries, /*resident_only=*/true),
              ElementsAre("a label  02 1 DESCRIPTOR", "m /m 01 1 ADDED"));
}

TEST_F(ControlViewsTest, WhatNoNameLeadsToAnyMoreIsListedByItsContents) {
  Know(1, "", /*is_public=*/false);
  Know(2, "m");
  Put(Ready(1));
  Put(Ready(2));
  snapshot_.names["m"] = Filled(2);
  EXPECT_THAT(Listed({{"m", "/m", true}}), ElementsAre("  01 1 DESCRIPTOR", "m /m 02 1 ADDED"));
}

TEST_F(ControlViewsTest, TwoNamesOfOneModelAreBothListed) {
  Know(1, "n");
  Put(Ready(1));
  snapshot_.names["m"] = Filled(1);
  snapshot_.names["n"] = Filled(1);
  EXPECT_THAT(Listed({{"m", "/m", true}, {"n", "/n", true}}),
              ElementsAre("m /m 01 1 ADDED", "n /n 01 1 ADDED"));
}

TEST_F(ControlViewsTest, ALabelIsNotTheNameThatItLooksLike) {
  Know(1, "m", /*is_public=*/false);
  Put(Ready(1));
  EXPECT_THAT(Listed({{"m", "/m", true}}), ElementsAre("m /m - 0 ADDED", "m  01 1 DESCRIPTOR"));
}

TEST_F(ControlViewsTest, APinnedModelIsPinnedAlsoWhileItIsNotResident) {
  Know(1, "m").is_pinned = true;
  const Digest digest = Filled(1);
  v1::ModelView view;
  FillModel(snapshot_, nullptr, &digest, &view);
  EXPECT_TRUE(view.pinned());
  EXPECT_EQ(view.replicas_size(), 0);
}

// --- Contents ----------------------------------------------------------------------

TEST_F(ControlViewsTest, ContentsHaveTheirTensorsDigestsHeadersDoNot) {
  Know(1, "m");
  v1::InfoResponse brief, full, unseen;
  FillContents(*snapshot_.models.at(Filled(1)).manifest, false, &brief);
  EXPECT_EQ(brief.tensors_size(), 0);
  EXPECT_EQ(brief.metadata().at("format"), "pt");
  FillContents(*snapshot_.models.at(Filled(1)).manifest, true, &full);
  ASSERT_EQ(full.tensors_size(), 1);
  EXPECT_EQ(full.tensors(0).dtype(), "F32");
  EXPECT_THAT(full.tensors(0).shape(), ElementsAre(2, 2));
  EXPECT_EQ(full.tensors(0).digest(), Digest().ToString());

  ModelHeaders headers;
  headers.weight_bytes = 20;
  headers.metadata["k"] = "v";
  headers.tensors["b"] = {.name = "b", .dtype = DType::kF32, .shape = {4}, .size_bytes = 16};
  headers.tensors["a"] = {.name = "a", .dtype = DType::kF32, .shape = {}, .size_bytes = 4};
  FillContents(headers, true, &unseen);
  FillHeaders(headers, unseen.mutable_model());
  ASSERT_EQ(unseen.tensors_size(), 2);
  EXPECT_EQ(unseen.tensors(0).name(), "a");
  EXPECT_TRUE(unseen.tensors(0).digest().empty());
  EXPECT_EQ(unseen.model().weight_bytes(), 20u);
  EXPECT_EQ(unseen.model().tensor_count(), 2u);
}

// --- Leases ------------------------------------------------------------------------

TEST_F(ControlViewsTest, ALeaseWhoseSessionHasEndedHasNoPeer) {
  Know(1, "m");
  Know(2, "");
  Put(Ready(1, 0, 7));
  Put(Ready(2, 1, 8));
  const auto lease = [](store::LeaseId id, store::SessionId session, const auto& replica) {
    return store::LeaseView{.lease = id,
                            .session = session,
                            .uid = 1000,
                            .replica = replica.replica,
                            .since = Time(seconds(980)),
                            .generation = replica.generation};
  };
  snapshot_.leases = {lease(3, 30, Ready(2, 1, 8)), lease(2, 20, Ready(1, 0, 7))};
  snapshot_.Sort();
  snapshot_.sessions[20] = {.id = 20, .uid = 1000, .gid = 100, .pid = 42};
  v1::ListLeasesResponse all;
  FillLeases(snapshot_, {{42, "python3"}}, std::nullopt, std::nullopt, all.mutable_leases());
  ASSERT_EQ(all.leases_size(), 2);
  EXPECT_EQ(all.leases(0).lease_id(), 2u);
  EXPECT_EQ(all.leases(0).pid(), 42);
  EXPECT_EQ(all.leases(0).gid(), 100u);
  EXPECT_EQ(all.leases(0).command(), "python3");
  EXPECT_EQ(all.leases(0).bytes(), 4096u);
  EXPECT_EQ(all.leases(0).since().seconds(), 1'699'999'980);
  EXPECT_EQ(all.leases(1).pid(), 0);
  EXPECT_EQ(all.leases(1).model(), "@" + Filled(2).ToString());
  EXPECT_EQ(all.leases(1).tier(), "gpu:GPU-0");
  v1::ListLeasesResponse some;
  FillLeases(snapshot_, {}, Filled(1), std::nullopt, some.mutable_leases());
  FillLeases(snapshot_, {}, Filled(1), 1, some.mutable_leases());
  ASSERT_EQ(some.leases_size(), 1);
  EXPECT_TRUE(some.leases(0).command().empty());
}

TEST_F(ControlViewsTest, WhoKeepsAReplicaIsNamedUpToFour) {
  store::EvictResult::Kept kept;
  kept.replica = Ready(1).replica;
  kept.name = "m";
  kept.reason = "pinned";
  EXPECT_EQ(DescribeKept(kept, {"host"}, {}), "m in tier host: pinned");
  kept.reason = "70 leases";
  kept.leases = 70;
  for (uint64_t i = 1; i <= 64; ++i)
    kept.holders.push_back({.lease = i, .session = i, .uid = static_cast<uint32_t>(1000 + i)});
  EXPECT_EQ(DescribeKept(kept, {"host"}, {{1, 11}, {3, 33}}),
            "m in tier host: 70 leases (held by pid 11 uid 1001, pid 0 uid 1002, pid 33 uid 1003, "
            "pid 0 uid 1004, and 66 more leases)");
}

// --- Events ------------------------------------------------------------------------

TEST_F(ControlViewsTest, AnEventOfTheCatalogueHasNoTier) {
  v1::Event event;
  FillEvent(At(), snapshot_.tier_names,
            {.at = Time(seconds(1000)), .kind = v1::EVENT_KIND_ADDED, .model = "m", .detail = "/m"},
            &event);
  EXPECT_EQ(event.model(), "m");
  EXPECT_TRUE(event.digest().empty());
  EXPECT_TRUE(event.tier().empty());
  EXPECT_EQ(event.granularity(), v1::SHARING_GRANULARITY_UNSPECIFIED);
  EXPECT_EQ(event.time().seconds(), 1'700'000'000);
  FillEvent(At(), snapshot_.tier_names,
            {.at = Time(seconds(1001)),
             .kind = v1::EVENT_KIND_READY,
             .model = "m",
             .digest = Filled(1),
             .replica = Ready(1, 1).replica,
             .bytes = 9},
            &event);
  EXPECT_EQ(event.tier(), "gpu:GPU-0");
  EXPECT_EQ(event.digest(), Filled(1).ToString());
  EXPECT_EQ(event.bytes(), 9u);
}

// --- The daemon --------------------------------------------------------------------

TEST_F(ControlViewsTest, TheStatusCountsModelsOnceAndReplicasByTier) {
  Know(1, "m");
  Know(2, "n");
  Put(Ready(1, 0, 1));
  Put(Ready(1, 1, 2));
  Put(Ready(2, 1, 3));
  snapshot_.tiers = {
      {.view = {.name = "host", .budget_bytes = 10, .revoked_bytes = 3}, .health = {}},
      {.view = {.name = "gpu:GPU-0"}, .health = UnavailableError("lost")}};
  snapshot_.session_count = 4;
  snapshot_.lease_count = 5;
  snapshot_.counters.opens = 6;
  snapshot_.rho.open_cost = std::chrono::microseconds(12);
  v1::GetStatusResponse status;
  FillStatus(snapshot_, &status);
  EXPECT_EQ(status.models(), 2u);
  ASSERT_EQ(status.tiers_size(), 2);
  EXPECT_EQ(status.tiers(0).replicas(), 1u);
  EXPECT_EQ(status.tiers(0).client_pinned_bytes(), 3u);
  EXPECT_TRUE(status.tiers(0).health().empty());
  EXPECT_EQ(status.tiers(1).replicas(), 2u);
  EXPECT_EQ(status.tiers(1).health(), "lost");
  EXPECT_EQ(status.sessions(), 4u);
  EXPECT_EQ(status.leases(), 5u);
  EXPECT_EQ(status.opens(), 6u);
  EXPECT_EQ(status.rho().open_cost().nanos(), 12'000);
}

TEST(ControlDevicesTest, DevicesThatAreServedAreCountedByTheirName) {
  DeviceFacts served, lost;
  served.uuid = "GPU-0";
  served.name = "NVIDIA H200";
  served.tier = "gpu:GPU-0";
  served.links = {{.from = "host", .bytes_per_second = 55e9, .direct = true}};
  lost.uuid = "GPU-2";
  lost.name = "NVIDIA H200";
  lost.state = UnavailableError("it fell off the bus");
  v1::GetStatusResponse status;
  FillDevices({served, served, lost}, "", &status);
  EXPECT_EQ(status.gpu(), "2 x NVIDIA H200");
  ASSERT_EQ(status.devices_size(), 3);
  EXPECT_EQ(status.devices(0).state(), "ready");
  EXPECT_EQ(status.devices(0).links(0).from(), "host");
  EXPECT_FALSE(status.devices(2).ready());
  EXPECT_EQ(status.devices(2).state(), "it fell off the bus");
}

TEST(ControlDevicesTest, WithoutADeviceTheReasonIsGiven) {
  v1::GetStatusResponse none, nothing;
  FillDevices({}, "libcuda.so.1 was not found", &none);
  EXPECT_EQ(none.gpu(), "none: libcuda.so.1 was not found");
  FillDevices({}, "", &nothing);
  EXPECT_EQ(nothing.gpu(), "none");
}

TEST(ControlConfigTest, EverySettingIsShown) {
  v1::GetConfigResponse response;
  FillConfig({{.key = "k",
               .value = "v",
               .origin = "default",
               .env = "E",
               .help = "h",
               .reloadable = true}},
             &response);
  ASSERT_EQ(response.entries_size(), 1);
  EXPECT_EQ(response.entries(0).key() + response.entries(0).value() + response.entries(0).env(),
            "kvE");
  EXPECT_TRUE(response.entries(0).reloadable());
}

}  // namespace
}  // namespace trims

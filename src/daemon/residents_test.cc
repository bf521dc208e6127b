#include "daemon/residents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/devices.h"
#include "daemon/ledger.h"
#include "daemon/test_keeper.h"
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
using WaitingPtr = std::shared_ptr<const TestTrunk::Waiting>;

class ResidentsTest : public ::testing::Test {
 protected:
  ResidentsTest() { Start({}); }

  void Start(TestTrunk::Options options) {
    trunk_.reset();
    options.link = keeper_.link();
    if (options.devices.empty()) options.devices = {"GPU-a", "GPU-b"};
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
  }
  void StartWithoutCopiesOnTheHost() {
    TestTrunk::Options options;
    options.config.persist_cpu = false;
    Start(std::move(options));
  }
  Registry& registry() { return trunk_->registry(); }
  const store::Store& store() { return trunk_->registry().store(); }
  std::string TierName(store::TierIndex tier) { return registry().tiers().name(tier); }

  OpenResult Open(const std::string& name, store::TierIndex tier = 0,
                  Granularity granularity = Granularity::kModel) {
    OpenRequest request = TestTrunk::Named(name);
    request.tier = tier;
    request.granularity = granularity;
    OpenResult result = trunk_->Open(std::move(request));
    EXPECT_TRUE(result.status.ok()) << result.status.ToString();
    return result;
  }
  void Close(const OpenResult& result) { EXPECT_TRUE(registry().Close(1, result.lease, 0).ok()); }
  void Evict(const OpenResult& result) {
    EXPECT_EQ(registry().Evict(result.replica.model, result.replica.tier, false).result.evicted,
              1u);
  }
  std::string KeyOf(const OpenResult& result, size_t extent = 0) {
    return ExtentLedgerKey(TierName(result.replica.tier), result.lent->extents[extent]->key);
  }
  std::string ReplicaKeyOf(const OpenResult& result) {
    return ReplicaLedgerKey(TierName(result.replica.tier), result.replica.granularity,
                            result.replica.model);
  }
  std::vector<std::string> Ledger() {
    std::vector<std::string> keys;
    for (const auto& [key, entry] : keeper_.Ledger()) keys.push_back(key);
    return keys;
  }
  static std::vector<format::TestTensor> OneTensor(uint64_t seed) {
    return {NoiseTensor("w", 1000, seed)};
  }
  // Two models with a layer in common, whose extent is returned.
  void AddTwoThatShare() {
    trunk_->AddModel("a", {NoiseTensor("own", 5000, 1), NoiseTensor("shared", 9000, 3)});
    trunk_->AddModel("b", {NoiseTensor("own", 5000, 2), NoiseTensor("shared", 9000, 3)});
  }
  static Digest SharedBy(const OpenResult& a, const OpenResult& b) {
    for (const auto& extent : a.lent->extents) {
      for (const auto& other : b.lent->extents) {
        if (extent->key == other->key) return extent->key;
      }
    }
    ADD_FAILURE() << "nothing is shared";
    return {};
  }
  static const std::shared_ptr<const ResidentExtent>& ExtentOf(const OpenResult& result,
                                                               const Digest& key) {
    return *std::find_if(result.lent->extents.begin(), result.lent->extents.end(),
                         [&](const auto& extent) { return extent->key == key; });
  }

  TestKeeper keeper_;
  std::unique_ptr<TestTrunk> trunk_;
};

// --- Where a load takes its bytes from -----------------------------------------------------

TEST_F(ResidentsTest, ADeviceTakesFromTheHostWhatIsThereAndNeedsNoFile) {
  const std::string path = trunk_->AddModel("a");
  const OpenResult host = Open("a");
  std::filesystem::remove(path);
  OpenRequest request = TestTrunk::Named("@" + host.replica.model.ToString());
  request.tier = 1;
  request.is_admin = true;
  request.granularity = Granularity::kModel;
  const OpenResult device = trunk_->Open(std::move(request));
  ASSERT_TRUE(device.status.ok()) << device.status.ToString();
  const FakeTier::Offer offer = trunk_->device(0).last_offer();
  EXPECT_FALSE(offer.has_source);
  ASSERT_EQ(offer.host.size(), 1u);
  EXPECT_EQ(offer.host.begin()->second.lock(), host.lent->extents[0]);
  EXPECT_THAT(offer.peer, IsEmpty());
  // The host is offered nothing.
  EXPECT_THAT(trunk_->host().last_offer().peer, IsEmpty());
  EXPECT_TRUE(trunk_->host().last_offer().has_source);
}

TEST_F(ResidentsTest, ADeviceTakesFromASlowPeerOnlyWhatTheHostHasNot) {
  StartWithoutCopiesOnTheHost();
  trunk_->AddModel("a");
  const OpenResult first = Open("a", 1);
  const OpenResult second = Open("a", 2);
  FakeTier::Offer offer = trunk_->device(1).last_offer();
  EXPECT_FALSE(offer.has_source);
  EXPECT_THAT(offer.host, IsEmpty());
  ASSERT_EQ(offer.peer.size(), 1u);
  EXPECT_EQ(offer.peer.begin()->second.lock(), first.lent->extents[0]);
  // With a copy on the host there is no need for the peer's.
  Close(second);
  Evict(second);
  const OpenResult host = Open("a", 0);
  Open("a", 2);
  offer = trunk_->device(1).last_offer();
  EXPECT_EQ(offer.host.size(), 1u);
  EXPECT_THAT(offer.peer, IsEmpty());
}

TEST_F(ResidentsTest, NothingIsTakenFromAPeerThatHasFailed) {
  StartWithoutCopiesOnTheHost();
  trunk_->AddModel("a");
  Open("a", 1);
  trunk_->device(0).SetHealth(UnavailableError("gone"));
  Open("a", 2);
  const FakeTier::Offer offer = trunk_->device(1).last_offer();
  EXPECT_THAT(offer.peer, IsEmpty());
  EXPECT_TRUE(offer.has_source);
}

#ifdef FAKE_CUDA_LIBRARY
TEST_F(ResidentsTest, ADeviceTakesFromAFasterPeerEvenWhatTheHostHas) {
  if (std::getenv("TRIMS_TEST_REAL_GPU") != nullptr)
    GTEST_SKIP() << "which peers are how fast is for the machine to say";
  const TemporaryDirectory machine;
  ASSERT_EQ(::setenv("TRIMS_CUDA_LIBRARY", FAKE_CUDA_LIBRARY, 1), 0);
  ASSERT_EQ(::setenv("FAKE_CUDA_DIR", machine.path().c_str(), 1), 0);
  ASSERT_EQ(::setenv("FAKE_CUDA_DEVICES", "2", 1), 0);
  ASSERT_EQ(::setenv("FAKE_CUDA_MEMORY", "256MiB", 1), 0);
  DaemonConfig config;
  config.pinned_pool_bytes = 4 * kChunkBytes;
  const std::unique_ptr<Devices> devices = Devices::Open(
      config, std::make_shared<const UniversalHashKey>(UniversalHashKey::FromSeed({})));
  ASSERT_EQ(devices->Facts().size(), 2u);
  const std::string one = devices->Facts()[0].uuid, two = devices->Facts()[1].uuid;
  // To the second the first is faster than the host; to the first the second is slower.
  const nlohmann::json rates = {{one + " host", 20e9},
                                {one + " " + two, 10e9},
                                {two + " host", 10e9},
                                {two + " " + one, 50e9}};
  devices->MeasureLinks(rates.dump());
  TestTrunk::Options options;
  options.devices = {one, two};
  options.driver = devices.get();
  Start(std::move(options));
  trunk_->AddModel("a");
  trunk_->AddModel("b", OneTensor(5));
  Open("a", 0);
  Open("b", 0);
  const OpenResult first = Open("a", 1);
  Open("a", 2);
  FakeTier::Offer offer = trunk_->device(1).last_offer();
  ASSERT_EQ(offer.peer.size(), 1u);
  EXPECT_EQ(offer.peer.begin()->second.lock(), first.lent->extents[0]);
  Open("b", 2);
  Open("b", 1);
  offer = trunk_->device(0).last_offer();
  EXPECT_THAT(offer.peer, IsEmpty());
  EXPECT_EQ(offer.host.size(), 1u);
  trunk_.reset();  // Borrows the devices.
}
#endif

TEST_F(ResidentsTest, DevicesAreToldWhatTheyCanCopyFromTheHost) {
  trunk_->AddModel("a");
  EXPECT_THAT(trunk_->device(1).host_extents(), IsEmpty());
  const OpenResult opened = Open("a");
  EXPECT_THAT(trunk_->device(0).host_extents(), ElementsAre(opened.lent->extents[0]->key));
  EXPECT_THAT(trunk_->device(1).host_extents(), ElementsAre(opened.lent->extents[0]->key));
  Close(opened);
  Evict(opened);
  EXPECT_THAT(trunk_->device(1).host_extents(), IsEmpty());
}

TEST_F(ResidentsTest, APrivateModelThatIsGoneIsToBePassedAgain) {
  const std::string path = trunk_->WriteModel("mine", OneTensor(1));
  const OpenResult mine = trunk_->Open(TestTrunk::Passed(path));
  ASSERT_TRUE(mine.status.ok());
  Close(mine);
  Evict(mine);
  const OpenResult refused = trunk_->Open(TestTrunk::Named("@" + mine.replica.model.ToString()));
  EXPECT_EQ(refused.status.code(), StatusCode::kFailedPrecondition) << refused.status.ToString();
  EXPECT_THAT(refused.status.message(), HasSubstr("no longer open"));
  EXPECT_EQ(trunk_->host().loads_started(), 1);
  EXPECT_TRUE(trunk_->Open(TestTrunk::Passed(path)).status.ok());
}

// --- Memory that is not there --------------------------------------------------------------

TEST_F(ResidentsTest, ALoadThatFindsNoMemoryOnADeviceTriesAgain) {
  StartWithoutCopiesOnTheHost();
  trunk_->AddModel("a");
  trunk_->device(0).SetMachineBytes(0);
  trunk_->device(0).SetFreeBytes(0);
  OpenRequest request = TestTrunk::Named("a");
  request.tier = 1;
  const WaitingPtr waiting = trunk_->Ask(std::move(request));
  trunk_->RunUntil([&] { return trunk_->device(0).loads_failed() >= 2; });
  EXPECT_FALSE(waiting->is_answered());
  trunk_->device(0).SetMachineBytes(std::nullopt);
  trunk_->Answer(waiting);
  EXPECT_TRUE(waiting->result().status.ok()) << waiting->result().status.ToString();
}

TEST_F(ResidentsTest, ALoadThatFindsNoMemoryEvictsAndIsStartedAgain) {
  trunk_->AddModel("a");
  trunk_->AddModel("b");
  const OpenResult a = Open("a");
  Close(a);
  trunk_->host().SetMachineBytes(0);
  trunk_->host().SetFreeBytes(0);
  const WaitingPtr b = trunk_->Ask(TestTrunk::Named("b"));
  trunk_->RunUntil([&] { return trunk_->host().loads_started() == 2; });
  // The loop does not turn meanwhile: it learns of the failure when there is memory.
  while (trunk_->host().loads_failed() == 0) std::this_thread::yield();
  trunk_->host().SetMachineBytes(std::nullopt);
  trunk_->Answer(b);
  ASSERT_TRUE(b->result().status.ok()) << b->result().status.ToString();
  EXPECT_EQ(trunk_->host().loads_started(), 3);
  EXPECT_FALSE(store().Find(a.replica).has_value());
}

TEST_F(ResidentsTest, ALoadForWhichThereIsNoMemoryAtAllSaysWhatIsFree) {
  trunk_->AddModel("a");
  trunk_->host().SetMachineBytes(0);
  trunk_->host().SetFreeBytes(4096);
  const OpenResult refused = trunk_->Open(TestTrunk::Named("a"));
  EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.free_bytes, 4096u);
  EXPECT_GE(refused.need_bytes, 8u * kKiB);
  // What ran out is something else when there is memory, or when nobody knows.
  for (const std::optional<uint64_t> free :
       {std::optional<uint64_t>(1 << 30), std::optional<uint64_t>()}) {
    trunk_->host().SetFreeBytes(free);
    const OpenResult other = trunk_->Open(TestTrunk::Named("a"));
    EXPECT_THAT(other.status.message(), HasSubstr("the fake machine has 0 bytes"));
  }
}

// What is on its way back to the driver counts as there, so nobody loads before it is.
TEST_F(ResidentsTest, MemoryOfADeviceIsReleasedBesideTheLoopAndLoadsWaitForIt) {
  StartWithoutCopiesOnTheHost();
  trunk_->AddModel("a");
  trunk_->AddModel("b");
  FakeTier& device = trunk_->device(0);
  std::promise<void> opened;
  std::atomic<bool> is_releasing = false;
  std::thread::id releaser;
  int loads_meanwhile = 0;
  device.SetAllocate([&] {
    return std::shared_ptr<const void>(&device, [&](const void*) {
      releaser = std::this_thread::get_id();
      is_releasing = true;
      opened.get_future().wait();
      loads_meanwhile = device.loads_started();
    });
  });
  OpenResult a = Open("a", 1);
  Close(a);
  a.lent.reset();
  device.SetAllocate(nullptr);
  registry().Evict(a.replica.model, 1, true);
  trunk_->RunUntil([&] { return is_releasing.load(); });
  OpenRequest request = TestTrunk::Named("b");
  request.tier = 1;
  const WaitingPtr b = trunk_->Ask(std::move(request));
  trunk_->RunUntil([&] { return registry().loads_running() == 1; });
  for (int i = 0; i < 100; ++i) trunk_->reactor().RunOnce(std::chrono::milliseconds(1));
  opened.set_value();
  trunk_->Answer(b);
  EXPECT_TRUE(b->result().status.ok());
  EXPECT_EQ(loads_meanwhile, 1);
  EXPECT_NE(releaser, std::this_thread::get_id());
}

// --- What is there, and the ledger -----------------------------------------------------------

TEST_F(ResidentsTest, AFailedLoadLeavesNothingBehind) {
  trunk_->AddModel("a");
  const size_t descriptors = OpenFdCount();
  trunk_->host().FailLoads(UnavailableError("no luck"));
  EXPECT_EQ(trunk_->Open(TestTrunk::Named("a")).status, UnavailableError("no luck"));
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_THAT(Ledger(), IsEmpty());
  registry().CheckInvariants();
  registry().ForgetName("a");
  EXPECT_TRUE(trunk_->RunUntil([&] { return OpenFdCount() == descriptors; }));
}

TEST_F(ResidentsTest, TheKeeperHasTheMemoryBeforeTheClientHasTheLease) {
  trunk_->AddModel("a");
  std::map<std::string, TestKeeper::Entry> at_the_answer;
  std::optional<OpenResult> result;
  OpenRequest request = TestTrunk::Named("a");
  request.granularity = Granularity::kLayer;
  registry().Open(
      registry().NewOpenId(), std::move(request),
      [&](OpenResult answer) {
        at_the_answer = keeper_.Ledger();
        result = std::move(answer);
      },
      nullptr);
  trunk_->RunUntil([&] { return result.has_value(); });
  ASSERT_TRUE(result->status.ok());
  ASSERT_EQ(result->lent->extents.size(), 2u);
  for (const std::string& key : {KeyOf(*result, 0), KeyOf(*result, 1), ReplicaKeyOf(*result)}) {
    ASSERT_TRUE(at_the_answer.contains(key)) << key;
    EXPECT_TRUE(at_the_answer.at(key).has_descriptor) << key;
  }
  const Result<ReplicaEntry> entry =
      ParseReplicaEntry(at_the_answer.at(ReplicaKeyOf(*result)).body);
  ASSERT_TRUE(entry.ok());
  EXPECT_EQ(entry->generation, result->generation);
  EXPECT_EQ(entry->slab_bytes, kDefaultSlabBytes);
  ASSERT_EQ(entry->names.size(), 1u);
  EXPECT_EQ(entry->names[0].name, "a");
}

TEST_F(ResidentsTest, AnExtentOfTwoReplicasIsThereOnceAndGoesWithTheLast) {
  AddTwoThatShare();
  const OpenResult a = Open("a", 0, Granularity::kLayer);
  const OpenResult b = Open("b", 0, Granularity::kLayer);
  const Digest shared = SharedBy(a, b);
  EXPECT_EQ(ExtentOf(a, shared), ExtentOf(b, shared));
  EXPECT_EQ(trunk_->host().loads_of(shared), 1);
  const std::string key = ExtentLedgerKey("host", shared);
  EXPECT_EQ(Ledger().size(), 3u + 2u);
  Close(a);
  Evict(a);
  EXPECT_EQ(Ledger().size(), 2u + 1u);
  EXPECT_THAT(Ledger(), ::testing::Contains(key));
  registry().CheckInvariants();
  Close(b);
  Evict(b);
  EXPECT_THAT(Ledger(), IsEmpty());
}

TEST_F(ResidentsTest, WrongBytesInASharedExtentAreLoadedAgainForBoth) {
  AddTwoThatShare();
  const OpenResult a = Open("a", 0, Granularity::kLayer);
  const OpenResult b = Open("b", 0, Granularity::kLayer);
  const Digest shared = SharedBy(a, b);
  trunk_->host().Damage(shared);
  std::optional<Status> checked;
  registry().Verify(a.replica, std::make_shared<LoadControl>(),
                    [&](Status status) { checked = std::move(status); });
  trunk_->RunUntil([&] { return checked.has_value(); });
  EXPECT_EQ(checked->code(), StatusCode::kDataLoss);
  EXPECT_THAT(Ledger(), ::testing::Not(::testing::Contains(ExtentLedgerKey("host", shared))));
  // Nobody is lent the bad copy again, and who holds it keeps it.
  const OpenResult new_a = Open("a", 0, Granularity::kLayer);
  const OpenResult new_b = Open("b", 0, Granularity::kLayer);
  EXPECT_EQ(trunk_->host().loads_of(shared), 2);
  EXPECT_EQ(ExtentOf(new_a, shared), ExtentOf(new_b, shared));
  EXPECT_NE(ExtentOf(new_a, shared), ExtentOf(a, shared));
  // The good extents are not loaded again.
  for (const auto& extent : a.lent->extents) {
    EXPECT_EQ(ExtentOf(new_a, extent->key) == extent, extent->key != shared);
  }
  Close(a);
  Close(b);
  registry().CheckInvariants();
  EXPECT_EQ(Ledger().size(), 3u + 2u);
}

TEST_F(ResidentsTest, ANewIncarnationKeepsItsEntryWhenTheOldOneHasDrained) {
  trunk_->AddModel("a");
  const OpenResult old = Open("a");
  ASSERT_EQ(registry().Evict(old.replica.model, 0, /*force=*/true).result.draining, 1u);
  const OpenResult fresh = Open("a");
  EXPECT_NE(fresh.generation, old.generation);
  Close(old);
  const auto ledger = keeper_.Ledger();
  ASSERT_TRUE(ledger.contains(ReplicaKeyOf(fresh)));
  EXPECT_EQ(ParseReplicaEntry(ledger.at(ReplicaKeyOf(fresh)).body)->generation, fresh.generation);
  EXPECT_TRUE(ledger.contains(KeyOf(fresh)));
  registry().CheckInvariants();
  EXPECT_EQ(Open("a").generation, fresh.generation);
}

TEST_F(ResidentsTest, AReplicaThatNeededNoLoadIsInTheLedgerToo) {
  trunk_->AddModel("a", OneTensor(1));
  const OpenResult model = Open("a", 0, Granularity::kModel);
  const OpenResult layer = Open("a", 0, Granularity::kLayer);
  EXPECT_EQ(trunk_->host().loads_started(), 1);
  EXPECT_THAT(Ledger(),
              UnorderedElementsAre(KeyOf(model), ReplicaKeyOf(model), ReplicaKeyOf(layer)));
  EXPECT_TRUE(keeper_.Ledger().at(ReplicaKeyOf(layer)).has_descriptor);
}

// An operator's pin, or another uid's proof.
TEST_F(ResidentsTest, WhoMayHaveItIsInTheLedgerBeforeHeHasIt) {
  const std::string path = trunk_->WriteModel("mine", OneTensor(1));
  const OpenResult mine = trunk_->Open(TestTrunk::Passed(path));
  OpenRequest other = TestTrunk::Passed(path, 2);
  other.uid = TestTrunk::kUid + 1;
  ASSERT_TRUE(trunk_->Open(std::move(other)).status.ok());
  const auto entry = ParseReplicaEntry(keeper_.Ledger().at(ReplicaKeyOf(mine)).body);
  ASSERT_TRUE(entry.ok());
  EXPECT_THAT(entry->proved_uids, ElementsAre(TestTrunk::kUid, TestTrunk::kUid + 1));
  EXPECT_THAT(entry->names, IsEmpty());
}

// --- What a lease hands out ------------------------------------------------------------------

TEST_F(ResidentsTest, LeasesOnOneReplicaShareWhatTheyHandOut) {
  trunk_->AddModel("a");
  const OpenResult one = Open("a", 1, Granularity::kLayer);
  const OpenResult two = Open("a", 1, Granularity::kLayer);
  EXPECT_EQ(one.lent, two.lent);
  const LentReplica& lent = *one.lent;
  EXPECT_EQ(lent.key, one.replica);
  EXPECT_EQ(lent.device_uuid, "GPU-a");
  EXPECT_NE(lent.index, nullptr);
  const Layout layout = MakeLayout(*lent.manifest, Granularity::kLayer).value();
  ASSERT_EQ(lent.extents.size(), layout.extents.size());
  uint64_t total = 0;
  for (size_t i = 0; i < layout.extents.size(); ++i) {
    EXPECT_EQ(lent.extents[i]->key, layout.extents[i].key) << "not in the order of the layout";
    EXPECT_EQ(lent.extent_bytes[i], lent.extents[i]->map_bytes);
    total += lent.extent_bytes[i];
  }
  EXPECT_EQ(lent.total_bytes, total);
  EXPECT_EQ(Open("a", 0).lent->device_uuid, "");
}

TEST_F(ResidentsTest, LaterLeasesAreToldTheNewestNamesDirectory) {
  trunk_->AddModel("a", OneTensor(1));
  const std::string other =
      trunk_->root().Write("other/model.safetensors", format::WriteSafetensors(OneTensor(1)));
  ASSERT_TRUE(registry().catalogue().Add("b", trunk_->root() / "other", true).ok());
  const OpenResult a = Open("a");
  EXPECT_EQ(a.lent->directory, trunk_->root() / "models");
  const OpenResult b = Open("b");
  EXPECT_EQ(b.replica, a.replica);
  EXPECT_EQ(b.lent->directory, trunk_->root() / "other");
  EXPECT_EQ(b.lent->extents, a.lent->extents);
  EXPECT_EQ(Open("a").lent->directory, trunk_->root() / "other");
  const auto names = ParseReplicaEntry(keeper_.Ledger().at(ReplicaKeyOf(a)).body)->names;
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(names[1].name, "b");
  EXPECT_EQ(names[1].directory, trunk_->root() / "other");
  registry().ForgetName("b");
  EXPECT_EQ(Open("a").lent->directory, trunk_->root() / "models");
  EXPECT_EQ(ParseReplicaEntry(keeper_.Ledger().at(ReplicaKeyOf(a)).body)->names.size(), 1u);
}

TEST_F(ResidentsTest, AWorkerThatEndsWaitsForNoLoad) {
  trunk_->AddModel("a");
  trunk_->host().Hold();
  const WaitingPtr waiting = trunk_->Ask(TestTrunk::Named("a"));
  trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; });
  trunk_.reset();
  EXPECT_THAT(waiting->answers, IsEmpty());
}

}  // namespace
}  // namespace trims

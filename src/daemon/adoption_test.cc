#include "daemon/adoption.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/progress_throttle.h"
#include "daemon/sealed_bytes.h"
#include "daemon/test_keeper.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using store::Granularity;
using store::ReplicaKey;
using store::ReplicaState;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using WaitingPtr = std::shared_ptr<const TestTrunk::Waiting>;

// Workers of one keeper that follow each other, over the same files.
class AdoptionTest : public ::testing::Test {
 protected:
  AdoptionTest() { Start(); }
  ~AdoptionTest() override {
    if (trunk_ == nullptr) return;
    trunk_->Settle();
    CheckLedger();
  }

  TestTrunk::Options DefaultOptions() {
    TestTrunk::Options options;
    options.root = &root_;
    options.devices = {"GPU-a"};
    options.link = keeper_.link();
    options.id_base = id_base_ += 1'000'000;
    options.entries = keeper_.EntriesForNextWorker();
    options.config.persist_cpu = false;  // No copies that nobody asked for.
    return options;
  }
  void Start() { trunk_ = std::make_unique<TestTrunk>(DefaultOptions()); }
  void End() { trunk_.reset(); }
  // The next worker, with what `change` makes of its options.
  void Restart(const std::function<void(TestTrunk::Options&)>& change = nullptr) {
    End();
    TestTrunk::Options options = DefaultOptions();
    if (change) change(options);
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
  }
  Registry& registry() { return trunk_->registry(); }
  const store::Store& store() { return trunk_->registry().store(); }

  // So that it stays.
  OpenResult Open(const std::string& name, Granularity granularity = Granularity::kLayer,
                  store::TierIndex tier = 0) {
    OpenRequest request = TestTrunk::Named(name);
    request.granularity = granularity;
    request.tier = tier;
    OpenResult result = trunk_->Open(std::move(request));
    EXPECT_TRUE(result.status.ok()) << result.status.ToString();
    return result;
  }
  void AddTwoThatShare() {
    trunk_->AddModel("a", {NoiseTensor("own", 5000, 1), NoiseTensor("shared", 9000, 3)});
    trunk_->AddModel("b", {NoiseTensor("own", 5000, 2), NoiseTensor("shared", 9000, 3)});
  }
  static std::string KeyOf(const OpenResult& result) {
    return ReplicaLedgerKey(result.replica.tier == 0 ? "host" : "gpu:GPU-a",
                            result.replica.granularity, result.replica.model);
  }
  static std::string ExtentKeyOf(const OpenResult& result, size_t extent = 0) {
    return ExtentLedgerKey(result.replica.tier == 0 ? "host" : "gpu:GPU-a",
                           result.lent->extents[extent]->key);
  }
  static LinkMessage& EntryOf(TestTrunk::Options& options, const std::string& key) {
    const auto it = std::find_if(options.entries.begin(), options.entries.end(),
                                 [&](const LinkMessage& entry) { return entry.key == key; });
    if (it != options.entries.end()) return *it;
    ADD_FAILURE() << "no entry " << key;
    return options.entries.emplace_back();
  }
  static UniqueFd Sealed(const std::string& bytes) {
    return UniqueFd(::fcntl(SealBytes("test", bytes).value()->PeekFd(), F_DUPFD_CLOEXEC, 0));
  }
  bool IsReady(const ReplicaKey& replica) {
    const auto view = store().Find(replica);
    return view && view->state == ReplicaState::kReady;
  }
  // Says whether what the worker has made of its ledger is `is_adopted`, and it serves the model in
  // any case.
  void ExpectServed(const OpenResult& before, const std::string& name, bool is_adopted) {
    trunk_->Settle();
    EXPECT_EQ(IsReady(before.replica), is_adopted);
    const int loads = trunk_->host().loads_started() + trunk_->device(0).loads_started();
    EXPECT_EQ(loads, 0);
    const OpenResult again = Open(name, before.replica.granularity, before.replica.tier);
    EXPECT_EQ(again.replica, before.replica);
    EXPECT_EQ(trunk_->host().loads_started() + trunk_->device(0).loads_started(),
              is_adopted ? 0 : 1);
    LoadControl control;
    const Layout layout = MakeLayout(*again.lent->manifest, again.replica.granularity).value();
    for (size_t i = 0; i < layout.extents.size(); ++i) {
      EXPECT_TRUE(
          FakeTier()
              .Verify(*again.lent->extents[i], layout.extents[i], *again.lent->manifest, control)
              .ok());
    }
  }
  // When nothing is going on, the keeper holds what is resident, what is pinned and what was
  // measured, and nothing else.
  void CheckLedger() {
    std::set<std::string> expected;
    for (const store::ReplicaView& view : store().Replicas()) {
      const std::string& tier = registry().tiers().name(view.replica.tier);
      expected.insert(ReplicaLedgerKey(tier, view.replica.granularity, view.replica.model));
      for (const store::Extent& extent : view.extents)
        expected.insert(ExtentLedgerKey(tier, extent.key));
    }
    std::set<std::string> kept;
    for (const auto& [key, entry] : keeper_.Ledger()) {
      if (key.starts_with("extent/") || key.starts_with("replica/")) kept.insert(key);
    }
    EXPECT_EQ(kept, expected);
  }

  const TemporaryDirectory root_;
  TestKeeper keeper_;
  uint64_t id_base_ = 0;
  std::unique_ptr<TestTrunk> trunk_;
};

// --- What is whole ---------------------------------------------------------------------------

TEST_F(AdoptionTest, WhatTheLastWorkerHadIsServedWithoutALoad) {
  trunk_->AddModel("a");
  const OpenResult host = Open("a");
  const OpenResult device = Open("a", Granularity::kModel, 1);
  Restart();
  ExpectServed(host, "a", true);
  ExpectServed(device, "a", true);
  EXPECT_EQ(Open("a").generation, host.generation);
  // Every byte was looked at before.
  EXPECT_EQ(trunk_->host().verifications(), static_cast<int>(host.lent->extents.size()));
  EXPECT_EQ(trunk_->device(0).verifications(), 1);
  // It can be left to a third.
  Restart();
  ExpectServed(host, "a", true);
}

TEST_F(AdoptionTest, WhoMayOpenItAndWhatItIsCalledOutlivesTheWorker) {
  const std::string path = trunk_->WriteModel("mine", TestTrunk::SmallModel(9));
  OpenRequest passed = TestTrunk::Passed(path);
  passed.label = "somebody's";
  const OpenResult mine = trunk_->Open(std::move(passed));
  ASSERT_TRUE(mine.status.ok());
  trunk_->AddModel("a");
  const OpenResult named = Open("a");
  Restart();
  trunk_->Settle();
  EXPECT_EQ(registry().NameOf(mine.replica.model), "somebody's");
  EXPECT_EQ(registry().NameOf(named.replica.model), "a");
  EXPECT_EQ(registry().DigestOfName("a"), named.replica.model);
  const std::string digest = "@" + mine.replica.model.ToString();
  EXPECT_TRUE(trunk_->Open(TestTrunk::Named(digest)).status.ok());
  OpenRequest other = TestTrunk::Named(digest, 2);
  other.uid = TestTrunk::kUid + 1;
  EXPECT_EQ(trunk_->Open(std::move(other)).status.code(), StatusCode::kNotFound);
  other = TestTrunk::Named("@" + named.replica.model.ToString(), 2);
  other.uid = TestTrunk::kUid + 1;
  EXPECT_TRUE(trunk_->Open(std::move(other)).status.ok());
}

TEST_F(AdoptionTest, PinsAndMeasurementsOutliveTheWorker) {
  trunk_->AddModel("a");
  const OpenResult host = Open("a");
  registry().Pin(host.replica.model, 0, true);
  registry().Pin(Digest(), 1, true);
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, kLinksLedgerKey, "the links").ok());
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, kHashKeyLedgerKey, "a secret").ok());
  RhoConstants rho;
  rho.read_bytes_per_second = 123;
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, kRhoLedgerKey, EncodeRho(rho)).ok());
  Restart();
  trunk_->Settle();
  EXPECT_TRUE(registry().IsPinned(host.replica.model, 0));
  EXPECT_FALSE(registry().IsPinned(host.replica.model, 1));
  EXPECT_TRUE(registry().IsPinned(Digest(), 1));
  EXPECT_TRUE(store().Find(host.replica)->pinned);
  EXPECT_EQ(registry().rho().read_bytes_per_second, 123);
  EXPECT_EQ(keeper_.Ledger().at(kLinksLedgerKey).body, "the links");
  EXPECT_EQ(keeper_.Ledger().at(kHashKeyLedgerKey).body, "a secret");
  EXPECT_TRUE(keeper_.Ledger().contains(PinLedgerKey("host", host.replica.model)));
}

TEST_F(AdoptionTest, NoDescriptorIsLeftWhateverBecomesOfTheEntries) {
  AddTwoThatShare();
  Open("a");
  const OpenResult b = Open("b");
  End();
  const size_t descriptors = OpenFdCount();
  Restart([&](TestTrunk::Options& options) {
    EntryOf(options, KeyOf(b)).body = "{}";
    LinkMessage& odd = options.entries.emplace_back();
    odd.key = "future/x";
    odd.fd = Sealed("x");
  });
  trunk_->Settle();
  CheckLedger();
  End();
  // The keeper has dropped some of its own, too.
  EXPECT_LE(OpenFdCount(), descriptors);
  EXPECT_EQ(OpenFdCount() + 2, descriptors);  // b's manifest and its own extent.
}

// --- What is not --------------------------------------------------------------------------

TEST_F(AdoptionTest, AReplicaOfWhichAnExtentIsMissingIsDroppedWithAllOthers) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([&](TestTrunk::Options& options) {
    std::erase_if(options.entries,
                  [&](const LinkMessage& entry) { return entry.key == ExtentKeyOf(before, 1); });
    EXPECT_TRUE(SendLink(keeper_.link(), LinkType::kDrop, ExtentKeyOf(before, 1), "").ok());
  });
  CheckLedger();  // At once: nothing is left to wait for.
  ExpectServed(before, "a", false);
}

TEST_F(AdoptionTest, ExtentsThatAreNoMemoryOfThisSizeAreRefused) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  const uint64_t size = before.lent->extents[0]->map_bytes;
  const std::map<std::string, std::function<UniqueFd()>> kinds = {
      {"none", [] { return UniqueFd(); }},
      {"shorter", [&] { return Sealed(std::string(size - kHostPageBytes, 'x')); }},
      {"longer", [&] { return Sealed(std::string(size + kHostPageBytes, 'x')); }},
      {"not sealed",
       [&] {
         UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
         EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
         return fd;
       }},
      {"no memory", [] { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }},
  };
  for (const auto& [kind, make] : kinds) {
    Restart(
        [&](TestTrunk::Options& options) { EntryOf(options, ExtentKeyOf(before)).fd = make(); });
    SCOPED_TRACE(kind);
    CheckLedger();
    ExpectServed(before, "a", false);
  }
}

TEST_F(AdoptionTest, AReplicaIsDroppedWhoseManifestIsNotItsOwn) {
  trunk_->AddModel("a");
  trunk_->AddModel("b");
  const OpenResult before = Open("a");
  const OpenResult other = Open("b");
  const std::string manifest = SerializeManifest(*before.lent->manifest);
  const std::map<std::string, std::function<void(LinkMessage&)>> damages = {
      {"another model's",
       [&](LinkMessage& entry) {
         const std::string bytes = SerializeManifest(*other.lent->manifest);
         entry.fd = Sealed(bytes);
         ReplicaEntry changed = ParseReplicaEntry(entry.body).value();
         changed.manifest_bytes = bytes.size();
         entry.body = EncodeReplicaEntry(changed);
       }},
      {"damaged",
       [&](LinkMessage& entry) {
         std::string bytes = manifest;
         bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
         entry.fd = Sealed(bytes);
       }},
      {"cut", [&](LinkMessage& entry) { entry.fd = Sealed(manifest.substr(0, 100)); }},
      {"none", [](LinkMessage& entry) { entry.fd = UniqueFd(); }},
      {"not sealed",
       [&](LinkMessage& entry) {
         entry.fd = UniqueFd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
         EXPECT_EQ(::write(entry.fd.get(), manifest.data(), manifest.size()),
                   static_cast<ssize_t>(manifest.size()));
       }},
      {"of no bytes",
       [](LinkMessage& entry) {
         ReplicaEntry changed = ParseReplicaEntry(entry.body).value();
         changed.manifest_bytes = 0;
         entry.body = EncodeReplicaEntry(changed);
       }},
      {"without an entry", [](LinkMessage& entry) { entry.body = "{}"; }},
  };
  for (const auto& [damage, apply] : damages) {
    SCOPED_TRACE(damage);
    Restart([&](TestTrunk::Options& options) { apply(EntryOf(options, KeyOf(before))); });
    ExpectServed(before, "a", false);
    CheckLedger();
  }
}

// Though all that the other one needs is there.
TEST_F(AdoptionTest, TheManifestOfAnotherModelMakesNeitherResident) {
  trunk_->AddModel("a");
  trunk_->AddModel("b");
  const OpenResult a = Open("a"), b = Open("b");
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kDrop, KeyOf(b), "").ok());
  Restart([&](TestTrunk::Options& options) {
    const std::string bytes = SerializeManifest(*b.lent->manifest);
    LinkMessage& entry = EntryOf(options, KeyOf(a));
    entry.fd = Sealed(bytes);
    ReplicaEntry changed = ParseReplicaEntry(entry.body).value();
    changed.manifest_bytes = bytes.size();
    entry.body = EncodeReplicaEntry(changed);
  });
  trunk_->Settle();
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_THAT(keeper_.Ledger(), IsEmpty());
}

TEST_F(AdoptionTest, LayoutsOfAnotherSlabSizeAreNotAdopted) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a", Granularity::kSlab);
  Restart([](TestTrunk::Options& options) { options.config.slab_bytes = 4 * kMiB; });
  EXPECT_THAT(store().Replicas(), IsEmpty());
  CheckLedger();
}

TEST_F(AdoptionTest, WhatWasInATierThatIsGoneIsDropped) {
  trunk_->AddModel("a");
  const OpenResult host = Open("a");
  const OpenResult device = Open("a", Granularity::kLayer, 1);
  registry().Pin(device.replica.model, 1, true);
  Restart([](TestTrunk::Options& options) { options.devices.clear(); });
  trunk_->Settle();
  EXPECT_TRUE(IsReady(host.replica));
  for (const auto& [key, entry] : keeper_.Ledger()) EXPECT_THAT(key, Not(HasSubstr("gpu:"))) << key;
}

TEST_F(AdoptionTest, WhatIsNotUnderstoodIsDroppedAndTold) {
  for (const char* key : {"future/x", "replica/host/9/x", "extent/host/x"})
    ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, key, "?").ok());
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, kRhoLedgerKey, "?").ok());
  ASSERT_TRUE(SendLink(keeper_.link(), LinkType::kPut, "device/future", "?").ok());
  InitLog({});
  ::testing::internal::CaptureStderr();
  Restart();
  const std::string log = ::testing::internal::GetCapturedStderr();
  InitLog({});
  EXPECT_THAT(log, HasSubstr("future/x"));
  const auto ledger = keeper_.Ledger();
  ASSERT_EQ(ledger.size(), 1u);
  EXPECT_TRUE(ledger.contains("device/future")) << "a newer worker's own, to go back to";
}

TEST_F(AdoptionTest, ExtentsThatNobodyNeedsAreDropped) {
  const std::string bytes(4096, 'x');
  const UniqueFd fd = Sealed(bytes);
  const Digest digest = Digest::Parse(std::string(64, '7')).value();
  ASSERT_TRUE(
      SendLink(keeper_.link(), LinkType::kPut, ExtentLedgerKey("host", digest), "", fd.get()).ok());
  Restart();
  EXPECT_THAT(keeper_.Ledger(), IsEmpty());
}

TEST_F(AdoptionTest, ABudgetThatBecameTooSmallLeavesNothingBehind) {
  AddTwoThatShare();
  const OpenResult a = Open("a");
  const OpenResult b = Open("b");
  // Room for one: 8 KiB of its own and 12 that are shared.
  Restart([](TestTrunk::Options& options) { options.host_bytes = 20 * kKiB; });
  trunk_->Settle();
  EXPECT_NE(IsReady(a.replica), IsReady(b.replica));
  CheckLedger();
  Restart([](TestTrunk::Options& options) { options.host_bytes = 4 * kKiB; });
  trunk_->Settle();
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_EQ(trunk_->host().verifications(), 0) << "checked for nothing";
  CheckLedger();
}

TEST_F(AdoptionTest, AReplicaThatSharesWithOneForWhichThereIsNoRoomIsServed) {
  std::set<bool> orders;  // Of the two in the ledger, which is that of their digests.
  for (uint64_t seed = 100; seed < 600; seed += 100) {
    const std::string number = std::to_string(seed);
    trunk_->AddModel("large" + number,
                     {NoiseTensor("own", 50'000, seed), NoiseTensor("shared", 9000, seed + 1)});
    trunk_->AddModel("small" + number,
                     {NoiseTensor("own", 5000, seed + 2), NoiseTensor("shared", 9000, seed + 1)});
    const OpenResult large = Open("large" + number), small = Open("small" + number);
    orders.insert(KeyOf(large) < KeyOf(small));
    Restart([](TestTrunk::Options& options) { options.host_bytes = 24 * kKiB; });
    trunk_->Settle();
    EXPECT_FALSE(IsReady(large.replica));
    EXPECT_TRUE(IsReady(small.replica));
    registry().CheckInvariants();
    CheckLedger();
    registry().Evict(small.replica.model, 0, true);
    Restart();
  }
  EXPECT_EQ(orders.size(), 2u) << "other seeds are needed";
}

// --- What its bytes are --------------------------------------------------------------------

TEST_F(AdoptionTest, WrongBytesAreFoundBeforeTheyAreServed) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([&](TestTrunk::Options& options) {
    EntryOf(options, ExtentKeyOf(before)).fd =
        Sealed(std::string(before.lent->extents[0]->map_bytes, 'x'));
  });
  ExpectServed(before, "a", false);
  EXPECT_EQ(registry().counters().quarantines, 1u);
}

TEST_F(AdoptionTest, AReplicaThatSharesWithABrokenOneIsServed) {
  AddTwoThatShare();
  const OpenResult a = Open("a");
  const OpenResult b = Open("b");
  // Its own tensor's, which is the smaller one.
  const size_t own = a.lent->extents[0]->map_bytes < a.lent->extents[1]->map_bytes ? 0 : 1;
  Restart([&](TestTrunk::Options& options) {
    EntryOf(options, ExtentKeyOf(a, own)).fd =
        Sealed(std::string(a.lent->extents[own]->map_bytes, 'x'));
  });
  ExpectServed(b, "b", true);
  EXPECT_FALSE(IsReady(a.replica));
  CheckLedger();
  Open("a");
  EXPECT_EQ(trunk_->host().loads_of(a.lent->extents[own]->key), 1);
  EXPECT_EQ(trunk_->host().loads_of(a.lent->extents[1 - own]->key), 0) << "b's copy is good";
}

TEST_F(AdoptionTest, WrongBytesThatTwoShareSpoilBoth) {
  AddTwoThatShare();
  const OpenResult a = Open("a");
  const OpenResult b = Open("b");
  const size_t own = a.lent->extents[0]->map_bytes < a.lent->extents[1]->map_bytes ? 0 : 1;
  Restart([&](TestTrunk::Options& options) {
    EntryOf(options, ExtentKeyOf(a, 1 - own)).fd =
        Sealed(std::string(a.lent->extents[1 - own]->map_bytes, 'x'));
  });
  trunk_->Settle();
  EXPECT_FALSE(IsReady(a.replica));
  EXPECT_FALSE(IsReady(b.replica));
  EXPECT_THAT(keeper_.Ledger(), IsEmpty());
  ExpectServed(b, "b", false);
}

TEST_F(AdoptionTest, OpensWaitForTheCheckAndNothingIsCopiedFromWhatIsNotChecked) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([](TestTrunk::Options& options) {
    options.config.loader_threads = 2;
    options.prepare = [](FakeTier& tier) { tier.HoldChecks(); };
  });
  OpenRequest request = TestTrunk::Named("a");
  request.granularity = Granularity::kLayer;
  const WaitingPtr waiting = trunk_->Ask(std::move(request));
  trunk_->RunUntil([&] { return trunk_->host().verifications() == 1; });
  const OpenResult device = Open("a", Granularity::kLayer, 1);
  EXPECT_THAT(trunk_->device(0).last_offer().host, IsEmpty());
  EXPECT_TRUE(trunk_->device(0).last_offer().has_source);
  EXPECT_FALSE(waiting->is_answered());
  EXPECT_TRUE(registry().is_busy());
  registry().CheckInvariants();
  // How far it is is told now and then, the first time before anybody asked.
  const Time asked = Now();
  trunk_->RunUntil([&] { return Now() - asked > ProgressThrottle::kInterval; });
  trunk_->host().ReleaseChecks();
  trunk_->Answer(waiting);
  ASSERT_TRUE(waiting->result().status.ok()) << waiting->result().status.ToString();
  EXPECT_EQ(waiting->result().generation, before.generation);
  EXPECT_THAT(waiting->phases, Contains(OpenPhase::kVerifying));
  EXPECT_EQ(trunk_->host().loads_started(), 0);
  // From now on it can be copied.
  EXPECT_EQ(trunk_->device(0).host_extents().size(), before.lent->extents.size());
}

TEST_F(AdoptionTest, WhoWaitsForACheckThatFailsGetsALoad) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([&](TestTrunk::Options& options) {
    options.config.loader_threads = 2;
    options.prepare = [&](FakeTier& tier) {
      tier.HoldChecks();
      tier.Damage(before.lent->extents[1]->key);
    };
  });
  OpenRequest request = TestTrunk::Named("a");
  request.granularity = Granularity::kLayer;
  const WaitingPtr waiting = trunk_->Ask(std::move(request));
  trunk_->RunUntil(
      [&] { return !store().Replicas().empty() && store().Replicas()[0].waiting > 0; });
  trunk_->host().ReleaseChecks();
  trunk_->Answer(waiting);
  ASSERT_TRUE(waiting->result().status.ok()) << waiting->result().status.ToString();
  EXPECT_EQ(trunk_->host().loads_finished(), 1);
  EXPECT_NE(waiting->result().generation, before.generation);
}

TEST_F(AdoptionTest, AnEvictionEndsACheckThatIsRunning) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([](TestTrunk::Options& options) {
    options.prepare = [](FakeTier& tier) { tier.HoldChecks(); };
  });
  trunk_->RunUntil([&] { return trunk_->host().verifications() == 1; });
  EXPECT_EQ(registry().Evict(before.replica.model, 0, /*force=*/true).result.cancelled, 1u);
  trunk_->host().ReleaseChecks();
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().verifications(), 1) << "went on to the next extent";
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_THAT(keeper_.Ledger(), IsEmpty());
  EXPECT_EQ(registry().counters().quarantines, 0u);
}

TEST_F(AdoptionTest, AWorkerThatEndsInTheMiddleLeavesEverythingToTheNext) {
  trunk_->AddModel("a");
  const OpenResult before = Open("a");
  Restart([](TestTrunk::Options& options) {
    options.prepare = [](FakeTier& tier) { tier.HoldChecks(); };
  });
  trunk_->RunUntil([&] { return trunk_->host().verifications() == 1; });
  trunk_->host().ReleaseChecks();
  Restart();
  ExpectServed(before, "a", true);
}

}  // namespace
}  // namespace trims

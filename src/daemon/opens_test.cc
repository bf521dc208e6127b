#include "daemon/opens.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "daemon/log.h"
#include "daemon/test_file_calls.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

namespace fs = std::filesystem;
using store::Granularity;
using store::ReplicaKey;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using WaitingPtr = std::shared_ptr<const TestTrunk::Waiting>;

class OpensTest : public ::testing::Test {
 protected:
  OpensTest() { Start(TestTrunk::Options()); }

  void Start(TestTrunk::Options options) {
    trunk_.reset();
    options.config.loader_threads = 1;
    options.config.leases_per_uid_max = 0;
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
  }
  void StartWithDevice() {
    TestTrunk::Options options;
    options.devices = {"GPU-a"};
    Start(std::move(options));
  }
  Registry& registry() { return trunk_->registry(); }
  const store::Store& store() { return trunk_->registry().store(); }

  // One tensor: the same extent at every granularity.
  static std::vector<format::TestTensor> OneTensor(uint64_t seed) {
    return {NoiseTensor("w", 1000, seed)};
  }
  Digest DigestOf(const std::string& path, const std::vector<format::TestTensor>& tensors) {
    return IngestTestModel(path, tensors).manifest->digest;
  }
  static OpenRequest OnDevice(OpenRequest request) {
    request.tier = 1;
    return request;
  }
  static OpenRequest At(Granularity granularity, OpenRequest request) {
    request.granularity = granularity;
    return request;
  }
  size_t LeasesHeld() { return store().Leases().size(); }
  // Posts of an earlier turn, and what they lead to at once.
  void Turn() {
    for (int i = 0; i < 3; ++i) trunk_->RunOnce();
  }
  // The look at this file is held up on its loader thread, past the moment up to which it is true.
  class HeldLook final {
   public:
    explicit HeldLook(const std::string& path) : path_(path) {
      FileCalls::Get().AfterStat(
          [this, open = opened_.get_future().share()](const std::string& asked) {
            if (asked != path_) return;
            if (!std::exchange(is_reached_, true)) reached_.set_value();
            open.wait();
          });
    }
    ~HeldLook() { Release(); }
    void WaitUntilHeld() { reached_.get_future().wait(); }
    void Release() {
      if (std::exchange(is_released_, true)) return;
      FileCalls::Get().AfterStat(nullptr);
      opened_.set_value();
    }

   private:
    const std::string path_;
    bool is_reached_ = false;  // Of the loader's one thread.
    bool is_released_ = false;
    std::promise<void> reached_, opened_;
  };

  std::unique_ptr<TestTrunk> trunk_;
  const FileCallsOfATest file_calls_;
};

// --- One answer each -----------------------------------------------------------------

TEST_F(OpensTest, EveryOpenGetsOneAnswerWhicheverWayItAsks) {
  const std::string path = trunk_->AddModel("a");
  trunk_->AddModel("b");
  std::vector<WaitingPtr> all;
  all.push_back(trunk_->Ask(TestTrunk::Named("a")));
  all.push_back(trunk_->Ask(TestTrunk::Named("a")));
  all.push_back(trunk_->Ask(TestTrunk::Named("b", 2)));
  all.push_back(trunk_->Ask(TestTrunk::Passed(path)));
  all.push_back(trunk_->Ask(TestTrunk::Named("unknown")));
  all.push_back(trunk_->Ask(TestTrunk::Named("no/such/name/ever")));
  for (const WaitingPtr& one : all) trunk_->Answer(one);
  const Digest digest = all[0]->result().replica.model;
  all.push_back(trunk_->Ask(TestTrunk::Named("@" + digest.ToString())));
  all.push_back(trunk_->Ask(TestTrunk::Named("a")));
  trunk_->Settle();
  Turn();
  for (const WaitingPtr& one : all) EXPECT_EQ(one->answers.size(), 1u);
  for (const size_t i : {0u, 1u, 2u, 3u, 6u, 7u}) {
    ASSERT_TRUE(all[i]->result().status.ok()) << i << all[i]->result().status.ToString();
    EXPECT_EQ(all[i]->result().replica.model == digest, i != 2);
    ASSERT_NE(all[i]->result().lent, nullptr);
    EXPECT_EQ(all[i]->result().lent->key, all[i]->result().replica);
    EXPECT_NE(all[i]->result().lease, 0u);
  }
  EXPECT_EQ(all[4]->result().status.code(), StatusCode::kNotFound);
  EXPECT_EQ(all[5]->result().status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(LeasesHeld(), 6u);
  // Joining a load is no hit; the two that came later are.
  EXPECT_FALSE(all[6]->result().loaded);
  EXPECT_FALSE(all[7]->result().loaded);
  EXPECT_TRUE(all[2]->result().loaded);
  EXPECT_EQ(registry().counters().opens, 6u);
  EXPECT_EQ(registry().counters().opens_failed, 2u);
  EXPECT_GE(registry().counters().opens_hit, 2u);
  EXPECT_EQ(trunk_->host().loads_started(), 2);
}

TEST_F(OpensTest, ManyThatAskForOneNameShareALookAndALoad) {
  const std::string path = trunk_->AddModel("a");
  HeldLook look(path);
  std::vector<WaitingPtr> all;
  for (int i = 0; i < 5; ++i) all.push_back(trunk_->Ask(TestTrunk::Named("a")));
  look.Release();
  for (const WaitingPtr& one : all) trunk_->Answer(one);
  for (const WaitingPtr& one : all) EXPECT_TRUE(one->result().status.ok());
  EXPECT_EQ(trunk_->host().loads_started(), 1);
}

// The files may have changed between the look and the question.
TEST_F(OpensTest, WhoAsksAfterTheLookBeganIsNotServedByIt) {
  FileCalls::Get().fail_inotify = true;  // Nobody tells the look that it is past.
  Start({});
  const std::string path = trunk_->AddModel("a", OneTensor(1));
  const Digest first = DigestOf(path, OneTensor(1));
  HeldLook look(path);
  const WaitingPtr early = trunk_->Ask(TestTrunk::Named("a"));
  look.WaitUntilHeld();
  fs::rename(trunk_->WriteModel("beside", OneTensor(2)), path);
  const WaitingPtr late = trunk_->Ask(TestTrunk::Named("a"));
  look.Release();
  trunk_->Answer(early);
  trunk_->Answer(late);
  EXPECT_EQ(early->result().replica.model, first);
  EXPECT_EQ(late->result().replica.model, DigestOf(path, OneTensor(2)));
}

// --- Refusals ------------------------------------------------------------------------

TEST_F(OpensTest, ADigestThatIsNotTheExpectedOneIsRefused) {
  const std::string path = trunk_->AddModel("a");
  const Digest digest = DigestOf(path, TestTrunk::SmallModel(std::hash<std::string>()("a")));
  OpenRequest request = TestTrunk::Named("a");
  request.expected = Digest();
  const OpenResult refused = trunk_->Open(std::move(request));
  EXPECT_EQ(refused.status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(refused.status.message(), HasSubstr("\"a\" holds " + digest.ToString()));
  EXPECT_EQ(trunk_->host().loads_started(), 0);
  OpenRequest passed = TestTrunk::Passed(path);
  passed.label = "mine";
  passed.expected = Digest();
  EXPECT_THAT(trunk_->Open(std::move(passed)).status.message(), HasSubstr("\"mine\" holds"));
  request = TestTrunk::Named("a");
  request.expected = digest;
  EXPECT_TRUE(trunk_->Open(std::move(request)).status.ok());
}

TEST_F(OpensTest, ATierThatIsNotThereIsRefused) {
  trunk_->AddModel("a");
  EXPECT_EQ(trunk_->Open(OnDevice(TestTrunk::Named("a"))).status.code(),
            StatusCode::kInvalidArgument);
  const auto answer = std::make_shared<std::optional<OpenResult>>();
  registry().Reattach(registry().NewOpenId(), 1, 0, true, ReplicaKey{Digest(), 1}, 1,
                      [answer](OpenResult result) { *answer = std::move(result); });
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ((*answer)->status.code(), StatusCode::kInvalidArgument);
}

TEST_F(OpensTest, ATierThatHasFailedSaysWhyAndTheOthersServeOn) {
  StartWithDevice();
  trunk_->AddModel("a");
  trunk_->device(0).SetHealth(UnavailableError("it fell off the bus"));
  const OpenResult refused = trunk_->Open(OnDevice(TestTrunk::Named("a")));
  EXPECT_EQ(refused.status.message(), "it fell off the bus");
  EXPECT_EQ(trunk_->device(0).loads_started(), 0);
  EXPECT_TRUE(trunk_->Open(TestTrunk::Named("a")).status.ok());
}

TEST_F(OpensTest, DescriptorsThatAreNoReadableFilesAreRefused) {
  const std::string path = trunk_->AddModel("a");
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd end(ends[1]);
  std::vector<UniqueFd> kinds;
  kinds.emplace_back(ends[0]);
  kinds.emplace_back(::open(trunk_->root().path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  kinds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  kinds.emplace_back(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  kinds.emplace_back(::open(path.c_str(), O_PATH | O_CLOEXEC));
  const size_t count = kinds.size();
  for (UniqueFd& fd : kinds) {
    OpenRequest request = TestTrunk::Named("");
    request.file = std::move(fd);
    request.label = "odd";
    const OpenResult refused = trunk_->Open(std::move(request));
    EXPECT_EQ(refused.status.code(), StatusCode::kInvalidArgument) << refused.status.ToString();
    EXPECT_THAT(refused.status.message(), HasSubstr("odd"));
  }
  EXPECT_EQ(registry().counters().opens_failed, count);
}

TEST_F(OpensTest, AModelThatIsSomebodyElsesIsAnsweredLikeOneThatDoesNotExist) {
  const std::string path = trunk_->WriteModel("mine", OneTensor(1));
  const OpenResult mine = trunk_->Open(TestTrunk::Passed(path));
  ASSERT_TRUE(mine.status.ok());
  OpenRequest other = TestTrunk::Named("@" + mine.replica.model.ToString(), 2);
  other.uid = TestTrunk::kUid + 1;
  const OpenResult refused = trunk_->Open(std::move(other));
  const Digest unknown;
  const OpenResult nothing = trunk_->Open(TestTrunk::Named("@" + unknown.ToString()));
  EXPECT_EQ(refused.status, NotFoundError(UnknownDigestText(mine.replica.model)));
  EXPECT_EQ(nothing.status, NotFoundError(UnknownDigestText(unknown)));
  // Who has shown the file once may ask by digest, and so may root.
  EXPECT_TRUE(trunk_->Open(TestTrunk::Named("@" + mine.replica.model.ToString())).status.ok());
  OpenRequest root = TestTrunk::Named("@" + mine.replica.model.ToString(), 3);
  root.uid = 0;
  root.is_admin = true;
  EXPECT_TRUE(trunk_->Open(std::move(root)).status.ok());
}

// --- From contents to the store --------------------------------------------------------

TEST_F(OpensTest, AutoGranularityIsWhatTheTestOfRhoChooses) {
  for (const bool is_reading_slow : {true, false}) {
    RhoConstants rho;
    rho.read_bytes_per_second = is_reading_slow ? 1 : 1e15;
    rho.export_cost = rho.open_cost = std::chrono::microseconds(1);
    TestTrunk::Options options;
    LinkMessage& entry = options.entries.emplace_back();
    entry.type = LinkType::kEntry;
    entry.key = kRhoLedgerKey;
    entry.body = EncodeRho(rho);
    Start(std::move(options));
    trunk_->AddModel("a");
    const OpenResult opened = trunk_->Open(TestTrunk::Named("a"));
    EXPECT_EQ(opened.replica.granularity,
              is_reading_slow ? Granularity::kLayer : Granularity::kModel);
    EXPECT_EQ(opened.lent->extents.size(), is_reading_slow ? 2u : 1u);
    // Who names one gets that.
    EXPECT_EQ(trunk_->Open(At(Granularity::kSlab, TestTrunk::Named("a"))).replica.granularity,
              Granularity::kSlab);
  }
}

// A resident model is leased by its key alone; what is on its way out is not, but its name leads
// to a new incarnation.
TEST_F(OpensTest, WhatIsResidentNoMoreIsAskedForAgainByItsPlan) {
  trunk_->AddModel("a");
  const OpenResult first = trunk_->Open(TestTrunk::Named("a"));
  ASSERT_TRUE(registry().Evict(first.replica.model, 0, /*force=*/true).result.draining == 1);
  const OpenResult second = trunk_->Open(TestTrunk::Named("a"));
  ASSERT_TRUE(second.status.ok()) << second.status.ToString();
  EXPECT_NE(second.generation, first.generation);
  EXPECT_EQ(trunk_->host().loads_started(), 1) << "its bytes were there";
  // By digest nothing is on the way but what is resident.
  ASSERT_TRUE(registry().Evict(first.replica.model, 0, true).result.draining > 0);
  EXPECT_TRUE(trunk_->Open(TestTrunk::Named("@" + first.replica.model.ToString())).status.ok());
}

TEST_F(OpensTest, ALoadWhoseFileChangedIsTriedOnceMore) {
  trunk_->AddModel("a");
  trunk_->host().FailLoads(AbortedError("it changed"), 1);
  EXPECT_TRUE(trunk_->Open(TestTrunk::Named("a")).status.ok());
  EXPECT_EQ(trunk_->host().loads_started(), 2);
  trunk_->AddModel("b");
  trunk_->host().FailLoads(AbortedError("it changed"), 3);
  EXPECT_EQ(trunk_->Open(TestTrunk::Named("b")).status, AbortedError("it changed"));
  EXPECT_EQ(trunk_->host().loads_started(), 4) << "twice, and no more";
  trunk_->host().FailLoads(OkStatus(), 0);
  // A passed descriptor is what it is.
  const std::string path = trunk_->WriteModel("c", OneTensor(3));
  trunk_->host().FailLoads(AbortedError("it changed"), 1);
  EXPECT_EQ(trunk_->Open(TestTrunk::Passed(path)).status, AbortedError("it changed"));
  EXPECT_EQ(trunk_->host().loads_started(), 5);
}

TEST_F(OpensTest, AFileThatIsWrittenDuringItsLoadIsServedAsItIsAfterwards) {
  const std::string path = trunk_->AddModel("a", OneTensor(1));
  trunk_->host().Hold();
  const WaitingPtr waiting = trunk_->Ask(TestTrunk::Named("a"));
  ASSERT_TRUE(trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; }));
  trunk_->WriteModel("a", OneTensor(2));  // In place.
  trunk_->host().Release();
  trunk_->Answer(waiting);
  ASSERT_TRUE(waiting->result().status.ok()) << waiting->result().status.ToString();
  EXPECT_EQ(waiting->result().replica.model, DigestOf(path, OneTensor(2)));
}

TEST_F(OpensTest, APrefetchTakesNoLease) {
  trunk_->AddModel("a");
  OpenRequest request = TestTrunk::Named("a");
  request.take_lease = false;
  request.is_admin = true;
  const OpenResult loaded = trunk_->Open(std::move(request));
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.ToString();
  EXPECT_EQ(loaded.lease, 0u);
  EXPECT_EQ(loaded.lent, nullptr);
  EXPECT_EQ(LeasesHeld(), 0u);
  const auto view = store().Find(loaded.replica);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->state, store::ReplicaState::kReady);
  EXPECT_FALSE(trunk_->Open(TestTrunk::Named("a")).loaded);
}

TEST_F(OpensTest, WhoOnlyAsksForTheDigestLoadsNothing) {
  const std::string path = trunk_->AddModel("a", OneTensor(1));
  OpenRequest request = TestTrunk::Named("a");
  request.resolve_only = true;
  const OpenResult found = trunk_->Open(std::move(request));
  EXPECT_TRUE(found.status.ok());
  EXPECT_EQ(found.replica.model, DigestOf(path, OneTensor(1)));
  EXPECT_EQ(found.lease, 0u);
  EXPECT_EQ(trunk_->host().loads_started(), 0);
  EXPECT_THAT(store().Replicas(), IsEmpty());
}

TEST_F(OpensTest, PhasesOfAnOpenComeInOrder) {
  trunk_->AddModel("a");
  const WaitingPtr cold = trunk_->Ask(TestTrunk::Named("a"));
  trunk_->Answer(cold);
  EXPECT_THAT(cold->phases,
              ElementsAre(OpenPhase::kResolving, OpenPhase::kHashing, OpenPhase::kLoading));
  const WaitingPtr warm = trunk_->Ask(TestTrunk::Named("a"));
  trunk_->Answer(warm);
  EXPECT_THAT(warm->phases, IsEmpty());
}

// --- Cancelling ------------------------------------------------------------------------

TEST_F(OpensTest, ACancelledLookIsStoppedOnceNobodyElseWaitsForIt) {
  const std::string path = trunk_->AddModel("a");
  HeldLook look(path);
  const WaitingPtr one = trunk_->Ask(TestTrunk::Named("a"));
  const WaitingPtr two = trunk_->Ask(TestTrunk::Named("a"));
  look.WaitUntilHeld();
  registry().CancelOpen(one->id);
  registry().CancelOpen(one->id);
  EXPECT_TRUE(registry().is_busy());
  registry().CancelOpen(two->id);
  EXPECT_FALSE(registry().is_busy());
  registry().CheckInvariants();
  look.Release();
  Turn();
  // The next look is not this one's end.
  const WaitingPtr three = trunk_->Ask(TestTrunk::Named("a"));
  trunk_->Answer(three);
  EXPECT_TRUE(three->result().status.ok());
  EXPECT_THAT(one->answers, IsEmpty());
  EXPECT_THAT(two->answers, IsEmpty());
  EXPECT_EQ(LeasesHeld(), 1u);
}

TEST_F(OpensTest, WhoWaitsForTheSameLookIsAnsweredThoughAnotherCancels) {
  const std::string path = trunk_->AddModel("a");
  HeldLook look(path);
  const WaitingPtr one = trunk_->Ask(TestTrunk::Named("a"));
  const WaitingPtr two = trunk_->Ask(TestTrunk::Named("a"));
  look.WaitUntilHeld();
  registry().CancelOpen(one->id);
  look.Release();
  trunk_->Answer(two);
  EXPECT_TRUE(two->result().status.ok());
  EXPECT_THAT(one->answers, IsEmpty());
  EXPECT_EQ(LeasesHeld(), 1u);
}

TEST_F(OpensTest, ACancelledLoadIsStoppedOnceNobodyElseWaitsForIt) {
  trunk_->AddModel("a");
  trunk_->host().Hold();
  const WaitingPtr one = trunk_->Ask(TestTrunk::Named("a"));
  const WaitingPtr two = trunk_->Ask(TestTrunk::Named("a"));
  ASSERT_TRUE(trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; }));
  registry().CancelOpen(one->id);
  registry().CheckInvariants();
  Turn();
  EXPECT_EQ(trunk_->host().loads_failed(), 0);
  registry().CancelOpen(two->id);
  // It waits behind Hold, and ends all the same.
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_failed(), 1);
  EXPECT_THAT(one->answers, IsEmpty());
  EXPECT_THAT(two->answers, IsEmpty());
  EXPECT_THAT(store().Replicas(), IsEmpty());
  EXPECT_EQ(LeasesHeld(), 0u);
  trunk_->host().Release();
}

TEST_F(OpensTest, AnOpenThatIsCancelledBetweenTwoStagesAsksNoMore) {
  trunk_->AddModel("a");
  const OpenResult first = trunk_->Open(TestTrunk::Named("a"));
  ASSERT_EQ(registry().Evict(first.replica.model, 0, /*force=*/true).result.draining, 1u);
  // The store has said no; it is asked again in the next turn.
  const WaitingPtr again = trunk_->Ask(TestTrunk::Named("a"));
  EXPECT_THAT(again->answers, IsEmpty());
  registry().CancelOpen(again->id);
  registry().CheckInvariants();
  Turn();
  EXPECT_THAT(again->answers, IsEmpty());
  EXPECT_EQ(LeasesHeld(), 1u);
  EXPECT_EQ(store().Replicas().size(), 1u);
}

TEST_F(OpensTest, AnOpenThatIsCancelledBeforeItsSecondLookLooksNoMore) {
  const std::string path = trunk_->AddModel("a");
  trunk_->host().FailLoads(AbortedError("it changed"), 1);
  const WaitingPtr waiting = trunk_->Ask(TestTrunk::Named("a"));
  ASSERT_TRUE(trunk_->RunUntil([&] { return trunk_->host().loads_failed() == 1; }));
  // The end of the load is on its way to the loop, or the second look is.
  while (registry().loads_running() > 0) trunk_->RunOnce();
  registry().CancelOpen(waiting->id);
  trunk_->Settle();
  Turn();
  EXPECT_THAT(waiting->answers, IsEmpty());
  EXPECT_EQ(trunk_->host().loads_started(), 1);
  EXPECT_EQ(LeasesHeld(), 0u);
}

// --- Copies that nobody asked for -------------------------------------------------------

TEST_F(OpensTest, WhatIsLoadedToADeviceIsKeptInHostMemoryToo) {
  StartWithDevice();
  trunk_->AddModel("a");
  const OpenResult opened = trunk_->Open(OnDevice(TestTrunk::Named("a")));
  ASSERT_TRUE(opened.status.ok()) << opened.status.ToString();
  const ReplicaKey host{opened.replica.model, 0, opened.replica.granularity};
  ASSERT_TRUE(trunk_->RunUntil([&] {
    const auto view = store().Find(host);
    return view && view->state == store::ReplicaState::kReady;
  }));
  EXPECT_EQ(store().Find(host)->leases, 0u);
  EXPECT_EQ(registry().counters().opens, 1u) << "counted as somebody's";
  // There already: nothing to be done.
  ASSERT_TRUE(registry().Close(1, opened.lease, 0).ok());
  registry().Evict(opened.replica.model, 1, false);
  ASSERT_TRUE(trunk_->Open(OnDevice(TestTrunk::Named("a"))).status.ok());
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_started(), 1);
}

TEST_F(OpensTest, NoCopyIsKeptWhereNoneIsWanted) {
  TestTrunk::Options options;
  options.devices = {"GPU-a"};
  options.config.persist_cpu = false;
  Start(std::move(options));
  trunk_->AddModel("a");
  ASSERT_TRUE(trunk_->Open(OnDevice(TestTrunk::Named("a"))).status.ok());
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_started(), 0);
}

// Reading it may hang for ever, and nobody waits for it.
TEST_F(OpensTest, NoCopyIsKeptOfAFileThatAUserServes) {
  StartWithDevice();
  const std::string path = trunk_->WriteModel("mine", OneTensor(1));
  FileCalls::Get().is_fuse = true;
  ASSERT_TRUE(trunk_->Open(OnDevice(TestTrunk::Passed(path))).status.ok());
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_started(), 0);
  // Of an honest one it is.
  FileCalls::Get().is_fuse = false;
  const std::string honest = trunk_->WriteModel("honest", OneTensor(2));
  ASSERT_TRUE(trunk_->Open(OnDevice(TestTrunk::Passed(honest))).status.ok());
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_finished(), 1);
}

TEST_F(OpensTest, AnEvictionCancelsTheCopyThatNobodyAskedFor) {
  StartWithDevice();
  trunk_->AddModel("a");
  trunk_->host().Hold();
  const OpenResult opened = trunk_->Open(OnDevice(TestTrunk::Named("a")));
  ASSERT_TRUE(opened.status.ok());
  ASSERT_TRUE(trunk_->RunUntil([&] { return trunk_->host().loads_started() == 1; }));
  // Not of the device's tier alone.
  registry().Evict(opened.replica.model, 1, false);
  Turn();
  EXPECT_EQ(trunk_->host().loads_failed(), 0);
  registry().Evict(opened.replica.model, 0, /*force=*/false);
  trunk_->Settle();
  EXPECT_EQ(trunk_->host().loads_failed(), 1);
  EXPECT_FALSE(store().Find({opened.replica.model, 0, opened.replica.granularity}).has_value());
  trunk_->host().Release();
}

TEST_F(OpensTest, ACopyThatFailsIsOnlyTold) {
  StartWithDevice();
  trunk_->AddModel("a");
  trunk_->host().FailLoads(UnavailableError("no luck"), 1);
  InitLog({});
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(trunk_->Open(OnDevice(TestTrunk::Named("a"))).status.ok());
  trunk_->RunUntil([&] { return trunk_->host().loads_failed() == 1; });
  trunk_->Settle();
  const std::string log = ::testing::internal::GetCapturedStderr();
  InitLog({});
  EXPECT_THAT(log, HasSubstr("no copy kept in host memory"));
  EXPECT_THAT(log, HasSubstr("no luck"));
  EXPECT_EQ(registry().counters().opens_failed, 0u);
}

// --- Reattaching -----------------------------------------------------------------------

class ReattachTest : public OpensTest {
 protected:
  OpenResult Reattach(const ReplicaKey& replica, uint64_t generation,
                      uint32_t uid = TestTrunk::kUid) {
    const auto answer = std::make_shared<std::optional<OpenResult>>();
    registry().Reattach(registry().NewOpenId(), 7, uid, false, replica, generation,
                        [answer](OpenResult result) { *answer = std::move(result); });
    trunk_->RunUntil([&] { return answer->has_value(); });
    return answer->value_or(OpenResult());
  }
};

TEST_F(ReattachTest, WhatIsReadyIsGrantedWhateverItsGeneration) {
  trunk_->AddModel("a");
  const OpenResult opened = trunk_->Open(TestTrunk::Named("a"));
  const OpenResult again = Reattach(opened.replica, opened.generation + 17);
  ASSERT_TRUE(again.status.ok()) << again.status.ToString();
  EXPECT_EQ(again.replica, opened.replica);
  EXPECT_EQ(again.lent, opened.lent);
  EXPECT_NE(again.lease, opened.lease);
  EXPECT_FALSE(again.loaded);
}

TEST_F(ReattachTest, WhatIsNotReadyIsNotLoaded) {
  trunk_->AddModel("a");
  const OpenResult opened = trunk_->Open(TestTrunk::Named("a"));
  ReplicaKey other = opened.replica;
  other.granularity =
      other.granularity == Granularity::kModel ? Granularity::kLayer : Granularity::kModel;
  EXPECT_EQ(Reattach(other, 1).status, NotFoundError(UnknownDigestText(other.model)));
  EXPECT_EQ(trunk_->host().loads_started(), 1);
  EXPECT_EQ(registry().counters().opens_failed, 1u);
}

TEST_F(ReattachTest, WhatIsSomebodyElsesIsNotGranted) {
  const std::string path = trunk_->WriteModel("mine", OneTensor(1));
  const OpenResult mine = trunk_->Open(TestTrunk::Passed(path));
  ASSERT_TRUE(mine.status.ok());
  EXPECT_EQ(Reattach(mine.replica, mine.generation, TestTrunk::kUid + 1).status,
            NotFoundError(UnknownDigestText(mine.replica.model)));
  EXPECT_TRUE(Reattach(mine.replica, mine.generation).status.ok());
}

// --- What can not be lent ----------------------------------------------------------------

TEST_F(OpensTest, AModelThatCanNotBeLentSaysWhyAndHoldsNoLease) {
  trunk_->AddModel("a", OneTensor(1));
  ASSERT_TRUE(trunk_->Open(At(Granularity::kModel, TestTrunk::Named("a"))).status.ok());
  // At another granularity its extent is there, but its index is not: making one takes a
  // descriptor, and the process gets no more.
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const OpenResult refused = trunk_->Open(At(Granularity::kLayer, TestTrunk::Named("a")));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted) << refused.status.ToString();
  EXPECT_EQ(refused.lease, 0u);
  EXPECT_EQ(registry().counters().opens_failed, 1u);
  Turn();
  EXPECT_EQ(LeasesHeld(), 1u);
  EXPECT_TRUE(trunk_->Open(At(Granularity::kLayer, TestTrunk::Named("a"))).status.ok());
}

// The parts by themselves, and a store that says what the test wants.
class OpensAloneTest : public ::testing::Test {
 protected:
  OpensAloneTest()
      : reactor_(Reactor::Create().value()),
        tiers_(MakeTiers(), nullptr),
        loaders_(1, {}),
        rates_(reactor_.get(), &loaders_, &tiers_, &ledger_),
        store_(MakeConfig()),
        contents_(reactor_.get(), &loaders_,
                  {.catalogue = Catalogue::Open(root_.path(), root_.path()).value(),
                   .sidecars = nullptr,
                   .on_names_changed = nullptr,
                   .on_look_progress = nullptr,
                   .on_looked = nullptr}),
        residents_({.reactor = reactor_.get(),
                    .tiers = &tiers_,
                    .loaders = &loaders_,
                    .contents = &contents_,
                    .ledger = &ledger_,
                    .rates = &rates_,
                    .profile = &profile_,
                    .store = &store_,
                    .apply = nullptr,
                    .on_progress = nullptr,
                    .on_ended = nullptr},
                   kDefaultSlabBytes),
        opens_({.reactor = reactor_.get(),
                .tiers = &tiers_,
                .contents = &contents_,
                .residents = &residents_,
                .rates = &rates_,
                .profile = &profile_,
                .store = &store_,
                .apply = [this](const store::Event& event) { events_.push_back(event); }},
               {.slab_bytes = kDefaultSlabBytes}, 1) {}

  static std::vector<ServedTier> MakeTiers() {
    std::vector<ServedTier> tiers;
    tiers.push_back({std::make_unique<FakeTier>(), 1 << 20});
    return tiers;
  }
  static store::Config MakeConfig() {
    store::Config config;
    config.tiers = {{"host", 1 << 20, store::TierKind::kHost}};
    return config;
  }

  const TemporaryDirectory root_;
  const std::unique_ptr<Reactor> reactor_;
  const Tiers tiers_;
  Loaders loaders_;
  Ledger ledger_{-1};
  Rates rates_;
  Profile profile_;
  store::Store store_;
  Contents contents_;
  Residents residents_;
  Opens opens_;
  std::vector<store::Event> events_;
};

// Nobody else would close it.
TEST_F(OpensAloneTest, ALeaseWhoseOpenIsGoneIsClosedLater) {
  store::ReplyLease reply;
  reply.open = 1;
  reply.session = 17;
  reply.lease = 4;
  opens_.OnReply(reply);
  EXPECT_THAT(events_, IsEmpty()) << "from inside the store's own actions";
  reactor_->RunOnce(Duration::zero());
  ASSERT_EQ(events_.size(), 1u);
  const auto* const closed = std::get_if<store::LeaseClosed>(&events_[0]);
  ASSERT_NE(closed, nullptr);
  EXPECT_EQ(closed->session, 17u);
  EXPECT_EQ(closed->lease, 4u);
}

TEST_F(OpensAloneTest, WhatComesForAnOpenThatIsGoneIsIgnored) {
  opens_.OnReply(store::ReplyReady{.open = 1, .replica = {}});
  opens_.OnReply(store::ReplyError{.open = 1, .status = NotFoundError("x")});
  opens_.OnLooked("name x", {});
  opens_.OnLookProgress("name x", 1, 2);
  opens_.OnLoadProgress({}, OpenPhase::kLoading, 1, 2);
  opens_.Cancel(1);
  reactor_->RunOnce(Duration::zero());
  EXPECT_THAT(events_, IsEmpty());
  EXPECT_EQ(opens_.in_flight(), 0u);
  EXPECT_FALSE(opens_.WaitingFor({}).is_anybody);
}

TEST_F(OpensAloneTest, AnOpenThatWaitsForTheStoreTellsItWhenItIsCancelled) {
  opens_.Reattach(opens_.NewId(), 17, 1000, false, ReplicaKey{}, 3,
                  [](const OpenResult&) { ADD_FAILURE() << "an answer"; });
  ASSERT_EQ(events_.size(), 1u);
  const auto* const asked = std::get_if<store::ReattachAsked>(&events_[0]);
  ASSERT_NE(asked, nullptr);
  EXPECT_EQ(asked->session, 17u);
  EXPECT_EQ(asked->uid, 1000u);
  EXPECT_EQ(asked->generation, 3u);
  EXPECT_TRUE(opens_.WaitingFor({}).is_anybody);
  opens_.CheckInvariants();
  opens_.Cancel(asked->open);
  opens_.CheckInvariants();
  ASSERT_EQ(events_.size(), 2u);
  ASSERT_TRUE(std::holds_alternative<store::OpenCancelled>(events_[1]));
  EXPECT_FALSE(opens_.WaitingFor({}).is_anybody);
  EXPECT_EQ(opens_.in_flight(), 0u);
}

}  // namespace
}  // namespace trims

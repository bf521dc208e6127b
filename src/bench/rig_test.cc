// The rig, its model, and what is measured with it, on a daemon of its own.
#include "bench/rig.h"

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "bench/loads.h"
#include "bench/model.h"
#include "bench/opens.h"
#include "bench/test_bench.h"
#include "cli/connection.h"
#include "tests/test_daemon.h"

namespace trims::bench {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// An operator's connection that counts, and that fails where it is told to.
class OperatorsControl final : public Control {
 public:
  explicit OperatorsControl(cli::Connection connection) : connection_(std::move(connection)) {}

  Status GetStatus(const v1::GetStatusRequest& request, v1::GetStatusResponse* response) override {
    RETURN_IF_ERROR(connection_.GetStatus(request, response));
    if (busy > 0) {
      --busy;
      response->set_loads_running(1);
    }
    return OkStatus();
  }
  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) override {
    return connection_.Info(request, response);
  }
  Status Add(const v1::AddRequest& request, v1::AddResponse* response) override {
    RETURN_IF_ERROR(add_error);
    return connection_.Add(request, response);
  }
  Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) override {
    RETURN_IF_ERROR(remove_error);
    return connection_.Remove(request, response);
  }
  Status Pin(const v1::PinRequest& request, v1::PinResponse* response) override {
    return connection_.Pin(request, response);
  }
  Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) override {
    ++evictions;
    return connection_.Evict(request, response);
  }

  cli::Connection& connection() { return connection_; }

  int busy = 0;  // So many answers say that a load runs.
  int evictions = 0;
  Status add_error;
  Status remove_error;

 private:
  cli::Connection connection_;
};

class RigTest : public BenchTest {
 protected:
  void SetUp() override {
    BenchTest::SetUp();
    std::filesystem::permissions(directory_, std::filesystem::perms(0755));
    Result<cli::Connection> connection = cli::Connection::Open(daemon_.runtime_dir());
    ASSERT_TRUE(connection.ok()) << connection.status().ToString();
    control_.emplace(std::move(*connection));
    Result<std::unique_ptr<Rig>> rig =
        Rig::Make(*control_, observer_,
                  {.runtime_dir = daemon_.runtime_dir(), .daemon_uid = ::geteuid(), .place = {}});
    ASSERT_TRUE(rig.ok()) << rig.status().ToString();
    rig_ = std::move(*rig);
  }
  void TearDown() override {
    rig_.reset();
    BenchTest::TearDown();
  }

  WeightsFileSpec Spec(uint64_t bytes, uint32_t tensors = 4) const {
    return {.bytes = bytes, .tensors = tensors, .sparse = true, .directory = directory_};
  }
  std::vector<std::string> Models() {
    v1::ListResponse list;
    EXPECT_TRUE(control_->connection().List(v1::ListRequest(), &list).ok());
    std::vector<std::string> names;
    for (const v1::ModelView& model : list.models()) names.push_back(model.name());
    return names;
  }
  std::vector<std::string> TiersOf(const std::string& model) {
    v1::InfoRequest request;
    request.set_model(model);
    v1::InfoResponse info;
    EXPECT_TRUE(control_->Info(request, &info).ok());
    std::vector<std::string> tiers;
    for (const v1::ReplicaView& replica : info.model().replicas()) tiers.push_back(replica.tier());
    return tiers;
  }
  uint32_t Leases() {
    v1::GetStatusResponse status;
    EXPECT_TRUE(control_->connection().GetStatus(v1::GetStatusRequest(), &status).ok());
    return status.leases();
  }
  void ExpectNothingLeft() {
    EXPECT_THAT(Models(), IsEmpty());
    EXPECT_EQ(Leases(), 0u);
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
    EXPECT_THAT(observer_.left, IsEmpty());
  }

  testing_support::TestDaemon daemon_;
  std::optional<OperatorsControl> control_;
  QuietObserver observer_;
  std::unique_ptr<Rig> rig_;
};

// --- The model ------------------------------------------------------------------

TEST_F(RigTest, AModelIsKnownByANameOfItsOwnAndGoneWithTheObject) {
  {
    const Result<std::unique_ptr<Model>> one = Model::Make(*rig_, Spec(kMiB));
    const Result<std::unique_ptr<Model>> other = Model::Make(*rig_, Spec(kMiB));
    ASSERT_TRUE(one.ok()) << one.status().ToString();
    ASSERT_TRUE(other.ok()) << other.status().ToString();
    EXPECT_NE((*one)->name(), (*other)->name());
    EXPECT_THAT(Models(), testing::UnorderedElementsAre((*one)->name(), (*other)->name()));
    EXPECT_EQ(std::filesystem::file_size((*one)->path()), (*one)->file_bytes());
    EXPECT_TRUE(rig_->Open((*one)->name(), Place()).ok());  // Resident when it goes.
  }
  ExpectNothingLeft();
}

TEST_F(RigTest, AModelThatTheDaemonCanNotReadSaysWhichDirectoryToChange) {
  for (const Status& error : {NotFoundError("no such file"), PermissionDeniedError("no")}) {
    control_->add_error = error;
    const Status status = Model::Make(*rig_, Spec(kMiB)).status();
    EXPECT_EQ(status.code(), error.code());
    EXPECT_EQ(status.message(), error.message() +
                                    ". The daemon must be able to read what is written into " +
                                    directory_ + ": give another --dir");
  }
  control_->add_error = AlreadyExistsError("taken");
  EXPECT_EQ(Model::Make(*rig_, Spec(kMiB)).status().message(), "taken");
  ExpectNothingLeft();
}

TEST_F(RigTest, AModelThatCanNotBeRemovedIsTold) {
  std::string name;
  {
    const Result<std::unique_ptr<Model>> model = Model::Make(*rig_, Spec(kMiB));
    ASSERT_TRUE(model.ok());
    name = (*model)->name();
    control_->remove_error = InternalError("not today");
  }
  EXPECT_THAT(observer_.left, testing::ElementsAre(name));
}

// --- Opens of the rig -------------------------------------------------------------

TEST_F(RigTest, AnOpenIsAnyClientsAndItsLeaseEndsWithIt) {
  const Result<std::unique_ptr<Model>> model = Model::Make(*rig_, Spec(kMiB, 3));
  ASSERT_TRUE(model.ok());
  {
    const Result<Lease> lease = rig_->Open((*model)->name(), rig_->place());
    ASSERT_TRUE(lease.ok()) << lease.status().ToString();
    EXPECT_TRUE(lease->was_loaded());
    EXPECT_EQ(lease->tensor_count(), 3u);
    EXPECT_EQ(Leases(), 1u);
    const Expected<Lease> again = rig_->OpenPlainly((*model)->name(), rig_->place());
    ASSERT_TRUE(again);
    EXPECT_FALSE(again->was_loaded());
  }
  EXPECT_TRUE(rig_->Settle().ok());
  EXPECT_EQ(Leases(), 0u);
  EXPECT_GT(observer_.cleared, 0);
}

TEST_F(RigTest, AnOpenOfWhatIsNotThereSaysSo) {
  EXPECT_EQ(rig_->Open("nothing", Place()).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(rig_->OpenPlainly("nothing", Place()).error().status(), TRIMS_NOT_FOUND);
}

TEST_F(RigTest, OnlyTheTiersThatAreKeptHoldTheModelAfterwards) {
  const Result<std::unique_ptr<Model>> model = Model::Make(*rig_, Spec(kMiB));
  ASSERT_TRUE(model.ok());
  ASSERT_TRUE(rig_->Open((*model)->name(), Place()).ok());
  control_->busy = 3;  // Not at rest before these have been seen.
  ASSERT_TRUE(rig_->KeepOnly((*model)->name(), {"host"}).ok());
  EXPECT_EQ(control_->busy, 0);
  EXPECT_EQ(control_->evictions, 0);
  EXPECT_THAT(TiersOf((*model)->name()), testing::ElementsAre("host"));
  ASSERT_TRUE(rig_->KeepOnly((*model)->name(), {}).ok());
  EXPECT_EQ(control_->evictions, 1);
  EXPECT_THAT(TiersOf((*model)->name()), IsEmpty());
}

TEST_F(RigTest, ADeviceThatThisProcessHasNotIsExplained) {
  const Status status =
      Rig::Make(*control_, observer_,
                {.runtime_dir = daemon_.runtime_dir(),
                 .daemon_uid = ::geteuid(),
                 .place = {.tier = "gpu:GPU-none", .uuid = "GPU-none", .text = "gpu:0"}})
          .status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), testing::StartsWith("this process can not use gpu:0: "));
}

TEST_F(RigTest, WithoutADaemonThereIsNoRig) {
  const Status status =
      Rig::Make(*control_, observer_, {.runtime_dir = directory_, .daemon_uid = 0, .place = {}})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr(directory_));
}

// --- What is measured -------------------------------------------------------------

void ExpectMeasured(const Samples& samples, size_t count) {
  EXPECT_EQ(samples.size(), count);
  EXPECT_GT(samples.Min(), 0);
}

TEST_F(RigTest, EveryOpenIsMeasuredWithItsFloor) {
  const Result<OpenFigures> figures = MeasureOpens(*rig_, Spec(2 * kMiB, 8), 6);
  ASSERT_TRUE(figures.ok()) << figures.status().ToString();
  EXPECT_EQ(figures->bytes, 2 * kMiB);
  EXPECT_GE(figures->allocated_bytes, 2 * kMiB);
  EXPECT_EQ(figures->tensors, 8u);
  EXPECT_TRUE(figures->interleaved);
  for (const Samples* samples :
       {&figures->open, &figures->close, &figures->floor_open, &figures->floor_close}) {
    ExpectMeasured(*samples, 6);
  }
  EXPECT_GT(figures->cold, figures->open.Min());  // It hashed and loaded.
  ExpectNothingLeft();
}

TEST_F(RigTest, EveryLoadIsALoadAndMeasuredWithItsFloor) {
  const LoadSource source = {.from = From::kPageCache, .peer = {}, .text = "the page cache"};
  const Result<LoadFigures> figures = MeasureLoads(*rig_, source, Spec(2 * kMiB), 3);
  ASSERT_TRUE(figures.ok()) << figures.status().ToString();
  ExpectMeasured(figures->load, 3);
  EXPECT_EQ(control_->evictions, 3 + 1);  // Before each, and at the end.
  ASSERT_EQ(figures->floors.size(), 1u);
  EXPECT_EQ(figures->floors[0].key, "page_cache_read");
  EXPECT_GT(figures->floors[0].bytes, 2 * kMiB);  // The file, with its header.
  ExpectMeasured(figures->floors[0].samples, 3);
  EXPECT_DOUBLE_EQ(figures->Rate() * figures->load.Median(), 2.0 * kMiB);
  EXPECT_FALSE(figures->floors[0].measure);
  ExpectNothingLeft();
}

TEST_F(RigTest, InterruptedMeasurementsCleanUp) {
  ASSERT_EQ(::raise(SIGINT), 0);
  EXPECT_EQ(MeasureOpens(*rig_, Spec(kMiB), 1000).status().code(), StatusCode::kCancelled);
  ExpectNothingLeft();
}

TEST_F(RigTest, AnInterruptWhileItIsMeasuredCleansUp) {
  class Interrupting final : public Observer {
   public:
    void Show(const Step&) override {}
    void Clear() override {
      if (++cleared == 2) ::raise(SIGTERM);  // The model was written, and loaded.
    }
    void Left(const std::string& model, const Status&) override { ADD_FAILURE() << model; }
    int cleared = 0;
  } observer;
  rig_.reset();  // One catches interrupts at a time.
  Result<std::unique_ptr<Rig>> rig =
      Rig::Make(*control_, observer,
                {.runtime_dir = daemon_.runtime_dir(), .daemon_uid = ::geteuid(), .place = {}});
  ASSERT_TRUE(rig.ok());
  EXPECT_EQ(MeasureOpens(**rig, Spec(kMiB), 1'000'000).status().code(), StatusCode::kCancelled);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace trims::bench

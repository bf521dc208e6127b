#include "tier/fake_tier.h"

#include <future>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tier/tier_conformance.h"

namespace trims {
namespace {

const TierFactory kFake([] { return std::make_unique<FakeTier>(); });
INSTANTIATE_TEST_SUITE_P(Fake, TierConformance, ::testing::Values(kFake));
INSTANTIATE_TEST_SUITE_P(Fake, MappableTierConformance, ::testing::Values(kFake));

class FakeTierTest : public ::testing::Test {
 protected:
  FakeTierTest()
      : model_(
            IngestTestModel(directory_.Write("w", format::WriteSafetensors(tensors_)), tensors_)),
        layout_(MakeLayout(*model_.manifest, store::Granularity::kLayer).value()) {}

  const std::vector<format::TestTensor> tensors_ = {NoiseTensor("a", 100, 1),
                                                    NoiseTensor("b", 200, 2)};
  const TemporaryDirectory directory_;
  const IngestedModel model_;
  const Layout layout_;
  FakeTier tier_;
};

TEST_F(FakeTierTest, FailsAsOftenAsAsked) {
  tier_.FailLoads(DataLossError("bad disk"), 2);
  LoadControl control;
  EXPECT_EQ(tier_.Load(model_.Job(layout_), control).status().message(), "bad disk");
  EXPECT_EQ(tier_.Load(model_.Job(layout_), control).status().message(), "bad disk");
  EXPECT_TRUE(tier_.Load(model_.Job(layout_), control).ok());
  EXPECT_EQ(tier_.loads_started(), 3);
  EXPECT_EQ(tier_.loads_failed(), 2);
  EXPECT_EQ(tier_.loads_finished(), 1);
  EXPECT_EQ(tier_.loads_of(layout_.extents[0].key), 1);
}

TEST_F(FakeTierTest, HoldsLoadsUntilReleased) {
  tier_.Hold();
  LoadControl control;
  std::thread loader([&] { EXPECT_TRUE(tier_.Load(model_.Job(layout_), control).ok()); });
  tier_.WaitUntilHeld();
  EXPECT_EQ(tier_.loads_finished(), 0);
  tier_.Release();
  loader.join();
  EXPECT_EQ(tier_.loads_finished(), 1);
}

TEST_F(FakeTierTest, AHeldLoadCanBeCancelled) {
  tier_.Hold();
  LoadControl control;
  std::thread loader([&] {
    EXPECT_EQ(tier_.Load(model_.Job(layout_), control).status().code(), StatusCode::kCancelled);
  });
  tier_.WaitUntilHeld();
  control.cancelled = true;
  loader.join();
}

TEST_F(FakeTierTest, DamageShowsInVerify) {
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_.Load(model_.Job(layout_), control);
  ASSERT_TRUE(resident.ok());
  tier_.Damage(layout_.extents[1].key);
  EXPECT_TRUE(tier_.Verify((*resident)[0], layout_.extents[0], *model_.manifest, control).ok());
  EXPECT_EQ(tier_.Verify((*resident)[1], layout_.extents[1], *model_.manifest, control).code(),
            StatusCode::kDataLoss);
}

TEST_F(FakeTierTest, HasAsMuchMemoryAsSet) {
  tier_.SetMachineBytes(kHostPageBytes);
  LoadControl control;
  EXPECT_EQ(tier_.Load(model_.Job(layout_), control).status().code(),
            StatusCode::kResourceExhausted);
  tier_.SetMachineBytes(2 * kHostPageBytes);
  EXPECT_TRUE(tier_.Load(model_.Job(layout_), control).ok());
}

TEST_F(FakeTierTest, SyntheticModelsNeedNoFile) {
  tier_.SetSynthetic(true);
  LoadJob job = model_.Job(layout_);
  job.source = nullptr;
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_.Load(job, control);
  ASSERT_TRUE(resident.ok()) << resident.status().ToString();
  EXPECT_TRUE(tier_.Verify((*resident)[0], layout_.extents[0], *model_.manifest, control).ok());
}

TEST_F(FakeTierTest, ChecksWaitUntilReleasedAndAreToldInOrder) {
  LoadControl control;
  const auto extents = tier_.Load(model_.Job(layout_), control);
  ASSERT_TRUE(extents.ok());
  tier_.HoldChecks();
  std::promise<void> reached;
  LoadControl check;
  check.on_progress = [&](uint64_t done, uint64_t) {
    if (done == 0) reached.set_value();
  };
  std::thread checker([&] {
    EXPECT_EQ(tier_.Verify((*extents)[1], layout_.extents[1], *model_.manifest, check).code(),
              StatusCode::kDataLoss);
  });
  reached.get_future().wait();
  // What is arranged while it waits is what it finds.
  tier_.Damage(layout_.extents[1].key);
  tier_.ReleaseChecks();
  checker.join();
  EXPECT_EQ(tier_.verified(), std::vector<Digest>{layout_.extents[1].key});
}

TEST_F(FakeTierTest, IsAsHealthyAsTheTestSaysOrAProbeFinds) {
  EXPECT_TRUE(tier_.health().ok());
  tier_.SetHealth(UnavailableError("gone"), /*only_when_probed=*/true);
  EXPECT_TRUE(tier_.health().ok());
  EXPECT_EQ(tier_.Probe(), UnavailableError("gone"));
  EXPECT_EQ(tier_.health(), UnavailableError("gone"));
  EXPECT_EQ(tier_.probes(), 1);
}

TEST_F(FakeTierTest, SaysWhatALoadWasOfferedAndWhatTheHostHas) {
  LoadControl control;
  auto extents = tier_.Load(model_.Job(layout_), control);
  ASSERT_TRUE(extents.ok());
  EXPECT_TRUE(tier_.last_offer().has_source);
  EXPECT_TRUE(tier_.last_offer().host.empty());
  auto copy = std::make_shared<const ResidentExtent>(std::move((*extents)[0]));
  LoadJob job = model_.Job(layout_);
  job.host = {copy, nullptr};
  ASSERT_TRUE(tier_.Load(job, control).ok());
  ASSERT_EQ(tier_.last_offer().host.size(), 1u);
  EXPECT_EQ(tier_.last_offer().host.begin()->second.lock(), copy);
  job.host.clear();
  tier_.HostExtentReady(copy);
  EXPECT_EQ(tier_.host_extents(), std::set<Digest>{copy->key});
  tier_.HostExtentGone(copy->key);
  EXPECT_TRUE(tier_.host_extents().empty());
  const std::weak_ptr<const ResidentExtent> gone = copy;
  copy.reset();
  EXPECT_TRUE(gone.expired()) << "it keeps what it was offered";
}

TEST_F(FakeTierTest, MakesExtentsThatKeepAlive) {
  auto allocation = std::make_shared<const int>(1);
  const std::weak_ptr<const int> watched = allocation;
  tier_.SetAllocate([allocation] { return allocation; });
  LoadControl control;
  auto extents = tier_.Load(model_.Job(layout_), control);
  ASSERT_TRUE(extents.ok());
  tier_.SetAllocate(nullptr);
  allocation.reset();
  EXPECT_FALSE(watched.expired());
  extents = std::vector<ResidentExtent>();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace trims

#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include <limits>
#include <optional>

#include "ipc/test_huge_pages.h"
#include "tier/tier_conformance.h"

namespace trims {
namespace {

using ::testing::HasSubstr;

HostTierOptions Options(bool use_hugetlb, int io_threads) {
  HostTierOptions options;
  options.use_hugetlb = use_hugetlb;
  options.io_threads = io_threads;
  return options;
}

std::string NameOf(const ::testing::TestParamInfo<TierFactory>& tested) {
  constexpr const char* kNames[] = {"Default", "OneThread", "FiveThreads"};
  return kNames[tested.index];
}

const auto kTiers = ::testing::Values(TierFactory([] { return MakeHostTier({}); }),
                                      TierFactory([] { return MakeHostTier(Options(false, 1)); }),
                                      TierFactory([] { return MakeHostTier(Options(true, 5)); }));
INSTANTIATE_TEST_SUITE_P(Host, TierConformance, kTiers, NameOf);
INSTANTIATE_TEST_SUITE_P(Host, MappableTierConformance, kTiers, NameOf);

bool IsOnHugePages(const ResidentExtent& extent) {
  struct statfs system {};
  EXPECT_EQ(::fstatfs(extent.fd.get(), &system), 0);
  return system.f_type == HUGETLBFS_MAGIC;
}

class HostTierTest : public ::testing::Test {
 protected:
  // One extent that is large enough for 2 MiB pages, and one that is not.
  HostTierTest()
      : model_(
            IngestTestModel(directory_.Write("w", format::WriteSafetensors(tensors_)), tensors_)),
        layout_(MakeLayout(*model_.manifest, store::Granularity::kLayer).value()) {}
  void TearDown() override { EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked"; }

  void ExpectLoads(Tier& tier, bool on_huge_pages) {
    LoadControl control;
    Result<std::vector<ResidentExtent>> resident = tier.Load(model_.Job(layout_), control);
    ASSERT_TRUE(resident.ok()) << resident.status().ToString();
    ASSERT_EQ(resident->size(), 2U);
    EXPECT_EQ(IsOnHugePages((*resident)[0]), on_huge_pages);
    EXPECT_FALSE(IsOnHugePages((*resident)[1])) << "2 MiB for 100 bytes";
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(tier.Verify((*resident)[i], layout_.extents[i], *model_.manifest, control).ok());
      const Result<ResidentExtent> adopted =
          MakeHostTier({})->Adopt(layout_.extents[i], std::move((*resident)[i].fd), "");
      EXPECT_TRUE(adopted.ok()) << adopted.status().ToString();
    }
  }

  const std::vector<format::TestTensor> tensors_ = {
      NoiseTensor("large", kHugeExtentBytes + 4097, 1), NoiseTensor("small", 100, 2)};
  const TemporaryDirectory directory_;
  const IngestedModel model_;
  const Layout layout_;
  const size_t fds_before_ = OpenFdCount();
};

TEST_F(HostTierTest, UsesHugePagesForLargeExtentsWhereTheMachineHasThem) {
  const ReservedHugePages pages(12);
  if (!pages.reason().empty()) GTEST_SKIP() << pages.reason();
  ExpectLoads(*MakeHostTier({}), /*on_huge_pages=*/true);
  ExpectLoads(*MakeHostTier(Options(false, 0)),
              /*on_huge_pages=*/false);
}

TEST_F(HostTierTest, HugePagesServeTheFilesBytes) {
  const ReservedHugePages pages(12);
  if (!pages.reason().empty()) GTEST_SKIP() << pages.reason();
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident =
      MakeHostTier({})->Load(model_.Job(layout_), control);
  ASSERT_TRUE(resident.ok());
  const ReadOnlyMapping mapping =
      ReadOnlyRegion::Adopt((*resident)[0].fd.Dup().value(), (*resident)[0].map_bytes)
          ->Map()
          .value();
  EXPECT_EQ(mapping.size(), kHugeExtentBytes + kHugePageBytes);
  const std::string& expected = tensors_[0].bytes;
  EXPECT_EQ(std::memcmp(mapping.data(), expected.data(), expected.size()), 0);
}

TEST_F(HostTierTest, DoesWithoutHugePagesWhereTheMachineHasNone) {
  std::ifstream free("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  uint64_t pages = 0;
  if (free >> pages && pages > 0) GTEST_SKIP() << "this machine has free huge pages";
  ExpectLoads(*MakeHostTier({}), /*on_huge_pages=*/false);
}

TEST_F(HostTierTest, AccountsForWhatItMayTake) {
  const std::unique_ptr<Tier> tier = MakeHostTier({});
  EXPECT_EQ(tier->AllocationBytes(1), 4096U);
  EXPECT_EQ(tier->AllocationBytes(kHugeExtentBytes - 4096), kHugeExtentBytes - 4096);
  EXPECT_EQ(tier->AllocationBytes(kHugeExtentBytes), kHugeExtentBytes);
  EXPECT_EQ(tier->AllocationBytes(kHugeExtentBytes + 4096), kHugeExtentBytes + kHugePageBytes);
  const std::unique_ptr<Tier> plain = MakeHostTier(Options(false, 0));
  EXPECT_EQ(plain->AllocationBytes(kHugeExtentBytes + 1), kHugeExtentBytes + 4096);
  EXPECT_EQ(tier->name(), "host");
}

TEST_F(HostTierTest, RefusesALoadThatTheMachineHasNoMemoryFor) {
  const uint64_t need = layout_.extents[0].bytes + layout_.extents[1].bytes;
  uint64_t available = need - 1;
  HostTierOptions options = Options(false, 0);
  options.available_bytes = [&] { return available; };
  const std::unique_ptr<Tier> tier = MakeHostTier(options);
  LoadControl control;
  const Status status = tier->Load(model_.Job(layout_), control).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr(std::to_string(need)));
  EXPECT_THAT(status.message(), HasSubstr(std::to_string(available)));
  available = need;
  EXPECT_TRUE(tier->Load(model_.Job(layout_), control).ok());
}

TEST_F(HostTierTest, RunningOutOfDescriptorsIsResourceExhaustedAndLeavesNothing) {
  std::vector<format::TestTensor> many;
  for (uint64_t i = 0; i < 64; ++i) many.push_back(NoiseTensor("t" + std::to_string(i), 10, i));
  const IngestedModel model =
      IngestTestModel(directory_.Write("many", format::WriteSafetensors(many)), many);
  const Layout layout = MakeLayout(*model.manifest, store::Granularity::kLayer).value();
  const std::unique_ptr<Tier> tier = MakeHostTier({});
  const size_t fds = OpenFdCount();
  struct rlimit limit {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const struct rlimit low = {fds + 40, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  LoadControl control;
  const Status status = tier->Load(model.Job(layout), control).status();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
  EXPECT_EQ(OpenFdCount(), fds);
}

}  // namespace
}  // namespace trims

#include "tier/rho.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "tier/test_model.h"

namespace trims {
namespace {

using std::chrono::microseconds;

// 1 GB/s; 30 us for exporting and 70 us for opening one extent: 100 us together.
constexpr RhoConstants kConstants{1e9, microseconds(30), microseconds(70)};

ModelManifest ManifestOf(const std::vector<uint64_t>& sizes) {
  ModelManifest manifest;
  for (size_t i = 0; i < sizes.size(); ++i) {
    ManifestTensor tensor;
    tensor.name = std::to_string(1000 + i);
    tensor.dtype = DType::kU8;
    tensor.shape = {static_cast<int64_t>(sizes[i])};
    tensor.size_bytes = sizes[i];
    tensor.content = Sha256::Of(format::AsBytes(tensor.name));
    manifest.tensors.push_back(tensor);
  }
  FinishManifest(manifest);
  return manifest;
}

TEST(RhoTest, IsReadTimeLessSharingTime) {
  // 100 MB at 1 GB/s take 100 ms; 10 extents cost 1 ms.
  EXPECT_DOUBLE_EQ(Rho(kConstants, 100'000'000, 10), 0.099);
  // 50 kB take 50 us; one extent costs 100 us: sharing does not pay.
  EXPECT_NEAR(Rho(kConstants, 50'000, 1), -50e-6, 1e-12);
  EXPECT_NEAR(Rho(kConstants, 100'000, 1), 0, 1e-12);
  EXPECT_DOUBLE_EQ(Rho(kConstants, 0, 0), 0);
}

TEST(GranularityTest, IsLayerWhereExtentsCostNextToNothing) {
  // 1 GB: 1 s to read. 100 layers cost 10 ms, less than a tenth.
  EXPECT_EQ(ChooseGranularity(kConstants, ManifestOf(std::vector<uint64_t>(100, 10'000'000)),
                              kDefaultSlabBytes),
            store::Granularity::kLayer);
}

TEST(GranularityTest, IsSlabWhereLayersCostTooMuch) {
  // 256 MB in 512 layers of 500 kB: 256 ms to read, layers cost 51.2 ms (a fifth),
  // but 4 slabs of 64 MiB 0.4 ms.
  EXPECT_EQ(ChooseGranularity(kConstants, ManifestOf(std::vector<uint64_t>(512, 500'000)),
                              kDefaultSlabBytes),
            store::Granularity::kSlab);
}

TEST(GranularityTest, IsModelForASmallOne) {
  // 1 MB: 1 ms to read; two layers, or two slabs of 512 KiB, take a tenth of that
  // more than one extent: rho falls from 0.9 to 0.8 ms.
  EXPECT_EQ(ChooseGranularity(kConstants, ManifestOf({500'000, 500'000}), 512 * kKiB),
            store::Granularity::kModel);
}

TEST(GranularityTest, IsModelWhereSharingDoesNotPayAtAll) {
  EXPECT_EQ(ChooseGranularity(kConstants, ManifestOf({10}), kDefaultSlabBytes),
            store::Granularity::kModel);
  EXPECT_EQ(ChooseGranularity(kConstants, ManifestOf({}), kDefaultSlabBytes),
            store::Granularity::kModel);
}

TEST(GranularityTest, TheBoundaryIsNineTenths) {
  // rho(model) = 10.1 ms - 0.1 ms = 10 ms, of which 9 ms must be left: 11 extents
  // (10.1 - 1.1 = 9 ms) are the most.
  const RhoConstants constants{1e9, microseconds(0), microseconds(100)};
  std::vector<uint64_t> sizes(10, 918'000);
  sizes.push_back(920'100);  // 10,100,100 bytes: just above the boundary.
  EXPECT_EQ(ChooseGranularity(constants, ManifestOf(sizes), kDefaultSlabBytes),
            store::Granularity::kLayer);
  sizes.back() = 460'000;
  sizes.push_back(460'100);
  EXPECT_EQ(ChooseGranularity(constants, ManifestOf(sizes), kDefaultSlabBytes),
            store::Granularity::kSlab);
}

TEST(MeasureTest, GivesUsableConstantsAndLeavesNothingBehind) {
  const TemporaryDirectory directory;
  const size_t fds = OpenFdCount();
  const RhoConstants constants = MeasureRhoConstants(directory.path());
  EXPECT_GT(constants.read_bytes_per_second, 0);
  EXPECT_GT(constants.export_cost.count(), 0);
  EXPECT_GT(constants.open_cost.count(), 0);
  EXPECT_EQ(OpenFdCount(), fds);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(MeasureTest, AssumesAReadRateWhereItCanNotWrite) {
  EXPECT_EQ(MeasureRhoConstants("/nonexistent/directory").read_bytes_per_second, 1e9);
}

}  // namespace
}  // namespace trims

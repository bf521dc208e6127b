// The floor of opens maps, and leaves nothing mapped.
#include "bench/mapping_floor.h"

#include <cstdint>

#include "base/limits.h"
#include "bench/test_bench.h"

namespace trims::bench {
namespace {

class MappingFloorTest : public BenchTest {};

TEST_F(MappingFloorTest, AMappingIsMadeAndTakenAwayEachTime) {
  const int descriptors = Descriptors();
  {
    const Result<HostMappingFloor> floor = HostMappingFloor::Make(64 * kMiB);
    ASSERT_TRUE(floor.ok()) << floor.status().ToString();
    EXPECT_EQ(Descriptors(), descriptors + 2);  // The weights and their index.
    for (int i = 0; i < 10; ++i) {
      const Result<OpenTimes> times = floor->Measure();
      ASSERT_TRUE(times.ok()) << times.status().ToString();
      EXPECT_GT(times->open, 0);
      EXPECT_GT(times->close, 0);
      EXPECT_EQ(Mappings(), 0);
    }
  }
  EXPECT_EQ(Descriptors(), descriptors);
}

TEST_F(MappingFloorTest, MemoryThatCanNotBeMappedIsAnErrorAndLeavesNothing) {
  const Result<HostMappingFloor> floor = HostMappingFloor::Make(uint64_t{1} << 60);
  if (floor.ok()) {  // No address space is as large.
    EXPECT_FALSE(floor->Measure().ok());
  }
  EXPECT_EQ(Mappings(), 0);
}

TEST_F(MappingFloorTest, WithoutADeviceTheFloorIsTheHosts) {
  MappingFloor floor(nullptr);
  ASSERT_TRUE(floor.Make(kMiB).ok());
  EXPECT_TRUE(floor.Measure().ok());
  ASSERT_TRUE(floor.Make(2 * kMiB).ok());  // Again, in another size.
  EXPECT_TRUE(floor.Measure().ok());
}

}  // namespace
}  // namespace trims::bench

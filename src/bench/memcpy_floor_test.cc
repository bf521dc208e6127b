// The floor of copies copies all of it.
#include "bench/memcpy_floor.h"

#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "bench/test_bench.h"

namespace trims::bench {
namespace {

class MemcpyFloorTest : public BenchTest {};

TEST_F(MemcpyFloorTest, AllOfTheMemoryIsCopiedByAnyNumberOfThreads) {
  constexpr uint64_t kBytes = 3 * kMiB + 1;
  for (const unsigned threads : {1U, 2U, 3U, 7U}) {
    const Result<MemcpyFloor> floor = MemcpyFloor::Make(kBytes);
    ASSERT_TRUE(floor.ok()) << floor.status().ToString();
    ASSERT_EQ(*floor->PeekCopy(), std::byte{2});
    EXPECT_GT(floor->Measure(threads), 0);
    uint64_t copied = 0;
    for (uint64_t i = 0; i < kBytes; ++i) copied += floor->PeekCopy()[i] == std::byte{1};
    EXPECT_EQ(copied, kBytes) << threads;
  }
}

TEST_F(MemcpyFloorTest, MoreThreadsThanBytesCopyTheSame) {
  const Result<MemcpyFloor> floor = MemcpyFloor::Make(3);
  ASSERT_TRUE(floor.ok());
  floor->Measure(8);
  EXPECT_EQ(floor->PeekCopy()[2], std::byte{1});
}

}  // namespace
}  // namespace trims::bench

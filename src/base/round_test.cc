#include "base/round.h"

#include <gtest/gtest.h>

#include <limits>

namespace trims {
namespace {

TEST(RoundTest, GoesToTheNextWholeUnitAndStaysOnOne) {
  for (const uint64_t unit : {1, 3, 256, 4096}) {
    for (uint64_t whole = 0; whole <= 3 * unit; whole += unit) {
      EXPECT_EQ(RoundUp(whole, unit), whole);
      EXPECT_EQ(RoundDown(whole, unit), whole);
      for (uint64_t more = 1; more < unit; ++more) {
        ASSERT_EQ(RoundUp(whole + more, unit), whole + unit) << unit;
        ASSERT_EQ(RoundDown(whole + more, unit), whole) << unit;
      }
    }
  }
}

TEST(RoundTest, ReachesTheLargestWholeUnit) {
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(RoundUp(kMost - 4096, 4096), kMost - 4095);
  EXPECT_EQ(RoundDown(kMost, 4096), kMost - 4095);
}

}  // namespace
}  // namespace trims

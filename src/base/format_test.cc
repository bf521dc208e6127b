#include "base/format.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace trims {
namespace {

TEST(FormatBytes, PicksTheUnitThatKeepsTheNumberShort) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(528ull << 20), "528.0 MiB");
  EXPECT_EQ(FormatBytes((1ull << 30) - 1), "1.0 GiB");
  EXPECT_EQ(FormatBytes(139ull << 30), "139.0 GiB");
  EXPECT_EQ(FormatBytes(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
}

}  // namespace
}  // namespace trims

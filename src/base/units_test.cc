#include "base/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <optional>

#include "base/limits.h"

namespace trims {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using testing::StartsWith;

TEST(UnitsTest, SizesNeedUnits) {
  EXPECT_EQ(*ParseSize("64MiB"), 64 * kMiB);
  EXPECT_EQ(*ParseSize("8 GiB"), 8 * kGiB);
  EXPECT_EQ(*ParseSize("1.5GB"), 1'500'000'000u);
  EXPECT_EQ(*ParseSize(" 3kib "), 3072u);
  EXPECT_EQ(*ParseSize("0B"), 0u);
  EXPECT_EQ(*ParseSize("7B"), 7u);
  EXPECT_EQ(*ParseSize("0.5TiB"), 512 * kGiB);
  EXPECT_EQ(*ParseSize("1PB"), 1'000'000'000'000'000u);
  EXPECT_EQ(*ParseSize("9223372036854775807B"), uint64_t{std::numeric_limits<int64_t>::max()});
  for (const char* text :
       {"", "64", "MiB", "64M", "-1MiB", "1e3MiB", "80%", "64MiBs", "1..5GB", "1.GB", ".", "0x10B",
        "9223372036854775808B", "99999999999999999999B", "8192PiB", "1 2MiB", "1.5", "+1KiB"}) {
    EXPECT_EQ(ParseSize(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(ParseSize("64").status().message(),
              StartsWith("found \"64\", expected a size with its unit"));
}

TEST(UnitsTest, KeepAliveNeedsUnitsOrAWord) {
  EXPECT_EQ(*ParseKeepAlive("250ms"), milliseconds(250));
  EXPECT_EQ(*ParseKeepAlive("5m"), minutes(5));
  EXPECT_EQ(*ParseKeepAlive("1h30m"), minutes(90));
  EXPECT_EQ(*ParseKeepAlive("1.5h"), minutes(90));
  EXPECT_EQ(*ParseKeepAlive("2d"), hours(48));
  EXPECT_EQ(*ParseKeepAlive("3us"), microseconds(3));
  EXPECT_EQ(*ParseKeepAlive("3\xc2\xb5s"), microseconds(3));
  EXPECT_EQ(*ParseKeepAlive("9ns"), nanoseconds(9));
  EXPECT_EQ(*ParseKeepAlive("0"), nanoseconds(0));
  EXPECT_EQ(*ParseKeepAlive("0s"), nanoseconds(0));
  for (const char* text : {"forever", "FOREVER", "-1", "-5m", "-1s"}) {
    const auto parsed = ParseKeepAlive(text);
    ASSERT_TRUE(parsed.ok()) << text;
    EXPECT_EQ(*parsed, std::nullopt) << text;
  }
  for (const char* text : {"", "5", "300", "m", "5 m", "5x", "1h30", "never", "-", "-m", "--1",
                           "1e3s", "300y", "293000d", "9223372036854775808ns", "5m-3s"}) {
    EXPECT_EQ(ParseKeepAlive(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(UnitsTest, BooleansAreFourWordsInAnyCase) {
  for (const char* text : {"true", "TRUE", "True", "1"}) EXPECT_TRUE(*ParseBool(text)) << text;
  for (const char* text : {"false", "FALSE", "fAlse", "0"}) EXPECT_FALSE(*ParseBool(text)) << text;
  for (const char* text : {"", "yes", "no", "on", "off", "t", "2", "01", "truee"}) {
    EXPECT_EQ(ParseBool(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(UnitsTest, SizesAreShownForPeople) {
  EXPECT_EQ(FormatSize(0), "0 B");
  EXPECT_EQ(FormatSize(1023), "1023 B");
  EXPECT_EQ(FormatSize(1024), "1.0 KiB");
  EXPECT_EQ(FormatSize(1536), "1.5 KiB");
  EXPECT_EQ(FormatSize(528 * kMiB), "528.0 MiB");
  EXPECT_EQ(FormatSize(kMiB - 1), "1.0 MiB");
  EXPECT_EQ(FormatSize(kGiB - 1), "1.0 GiB");
  EXPECT_EQ(FormatSize(139 * kGiB), "139.0 GiB");
  EXPECT_EQ(FormatSize(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
}

TEST(UnitsTest, CountsAreDigitsAndNothingElse) {
  EXPECT_EQ(ParseCount("0", 0), 0u);
  EXPECT_EQ(ParseCount("0042", 42), 42u);
  EXPECT_EQ(ParseCount("18446744073709551615", std::numeric_limits<uint64_t>::max()),
            std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(ParseCount("0660", 0777, 8), 0660u);
  for (const char* text : {"", "43", "-1", "+1", " 1", "1 ", "0x1", "1.0", "1e1", "x"}) {
    EXPECT_EQ(ParseCount(text, 42), std::nullopt) << text;
  }
  EXPECT_EQ(ParseCount("18446744073709551616", std::numeric_limits<uint64_t>::max()), std::nullopt);
  EXPECT_EQ(ParseCount("8", 0777, 8), std::nullopt);
}

TEST(UnitsTest, ExactSizesAreReadBackExactly) {
  EXPECT_EQ(ExactSize(0), "0B");
  EXPECT_EQ(ExactSize(64 * kMiB), "64MiB");
  EXPECT_EQ(ExactSize(1536), "1536B");
  EXPECT_EQ(ExactSize(1024 * kGiB), "1TiB");
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kKiB, kMiB + 1, 3 * kGiB, 5000 * kGiB}) {
    EXPECT_EQ(*ParseSize(ExactSize(bytes)), bytes);
  }
}

TEST(UnitsTest, DurationsAreShownAsTheyAreRead) {
  EXPECT_EQ(FormatDuration(minutes(5)), "5m0s");
  EXPECT_EQ(FormatDuration(microseconds(120)), "120us");
  EXPECT_EQ(FormatDuration(nanoseconds(7)), "7ns");
  EXPECT_EQ(FormatDuration(nanoseconds(0)), "0s");
  EXPECT_EQ(FormatDuration(microseconds(1500)), "1.5ms");
  EXPECT_EQ(FormatDuration(milliseconds(1001)), "1.001s");
  EXPECT_EQ(FormatDuration(hours(25) + seconds(3)), "25h0m3s");
  EXPECT_EQ(FormatDuration(-seconds(90)), "-1m30s");
  EXPECT_EQ(FormatDuration(Duration::min()), "-2562047h47m16.854775808s");
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{999}, int64_t{1001}, int64_t{123456789},
        int64_t{59999999999}, int64_t{3600000000001}, std::numeric_limits<int64_t>::max()}) {
    const auto parsed = ParseKeepAlive(FormatDuration(nanoseconds(count)));
    ASSERT_TRUE(parsed.ok()) << count;
    EXPECT_EQ(*parsed, nanoseconds(count));
  }
}

}  // namespace
}  // namespace trims

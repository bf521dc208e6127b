#include "base/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace trims {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using namespace std::string_view_literals;

TEST(TextTest, OnlyAsciiLettersAreLowered) {
  EXPECT_EQ(Lower("LRU-9 Zz"), "lru-9 zz");
  EXPECT_EQ(Lower("\xc3\x89\xc0[@"), "\xc3\x89\xc0[@");
}

TEST(TextTest, TrimTakesTheNamedSpacesFromBothEnds) {
  EXPECT_EQ(Trim(" \t a b\t "), "a b");
  EXPECT_EQ(Trim("\na\n"), "\na\n");
  EXPECT_EQ(Trim("\na\r\n", " \t\r\n"), "a");
  EXPECT_EQ(Trim("  "), "");
  EXPECT_EQ(Trim(""), "");
}

TEST(TextTest, ListsAreSplitAtCommas) {
  EXPECT_THAT(SplitList(" 0 ,1,,x y"), ElementsAre("0", "1", "", "x y"));
  EXPECT_THAT(SplitList("a,"), ElementsAre("a", ""));
  EXPECT_THAT(SplitList(" "), IsEmpty());
}

TEST(TextTest, JoinKeepsEmptyParts) {
  EXPECT_EQ(Join({"a", "b", "c"}, ", "), "a, b, c");
  EXPECT_EQ(Join({"", "a", ""}, "|"), "|a|");
  EXPECT_EQ(Join({}, ", "), "");
}

TEST(TextTest, QuotesLetNothingThrough) {
  EXPECT_EQ(Quoted("plain é"), "\"plain é\"");
  EXPECT_EQ(Quoted("a\"b\\\x1b\n\x7f"), R"("a\"b\\\u001b\u000a\u007f")");
  EXPECT_EQ(Quoted(std::string("\0", 1)), R"("\u0000")");
}

TEST(TextTest, LongQuotesAreCutBetweenCharacters) {
  EXPECT_EQ(Quoted("abcdef", 6), "\"abcdef\"");
  EXPECT_EQ(Quoted("abcdef", 5), "\"abcde…\"");
  EXPECT_EQ(Quoted("ab€", 4), "\"ab…\"");
  EXPECT_EQ(Found(std::string(81, 'x'), "y"),
            "found \"" + std::string(80, 'x') + "…\", expected y");
}

TEST(TextTest, NearestIsWithinSoManyEdits) {
  EXPECT_EQ(Nearest("laod", {"load", "ls"}, 1), "load");   // A swap is one edit.
  EXPECT_EQ(Nearest("lod", {"load", "ls"}, 1), "load");    // An insertion.
  EXPECT_EQ(Nearest("looad", {"load", "ls"}, 1), "load");  // A deletion.
  EXPECT_EQ(Nearest("losd", {"load", "ls"}, 1), "load");   // A replacement.
  EXPECT_EQ(Nearest("lsod", {"load", "ls"}, 0), "");
  EXPECT_EQ(Nearest("xyzzy", {"evict", "verify"}, 3), "");
  EXPECT_EQ(Nearest("ac", {"ab", "ad"}, 1), "ab");  // The first of equals.
  EXPECT_EQ(Nearest("", {"a"}, 1), "a");
  EXPECT_EQ(Nearest(std::string(65, 'a'), {std::string(65, 'a')}, 9), "");
}

TEST(Utf8Test, IsCheckedToTheLastByte) {
  for (const std::string_view good :
       {""sv, "a"sv, "plain, é, €, 😀"sv, "\xc2\x80"sv, "\xdf\xbf"sv, "\xe0\xa0\x80"sv,
        "\xed\x9f\xbf"sv, "\xef\xbf\xbf"sv, "\xf0\x90\x80\x80"sv, "\xf4\x8f\xbf\xbf"sv}) {
    EXPECT_TRUE(IsValidUtf8(good)) << Quoted(good);
    EXPECT_EQ(ToValidUtf8(good), good);
  }
  for (const std::string_view bad :
       {"\x80"sv, "\xc0\x80"sv, "\xc1\xbf"sv, "\xc2"sv, "\xc3"sv, "\xc2\x41"sv, "\xe0\x80\x80"sv,
        "\xe0\x9f\xbf"sv, "\xed\xa0\x80"sv, "\xe1\x80"sv, "a\xe2\x82"sv, "\xf0\x8f\xbf\xbf"sv,
        "\xf4\x90\x80\x80"sv, "\xf5\x80\x80\x80"sv, "\xff"sv, "\xf1\x80\x80"sv}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << Quoted(bad);
    EXPECT_TRUE(IsValidUtf8(ToValidUtf8(bad))) << Quoted(bad);
  }
  EXPECT_EQ(ToValidUtf8("a\xff\xc3z"), "a\xef\xbf\xbd\xef\xbf\xbdz");
}

TEST(Utf8Test, IsCutBetweenCharacters) {
  const std::string_view text = "aé€😀";  // 1, 2, 3 and 4 bytes.
  const size_t ends[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10};
  for (size_t most = 0; most < std::size(ends); ++most) {
    EXPECT_EQ(CutUtf8(text, most), text.substr(0, ends[most])) << most;
  }
}

}  // namespace
}  // namespace trims

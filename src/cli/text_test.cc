// How things are written for people.
#include "cli/text.h"

#include <google/protobuf/util/time_util.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

TEST(TextTest, TablesAreCutToTheWidthOfTheTerminal) {
  Table table({"NAME", ">SIZE"});
  table.AddRow({"a-name-that-is-much-too-long-for-the-line", "1 B"});
  table.AddRow({"é€", "22 B"});
  const std::vector<std::string> lines = Lines(table.Render(24));
  EXPECT_THAT(lines, ElementsAre("NAME                SIZE", "a-name-that-is-mu…   1 B",
                                 "é€                  22 B"));
  EXPECT_THAT(table.Render(), HasSubstr("too-long-for-the-line   1 B"));
}

TEST(TextTest, NearestIsQuietWhenNothingIsNear) {
  EXPECT_EQ(Nearest("laod", {"load", "ls"}), "load");
  EXPECT_EQ(Nearest("evit", {"evict", "verify"}), "evict");
  EXPECT_EQ(Nearest("xyzzy", {"evict", "verify", "load"}), "");
}

using google::protobuf::util::TimeUtil;

TEST(TextTest, ControlCharactersAndBrokenUtf8BecomeVisible) {
  EXPECT_EQ(Printable("plain é € 😀"), "plain é € 😀");
  EXPECT_EQ(Printable("a\tb\r\n\x1b[31m\x7f"), "a?b???[31m?");
  EXPECT_EQ(Printable("\xc2\x9b"), "?");         // U+009B: a control sequence begins.
  EXPECT_EQ(Printable("\xc2\xa9"), "\xc2\xa9");  // U+00A9 is a letter.
  const std::string repaired = Printable("x\xff\xc3y");
  EXPECT_THAT(repaired, AllOf(StartsWith("x"), EndsWith("y"), Not(HasSubstr("\xff"))));
}

TEST(TextTest, WidthCountsCharactersAndNotBytes) {
  EXPECT_EQ(DisplayWidth(""), 0u);
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("é€😀"), 3u);
}

TEST(TextTest, ColumnsAreAlignedByCharacters) {
  Table table({"NAME", ">N", "LAST"});
  table.AddRow({"é€😀", "1", "x"});
  table.AddRow({"plain", "222", ""});
  EXPECT_EQ(table.Render(),
            "NAME     N  LAST\n"
            "é€😀      1  x\n"
            "plain  222  -\n");
}

TEST(TextTest, MissingCellsAreDashesAndLinesHaveNoSpacesAtTheirEnds) {
  Table table({"A", "B", "C"});
  EXPECT_TRUE(table.empty());
  table.AddRow({"1"});
  EXPECT_FALSE(table.empty());
  EXPECT_EQ(table.Render(), "A  B  C\n1  -  -\n");
  Table wide({"A", "LONG HEADER"});
  wide.AddRow({"1", "2"});
  EXPECT_EQ(wide.Render(), "A  LONG HEADER\n1  2\n");
}

TEST(TextTest, ANarrowTerminalCutsTheWidestCellsFirstAndNoneToNothing) {
  Table table({"SHORT", "LONG"});
  table.AddRow({"12345", std::string(60, 'x')});
  for (const size_t columns : {60, 40, 24}) {
    for (const std::string& line : Lines(table.Render(columns))) {
      EXPECT_LE(DisplayWidth(line), columns) << line;
    }
    EXPECT_THAT(table.Render(columns), HasSubstr("12345  x"));
  }
  // Narrower than can be read: lines are broken rather than emptied.
  EXPECT_EQ(Lines(table.Render(5))[1], "12345  " + std::string(11, 'x') + "…");
}

TEST(TextTest, CellsAreCutBetweenCharacters) {
  Table table({"NAME"});
  std::string name;
  for (int i = 0; i < 30; ++i) name += "€";
  table.AddRow({name});
  std::string cut;
  for (int i = 0; i < 14; ++i) cut += "€";
  EXPECT_EQ(Lines(table.Render(15))[1], cut + "…");
}

TEST(TextTest, CellsCanNotBreakALine) {
  Table table({"NAME", "N"});
  table.AddRow({"two\nlines", "1"});
  EXPECT_EQ(Lines(table.Render()).size(), 2u);
}

TEST(TextTest, APipeHasNoColumnsAndNoColours) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(TerminalColumns(ends[1]), 0u);
  EXPECT_FALSE(UseColor(ends[1]));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(TextTest, DigestsAreTwelveDigitsUnlessAllAreWanted) {
  EXPECT_EQ(DigestText(kDigestA, false), "aaaaaaaaaaaa");
  EXPECT_EQ(DigestText(kDigestA, true), kDigestA);
  EXPECT_EQ(DigestText("", false), "");
  EXPECT_EQ(DigestText("abc", false), "abc");
}

TEST(TextTest, AModelIsCalledWhatOtherCommandsAccept) {
  v1::ModelView model;
  model.set_digest(kDigestA);
  EXPECT_EQ(ModelText(model), "@" + kDigestA);
  model.set_name("vgg16");
  EXPECT_EQ(ModelText(model), "vgg16");
  model.set_origin(v1::MODEL_ORIGIN_DESCRIPTOR);  // The name is a label then.
  EXPECT_EQ(ModelText(model), "@" + kDigestA);
}

TEST(TextTest, UsersWithoutANameAreNumbers) {
  EXPECT_EQ(UserText(0), "root");
  EXPECT_EQ(UserText(3'999'999'999), "3999999999");
}

TEST(TextTest, TimesAreRelativeToNow) {
  const auto in = [](int64_t seconds) {
    return RelativeTime(true, TimeUtil::GetCurrentTime() + TimeUtil::SecondsToDuration(seconds));
  };
  EXPECT_EQ(RelativeTime(false, TimeUtil::GetCurrentTime()), "-");
  EXPECT_THAT(in(3600), testing::AnyOf("1h0m0s from now", "59m59s from now", "1h from now"));
  EXPECT_THAT(in(-86400), EndsWith(" ago"));
}

TEST(TextTest, LocalTimesAreInTheZoneOfTheMachine) {
  ::setenv("TZ", "UTC-2", 1);
  ::tzset();
  EXPECT_EQ(LocalTime(TimeUtil::SecondsToTimestamp(0)), "1970-01-01 02:00:00");
  ::unsetenv("TZ");
  ::tzset();
}

TEST(TextTest, WhatEndsAReplicaDependsOnItsStateFirst) {
  v1::ReplicaView replica;
  replica.set_state(v1::REPLICA_STATE_READY);
  EXPECT_EQ(UntilText(replica), "evicted");
  *replica.mutable_until() = TimeUtil::GetCurrentTime() + TimeUtil::HoursToDuration(100);
  EXPECT_THAT(UntilText(replica), EndsWith(" from now"));
  replica.set_leases(1);
  EXPECT_EQ(UntilText(replica), "released");
  replica.set_pinned(true);
  EXPECT_EQ(UntilText(replica), "unpinned");
  replica.set_state(v1::REPLICA_STATE_LOADING);
  EXPECT_EQ(UntilText(replica), "loaded");
  replica.set_state(v1::REPLICA_STATE_QUARANTINED);
  EXPECT_EQ(UntilText(replica), "released");
  replica.set_leases(0);
  EXPECT_EQ(UntilText(replica), "-");
  EXPECT_EQ(StateText(replica), "quarantined");
}

TEST(TextTest, EnumeratorsLoseTheirPrefix) {
  EXPECT_EQ(EnumText("REPLICA_STATE_READY", "REPLICA_STATE_"), "ready");
  EXPECT_EQ(EnumText("OTHER_THING", "REPLICA_STATE_"), "other_thing");
  EXPECT_EQ(EnumText("", "REPLICA_STATE_"), "unknown");  // Newer than this program.
}

TEST(TextTest, RatesAreDecimalAndTimesAreShort) {
  EXPECT_EQ(RateText(55.12e9), "55.1 GB/s");
  EXPECT_EQ(RateText(0), "0.0 GB/s");
  EXPECT_EQ(SecondsText(0.0123), "12.3 ms");
  EXPECT_EQ(SecondsText(0.25), "0.2 s");
  EXPECT_EQ(SecondsText(90), "90.0 s");
}

TEST(TextTest, SwappedAndForgottenLettersAreNear) {
  EXPECT_EQ(Nearest("verfiy", {"evict", "verify"}), "verify");
  EXPECT_EQ(Nearest("stat", {"status", "start"}), "start");
  EXPECT_EQ(Nearest("", {"ls"}), "");
  EXPECT_EQ(Nearest("ls", {}), "");
}

}  // namespace
}  // namespace trims::cli

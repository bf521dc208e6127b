#include "daemon/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/unique_fd.h"

namespace trims {
namespace {

// What `work` writes to stderr, with the log set up as `options` say.
std::string Logged(const LogOptions& options, const std::function<void()>& work) {
  InitLog(options);
  testing::internal::CaptureStderr();
  work();
  std::string text = testing::internal::GetCapturedStderr();
  InitLog({});
  return text;
}

TEST(LogTest, EventAndFieldsAreOneLine) {
  EXPECT_EQ(FormatLogEvent("model ready", {{"name", "vgg16_1.0"},
                                           {"bytes", 553433088ULL},
                                           {"delta", -3},
                                           {"hit", true},
                                           {"rate", 0.8},
                                           {"took", std::chrono::microseconds(12345)}}),
            "model ready name=vgg16_1.0 bytes=553433088 delta=-3 hit=true rate=0.8 took=12.345ms");
}

TEST(LogTest, ValuesAreQuotedWhereTheyNeedIt) {
  EXPECT_EQ(
      FormatLogEvent("x", {{"a", "two words"}, {"b", ""}, {"c", "k=v"}, {"d", "say \"hi\"\\"}}),
      R"(x a="two words" b="" c="k=v" d="say \"hi\"\\")");
}

TEST(LogTest, ControlCharactersCanNotForgeALineOrATerminalCommand) {
  const std::string hostile = "a\n2026-01-01T00:00:00.000Z error forged\r\x1b[2J\x7f\t";
  const std::string line = FormatLogEvent("open failed", {{"name", hostile}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line,
            "open failed name=\"a\\n2026-01-01T00:00:00.000Z error forged\\x0d\\x1b[2J\\x7f\\t\"");
  // NUL, C1 controls, line separators and bytes that are not UTF-8.
  EXPECT_EQ(FormatLogEvent("x", {{"v", std::string("\0", 1)}}), R"(x v="\x00")");
  EXPECT_EQ(FormatLogEvent("x", {{"v", "\xc2\x9b"}}), R"(x v="\xc2\x9b")");
  EXPECT_EQ(FormatLogEvent("x", {{"v", "\xe2\x80\xa8"}}), R"(x v="\xe2\x80\xa8")");
  EXPECT_EQ(FormatLogEvent("x", {{"v", "\xff\xc3"}}), R"(x v="\xff\xc3")");
  EXPECT_EQ(FormatLogEvent("x", {{"v", "Modèle"}}), "x v=Modèle");
}

TEST(LogTest, LongValuesAreCutBetweenCharacters) {
  std::string text(2047, 'a');
  text += "é and the rest";
  const std::string line = FormatLogEvent("x", {{"v", text}});
  EXPECT_EQ(line, "x v=\"" + std::string(2047, 'a') + "…\"");
}

TEST(LogTest, StatusIsLoggedAsText) {
  EXPECT_EQ(FormatLogEvent("load failed", {{"error", NotFoundError("no model named x")}}),
            R"(load failed error="NOT_FOUND: no model named x")");
}

TEST(LogTest, PointersAreNotValues) {
  static_assert(!std::is_constructible_v<LogField, std::string_view, void*>);
  static_assert(!std::is_constructible_v<LogField, std::string_view, const int*>);
  static_assert(std::is_constructible_v<LogField, std::string_view, const char*>);
}

TEST(LogTest, LinesOnATerminalCarryTimeAndLevel) {
  const std::string text = Logged({}, [] {
    LogInfo("model ready", {{"name", "a"}});
    LogWarn("slow disk");
    LogError("failed {}", {{"braces", "{} %s"}});
  });
  const std::string time = R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)";
  EXPECT_TRUE(std::regex_match(
      text, std::regex(time + " info model ready name=a\n" + time + " warn slow disk\n" + time +
                       R"( error failed \{\} braces="\{\} %s")" + "\n")))
      << text;
}

TEST(LogTest, LinesInTheJournalCarryPriorities) {
  const std::string text = Logged({.level = LogLevel::kTrace, .journal = true}, [] {
    LogTrace("a");
    LogDebug("b");
    LogInfo("c");
    LogWarn("d");
    LogError("e");
  });
  EXPECT_EQ(text, "<7>a\n<7>b\n<6>c\n<4>d\n<3>e\n");
}

TEST(LogTest, LinesBelowTheLevelAreNotWritten) {
  const std::string text = Logged({.level = LogLevel::kWarn, .journal = true}, [] {
    LogInfo("hidden");
    EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
    SetLogLevel(LogLevel::kDebug);
    EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
    LogDebug("shown");
    LogTrace("hidden");
  });
  EXPECT_EQ(text, "<7>shown\n");
}

TEST(LogTest, LevelsAreParsedInAnyCase) {
  for (const LogLevel level :
       {LogLevel::kTrace, LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarn, LogLevel::kError}) {
    const auto parsed = ParseLogLevel(LogLevelName(level));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, level);
  }
  EXPECT_EQ(*ParseLogLevel("WARN"), LogLevel::kWarn);
  EXPECT_EQ(ParseLogLevel("loud").status().message(),
            "found the log level \"loud\", expected trace, debug, info, warn or error");
}

TEST(LogTest, JournalIsUsedOnlyWhenStderrIsTheJournal) {
  struct stat status {};
  ASSERT_EQ(::fstat(STDERR_FILENO, &status), 0);
  const std::string mine = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
  ::setenv("JOURNAL_STREAM", mine.c_str(), 1);
  EXPECT_TRUE(LogOptionsFromEnvironment(LogLevel::kInfo).journal);
  ::setenv("JOURNAL_STREAM", "1:1", 1);
  EXPECT_FALSE(LogOptionsFromEnvironment(LogLevel::kInfo).journal);
  ::unsetenv("JOURNAL_STREAM");
  EXPECT_FALSE(LogOptionsFromEnvironment(LogLevel::kInfo).journal);
  EXPECT_EQ(LogOptionsFromEnvironment(LogLevel::kDebug).level, LogLevel::kDebug);
}

TEST(LogTest, LinesOfManyThreadsAreNotMixed) {
  constexpr int kThreads = 8;
  constexpr int kLines = 200;
  const std::string text = Logged({.level = LogLevel::kInfo, .journal = true}, [] {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) LogInfo("line", {{"thread", t}, {"i", i}, {"end", "x"}});
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  std::istringstream in(text);
  const std::regex whole(R"(<6>line thread=\d i=\d+ end=x)");
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines)
    EXPECT_TRUE(std::regex_match(line, whole)) << line;
  EXPECT_EQ(lines, kThreads * kLines);
}

}  // namespace
}  // namespace trims

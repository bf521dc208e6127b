#include "daemon/settings_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "daemon/test_config.h"

namespace trims {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

TEST_F(ConfigFileTest, BadFileValueIsNamedWithLineAndColumn) {
  const std::string path = Write("t.toml", "\n\n  eviction_policy = \"lur\"\n");
  EXPECT_THAT(
      ErrorOf(LoadConfig(Sources({}, {}, {path}))),
      StartsWith(path + ":3:21: eviction_policy: found \"lur\", expected one of never, lru"));
}

TEST(SettingsFileTest, SyntaxErrorsSayWhere) {
  EXPECT_THAT(TextError("a = \n"), StartsWith("t.toml:1:"));
  EXPECT_THAT(TextError("keep_alive = \"5m\"\nkeep_alive = \"6m\"\n"), StartsWith("t.toml:2:"));
  EXPECT_THAT(TextError("keep_alive = \"5m\n"),
              AllOf(StartsWith("t.toml:1:"), HasSubstr("not TOML")));
}

TEST(SettingsFileTest, ValuesOfTheWrongKindAreRefused) {
  EXPECT_EQ(TextError("runtime_dir = 5\n"),
            "t.toml:1:15: runtime_dir: found a bare whole number, expected a string in quotes");
  EXPECT_EQ(TextError("persist_cpu = [true]\n"),
            "t.toml:1:15: found a table or an array, expected settings only, each as key = value");
  EXPECT_EQ(TextError("persist_cpu.always = true\n"),
            "t.toml:1:1: persist_cpu: found a dotted key, expected true, false, 1 or 0");
  EXPECT_THAT(TextError("keep_alive = 300\n"),
              HasSubstr("found \"300\", expected a duration with its unit"));
  EXPECT_THAT(TextError("keep_alive = 12:00:00\n"),
              HasSubstr("found a date or time, expected a duration"));
  EXPECT_THAT(TextError("eviction_policy = true\n"),
              HasSubstr("found a boolean, expected one of never, lru"));
  EXPECT_THAT(TextError("memory_percentage = inf\n"), HasSubstr("expected a fraction above 0"));
  EXPECT_THAT(TextError("estimation_rate = true\n"),
              HasSubstr("found a boolean, expected a number"));
  EXPECT_THAT(TextError("runtime_dir = \"run\"\n"), HasSubstr("expected an absolute directory"));
  EXPECT_THAT(TextError("base_dir = \"/a\\u0000b\"\n"),
              AllOf(HasSubstr("without control characters"), HasSubstr("/a\\u0000b")));
}

TEST(SettingsFileTest, OctalModesAreReadOnlyWhenTheyLookOctal) {
  const auto quoted =
      ParseConfigText("lease_socket_mode = \"0600\"\ncontrol_socket_mode = 0o640\n", "t.toml");
  ASSERT_TRUE(quoted.ok()) << quoted.status().ToString();
  EXPECT_EQ(quoted->config.lease_socket_mode, 0600u);
  EXPECT_EQ(quoted->config.control_socket_mode, 0640u);
  EXPECT_THAT(TextError("lease_socket_mode = 600\n"), HasSubstr("expected octal permission bits"));
}

TEST(SettingsFileTest, TomlNumbersAndStringsMeanTheSame) {
  const auto loaded = ParseConfigText(
      "memory_percentage = 0.5\nestimation_rate = 2\nloader_threads = 3\nio_threads = \"5\"\n"
      "persist_cpu = 1\nuse_hugetlb = \"false\"\nhost_capacity_bytes = \"auto\"\n"
      "leased_bytes_per_uid_max = \"none\"\nkeep_alive = \"forever\"\nadmin_group = \"\"\n",
      "t.toml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.memory_percentage, 0.5);
  EXPECT_EQ(loaded->config.estimation_rate, 2.0);
  EXPECT_EQ(loaded->config.loader_threads, 3);
  EXPECT_EQ(loaded->config.io_threads, 5);
  EXPECT_FALSE(loaded->config.use_hugetlb);
  EXPECT_EQ(loaded->config.keep_alive, std::nullopt);
}

// toml++ 3.3 can not be trusted with the first and the last of these.
TEST(SettingsFileTest, TextThatNoSettingsFileNeedsNeverReachesTheParser) {
  for (const char* text :
       {"[!", "[[!x]]", "[ ", "[.a]", "[\x01\x02]", "[]", "{", "a = {b = 1}", "\x01",
        "keep_alive = \xef\xbb\xbf\"5m\"", "keep_alive =\xef\xb9\xb0 \"5m\""}) {
    EXPECT_THAT(TextError(text),
                AllOf(StartsWith("t.toml:1:"), HasSubstr("expected settings only")))
        << text;
  }
}

TEST(SettingsFileTest, StringsAndCommentsMayHoldAnything) {
  const auto loaded = ParseConfigText(
      "\xef\xbb\xbf# [x] {y} \xe2\x82\xac \" '\r\n"
      "base_dir = \"/[m]{o}\xe2\x82\xac#'\\\"\"\n"
      "state_dir = '/\\[\"'\n"
      "profile_target = \"\"\"a\"[b\\\"c\"\"\"\"\" # \"\"\" [\n"
      "admin_group = '''g['''\n"
      "keep_alive = \"\"\"\n5m\"\"\"\n"
      "log_level = \"debug\"",
      "t.toml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.base_dir, "/[m]{o}\xe2\x82\xac#'\"");
  EXPECT_EQ(loaded->config.state_dir, "/\\[\"");
  EXPECT_EQ(loaded->config.profile_target, "a\"[b\"c\"\"");
  EXPECT_EQ(loaded->config.admin_group, "g[");
  EXPECT_EQ(loaded->config.keep_alive, std::chrono::minutes(5));
  EXPECT_EQ(Entry(*loaded, "log_level").origin, "t.toml:8");
}

TEST(SettingsFileTest, StringsThatDoNotEndAreRefusedWhereTheyBegin) {
  EXPECT_EQ(TextError("log_level = \"info\"\nkeep_alive = \"5m\n[!"),
            "t.toml:2:14: not TOML: the string that begins here does not end");
  for (const char* text :
       {"base_dir = '", "base_dir = '''a''", "base_dir = \"\\", "base_dir = \"\"\"\n\\\"\"\""}) {
    EXPECT_THAT(TextError(text), StartsWith("t.toml:")) << text;
    EXPECT_THAT(TextError(text), HasSubstr(":12: not TOML: the string that begins here")) << text;
  }
}

TEST(SettingsFileTest, DeeplyNestedTextIsRefusedWithoutExhaustingTheStack) {
  std::string text = "keep_alive = ";
  text.append(200000, '[');
  EXPECT_THAT(TextError(text), StartsWith("t.toml:1:"));
}

TEST(SettingsFileTest, DocumentedFileParsesToTheDefaults) {
  const std::string text = DefaultConfigText();
  const auto commented = ParseConfigText(text, "trims.toml");
  ASSERT_TRUE(commented.ok()) << commented.status().ToString();
  for (const ConfigEntry& entry : commented->entries)
    EXPECT_EQ(entry.origin, "default") << entry.key;

  // With the # taken from the line of every setting, each is set, and to its
  // default, except where the default depends on the user.
  std::string active;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    std::string line = text.substr(begin, end - begin);
    EXPECT_LE(line.size(), 100u) << line;
    for (const ConfigKey& key : ConfigKeys()) {
      if (line.starts_with("# " + key.key + " = ")) line = line.substr(2);
    }
    active += line + "\n";
    begin = end + 1;
  }
  const auto loaded = ParseConfigText(active, "trims.toml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  for (const ConfigEntry& entry : loaded->entries) {
    EXPECT_THAT(entry.origin, StartsWith("trims.toml:")) << entry.key;
    if (entry.key == "runtime_dir" || entry.key == "state_dir" || entry.key == "base_dir") continue;
    EXPECT_EQ(entry.value, Entry(*commented, entry.key).value) << entry.key;
  }
}

}  // namespace
}  // namespace trims

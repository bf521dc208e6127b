// `trims config`: the settings in force, and files of them.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class ConfigTest : public CliTest {};

TEST_F(ConfigTest, ConfigShowAsksTheDaemonOrThisProcess) {
  StartDaemon();
  EXPECT_EQ(Run({"config", "show"}).out, "KEY              VALUE\neviction_policy  lru\n");
  EXPECT_THAT(Run({"config", "show", "--origin"}).out,
              HasSubstr("environment UPRD_EVICTION_POLICY"));
  EXPECT_EQ(json::parse(Run({"config", "show", "--json"}).out)[0]["reloadable"], true);
  StopDaemon();
  const Outcome unreachable = Run({"config", "show"});
  EXPECT_EQ(unreachable.code, 7);
  EXPECT_THAT(unreachable.err, HasSubstr("--local"));
  const Outcome local = Run({"config", "show", "--local", "--origin"});
  EXPECT_EQ(local.code, 0) << local.err;
  EXPECT_THAT(local.out, AllOf(HasSubstr("runtime_dir"), HasSubstr(directory_),
                               HasSubstr("environment TRIMS_RUNTIME_DIR")));
}

TEST_F(ConfigTest, ConfigCheckFindsMistakesAndAcceptsTheDefaultFile) {
  const Outcome defaults = Run({"config", "default"});
  EXPECT_EQ(defaults.code, 0);
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << defaults.out;
  EXPECT_EQ(Run({"config", "check", path}).code, 0);
  std::ofstream(path) << "evicton_policy = \"lru\"\n";
  const Outcome bad = Run({"config", "check", path});
  EXPECT_NE(bad.code, 0);
  EXPECT_THAT(bad.err, AllOf(HasSubstr(path), HasSubstr("evicton_policy")));
  EXPECT_EQ(Run({"config", "check", path + ".none"}).code, 3);
  EXPECT_EQ(Run({"config"}).code, 2);
}

TEST_F(ConfigTest, LocalSettingsNameWhereEachComesFrom) {
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "eviction_policy = \"lru\"\n";
  const Outcome outcome = RunWith({"config", "show", "--local", "--origin"},
                                  {"TRIMS_CONFIG=" + path, "TRIMS_LOG_LEVEL=debug"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const std::string& line : Lines(outcome.out)) {
    if (line.starts_with("eviction_policy ")) {
      EXPECT_THAT(line, HasSubstr(path));
    }
    if (line.starts_with("log_level ")) {
      EXPECT_THAT(line, AllOf(HasSubstr("debug"), HasSubstr("environment TRIMS_LOG_LEVEL")));
    }
    if (line.starts_with("memory_percentage ")) {
      EXPECT_THAT(line, HasSubstr("default"));
    }
  }
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("\neviction_policy "), HasSubstr("\nlog_level "),
                                 HasSubstr("\nmemory_percentage ")));
}

TEST_F(ConfigTest, TheFlagIsTheLastWord) {
  const json entries = RunJson({"config", "show", "--local", "--runtime-dir", "/elsewhere"});
  bool found = false;
  for (const json& entry : entries) {
    EXPECT_TRUE(entry.contains("value") && entry.contains("origin") && entry.contains("help"));
    if (entry["key"] != "runtime_dir") continue;
    found = true;
    EXPECT_EQ(entry["value"], "/elsewhere");
  }
  EXPECT_TRUE(found);
}

TEST_F(ConfigTest, WrongLocalSettingsAreErrors) {
  const Outcome outcome = RunWith({"config", "show", "--local"}, {"TRIMS_EVICTION_POLICY=mru"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("TRIMS_EVICTION_POLICY"), HasSubstr("mru"),
                                 HasSubstr("hint: correct the setting that is named\n")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(ConfigTest, AMistakeInAFileIsNamedWithItsLine) {
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "eviction_policy = \"lru\"\nmemory_percentage = 7\n";
  const Outcome outcome = Run({"config", "check", path});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr(path + ":2"), HasSubstr("memory_percentage"),
                                 HasSubstr("\"trims config default\" prints every setting")));
}

TEST_F(ConfigTest, ADirectoryIsNoFileOfSettings) {
  const Outcome outcome = Run({"config", "check", directory_});
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr(directory_), HasSubstr("irectory")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(ConfigTest, AnEmptyFileIsGood) {
  const std::string path = directory_ + "/empty.toml";
  std::ofstream(path) << "";
  const Outcome outcome = Run({"config", "check", path});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, path + " is good\n");
}

TEST_F(ConfigTest, ErrorsOfTheDaemonAreErrorsHere) {
  StartDaemon();
  ASSERT_EQ(::chmod(directory_.c_str(), 0777), 0);
  const Outcome outcome = Run({"config", "show"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr("hint: --local shows what a daemon started here would use\n"));
}

}  // namespace
}  // namespace trims::cli

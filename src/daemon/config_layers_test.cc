#include "daemon/config_layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

#include "base/limits.h"
#include "daemon/test_config.h"

namespace trims {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(ConfigLayersTest, EmptyVariableMeansTheDefault) {
  const auto loaded = LoadConfig(Sources({{"UPRD_EVICTION_POLICY", ""},
                                          {"TRIMS_KEEP_ALIVE", ""},
                                          {"UPRD_PERSIST_CPU", ""},
                                          {"UPR_BASE_DIR", ""},
                                          {"HOME", "/h"}}));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.eviction_policy, store::PolicyKind::kLru);
  EXPECT_EQ(loaded->config.base_dir, "/h/carml/data/mxnet/");
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin, "default");
  EXPECT_EQ(Entry(*loaded, "keep_alive").origin, "default");
}

TEST(ConfigLayersTest, RelativeDirectoriesOfVariablesAndFlagsBecomeAbsolute) {
  const std::string here = std::filesystem::current_path().native();
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "models/"}}).base_dir, here + "/models/");
  const auto loaded = LoadConfig(Sources({}, {{"state_dir", "s"}}));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->config.state_dir, here + "/s");
  EXPECT_EQ(Entry(*loaded, "state_dir").origin, "flag --state-dir");
}

TEST_F(ConfigFileTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const std::string low =
      Write("low.toml", "# comment\neviction_policy = \"fifo\"\nkeep_alive = \"1m\"\n");
  const std::string high = Write("high.toml", "keep_alive = \"2m\"\nlog_level = \"debug\"\n");
  Map env = {{"UPRD_EVICTION_POLICY", "lcu"}, {"TRIMS_LOG_LEVEL", "warn"}};
  auto loaded = LoadConfig(Sources(env, {{"log_level", "error"}}, {low, high}));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.eviction_policy, store::PolicyKind::kLcu);
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin, "environment UPRD_EVICTION_POLICY");
  EXPECT_EQ(loaded->config.keep_alive, std::chrono::minutes(2));
  EXPECT_EQ(Entry(*loaded, "keep_alive").origin, high + ":1");
  EXPECT_EQ(loaded->config.log_level, "error");
  EXPECT_EQ(Entry(*loaded, "log_level").origin, "flag --log-level");
  EXPECT_EQ(Entry(*loaded, "use_hugetlb").origin, "default");
  EXPECT_EQ(Entry(*loaded, "use_hugetlb").value, "true");

  loaded = LoadConfig(Sources({}, {}, {low}));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin, low + ":2");
  EXPECT_EQ(Entry(*loaded, "eviction_policy").value, "fifo");
}

TEST(ConfigLayersTest, OurVariableWinsOverTheOldOneAndSaysSo) {
  auto loaded =
      LoadConfig(Sources({{"TRIMS_EVICTION_POLICY", "gdsf"}, {"UPRD_EVICTION_POLICY", "FIFO"}}));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->config.eviction_policy, store::PolicyKind::kGdsf);
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin,
            "environment TRIMS_EVICTION_POLICY (wins over UPRD_EVICTION_POLICY=fifo)");
  // Two spellings of one value are no conflict.
  loaded =
      LoadConfig(Sources({{"TRIMS_EVICTION_POLICY", "fifo"}, {"UPRD_EVICTION_POLICY", "FIFO"}}));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin, "environment TRIMS_EVICTION_POLICY");
}

TEST(ConfigLayersTest, ProcessEnvironmentIsReadWhenNoneIsGiven) {
  ::setenv("TRIMS_KEEP_ALIVE", "7s", 1);
  auto loaded = LoadConfig({});
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.keep_alive, std::chrono::seconds(7));
  ::unsetenv("TRIMS_KEEP_ALIVE");
  ::setenv("TRIMS_KEEP_ALIV", "7s", 1);
  loaded = LoadConfig({});
  ::unsetenv("TRIMS_KEEP_ALIV");
  EXPECT_THAT(ErrorOf(loaded), HasSubstr("did you mean TRIMS_KEEP_ALIVE?"));
}

TEST(ConfigLayersTest, BadFlagIsNamed) {
  EXPECT_EQ(ErrorOf(LoadConfig(Sources({}, {{"persist_cpu", "maybe"}}))),
            "flag --persist-cpu: found \"maybe\", expected true, false, 1 or 0");
  EXPECT_EQ(ErrorOf(LoadConfig(Sources({}, {{"evict_policy", "lru"}}))),
            "flag --evict-policy: unknown setting \"evict_policy\"; did you mean eviction_policy?");
}

TEST(ConfigLayersTest, UnknownUprdVariableIsAnError) {
  EXPECT_EQ(
      EnvError({{"UPRD_EVICTION_POLCY", "lru"}}),
      "environment variable UPRD_EVICTION_POLCY: unknown; did you mean UPRD_EVICTION_POLICY?");
  EXPECT_THAT(
      EnvError({{"UPRD_COLOUR", "red"}}),
      AllOf(
          StartsWith("environment variable UPRD_COLOUR: unknown; known are UPRD_EVICTION_POLICY, "),
          HasSubstr("UPRD_WRITE_PROFILE")));
  // The clients' own variables are not the daemon's business.
  FromEnv({{"UPR_ENABLED", "true"}, {"UPR_MODEL_NAME", "x"}, {"UPRD_EMPTY", ""}});
}

TEST(ConfigLayersTest, OnlyMisspeltTrimsVariablesAreErrors) {
  FromEnv({{"TRIMS_SOCKET", "/x"},
           {"TRIMS_CONFIG", "/y"},
           {"TRIMS_TEST_THING", "1"},
           {"TRIMS_LOG", "1"}});
  EXPECT_EQ(
      EnvError({{"TRIMS_EVICTION_POLIZY", "lru"}}),
      "environment variable TRIMS_EVICTION_POLIZY: unknown; did you mean TRIMS_EVICTION_POLICY?");
  EXPECT_THAT(EnvError({{"TRIMS_SCOKET", "/x"}}), HasSubstr("did you mean TRIMS_SOCKET?"));
}

TEST(ConfigLayersTest, PersistOnlyCpuNeedsPersistCpu) {
  EXPECT_EQ(EnvError({{"UPRD_PERSIST_CPU", "false"}, {"UPRD_PERSIST_ONLY_CPU", "true"}}),
            "persist_only_cpu = true (environment UPRD_PERSIST_ONLY_CPU) needs persist_cpu = true, "
            "which is "
            "false (environment UPRD_PERSIST_CPU): set UPRD_PERSIST_CPU=true or "
            "UPRD_PERSIST_ONLY_CPU=false");
  EXPECT_THAT(TextError("persist_only_cpu = true\npersist_cpu = false\n"),
              AllOf(HasSubstr("t.toml:1"), HasSubstr("t.toml:2")));
}

TEST_F(ConfigFileTest, MissingFileIsAnErrorThatNamesIt) {
  const auto loaded = LoadConfig(Sources({}, {}, {dir_ + "/absent.toml"}));
  EXPECT_EQ(loaded.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(loaded.status().message(), HasSubstr(dir_ + "/absent.toml"));
}

TEST_F(ConfigFileTest, DirectoriesAndHugeFilesAreRefused) {
  EXPECT_FALSE(LoadConfig(Sources({}, {}, {dir_})).ok());
  const std::string huge = Write("huge.toml", std::string(kMaxConfigFileBytes + 1, '#'));
  EXPECT_THAT(ErrorOf(LoadConfig(Sources({}, {}, {huge}))), HasSubstr("larger than 1MiB"));
  EXPECT_FALSE(LoadConfig(Sources({}, {}, {"/dev/zero"})).ok());
  EXPECT_TRUE(LoadConfig(Sources({}, {}, {"/dev/null"})).ok());
}

TEST(ConfigLayersTest, NamedConfigurationReplacesTheSearch) {
  const auto getenv = [](const std::string& name) -> std::optional<std::string> {
    if (name == "TRIMS_CONFIG") return "/some/where.toml";
    return std::nullopt;
  };
  EXPECT_THAT(DefaultConfigFiles(getenv), ElementsAre("/some/where.toml"));
}

TEST(ConfigLayersTest, DefaultSearchFindsOnlyWhatIsThere) {
  for (const std::string& file :
       DefaultConfigFiles([](const std::string&) { return std::nullopt; })) {
    EXPECT_TRUE(std::filesystem::exists(file)) << file;
    EXPECT_THAT(file, StartsWith("/etc/trims/"));
  }
}

}  // namespace
}  // namespace trims

#include "daemon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace trims {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

using Map = std::map<std::string, std::string>;

ConfigSources Sources(Map env, Map flags = {}, std::vector<std::string> files = {}) {
  ConfigSources sources;
  sources.flags = std::move(flags);
  sources.files = std::move(files);
  sources.env_names.emplace();
  for (const auto& [name, value] : env) sources.env_names->push_back(name);
  sources.getenv = [env = std::move(env)](const std::string& name) {
    const auto found = env.find(name);
    return found == env.end() ? std::nullopt : std::optional<std::string>(found->second);
  };
  return sources;
}

DaemonConfig FromEnv(Map env) {
  const auto loaded = LoadConfig(Sources(std::move(env)));
  EXPECT_TRUE(loaded.ok()) << loaded.status().ToString();
  return loaded.ok() ? loaded->config : DaemonConfig{};
}

std::string ErrorOf(const Result<LoadedConfig>& loaded) {
  EXPECT_EQ(loaded.status().code(), StatusCode::kInvalidArgument);
  return loaded.status().message();
}
std::string EnvError(Map env) { return ErrorOf(LoadConfig(Sources(std::move(env)))); }
std::string TextError(std::string_view text) { return ErrorOf(ParseConfigText(text, "t.toml")); }

ConfigEntry Entry(const LoadedConfig& loaded, const std::string& key) {
  for (const ConfigEntry& entry : loaded.entries) {
    if (entry.key == key) return entry;
  }
  ADD_FAILURE() << "no setting " << key;
  return {};
}

class ConfigFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "trims-config-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = dir_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::string dir_;
};

// --- Defaults and the variables of 2019 -------------------------------------------

TEST(ConfigTest, DefaultsAreThoseOfTheOriginal) {
  const DaemonConfig config = FromEnv({{"HOME", "/home/u"}});
  EXPECT_EQ(config.eviction_policy, store::PolicyKind::kLru);
  EXPECT_EQ(config.estimation_rate, 1.0);
  EXPECT_EQ(config.memory_percentage, 0.8);
  EXPECT_TRUE(config.persist_cpu);
  EXPECT_FALSE(config.persist_only_cpu);
  EXPECT_TRUE(config.estimate_with_internal_memory);
  EXPECT_FALSE(config.write_profile);
  EXPECT_EQ(config.profile_target, "server_profile.json");
  EXPECT_EQ(config.base_dir, "/home/u/carml/data/mxnet/");
  EXPECT_EQ(config.keep_alive, std::nullopt);
  EXPECT_EQ(config.host_capacity_bytes, std::nullopt);
  EXPECT_EQ(config.slab_bytes, kDefaultSlabBytes);
  EXPECT_EQ(config.sessions_per_uid_max, kDefaultSessionsPerUid);
  EXPECT_EQ(config.leases_per_uid_max, kDefaultLeasesPerUid);
  EXPECT_EQ(config.leased_bytes_per_uid_max, kDefaultLeasedBytesPerUid);
}

TEST(ConfigTest, DevicesAreServedAndScrubbedByDefault) {
  const DaemonConfig config = FromEnv({{"HOME", "/home/u"}});
  EXPECT_EQ(config.devices, "all");
  EXPECT_EQ(config.device_capacity_bytes, std::nullopt);
  EXPECT_EQ(config.pinned_pool_bytes, kDefaultPinnedPoolBytes);
  EXPECT_EQ(config.scrub_bytes_per_second, kDefaultScrubBytesPerSecond);
  EXPECT_TRUE(config.trusted_uids.empty());
}

TEST(ConfigTest, SettingsOfDevicesAreRead) {
  const auto loaded = ParseConfigText(
      "devices = \"0, GPU-5FD4f087-86f3-7a43-b711-4771313afc50\"\n"
      "device_capacity_bytes = \"3GiB\"\npinned_pool_bytes = \"none\"\n"
      "scrub_bytes_per_second = \"1GB\"\ntrusted_uids = \"1000, 1001\"\n",
      "t.toml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.devices, "0,GPU-5FD4f087-86f3-7a43-b711-4771313afc50");
  EXPECT_EQ(loaded->config.device_capacity_bytes, 3 * kGiB);
  EXPECT_EQ(loaded->config.pinned_pool_bytes, 0u);
  EXPECT_EQ(loaded->config.scrub_bytes_per_second, 1'000'000'000u);
  EXPECT_THAT(loaded->config.trusted_uids, ElementsAre(1000, 1001));
  for (const char* word : {"none", "ALL"})
    EXPECT_TRUE(ParseConfigText("devices = \"" + std::string(word) + "\"\n", "t.toml").ok());
}

TEST(ConfigTest, DevicesAndUsersThatCanNotBeAreRefused) {
  for (const char* text :
       {"devices = \"\"\n", "devices = \"0,\"\n", "devices = \"-1\"\n", "devices = \"0 1\"\n",
        "devices = \"H200\"\n", "devices = \"GPU-xyz\"\n", "devices = \"1000\"\n"}) {
    EXPECT_THAT(TextError(text), HasSubstr("all, none, or numbers and UUIDs of GPUs")) << text;
  }
  for (const char* text : {"trusted_uids = \"root\"\n", "trusted_uids = \"1,,2\"\n",
                           "trusted_uids = \"4294967296\"\n"}) {
    EXPECT_THAT(TextError(text), HasSubstr("numbers of users")) << text;
  }
}

TEST(ConfigTest, EveryVariableOfTheOriginalIsObeyed) {
  const DaemonConfig config = FromEnv({{"UPRD_EVICTION_POLICY", "LRU"},
                                       {"UPRD_ESTIMATION_RATE", "3.0"},
                                       {"UPRD_MEMORY_PERCENTAGE", "0.5"},
                                       {"UPRD_PERSIST_CPU", "1"},
                                       {"UPRD_PERSIST_ONLY_CPU", "TRUE"},
                                       {"UPRD_WRITE_PROFILE", "True"},
                                       {"UPRD_ESTIMATE_WITH_INTERNAL_MEMORY", "0"},
                                       {"UPR_BASE_DIR", "/models"},
                                       {"UPR_PROFILE_TARGET", "trace.json"}});
  EXPECT_EQ(config.eviction_policy, store::PolicyKind::kLru);
  EXPECT_EQ(config.estimation_rate, 3.0);
  EXPECT_EQ(config.memory_percentage, 0.5);
  EXPECT_TRUE(config.persist_cpu);
  EXPECT_TRUE(config.persist_only_cpu);
  EXPECT_TRUE(config.write_profile);
  EXPECT_FALSE(config.estimate_with_internal_memory);
  EXPECT_EQ(config.base_dir, "/models");
  EXPECT_EQ(config.profile_target, "trace.json");
}

TEST(ConfigTest, PolicyNamesAreReadInAnyCase) {
  for (const auto& [text, kind] : std::vector<std::pair<std::string, store::PolicyKind>>{
           {"never", store::PolicyKind::kNever},
           {"Lru", store::PolicyKind::kLru},
           {"FIFO", store::PolicyKind::kFifo},
           {"lCu", store::PolicyKind::kLcu},
           {"RANDOM", store::PolicyKind::kRandom},
           {"flush", store::PolicyKind::kFlush},
           {"ALL", store::PolicyKind::kFlush},
           {"Eager", store::PolicyKind::kEager},
           {"GDSF", store::PolicyKind::kGdsf}}) {
    EXPECT_EQ(FromEnv({{"UPRD_EVICTION_POLICY", text}}).eviction_policy, kind) << text;
  }
}

TEST(ConfigTest, EmptyVariableMeansTheDefault) {
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

TEST(ConfigTest, BaseDirIsKeptWithAndWithoutATrailingSlash) {
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "/models/"}}).base_dir, "/models/");
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "/models"}}).base_dir, "/models");
}

TEST(ConfigTest, EverySettingHasAVariableOfOurOwn) {
  for (const ConfigKey& key : ConfigKeys()) {
    std::string name = "TRIMS_";
    for (const char c : key.key)
      name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    EXPECT_THAT(key.env, StartsWith(name));
    // A value that no setting but text accepts shows that the variable is read.
    const auto loaded = LoadConfig(Sources({{name, "\x01"}}));
    ASSERT_FALSE(loaded.ok()) << name;
    EXPECT_THAT(loaded.status().message(), StartsWith("environment variable " + name + ": "));
  }
}

TEST(ConfigTest, DirectoriesFollowTheUser) {
  const DaemonConfig config = FromEnv({{"HOME", "/home/u"}, {"XDG_RUNTIME_DIR", "/run/user/7"}});
  if (::geteuid() == 0) {
    EXPECT_EQ(config.runtime_dir, "/run/trims");
    EXPECT_EQ(config.state_dir, "/var/lib/trims");
  } else {
    EXPECT_EQ(config.runtime_dir, "/run/user/7/trims");
    EXPECT_EQ(config.state_dir, "/home/u/.local/state/trims");
    EXPECT_EQ(FromEnv({{"XDG_STATE_HOME", "/s"}}).state_dir, "/s/trims");
    EXPECT_EQ(FromEnv({}).runtime_dir, "/tmp/trims-" + std::to_string(::geteuid()));
  }
}

TEST(ConfigTest, RelativeDirectoriesOfVariablesAndFlagsBecomeAbsolute) {
  const std::string here = std::filesystem::current_path().native();
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "models/"}}).base_dir, here + "/models/");
  const auto loaded = LoadConfig(Sources({}, {{"state_dir", "s"}}));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->config.state_dir, here + "/s");
  EXPECT_EQ(Entry(*loaded, "state_dir").origin, "flag --state-dir");
}

// --- Precedence and origin ---------------------------------------------------------

TEST_F(ConfigFileTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const std::string low =
      Write("low.toml", "# comment\neviction_policy = \"fifo\"\nkeep_alive = \"1m\"\n");
  const std::string high = Write("high.toml", "keep_alive = \"2m\"\nlog_level = \"debug\"\n");
  Map env = {{"UPRD_EVICTION_POLICY", "lcu"}, {"TRIMS_LOG_LEVEL", "warn"}};
  auto loaded = LoadConfig(Sources(env, {{"log_level", "error"}}, {low, high}));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.eviction_policy, store::PolicyKind::kLcu);
  EXPECT_EQ(Entry(*loaded, "eviction_policy").origin, "environment UPRD_EVICTION_POLICY");
  EXPECT_EQ(loaded->config.keep_alive, minutes(2));
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

TEST(ConfigTest, OurVariableWinsOverTheOldOneAndSaysSo) {
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

TEST(ConfigTest, ProcessEnvironmentIsReadWhenNoneIsGiven) {
  ::setenv("TRIMS_KEEP_ALIVE", "7s", 1);
  auto loaded = LoadConfig({});
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.keep_alive, seconds(7));
  ::unsetenv("TRIMS_KEEP_ALIVE");
  ::setenv("TRIMS_KEEP_ALIV", "7s", 1);
  loaded = LoadConfig({});
  ::unsetenv("TRIMS_KEEP_ALIV");
  EXPECT_THAT(ErrorOf(loaded), HasSubstr("did you mean TRIMS_KEEP_ALIVE?"));
}

TEST(ConfigTest, EveryEntryCanBeSetAgainFromWhatItShows) {
  const auto first = LoadConfig(Sources({{"TRIMS_KEEP_ALIVE", "1h30m"},
                                         {"TRIMS_HOST_CAPACITY_BYTES", "1.5GiB"},
                                         {"TRIMS_LEASED_BYTES_PER_UID_MAX", "1000001B"},
                                         {"UPRD_MEMORY_PERCENTAGE", "33%"}}));
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  Map flags;
  for (const ConfigEntry& entry : first->entries) flags[entry.key] = entry.value;
  const auto second = LoadConfig(Sources({}, flags));
  ASSERT_TRUE(second.ok()) << second.status().ToString();
  for (size_t i = 0; i < first->entries.size(); ++i) {
    EXPECT_EQ(second->entries[i].value, first->entries[i].value);
  }
  EXPECT_EQ(Entry(*first, "host_capacity_bytes").value, "1536MiB");
  EXPECT_EQ(Entry(*first, "leased_bytes_per_uid_max").value, "1000001B");
  EXPECT_EQ(Entry(*first, "memory_percentage").value, "0.33");
  EXPECT_EQ(Entry(*first, "keep_alive").value, "1h30m0s");
  EXPECT_EQ(Entry(*first, "control_socket_mode").value, "0660");
}

// --- Errors -------------------------------------------------------------------------

TEST(ConfigTest, BadVariableIsNamedWithWhatWasFoundAndExpected) {
  EXPECT_EQ(
      EnvError({{"UPRD_EVICTION_POLICY", "lur"}}),
      "environment variable UPRD_EVICTION_POLICY: found \"lur\", expected one of never, lru, fifo, "
      "lcu, random, flush, eager, gdsf, all (did you mean lru?)");
  EXPECT_EQ(EnvError({{"UPRD_PERSIST_CPU", "yes"}}),
            "environment variable UPRD_PERSIST_CPU: found \"yes\", expected true, false, 1 or 0");
  EXPECT_EQ(
      EnvError({{"UPRD_ESTIMATION_RATE", "0"}}),
      "environment variable UPRD_ESTIMATION_RATE: found \"0\", expected a number above 0 and up to "
      "1000, such as 1.0");
  EXPECT_THAT(EnvError({{"UPRD_MEMORY_PERCENTAGE", "80"}}),
              AllOf(HasSubstr("found \"80\""), HasSubstr("such as 80%")));
  EXPECT_THAT(EnvError({{"TRIMS_KEEP_ALIVE", "300"}}), HasSubstr("a duration with its unit"));
  EXPECT_THAT(EnvError({{"TRIMS_HOST_CAPACITY_BYTES", "1024"}}), HasSubstr("a size with its unit"));
  EXPECT_THAT(EnvError({{"TRIMS_LOG_LEVEL", "inof"}}), HasSubstr("did you mean info?"));
  EXPECT_THAT(EnvError({{"TRIMS_LEASE_SOCKET_MODE", "0888"}}), HasSubstr("octal permission bits"));
  EXPECT_THAT(EnvError({{"TRIMS_LOADER_THREADS", "-1"}}),
              HasSubstr("a whole number from 0 to 1024"));
  EXPECT_THAT(EnvError({{"TRIMS_SLAB_BYTES", "3MiB"}}), HasSubstr("a multiple of 2MiB"));
  EXPECT_THAT(EnvError({{"TRIMS_SESSIONS_PER_UID_MAX", "0"}}), HasSubstr("a whole number from 1"));
}

TEST(ConfigTest, NumbersOutsideTheirRangeAreRefused) {
  for (const char* text :
       {"-0.5", "1.01", "101%", "0%", "nan", "inf", "0.8 %%", "0x1", "", " ", "1e", "%"}) {
    const auto loaded = LoadConfig(Sources({}, {{"memory_percentage", text}}));
    EXPECT_FALSE(loaded.ok()) << text;
  }
  for (const char* text : {"-1", "0", "1001", "nan", "inf", "1e400", "1,5"}) {
    const auto loaded = LoadConfig(Sources({}, {{"estimation_rate", text}}));
    EXPECT_FALSE(loaded.ok()) << text;
  }
  EXPECT_EQ(FromEnv({{"UPRD_MEMORY_PERCENTAGE", "80%"}}).memory_percentage, 0.8);
  EXPECT_EQ(FromEnv({{"UPRD_MEMORY_PERCENTAGE", "100 %"}}).memory_percentage, 1.0);
  EXPECT_EQ(FromEnv({{"UPRD_MEMORY_PERCENTAGE", "1"}}).memory_percentage, 1.0);
}

TEST(ConfigTest, BadFlagIsNamed) {
  EXPECT_EQ(ErrorOf(LoadConfig(Sources({}, {{"persist_cpu", "maybe"}}))),
            "flag --persist-cpu: found \"maybe\", expected true, false, 1 or 0");
  EXPECT_EQ(ErrorOf(LoadConfig(Sources({}, {{"evict_policy", "lru"}}))),
            "flag --evict-policy: unknown setting \"evict_policy\"; did you mean eviction_policy?");
}

TEST_F(ConfigFileTest, BadFileValueIsNamedWithLineAndColumn) {
  const std::string path = Write("t.toml", "\n\n  eviction_policy = \"lur\"\n");
  EXPECT_THAT(
      ErrorOf(LoadConfig(Sources({}, {}, {path}))),
      StartsWith(path + ":3:21: eviction_policy: found \"lur\", expected one of never, lru"));
}

TEST(ConfigTest, SyntaxErrorsSayWhere) {
  EXPECT_THAT(TextError("a = \n"), StartsWith("t.toml:1:"));
  EXPECT_THAT(TextError("keep_alive = \"5m\"\nkeep_alive = \"6m\"\n"), StartsWith("t.toml:2:"));
  EXPECT_THAT(TextError("keep_alive = \"5m\n"),
              AllOf(StartsWith("t.toml:1:"), HasSubstr("not TOML")));
}

TEST(ConfigTest, UnknownKeyNamesTheNearestOne) {
  EXPECT_EQ(TextError("log_level = \"info\"\nevction_policy = \"lru\"\n"),
            "t.toml:2:1: unknown setting \"evction_policy\"; did you mean eviction_policy?");
  EXPECT_EQ(TextError("host_capacity = \"1GiB\"\n"),
            "t.toml:1:1: unknown setting \"host_capacity\"; did you mean host_capacity_bytes?");
  EXPECT_THAT(TextError("zzz = 1\n"),
              AllOf(HasSubstr("unknown setting \"zzz\"; known are runtime_dir, state_dir"),
                    HasSubstr("log_level")));
  EXPECT_THAT(TextError("[host]\nsize = 1\n"), StartsWith("t.toml:1:1: found a table or an array"));
}

TEST(ConfigTest, ValuesOfTheWrongKindAreRefused) {
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

TEST(ConfigTest, OctalModesAreReadOnlyWhenTheyLookOctal) {
  const auto quoted =
      ParseConfigText("lease_socket_mode = \"0600\"\ncontrol_socket_mode = 0o640\n", "t.toml");
  ASSERT_TRUE(quoted.ok()) << quoted.status().ToString();
  EXPECT_EQ(quoted->config.lease_socket_mode, 0600u);
  EXPECT_EQ(quoted->config.control_socket_mode, 0640u);
  EXPECT_THAT(TextError("lease_socket_mode = 600\n"), HasSubstr("expected octal permission bits"));
}

TEST(ConfigTest, TomlNumbersAndStringsMeanTheSame) {
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

TEST(ConfigTest, UnknownUprdVariableIsAnError) {
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

TEST(ConfigTest, OnlyMisspeltTrimsVariablesAreErrors) {
  FromEnv({{"TRIMS_SOCKET", "/x"},
           {"TRIMS_CONFIG", "/y"},
           {"TRIMS_TEST_THING", "1"},
           {"TRIMS_LOG", "1"}});
  EXPECT_EQ(
      EnvError({{"TRIMS_EVICTION_POLIZY", "lru"}}),
      "environment variable TRIMS_EVICTION_POLIZY: unknown; did you mean TRIMS_EVICTION_POLICY?");
  EXPECT_THAT(EnvError({{"TRIMS_SCOKET", "/x"}}), HasSubstr("did you mean TRIMS_SOCKET?"));
}

TEST(ConfigTest, PersistOnlyCpuNeedsPersistCpu) {
  EXPECT_EQ(EnvError({{"UPRD_PERSIST_CPU", "false"}, {"UPRD_PERSIST_ONLY_CPU", "true"}}),
            "persist_only_cpu = true (environment UPRD_PERSIST_ONLY_CPU) needs persist_cpu = true, "
            "which is "
            "false (environment UPRD_PERSIST_CPU): set UPRD_PERSIST_CPU=true or "
            "UPRD_PERSIST_ONLY_CPU=false");
  EXPECT_THAT(TextError("persist_only_cpu = true\npersist_cpu = false\n"),
              AllOf(HasSubstr("t.toml:1"), HasSubstr("t.toml:2")));
}

TEST(ConfigTest, RuntimeDirectoryMustLeaveRoomForSocketNames) {
  const std::string longest = "/" + std::string(107 - std::string("/control.sock").size() - 1, 'd');
  EXPECT_EQ(FromEnv({{"TRIMS_RUNTIME_DIR", longest}}).runtime_dir, longest);
  EXPECT_THAT(EnvError({{"TRIMS_RUNTIME_DIR", longest + "d"}}), HasSubstr("at most 94 bytes"));
}

TEST(ConfigTest, HostileTextIsShortAndHarmlessInMessages) {
  const std::string message =
      EnvError({{"UPRD_EVICTION_POLICY", "\x1b[2J\n" + std::string(100000, 'x')}});
  EXPECT_LT(message.size(), 400u);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_EQ(message.find('\n'), std::string::npos);
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

// toml++ 3.3 can not be trusted with the first and the last of these.
TEST(ConfigTest, TextThatNoSettingsFileNeedsNeverReachesTheParser) {
  for (const char* text :
       {"[!", "[[!x]]", "[ ", "[.a]", "[\x01\x02]", "[]", "{", "a = {b = 1}", "\x01",
        "keep_alive = \xef\xbb\xbf\"5m\"", "keep_alive =\xef\xb9\xb0 \"5m\""}) {
    EXPECT_THAT(TextError(text),
                AllOf(StartsWith("t.toml:1:"), HasSubstr("expected settings only")))
        << text;
  }
}

TEST(ConfigTest, StringsAndCommentsMayHoldAnything) {
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
  EXPECT_EQ(loaded->config.keep_alive, minutes(5));
  EXPECT_EQ(Entry(*loaded, "log_level").origin, "t.toml:8");
}

TEST(ConfigTest, StringsThatDoNotEndAreRefusedWhereTheyBegin) {
  EXPECT_EQ(TextError("log_level = \"info\"\nkeep_alive = \"5m\n[!"),
            "t.toml:2:14: not TOML: the string that begins here does not end");
  for (const char* text :
       {"base_dir = '", "base_dir = '''a''", "base_dir = \"\\", "base_dir = \"\"\"\n\\\"\"\""}) {
    EXPECT_THAT(TextError(text), StartsWith("t.toml:")) << text;
    EXPECT_THAT(TextError(text), HasSubstr(":12: not TOML: the string that begins here")) << text;
  }
}

TEST(ConfigTest, DeeplyNestedTextIsRefusedWithoutExhaustingTheStack) {
  std::string text = "keep_alive = ";
  text.append(200000, '[');
  EXPECT_THAT(TextError(text), StartsWith("t.toml:1:"));
}

TEST(ConfigTest, NamedConfigurationReplacesTheSearch) {
  const auto getenv = [](const std::string& name) -> std::optional<std::string> {
    if (name == "TRIMS_CONFIG") return "/some/where.toml";
    return std::nullopt;
  };
  EXPECT_THAT(DefaultConfigFiles(getenv), ElementsAre("/some/where.toml"));
}

TEST(ConfigTest, DefaultSearchFindsOnlyWhatIsThere) {
  for (const std::string& file :
       DefaultConfigFiles([](const std::string&) { return std::nullopt; })) {
    EXPECT_TRUE(std::filesystem::exists(file)) << file;
    EXPECT_THAT(file, StartsWith("/etc/trims/"));
  }
}

// --- Documentation ---------------------------------------------------------------------

TEST(ConfigTest, DocumentedFileParsesToTheDefaults) {
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

TEST(ConfigTest, KeysDescribeFlagsVariablesAndHelp) {
  const std::vector<ConfigKey>& keys = ConfigKeys();
  const auto loaded = LoadConfig(Sources({}));
  ASSERT_TRUE(loaded.ok());
  ASSERT_EQ(keys.size(), loaded->entries.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(keys[i].key, loaded->entries[i].key);
    EXPECT_EQ(keys[i].env, loaded->entries[i].env);
    EXPECT_THAT(keys[i].flag, StartsWith("--"));
    EXPECT_EQ(keys[i].flag.find('_'), std::string::npos);
    EXPECT_FALSE(keys[i].help.empty());
    EXPECT_FALSE(keys[i].value_name.empty());
    EXPECT_EQ(keys[i].reloadable, loaded->entries[i].reloadable);
    if (keys[i].key.ends_with("_dir")) continue;
    EXPECT_EQ(keys[i].default_value, loaded->entries[i].value);
  }
  EXPECT_EQ(Entry(*loaded, "eviction_policy").env, "TRIMS_EVICTION_POLICY, UPRD_EVICTION_POLICY");
}

// --- Units -----------------------------------------------------------------------------

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
  EXPECT_EQ(FormatSize(528 * kMiB), "528.0 MiB");
  EXPECT_EQ(FormatSize(kMiB - 1), "1.0 MiB");
  EXPECT_EQ(FormatSize(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
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

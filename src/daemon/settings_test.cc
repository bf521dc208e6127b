#include "daemon/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cctype>
#include <string>
#include <vector>

#include "base/limits.h"
#include "daemon/test_config.h"

namespace trims {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(SettingsTest, DefaultsAreThoseOfTheOriginal) {
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

TEST(SettingsTest, HostCapacityWinsOverThePercentage) {
  DaemonConfig config;
  config.memory_percentage = 0.5;
  EXPECT_EQ(HostBudgetBytes(config, 16 * kGiB), 8 * kGiB);
  config.host_capacity_bytes = 123;
  EXPECT_EQ(HostBudgetBytes(config, 16 * kGiB), 123u);
}

TEST(SettingsTest, DevicesAreServedAndScrubbedByDefault) {
  const DaemonConfig config = FromEnv({{"HOME", "/home/u"}});
  EXPECT_EQ(config.devices, "all");
  EXPECT_EQ(config.device_capacity_bytes, std::nullopt);
  EXPECT_EQ(config.pinned_pool_bytes, kDefaultPinnedPoolBytes);
  EXPECT_EQ(config.scrub_bytes_per_second, kDefaultScrubBytesPerSecond);
  EXPECT_TRUE(config.trusted_uids.empty());
}

TEST(SettingsTest, SettingsOfDevicesAreRead) {
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

TEST(SettingsTest, DevicesAndUsersThatCanNotBeAreRefused) {
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

TEST(SettingsTest, EveryVariableOfTheOriginalIsObeyed) {
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

TEST(SettingsTest, PolicyNamesAreReadInAnyCase) {
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

TEST(SettingsTest, BaseDirIsKeptWithAndWithoutATrailingSlash) {
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "/models/"}}).base_dir, "/models/");
  EXPECT_EQ(FromEnv({{"UPR_BASE_DIR", "/models"}}).base_dir, "/models");
}

TEST(SettingsTest, EverySettingHasAVariableOfOurOwn) {
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

TEST(SettingsTest, DirectoriesFollowTheUser) {
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

TEST(SettingsTest, EveryEntryCanBeSetAgainFromWhatItShows) {
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

TEST(SettingsTest, BadVariableIsNamedWithWhatWasFoundAndExpected) {
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

TEST(SettingsTest, NumbersOutsideTheirRangeAreRefused) {
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

TEST(SettingsTest, UnknownKeyNamesTheNearestOne) {
  EXPECT_EQ(TextError("log_level = \"info\"\nevction_policy = \"lru\"\n"),
            "t.toml:2:1: unknown setting \"evction_policy\"; did you mean eviction_policy?");
  EXPECT_EQ(TextError("host_capacity = \"1GiB\"\n"),
            "t.toml:1:1: unknown setting \"host_capacity\"; did you mean host_capacity_bytes?");
  EXPECT_THAT(TextError("zzz = 1\n"),
              AllOf(HasSubstr("unknown setting \"zzz\"; known are runtime_dir, state_dir"),
                    HasSubstr("log_level")));
  EXPECT_THAT(TextError("[host]\nsize = 1\n"), StartsWith("t.toml:1:1: found a table or an array"));
}

TEST(SettingsTest, RuntimeDirectoryMustLeaveRoomForSocketNames) {
  const std::string longest = "/" + std::string(107 - std::string("/control.sock").size() - 1, 'd');
  EXPECT_EQ(FromEnv({{"TRIMS_RUNTIME_DIR", longest}}).runtime_dir, longest);
  EXPECT_THAT(EnvError({{"TRIMS_RUNTIME_DIR", longest + "d"}}), HasSubstr("at most 94 bytes"));
}

TEST(SettingsTest, HostileTextIsShortAndHarmlessInMessages) {
  const std::string message =
      EnvError({{"UPRD_EVICTION_POLICY", "\x1b[2J\n" + std::string(100000, 'x')}});
  EXPECT_LT(message.size(), 400u);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(SettingsTest, KeysDescribeFlagsVariablesAndHelp) {
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

}  // namespace
}  // namespace trims

// What the tests of settings share: sources made of maps, and files. For tests only.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/config_layers.h"

namespace trims {

using Map = std::map<std::string, std::string>;

inline ConfigSources Sources(Map env, Map flags = {}, std::vector<std::string> files = {}) {
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

inline DaemonConfig FromEnv(Map env) {
  const auto loaded = LoadConfig(Sources(std::move(env)));
  EXPECT_TRUE(loaded.ok()) << loaded.status().ToString();
  return loaded.ok() ? loaded->config : DaemonConfig{};
}

inline std::string ErrorOf(const Result<LoadedConfig>& loaded) {
  EXPECT_EQ(loaded.status().code(), StatusCode::kInvalidArgument);
  return loaded.status().message();
}
inline std::string EnvError(Map env) { return ErrorOf(LoadConfig(Sources(std::move(env)))); }
inline std::string TextError(std::string_view text) {
  return ErrorOf(ParseConfigText(text, "t.toml"));
}

inline ConfigEntry Entry(const LoadedConfig& loaded, const std::string& key) {
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

}  // namespace trims

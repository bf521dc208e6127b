#include "daemon/config_layers.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/limits.h"
#include "base/text.h"
#include "base/units.h"
#include "daemon/settings_file.h"

extern char** environ;  // NOLINT: POSIX's own name.

namespace trims {
namespace {

// Variables that mean something to clients or to the search for this
// configuration, and therefore are no misspellings of a setting.
constexpr std::string_view kOtherVariables[] = {"TRIMS_SOCKET", "TRIMS_CONFIG"};

// A configuration while layers are put on it, lowest first.
struct Draft {
  DaemonConfig config;
  std::vector<std::string> origins = std::vector<std::string>(Settings().size(), "default");
};

// Puts one value on the draft; `where` opens the message of a refusal.
Status Put(Draft& draft, size_t index, std::string_view raw, const std::string& origin,
           const std::string& where) {
  const Setting& setting = Settings()[index];
  const bool verbatim = setting.kind == SettingKind::kPath || setting.kind == SettingKind::kText;
  const std::string_view text = verbatim ? raw : Trim(raw);
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return InvalidArgumentError(where + ": " + Found(raw, "text without control characters"));
    }
  }
  if (Expected expected = setting.set(draft.config, text)) {
    return InvalidArgumentError(where + ": " + Found(raw, *expected));
  }
  draft.origins[index] = origin;
  return OkStatus();
}

Status PutText(Draft& draft, std::string_view text, const std::string& filename) {
  return ReadSettings(text, filename, [&](const FileValue& value) {
    return Put(draft, value.setting, value.text, value.origin, value.where);
  });
}

Result<std::string> ReadConfigFile(const std::string& path) {
  Result<std::string> text =
      ReadSmallFile(path, kMaxConfigFileBytes, "the configuration file " + path);
  if (text.status().code() == StatusCode::kOutOfRange) {
    return InvalidArgumentError(text.status().message() + ", the most a configuration may have");
  }
  return text;
}

Status PutEnvironment(Draft& draft, const Getenv& getenv) {
  for (size_t i = 0; i < Settings().size(); ++i) {
    const Setting& setting = Settings()[i];
    const std::string trims_name = VariableOf(setting);
    const std::string upr_name(setting.upr_env);
    const auto upr = upr_name.empty() ? std::nullopt : NonEmpty(getenv, upr_name);
    const auto trims = NonEmpty(getenv, trims_name);
    if (upr) {
      RETURN_IF_ERROR(
          Put(draft, i, *upr, "environment " + upr_name, "environment variable " + upr_name));
    }
    if (trims) {
      const std::string shadowed = upr ? setting.show(draft.config) : "";
      RETURN_IF_ERROR(
          Put(draft, i, *trims, "environment " + trims_name, "environment variable " + trims_name));
      if (upr && setting.show(draft.config) != shadowed) {
        draft.origins[i] += " (wins over " + upr_name + "=" + shadowed + ")";
      }
    }
    // A relative directory means one thing here and another once the daemon has moved to /.
    if ((upr || trims) && setting.kind == SettingKind::kPath) {
      const std::string shown = setting.show(draft.config);
      std::error_code error;
      const std::filesystem::path absolute = std::filesystem::absolute(shown, error);
      if (!error && absolute.native() != shown) {
        RETURN_IF_ERROR(Put(draft, i, absolute.native(), draft.origins[i],
                            "environment variable " + (trims ? trims_name : upr_name)));
      }
    }
  }
  return OkStatus();
}

// A misspelt variable would be ignored in silence, which is the one thing that
// a person who set it can not find out.
Status CheckNames(const std::vector<std::string>& names, const Getenv& getenv) {
  std::vector<std::string> trims_names(std::begin(kOtherVariables), std::end(kOtherVariables));
  std::vector<std::string> uprd_names;
  for (const Setting& setting : Settings()) {
    trims_names.push_back(VariableOf(setting));
    if (setting.upr_env.starts_with("UPRD_")) uprd_names.emplace_back(setting.upr_env);
  }
  for (const std::string& name : names) {
    const bool uprd = name.starts_with("UPRD_");
    if (!uprd && !name.starts_with("TRIMS_")) continue;
    const std::vector<std::string>& known = uprd ? uprd_names : trims_names;
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    if (!NonEmpty(getenv, name)) continue;
    // Only the daemon reads UPRD_ variables, so an unknown one is always a
    // mistake. TRIMS_ variables may belong to others: only near misses count.
    const std::string nearest = Nearest(name, known, uprd ? 4 : (name.size() >= 12 ? 2 : 1));
    if (!uprd && nearest.empty()) continue;
    return InvalidArgumentError(
        "environment variable " + name.substr(0, kShownBytesMax) + ": unknown; " +
        (nearest.empty() ? "known are " + Join(known, ", ") : "did you mean " + nearest + "?"));
  }
  return OkStatus();
}

std::vector<std::string> ProcessNames() {
  std::vector<std::string> names;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    names.emplace_back(text.substr(0, text.find('=')));
  }
  return names;
}

Status PutFlags(Draft& draft, const std::map<std::string, std::string>& flags) {
  for (const auto& [key, text] : flags) {
    const std::string where = "flag " + FlagOf(key);
    const std::optional<size_t> index = FindSetting(key);
    if (!index) return InvalidArgumentError(where + ": " + UnknownSetting(key));
    std::string value = text;
    if (Settings()[*index].kind == SettingKind::kPath && !value.empty()) {
      std::error_code error;
      const std::filesystem::path absolute = std::filesystem::absolute(value, error);
      if (!error) value = absolute.native();
    }
    RETURN_IF_ERROR(Put(draft, *index, value, where, where));
  }
  return OkStatus();
}

// Settings that are right one by one and wrong together.
Status CheckTogether(const Draft& draft) {
  if (draft.config.persist_only_cpu && !draft.config.persist_cpu) {
    const auto origin = [&](std::string_view key) { return draft.origins[*FindSetting(key)]; };
    return InvalidArgumentError("persist_only_cpu = true (" + origin("persist_only_cpu") +
                                ") needs persist_cpu = true, which is false (" +
                                origin("persist_cpu") +
                                "): set UPRD_PERSIST_CPU=true or UPRD_PERSIST_ONLY_CPU=false");
  }
  return OkStatus();
}

LoadedConfig Finish(Draft draft) {
  LoadedConfig loaded;
  for (size_t i = 0; i < Settings().size(); ++i) {
    const Setting& setting = Settings()[i];
    loaded.entries.push_back({std::string(setting.key), setting.show(draft.config),
                              std::move(draft.origins[i]), VariablesOf(setting),
                              std::string(setting.help), setting.reloadable});
  }
  loaded.config = std::move(draft.config);
  return loaded;
}

}  // namespace

std::vector<std::string> DefaultConfigFiles(const Getenv& getenv) {
  if (auto named = NonEmpty(getenv, "TRIMS_CONFIG")) return {*named};
  std::vector<std::string> files;
  std::error_code error;
  const std::string main_file = "/etc/trims/trims.toml";
  // A file that can not be looked at is not a file that is not there: reading
  // it will say why.
  if (std::filesystem::exists(main_file, error) || error) files.push_back(main_file);
  std::vector<std::string> parts;
  for (std::filesystem::directory_iterator entry("/etc/trims/conf.d", error), end;
       !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".toml") parts.push_back(entry->path().native());
  }
  std::sort(parts.begin(), parts.end());
  files.insert(files.end(), parts.begin(), parts.end());
  return files;
}

Result<LoadedConfig> LoadConfig(const ConfigSources& sources) {
  Draft draft{.config = DefaultConfig(sources.getenv)};
  for (const std::string& file : sources.files) {
    ASSIGN_OR_RETURN(const std::string text, ReadConfigFile(file));
    RETURN_IF_ERROR(PutText(draft, text, file));
  }
  RETURN_IF_ERROR(PutEnvironment(draft, sources.getenv));
  if (sources.env_names) {
    RETURN_IF_ERROR(CheckNames(*sources.env_names, sources.getenv));
  } else if (!sources.getenv) {
    RETURN_IF_ERROR(CheckNames(ProcessNames(), sources.getenv));
  }
  RETURN_IF_ERROR(PutFlags(draft, sources.flags));
  RETURN_IF_ERROR(CheckTogether(draft));
  return Finish(std::move(draft));
}

Result<LoadedConfig> ParseConfigText(std::string_view text, const std::string& filename) {
  if (text.size() > kMaxConfigFileBytes) {
    return InvalidArgumentError(filename + ": larger than " + ExactSize(kMaxConfigFileBytes));
  }
  Draft draft{.config = DefaultConfig([](const std::string&) { return std::nullopt; })};
  RETURN_IF_ERROR(PutText(draft, text, filename));
  RETURN_IF_ERROR(CheckTogether(draft));
  return Finish(std::move(draft));
}

}  // namespace trims

#include "daemon/settings.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>

#include "base/limits.h"
#include "base/text.h"
#include "base/units.h"

namespace trims {
namespace {

const Expected kAccepted = std::nullopt;

// A plain number: no sign of infinity, no hexadecimal, nothing behind it.
std::optional<double> ParseNumber(std::string_view text) {
  double value = 0;
  if (text.find_first_of("0123456789.") != 0) return std::nullopt;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size() || !std::isfinite(value)) {
    return std::nullopt;
  }
  return value;
}

constexpr char kForever[] = "forever";
constexpr char kAuto[] = "auto";
constexpr char kNone[] = "none";

template <auto Member>
Expected SetBool(DaemonConfig& config, std::string_view text) {
  const Result<bool> value = ParseBool(text);
  if (!value.ok()) return kExpectedBool;
  config.*Member = *value;
  return kAccepted;
}
template <auto Member>
std::string ShowBool(const DaemonConfig& config) {
  return config.*Member ? "true" : "false";
}

template <auto Member>
Expected SetText(DaemonConfig& config, std::string_view text) {
  config.*Member = std::string(text);
  return kAccepted;
}
template <auto Member>
std::string ShowText(const DaemonConfig& config) {
  return config.*Member;
}

// A socket's name has to fit behind it: sun_path has 108 bytes, its NUL included.
constexpr std::string_view kLongestSocketName = "/control.sock";
constexpr size_t kSocketPathBytes = 108 - 1;

template <auto Member>
Expected SetDirectory(DaemonConfig& config, std::string_view text) {
  if (text.empty()) return "a directory";
  if (text.size() >= 4096) return "a directory whose name has fewer than 4096 bytes";
  config.*Member = std::string(text);
  return kAccepted;
}
Expected SetRuntimeDir(DaemonConfig& config, std::string_view text) {
  if (text.size() + kLongestSocketName.size() > kSocketPathBytes) {
    return "a directory whose name has at most " +
           std::to_string(kSocketPathBytes - kLongestSocketName.size()) +
           " bytes, because the sockets in it have to fit a UNIX socket address";
  }
  return SetDirectory<&DaemonConfig::runtime_dir>(config, text);
}

template <auto Member>
Expected SetMode(DaemonConfig& config, std::string_view text) {
  const auto mode = ParseCount(text, 0777, 8);
  if (!mode) return "octal permission bits from 0000 to 0777, such as \"0660\"";
  config.*Member = static_cast<uint32_t>(*mode);
  return kAccepted;
}
template <auto Member>
std::string ShowMode(const DaemonConfig& config) {
  const uint32_t mode = config.*Member;
  std::string text = "0";
  for (const int shift : {6, 3, 0}) text += static_cast<char>('0' + ((mode >> shift) & 7));
  return text;
}

template <auto Member, uint64_t kMin, uint64_t kMax>
Expected SetCount(DaemonConfig& config, std::string_view text) {
  const auto count = ParseCount(text, kMax);
  if (!count || *count < kMin) {
    return "a whole number from " + std::to_string(kMin) + " to " + std::to_string(kMax);
  }
  config.*Member = static_cast<std::remove_reference_t<decltype(config.*Member)>>(*count);
  return kAccepted;
}
template <auto Member>
std::string ShowCount(const DaemonConfig& config) {
  return std::to_string(config.*Member);
}

std::vector<std::string> PolicyNames() {
  std::vector<std::string> names;
  for (const auto kind :
       {store::PolicyKind::kNever, store::PolicyKind::kLru, store::PolicyKind::kFifo,
        store::PolicyKind::kLcu, store::PolicyKind::kRandom, store::PolicyKind::kFlush,
        store::PolicyKind::kEager, store::PolicyKind::kGdsf}) {
    names.emplace_back(store::PolicyName(kind));
  }
  names.emplace_back("all");
  return names;
}
Expected OneOf(std::string_view text, const std::vector<std::string>& names) {
  std::string expected = "one of " + Join(names, ", ");
  const std::string nearest = Nearest(Lower(text), names, 2);
  if (!nearest.empty()) expected += " (did you mean " + nearest + "?)";
  return expected;
}
Expected SetPolicy(DaemonConfig& config, std::string_view text) {
  const Result<store::PolicyKind> kind = store::ParsePolicy(text);
  if (!kind.ok()) return OneOf(text, PolicyNames());
  config.eviction_policy = *kind;
  return kAccepted;
}
std::string ShowPolicy(const DaemonConfig& config) {
  return std::string(store::PolicyName(config.eviction_policy));
}

Expected SetLogLevel(DaemonConfig& config, std::string_view text) {
  static const std::vector<std::string> kLevels = {"trace", "debug", "info", "warn", "error"};
  std::string level = Lower(text);
  if (level == "warning") level = "warn";
  if (std::find(kLevels.begin(), kLevels.end(), level) == kLevels.end())
    return OneOf(text, kLevels);
  config.log_level = level;
  return kAccepted;
}

Expected SetEstimationRate(DaemonConfig& config, std::string_view text) {
  const auto rate = ParseNumber(text);
  if (!rate || *rate <= 0 || *rate > 1000) return "a number above 0 and up to 1000, such as 1.0";
  config.estimation_rate = *rate;
  return kAccepted;
}
std::string ShowEstimationRate(const DaemonConfig& config) {
  return ExactNumber(config.estimation_rate);
}

Expected SetMemoryPercentage(DaemonConfig& config, std::string_view text) {
  const bool percent = !text.empty() && text.back() == '%';
  auto value = ParseNumber(percent ? Trim(text.substr(0, text.size() - 1)) : text);
  if (value && percent) *value /= 100;
  if (!value || *value <= 0 || *value > 1) {
    return "a fraction above 0 and up to 1, such as 0.8, or a percentage such as 80%";
  }
  config.memory_percentage = *value;
  return kAccepted;
}
std::string ShowMemoryPercentage(const DaemonConfig& config) {
  return ExactNumber(config.memory_percentage);
}

Expected SetKeepAlive(DaemonConfig& config, std::string_view text) {
  const auto value = ParseKeepAlive(text);
  if (!value.ok()) return kExpectedKeepAlive;
  config.keep_alive = *value;
  return kAccepted;
}
std::string ShowKeepAlive(const DaemonConfig& config) {
  return config.keep_alive ? FormatDuration(*config.keep_alive) : kForever;
}

constexpr char kOfHost[] = "the machine's memory";
constexpr char kOfDevice[] = "each device's memory";
template <auto Member, const char* kWhose>
Expected SetCapacity(DaemonConfig& config, std::string_view text) {
  if (Lower(text) == kAuto) {
    config.*Member = std::nullopt;
    return kAccepted;
  }
  const auto bytes = ParseSize(text);
  if (!bytes.ok() || *bytes == 0) {
    return std::string(kExpectedSize) + ", or auto for memory_percentage of " + kWhose;
  }
  config.*Member = *bytes;
  return kAccepted;
}
template <auto Member>
std::string ShowCapacity(const DaemonConfig& config) {
  return config.*Member ? ExactSize(*(config.*Member)) : kAuto;
}

Expected SetSlabBytes(DaemonConfig& config, std::string_view text) {
  constexpr uint64_t kMaxSlabBytes = 64 * kGiB;
  const auto bytes = ParseSize(text);
  if (!bytes.ok() || *bytes == 0 || *bytes % kHugePageBytes != 0 || *bytes > kMaxSlabBytes) {
    return "a multiple of 2MiB, at most " + ExactSize(kMaxSlabBytes) +
           ", with its unit, such as 64MiB";
  }
  config.slab_bytes = *bytes;
  return kAccepted;
}
std::string ShowSlabBytes(const DaemonConfig& config) { return ExactSize(config.slab_bytes); }

Expected SetDevices(DaemonConfig& config, std::string_view text) {
  static constexpr char kExpected[] =
      "all, none, or numbers and UUIDs of GPUs with commas between them, such as "
      "0,GPU-5fd4f087-86f3-7a43-b711-4771313afc50";
  const std::string lower = Lower(text);
  if (lower == "all" || lower == kNone) {
    config.devices = lower;
    return kAccepted;
  }
  std::string list;
  const std::vector<std::string_view> parts = SplitList(text);
  if (parts.empty() || parts.size() > kMaxDevices) return kExpected;
  for (const std::string_view part : parts) {
    const std::string name = Lower(part);
    const bool is_uuid = (name.starts_with("gpu-") || name.starts_with("mig-")) &&
                         name.find_first_not_of("0123456789abcdef-", 4) == std::string::npos;
    if (!is_uuid && !ParseCount(part, kMaxDevices)) return kExpected;
    list += (list.empty() ? "" : ",") + std::string(part);
  }
  config.devices = list;
  return kAccepted;
}

template <auto Member>
Expected SetBytes(DaemonConfig& config, std::string_view text) {
  if (Lower(text) == kNone) {
    config.*Member = 0;
    return kAccepted;
  }
  const auto bytes = ParseSize(text);
  if (!bytes.ok()) return std::string(kExpectedSize) + ", or none";
  config.*Member = *bytes;
  return kAccepted;
}
template <auto Member>
std::string ShowBytes(const DaemonConfig& config) {
  return config.*Member == 0 ? kNone : ExactSize(config.*Member);
}

Expected SetTrustedUids(DaemonConfig& config, std::string_view text) {
  std::vector<uint32_t> uids;
  for (const std::string_view part : SplitList(text)) {
    const auto uid = ParseCount(part, std::numeric_limits<uint32_t>::max());
    if (!uid) return "numbers of users with commas between them, such as 1000,1001; or nothing";
    uids.push_back(static_cast<uint32_t>(*uid));
  }
  config.trusted_uids = std::move(uids);
  return kAccepted;
}
std::string ShowTrustedUids(const DaemonConfig& config) {
  std::string text;
  for (const uint32_t uid : config.trusted_uids)
    text += (text.empty() ? "" : ",") + std::to_string(uid);
  return text;
}

Expected SetLeasedBytes(DaemonConfig& config, std::string_view text) {
  if (Lower(text) == kNone) {
    config.leased_bytes_per_uid_max = 0;
    return kAccepted;
  }
  const auto bytes = ParseSize(text);
  if (!bytes.ok() || *bytes == 0) return std::string(kExpectedSize) + ", or none for no limit";
  config.leased_bytes_per_uid_max = *bytes;
  return kAccepted;
}

// Everything the daemon can be told. Flags, variables, file keys, help, origins
// and the documented trims.toml all come from these rows.
using C = DaemonConfig;
constexpr Setting kSettings[] = {
    {"runtime_dir", "", SettingKind::kPath, "DIR", false, "/run/trims", SetRuntimeDir,
     ShowText<&C::runtime_dir>,
     "Directory of lease.sock and control.sock. For root /run/trims, else $XDG_RUNTIME_DIR/trims, "
     "else "
     "/tmp/trims-<uid>."},
    {"state_dir", "", SettingKind::kPath, "DIR", false, "/var/lib/trims",
     SetDirectory<&C::state_dir>, ShowText<&C::state_dir>,
     "Directory of the catalogue and of what is known about weights files. For root "
     "/var/lib/trims, else "
     "$XDG_STATE_HOME/trims, else ~/.local/state/trims."},
    {"base_dir", "UPR_BASE_DIR", SettingKind::kPath, "DIR", false, "/root/carml/data/mxnet/",
     SetDirectory<&C::base_dir>, ShowText<&C::base_dir>,
     "Directory that holds one directory per model: model.params, model.symbol, features.txt. "
     "Without it, carml/data/mxnet/ in the home of the daemon's user."},
    {"lease_socket_mode", "", SettingKind::kMode, "MODE", false, "", SetMode<&C::lease_socket_mode>,
     ShowMode<&C::lease_socket_mode>, "Permission bits of lease.sock: who may borrow weights."},
    {"control_socket_mode", "", SettingKind::kMode, "MODE", false, "",
     SetMode<&C::control_socket_mode>, ShowMode<&C::control_socket_mode>,
     "Permission bits of control.sock: who may administer."},
    {"admin_group", "", SettingKind::kText, "GROUP", false, "", SetText<&C::admin_group>,
     ShowText<&C::admin_group>, "Group that owns control.sock; empty leaves the daemon's own."},

    {"eviction_policy", "UPRD_EVICTION_POLICY", SettingKind::kChoice, "POLICY", true, "", SetPolicy,
     ShowPolicy,
     "Which model goes first when room is short: never, lru, fifo, lcu, random, flush (or all), "
     "eager, "
     "gdsf. A model in use never goes."},
    {"estimation_rate", "UPRD_ESTIMATION_RATE", SettingKind::kNumber, "RATE", true, "",
     SetEstimationRate, ShowEstimationRate,
     "Multiplies a model's bytes in the estimate of the room it needs."},
    {"memory_percentage", "UPRD_MEMORY_PERCENTAGE", SettingKind::kNumber, "FRACTION", true, "",
     SetMemoryPercentage, ShowMemoryPercentage,
     "Share of a tier's memory that models may take together: 0.8 or 80%."},
    {"persist_cpu", "UPRD_PERSIST_CPU", SettingKind::kBool, "BOOL", true, "",
     SetBool<&C::persist_cpu>, ShowBool<&C::persist_cpu>,
     "Keep models in host memory when nobody uses them."},
    {"persist_only_cpu", "UPRD_PERSIST_ONLY_CPU", SettingKind::kBool, "BOOL", true, "",
     SetBool<&C::persist_only_cpu>, ShowBool<&C::persist_only_cpu>,
     "Free a model's copy in GPU memory as soon as nobody uses it and keep the one in host memory. "
     "Needs "
     "persist_cpu."},
    {"estimate_with_internal_memory", "UPRD_ESTIMATE_WITH_INTERNAL_MEMORY", SettingKind::kBool,
     "BOOL", true, "", SetBool<&C::estimate_with_internal_memory>,
     ShowBool<&C::estimate_with_internal_memory>,
     "Count a model's measured working memory in the estimate of the room it needs."},
    {"keep_alive", "", SettingKind::kQuantity, "DURATION", true, "", SetKeepAlive, ShowKeepAlive,
     "How long a model stays after its last use: 5m, 0 or forever. Clients may ask otherwise for "
     "theirs."},
    {"host_capacity_bytes", "", SettingKind::kQuantity, "SIZE", true, "",
     SetCapacity<&C::host_capacity_bytes, kOfHost>, ShowCapacity<&C::host_capacity_bytes>,
     "Host memory that models may take together; auto is memory_percentage of the machine's "
     "memory."},
    {"use_hugetlb", "", SettingKind::kBool, "BOOL", false, "", SetBool<&C::use_hugetlb>,
     ShowBool<&C::use_hugetlb>, "Use reserved huge pages for weights while there are free ones."},
    {"slab_bytes", "", SettingKind::kQuantity, "SIZE", false, "", SetSlabBytes, ShowSlabBytes,
     "Size of one block when weights are shared at the granularity slab: a multiple of 2MiB."},

    {"devices", "", SettingKind::kText, "LIST", false, "", SetDevices, ShowText<&C::devices>,
     "GPUs that models may be resident on: all, none, or numbers and UUIDs with commas between "
     "them."},
    {"device_capacity_bytes", "", SettingKind::kQuantity, "SIZE", false, "",
     SetCapacity<&C::device_capacity_bytes, kOfDevice>, ShowCapacity<&C::device_capacity_bytes>,
     "Memory of each GPU that models may take together; auto is memory_percentage of the GPU's "
     "memory."},
    {"pinned_pool_bytes", "", SettingKind::kQuantity, "SIZE", false, "",
     SetBytes<&C::pinned_pool_bytes>, ShowBytes<&C::pinned_pool_bytes>,
     "Pinned host memory for each GPU that loads read files into, prepared in the background; "
     "none makes each load prepare its own."},
    {"scrub_bytes_per_second", "", SettingKind::kQuantity, "SIZE", true, "",
     SetBytes<&C::scrub_bytes_per_second>, ShowBytes<&C::scrub_bytes_per_second>,
     "How fast resident bytes of each GPU are checked again in the background; none switches it "
     "off."},
    {"trusted_uids", "", SettingKind::kText, "LIST", true, "", SetTrustedUids, ShowTrustedUids,
     "Users beside root and the daemon's own after whose leases on GPU memory the bytes are not "
     "checked: numbers with commas between them."},

    {"loader_threads", "", SettingKind::kNumber, "COUNT", false, "",
     SetCount<&C::loader_threads, 0, 1024>, ShowCount<&C::loader_threads>,
     "Models loaded at once; 0 is the number of cores, at most 4."},
    {"io_threads", "", SettingKind::kNumber, "COUNT", false, "", SetCount<&C::io_threads, 0, 1024>,
     ShowCount<&C::io_threads>,
     "Threads that read for one load; 0 is the number of cores, at most 8."},

    {"sessions_per_uid_max", "", SettingKind::kNumber, "COUNT", true, "",
     SetCount<&C::sessions_per_uid_max, 1, std::numeric_limits<uint32_t>::max()>,
     ShowCount<&C::sessions_per_uid_max>, "Connections to lease.sock that one user may have."},
    {"leases_per_uid_max", "", SettingKind::kNumber, "COUNT", true, "",
     SetCount<&C::leases_per_uid_max, 1, std::numeric_limits<uint32_t>::max()>,
     ShowCount<&C::leases_per_uid_max>, "Leases that one user may hold."},
    {"leased_bytes_per_uid_max", "", SettingKind::kQuantity, "SIZE", true, "", SetLeasedBytes,
     ShowBytes<&C::leased_bytes_per_uid_max>,
     "Bytes that one user may hold by leases; none is no limit."},

    {"write_profile", "UPRD_WRITE_PROFILE", SettingKind::kBool, "BOOL", false, "",
     SetBool<&C::write_profile>, ShowBool<&C::write_profile>,
     "Record a Chrome trace of the daemon's work and write it at exit."},
    {"profile_target", "UPR_PROFILE_TARGET", SettingKind::kText, "FILE", false, "",
     SetDirectory<&C::profile_target>, ShowText<&C::profile_target>,
     "File that write_profile writes."},
    {"log_level", "", SettingKind::kChoice, "LEVEL", true, "", SetLogLevel, ShowText<&C::log_level>,
     "Least important lines that are logged: trace, debug, info, warn or error."},
};

std::vector<std::string> AllKeys() {
  std::vector<std::string> keys;
  for (const Setting& setting : kSettings) keys.emplace_back(setting.key);
  return keys;
}

std::optional<std::string> ProcessGetenv(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

std::string HomeOf(const Getenv& getenv) {
  if (auto home = NonEmpty(getenv, "HOME")) return *home;
  passwd entry{};
  passwd* found = nullptr;
  std::vector<char> buffer(16 * kKiB);
  if (getpwuid_r(geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 &&
      found != nullptr && found->pw_dir != nullptr && found->pw_dir[0] != '\0') {
    return found->pw_dir;
  }
  return "/";
}

}  // namespace

std::span<const Setting> Settings() { return kSettings; }

std::optional<size_t> FindSetting(std::string_view key) {
  for (size_t i = 0; i < std::size(kSettings); ++i) {
    if (kSettings[i].key == key) return i;
  }
  return std::nullopt;
}

std::string UnknownSetting(std::string_view key) {
  std::string message = "unknown setting " + Quoted(key, kShownBytesMax);
  const std::vector<std::string> keys = AllKeys();
  std::string nearest = Nearest(Lower(key), keys, 3);
  if (nearest.empty() && key.size() >= 4) {
    for (const std::string& candidate : keys) {
      if (candidate.find(Lower(key)) != std::string::npos) nearest = candidate;
    }
  }
  if (!nearest.empty()) return message + "; did you mean " + nearest + "?";
  return message + "; known are " + Join(keys, ", ");
}

std::string FlagOf(std::string_view key) {
  std::string flag = "--";
  for (const char c : key) flag += c == '_' ? '-' : c;
  return flag;
}

std::string VariableOf(const Setting& setting) {
  std::string name = "TRIMS_";
  for (const char c : setting.key)
    name += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return name;
}

std::string VariablesOf(const Setting& setting) {
  std::string env = VariableOf(setting);
  if (!setting.upr_env.empty()) env += ", " + std::string(setting.upr_env);
  return env;
}

std::string ExactNumber(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, end.ptr);
  // A TOML float has a point or an exponent.
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::optional<std::string> NonEmpty(const Getenv& getenv, const std::string& name) {
  std::optional<std::string> value = getenv ? getenv(name) : ProcessGetenv(name);
  if (value && value->empty()) return std::nullopt;
  return value;
}

DaemonConfig DefaultConfig(const Getenv& getenv) {
  DaemonConfig config;
  const uid_t uid = geteuid();
  if (uid == 0) {
    config.runtime_dir = "/run/trims";
    config.state_dir = "/var/lib/trims";
  } else {
    const auto runtime = NonEmpty(getenv, "XDG_RUNTIME_DIR");
    config.runtime_dir = runtime ? *runtime + "/trims" : "/tmp/trims-" + std::to_string(uid);
    const auto state = NonEmpty(getenv, "XDG_STATE_HOME");
    config.state_dir = (state ? *state : HomeOf(getenv) + "/.local/state") + "/trims";
  }
  config.base_dir = HomeOf(getenv) + "/carml/data/mxnet/";
  config.profile_target = "server_profile.json";
  config.slab_bytes = kDefaultSlabBytes;
  config.pinned_pool_bytes = kDefaultPinnedPoolBytes;
  config.scrub_bytes_per_second = kDefaultScrubBytesPerSecond;
  config.sessions_per_uid_max = kDefaultSessionsPerUid;
  config.leases_per_uid_max = kDefaultLeasesPerUid;
  config.leased_bytes_per_uid_max = kDefaultLeasedBytesPerUid;
  return config;
}

const std::vector<ConfigKey>& ConfigKeys() {
  static const auto* const keys = [] {
    auto* all = new std::vector<ConfigKey>();  // Never destroyed: usable until the process ends.
    const DaemonConfig defaults = DefaultConfig([](const std::string&) { return std::nullopt; });
    for (const Setting& setting : kSettings) {
      all->push_back({.key = std::string(setting.key),
                      .flag = FlagOf(setting.key),
                      .env = VariablesOf(setting),
                      .value_name = std::string(setting.value_name),
                      .default_value = setting.documented_default.empty()
                                           ? setting.show(defaults)
                                           : std::string(setting.documented_default),
                      .help = std::string(setting.help),
                      .reloadable = setting.reloadable});
    }
    return all;
  }();
  return *keys;
}

}  // namespace trims

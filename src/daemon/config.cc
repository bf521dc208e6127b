#include "daemon/config.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/format.h"
#include "base/limits.h"
#include "base/unique_fd.h"

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
// toml++ 3.3 asserts, and under clang promises the optimiser, things of its input
// that the code behind the assertion then checks after all and refuses: "Tp" is
// no time. No file may abort the daemon or break a promise.
#include <toml++/impl/preprocessor.h>
#undef TOML_ASSERT_ASSUME
#define TOML_ASSERT_ASSUME(expr) static_assert(true)
#include <toml++/toml.h>

extern char** environ;  // NOLINT: POSIX's own name.

namespace trims {
namespace {

__extension__ typedef unsigned __int128 Wide;

// --- Text --------------------------------------------------------------------

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// `text` in double quotes, as TOML writes a basic string: readable in messages
// and harmless in a terminal, whatever it holds. Cut where it gets too long.
std::string Quoted(std::string_view text, size_t bytes_max = std::string_view::npos) {
  static constexpr char kHex[] = "0123456789abcdef";
  const bool cut = text.size() > bytes_max;
  if (cut) text = text.substr(0, bytes_max);
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += "\\u00";
      quoted += kHex[byte >> 4];
      quoted += kHex[byte & 15];
    } else {
      quoted += c;
    }
  }
  return quoted + (cut ? "…\"" : "\"");
}

// Messages show at most this much of what somebody wrote.
constexpr size_t kShownTextBytes = 80;

std::string Found(std::string_view text, std::string_view expected) {
  return "found " + Quoted(text, kShownTextBytes) + ", expected " + std::string(expected);
}

// Edits (insert, delete, replace, swap of neighbours) between two short texts.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] =
          std::min({previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(previous);
    previous.swap(row);
  }
  return previous[b.size()];
}

// The candidate that `text` most likely meant; "" when none is near.
std::string Nearest(std::string_view text, const std::vector<std::string>& candidates,
                    size_t distance_max) {
  // Longer texts are near nothing; the bound also keeps hostile files cheap.
  if (text.size() > 64) return "";
  std::string nearest;
  size_t best = distance_max + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(text, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (const std::string& part : parts) {
    if (!joined.empty()) joined += separator;
    joined += part;
  }
  return joined;
}

// --- Numbers with units --------------------------------------------------------

// A decimal number without sign or exponent: value = digits / 10^decimals.
struct Decimal {
  uint64_t digits = 0;
  int decimals = 0;
};

// Takes a number from the front of `text`; nullopt when there is none or when
// it has more digits than a uint64 holds.
std::optional<Decimal> TakeDecimal(std::string_view& text) {
  Decimal number;
  size_t i = 0;
  bool point = false;
  bool any = false;
  for (; i < text.size(); ++i) {
    if (text[i] == '.' && !point) {
      point = true;
      continue;
    }
    if (!IsDigit(text[i])) break;
    any = true;
    const auto digit = static_cast<uint64_t>(text[i] - '0');
    if (number.digits > (std::numeric_limits<uint64_t>::max() - digit) / 10) return std::nullopt;
    if (point && ++number.decimals > 18) return std::nullopt;
    number.digits = number.digits * 10 + digit;
  }
  if (!any || (point && text[i - 1] == '.')) return std::nullopt;
  text.remove_prefix(i);
  return number;
}

// number * unit, rounded down; nullopt when it exceeds `limit`.
std::optional<uint64_t> Scale(Decimal number, uint64_t unit, uint64_t limit) {
  Wide value = static_cast<Wide>(number.digits) * unit;
  for (int i = 0; i < number.decimals; ++i) value /= 10;
  if (value > limit) return std::nullopt;
  return static_cast<uint64_t>(value);
}

struct Unit {
  std::string_view name;
  uint64_t factor;
};

constexpr Unit kSizeUnits[] = {
    {"b", 1},
    {"kib", kKiB},
    {"mib", kMiB},
    {"gib", kGiB},
    {"tib", 1024 * kGiB},
    {"pib", 1024 * 1024 * kGiB},
    {"kb", 1000},
    {"mb", 1000 * 1000},
    {"gb", 1000 * 1000 * 1000},
    {"tb", 1000ULL * 1000 * 1000 * 1000},
    {"pb", 1000ULL * 1000 * 1000 * 1000 * 1000},
};

constexpr Unit kTimeUnits[] = {
    {"ns", 1},
    {"us", 1000},
    {"\xc2\xb5s", 1000},  // U+00B5, the micro sign.
    {"\xce\xbcs", 1000},  // U+03BC, the Greek letter.
    {"ms", 1000 * 1000},
    {"s", 1000 * 1000 * 1000},
    {"m", 60ULL * 1000 * 1000 * 1000},
    {"h", 3600ULL * 1000 * 1000 * 1000},
    {"d", 86400ULL * 1000 * 1000 * 1000},
};

constexpr char kExpectedSize[] =
    "a size with its unit, such as 64MiB (2^20 bytes) or 1.5GB (10^9 bytes)";
constexpr char kExpectedKeepAlive[] =
    "a duration with its unit, such as 250ms, 5m or 1h30m, or 0, or forever";
constexpr char kExpectedBool[] = "true, false, 1 or 0";

// The shortest text that ParseSize reads back to exactly `bytes`.
std::string ExactSize(uint64_t bytes) {
  static constexpr std::pair<std::string_view, uint64_t> kUnits[] = {{"PiB", 1024 * 1024 * kGiB},
                                                                     {"TiB", 1024 * kGiB},
                                                                     {"GiB", kGiB},
                                                                     {"MiB", kMiB},
                                                                     {"KiB", kKiB}};
  for (const auto& [name, factor] : kUnits) {
    if (bytes >= factor && bytes % factor == 0)
      return std::to_string(bytes / factor) + std::string(name);
  }
  return std::to_string(bytes) + "B";
}

// The shortest decimal text that reads back to exactly `value`.
std::string ExactNumber(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, end.ptr);
  // A TOML float has a point or an exponent.
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

// A plain number: no sign of infinity, no hexadecimal, nothing behind it.
std::optional<double> ParseNumber(std::string_view text) {
  double value = 0;
  if (text.empty() || !(IsDigit(text.front()) || text.front() == '.')) return std::nullopt;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size() || !std::isfinite(value)) {
    return std::nullopt;
  }
  return value;
}

std::optional<uint64_t> ParseCount(std::string_view text, uint64_t limit, int base = 10) {
  uint64_t value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || end.ec != std::errc() || end.ptr != text.data() + text.size() ||
      value > limit) {
    return std::nullopt;
  }
  return value;
}

// --- The table -----------------------------------------------------------------

enum class Kind : uint8_t {
  kPath,    // A directory; made absolute.
  kText,    // Free text without control characters.
  kChoice,  // One word of a list.
  kBool,
  kNumber,    // Written bare in TOML.
  kQuantity,  // Size or duration: a number with its unit, a string in TOML.
  kMode,      // Octal permission bits.
};

// What went wrong with a value: what was expected instead.
using Expected = std::optional<std::string>;
inline const Expected kAccepted = std::nullopt;

struct Setting {
  std::string_view key;
  std::string_view upr_env;  // The name of 2018, "" if there was none.
  Kind kind;
  std::string_view value_name;  // In `--help`.
  bool reloadable;
  // The default as the documentation shows it, where it depends on the user or
  // the machine; "" when `show` of a default DaemonConfig says it.
  std::string_view documented_default;
  Expected (*set)(DaemonConfig& config, std::string_view text);
  std::string (*show)(const DaemonConfig& config);
  std::string_view help;
};

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
    {"runtime_dir", "", Kind::kPath, "DIR", false, "/run/trims", SetRuntimeDir,
     ShowText<&C::runtime_dir>,
     "Directory of lease.sock and control.sock. For root /run/trims, else $XDG_RUNTIME_DIR/trims, "
     "else "
     "/tmp/trims-<uid>."},
    {"state_dir", "", Kind::kPath, "DIR", false, "/var/lib/trims", SetDirectory<&C::state_dir>,
     ShowText<&C::state_dir>,
     "Directory of the catalogue and of what is known about weights files. For root "
     "/var/lib/trims, else "
     "$XDG_STATE_HOME/trims, else ~/.local/state/trims."},
    {"base_dir", "UPR_BASE_DIR", Kind::kPath, "DIR", false, "/root/carml/data/mxnet/",
     SetDirectory<&C::base_dir>, ShowText<&C::base_dir>,
     "Directory that holds one directory per model: model.params, model.symbol, features.txt. "
     "Without it, carml/data/mxnet/ in the home of the daemon's user."},
    {"lease_socket_mode", "", Kind::kMode, "MODE", false, "", SetMode<&C::lease_socket_mode>,
     ShowMode<&C::lease_socket_mode>, "Permission bits of lease.sock: who may borrow weights."},
    {"control_socket_mode", "", Kind::kMode, "MODE", false, "", SetMode<&C::control_socket_mode>,
     ShowMode<&C::control_socket_mode>, "Permission bits of control.sock: who may administer."},
    {"admin_group", "", Kind::kText, "GROUP", false, "", SetText<&C::admin_group>,
     ShowText<&C::admin_group>, "Group that owns control.sock; empty leaves the daemon's own."},

    {"eviction_policy", "UPRD_EVICTION_POLICY", Kind::kChoice, "POLICY", true, "", SetPolicy,
     ShowPolicy,
     "Which model goes first when room is short: never, lru, fifo, lcu, random, flush (or all), "
     "eager, "
     "gdsf. A model in use never goes."},
    {"estimation_rate", "UPRD_ESTIMATION_RATE", Kind::kNumber, "RATE", true, "", SetEstimationRate,
     ShowEstimationRate, "Multiplies a model's bytes in the estimate of the room it needs."},
    {"memory_percentage", "UPRD_MEMORY_PERCENTAGE", Kind::kNumber, "FRACTION", true, "",
     SetMemoryPercentage, ShowMemoryPercentage,
     "Share of a tier's memory that models may take together: 0.8 or 80%."},
    {"persist_cpu", "UPRD_PERSIST_CPU", Kind::kBool, "BOOL", true, "", SetBool<&C::persist_cpu>,
     ShowBool<&C::persist_cpu>, "Keep models in host memory when nobody uses them."},
    {"persist_only_cpu", "UPRD_PERSIST_ONLY_CPU", Kind::kBool, "BOOL", true, "",
     SetBool<&C::persist_only_cpu>, ShowBool<&C::persist_only_cpu>,
     "Free a model's copy in GPU memory as soon as nobody uses it and keep the one in host memory. "
     "Needs "
     "persist_cpu."},
    {"estimate_with_internal_memory", "UPRD_ESTIMATE_WITH_INTERNAL_MEMORY", Kind::kBool, "BOOL",
     true, "", SetBool<&C::estimate_with_internal_memory>,
     ShowBool<&C::estimate_with_internal_memory>,
     "Count a model's measured working memory in the estimate of the room it needs."},
    {"keep_alive", "", Kind::kQuantity, "DURATION", true, "", SetKeepAlive, ShowKeepAlive,
     "How long a model stays after its last use: 5m, 0 or forever. Clients may ask otherwise for "
     "theirs."},
    {"host_capacity_bytes", "", Kind::kQuantity, "SIZE", true, "",
     SetCapacity<&C::host_capacity_bytes, kOfHost>, ShowCapacity<&C::host_capacity_bytes>,
     "Host memory that models may take together; auto is memory_percentage of the machine's "
     "memory."},
    {"use_hugetlb", "", Kind::kBool, "BOOL", false, "", SetBool<&C::use_hugetlb>,
     ShowBool<&C::use_hugetlb>, "Use reserved huge pages for weights while there are free ones."},
    {"slab_bytes", "", Kind::kQuantity, "SIZE", false, "", SetSlabBytes, ShowSlabBytes,
     "Size of one block when weights are shared at the granularity slab: a multiple of 2MiB."},

    {"devices", "", Kind::kText, "LIST", false, "", SetDevices, ShowText<&C::devices>,
     "GPUs that models may be resident on: all, none, or numbers and UUIDs with commas between "
     "them."},
    {"device_capacity_bytes", "", Kind::kQuantity, "SIZE", false, "",
     SetCapacity<&C::device_capacity_bytes, kOfDevice>, ShowCapacity<&C::device_capacity_bytes>,
     "Memory of each GPU that models may take together; auto is memory_percentage of the GPU's "
     "memory."},
    {"pinned_pool_bytes", "", Kind::kQuantity, "SIZE", false, "", SetBytes<&C::pinned_pool_bytes>,
     ShowBytes<&C::pinned_pool_bytes>,
     "Pinned host memory for each GPU that loads read files into, prepared in the background; "
     "none makes each load prepare its own."},
    {"scrub_bytes_per_second", "", Kind::kQuantity, "SIZE", true, "",
     SetBytes<&C::scrub_bytes_per_second>, ShowBytes<&C::scrub_bytes_per_second>,
     "How fast resident bytes of each GPU are checked again in the background; none switches it "
     "off."},
    {"trusted_uids", "", Kind::kText, "LIST", true, "", SetTrustedUids, ShowTrustedUids,
     "Users beside root and the daemon's own after whose leases on GPU memory the bytes are not "
     "checked: numbers with commas between them."},

    {"loader_threads", "", Kind::kNumber, "COUNT", false, "", SetCount<&C::loader_threads, 0, 1024>,
     ShowCount<&C::loader_threads>, "Models loaded at once; 0 is the number of cores, at most 4."},
    {"io_threads", "", Kind::kNumber, "COUNT", false, "", SetCount<&C::io_threads, 0, 1024>,
     ShowCount<&C::io_threads>,
     "Threads that read for one load; 0 is the number of cores, at most 8."},

    {"sessions_per_uid_max", "", Kind::kNumber, "COUNT", true, "",
     SetCount<&C::sessions_per_uid_max, 1, std::numeric_limits<uint32_t>::max()>,
     ShowCount<&C::sessions_per_uid_max>, "Connections to lease.sock that one user may have."},
    {"leases_per_uid_max", "", Kind::kNumber, "COUNT", true, "",
     SetCount<&C::leases_per_uid_max, 1, std::numeric_limits<uint32_t>::max()>,
     ShowCount<&C::leases_per_uid_max>, "Leases that one user may hold."},
    {"leased_bytes_per_uid_max", "", Kind::kQuantity, "SIZE", true, "", SetLeasedBytes,
     ShowBytes<&C::leased_bytes_per_uid_max>,
     "Bytes that one user may hold by leases; none is no limit."},

    {"write_profile", "UPRD_WRITE_PROFILE", Kind::kBool, "BOOL", false, "",
     SetBool<&C::write_profile>, ShowBool<&C::write_profile>,
     "Record a Chrome trace of the daemon's work and write it at exit."},
    {"profile_target", "UPR_PROFILE_TARGET", Kind::kText, "FILE", false, "",
     SetDirectory<&C::profile_target>, ShowText<&C::profile_target>,
     "File that write_profile writes."},
    {"log_level", "", Kind::kChoice, "LEVEL", true, "", SetLogLevel, ShowText<&C::log_level>,
     "Least important lines that are logged: trace, debug, info, warn or error."},
};
constexpr size_t kSettingCount = std::size(kSettings);

// Variables that mean something to clients or to the search for this
// configuration, and therefore are no misspellings of a setting.
constexpr std::string_view kOtherVariables[] = {"TRIMS_SOCKET", "TRIMS_CONFIG"};

std::string TrimsEnv(const Setting& setting) {
  std::string name = "TRIMS_";
  for (const char c : setting.key)
    name += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return name;
}

std::string FlagOf(std::string_view key) {
  std::string flag = "--";
  for (const char c : key) flag += c == '_' ? '-' : c;
  return flag;
}

std::vector<std::string> AllKeys() {
  std::vector<std::string> keys;
  for (const Setting& setting : kSettings) keys.emplace_back(setting.key);
  return keys;
}

std::optional<size_t> FindSetting(std::string_view key) {
  for (size_t i = 0; i < kSettingCount; ++i) {
    if (kSettings[i].key == key) return i;
  }
  return std::nullopt;
}

// "unknown setting "evict"; did you mean eviction_policy?", with what to do next.
std::string UnknownKey(std::string_view key) {
  std::string message = "unknown setting " + Quoted(key, kShownTextBytes);
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

// --- Layers ----------------------------------------------------------------------

using Getenv = std::function<std::optional<std::string>(const std::string&)>;

std::optional<std::string> ProcessGetenv(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

// The variable's value; nullopt when it is unset or empty.
std::optional<std::string> NonEmpty(const Getenv& getenv, const std::string& name) {
  std::optional<std::string> value = getenv ? getenv(name) : ProcessGetenv(name);
  if (value && value->empty()) return std::nullopt;
  return value;
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

DaemonConfig Defaults(const Getenv& getenv) {
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

// A configuration while layers are put on it, lowest first.
struct Draft {
  DaemonConfig config;
  std::vector<std::string> origins = std::vector<std::string>(kSettingCount, "default");
};

// Puts one value on the draft; `where` opens the message of a refusal.
Status Put(Draft& draft, size_t index, std::string_view raw, const std::string& origin,
           const std::string& where) {
  const Setting& setting = kSettings[index];
  const bool verbatim = setting.kind == Kind::kPath || setting.kind == Kind::kText;
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

std::string At(const std::string& filename, const toml::source_position& position) {
  return filename + ":" + std::to_string(position.line) + ":" + std::to_string(position.column);
}

// Refuses what no settings file needs, before the TOML parser sees it: tables,
// arrays, and anything but ASCII outside strings and comments. Nothing nests in
// what is left. toml++ 3.3 promises the optimiser that characters such as U+FE70
// do not occur between tokens.
Status CheckFlat(std::string_view text, const std::string& filename) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  size_t line = 1;
  size_t line_begin = 0;
  const auto refuse = [&](size_t at, std::string_view what) {
    return InvalidArgumentError(filename + ":" + std::to_string(line) + ":" +
                                std::to_string(at - line_begin + 1) + ": " + std::string(what));
  };
  size_t i = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      ++line;
      line_begin = i + 1;
    } else if (c == '#') {
      i = std::min(text.find('\n', i), text.size()) - 1;
    } else if (c == '"' || c == '\'') {
      const std::string_view rest = text.substr(i);
      const bool multi_line = rest.size() >= 3 && rest[1] == c && rest[2] == c;
      const std::string_view end = rest.substr(0, multi_line ? 3 : 1);
      const Status unended = refuse(i, "not TOML: the string that begins here does not end");
      for (i += end.size(); i < text.size() && !text.substr(i).starts_with(end); ++i) {
        if (c == '"' && text[i] == '\\' && i + 1 < text.size()) ++i;
        if (text[i] != '\n') continue;
        if (!multi_line) return unended;
        ++line;
        line_begin = i + 1;
      }
      if (i >= text.size()) return unended;
      i += end.size() - 1;
      // Two quotes of its own may stand in front of the three that end it.
      for (int own = 0; multi_line && own < 2 && i + 1 < text.size() && text[i + 1] == c; ++own)
        ++i;
    } else if (c == '[' || c == '{') {
      return refuse(i, "found a table or an array, expected settings only, each as key = value");
    } else if (byte >= 0x7f || (byte < 0x20 && c != '\t' && c != '\r')) {
      return refuse(
          i,
          "found a character that is not printable ASCII, expected settings only, each as "
          "key = value");
    }
  }
  return OkStatus();
}

// The text of a TOML value as the table's parsers read it; nullopt for a kind
// of value that the setting can not have.
std::optional<std::string> TextOf(const toml::node& node, Kind kind) {
  if (const auto* text = node.as_string()) return text->get();
  // Whatever else stands where text belongs is a mistake, not a file named 5.
  if (kind == Kind::kPath || kind == Kind::kText || kind == Kind::kChoice) return std::nullopt;
  if (const auto* boolean = node.as_boolean()) {
    return kind == Kind::kBool ? std::optional<std::string>(boolean->get() ? "true" : "false")
                               : std::nullopt;
  }
  if (const auto* integer = node.as_integer()) {
    if (kind == Kind::kMode) {
      // 0o660 is what it says; 660 would be read as something else.
      if ((integer->flags() & toml::value_flags::format_as_octal) == toml::value_flags::none)
        return std::nullopt;
      char buffer[32];
      const auto end = std::to_chars(buffer, buffer + sizeof buffer, integer->get(), 8);
      return std::string(buffer, end.ptr);
    }
    return std::to_string(integer->get());
  }
  if (const auto* number = node.as_floating_point(); number != nullptr && kind == Kind::kNumber) {
    return ExactNumber(number->get());
  }
  return std::nullopt;
}

std::string_view Describe(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a dotted key";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "a bare whole number";
    case toml::node_type::floating_point:
      return "a bare number";
    case toml::node_type::boolean:
      return "a boolean";
    case toml::node_type::date:
    case toml::node_type::time:
    case toml::node_type::date_time:
      return "a date or time";
    case toml::node_type::none:
      break;
  }
  return "nothing";
}

// What TOML should have held, asked of the parser itself with text it refuses.
std::string ExpectedKind(const Setting& setting) {
  if (setting.kind == Kind::kPath || setting.kind == Kind::kText) return "a string in quotes";
  DaemonConfig scratch;
  const Expected expected = setting.set(scratch, "?");
  return expected.value_or("a string in quotes");
}

Status PutText(Draft& draft, std::string_view text, const std::string& filename) {
  RETURN_IF_ERROR(CheckFlat(text, filename));
  const toml::parse_result parsed = toml::parse(text, filename);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return InvalidArgumentError(At(filename, error.source().begin) +
                                ": not TOML: " + std::string(error.description()));
  }
  for (const auto& [key, node] : parsed.table()) {
    const std::optional<size_t> index = FindSetting(key.str());
    if (!index)
      return InvalidArgumentError(At(filename, key.source().begin) + ": " + UnknownKey(key.str()));
    const Setting& setting = kSettings[*index];
    const std::string where = At(filename, node.source().begin) + ": " + std::string(setting.key);
    const std::optional<std::string> value = TextOf(node, setting.kind);
    if (!value) {
      return InvalidArgumentError(where + ": found " + std::string(Describe(node)) + ", expected " +
                                  ExpectedKind(setting));
    }
    if (setting.kind == Kind::kPath && !value->starts_with('/')) {
      return InvalidArgumentError(where + ": " +
                                  Found(*value, "an absolute directory, starting with /"));
    }
    const std::string origin = filename + ":" + std::to_string(node.source().begin.line);
    RETURN_IF_ERROR(Put(draft, *index, *value, origin, where));
  }
  return OkStatus();
}

Result<std::string> ReadFile(const std::string& path) {
  const std::string what = "reading the configuration file " + path;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, what);
  std::string text;
  for (;;) {
    char buffer[16 * kKiB];
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, what);
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxConfigFileBytes) {
      return InvalidArgumentError(what + ": it is larger than " + ExactSize(kMaxConfigFileBytes) +
                                  ", the most a configuration may have");
    }
  }
}

Status PutEnvironment(Draft& draft, const Getenv& getenv) {
  for (size_t i = 0; i < kSettingCount; ++i) {
    const Setting& setting = kSettings[i];
    const std::string trims_name = TrimsEnv(setting);
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
    if ((upr || trims) && setting.kind == Kind::kPath) {
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
  for (const Setting& setting : kSettings) {
    trims_names.push_back(TrimsEnv(setting));
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
        "environment variable " + name.substr(0, kShownTextBytes) + ": unknown; " +
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
    if (!index) return InvalidArgumentError(where + ": " + UnknownKey(key));
    std::string value = text;
    if (kSettings[*index].kind == Kind::kPath && !value.empty()) {
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

std::string EnvOf(const Setting& setting) {
  std::string env = TrimsEnv(setting);
  if (!setting.upr_env.empty()) env += ", " + std::string(setting.upr_env);
  return env;
}

LoadedConfig Finish(Draft draft) {
  LoadedConfig loaded;
  for (size_t i = 0; i < kSettingCount; ++i) {
    const Setting& setting = kSettings[i];
    loaded.entries.push_back({std::string(setting.key), setting.show(draft.config),
                              std::move(draft.origins[i]), EnvOf(setting),
                              std::string(setting.help), setting.reloadable});
  }
  loaded.config = std::move(draft.config);
  return loaded;
}

// `text` in lines of at most 98 columns, each after "# ".
std::string Comment(std::string_view text) {
  std::string comment;
  std::string line;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (!line.empty() && line.size() + 1 + end > 96) {
      comment += "# " + line + "\n";
      line.clear();
    }
    if (!line.empty()) line += ' ';
    line += text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return comment + "# " + line + "\n";
}

}  // namespace

const std::vector<ConfigKey>& ConfigKeys() {
  static const auto* const keys = [] {
    auto* all = new std::vector<ConfigKey>();  // Never destroyed: usable until the process ends.
    const DaemonConfig defaults = Defaults([](const std::string&) { return std::nullopt; });
    for (const Setting& setting : kSettings) {
      all->push_back({.key = std::string(setting.key),
                      .flag = FlagOf(setting.key),
                      .env = EnvOf(setting),
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
  Draft draft{.config = Defaults(sources.getenv)};
  for (const std::string& file : sources.files) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
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
  Draft draft{.config = Defaults([](const std::string&) { return std::nullopt; })};
  RETURN_IF_ERROR(PutText(draft, text, filename));
  RETURN_IF_ERROR(CheckTogether(draft));
  return Finish(std::move(draft));
}

std::string DefaultConfigText() {
  std::string text =
      "# TrIMS daemon configuration. Every setting is here with its default; remove the # in front "
      "of\n"
      "# a setting to change it. A flag wins over an environment variable, a variable over this "
      "file.\n"
      "# `trims config show --origin` says where each value came from.\n";
  for (size_t i = 0; i < kSettingCount; ++i) {
    const ConfigKey& key = ConfigKeys()[i];
    const bool bare = kSettings[i].kind == Kind::kBool || kSettings[i].kind == Kind::kNumber;
    text += "\n" + Comment(key.help);
    text += Comment("Flag " + key.flag + "; variable " + key.env + "; takes effect on " +
                    (key.reloadable ? "reload." : "restart."));
    text += "# " + key.key + " = " + (bare ? key.default_value : Quoted(key.default_value)) + "\n";
  }
  return text;
}

std::vector<std::string_view> SplitList(std::string_view text) {
  std::vector<std::string_view> parts;
  if (Trim(text).empty()) return parts;
  for (bool more = true; more;) {
    const size_t comma = std::min(text.find(','), text.size());
    more = comma < text.size();
    parts.push_back(Trim(text.substr(0, comma)));
    text.remove_prefix(more ? comma + 1 : comma);
  }
  return parts;
}

Result<uint64_t> ParseSize(std::string_view text) {
  const Status refused = InvalidArgumentError(Found(text, kExpectedSize));
  std::string_view rest = Trim(text);
  const auto number = TakeDecimal(rest);
  if (!number) return refused;
  const std::string unit = Lower(Trim(rest));
  for (const Unit& known : kSizeUnits) {
    if (known.name != unit) continue;
    const auto bytes = Scale(*number, known.factor, std::numeric_limits<int64_t>::max());
    if (!bytes) return InvalidArgumentError(Found(text, "a size below 8EiB"));
    return *bytes;
  }
  return refused;
}

Result<std::optional<Duration>> ParseKeepAlive(std::string_view text) {
  const Status refused = InvalidArgumentError(Found(text, kExpectedKeepAlive));
  std::string_view rest = Trim(text);
  if (rest == "0") return std::optional<Duration>(Duration::zero());
  if (Lower(rest) == kForever) return std::optional<Duration>();
  const bool negative = rest.starts_with('-');
  if (negative) rest.remove_prefix(1);
  if (rest.empty()) return refused;
  constexpr uint64_t kMaxNanoseconds = std::numeric_limits<int64_t>::max();
  uint64_t total = 0;
  while (!rest.empty()) {
    const auto number = TakeDecimal(rest);
    if (!number) return refused;
    size_t length = 0;
    while (length < rest.size() && !IsDigit(rest[length]) && rest[length] != '.') ++length;
    const std::string_view name = rest.substr(0, length);
    rest.remove_prefix(length);
    // -1 is how others spell forever; it needs no unit because none would change it.
    if (negative && name.empty() && rest.empty()) return std::optional<Duration>();
    const Unit* unit = std::find_if(std::begin(kTimeUnits), std::end(kTimeUnits),
                                    [&](const Unit& known) { return known.name == name; });
    if (unit == std::end(kTimeUnits)) return refused;
    const auto part = Scale(*number, unit->factor, kMaxNanoseconds - total);
    if (!part)
      return InvalidArgumentError(
          Found(text, "a duration of at most 292 years; forever has no end"));
    total += *part;
  }
  if (negative) return std::optional<Duration>();
  return std::optional<Duration>(Duration(static_cast<int64_t>(total)));
}

Result<bool> ParseBool(std::string_view text) {
  const std::string word = Lower(Trim(text));
  if (word == "true" || word == "1") return true;
  if (word == "false" || word == "0") return false;
  return InvalidArgumentError(Found(text, kExpectedBool));
}

std::string FormatSize(uint64_t bytes) { return FormatBytes(bytes); }

std::string FormatDuration(Duration duration) {
  int64_t count = duration.count();
  if (count == 0) return "0s";
  const bool negative = count < 0;
  uint64_t rest = negative ? 0 - static_cast<uint64_t>(count) : static_cast<uint64_t>(count);
  std::string text = negative ? "-" : "";
  // `value` in units of `unit` with the digits behind the point that it needs.
  const auto fraction = [](uint64_t value, uint64_t unit, std::string_view name) {
    std::string digits = std::to_string(value / unit);
    if (const uint64_t remainder = value % unit; remainder != 0) {
      std::string behind = std::to_string(unit + remainder).substr(1);
      behind.erase(behind.find_last_not_of('0') + 1);
      digits += "." + behind;
    }
    return digits + std::string(name);
  };
  constexpr uint64_t kSecond = 1000 * 1000 * 1000;
  if (rest < 1000) return text + fraction(rest, 1, "ns");
  if (rest < 1000 * 1000) return text + fraction(rest, 1000, "us");
  if (rest < kSecond) return text + fraction(rest, 1000 * 1000, "ms");
  const uint64_t hours = rest / (3600 * kSecond);
  const uint64_t minutes = rest / (60 * kSecond) % 60;
  if (hours > 0) text += std::to_string(hours) + "h";
  if (hours > 0 || minutes > 0) text += std::to_string(minutes) + "m";
  return text + fraction(rest % (60 * kSecond), kSecond, "s");
}

}  // namespace trims

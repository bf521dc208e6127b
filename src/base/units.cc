#include "base/units.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <limits>
#include <system_error>
#include <utility>

#include "base/limits.h"
#include "base/text.h"

namespace trims {
namespace {

__extension__ typedef unsigned __int128 Wide;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

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

}  // namespace

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
  if (Lower(rest) == "forever") return std::optional<Duration>();
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

std::optional<uint64_t> ParseCount(std::string_view text, uint64_t limit, int base) {
  uint64_t value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || end.ec != std::errc() || end.ptr != text.data() + text.size() ||
      value > limit) {
    return std::nullopt;
  }
  return value;
}

std::string FormatSize(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  char text[32];
  if (bytes < 1024) {
    std::snprintf(text, sizeof text, "%u B", static_cast<unsigned>(bytes));
    return text;
  }
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0: the next unit says it better.
  while (value >= 1023.95 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  std::snprintf(text, sizeof text, "%.1f %s", value, kUnits[unit]);
  return text;
}

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

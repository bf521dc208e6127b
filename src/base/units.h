// Sizes, durations, counts and truths as people write and read them: settings,
// flags, messages and tables. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"

namespace trims {

// --- Reading ------------------------------------------------------------------
// INVALID_ARGUMENT says what was found and what was expected.

inline constexpr char kExpectedSize[] =
    "a size with its unit, such as 64MiB (2^20 bytes) or 1.5GB (10^9 bytes)";
inline constexpr char kExpectedKeepAlive[] =
    "a duration with its unit, such as 250ms, 5m or 1h30m, or 0, or forever";
inline constexpr char kExpectedBool[] = "true, false, 1 or 0";

// "64MiB", "8 GiB", "1.5GB"; a bare number is refused. "80%" is not a size.
Result<uint64_t> ParseSize(std::string_view text);
// "250ms", "5m", "1h30m", "0"; "forever" and negative numbers are nullopt. A bare number other than
// 0 is refused.
Result<std::optional<Duration>> ParseKeepAlive(std::string_view text);
// "true", "false", "1", "0", any case.
Result<bool> ParseBool(std::string_view text);
// Digits of the base and nothing else; nullopt for anything over `limit`.
std::optional<uint64_t> ParseCount(std::string_view text, uint64_t limit, int base = 10);

// --- Writing ------------------------------------------------------------------

// "512 B", "1.0 KiB", "528.0 MiB": one decimal, binary units, up to EiB.
std::string FormatSize(uint64_t bytes);
// The shortest text that ParseSize reads back to exactly `bytes`: "64MiB".
std::string ExactSize(uint64_t bytes);
// "5m0s", "120us": what ParseKeepAlive reads back exactly, unless it is negative.
std::string FormatDuration(Duration duration);

}  // namespace trims

// The daemon's log: one line per event on stderr, readable by people and
// machines:
//
//   2026-01-31T12:00:00.123Z info model ready name=vgg16_1.0 bytes=553433088
//
// Under systemd, where stderr is the journal, the time is left to the journal
// and the level becomes its priority prefix: "<6>model ready name=…". The event
// is a fixed phrase of ours; whatever came from outside is a value. Values are
// quoted where they need it and control characters are escaped, so nobody can
// write a line of their own. Pointers do not convert to values: an address in a
// log helps only an attacker. Secrets are never given to this interface.
//
// Thread-safe, except InitLog. Never fails and never throws: a line that can
// not be written is lost. Blocks while stderr blocks.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"

namespace trims {

enum class LogLevel : uint8_t { kTrace, kDebug, kInfo, kWarn, kError };

// "trace", "debug", "info", "warn", "error", in any case. INVALID_ARGUMENT lists them.
Result<LogLevel> ParseLogLevel(std::string_view name);
std::string_view LogLevelName(LogLevel level);

// A value as text. Built where it is logged and gone with the statement.
class LogField final {
 public:
  LogField(std::string_view key, std::string_view value) : key_(key), value_(value) {}
  LogField(std::string_view key, const std::string& value) : key_(key), value_(value) {}
  LogField(std::string_view key, const char* value) : key_(key), value_(value) {}
  LogField(std::string_view key, bool value) : key_(key), value_(value ? "true" : "false") {}
  template <std::integral T>
  LogField(std::string_view key, T value) : key_(key), value_(std::to_string(value)) {}
  LogField(std::string_view key, double value);
  LogField(std::string_view key, Duration value);  // Milliseconds: "12.345ms".
  LogField(std::string_view key, const Status& value) : key_(key), value_(value.ToString()) {}
  template <typename T>
  LogField(std::string_view key, T* value) = delete;

  std::string_view key() const { return key_; }
  std::string_view value() const { return value_; }

 private:
  std::string_view key_;
  std::string value_;
};

using LogFields = std::initializer_list<LogField>;

// The line without time and level: "model ready name=vgg16_1.0 bytes=553433088".
std::string FormatLogEvent(std::string_view event, LogFields fields);

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  bool journal = false;  // Priority prefixes instead of time and level.
};

// Options for this process: journal when stderr is what JOURNAL_STREAM names.
LogOptions LogOptionsFromEnvironment(LogLevel level);

// Before it is called, lines of info and above go to stderr as to a terminal.
// Call once, before threads start.
void InitLog(const LogOptions& options);
void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);

void Log(LogLevel level, std::string_view event, LogFields fields = {});
inline void LogTrace(std::string_view event, LogFields fields = {}) {
  Log(LogLevel::kTrace, event, fields);
}
inline void LogDebug(std::string_view event, LogFields fields = {}) {
  Log(LogLevel::kDebug, event, fields);
}
inline void LogInfo(std::string_view event, LogFields fields = {}) {
  Log(LogLevel::kInfo, event, fields);
}
inline void LogWarn(std::string_view event, LogFields fields = {}) {
  Log(LogLevel::kWarn, event, fields);
}
inline void LogError(std::string_view event, LogFields fields = {}) {
  Log(LogLevel::kError, event, fields);
}

}  // namespace trims

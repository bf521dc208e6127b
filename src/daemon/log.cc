#include "daemon/log.h"

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <memory>
#include <utility>

namespace trims {
namespace {

constexpr std::string_view kLevelNames[] = {"trace", "debug", "info", "warn", "error"};

// A value longer than this is cut: no client may fill the journal with one line.
constexpr size_t kMaxValueBytes = 2048;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// %L of the pattern: our name of the level, or the journal's prefix, see
// sd-daemon(3): 7 debug, 6 info, 4 warning, 3 error.
class LevelFlag final : public spdlog::custom_flag_formatter {
 public:
  explicit LevelFlag(bool journal) : journal_(journal) {}
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const bool known = message.level <= spdlog::level::err;
    const int level =
        known ? static_cast<int>(message.level) : static_cast<int>(spdlog::level::err);
    static constexpr std::string_view kPrefixes[] = {"<7>", "<7>", "<6>", "<4>", "<3>"};
    const std::string_view text = journal_ ? kPrefixes[level] : kLevelNames[level];
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<LevelFlag>(journal_);
  }

 private:
  const bool journal_;
};

std::unique_ptr<spdlog::logger> MakeLogger(const LogOptions& options) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  formatter->add_flag<LevelFlag>('L', options.journal);
  formatter->set_pattern(options.journal ? "%L%v" : "%Y-%m-%dT%H:%M:%S.%eZ %L %v");
  auto logger =
      std::make_unique<spdlog::logger>("trims", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(std::move(formatter));
  logger->set_level(ToSpdlog(options.level));
  // The alternative is spdlog's own message about the failure, on the same stderr.
  logger->set_error_handler([](const std::string&) {});
  return logger;
}

// Never destroyed: threads and exit handlers may log until the very end.
std::unique_ptr<spdlog::logger>& Logger() {
  static auto& logger = *new std::unique_ptr<spdlog::logger>(MakeLogger({}));
  return logger;
}

bool IsContinuation(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// The length of the valid UTF-8 sequence at the front of `text`, 0 when there is
// none. C1 control characters, which some terminals obey, count as invalid.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) length = 2;
  if (lead >= 0xe0 && lead <= 0xef) length = 3;
  if (lead >= 0xf0 && lead <= 0xf4) length = 4;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!IsContinuation(byte(i))) return 0;
  }
  if (lead == 0xc2 && byte(1) < 0xa0) return 0;   // C1 controls.
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;   // Overlong.
  if (lead == 0xed && byte(1) >= 0xa0) return 0;  // Surrogates.
  if (lead == 0xf0 && byte(1) < 0x90) return 0;   // Overlong.
  if (lead == 0xf4 && byte(1) >= 0x90) return 0;  // Above U+10FFFF.
  // U+2028 and U+2029 end a line for some readers.
  if (lead == 0xe2 && byte(1) == 0x80 && (byte(2) == 0xa8 || byte(2) == 0xa9)) return 0;
  return length;
}

void AppendValue(std::string& line, std::string_view value) {
  static constexpr char kHex[] = "0123456789abcdef";
  const bool cut = value.size() > kMaxValueBytes;
  if (cut) {
    value = value.substr(0, kMaxValueBytes);
    // Not in the middle of a character.
    size_t end = value.size();
    while (end > 0 && IsContinuation(static_cast<unsigned char>(value[end - 1]))) --end;
    if (end > 0 && value.size() - end < 4 && Utf8Length(value.substr(end - 1)) == 0) {
      value = value.substr(0, end - 1);
    }
  }
  std::string text;
  bool quote = value.empty() || cut;
  while (!value.empty()) {
    const size_t length = Utf8Length(value);
    const char c = value.front();
    const auto byte = static_cast<unsigned char>(c);
    if (length == 0 || byte < 0x20 || byte == 0x7f) {
      quote = true;
      if (c == '\n') {
        text += "\\n";
      } else if (c == '\t') {
        text += "\\t";
      } else {
        text += "\\x";
        text += kHex[byte >> 4];
        text += kHex[byte & 15];
      }
    } else if (c == '"' || c == '\\') {
      quote = true;
      text += '\\';
      text += c;
    } else {
      quote = quote || c == ' ' || c == '=';
      text += value.substr(0, length);
    }
    value.remove_prefix(length == 0 ? 1 : length);
  }
  if (cut) text += "…";
  line += quote ? '"' + text + '"' : text;
}

std::string ShortNumber(double value) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, 6);
  return std::string(buffer, end.ptr);
}

}  // namespace

Result<LogLevel> ParseLogLevel(std::string_view name) {
  for (size_t i = 0; i < std::size(kLevelNames); ++i) {
    const std::string_view known = kLevelNames[i];
    bool equal = known.size() == name.size();
    for (size_t j = 0; equal && j < name.size(); ++j) {
      const char c =
          name[j] >= 'A' && name[j] <= 'Z' ? static_cast<char>(name[j] - 'A' + 'a') : name[j];
      equal = c == known[j];
    }
    if (equal) return static_cast<LogLevel>(i);
  }
  return InvalidArgumentError("found the log level \"" + std::string(name) +
                              "\", expected trace, debug, info, warn or error");
}

std::string_view LogLevelName(LogLevel level) { return kLevelNames[static_cast<size_t>(level)]; }

LogField::LogField(std::string_view key, double value) : key_(key), value_(ShortNumber(value)) {}

LogField::LogField(std::string_view key, Duration value) : key_(key) {
  char buffer[48];
  const double ms = std::chrono::duration<double, std::milli>(value).count();
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, ms, std::chars_format::fixed, 3);
  value_ = std::string(buffer, end.ptr) + "ms";
}

std::string FormatLogEvent(std::string_view event, LogFields fields) {
  std::string line(event);
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key();
    line += '=';
    AppendValue(line, field.value());
  }
  return line;
}

LogOptions LogOptionsFromEnvironment(LogLevel level) {
  LogOptions options{.level = level};
  // JOURNAL_STREAM is "device:inode" of the socket that systemd connected. A
  // process that inherited the variable and redirected stderr must not use it.
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat status {};
  if (stream != nullptr && ::fstat(STDERR_FILENO, &status) == 0) {
    options.journal = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino) == stream;
  }
  return options;
}

void InitLog(const LogOptions& options) { Logger() = MakeLogger(options); }

void SetLogLevel(LogLevel level) { Logger()->set_level(ToSpdlog(level)); }

bool LogEnabled(LogLevel level) { return Logger()->should_log(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view event, LogFields fields) {
  spdlog::logger& logger = *Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  const std::string line = FormatLogEvent(event, fields);
  // As a string view and not as a format string: braces in `line` mean nothing.
  logger.log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace trims

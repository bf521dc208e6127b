#include "daemon/settings_file.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/text.h"
#include "daemon/settings.h"

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
// toml++ 3.3 asserts, and under clang promises the optimiser, things of its input
// that the code behind the assertion then checks after all and refuses: "Tp" is
// no time. No file may abort the daemon or break a promise.
#include <toml++/impl/preprocessor.h>
#undef TOML_ASSERT_ASSUME
#define TOML_ASSERT_ASSUME(expr) static_assert(true)
#include <toml++/toml.h>

namespace trims {
namespace {

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
std::optional<std::string> TextOf(const toml::node& node, SettingKind kind) {
  if (const auto* text = node.as_string()) return text->get();
  // Whatever else stands where text belongs is a mistake, not a file named 5.
  if (kind == SettingKind::kPath || kind == SettingKind::kText || kind == SettingKind::kChoice)
    return std::nullopt;
  if (const auto* boolean = node.as_boolean()) {
    return kind == SettingKind::kBool
               ? std::optional<std::string>(boolean->get() ? "true" : "false")
               : std::nullopt;
  }
  if (const auto* integer = node.as_integer()) {
    if (kind == SettingKind::kMode) {
      // 0o660 is what it says; 660 would be read as something else.
      if ((integer->flags() & toml::value_flags::format_as_octal) == toml::value_flags::none)
        return std::nullopt;
      char buffer[32];
      const auto end = std::to_chars(buffer, buffer + sizeof buffer, integer->get(), 8);
      return std::string(buffer, end.ptr);
    }
    return std::to_string(integer->get());
  }
  if (const auto* number = node.as_floating_point();
      number != nullptr && kind == SettingKind::kNumber) {
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
  if (setting.kind == SettingKind::kPath || setting.kind == SettingKind::kText)
    return "a string in quotes";
  DaemonConfig scratch;
  const Expected expected = setting.set(scratch, "?");
  return expected.value_or("a string in quotes");
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

Status ReadSettings(std::string_view text, const std::string& filename,
                    const std::function<Status(const FileValue&)>& put) {
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
      return InvalidArgumentError(At(filename, key.source().begin) + ": " +
                                  UnknownSetting(key.str()));
    const Setting& setting = Settings()[*index];
    const std::string where = At(filename, node.source().begin) + ": " + std::string(setting.key);
    const std::optional<std::string> value = TextOf(node, setting.kind);
    if (!value) {
      return InvalidArgumentError(where + ": found " + std::string(Describe(node)) + ", expected " +
                                  ExpectedKind(setting));
    }
    if (setting.kind == SettingKind::kPath && !value->starts_with('/')) {
      return InvalidArgumentError(where + ": " +
                                  Found(*value, "an absolute directory, starting with /"));
    }
    const std::string origin = filename + ":" + std::to_string(node.source().begin.line);
    RETURN_IF_ERROR(put({.setting = *index, .text = *value, .origin = origin, .where = where}));
  }
  return OkStatus();
}

std::string DefaultConfigText() {
  std::string text =
      "# TrIMS daemon configuration. Every setting is here with its default; remove the # in front "
      "of\n"
      "# a setting to change it. A flag wins over an environment variable, a variable over this "
      "file.\n"
      "# `trims config show --origin` says where each value came from.\n";
  for (size_t i = 0; i < Settings().size(); ++i) {
    const ConfigKey& key = ConfigKeys()[i];
    const bool bare =
        Settings()[i].kind == SettingKind::kBool || Settings()[i].kind == SettingKind::kNumber;
    text += "\n" + Comment(key.help);
    text += Comment("Flag " + key.flag + "; variable " + key.env + "; takes effect on " +
                    (key.reloadable ? "reload." : "restart."));
    text += "# " + key.key + " = " + (bare ? key.default_value : Quoted(key.default_value)) + "\n";
  }
  return text;
}

}  // namespace trims

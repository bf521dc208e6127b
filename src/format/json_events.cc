#include "format/json_events.h"

#include <cstddef>
#include <exception>
#include <nlohmann/json.hpp>
#include <utility>

#include "format/text.h"

namespace trims::format {
namespace {

// What nlohmann's lexer would take wrongly or hold at great length. It treats a
// NUL as the end of the text, so that bytes could hide behind one, and copies a
// literal several times over when it complains about it.
Status CheckLiterals(std::string_view text, std::string_view subject) {
  bool in_string = false;
  size_t literal_begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\0') {
      return InvalidArgumentError(std::string(subject) + " is not valid JSON: NUL at byte " +
                                  std::to_string(i));
    }
    if (in_string) {
      if (c == '\\') {
        ++i;
        if (i < text.size() && text[i] == '\0') --i;  // Seen by the next round.
      } else if (c == '"') {
        in_string = false;
        literal_begin = i + 1;
      }
    } else if (c == '"') {
      in_string = true;
      literal_begin = i;
    } else if (c == ',' || c == ':' || c == '[' || c == ']' || c == '{' || c == '}' || c == ' ' ||
               c == '\n' || c == '\r' || c == '\t') {
      literal_begin = i + 1;
    }
    if (i - literal_begin > kMaxJsonLiteralBytes && i >= literal_begin) {
      return InvalidArgumentError(std::string(subject) + " has a string or number of more than " +
                                  std::to_string(kMaxJsonLiteralBytes) +
                                  " bytes, beginning at byte " + std::to_string(literal_begin));
    }
  }
  return OkStatus();
}

// The interface that nlohmann's sax_parse calls; returning false stops it.
class Adapter final {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  Adapter(std::string_view subject, JsonSink& sink) : subject_(subject), sink_(sink) {}

  bool null() { return Pass({.kind = JsonKind::kNull}); }
  bool boolean(bool) { return Pass({.kind = JsonKind::kBool}); }
  bool number_integer(number_integer_t) { return Pass({.kind = JsonKind::kNegative}); }
  bool number_unsigned(number_unsigned_t value) {
    return Pass({.kind = JsonKind::kUnsigned, .number = value});
  }
  bool number_float(number_float_t, const string_t&) { return Pass({.kind = JsonKind::kFloat}); }
  bool string(string_t& value) { return Pass({.kind = JsonKind::kString, .text = &value}); }
  bool binary(binary_t&) { return false; }  // Not a thing of JSON text.
  bool key(string_t& value) { return Pass({.kind = JsonKind::kKey, .text = &value}); }
  bool start_object(size_t) { return Begin(JsonKind::kObjectBegin); }
  bool end_object() { return End(JsonKind::kObjectEnd); }
  bool start_array(size_t) { return Begin(JsonKind::kArrayBegin); }
  bool end_array() { return End(JsonKind::kArrayEnd); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
    // The library's text is "[json.exception...] parse error at line 1, column
    // 2: what; last read: 'bytes of the file'"; only the description is kept.
    std::string_view what = error.what();
    if (const size_t bracket = what.find("] "); bracket != std::string_view::npos) {
      what.remove_prefix(bracket + 2);
    }
    if (const size_t column = what.find(", column "); column != std::string_view::npos) {
      if (const size_t colon = what.find(": ", column); colon != std::string_view::npos) {
        what.remove_prefix(colon + 2);
      }
    }
    if (const size_t dash = what.find(" - "); dash != std::string_view::npos) {
      what.remove_prefix(dash + 3);
    }
    if (const size_t read = what.find("; last read: "); read != std::string_view::npos) {
      what = what.substr(0, read);
    }
    const std::string quoted = Quoted(what);
    status_ = InvalidArgumentError(std::string(subject_) + " is not valid JSON at byte " +
                                   std::to_string(position == 0 ? 0 : position - 1) + ": " +
                                   quoted.substr(1, quoted.rfind('\'') - 1));
    return false;
  }

  Status TakeStatus() && { return std::move(status_); }

 private:
  bool Pass(const JsonEvent& event) {
    status_ = sink_.OnEvent(event);
    return status_.ok();
  }
  bool Begin(JsonKind kind) {
    if (++depth_ > kMaxJsonDepth) {
      status_ = InvalidArgumentError(std::string(subject_) + " is JSON nested more than " +
                                     std::to_string(kMaxJsonDepth) + " levels deep");
      return false;
    }
    return Pass({.kind = kind});
  }
  bool End(JsonKind kind) {
    --depth_;
    return Pass({.kind = kind});
  }

  std::string_view subject_;
  JsonSink& sink_;
  Status status_;
  uint64_t depth_ = 0;
};

}  // namespace

std::string_view JsonKindName(JsonKind kind) {
  switch (kind) {
    case JsonKind::kObjectBegin:
      return "an object";
    case JsonKind::kObjectEnd:
      return "the end of an object";
    case JsonKind::kArrayBegin:
      return "an array";
    case JsonKind::kArrayEnd:
      return "the end of an array";
    case JsonKind::kKey:
      return "a key";
    case JsonKind::kString:
      return "a string";
    case JsonKind::kUnsigned:
      return "a number";
    case JsonKind::kNegative:
      return "a negative number";
    case JsonKind::kFloat:
      return "a number that is not a 64-bit integer";
    case JsonKind::kBool:
      return "true or false";
    case JsonKind::kNull:
      return "null";
  }
  return "?";
}

Status WalkJson(std::string_view text, std::string_view subject, JsonSink& sink) {
  RETURN_IF_ERROR(CheckLiterals(text, subject));
  try {
    Adapter adapter(subject, sink);
    const bool whole = nlohmann::json::sax_parse(text.begin(), text.end(), &adapter);
    Status status = std::move(adapter).TakeStatus();
    if (status.ok() && !whole) {
      return InternalError(std::string(subject) + ": the JSON parser stopped without a reason");
    }
    return status;
  } catch (const std::bad_alloc&) {
    return ResourceExhaustedError(std::string(subject) + ": not enough memory to read the JSON");
  } catch (const std::exception& error) {
    return InvalidArgumentError(std::string(subject) +
                                " is not valid JSON: " + Quoted(error.what()));
  }
}

}  // namespace trims::format

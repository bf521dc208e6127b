// A JSON text as a sequence of events, for text that is hostile until parsed.
//
// No tree is built: memory is bounded by the longest literal, and the stack
// does not grow with the nesting. The sink decides what is acceptable and stops
// the walk by returning an error. Nesting beyond kMaxJsonDepth, literals beyond
// kMaxJsonLiteralBytes, NUL bytes, invalid UTF-8 and anything after the value
// are refused before the sink sees them. Never throws. Safe on any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "base/status.h"

namespace trims::format {

inline constexpr uint64_t kMaxJsonLiteralBytes = 16 * kMiB;

enum class JsonKind : uint8_t {
  kObjectBegin,
  kObjectEnd,
  kArrayBegin,
  kArrayEnd,
  kKey,
  kString,
  kUnsigned,  // A whole number in [0, 2^64) without sign, fraction or exponent.
  kNegative,  // A whole number with a minus sign, -0 included.
  kFloat,     // Every other number.
  kBool,
  kNull,
};

struct JsonEvent {
  JsonKind kind;
  std::string* text = nullptr;  // Of a key or a string; the sink may move from it.
  uint64_t number = 0;          // Of kUnsigned.
};

// "an object", "a negative number" and so on, for messages.
std::string_view JsonKindName(JsonKind kind);

class JsonSink {
 public:
  virtual Status OnEvent(const JsonEvent& event) = 0;

 protected:
  ~JsonSink() = default;
};

// Walks one JSON value that fills `text` but for white space. Errors of the
// text itself are INVALID_ARGUMENT, begin with `subject` and give the byte.
Status WalkJson(std::string_view text, std::string_view subject, JsonSink& sink);

// Steps over one value that a sink has no use for. Feed it every event from
// the value's first on; it returns true with the value's last.
class JsonSkipper final {
 public:
  bool Feed(JsonKind kind) {
    if (kind == JsonKind::kObjectBegin || kind == JsonKind::kArrayBegin) ++depth_;
    if (kind == JsonKind::kObjectEnd || kind == JsonKind::kArrayEnd) --depth_;
    return depth_ == 0;
  }

 private:
  uint64_t depth_ = 0;
};

}  // namespace trims::format

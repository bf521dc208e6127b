#include "format/text.h"

#include <cstddef>

#include "base/limits.h"
#include "base/text.h"

namespace trims::format {
namespace {
constexpr size_t kQuotedBytes = 80;
}  // namespace

std::string Quoted(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kQuotedBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  if (text.size() > kQuotedBytes) {
    return out + "...' (" + std::to_string(text.size()) + " bytes)";
  }
  return out + "'";
}

Status CheckName(std::string_view name, std::string_view what) {
  const std::string subject(what);
  if (name.empty()) return InvalidArgumentError(subject + " has an empty name");
  if (name.size() > kMaxTensorNameBytes) {
    return InvalidArgumentError(subject + " has the name " + Quoted(name) + "; at most " +
                                std::to_string(kMaxTensorNameBytes) + " bytes are allowed");
  }
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      return InvalidArgumentError(subject + " has the name " + Quoted(name) +
                                  ", which contains a control character");
    }
  }
  if (!IsValidUtf8(name)) {
    return InvalidArgumentError(subject + " has the name " + Quoted(name) + ", which is not UTF-8");
  }
  return OkStatus();
}

}  // namespace trims::format

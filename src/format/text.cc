#include "format/text.h"

#include <cstddef>

#include "base/limits.h"

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

bool IsValidUtf8(std::string_view text) {
  const size_t size = text.size();
  for (size_t i = 0; i < size;) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || length > size - i) return false;
    uint32_t code = lead & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      if ((byte & 0xc0) != 0x80) return false;
      code = code << 6 | (byte & 0x3f);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    const bool surrogate = code >= 0xd800 && code < 0xe000;
    if (overlong || surrogate || code > 0x10ffff) return false;
    i += length;
  }
  return true;
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

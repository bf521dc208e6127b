#include "base/digest.h"

namespace trims {
namespace {
int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}
}  // namespace

std::string Digest::ToHex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(64);
  for (uint8_t byte : bytes) {
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

std::string Digest::ToString() const { return "sha256:" + ToHex(); }

Result<Digest> Digest::Parse(std::string_view text) {
  std::string_view hex = text;
  if (hex.starts_with('@')) hex.remove_prefix(1);
  if (hex.starts_with("sha256:")) hex.remove_prefix(7);
  if (hex.size() != 64) {
    return InvalidArgumentError("digest has " + std::to_string(hex.size()) +
                                " characters, expected 64 hexadecimal digits after \"sha256:\"");
  }
  Digest digest;
  for (size_t i = 0; i < 32; ++i) {
    const int high = HexValue(hex[2 * i]);
    const int low = HexValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) {
      return InvalidArgumentError(
          "digest has a character that is not a hexadecimal digit at position " +
          std::to_string(high < 0 ? 2 * i : 2 * i + 1));
    }
    digest.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return digest;
}

Result<Digest> Digest::FromBytes(const void* data, size_t size) {
  if (data == nullptr || size != 32) {
    return InvalidArgumentError("digest has " + std::to_string(size) + " bytes, expected 32");
  }
  Digest digest;
  std::memcpy(digest.bytes.data(), data, 32);
  return digest;
}

}  // namespace trims

// A SHA-256 value: the identity of a model, a tensor or an extent. Plain value.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims {

struct Digest final {
  std::array<uint8_t, 32> bytes{};

  // "sha256:" and 64 lower-case hexadecimal digits.
  std::string ToString() const;
  // 64 lower-case hexadecimal digits.
  std::string ToHex() const;
  // The first 12 hexadecimal digits, for tables read by people.
  std::string ToShort() const { return ToHex().substr(0, 12); }
  // Accepts 64 hexadecimal digits, with or without "sha256:" or "@sha256:" in front.
  static Result<Digest> Parse(std::string_view text);
  // Exactly 32 bytes, from the wire.
  static Result<Digest> FromBytes(const void* data, size_t size);

  bool IsZero() const { return *this == Digest{}; }
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

}  // namespace trims

template <>
struct std::hash<trims::Digest> {
  size_t operator()(const trims::Digest& digest) const noexcept {
    size_t value;  // A digest's bytes are already uniformly distributed.
    std::memcpy(&value, digest.bytes.data(), sizeof value);
    return value;
  }
};

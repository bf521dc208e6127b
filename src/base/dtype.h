// Element types of tensors, with the numbers used on the wire (index.fbs), in
// the C ABI (TRIMS_DTYPE_*) and in Python. Numbers are never reused. Names are
// those of safetensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace trims {

enum class DType : uint8_t {
  kBool = 0,
  kU8 = 1,
  kI8 = 2,
  kU16 = 3,
  kI16 = 4,
  kF16 = 5,
  kBF16 = 6,
  kU32 = 7,
  kI32 = 8,
  kF32 = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
  kC64 = 13,
  kF8E5M2 = 14,
  kF8E4M3 = 15,
  kF8E8M0 = 16,
  kF8E4M3Fnuz = 17,
  kF8E5M2Fnuz = 18,
  kF6E2M3 = 19,
  kF6E3M2 = 20,
  kF4 = 21,
};
inline constexpr uint8_t kDTypeCount = 22;

struct DTypeTraits {
  std::string_view name;  // As safetensors spells it.
  uint32_t bits;
};
inline constexpr DTypeTraits kDTypeTraits[kDTypeCount] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
    {"F16", 16},    {"BF16", 16},   {"U32", 32},        {"I32", 32},        {"F32", 32},
    {"U64", 64},    {"I64", 64},    {"F64", 64},        {"C64", 64},        {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4},
};

constexpr std::string_view DTypeName(DType dtype) {
  return static_cast<uint8_t>(dtype) < kDTypeCount ? kDTypeTraits[static_cast<uint8_t>(dtype)].name
                                                   : "?";
}
constexpr uint32_t DTypeBits(DType dtype) {
  return static_cast<uint8_t>(dtype) < kDTypeCount ? kDTypeTraits[static_cast<uint8_t>(dtype)].bits
                                                   : 0;
}
constexpr std::optional<DType> DTypeFromName(std::string_view name) {
  for (uint8_t i = 0; i < kDTypeCount; ++i) {
    if (kDTypeTraits[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace trims

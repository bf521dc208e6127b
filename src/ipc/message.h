// Reading and writing the FlatBuffer that follows a frame's header. A template
// over the generated types of lease.fbs, so that both ends verify in one way.
// Pure functions; thread-compatible.
#pragma once

#include <flatbuffers/flatbuffers.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace trims {

// The message in `payload`, or null when it is not a well-formed T. `payload` is
// not trusted. It must be 8-byte aligned, which the payload of a frame in an
// aligned buffer is. The result points into it.
template <typename T>
const T* ReadMessage(std::span<const std::byte> payload) {
  // The verifier asserts on sizes that no packet has; an empty one holds no root.
  if (payload.size() < sizeof(flatbuffers::uoffset_t) || payload.size() > (1u << 20)) {
    return nullptr;
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(payload.data());
  // Messages nest two tables at most.
  flatbuffers::Verifier verifier(bytes, payload.size(), /*max_depth=*/8, /*max_tables=*/16);
  if (!verifier.VerifyBuffer<T>(nullptr)) return nullptr;
  return flatbuffers::GetRoot<T>(bytes);
}

// The finished bytes of a builder, borrowed from it.
inline std::span<const std::byte> MessageBytes(const flatbuffers::FlatBufferBuilder& builder) {
  return {reinterpret_cast<const std::byte*>(builder.GetBufferPointer()), builder.GetSize()};
}

}  // namespace trims

// The fixed header of every packet on the lease socket, and the packet types.
//
//      0        4        6       8                 16
//      +--------+--------+-------+-----------------+----------------------+
//      | magic  | type   | flags | request id      | FlatBuffer payload … |
//      | "TRM1" | u16    | u16   | u64             | (lease.fbs)          |
//      +--------+--------+-------+-----------------+----------------------+
//
// All numbers little-endian. SEQPACKET keeps packet boundaries, so no length is
// carried: the payload is what follows the header. Pure functions; no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/limits.h"
#include "base/status.h"

namespace trims {

inline constexpr uint32_t kFrameMagic = 0x314D5254;  // "TRM1"
inline constexpr size_t kFrameHeaderBytes = 16;
inline constexpr uint16_t kProtocolMajor = 1;
inline constexpr uint16_t kProtocolMinor = 0;

enum class FrameType : uint16_t {
  // client -> daemon
  kHello = 1,
  kOpen = 2,
  kOpenFile = 3,
  kCancel = 4,
  kClose = 5,
  kReattach = 6,
  kPing = 7,
  // daemon -> client
  kWelcome = 65,
  kOpened = 66,
  kOpenedMore = 67,
  kProgress = 68,
  kClosed = 69,
  kReattached = 70,
  kPong = 71,
  kFailed = 72,
};

// More packets of the same answer follow (OpenedMore).
inline constexpr uint16_t kFrameFlagMore = 1;

struct FrameHeader {
  FrameType type{};
  uint16_t flags = 0;
  uint64_t request_id = 0;
};

// Writes the header into the first kFrameHeaderBytes of `out`.
void EncodeFrameHeader(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out);

struct Frame {
  FrameHeader header;
  std::span<const std::byte> payload;  // Into the packet passed to DecodeFrame.
};

// INVALID_ARGUMENT when the packet is shorter than a header, longer than
// kMaxPacketBytes, has another magic, an unknown type, or unknown flags.
// The payload is not looked at: verify it with the FlatBuffers verifier.
Result<Frame> DecodeFrame(std::span<const std::byte> packet);

}  // namespace trims

#include "ipc/frame.h"

#include <string>

namespace trims {
namespace {

template <typename T>
void StoreLittleEndian(T value, std::byte* out) {
  for (size_t i = 0; i < sizeof(T); ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}

template <typename T>
T LoadLittleEndian(const std::byte* in) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | (std::to_integer<T>(in[i]) << (8 * i)));
  }
  return value;
}

bool IsKnownType(uint16_t type) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::kHello:
    case FrameType::kOpen:
    case FrameType::kOpenFile:
    case FrameType::kCancel:
    case FrameType::kClose:
    case FrameType::kReattach:
    case FrameType::kPing:
    case FrameType::kWelcome:
    case FrameType::kOpened:
    case FrameType::kOpenedMore:
    case FrameType::kProgress:
    case FrameType::kClosed:
    case FrameType::kReattached:
    case FrameType::kPong:
    case FrameType::kFailed:
      return true;
  }
  return false;
}

}  // namespace

void EncodeFrameHeader(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out) {
  StoreLittleEndian<uint32_t>(kFrameMagic, &out[0]);
  StoreLittleEndian<uint16_t>(static_cast<uint16_t>(header.type), &out[4]);
  StoreLittleEndian<uint16_t>(header.flags, &out[6]);
  StoreLittleEndian<uint64_t>(header.request_id, &out[8]);
}

Result<Frame> DecodeFrame(std::span<const std::byte> packet) {
  if (packet.size() < kFrameHeaderBytes) {
    return InvalidArgumentError("packet of " + std::to_string(packet.size()) +
                                " bytes is shorter than a frame header (" +
                                std::to_string(kFrameHeaderBytes) + " bytes)");
  }
  if (packet.size() > kMaxPacketBytes) {
    return InvalidArgumentError("packet of " + std::to_string(packet.size()) +
                                " bytes is longer than the limit of " +
                                std::to_string(kMaxPacketBytes));
  }
  if (LoadLittleEndian<uint32_t>(&packet[0]) != kFrameMagic) {
    return InvalidArgumentError("packet does not start with the frame magic \"TRM1\"");
  }
  const auto type = LoadLittleEndian<uint16_t>(&packet[4]);
  if (!IsKnownType(type)) {
    return InvalidArgumentError("unknown frame type " + std::to_string(type));
  }
  Frame frame;
  frame.header.type = static_cast<FrameType>(type);
  frame.header.flags = LoadLittleEndian<uint16_t>(&packet[6]);
  if ((frame.header.flags & ~kFrameFlagMore) != 0) {
    return InvalidArgumentError("unknown frame flags " + std::to_string(frame.header.flags) +
                                " in a frame of type " + std::to_string(type));
  }
  frame.header.request_id = LoadLittleEndian<uint64_t>(&packet[8]);
  frame.payload = packet.subspan(kFrameHeaderBytes);
  return frame;
}

}  // namespace trims

#include "ipc/frame.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "ipc/message.h"
#include "trims/v1/lease_generated.h"

namespace trims {
namespace {

std::vector<std::byte> Packet(const FrameHeader& header, std::string_view payload = {}) {
  std::vector<std::byte> packet(kFrameHeaderBytes + payload.size());
  EncodeFrameHeader(header, std::span<std::byte, kFrameHeaderBytes>(packet.data(), 16));
  if (!payload.empty()) std::memcpy(&packet[kFrameHeaderBytes], payload.data(), payload.size());
  return packet;
}

TEST(Frame, HeaderHasTheDocumentedBytes) {
  const auto packet = Packet({FrameType::kOpened, kFrameFlagMore, 0x0102030405060708});
  const std::array<uint8_t, 16> expected = {'T', 'R', 'M', '1', 66, 0, 1, 0,
                                            8,   7,   6,   5,   4,  3, 2, 1};
  ASSERT_EQ(packet.size(), expected.size());
  EXPECT_EQ(std::memcmp(packet.data(), expected.data(), expected.size()), 0);
}

TEST(Frame, EveryTypeSurvivesEncodingAndDecoding) {
  for (const FrameType type :
       {FrameType::kHello, FrameType::kOpen, FrameType::kOpenFile, FrameType::kCancel,
        FrameType::kClose, FrameType::kReattach, FrameType::kPing, FrameType::kWelcome,
        FrameType::kOpened, FrameType::kOpenedMore, FrameType::kProgress, FrameType::kClosed,
        FrameType::kReattached, FrameType::kPong, FrameType::kFailed}) {
    const auto packet = Packet({type, 0, ~uint64_t{0}}, "payload");
    const Result<Frame> frame = DecodeFrame(packet);
    ASSERT_TRUE(frame.ok()) << frame.status().ToString();
    EXPECT_EQ(frame->header.type, type);
    EXPECT_EQ(frame->header.flags, 0);
    EXPECT_EQ(frame->header.request_id, ~uint64_t{0});
    EXPECT_EQ(frame->payload.size(), 7u);
    EXPECT_EQ(static_cast<const void*>(frame->payload.data()), &packet[kFrameHeaderBytes]);
  }
}

TEST(Frame, EveryShorterPacketIsRefused) {
  const auto packet = Packet({FrameType::kPing, 0, 1});
  for (size_t size = 0; size < kFrameHeaderBytes; ++size) {
    const Result<Frame> frame = DecodeFrame(std::span(packet).first(size));
    ASSERT_FALSE(frame.ok()) << size;
    EXPECT_EQ(frame.status().code(), StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(DecodeFrame(packet).ok());
}

TEST(Frame, PacketOverTheLimitIsRefusedAndOneAtTheLimitIsNot) {
  std::vector<std::byte> packet = Packet({FrameType::kPing, 0, 1});
  packet.resize(kMaxPacketBytes);
  EXPECT_TRUE(DecodeFrame(packet).ok());
  packet.resize(kMaxPacketBytes + 1);
  EXPECT_EQ(DecodeFrame(packet).status().code(), StatusCode::kInvalidArgument);
}

TEST(Frame, OtherMagicTypeOrFlagsAreRefused) {
  const auto good = Packet({FrameType::kPing, 0, 1});
  for (size_t at = 0; at < 4; ++at) {
    auto packet = good;
    packet[at] ^= std::byte{0x20};
    EXPECT_FALSE(DecodeFrame(packet).ok()) << at;
  }
  for (const uint16_t type : {0, 8, 64, 73, 0x0107, 0xffff}) {
    const Result<Frame> frame = DecodeFrame(Packet({static_cast<FrameType>(type), 0, 1}));
    ASSERT_FALSE(frame.ok()) << type;
    EXPECT_NE(frame.status().message().find(std::to_string(type)), std::string::npos);
  }
  for (const uint16_t flags : {2, 3, 0x0100, 0xffff}) {
    EXPECT_FALSE(DecodeFrame(Packet({FrameType::kPing, flags, 1})).ok()) << flags;
  }
}

TEST(Message, WellFormedMessageIsRead) {
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateClose(builder, 7, 4096));
  const v1::Close* close = ReadMessage<v1::Close>(MessageBytes(builder));
  ASSERT_NE(close, nullptr);
  EXPECT_EQ(close->lease_id(), 7u);
  EXPECT_EQ(close->peak_internal_bytes(), 4096u);
}

TEST(Message, EveryTruncationAndAMissingRequiredFieldAreRefused) {
  flatbuffers::FlatBufferBuilder builder;
  const std::vector<uint8_t> digest(32, 0xab);
  builder.Finish(v1::CreateReattachDirect(builder, &digest, 9, v1::TierKind::Host, "GPU-0",
                                          v1::Granularity::Slab));
  const auto whole = MessageBytes(builder);
  ASSERT_NE(ReadMessage<v1::Reattach>(whole), nullptr);
  for (size_t size = 0; size < whole.size(); ++size) {
    // A copy, so that a sanitizer sees a read past the end.
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<long>(size));
    if (const v1::Reattach* message = ReadMessage<v1::Reattach>(cut)) {
      // Only padding may be missing.
      EXPECT_EQ(message->digest()->size(), 32u) << size;
    }
  }
  flatbuffers::FlatBufferBuilder other;
  other.Finish(v1::CreateProgress(other, v1::Phase::Loading, 1, 2));
  EXPECT_EQ(ReadMessage<v1::Reattach>(MessageBytes(other)), nullptr)
      << "a message without the required digest was taken for a Reattach";
}

}  // namespace
}  // namespace trims

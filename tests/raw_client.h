// A client that says what it likes: raw packets on lease.sock, and the
// descriptors that the library would hide. Header only.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "ipc/frame.h"
#include "ipc/message.h"
#include "ipc/seqpacket.h"
#include "trims/v1/lease_generated.h"

namespace trims::testing_support {

struct RawPacket {
  bool closed = false;
  FrameHeader header;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;

  template <typename T>
  const T* As() const {
    return ReadMessage<T>(payload);
  }
};

class RawClient final {
 public:
  explicit RawClient(const std::string& runtime_dir) {
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, (runtime_dir + "/lease.sock").c_str(),
                 sizeof address.sun_path - 1);
    connected_ =
        ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  bool connected() const { return connected_; }
  int fd() const { return socket_.get(); }

  bool SendBytes(std::span<const std::byte> bytes, std::vector<int> fds = {}) {
    return SendPacket(socket_.get(), bytes, {}, fds).ok();
  }
  bool Send(FrameType type, uint64_t request_id, const flatbuffers::FlatBufferBuilder& builder,
            std::vector<int> fds = {}) {
    std::array<std::byte, kFrameHeaderBytes> header;
    EncodeFrameHeader(FrameHeader{type, 0, request_id}, header);
    return SendPacket(socket_.get(), header, MessageBytes(builder), fds).ok();
  }
  bool SendHello() {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateHelloDirect(builder, kProtocolMajor, kProtocolMinor, "raw"));
    return Send(FrameType::kHello, 1, builder);
  }
  bool SendOpen(uint64_t request_id, const std::string& model) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateOpenDirect(builder, model.c_str()));
    return Send(FrameType::kOpen, request_id, builder);
  }
  bool SendDeviceOpen(uint64_t request_id, const std::string& model, const std::string& uuid) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(
        v1::CreateOpenDirect(builder, model.c_str(), v1::TierKind::Device, uuid.c_str()));
    return Send(FrameType::kOpen, request_id, builder);
  }
  // Waits up to a minute; `closed` when the daemon hung up.
  RawPacket Receive() {
    RawPacket packet;
    pollfd wait{socket_.get(), POLLIN, 0};
    if (::poll(&wait, 1, 60'000) != 1) {
      ADD_FAILURE() << "no answer in a minute";
      packet.closed = true;
      return packet;
    }
    alignas(8) static std::byte buffer[kMaxPacketBytes];
    Result<ReceivedPacket> received = ReceivePacket(socket_.get(), buffer, kMaxFdsPerPacket);
    if (!received.ok() || received->closed) {
      packet.closed = true;
      return packet;
    }
    const Result<Frame> frame = DecodeFrame(std::span(buffer).first(received->size));
    EXPECT_TRUE(frame.ok());
    packet.header = frame->header;
    packet.payload.assign(frame->payload.begin(), frame->payload.end());
    packet.fds = std::move(received->fds);
    return packet;
  }
  bool Greet() {
    if (!SendHello()) return false;
    const RawPacket packet = Receive();
    return !packet.closed && packet.header.type == FrameType::kWelcome;
  }

 private:
  UniqueFd socket_;
  bool connected_ = false;
};

}  // namespace trims::testing_support

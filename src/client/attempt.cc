#include "client/attempt.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <thread>

#include "base/limits.h"
#include "ipc/frame.h"
#include "ipc/message.h"
#include "ipc/seqpacket.h"
#include "trims/trims.h"

namespace trims::client {
namespace {

// Request ids of the handshake; the client's own count up from 1.
constexpr uint64_t kHelloId = uint64_t{1} << 63;
constexpr uint64_t kReattachBase = kHelloId + 1;
// A quarter of what the daemon lets a client leave unread.
constexpr size_t kReattachWindow = kMaxReplyBacklogPerSession / 4;

Status SendMessage(int socket, FrameType type, uint64_t id,
                   const flatbuffers::FlatBufferBuilder& builder) {
  std::array<std::byte, kFrameHeaderBytes> header;
  EncodeFrameHeader({type, 0, id}, header);
  return SendPacket(socket, header, MessageBytes(builder), {});
}

}  // namespace

bool WaitFor(int fd, short events, int wake_fd, Time until) {
  pollfd watched[2] = {{fd, events, 0}, {wake_fd, POLLIN, 0}};
  const nfds_t count = wake_fd < 0 ? 1 : 2;
  // The daemon answers what is resident in less time than waking up takes. With few cores
  // it needs ours for that.
  static const bool spins = std::thread::hardware_concurrency() >= kSocketSpinCores;
  if (fd >= 0 && spins) {
    for (const Time end = std::min(until, Now() + std::chrono::microseconds(kSocketSpinUs));
         Now() < end;) {
      if (::poll(watched, count, 0) > 0) return watched[0].revents != 0;
    }
  }
  for (;;) {
    timespec limit{};
    const timespec* timeout = nullptr;
    if (until != Time::max()) {
      const auto left = std::max(until - Now(), Duration::zero());
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
      limit.tv_sec = static_cast<time_t>(seconds.count());
      limit.tv_nsec = static_cast<long>((left - seconds).count());
      timeout = &limit;
    }
    const int ready = ppoll(watched, count, timeout, nullptr);
    if (ready < 0 && errno == EINTR) continue;
    return ready > 0 && watched[0].revents != 0;
  }
}

Status StatusOfFailed(int32_t code, const flatbuffers::String* message) {
  auto status_code = StatusCode::kUnknown;
  if (code > static_cast<int32_t>(StatusCode::kOk) &&
      code <= static_cast<int32_t>(StatusCode::kUnauthenticated)) {
    status_code = static_cast<StatusCode>(code);
  }
  return Status(status_code, message == nullptr ? "" : message->str());
}

Result<std::unique_ptr<Attempt>> Attempt::Start(const std::string& path, uid_t daemon_uid,
                                                std::vector<Reattachment> leases) {
  // Root is trusted anyway, so 0 stands for nobody else.
  ASSIGN_OR_RETURN(UniqueFd socket,
                   ConnectTo(path, SOCK_SEQPACKET | SOCK_NONBLOCK,
                             daemon_uid == 0 ? static_cast<uid_t>(-1) : daemon_uid));
  std::unique_ptr<Attempt> attempt(new Attempt(std::move(socket), std::move(leases)));
  RETURN_IF_ERROR(attempt->SendHello());
  return attempt;
}

Status Attempt::SendHello() {
  flatbuffers::FlatBufferBuilder builder(128);
  builder.Finish(
      v1::CreateHelloDirect(builder, kProtocolMajor, kProtocolMinor, TRIMS_VERSION_STRING));
  return SendMessage(socket_.get(), FrameType::kHello, kHelloId, builder);
}

Status Attempt::SendReattach(size_t index) {
  const LeaseFacts& facts = *leases_[index].facts;
  flatbuffers::FlatBufferBuilder builder(256);
  const auto digest = builder.CreateVector(facts.digest.bytes.data(), facts.digest.bytes.size());
  const auto uuid = facts.device_uuid.empty() ? 0 : builder.CreateString(facts.device_uuid);
  builder.Finish(
      v1::CreateReattach(builder, digest, facts.generation, facts.tier, uuid, facts.granularity));
  return SendMessage(socket_.get(), FrameType::kReattach, kReattachBase + index, builder);
}

Attempt::Progress Attempt::Run(Time until, int wake_fd, std::span<std::byte> buffer) {
  const auto fail = [this](Status status) {
    status_ = std::move(status);
    return Progress::kFailed;
  };
  for (;;) {
    while (welcomed_ && sent_ < leases_.size() && sent_ - answered_ < kReattachWindow) {
      const Status status = SendReattach(sent_);
      if (status.code() == StatusCode::kDeadlineExceeded) break;  // Full: its answers come first.
      if (!status.ok()) return fail(status);
      ++sent_;
    }
    if (welcomed_ && answered_ == leases_.size()) return Progress::kDone;
    const bool waits_to_send = welcomed_ && sent_ == answered_;
    const short events = waits_to_send ? POLLIN | POLLOUT : POLLIN;
    if (!WaitFor(socket_.get(), events, wake_fd, until)) return Progress::kPending;

    // No descriptor can be a part of this conversation.
    const Result<ReceivedPacket> packet = ReceivePacket(socket_.get(), buffer, 0);
    if (!packet.ok()) {
      if (packet.status().code() == StatusCode::kDeadlineExceeded) continue;
      is_final_ = packet.status().code() == StatusCode::kInvalidArgument;
      return fail(InternalError("the daemon broke the protocol while connecting: " +
                                packet.status().message()));
    }
    if (packet->closed) {
      return fail(UnavailableError("the daemon closed the connection while connecting"));
    }
    if (Status status = Take(buffer.first(packet->size)); !status.ok()) {
      return fail(std::move(status));
    }
  }
}

Status Attempt::Take(std::span<const std::byte> packet) {
  const auto broken = [this](const std::string& what) {
    is_final_ = true;
    return InternalError("the daemon broke the protocol while connecting: " + what);
  };
  const Result<Frame> frame = DecodeFrame(packet);
  if (!frame.ok()) return broken(frame.status().message());
  const uint64_t id = frame->header.request_id;

  if (!welcomed_) {
    if (frame->header.type == FrameType::kFailed) {
      const auto* failed = ReadMessage<v1::Failed>(frame->payload);
      if (failed == nullptr) return broken("a malformed Failed");
      const Status status = StatusOfFailed(failed->code(), failed->message());
      is_final_ = status.code() != StatusCode::kUnavailable;
      return Status(status.code(), "the daemon refused the connection: " + status.message());
    }
    const auto* welcome = frame->header.type == FrameType::kWelcome
                              ? ReadMessage<v1::Welcome>(frame->payload)
                              : nullptr;
    if (welcome == nullptr) return broken("its first packet is no Welcome");
    if (welcome->protocol_major() != kProtocolMajor) {
      is_final_ = true;
      return FailedPreconditionError("the daemon speaks protocol " +
                                     std::to_string(welcome->protocol_major()) +
                                     ", this library speaks " + std::to_string(kProtocolMajor) +
                                     "; install matching versions");
    }
    welcomed_ = true;
    if (welcome->daemon_version() != nullptr) daemon_version_ = welcome->daemon_version()->str();
    daemon_instance_ = welcome->daemon_instance();
    return OkStatus();
  }

  if (id < kReattachBase || id - kReattachBase >= sent_)
    return OkStatus();  // Of no request of ours.
  Reattachment& lease = leases_[id - kReattachBase];
  if (lease.answered) return broken("two answers to one Reattach");
  switch (frame->header.type) {
    case FrameType::kReattached: {
      const auto* reattached = ReadMessage<v1::Reattached>(frame->payload);
      if (reattached == nullptr) return broken("a malformed Reattached");
      lease.lease_id = reattached->lease_id();
      lease.answered = true;
      ++answered_;
      return OkStatus();
    }
    case FrameType::kFailed:
      // Whatever the reason, the daemon does not count this lease; its memory stays.
      lease.answered = true;
      ++answered_;
      return OkStatus();
    default:
      return broken("an answer of type " +
                    std::to_string(static_cast<unsigned>(frame->header.type)) + " to Reattach");
  }
}

}  // namespace trims::client

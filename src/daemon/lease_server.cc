#include "daemon/lease_server.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>

#include "base/limits.h"
#include "daemon/lease_requests.h"
#include "daemon/log.h"
#include "ipc/frame.h"
#include "ipc/message.h"
#include "trims/v1/lease_generated.h"

namespace trims {
namespace {

constexpr char kVersion[] = TRIMS_VERSION_STRING;
// Packets taken from one session before others get their turn.
constexpr int kPacketsPerTurn = 16;
// When the process is out of descriptors, accepting pauses this long.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);
// When the kernel can not take a packet although its socket has room.
constexpr auto kSendPause = std::chrono::milliseconds(10);
// What a session hears at all times, and what it hears when packets wait for room.
constexpr uint32_t kReadEvents = EPOLLIN | EPOLLRDHUP;
constexpr uint32_t kReadWriteEvents = kReadEvents | EPOLLOUT;

static_assert(static_cast<uint8_t>(v1::Phase::Verifying) ==
              static_cast<uint8_t>(OpenPhase::kVerifying));

constexpr char kDoesNotRead[] = "does not read its answers";

// The socket is full, or the kernel is.
bool MayBeSentLater(const Status& status) {
  return status.code() == StatusCode::kDeadlineExceeded ||
         status.code() == StatusCode::kResourceExhausted;
}

}  // namespace

struct LeaseServer::Packet {
  std::vector<std::byte> bytes;  // Header and payload.
  std::vector<int> fds;          // Kept open by `keep`.
  std::shared_ptr<const LentReplica> keep;
};

struct LeaseServer::Session {
  struct InFlight {
    store::OpenId open = 0;
    Reactor::TimerId deadline{};
  };
  store::SessionId id = 0;
  UniqueFd socket;
  PeerIdentity peer;
  Reactor::WatchId socket_watch{};
  Reactor::WatchId process_watch{};
  bool is_admin = false;
  bool greeted = false;
  bool doomed = false;  // Ends before the next turn of the loop is over.
  Reactor::TimerId doom{};
  Reactor::TimerId hello_deadline{};
  // While there is a backlog.
  Reactor::TimerId send_deadline{};
  Reactor::TimerId send_again{};
  std::unordered_map<uint64_t, InFlight> opens;  // By request id.
  std::deque<Packet> backlog;                    // What the socket had no room for.
};

LeaseServer::LeaseServer(Reactor* reactor, Registry* registry, UniqueFd listener, Options options)
    : reactor_(reactor),
      registry_(registry),
      listener_(std::move(listener)),
      options_(options),
      next_session_(options.id_base) {}

LeaseServer::~LeaseServer() {
  reactor_->Unwatch(listener_watch_);
  reactor_->CancelTimer(accept_again_);
  while (!sessions_.empty()) End(sessions_.begin()->first, "");
}

Status LeaseServer::Start() {
  ASSIGN_OR_RETURN(listener_watch_,
                   reactor_->Watch(listener_.get(), EPOLLIN, "accept lease session",
                                   [this](uint32_t) { Accept(); }));
  return OkStatus();
}

std::optional<SessionView> LeaseServer::FindSession(store::SessionId id) const {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return std::nullopt;
  const PeerIdentity& peer = it->second->peer;
  return SessionView{id, peer.uid, peer.gid, peer.pid};
}

LeaseServer::Session* LeaseServer::Find(store::SessionId id) {
  const auto it = sessions_.find(id);
  return it == sessions_.end() || it->second->doomed ? nullptr : it->second.get();
}

void LeaseServer::Accept() {
  for (int i = 0; i < kPacketsPerTurn; ++i) {
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        // The waiting connection would wake us again at once: pause.
        LogWarn("can not accept a client, pausing",
                {{"reason", std::string(std::strerror(errno))}});
        reactor_->ChangeEvents(listener_watch_, 0);
        accept_again_ = reactor_->RunAt(Now() + kAcceptPause, "accept again", [this] {
          reactor_->ChangeEvents(listener_watch_, EPOLLIN);
        });
      }
      return;
    }
    Result<PeerIdentity> peer = GetPeerIdentity(socket.get());
    if (!peer.ok()) {
      LogWarn("client without credentials refused", {{"reason", peer.status().message()}});
      continue;
    }
    auto session = std::make_unique<Session>();
    Session& added = *session;
    added.id = next_session_++;
    added.socket = std::move(socket);
    added.peer = *std::move(peer);
    added.is_admin = added.peer.uid == 0 || added.peer.uid == ::geteuid();
    const store::SessionId id = added.id;
    uint32_t& of_uid = sessions_of_uid_[added.peer.uid];
    ++of_uid;
    sessions_.emplace(id, std::move(session));
    if (options_.sessions_per_uid_max != 0 && of_uid > options_.sessions_per_uid_max) {
      SendFailed(added, 0,
                 ResourceExhaustedError(
                     "uid " + std::to_string(added.peer.uid) + " has " +
                     std::to_string(options_.sessions_per_uid_max) +
                     " sessions, the most that sessions_per_uid_max allows; close some"));
      // Unread words of the client's would make the kernel throw ours away. Not for ever: it
      // may go on talking.
      std::byte unread[64];
      for (int left = kPacketsPerTurn; left > 0; --left) {
        if (::recv(added.socket.get(), unread, sizeof unread, 0) <= 0) break;
      }
      End(id, "too many sessions of one uid");
      continue;
    }
    if (const Status status = WatchSession(added); !status.ok()) {
      LogWarn("client refused", {{"reason", status.message()}});
      End(id, "");
      continue;
    }
    added.hello_deadline =
        reactor_->RunAt(Now() + options_.hello_deadline, "hello deadline", [this, id] {
          if (Session* const found = Find(id)) Doom(*found, "no hello in time");
        });
  }
}

Status LeaseServer::WatchSession(Session& session) {
  const store::SessionId id = session.id;
  ASSIGN_OR_RETURN(
      session.socket_watch,
      reactor_->Watch(session.socket.get(), kReadEvents, "lease session",
                      [this, id](uint32_t events) {
                        Session* const found = Find(id);
                        if (found == nullptr) return;
                        if ((events & EPOLLOUT) != 0) Flush(*found);
                        if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
                          OnReadable(*found);
                      }));
  if (!session.peer.pidfd.valid()) return OkStatus();
  // A child that inherited the socket keeps it open; the lease ends with the
  // process that took it all the same.
  ASSIGN_OR_RETURN(session.process_watch,
                   reactor_->Watch(session.peer.pidfd.get(), EPOLLIN, "client process ended",
                                   [this, id](uint32_t) { End(id, "process ended"); }));
  return OkStatus();
}

void LeaseServer::OnReadable(Session& session) {
  alignas(8) static thread_local std::byte buffer[kMaxPacketBytes];
  for (int i = 0; i < kPacketsPerTurn && !session.doomed; ++i) {
    // Before hello no descriptor is welcome; after it, OpenFile may bring one.
    Result<ReceivedPacket> packet =
        ReceivePacket(session.socket.get(), buffer, session.greeted ? kMaxFdsFromClient : 0);
    if (!packet.ok()) {
      if (packet.status().code() == StatusCode::kDeadlineExceeded) return;  // Nothing there.
      return End(session.id, packet.status().code() == StatusCode::kUnavailable
                                 ? ""
                                 : packet.status().message());
    }
    if (packet->closed) return End(session.id, "");
    if (!HandlePacket(session, std::span(buffer).first(packet->size), std::move(packet->fds)))
      return;
  }
}

// False when the session is over.
bool LeaseServer::HandlePacket(Session& session, std::span<const std::byte> packet,
                               std::vector<UniqueFd> fds) {
  const Result<Frame> frame = DecodeFrame(packet);
  if (!frame.ok()) {
    Doom(session, frame.status().message());
    return false;
  }
  const FrameHeader& header = frame->header;
  if (!session.greeted && header.type != FrameType::kHello) {
    Doom(session, "first message is not a hello");
    return false;
  }
  if (!fds.empty() && header.type != FrameType::kOpenFile) {
    Doom(session, "descriptor with a message that takes none");
    return false;
  }
  switch (header.type) {
    case FrameType::kHello:
      return HandleHello(session, header.request_id, frame->payload);
    case FrameType::kOpen:
      return HandleOpen(session, header.request_id, frame->payload);
    case FrameType::kOpenFile:
      return HandleOpenFile(session, header.request_id, frame->payload, std::move(fds));
    case FrameType::kCancel:
      return HandleCancel(session, frame->payload);
    case FrameType::kClose:
      return HandleClose(session, header.request_id, frame->payload);
    case FrameType::kReattach:
      return HandleReattach(session, header.request_id, frame->payload);
    case FrameType::kPing: {
      if (ReadMessage<v1::Ping>(frame->payload) == nullptr) break;
      flatbuffers::FlatBufferBuilder builder;
      builder.Finish(v1::CreatePong(builder));
      Send(session, FrameType::kPong, 0, header.request_id, MessageBytes(builder));
      return !session.doomed;
    }
    default:
      break;
  }
  Doom(session, "message of type " + std::to_string(static_cast<int>(header.type)) +
                    " is malformed or not for the daemon");
  return false;
}

bool LeaseServer::HandleHello(Session& session, uint64_t request_id,
                              std::span<const std::byte> payload) {
  const v1::Hello* hello = ReadMessage<v1::Hello>(payload);
  if (hello == nullptr || session.greeted) {
    Doom(session, session.greeted ? "second hello" : "malformed hello");
    return false;
  }
  if (hello->protocol_major() != kProtocolMajor) {
    SendFailed(session, request_id,
               FailedPreconditionError(
                   "this daemon speaks lease protocol " + std::to_string(kProtocolMajor) +
                   ", the client speaks " + std::to_string(hello->protocol_major()) +
                   "; use a libtrims of the daemon's version (" + kVersion + ")"));
    Doom(session, "protocol of another major version");
    return false;
  }
  session.greeted = true;
  reactor_->CancelTimer(session.hello_deadline);
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateWelcomeDirect(builder, kProtocolMajor, kProtocolMinor, kVersion,
                                         options_.daemon_instance, session.id));
  Send(session, FrameType::kWelcome, 0, request_id, MessageBytes(builder));
  return !session.doomed;
}

bool LeaseServer::HandleOpen(Session& session, uint64_t request_id,
                             std::span<const std::byte> payload) {
  const v1::Open* const open = ReadMessage<v1::Open>(payload);
  if (open == nullptr) {
    Doom(session, "malformed Open");
    return false;
  }
  return BeginOpen(session, request_id, *open, UniqueFd(), "");
}

bool LeaseServer::HandleOpenFile(Session& session, uint64_t request_id,
                                 std::span<const std::byte> payload, std::vector<UniqueFd> fds) {
  const v1::OpenFile* const file = ReadMessage<v1::OpenFile>(payload);
  if (file == nullptr || file->options() == nullptr || fds.size() != 1) {
    Doom(session, fds.size() != 1 ? "OpenFile without its descriptor" : "malformed OpenFile");
    return false;
  }
  std::string label;
  if (file->name() != nullptr) label = file->name()->str().substr(0, kMaxModelNameBytes);
  return BeginOpen(session, request_id, *file->options(), std::move(fds[0]), std::move(label));
}

// False when the request was answered already, or cost the session its life.
bool LeaseServer::MayBegin(Session& session, uint64_t request_id) {
  if (session.opens.contains(request_id)) {
    Doom(session, "request id used twice at a time");
    return false;
  }
  if (session.opens.size() >= kMaxOpensInFlightPerSession) {
    SendFailed(
        session, request_id,
        ResourceExhaustedError("this session has " + std::to_string(kMaxOpensInFlightPerSession) +
                               " opens in flight, the most allowed; wait for some"));
    return false;
  }
  return true;
}

bool LeaseServer::BeginOpen(Session& session, uint64_t request_id, const v1::Open& open,
                            UniqueFd file, std::string label) {
  if (!MayBegin(session, request_id)) return !session.doomed;
  Result<OpenRequest> request = ReadOpen(open, *registry_);
  if (!request.ok()) {
    SendFailed(session, request_id, request.status());
    return !session.doomed;
  }
  request->session = session.id;
  request->uid = session.peer.uid;
  request->is_admin = session.is_admin;
  if (file.valid()) {
    request->model.clear();
    request->file = std::move(file);
    request->label = std::move(label);
  }
  const store::SessionId id = session.id;
  const store::OpenId open_id = registry_->NewOpenId();
  Session::InFlight& in_flight = session.opens[request_id];
  in_flight.open = open_id;
  if (const std::optional<Duration> patience = DeadlineOf(open)) {
    in_flight.deadline = reactor_->RunAt(
        Now() + *patience, "open deadline",
        [this, id, request_id, ms = open.deadline_ms()] { GiveUpOpen(id, request_id, ms); });
  }
  Registry::Progress progress;
  if (open.want_progress()) {
    progress = [this, id, request_id](OpenPhase phase, uint64_t done, uint64_t total) {
      Session* const found = Find(id);
      // Progress is dropped rather than queued behind what a slow client has not read.
      if (found == nullptr || !found->backlog.empty()) return;
      flatbuffers::FlatBufferBuilder builder;
      builder.Finish(v1::CreateProgress(builder, static_cast<v1::Phase>(phase), done, total));
      Send(*found, FrameType::kProgress, 0, request_id, MessageBytes(builder));
    };
  }
  registry_->Open(
      open_id, *std::move(request),
      [this, id, request_id](OpenResult result) { FinishOpen(id, request_id, std::move(result)); },
      std::move(progress));
  return !session.doomed;
}

void LeaseServer::GiveUpOpen(store::SessionId id, uint64_t request_id, uint64_t deadline_ms) {
  Session* const session = Find(id);
  if (session == nullptr) return;
  const auto it = session->opens.find(request_id);
  if (it == session->opens.end()) return;
  registry_->CancelOpen(it->second.open);
  session->opens.erase(it);
  SendFailed(*session, request_id,
             DeadlineExceededError("the model was not ready within " + std::to_string(deadline_ms) +
                                   " ms"));
}

void LeaseServer::FinishOpen(store::SessionId session, uint64_t request_id, OpenResult result) {
  Session* const found = Find(session);
  if (found == nullptr) return;  // Its leases go with EndSession.
  if (const auto it = found->opens.find(request_id); it != found->opens.end()) {
    reactor_->CancelTimer(it->second.deadline);
    found->opens.erase(it);
  }
  if (!result.status.ok()) return SendFailed(*found, request_id, result.status, &result);
  SendOpened(*found, request_id, result);
}

void LeaseServer::SendOpened(Session& session, uint64_t request_id, const OpenResult& result) {
  const LentReplica& lent = *result.lent;
  static thread_local flatbuffers::FlatBufferBuilder builder(4096);
  builder.Clear();
  const auto digest =
      builder.CreateVector(lent.key.model.bytes.data(), lent.key.model.bytes.size());
  const auto sizes = builder.CreateVector(lent.extent_bytes);
  const auto directory = lent.directory.empty() ? 0 : builder.CreateString(lent.directory);
  const auto device = lent.device_uuid.empty() ? 0 : builder.CreateString(lent.device_uuid);
  v1::OpenedBuilder opened(builder);
  opened.add_lease_id(result.lease);
  opened.add_digest(digest);
  opened.add_generation(result.generation);
  opened.add_tier(lent.device_uuid.empty() ? v1::TierKind::Host : v1::TierKind::Device);
  opened.add_granularity(static_cast<v1::Granularity>(lent.key.granularity));
  opened.add_total_bytes(lent.total_bytes);
  opened.add_tensor_count(static_cast<uint32_t>(lent.manifest->tensors.size()));
  opened.add_index_bytes(lent.index->size());
  opened.add_extent_bytes(sizes);
  opened.add_loaded(result.loaded);
  if (directory.o != 0) opened.add_model_dir(directory);
  if (device.o != 0) opened.add_device_uuid(device);
  builder.Finish(opened.Finish());

  std::vector<int> fds;
  fds.push_back(lent.index->PeekFd());
  size_t next = 0;
  while (next < lent.extents.size() && fds.size() < kMaxFdsPerPacket)
    fds.push_back(lent.extents[next++]->fd.get());
  Send(session, FrameType::kOpened, next < lent.extents.size() ? kFrameFlagMore : 0, request_id,
       MessageBytes(builder), std::move(fds), result.lent);
  while (next < lent.extents.size() && !session.doomed) {
    builder.Clear();
    builder.Finish(v1::CreateOpenedMore(builder, static_cast<uint32_t>(next)));
    std::vector<int> more;
    while (next < lent.extents.size() && more.size() < kMaxFdsPerPacket) {
      more.push_back(lent.extents[next++]->fd.get());
    }
    Send(session, FrameType::kOpenedMore, next < lent.extents.size() ? kFrameFlagMore : 0,
         request_id, MessageBytes(builder), std::move(more), result.lent);
  }
}

bool LeaseServer::HandleClose(Session& session, uint64_t request_id,
                              std::span<const std::byte> payload) {
  const v1::Close* close = ReadMessage<v1::Close>(payload);
  if (close == nullptr) {
    Doom(session, "malformed Close");
    return false;
  }
  const Status status =
      registry_->Close(session.id, close->lease_id(), close->peak_internal_bytes());
  if (!status.ok()) {
    SendFailed(session, request_id, status);
    return !session.doomed;
  }
  static thread_local flatbuffers::FlatBufferBuilder builder;
  builder.Clear();
  builder.Finish(v1::CreateClosed(builder));
  Send(session, FrameType::kClosed, 0, request_id, MessageBytes(builder));
  return !session.doomed;
}

bool LeaseServer::HandleCancel(Session& session, std::span<const std::byte> payload) {
  const v1::Cancel* cancel = ReadMessage<v1::Cancel>(payload);
  if (cancel == nullptr) {
    Doom(session, "malformed Cancel");
    return false;
  }
  // Already answered: the two crossed, and the answer stands.
  const auto it = session.opens.find(cancel->open_request_id());
  if (it == session.opens.end()) return true;
  reactor_->CancelTimer(it->second.deadline);
  registry_->CancelOpen(it->second.open);
  session.opens.erase(it);
  SendFailed(session, cancel->open_request_id(),
             CancelledError("the open was cancelled by its client"));
  return !session.doomed;
}

bool LeaseServer::HandleReattach(Session& session, uint64_t request_id,
                                 std::span<const std::byte> payload) {
  const v1::Reattach* reattach = ReadMessage<v1::Reattach>(payload);
  if (reattach == nullptr) {
    Doom(session, "malformed Reattach");
    return false;
  }
  if (!MayBegin(session, request_id)) return !session.doomed;
  const Result<store::ReplicaKey> replica = ReadReattach(*reattach, *registry_);
  if (!replica.ok()) {
    SendFailed(session, request_id, replica.status());
    return !session.doomed;
  }
  const store::SessionId id = session.id;
  const store::OpenId open_id = registry_->NewOpenId();
  session.opens[request_id].open = open_id;
  registry_->Reattach(open_id, id, session.peer.uid, session.is_admin, *replica,
                      reattach->generation(), [this, id, request_id](OpenResult result) {
                        Session* const found = Find(id);
                        if (found == nullptr) return;
                        found->opens.erase(request_id);
                        if (!result.status.ok())
                          return SendFailed(*found, request_id, result.status);
                        flatbuffers::FlatBufferBuilder builder;
                        builder.Finish(v1::CreateReattached(builder, result.lease));
                        Send(*found, FrameType::kReattached, 0, request_id, MessageBytes(builder));
                      });
  return !session.doomed;
}

void LeaseServer::SendFailed(Session& session, uint64_t request_id, const Status& status,
                             const OpenResult* result) {
  flatbuffers::FlatBufferBuilder builder;
  const std::string message = status.message().substr(0, kMaxPacketBytes / 2);
  builder.Finish(v1::CreateFailedDirect(builder, static_cast<int32_t>(status.code()),
                                        message.c_str(), result == nullptr ? 0 : result->need_bytes,
                                        result == nullptr ? 0 : result->free_bytes,
                                        result == nullptr ? 0 : result->evictable_bytes));
  Send(session, FrameType::kFailed, 0, request_id, MessageBytes(builder));
}

void LeaseServer::Send(Session& session, FrameType type, uint16_t flags, uint64_t request_id,
                       std::span<const std::byte> payload, std::vector<int> fds,
                       std::shared_ptr<const LentReplica> keep) {
  if (session.doomed) return;
  std::array<std::byte, kFrameHeaderBytes> header;
  EncodeFrameHeader(FrameHeader{type, flags, request_id}, header);
  Status why;
  const bool was_empty = session.backlog.empty();
  if (was_empty) {
    why = SendPacket(session.socket.get(), header, payload, fds);
    if (why.ok()) return;
    if (!MayBeSentLater(why)) return DoomUnsent(session, why);
  }
  if (session.backlog.size() >= kMaxReplyBacklogPerSession) {
    return Doom(session, kDoesNotRead);
  }
  Packet packet;
  packet.bytes.resize(header.size() + payload.size());
  std::memcpy(packet.bytes.data(), header.data(), header.size());
  std::memcpy(packet.bytes.data() + header.size(), payload.data(), payload.size());
  packet.fds = std::move(fds);
  packet.keep = std::move(keep);
  session.backlog.push_back(std::move(packet));
  if (!was_empty) return;
  ArmSendDeadline(session);
  WaitToSend(session, why);
}

void LeaseServer::Flush(Session& session) {
  const size_t before = session.backlog.size();
  while (!session.backlog.empty()) {
    const Packet& packet = session.backlog.front();
    const Status status =
        SendPacket(session.socket.get(), std::span(packet.bytes).first(kFrameHeaderBytes),
                   std::span(packet.bytes).subspan(kFrameHeaderBytes), packet.fds);
    if (!status.ok()) {
      if (!MayBeSentLater(status)) return DoomUnsent(session, status);
      // Who reads slowly still reads.
      if (session.backlog.size() < before) ArmSendDeadline(session);
      return WaitToSend(session, status);
    }
    session.backlog.pop_front();
  }
  reactor_->CancelTimer(session.send_deadline);
  reactor_->ChangeEvents(session.socket_watch, kReadEvents);
}

void LeaseServer::WaitToSend(Session& session, const Status& why) {
  if (why.code() == StatusCode::kDeadlineExceeded) {
    reactor_->ChangeEvents(session.socket_watch, kReadWriteEvents);
    return;
  }
  // Its socket has room, and would say so in every turn of the loop.
  reactor_->ChangeEvents(session.socket_watch, kReadEvents);
  session.send_again = reactor_->RunAt(Now() + kSendPause, "send again", [this, id = session.id] {
    if (Session* const found = Find(id)) Flush(*found);
  });
}

void LeaseServer::ArmSendDeadline(Session& session) {
  reactor_->CancelTimer(session.send_deadline);
  session.send_deadline =
      reactor_->RunAt(Now() + options_.send_deadline, "send deadline", [this, id = session.id] {
        if (Session* const found = Find(id)) Doom(*found, kDoesNotRead);
      });
}

// Ends a session from where the registry or its own handlers are still on the stack.
void LeaseServer::Doom(Session& session, const std::string& reason) {
  if (session.doomed) return;
  session.doomed = true;
  // A timer and not a post: it can be taken back when the session ends otherwise.
  session.doom =
      reactor_->RunAt(Now(), "end session", [this, id = session.id, reason] { End(id, reason); });
}

void LeaseServer::DoomUnsent(Session& session, const Status& why) {
  Doom(session, why.code() == StatusCode::kUnavailable ? "" : why.message());
}

void LeaseServer::End(store::SessionId id, const std::string& reason) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const std::unique_ptr<Session> session = std::move(it->second);
  sessions_.erase(it);
  if (!reason.empty()) {
    LogInfo("session ended", {{"session", id},
                              {"uid", session->peer.uid},
                              {"pid", session->peer.pid},
                              {"reason", reason}});
  }
  reactor_->Unwatch(session->socket_watch);
  reactor_->Unwatch(session->process_watch);
  for (const Reactor::TimerId timer :
       {session->doom, session->hello_deadline, session->send_deadline, session->send_again})
    reactor_->CancelTimer(timer);
  for (const auto& [request, in_flight] : session->opens) {
    reactor_->CancelTimer(in_flight.deadline);
    registry_->CancelOpen(in_flight.open);
  }
  registry_->EndSession(id);
  const auto of_uid = sessions_of_uid_.find(session->peer.uid);
  if (--of_uid->second == 0) sessions_of_uid_.erase(of_uid);
}

}  // namespace trims

// The lease server: sessions on lease.sock.
//
// One connection is one session; ending it, however it ends, ends its leases.
// Everything a client sends is hostile until checked: a bad frame costs that
// client its connection and nobody else anything. Deadlines: a session says
// hello in time or goes; a client that does not read its answers goes.
//
// Thread rule: the reactor's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/limits.h"
#include "daemon/reactor.h"
#include "daemon/registry.h"
#include "ipc/frame.h"
#include "ipc/seqpacket.h"

namespace trims {

namespace v1 {
struct Open;
}

struct SessionView {
  store::SessionId id = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  int32_t pid = 0;
};

class LeaseServer final {
 public:
  struct Options {
    uint64_t id_base = 1;                                                   // Of session ids.
    uint64_t daemon_instance = 1;                                           // New for each worker.
    uint32_t sessions_per_uid_max = 0;                                      // 0: no limit.
    Duration hello_deadline = std::chrono::milliseconds(kHelloDeadlineMs);  // From accept.
    // Between two packets that a client takes while others wait for it.
    Duration send_deadline = std::chrono::milliseconds(kSendDeadlineMs);
  };
  // Borrows `reactor` and `registry`, which outlive it; takes the listening socket, which does
  // not block.
  LeaseServer(Reactor* reactor, Registry* registry, UniqueFd listener, Options options);
  ~LeaseServer();  // Ends every session.

  Status Start();

  size_t sessions() const { return sessions_.size(); }
  std::optional<SessionView> FindSession(store::SessionId id) const;
  void SetSessionsPerUidMax(uint32_t most) { options_.sessions_per_uid_max = most; }

 private:
  struct Session;
  struct Packet;

  void Accept();
  Status WatchSession(Session& session);
  void OnReadable(Session& session);
  bool HandlePacket(Session& session, std::span<const std::byte> packet, std::vector<UniqueFd> fds);
  bool HandleHello(Session& session, uint64_t request_id, std::span<const std::byte> payload);
  bool HandleOpen(Session& session, uint64_t request_id, std::span<const std::byte> payload);
  bool HandleOpenFile(Session& session, uint64_t request_id, std::span<const std::byte> payload,
                      std::vector<UniqueFd> fds);
  bool MayBegin(Session& session, uint64_t request_id);
  bool BeginOpen(Session& session, uint64_t request_id, const v1::Open& open, UniqueFd file,
                 std::string label);
  bool HandleClose(Session& session, uint64_t request_id, std::span<const std::byte> payload);
  bool HandleCancel(Session& session, std::span<const std::byte> payload);
  bool HandleReattach(Session& session, uint64_t request_id, std::span<const std::byte> payload);
  void GiveUpOpen(store::SessionId session, uint64_t request_id, uint64_t deadline_ms);
  void FinishOpen(store::SessionId session, uint64_t request_id, OpenResult result);
  void SendOpened(Session& session, uint64_t request_id, const OpenResult& result);
  void SendFailed(Session& session, uint64_t request_id, const Status& status,
                  const OpenResult* result = nullptr);
  void Send(Session& session, FrameType type, uint16_t flags, uint64_t request_id,
            std::span<const std::byte> payload, std::vector<int> fds = {},
            std::shared_ptr<const LentReplica> keep = nullptr);
  void Flush(Session& session);
  // What is left waits for room in the socket, or a moment when that is not what it lacks.
  void WaitToSend(Session& session, const Status& why);
  void ArmSendDeadline(Session& session);
  void Doom(Session& session, const std::string& reason);
  void DoomUnsent(Session& session, const Status& why);
  void End(store::SessionId id, const std::string& reason);
  Session* Find(store::SessionId id);

  Reactor* const reactor_;
  Registry* const registry_;
  UniqueFd listener_;
  Reactor::WatchId listener_watch_{};
  Reactor::TimerId accept_again_{};
  Options options_;
  store::SessionId next_session_;
  std::unordered_map<store::SessionId, std::unique_ptr<Session>> sessions_;
  std::unordered_map<uint32_t, uint32_t> sessions_of_uid_;
};

}  // namespace trims

// The gRPC server of control.sock: the service trims.v1.Control over a
// ControlBackend, the standard health service (names "", "trims.v1.Control" and
// "tier/<name>") and server reflection.
//
// It listens nowhere: the reactor accepts on control.sock and hands connections
// over. It is not the place of any decision about models; that is the backend.
//
// Who may connect. The permissions of the socket's inode are the authorisation,
// checked by the kernel at connect(2). Because the inode exists for a moment
// before its owner, group and mode are set, Serve() applies the same rule once
// more to the credentials that the kernel recorded for the peer: root and the
// owner pass; a process that has the socket's group passes when the group may
// write; anybody passes when others may write. There is no finer authorisation:
// who may connect may do everything.
//
// Bounds. At most kMaxControlConnections connections at a time, each closed
// after kControlIdleSeconds without a call, or when its peer stops answering
// pings; at most kMaxControlThreads threads run calls, further calls get
// RESOURCE_EXHAUSTED; requests are at most kMaxControlRequestBytes.
//
// Thread-safe. One per process at a time, because gRPC's health and reflection
// plugins are switched on process-wide.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/control_backend.h"

namespace trims {

inline constexpr size_t kMaxControlConnections = 256;
inline constexpr int kMaxControlThreads = 128;
inline constexpr int kMaxControlRequestBytes = 256 * 1024;
inline constexpr int kControlIdleSeconds = 300;
inline constexpr int kControlPingSeconds = 30;

// Owner, group and permission bits of the socket's inode.
struct ControlAccess {
  uid_t owner = 0;
  gid_t group = 0;
  mode_t mode = 0660;

  // Of this process, 0660.
  static ControlAccess OfThisProcess();
};

// OK when the peer of `connection` may use a control socket with this access,
// else PERMISSION_DENIED with the peer's pid and uid.
Status CheckControlPeer(int connection, const ControlAccess& access);

class ControlServer final {
 public:
  // Borrows `backend`, which must live longer. Health is "serving" from the start.
  static Result<std::unique_ptr<ControlServer>> Start(
      ControlBackend* backend, const ControlAccess& access = ControlAccess::OfThisProcess());

  // Shuts down without grace.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Takes a connected AF_UNIX stream socket; does not block. On an error the
  // connection is closed: PERMISSION_DENIED as above, RESOURCE_EXHAUSTED with too
  // many connections, UNAVAILABLE during shutdown, INVALID_ARGUMENT for another
  // kind of descriptor. What the peer does afterwards is never an error here.
  Status Serve(UniqueFd connection);

  // What the health service answers for the daemon, and under "tier/<name>" for a tier.
  void SetServing(bool serving);
  void SetTierServing(const std::string& tier, bool serving);

  // Health turns to "not serving", streams end with UNAVAILABLE at once, other
  // calls have `grace` to finish before they are cancelled. Returns when every
  // call of the backend has returned and every connection is closed. May be called
  // again.
  void Shutdown(Duration grace);

  // Connections open now.
  size_t Connections();

 private:
  struct State;
  explicit ControlServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace trims

// The client's side of the lease protocol: one connection that outlives the
// daemon's worker, shared by any number of threads.
//
// Requests are multiplexed. There is no receiving thread: of the threads that wait
// for answers one is the leader, which receives for all of them and hands the lead
// on when its own answer has come. With `background` one thread leads for ever. The
// leader is also who connects again; then it re-registers the leases and sends
// again what had no final answer. An open that had none is safe to repeat, because
// whatever the old session got ended with it.
//
// Thread-safe. Not usable in a forked child, where every call says so.
#pragma once

#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "client/attempt.h"
#include "client/places.h"
#include "client/weights.h"
#include "ipc/frame.h"
#include "ipc/seqpacket.h"
#include "trims/trims.h"

namespace trims::client {

struct ClientOptions {
  Places places;
  Duration connect_timeout = std::chrono::seconds(10);
  uid_t daemon_uid = 0;  // Trusted beside root and this process's own; 0: nobody.
  bool background = false;
};

// A Status with the figures of admission.
struct Failure {
  Status status;
  uint64_t need_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t evictable_bytes = 0;
};

// What the daemon has in its books for one lease. Shared by the lease and the client.
struct Holding {
  std::shared_ptr<const LeaseFacts> facts;
  std::atomic<uint64_t> lease_id{0};
  std::atomic<bool> attached{false};
};

struct OpenRequest {
  std::string name;                    // Or the label of the file.
  int fd = -1;                         // Not -1: OpenFile. Borrowed for the call.
  std::optional<TargetDevice> device;  // Nothing: the host tier.
  v1::Granularity granularity = v1::Granularity::Model;
  std::optional<Digest> expected_digest;
  std::optional<Duration> deadline;
  int64_t keep_alive_ms = -2;  // As in lease.fbs.
  trims_progress_fn progress = nullptr;
  void* progress_user = nullptr;
};

struct Granted {
  std::shared_ptr<Holding> holding;
  std::vector<UniqueFd> fds;  // The index, then the extents.
};

class Client final {
 public:
  static Result<std::shared_ptr<Client>> Connect(ClientOptions options);
  ~Client();  // Disconnects.

  // Fills `granted` when the Failure's status is OK. Blocks.
  Failure Open(const OpenRequest& what, Granted* granted);
  // Blocks only when the daemon has left many closes unanswered.
  void Close(const std::shared_ptr<Holding>& holding, uint64_t peak_internal_bytes);
  Status Ping();
  Status Service();
  // -1 when it can not be made.
  int PollFd();
  void Disconnect();

  IndexCache& indexes() { return indexes_; }
  const std::string& socket_path() const { return socket_path_; }
  // Lives as long as the client.
  const char* server_version() const { return server_version_.load()->c_str(); }
  uint64_t server_instance() const { return server_instance_.load(); }

 private:
  enum class State : uint8_t { kConnected, kBroken, kEnded };

  // A request whose caller waits; on the caller's stack. Read and written with its
  // client's mu_ held, which is no mutex that an annotation here can name.
  struct Pending {
    const OpenRequest* open = nullptr;  // Null: a ping.
    Time started{};
    std::optional<Time> deadline;    // The daemon is told of it.
    std::optional<Time> give_up_at;  // After a cancel: waits no longer than this.
    Time next_call{};                // Of the progress function.
    bool sent = false;
    bool cancelled = false;
    bool done = false;
    bool has_progress = false;
    trims_phase phase = TRIMS_PHASE_QUEUED;
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;
    // The answer, in parts while OpenedMore packets are to come.
    Failure failure;
    std::shared_ptr<Holding> holding;
    std::vector<UniqueFd> fds;
    CondVar changed;
  };
  // What is to be done with an answer.
  struct Entry {
    enum class Kind : uint8_t { kOpen, kAbandonedOpen, kClose, kPing } kind;
    Pending* pending = nullptr;  // Of kOpen and kPing.
    uint64_t lease_id = 0;       // Of an abandoned open some of whose parts have come.
  };
  using Entries = std::map<uint64_t, Entry>;

  explicit Client(ClientOptions options);

  bool InChild() const { return getpid() != owner_pid_; }
  void CloseInChild() TRIMS_NO_THREAD_SAFETY_ANALYSIS;
  Status Usable() const TRIMS_REQUIRES(mu_);  // Of this process and state.

  // --- All of these with mu_ held. Those that wait, send, or call what does let go of
  // it meanwhile: what was found before need not be there behind them.
  uint64_t Register(Pending& pending, Entry::Kind kind) TRIMS_REQUIRES(mu_);
  void Forget(uint64_t id) TRIMS_REQUIRES(mu_);
  void Finish(Entries::iterator entry, Failure failure) TRIMS_REQUIRES(mu_);
  void FailAll(const Status& status) TRIMS_REQUIRES(mu_);
  // Waits until `pending` is done, and leads when nobody does.
  void Wait(uint64_t id, Pending& pending) TRIMS_REQUIRES(mu_);
  void CallProgress(uint64_t id, Pending& pending) TRIMS_REQUIRES(mu_);
  void GiveUp(uint64_t id, Pending& pending, Status status) TRIMS_REQUIRES(mu_);
  Time AttentionAt(const Pending& pending) const TRIMS_REQUIRES(mu_);
  // One step as the leader, until `until` at the latest.
  void Lead(Time until) TRIMS_REQUIRES(mu_);
  void PromoteOne() TRIMS_REQUIRES(mu_);
  void ReceiveOne(Time until) TRIMS_REQUIRES(mu_);
  // Takes one packet if there is one. False when there was none.
  bool TakeOne() TRIMS_REQUIRES(mu_);
  void Reconnect(Time until) TRIMS_REQUIRES(mu_);
  void Publish(Attempt& attempt, std::vector<std::shared_ptr<Holding>> holdings)
      TRIMS_REQUIRES(mu_);
  void Adopt(UniqueFd socket, const std::string& version, uint64_t instance) TRIMS_REQUIRES(mu_);
  void Break(const std::string& why) TRIMS_REQUIRES(mu_);
  void BreakProtocol(const Status& status) TRIMS_REQUIRES(mu_);
  void SendUnsent() TRIMS_REQUIRES(mu_);
  Status SendFrame(FrameType type, uint64_t id, std::span<const std::byte> payload, int fd = -1)
      TRIMS_REQUIRES(mu_);
  void SendCancel(uint64_t open_id) TRIMS_REQUIRES(mu_);
  void SendClose(uint64_t lease_id, uint64_t peak_internal_bytes) TRIMS_REQUIRES(mu_);
  void Dispatch(const Frame& frame, std::vector<UniqueFd> fds) TRIMS_REQUIRES(mu_);
  Status TakeOpened(Entries::iterator entry, const Frame& frame, std::vector<UniqueFd> fds)
      TRIMS_REQUIRES(mu_);
  Status TakeOpenedMore(Entries::iterator entry, const Frame& frame, std::vector<UniqueFd> fds)
      TRIMS_REQUIRES(mu_);
  void CompleteOpen(Entries::iterator entry) TRIMS_REQUIRES(mu_);

  void RunBackground();
  void WakeBackground();

  // Constant after Connect.
  const ClientOptions options_;
  const pid_t owner_pid_;
  std::string socket_path_;
  UniqueFd wake_fd_;  // An eventfd, with `background` only.
  pthread_t background_{};
  bool has_background_ = false;

  // Own synchronisation.
  IndexCache indexes_;
  std::atomic<const std::string*> server_version_;
  std::atomic<uint64_t> server_instance_{0};

  // Used by the leader, or under mu_ while nobody leads.
  alignas(16) std::array<std::byte, kMaxPacketBytes> buffer_;
  std::unique_ptr<Attempt> attempt_;
  std::vector<std::shared_ptr<Holding>> attempt_holdings_;

  Mutex mu_;
  State state_ TRIMS_GUARDED_BY(mu_) = State::kBroken;
  bool leading_ TRIMS_GUARDED_BY(mu_) = false;
  bool stopping_ TRIMS_GUARDED_BY(mu_) = false;
  UniqueFd socket_ TRIMS_GUARDED_BY(mu_);
  // Sockets that a leader may still be polling.
  std::vector<UniqueFd> retired_ TRIMS_GUARDED_BY(mu_);
  // An epoll instance over socket_ and the next, made when asked for.
  UniqueFd poll_fd_ TRIMS_GUARDED_BY(mu_);
  // An eventfd that is readable while the connection is broken.
  UniqueFd broken_event_ TRIMS_GUARDED_BY(mu_);
  uint64_t last_id_ TRIMS_GUARDED_BY(mu_) = 0;
  Entries entries_ TRIMS_GUARDED_BY(mu_);
  size_t opens_in_flight_ TRIMS_GUARDED_BY(mu_) = 0;
  size_t closes_in_flight_ TRIMS_GUARDED_BY(mu_) = 0;
  std::unordered_set<std::shared_ptr<Holding>> holdings_ TRIMS_GUARDED_BY(mu_);
  // Every one ever seen: pointers stay valid.
  std::unordered_set<std::string> server_versions_ TRIMS_GUARDED_BY(mu_);
  Time broken_since_ TRIMS_GUARDED_BY(mu_){};
  Duration back_off_ TRIMS_GUARDED_BY(mu_){};
  Status last_failure_ TRIMS_GUARDED_BY(mu_);  // Of the last attempt to connect.
};

}  // namespace trims::client

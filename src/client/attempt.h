// One attempt to (re)connect to the daemon: connect, Hello, Welcome, and Reattach
// for every lease of this process.
//
// It can be left and taken up again, so that who runs it can look at deadlines and
// cancellation in between. Used by one thread at a time; knows nothing of the
// client's state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "client/weights.h"

namespace trims::client {

// What to tell a daemon about one lease, and its answer.
struct Reattachment {
  std::shared_ptr<const LeaseFacts> facts;
  bool answered = false;
  uint64_t lease_id = 0;  // 0: the daemon no longer has these weights.
};

class Attempt final {
 public:
  enum class Progress : uint8_t {
    kPending,  // `until` was reached.
    kDone,
    kFailed,  // See status().
  };

  // `buffer`: for one packet, aligned to 8 bytes; borrowed while Run runs.
  static Result<std::unique_ptr<Attempt>> Start(const std::string& path, uid_t daemon_uid,
                                                std::vector<Reattachment> leases);
  // Goes on until done, failed, or `until`. Returns early, pending, when `wake_fd`
  // (if not -1) is readable.
  Progress Run(Time until, int wake_fd, std::span<std::byte> buffer);

  const Status& status() const { return status_; }
  // Whether another attempt can not do better either.
  bool is_final() const { return is_final_; }

  // After kDone.
  UniqueFd TakeSocket() { return std::move(socket_); }
  const std::vector<Reattachment>& leases() const { return leases_; }
  const std::string& daemon_version() const { return daemon_version_; }
  uint64_t daemon_instance() const { return daemon_instance_; }

 private:
  Attempt(UniqueFd socket, std::vector<Reattachment> leases)
      : socket_(std::move(socket)), leases_(std::move(leases)) {}

  Status SendHello();
  Status SendReattach(size_t index);
  // OK to go on.
  Status Take(std::span<const std::byte> packet);

  UniqueFd socket_;
  std::vector<Reattachment> leases_;
  size_t sent_ = 0;
  size_t answered_ = 0;
  bool welcomed_ = false;
  bool is_final_ = false;
  Status status_;
  std::string daemon_version_;
  uint64_t daemon_instance_ = 0;
};

// Waits until `fd` has one of `events`, or `wake_fd` (if not -1) is readable, or
// `until`. Whether `fd` is ready. Signals do not end the wait.
bool WaitFor(int fd, short events, int wake_fd, Time until);

// What a Failed message says; UNKNOWN for a number that is no code.
Status StatusOfFailed(int32_t code, const flatbuffers::String* message);

}  // namespace trims::client

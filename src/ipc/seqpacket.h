// Sending and receiving packets with descriptors on AF_UNIX SOCK_SEQPACKET.
// No function here blocks unless its socket is blocking. Thread-compatible.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims {

// One packet in one or two parts (header and payload), and borrowed descriptors
// to pass with it. UNAVAILABLE when the peer is gone; DEADLINE_EXCEEDED when the
// socket is non-blocking and full (nothing was sent); never raises SIGPIPE.
Status SendPacket(int socket, std::span<const std::byte> header, std::span<const std::byte> payload,
                  std::span<const int> fds);

struct ReceivedPacket {
  size_t size = 0;  // Bytes written to the buffer; 0 with `closed` at end of file.
  bool closed = false;
  std::vector<UniqueFd> fds;  // Close-on-exec.
};

// Receives one packet into `buffer`. `max_fds` is how many descriptors the
// caller's state allows: with 0 no control buffer is given to the kernel, so
// nothing can be pushed at us. More than `max_fds`, or a truncated packet or
// control message, is INVALID_ARGUMENT, and every descriptor that arrived is
// closed; RESOURCE_EXHAUSTED likewise when it was this process's descriptor limit
// that cut the list. DEADLINE_EXCEEDED when the socket is non-blocking and empty.
// A peer that is gone, or sends an empty packet, is `closed`.
Result<ReceivedPacket> ReceivePacket(int socket, std::span<std::byte> buffer, size_t max_fds);

struct PeerIdentity {
  pid_t pid = 0;  // As seen from here; 0 when it can not be seen.
  uid_t uid = 0;
  gid_t gid = 0;
  UniqueFd pidfd;  // Readable when the peer has exited; invalid when the kernel can not tell.
};

// Credentials of the process that connected (SO_PEERCRED) and its pidfd
// (SO_PEERPIDFD, else pidfd_open, which is racy and tried only then).
Result<PeerIdentity> GetPeerIdentity(int socket);

// A listening socket at `path`, with `mode` on its inode. The caller holds the
// lock of the directory: an old socket inode is removed first.
Result<UniqueFd> ListenAt(const std::string& path, int type, mode_t mode);

// Connects to `path` after checking what a planted socket could not fake: the
// directory and the socket belong to root, to this process's uid, or to
// `expected_owner` (when not -1), and others may not write the directory.
Result<UniqueFd> ConnectTo(const std::string& path, int type,
                           uid_t expected_owner = static_cast<uid_t>(-1));

}  // namespace trims

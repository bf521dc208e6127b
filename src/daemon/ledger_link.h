// What keeper and worker say to each other: a private protocol between two
// processes of the same binary, over one SEQPACKET socket pair.
//
// The keeper's ledger is a map from opaque keys to (opaque text, descriptor).
// It is the worker that knows what they mean; the keeper parses nothing, so that
// nothing can crash it. Thread-compatible; sends are blocking.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims {

enum class LinkType : uint32_t {
  // keeper -> worker, in this order at start
  kStart = 1,  // body: StartMessage text
  kEntry = 2,  // key, body, descriptor; once per ledger entry
  kEntriesEnd = 3,
  // keeper -> worker, later
  kConfig = 4,  // body: configuration text
  kStop = 5,
  // worker -> keeper
  kReady = 16,       // The worker serves.
  kPut = 17,         // key, body, optional descriptor: add or replace
  kDrop = 18,        // key
  kStatusText = 19,  // body: one line for the service manager
};

struct LinkMessage {
  LinkType type{};
  std::string key;
  std::string body;
  UniqueFd fd;
};

inline constexpr size_t kMaxLinkBodyBytes = 56 * 1024;
inline constexpr size_t kMaxLinkKeyBytes = 1024;

// `fd` is borrowed; -1 for none. UNAVAILABLE when the other side is gone.
Status SendLink(int socket, LinkType type, const std::string& key, const std::string& body,
                int fd = -1);

// UNAVAILABLE at end of file; DEADLINE_EXCEEDED when the socket is non-blocking and empty.
Result<LinkMessage> ReceiveLink(int socket);

}  // namespace trims

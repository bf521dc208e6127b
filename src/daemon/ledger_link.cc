#include "daemon/ledger_link.h"

#include <cstring>
#include <span>
#include <vector>

#include "base/limits.h"
#include "ipc/seqpacket.h"

namespace trims {
namespace {
struct Header {
  uint32_t type;
  uint32_t key_bytes;
  uint32_t body_bytes;
  uint32_t has_fd;
};
static_assert(sizeof(Header) + kMaxLinkKeyBytes + kMaxLinkBodyBytes <= kMaxPacketBytes);
}  // namespace

Status SendLink(int socket, LinkType type, const std::string& key, const std::string& body,
                int fd) {
  if (key.size() > kMaxLinkKeyBytes || body.size() > kMaxLinkBodyBytes) {
    return InvalidArgumentError("ledger entry too large: key " + std::to_string(key.size()) +
                                " bytes, body " + std::to_string(body.size()) + " bytes");
  }
  const Header header{static_cast<uint32_t>(type), static_cast<uint32_t>(key.size()),
                      static_cast<uint32_t>(body.size()), fd >= 0 ? 1u : 0u};
  std::string payload = key + body;
  const int fds[1] = {fd};
  return SendPacket(socket, std::as_bytes(std::span(&header, 1)), std::as_bytes(std::span(payload)),
                    fd >= 0 ? std::span<const int>(fds) : std::span<const int>());
}

Result<LinkMessage> ReceiveLink(int socket) {
  thread_local std::vector<std::byte> buffer(kMaxPacketBytes);
  ASSIGN_OR_RETURN(ReceivedPacket packet, ReceivePacket(socket, buffer, 1));
  if (packet.closed) return UnavailableError("the other half of the daemon is gone");
  Header header;
  if (packet.size < sizeof header) return InternalError("ledger message without a header");
  std::memcpy(&header, buffer.data(), sizeof header);
  if (packet.size != sizeof header + uint64_t{header.key_bytes} + header.body_bytes ||
      packet.fds.size() != header.has_fd) {
    return InternalError("ledger message with wrong sizes");
  }
  LinkMessage message;
  message.type = static_cast<LinkType>(header.type);
  const char* text = reinterpret_cast<const char*>(buffer.data()) + sizeof header;
  message.key.assign(text, header.key_bytes);
  message.body.assign(text + header.key_bytes, header.body_bytes);
  if (header.has_fd != 0) message.fd = std::move(packet.fds[0]);
  return message;
}

}  // namespace trims

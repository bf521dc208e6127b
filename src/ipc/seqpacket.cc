#include "ipc/seqpacket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/limits.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5; absent from older headers.
#endif

namespace trims {
namespace {

constexpr size_t kControlBytesMax = CMSG_SPACE(sizeof(int) * kMaxFdsPerPacket);

union ControlBuffer {
  cmsghdr align;
  char bytes[kControlBytesMax];
};

bool IsPeerGone(int errnum) {
  return errnum == EPIPE || errnum == ECONNRESET || errnum == ENOTCONN || errnum == ECONNREFUSED;
}

struct SplitPath {
  std::string directory;
  std::string name;
};

Result<SplitPath> Split(const std::string& path) {
  const size_t slash = path.rfind('/');
  SplitPath split;
  if (slash == std::string::npos) {
    split = {".", path};
  } else {
    split = {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
  }
  if (split.name.empty() || split.name == "." || split.name == ".." ||
      path.find('\0') != std::string::npos) {
    return InvalidArgumentError("\"" + path + "\" does not name a socket");
  }
  return split;
}

// sun_path holds 107 characters. Paths through /proc/self/fd are always short, so
// a long runtime directory needs no special rule.
sockaddr_un AddressOf(std::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

bool FitsAddress(std::string_view path) { return path.size() < sizeof(sockaddr_un::sun_path); }

std::string ProcPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

std::string DescribeMode(mode_t mode) {
  char text[8];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777));
  return text;
}

std::string DescribeOwners(uid_t expected_owner) {
  std::string text = "root or uid " + std::to_string(geteuid());
  if (expected_owner != static_cast<uid_t>(-1) && expected_owner != 0 &&
      expected_owner != geteuid()) {
    text += " or uid " + std::to_string(expected_owner);
  }
  return text;
}

Status CheckOwner(const struct stat& info, const std::string& what, uid_t expected_owner) {
  if (info.st_uid == 0 || info.st_uid == geteuid()) return OkStatus();
  if (expected_owner != static_cast<uid_t>(-1) && info.st_uid == expected_owner) return OkStatus();
  return PermissionDeniedError(what + " belongs to uid " + std::to_string(info.st_uid) +
                               ", expected " + DescribeOwners(expected_owner) +
                               "; it may be planted, not connecting");
}

}  // namespace

Status SendPacket(int socket, std::span<const std::byte> header, std::span<const std::byte> payload,
                  std::span<const int> fds) {
  const size_t total = header.size() + payload.size();
  if (total == 0 || total > kMaxPacketBytes) {
    return InvalidArgumentError("a packet holds 1 to " + std::to_string(kMaxPacketBytes) +
                                " bytes, not " + std::to_string(total));
  }
  if (fds.size() > kMaxFdsPerPacket) {
    return InvalidArgumentError("a packet carries at most " + std::to_string(kMaxFdsPerPacket) +
                                " descriptors, not " + std::to_string(fds.size()));
  }
  iovec parts[2] = {
      {const_cast<std::byte*>(header.data()), header.size()},
      {const_cast<std::byte*>(payload.data()), payload.size()},
  };
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  ControlBuffer control;
  if (!fds.empty()) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    std::memset(control.bytes, 0, message.msg_controllen);
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) {
    const int error = errno;
    if (IsPeerGone(error)) return UnavailableError("sending a packet: the peer is gone");
    if (error == EAGAIN || error == EWOULDBLOCK) {
      return DeadlineExceededError("sending a packet: the peer does not read");
    }
    return ErrnoStatus(error, "sending a packet");
  }
  // A SEQPACKET socket sends all or nothing; another type would break framing.
  if (static_cast<size_t>(sent) != total) {
    return InternalError("sending a packet: the socket took a part, so it is not SOCK_SEQPACKET");
  }
  return OkStatus();
}

Result<ReceivedPacket> ReceivePacket(int socket, std::span<std::byte> buffer, size_t max_fds) {
  if (max_fds > kMaxFdsPerPacket) max_fds = kMaxFdsPerPacket;
  iovec part = {buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  ControlBuffer control;
  if (max_fds > 0) {
    message.msg_control = control.bytes;
    // CMSG_LEN and not CMSG_SPACE: padding would be room for one more descriptor.
    message.msg_controllen = CMSG_LEN(sizeof(int) * max_fds);
  }
  ssize_t received;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) {
    const int error = errno;
    ReceivedPacket packet;
    if (IsPeerGone(error)) {
      packet.closed = true;
      return packet;
    }
    if (error == EAGAIN || error == EWOULDBLOCK) {
      return DeadlineExceededError("receiving a packet: none has arrived");
    }
    return ErrnoStatus(error, "receiving a packet");
  }

  // Every descriptor gets its owner before anything is judged, so that no return
  // below can leak one.
  ReceivedPacket packet;
  packet.size = static_cast<size_t>(received);
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
       item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    packet.fds.reserve(packet.fds.size() + count);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof fd);
      packet.fds.emplace_back(fd);
    }
  }

  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    // The kernel cuts the list when our buffer is full or when this process can
    // hold no more descriptors; in the first case the list is as long as it may be.
    if (packet.fds.size() < max_fds) {
      return ResourceExhaustedError(
          "receiving a packet: this process can hold no more descriptors; raise its limit "
          "(ulimit -n)");
    }
    return InvalidArgumentError("receiving a packet: more than the " + std::to_string(max_fds) +
                                " descriptors allowed came with it");
  }
  if (packet.fds.size() > max_fds) {
    return InvalidArgumentError("receiving a packet: " + std::to_string(packet.fds.size()) +
                                " descriptors came with it, at most " + std::to_string(max_fds) +
                                " are allowed");
  }
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return InvalidArgumentError("receiving a packet: it is longer than " +
                                std::to_string(buffer.size()) + " bytes");
  }
  // An empty packet can not be told from the end of the stream, and no message is
  // empty: both end the conversation.
  if (packet.size == 0) {
    packet.closed = true;
    packet.fds.clear();
  }
  return packet;
}

Result<PeerIdentity> GetPeerIdentity(int socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return ErrnoStatus(errno, "reading the peer's credentials");
  }
  PeerIdentity peer;
  peer.pid = credentials.pid;
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
  int pidfd = -1;
  length = sizeof pidfd;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0) {
    peer.pidfd.Reset(pidfd);
    return peer;
  }
  // A kernel that knows the option and can not answer has no live peer to name, and
  // pidfd_open would name whoever got its number since.
  if (errno == ENOPROTOOPT && peer.pid > 0) {
    peer.pidfd.Reset(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
  }
  return peer;
}

Result<UniqueFd> ListenAt(const std::string& path, int type, mode_t mode) {
  ASSIGN_OR_RETURN(const SplitPath split, Split(path));
  const UniqueFd directory(open(split.directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return ErrnoStatus(errno, "opening the directory " + split.directory);

  struct stat info;
  if (fstatat(directory.get(), split.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return FailedPreconditionError(path + " exists and is not a socket; remove it");
    }
    if (unlinkat(directory.get(), split.name.c_str(), 0) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, "removing the old socket " + path);
    }
  } else if (errno != ENOENT) {
    return ErrnoStatus(errno, "looking at " + path);
  }

  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "making a socket for " + path);
  // The inode that bind makes takes the socket's mode (less the umask), so it is at
  // no moment open to more people than `mode` says.
  if (fchmod(socket.get(), mode) != 0) {
    return ErrnoStatus(errno, "setting the mode of the socket for " + path);
  }
  std::string address_path = path;
  if (!FitsAddress(address_path)) address_path = ProcPath(directory.get()) + "/" + split.name;
  if (!FitsAddress(address_path)) {
    return InvalidArgumentError("the name of the socket " + path + " is too long");
  }
  const sockaddr_un address = AddressOf(address_path);
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, "binding the socket " + path);
  }
  if (fchmodat(directory.get(), split.name.c_str(), mode, 0) != 0) {
    return ErrnoStatus(errno, "setting the mode of " + path);
  }
  if (listen(socket.get(), kListenBacklog) != 0) {
    return ErrnoStatus(errno, "listening at " + path);
  }
  return socket;
}

Result<UniqueFd> ConnectTo(const std::string& path, int type, uid_t expected_owner) {
  ASSIGN_OR_RETURN(const SplitPath split, Split(path));
  // Both inodes are opened before they are judged and used through those
  // descriptors, so that nobody can exchange them in between.
  const UniqueFd directory(
      open(split.directory.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory.valid()) {
    const int error = errno;
    // A symbolic link opened this way is "not a directory".
    struct stat info;
    if (lstat(split.directory.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
      return PermissionDeniedError("the directory " + split.directory +
                                   " is a symbolic link; name the directory itself");
    }
    return ErrnoStatus(error, "opening the directory " + split.directory);
  }
  struct stat info;
  if (fstat(directory.get(), &info) != 0) {
    return ErrnoStatus(errno, "looking at the directory " + split.directory);
  }
  RETURN_IF_ERROR(CheckOwner(info, "the directory " + split.directory, expected_owner));
  if ((info.st_mode & S_IWOTH) != 0) {
    return PermissionDeniedError("the directory " + split.directory + " has mode " +
                                 DescribeMode(info.st_mode) +
                                 ": everybody can plant a socket in it, not connecting");
  }

  const UniqueFd inode(
      openat(directory.get(), split.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!inode.valid()) return ErrnoStatus(errno, "opening the socket " + path);
  if (fstat(inode.get(), &info) != 0) return ErrnoStatus(errno, "looking at " + path);
  if (S_ISLNK(info.st_mode)) {
    return PermissionDeniedError(path + " is a symbolic link, expected a socket");
  }
  if (!S_ISSOCK(info.st_mode)) return InvalidArgumentError(path + " is not a socket");
  RETURN_IF_ERROR(CheckOwner(info, "the socket " + path, expected_owner));

  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "making a socket");
  sockaddr_un address = AddressOf(ProcPath(inode.get()));
  int result;
  do {
    result = connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == ENOENT && FitsAddress(path)) {
    // No /proc here. Only the owner checked above could exchange the inode now.
    address = AddressOf(path);
    do {
      result = connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    } while (result != 0 && errno == EINTR);
  }
  if (result != 0) return ErrnoStatus(errno, "connecting to " + path);
  return socket;
}

}  // namespace trims

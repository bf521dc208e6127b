#include "bench/socket_floor.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <map>
#include <span>

#include "bench/sealed_memory.h"
#include "ipc/seqpacket.h"

namespace trims::bench {
namespace {

using std::chrono::steady_clock;

// What an open and its answer take on the lease socket, and a close.
constexpr size_t kOpenBytes = 96;
constexpr size_t kAnswerBytes = 300;
constexpr size_t kCloseBytes = 16;
constexpr size_t kPacketBytesMax = 512;

Status Watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  return OkStatus();
}

}  // namespace

Result<SocketFloor> SocketFloor::Listen(const std::string& path, uint64_t extent_bytes) {
  ASSIGN_OR_RETURN(UniqueFd extent, SealedMemory(extent_bytes));
  ASSIGN_OR_RETURN(UniqueFd index, SealedMemory(kIndexBytes));
  ASSIGN_OR_RETURN(UniqueFd listener, ListenAt(path, SOCK_SEQPACKET, 0666));
  return SocketFloor(std::move(listener), std::move(extent), std::move(index));
}

Status SocketFloor::Serve(int stop) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return ErrnoStatus(errno, "epoll_create1");
  RETURN_IF_ERROR(Watch(epoll.get(), stop));
  RETURN_IF_ERROR(Watch(epoll.get(), listener_.get()));
  std::map<int, UniqueFd> clients;
  std::array<epoll_event, 64> events;
  std::array<char, kPacketBytesMax> request;
  const std::array<std::byte, kAnswerBytes> answer{};
  const std::array<int, 2> lent = {index_.get(), extent_.get()};
  while (true) {
    const int count = ::epoll_wait(epoll.get(), events.data(), static_cast<int>(events.size()), -1);
    if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "epoll_wait");
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == stop) return OkStatus();
      if (fd == listener_.get()) {
        UniqueFd client(::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!client.valid()) continue;
        RETURN_IF_ERROR(Watch(epoll.get(), client.get()));
        const int number = client.get();
        clients.insert_or_assign(number, std::move(client));
        continue;
      }
      const ssize_t size = ::recv(fd, request.data(), request.size(), 0);
      const Status sent = size <= 0 ? UnavailableError("the client is gone")
                          : size == static_cast<ssize_t>(kOpenBytes)
                              ? SendPacket(fd, answer, {}, lent)
                              : SendPacket(fd, std::span(answer).first(kCloseBytes), {}, {});
      if (!sent.ok()) clients.erase(fd);
    }
  }
}

Result<SocketFloorClient> SocketFloorClient::Connect(const std::string& path,
                                                     uint64_t extent_bytes) {
  ASSIGN_OR_RETURN(UniqueFd socket, ConnectTo(path, SOCK_SEQPACKET));
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, "setting up the connection to " + path);
  }
  return SocketFloorClient(std::move(socket), extent_bytes);
}

Result<OpenTimes> SocketFloorClient::Measure() {
  const std::array<std::byte, kOpenBytes> request{};
  std::array<std::byte, kPacketBytesMax> buffer;
  OpenTimes times;
  steady_clock::time_point begin = steady_clock::now();
  RETURN_IF_ERROR(SendPacket(socket_.get(), request, {}, {}));
  ASSIGN_OR_RETURN(ReceivedPacket packet, ReceivePacket(socket_.get(), buffer, 2));
  if (packet.closed) return UnavailableError("the floor's server is gone");
  if (packet.fds.size() != 2) return InternalError("the floor's server lent no two descriptors");
  {
    const Mapped index(packet.fds[0].get(), kIndexBytes);
    const Mapped extent(packet.fds[1].get(), extent_bytes_);
    if (!index.ok() || !extent.ok()) return ErrnoStatus(errno, "mapping memory");
    packet.fds.clear();
    index.Touch();
    times.open = Seconds(begin, steady_clock::now());
    extent.Touch();
    begin = steady_clock::now();
  }
  RETURN_IF_ERROR(SendPacket(socket_.get(), std::span(request).first(kCloseBytes), {}, {}));
  ASSIGN_OR_RETURN(const ReceivedPacket closed, ReceivePacket(socket_.get(), buffer, 0));
  if (closed.closed) return UnavailableError("the floor's server is gone");
  times.close = Seconds(begin, steady_clock::now());
  return times;
}

}  // namespace trims::bench

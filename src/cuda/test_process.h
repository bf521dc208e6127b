// Processes of tests that use CUDA: this program again, in a role, with a socket
// to whoever started it. A forked child can not use CUDA, so each begins with exec.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "ipc/seqpacket.h"

namespace trims::cuda {

// What processes of tests say to each other; some of it with a descriptor.
struct Message {
  uint64_t bytes = 0;
  uint64_t value = 0;
  int32_t code = 0;  // A StatusCode.
  char text[2048] = {};
};

inline void Say(int socket, const Message& message, int fd = -1) {
  const std::array<int, 1> fds = {fd};
  const Status sent = SendPacket(socket, std::as_bytes(std::span(&message, 1)), {},
                                 std::span(fds).first(fd >= 0 ? 1 : 0));
  // Who has heard enough may be gone.
  if (!sent.ok() && sent.code() != StatusCode::kUnavailable)
    std::fprintf(stderr, "saying something: %s\n", sent.ToString().c_str());
}

inline void SayStatus(int socket, const Status& status) {
  Message message{.code = static_cast<int32_t>(status.code())};
  std::snprintf(message.text, sizeof message.text, "%s", status.message().c_str());
  Say(socket, message);
}

struct Heard {
  Message message;
  UniqueFd fd;
  bool closed = false;  // The other side is gone.
};

inline Heard Hear(int socket) {
  Heard heard;
  Result<ReceivedPacket> packet =
      ReceivePacket(socket, std::as_writable_bytes(std::span(&heard.message, 1)), 1);
  if (!packet.ok() || packet->closed || packet->size != sizeof(Message)) {
    heard.closed = true;
    return heard;
  }
  if (!packet->fds.empty()) heard.fd = std::move(packet->fds.front());
  return heard;
}

// A child in a role; killed, if it is still there, at the end.
class ChildProcess final {
 public:
  using Environment = std::map<std::string, std::string>;

  explicit ChildProcess(const std::string& role, const Environment& environment = {}) {
    std::array<int, 2> sockets{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets.data()) != 0) std::abort();
    socket_ = UniqueFd(sockets[0]);
    const UniqueFd theirs(sockets[1]);
    const std::string argument = "--child=" + role + ":" + std::to_string(theirs.get());
    // Everything that allocates, before the fork: other threads may hold locks.
    std::vector<std::string> settings;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string setting = *entry;
      if (environment.count(setting.substr(0, setting.find('='))) == 0) settings.push_back(setting);
    }
    for (const auto& [name, value] : environment) settings.push_back(name + "=" + value);
    std::vector<char*> pointers;
    for (std::string& setting : settings) pointers.push_back(setting.data());
    pointers.push_back(nullptr);
    const std::array<const char*, 3> arguments = {"/proc/self/exe", argument.c_str(), nullptr};
    pid_ = ::fork();
    if (pid_ == 0) {
      ::fcntl(theirs.get(), F_SETFD, 0);
      ::execve("/proc/self/exe", const_cast<char* const*>(arguments.data()), pointers.data());
      ::_exit(127);
    }
  }
  ~ChildProcess() { Kill(); }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  int socket() const { return socket_.get(); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    static_cast<void>(Wait());
  }
  // The status of waitpid; -1 when it was waited for before.
  int Wait() {
    if (pid_ <= 0) return -1;
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  UniqueFd socket_;
  pid_t pid_ = -1;
};

}  // namespace trims::cuda

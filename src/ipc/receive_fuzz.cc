// Packets with descriptors over a real socket pair. The input decides how large
// they are, how many descriptors come with them, how many the receiver allows and
// how large its buffer is. Whatever happens: no crash, no descriptor left over,
// never more than allowed, and only the bytes that were sent.
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/limits.h"
#include "ipc/seqpacket.h"

namespace {

int CountDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) std::abort();
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t Byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  // Mostly small, sometimes at or around a limit.
  size_t Size(size_t limit) {
    const uint8_t byte = Byte();
    if (byte < 200) return byte % 64;
    return limit - 3 + byte % 7;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// As a hostile peer would: no checks.
void Push(int socket, const std::vector<std::byte>& bytes, size_t fd_count, int fd) {
  constexpr size_t kKernelLimit = 253;
  fd_count = std::min(fd_count, kKernelLimit);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kKernelLimit)] = {};
  iovec part = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd_count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
    cmsghdr* item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
    for (size_t i = 0; i < fd_count; ++i) {
      std::memcpy(CMSG_DATA(item) + i * sizeof(int), &fd, sizeof fd);
    }
  }
  (void)sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Run(Input input) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return;
  trims::UniqueFd near(ends[0]);
  const trims::UniqueFd far(ends[1]);
  const trims::UniqueFd sent(open("/dev/null", O_RDONLY | O_CLOEXEC));
  std::array<std::vector<std::byte>, 64> pending;
  size_t written = 0;
  while (!input.empty() && written < pending.size()) {
    const uint8_t operation = input.Byte();
    if (operation % 4 < 2 && near.valid()) {
      std::vector<std::byte> bytes(input.Size(trims::kMaxPacketBytes),
                                   static_cast<std::byte>(written + 1));
      Push(near.get(), bytes, input.Size(trims::kMaxFdsPerPacket), sent.get());
      pending[written++] = std::move(bytes);
    } else if (operation % 4 == 2 && operation > 240) {
      near.Reset();
    } else {
      const size_t max_fds = input.Size(trims::kMaxFdsPerPacket);
      std::vector<std::byte> buffer(input.Size(trims::kMaxPacketBytes));
      const auto packet = trims::ReceivePacket(far.get(), buffer, max_fds);
      if (!packet.ok()) continue;
      if (packet->fds.size() > std::min(max_fds, trims::kMaxFdsPerPacket)) std::abort();
      if (packet->size > buffer.size()) std::abort();
      if (packet->closed) continue;
      // A packet that arrives whole is one of those that were sent, unmixed.
      const std::byte first = buffer[0];
      for (size_t i = 0; i < packet->size; ++i) {
        if (buffer[i] != first) std::abort();
      }
      const size_t index = std::to_integer<size_t>(first);
      if (index == 0 || index > written || pending[index - 1].size() != packet->size) std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int before = CountDescriptors();
  Run(Input(data, std::min<size_t>(size, 512)));
  if (CountDescriptors() != before) std::abort();
  return 0;
}

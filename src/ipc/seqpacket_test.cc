#include "ipc/seqpacket.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"

namespace trims {
namespace {

int CountDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count - 3;  // ".", ".." and the directory itself.
}

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

struct Pair {
  UniqueFd near;
  UniqueFd far;
};

Pair MakePair(int type = SOCK_SEQPACKET | SOCK_NONBLOCK) {
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// A packet with `count` descriptors, past the checks of SendPacket.
void PushDescriptors(int socket, std::string_view text, size_t count, int fd) {
  std::vector<char> control(CMSG_SPACE(count * sizeof(int)));
  iovec part = {const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(CMSG_DATA(item) + i * sizeof(int), &fd, sizeof fd);
    }
  }
  ASSERT_EQ(sendmsg(socket, &message, MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

class SeqPacket : public testing::Test {
 protected:
  SeqPacket() : pair_(MakePair()), null_(open("/dev/null", O_RDWR | O_CLOEXEC)) {}
  void SetUp() override { baseline_ = CountDescriptors(); }
  void TearDown() override { EXPECT_EQ(CountDescriptors(), baseline_) << "descriptors leaked"; }

  Pair pair_;
  UniqueFd null_;
  std::array<std::byte, kMaxPacketBytes> buffer_;
  int baseline_ = 0;
};

TEST_F(SeqPacket, PartsArriveAsOnePacketAndPacketsKeepTheirBoundaries) {
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("head"), Bytes("tail"), {}).ok());
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("second"), {}, {}).ok());
  Result<ReceivedPacket> first = ReceivePacket(pair_.far.get(), buffer_, 0);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_EQ(first->size, 8u);
  EXPECT_FALSE(first->closed);
  EXPECT_EQ(std::memcmp(buffer_.data(), "headtail", 8), 0);
  Result<ReceivedPacket> second = ReceivePacket(pair_.far.get(), buffer_, 0);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->size, 6u);
}

TEST_F(SeqPacket, DescriptorsArriveInOrderAndCloseOnExec) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const std::array<int, 3> fds = {null_.get(), ends[1], ends[0]};
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("x"), {}, fds).ok());
  Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 3);
  ASSERT_TRUE(packet.ok()) << packet.status().ToString();
  ASSERT_EQ(packet->fds.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    struct stat sent;
    struct stat received;
    ASSERT_EQ(fstat(fds[i], &sent), 0);
    ASSERT_EQ(fstat(packet->fds[i].get(), &received), 0);
    EXPECT_EQ(sent.st_ino, received.st_ino) << i;
    EXPECT_TRUE(fcntl(packet->fds[i].get(), F_GETFD) & FD_CLOEXEC);
  }
}

TEST_F(SeqPacket, TheLargestAllowedNumberOfDescriptorsTravelsAndOneMoreIsRefused) {
  std::vector<int> fds(kMaxFdsPerPacket, null_.get());
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("x"), {}, fds).ok());
  {
    Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, kMaxFdsPerPacket);
    ASSERT_TRUE(packet.ok()) << packet.status().ToString();
    EXPECT_EQ(packet->fds.size(), kMaxFdsPerPacket);
  }
  fds.push_back(null_.get());
  EXPECT_EQ(SendPacket(pair_.near.get(), Bytes("x"), {}, fds).code(), StatusCode::kInvalidArgument);
}

TEST_F(SeqPacket, FewerDescriptorsThanAllowedAreTheCallersBusiness) {
  const std::array<int, 1> fds = {null_.get()};
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("x"), {}, fds).ok());
  Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 5);
  ASSERT_TRUE(packet.ok());
  EXPECT_EQ(packet->fds.size(), 1u);
}

TEST_F(SeqPacket, DescriptorsPushedWhenNoneAreAllowedAreNeverReceived) {
  for (const size_t count : {1, 2, 4, 253}) {
    PushDescriptors(pair_.near.get(), "push", count, null_.get());
    const Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 0);
    EXPECT_EQ(packet.status().code(), StatusCode::kInvalidArgument) << count;
    EXPECT_EQ(CountDescriptors(), baseline_) << count;
  }
}

TEST_F(SeqPacket, OneDescriptorTooManyIsRefusedAndClosed) {
  // Odd and even: the control buffer's padding could hold one more.
  for (size_t allowed = 1; allowed <= 4; ++allowed) {
    for (const size_t extra : {1, 2, 100}) {
      PushDescriptors(pair_.near.get(), "push", allowed + extra, null_.get());
      const Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, allowed);
      EXPECT_EQ(packet.status().code(), StatusCode::kInvalidArgument) << allowed << "+" << extra;
      EXPECT_EQ(CountDescriptors(), baseline_) << allowed << "+" << extra;
    }
  }
}

TEST_F(SeqPacket, OversizedPacketIsRefusedWithItsDescriptors) {
  const std::string big(100, 'x');
  PushDescriptors(pair_.near.get(), big, 1, null_.get());
  const Result<ReceivedPacket> packet =
      ReceivePacket(pair_.far.get(), std::span(buffer_).first(99), 1);
  EXPECT_EQ(packet.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CountDescriptors(), baseline_);
  // The rest of it is gone: the next packet is the next packet.
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("next"), {}, {}).ok());
  const Result<ReceivedPacket> next = ReceivePacket(pair_.far.get(), buffer_, 0);
  ASSERT_TRUE(next.ok());
  EXPECT_EQ(next->size, 4u);
}

TEST_F(SeqPacket, DescriptorLimitOfThisProcessIsNamed) {
  const std::vector<int> fds(20, null_.get());
  ASSERT_TRUE(SendPacket(pair_.near.get(), Bytes("x"), {}, fds).ok());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // Room for some of the twenty.
  rlimit low = before;
  const UniqueFd lowest_free(dup(null_.get()));
  low.rlim_cur = static_cast<rlim_t>(lowest_free.get() + 5);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 20);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(packet.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(packet.status().message().find("ulimit -n"), std::string::npos);
  EXPECT_EQ(CountDescriptors(), baseline_ + 1);
}

TEST_F(SeqPacket, EmptyAndOversizedPacketsAreNotSent) {
  EXPECT_EQ(SendPacket(pair_.near.get(), {}, {}, {}).code(), StatusCode::kInvalidArgument);
  const std::string big(kMaxPacketBytes, 'x');
  EXPECT_EQ(SendPacket(pair_.near.get(), Bytes("y"), Bytes(big), {}).code(),
            StatusCode::kInvalidArgument);
  EXPECT_TRUE(SendPacket(pair_.near.get(), {}, Bytes(big), {}).ok());
  const Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 0);
  ASSERT_TRUE(packet.ok());
  EXPECT_EQ(packet->size, kMaxPacketBytes);
}

TEST_F(SeqPacket, EmptySocketAndFullSocketSayDeadlineExceeded) {
  EXPECT_EQ(ReceivePacket(pair_.far.get(), buffer_, 0).status().code(),
            StatusCode::kDeadlineExceeded);
  Status status;
  int sent = 0;
  while ((status = SendPacket(pair_.near.get(), Bytes("x"), {}, {})).ok()) ++sent;
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  for (int i = 0; i < sent; ++i) EXPECT_TRUE(ReceivePacket(pair_.far.get(), buffer_, 0).ok());
}

TEST_F(SeqPacket, PeerThatIsGoneIsSeenFromBothSides) {
  Pair pair = MakePair();
  pair.near.Reset();
  const Result<ReceivedPacket> packet = ReceivePacket(pair.far.get(), buffer_, 1);
  ASSERT_TRUE(packet.ok());
  EXPECT_TRUE(packet->closed);
  EXPECT_EQ(packet->size, 0u);
  // Would raise SIGPIPE, and end this test, without MSG_NOSIGNAL.
  EXPECT_EQ(SendPacket(pair.far.get(), Bytes("x"), {}, {}).code(), StatusCode::kUnavailable);
}

TEST_F(SeqPacket, PeerThatLeavesWithUnreadPacketsIsClosedNotAnError) {
  Pair pair = MakePair();
  ASSERT_TRUE(SendPacket(pair.far.get(), Bytes("never read"), {}, {}).ok());
  pair.near.Reset();
  const Result<ReceivedPacket> packet = ReceivePacket(pair.far.get(), buffer_, 0);
  ASSERT_TRUE(packet.ok()) << packet.status().ToString();
  EXPECT_TRUE(packet->closed);
}

TEST_F(SeqPacket, EmptyPacketEndsTheConversationAndItsDescriptorsAreClosed) {
  PushDescriptors(pair_.near.get(), "", 1, null_.get());
  const Result<ReceivedPacket> packet = ReceivePacket(pair_.far.get(), buffer_, 1);
  ASSERT_TRUE(packet.ok());
  EXPECT_TRUE(packet->closed);
  EXPECT_TRUE(packet->fds.empty());
}

class Places : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/trims-ipc-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    baseline_ = CountDescriptors();
  }
  void TearDown() override {
    EXPECT_EQ(CountDescriptors(), baseline_) << "descriptors leaked";
    const std::string command = "rm -rf '" + directory_ + "'";
    EXPECT_EQ(system(command.c_str()), 0);
  }
  std::string Path(const std::string& name = "lease.sock") const { return directory_ + "/" + name; }

  std::string directory_;
  int baseline_ = 0;
};

TEST_F(Places, ListenerIsReachedAndHasTheModeAskedFor) {
  for (const mode_t mode : {0600u, 0660u, 0666u}) {
    Result<UniqueFd> listener = ListenAt(Path(), SOCK_SEQPACKET, mode);
    ASSERT_TRUE(listener.ok()) << listener.status().ToString();
    struct stat info;
    ASSERT_EQ(stat(Path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
    EXPECT_TRUE(fcntl(listener->get(), F_GETFD) & FD_CLOEXEC);
    Result<UniqueFd> client = ConnectTo(Path(), SOCK_SEQPACKET);
    ASSERT_TRUE(client.ok()) << client.status().ToString();
    const UniqueFd served(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(served.valid());
    EXPECT_TRUE(SendPacket(client->get(), Bytes("hello"), {}, {}).ok());
  }
}

TEST_F(Places, PathLongerThanASocketAddressWorks) {
  std::string deep = directory_;
  while (deep.size() < 150) {
    deep += "/" + std::string(40, 'd');
    ASSERT_EQ(mkdir(deep.c_str(), 0755), 0);
  }
  Result<UniqueFd> listener = ListenAt(deep + "/lease.sock", SOCK_SEQPACKET, 0600);
  ASSERT_TRUE(listener.ok()) << listener.status().ToString();
  Result<UniqueFd> client = ConnectTo(deep + "/lease.sock", SOCK_SEQPACKET);
  EXPECT_TRUE(client.ok()) << client.status().ToString();
}

TEST_F(Places, ListeningNeverRemovesAnythingButASocket) {
  const UniqueFd file(open(Path().c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  EXPECT_EQ(ListenAt(Path(), SOCK_SEQPACKET, 0600).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(access(Path().c_str(), F_OK), 0);
}

TEST_F(Places, MissingSocketAndDeadSocketHaveDifferentCodes) {
  EXPECT_EQ(ConnectTo(Path(), SOCK_SEQPACKET).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ConnectTo(Path("no/lease.sock"), SOCK_SEQPACKET).status().code(),
            StatusCode::kNotFound);
  ASSERT_TRUE(ListenAt(Path(), SOCK_SEQPACKET, 0600).ok());  // Closed at once; the inode stays.
  EXPECT_EQ(ConnectTo(Path(), SOCK_SEQPACKET).status().code(), StatusCode::kUnavailable);
}

TEST_F(Places, WorldWritableDirectoryIsRefused) {
  Result<UniqueFd> listener = ListenAt(Path(), SOCK_SEQPACKET, 0600);
  ASSERT_TRUE(listener.ok());
  for (const mode_t mode : {0777u, 01777u, 0702u}) {
    ASSERT_EQ(chmod(directory_.c_str(), mode), 0);
    const Status status = ConnectTo(Path(), SOCK_SEQPACKET).status();
    EXPECT_EQ(status.code(), StatusCode::kPermissionDenied);
    EXPECT_NE(status.message().find(directory_), std::string::npos);
  }
  ASSERT_EQ(chmod(directory_.c_str(), 0770), 0);
  EXPECT_TRUE(ConnectTo(Path(), SOCK_SEQPACKET).ok());
}

TEST_F(Places, SymbolicLinksAreRefused) {
  Result<UniqueFd> listener = ListenAt(Path(), SOCK_SEQPACKET, 0600);
  ASSERT_TRUE(listener.ok());
  ASSERT_EQ(symlink(Path().c_str(), Path("link.sock").c_str()), 0);
  EXPECT_EQ(ConnectTo(Path("link.sock"), SOCK_SEQPACKET).status().code(),
            StatusCode::kPermissionDenied);
  ASSERT_EQ(mkdir(Path("sub").c_str(), 0755), 0);
  ASSERT_EQ(symlink(directory_.c_str(), Path("sub/place").c_str()), 0);
  EXPECT_EQ(ConnectTo(Path("sub/place/lease.sock"), SOCK_SEQPACKET).status().code(),
            StatusCode::kPermissionDenied);
}

TEST_F(Places, OtherKindsOfFileAreRefused) {
  ASSERT_EQ(mkdir(Path("directory").c_str(), 0755), 0);
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  for (const char* name : {"directory", "fifo"}) {
    EXPECT_EQ(ConnectTo(Path(name), SOCK_SEQPACKET).status().code(), StatusCode::kInvalidArgument)
        << name;
  }
  for (const char* name : {"", ".", ".."}) {
    EXPECT_EQ(ConnectTo(Path(name), SOCK_SEQPACKET).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(ListenAt(Path(name), SOCK_SEQPACKET, 0600).status().code(),
              StatusCode::kInvalidArgument);
  }
}

TEST_F(Places, DirectoryAndSocketOfSomebodyElseAreRefusedUnlessExpected) {
  if (geteuid() != 0) GTEST_SKIP() << "giving files to another uid needs root";
  constexpr uid_t kStranger = 65534;
  constexpr uid_t kSelf = 4242;
  Result<UniqueFd> listener = ListenAt(Path(), SOCK_SEQPACKET, 0666);
  ASSERT_TRUE(listener.ok());
  ASSERT_EQ(chmod(directory_.c_str(), 0755), 0);
  const auto connect_as_other = [&](uid_t expected) {
    // In a child: the effective uid belongs to the process.
    const pid_t child = fork();
    if (child == 0) {
      if (setresuid(kSelf, kSelf, kSelf) != 0) _exit(100);
      _exit(static_cast<int>(ConnectTo(Path(), SOCK_SEQPACKET, expected).status().code()));
    }
    int status = 0;
    waitpid(child, &status, 0);
    return static_cast<StatusCode>(WEXITSTATUS(status));
  };
  constexpr uid_t kNobodyElse = static_cast<uid_t>(-1);
  EXPECT_EQ(connect_as_other(kNobodyElse), StatusCode::kOk) << "root's socket in root's directory";

  ASSERT_EQ(chown(Path().c_str(), kStranger, kStranger), 0);
  EXPECT_EQ(connect_as_other(kNobodyElse), StatusCode::kPermissionDenied) << "stranger's socket";
  EXPECT_EQ(connect_as_other(kStranger), StatusCode::kOk);

  ASSERT_EQ(chown(Path().c_str(), 0, 0), 0);
  ASSERT_EQ(chown(directory_.c_str(), kStranger, kStranger), 0);
  EXPECT_EQ(connect_as_other(kNobodyElse), StatusCode::kPermissionDenied) << "stranger's directory";
  EXPECT_EQ(connect_as_other(kStranger), StatusCode::kOk);

  ASSERT_EQ(chown(Path().c_str(), kSelf, kSelf), 0);
  ASSERT_EQ(chown(directory_.c_str(), kSelf, kSelf), 0);
  EXPECT_EQ(connect_as_other(kNobodyElse), StatusCode::kOk) << "one's own";
}

TEST_F(Places, PidfdTellsWhenTheConnectedProcessDies) {
  Result<UniqueFd> listener = ListenAt(Path(), SOCK_SEQPACKET, 0600);
  ASSERT_TRUE(listener.ok());
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    write_end.Reset();
    const Result<UniqueFd> socket = ConnectTo(Path(), SOCK_SEQPACKET);
    char byte;
    (void)!read(read_end.get(), &byte, 1);  // Until the parent lets go.
    _exit(socket.ok() ? 0 : 1);
  }
  const UniqueFd served(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(served.valid());
  Result<PeerIdentity> peer = GetPeerIdentity(served.get());
  ASSERT_TRUE(peer.ok()) << peer.status().ToString();
  EXPECT_EQ(peer->pid, child);
  EXPECT_EQ(peer->uid, geteuid());
  EXPECT_EQ(peer->gid, getegid());
  ASSERT_TRUE(peer->pidfd.valid());
  EXPECT_TRUE(fcntl(peer->pidfd.get(), F_GETFD) & FD_CLOEXEC);

  pollfd watch = {peer->pidfd.get(), POLLIN, 0};
  EXPECT_EQ(poll(&watch, 1, 0), 0) << "the peer lives";
  ASSERT_EQ(kill(child, SIGKILL), 0);
  EXPECT_EQ(poll(&watch, 1, 60'000), 1);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

TEST(PeerIdentity, DescriptorThatIsNoSocketIsAnError) {
  const UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(GetPeerIdentity(null.get()).ok());
}

}  // namespace
}  // namespace trims

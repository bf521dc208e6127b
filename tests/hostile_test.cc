// Clients that do not behave: whatever one sends or tries, it costs that client
// its connection and nobody else anything, and the weights stay as they are.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <csetjmp>
#include <memory>

#include "ipc/test_huge_pages.h"
#include "tests/raw_client.h"
#include "tests/test_control.h"
#include "tests/test_daemon.h"

#ifndef F_ADD_SEALS
#include <linux/fcntl.h>
#endif

namespace trims::testing_support {
namespace {

constexpr uid_t kOtherUid = 4003;

class HostileTest : public testing::Test {
 protected:
  HostileTest()
      : daemon_({"--sessions-per-uid-max", "200"}), model_(PatternModel(50, 3, 3'000'000)) {
    daemon_.WriteModel("m", model_);
  }
  // The daemon serves, the model is right, and no descriptor was kept.
  void ExpectUnharmed() {
    trims_client* client = daemon_.Connect();
    trims_lease* lease = nullptr;
    ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
    EXPECT_TRUE(HoldsModel(lease, model_));
    trims_lease_close(lease);
    trims_client_disconnect(client);
    TestControl control(daemon_.runtime_dir());
    EXPECT_TRUE(Eventually([&] { return control.Status().sessions() == 0; }));
    EXPECT_EQ(control.Status().leases(), 0u);
    EXPECT_EQ(control.Status().worker_restarts(), 0u) << daemon_.Log();
  }
  TestDaemon daemon_;
  std::vector<format::TestTensor> model_;
};

sigjmp_buf fault_jump;
void OnFault(int) { siglongjmp(fault_jump, 1); }

// True when `write` faults instead of writing.
bool Faults(const std::function<void()>& write) {
  struct sigaction action {};
  action.sa_handler = OnFault;
  ::sigaction(SIGSEGV, &action, nullptr);
  ::sigaction(SIGBUS, &action, nullptr);
  if (sigsetjmp(fault_jump, 1) != 0) return true;
  write();
  return false;
}

// Everything a process can try with the descriptor of an extent. Returns the
// number of the first attempt that worked, 0 when none did.
int TryToWrite(int fd, size_t size) {
  void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) return 1;
  auto* bytes = static_cast<volatile unsigned char*>(mapping);
  const unsigned char before = bytes[0];
  if (!Faults([&] { bytes[0] = static_cast<unsigned char>(before + 1); })) return 2;
  if (::mprotect(mapping, size, PROT_READ | PROT_WRITE) == 0) return 3;
  if (::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) return 4;
  if (::write(fd, "x", 1) > 0 || ::pwrite(fd, "x", 1, 0) > 0) return 5;
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) return 6;
  if (::fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 4096) == 0) return 7;
  if (::madvise(mapping, size, MADV_REMOVE) == 0) return 8;
  if (::ftruncate(fd, 0) == 0 || ::ftruncate(fd, static_cast<off_t>(size * 2)) == 0) return 9;
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  for (const int flags : {O_RDWR, O_WRONLY, O_RDWR | O_TRUNC}) {
    const int again = ::open(path.c_str(), flags);
    if (again < 0) continue;
    // Root may open it so; the seals hold all the same.
    if (::pwrite(again, "x", 1, 0) > 0) return 10;
    if (::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) != MAP_FAILED)
      return 11;
    if (::fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) return 12;
    if (::ftruncate(again, 0) == 0) return 13;
    void* writable = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, again, 0);
    if (writable != MAP_FAILED && ::mprotect(writable, size, PROT_READ | PROT_WRITE) == 0)
      return 14;
    if (writable != MAP_FAILED && ::madvise(writable, size, MADV_REMOVE) == 0) return 15;
    ::close(again);
  }
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) return 16;
  if (bytes[0] != before) return 17;
  return 0;
}

int AttackExtents(const std::string& runtime_dir) {
  RawClient client(runtime_dir);
  if (!client.connected() || !client.Greet() || !client.SendOpen(2, "m")) return 100;
  const RawPacket opened = client.Receive();
  if (opened.closed || opened.header.type != FrameType::kOpened || opened.fds.size() != 2)
    return 101;
  const auto* message = opened.As<v1::Opened>();
  if (message == nullptr) return 102;
  if (const int worked = TryToWrite(opened.fds[0].get(), message->index_bytes()); worked != 0)
    return worked;
  return TryToWrite(opened.fds[1].get(), message->extent_bytes()->Get(0));
}

TEST_F(HostileTest, AnotherUidCanNotWriteTheWeightsOrTheIndexInAnyWay) {
  if (::geteuid() != 0) {
    std::printf("not root: the attacks run under this test's own uid\n");
  }
  const pid_t child = StartChild([&] { return AttackExtents(daemon_.runtime_dir()); }, kOtherUid);
  EXPECT_EQ(WaitChild(child), 0) << "the attempt of that number in TryToWrite worked";
  ExpectUnharmed();
}

TEST_F(HostileTest, EvenRootCanNotWriteThem) {
  const pid_t child = StartChild([&] { return AttackExtents(daemon_.runtime_dir()); });
  EXPECT_EQ(WaitChild(child), 0) << "the attempt of that number in TryToWrite worked";
  ExpectUnharmed();
}

TEST(HostileHugePagesTest, AnotherUidCanNotWriteHugetlbWeightsEither) {
  const ReservedHugePages pages(40);
  if (!pages.reason().empty()) GTEST_SKIP() << pages.reason();
  {
    TestDaemon daemon;
    const auto model = PatternModel(51, 3, 24'000'000);
    daemon.WriteModel("m", model);
    const pid_t child = StartChild(
        [&] {
          RawClient client(daemon.runtime_dir());
          if (!client.Greet() || !client.SendOpen(2, "m")) return 100;
          const RawPacket opened = client.Receive();
          if (opened.fds.size() != 2) return 101;
          struct stat info;
          if (::fstat(opened.fds[1].get(), &info) != 0 || info.st_blksize != 2 << 20)
            return 102;  // Not hugetlb.
          return TryToWrite(opened.fds[1].get(), static_cast<size_t>(info.st_size));
        },
        kOtherUid);
    EXPECT_EQ(WaitChild(child), 0) << "the attempt of that number in TryToWrite worked";
    trims_client* client = daemon.Connect();
    trims_lease* lease = nullptr;
    ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
    EXPECT_TRUE(HoldsModel(lease, model));
    trims_lease_close(lease);
    trims_client_disconnect(client);
  }
}

TEST_F(HostileTest, BadFramesCostTheirSenderTheConnection) {
  const auto header = [](uint32_t magic, uint16_t type, uint16_t flags) {
    std::vector<std::byte> bytes(kFrameHeaderBytes);
    std::memcpy(bytes.data(), &magic, 4);
    std::memcpy(bytes.data() + 4, &type, 2);
    std::memcpy(bytes.data() + 6, &flags, 2);
    return bytes;
  };
  std::vector<std::vector<std::byte>> packets = {
      std::vector<std::byte>(1),
      std::vector<std::byte>(15),
      std::vector<std::byte>(kFrameHeaderBytes),
      header(kFrameMagic, 0, 0),
      header(kFrameMagic, 2, 0),
      header(kFrameMagic, 3, 0),
      header(kFrameMagic, 5, 0),
      header(kFrameMagic, 6, 0),
      header(kFrameMagic, 66, 0),
      header(kFrameMagic, 9999, 0),
      header(kFrameMagic, 7, 0x80),
      header(0x12345678, 7, 0),
      header(kFrameMagic, 1, 0),
  };
  packets.push_back(header(kFrameMagic, 2, 0));
  packets.back().resize(60'000, std::byte{0xFF});
  for (const auto& packet : packets) {
    RawClient client(daemon_.runtime_dir());
    ASSERT_TRUE(client.Greet());
    client.SendBytes(packet);
    EXPECT_TRUE(client.Receive().closed) << packet.size();
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, BeforeHelloNothingElseIsHeard) {
  for (const FrameType type :
       {FrameType::kOpen, FrameType::kClose, FrameType::kPing, FrameType::kReattach}) {
    RawClient client(daemon_.runtime_dir());
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateOpenDirect(builder, "m"));
    client.Send(type, 1, builder);
    EXPECT_TRUE(client.Receive().closed);
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, AnotherMajorVersionIsRefusedInWords) {
  RawClient client(daemon_.runtime_dir());
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateHelloDirect(builder, 99, 0, "from the future"));
  client.Send(FrameType::kHello, 1, builder);
  const RawPacket answer = client.Receive();
  ASSERT_EQ(answer.header.type, FrameType::kFailed);
  EXPECT_NE(answer.As<v1::Failed>()->message()->str().find("protocol 1"), std::string::npos);
  EXPECT_TRUE(client.Receive().closed);
}

TEST_F(HostileTest, PushedDescriptorsAreClosedAndEndTheSession) {
  ExpectUnharmed();
  const int before = CountDescriptors(*daemon_.Worker());
  UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (int i = 0; i < 20; ++i) {
    RawClient client(daemon_.runtime_dir());
    ASSERT_TRUE(client.Greet());
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreatePing(builder));
    client.Send(FrameType::kPing, 5, builder, std::vector<int>(i % 2 == 0 ? 1 : 200, file.get()));
    EXPECT_TRUE(client.Receive().closed);
  }
  // Before hello, descriptors do not even arrive.
  RawClient early(daemon_.runtime_dir());
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateHelloDirect(builder, kProtocolMajor, kProtocolMinor, "raw"));
  early.Send(FrameType::kHello, 1, builder, std::vector<int>(100, file.get()));
  (void)early.Receive();
  ExpectUnharmed();
  EXPECT_TRUE(Eventually([&] { return CountDescriptors(*daemon_.Worker()) <= before + 4; }))
      << CountDescriptors(*daemon_.Worker()) << " before: " << before;
}

TEST_F(HostileTest, PassedDescriptorsThatAreNoWeightsFilesAreRefusedInWords) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  UniqueFd read_end(pipe_fds[0]), write_end(pipe_fds[1]);
  UniqueFd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  UniqueFd path_only(::open("/etc/passwd", O_PATH | O_CLOEXEC));
  UniqueFd text(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
  UniqueFd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const std::string write_only_path = daemon_.root() + "/w";
  UniqueFd write_only(::open(write_only_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  auto owned = std::make_unique<RawClient>(daemon_.runtime_dir());
  RawClient& client = *owned;
  ASSERT_TRUE(client.Greet());
  uint64_t request = 10;
  for (const UniqueFd* fd :
       {&read_end, &write_end, &directory, &path_only, &text, &zero, &socket, &write_only}) {
    flatbuffers::FlatBufferBuilder builder;
    const auto label = builder.CreateString("attack");
    const auto options = v1::CreateOpenDirect(builder, "");
    builder.Finish(v1::CreateOpenFile(builder, label, options));
    ASSERT_TRUE(client.Send(FrameType::kOpenFile, ++request, builder, {fd->get()}));
    const RawPacket answer = client.Receive();
    ASSERT_FALSE(answer.closed);
    ASSERT_EQ(answer.header.type, FrameType::kFailed);
    EXPECT_EQ(answer.As<v1::Failed>()->code(), static_cast<int>(StatusCode::kInvalidArgument))
        << answer.As<v1::Failed>()->message()->str();
  }
  owned.reset();
  ExpectUnharmed();
}

TEST_F(HostileTest, AFileThatIsCutWhileItIsReadIsAnErrorOfThatOpenOnly) {
  const std::string path = daemon_.root() + "/shrinking.safetensors";
  const std::string bytes = format::WriteSafetensors(PatternModel(52, 40, 1'000'000));
  for (int round = 0; round < 5; ++round) {
    std::ofstream(path, std::ios::binary) << bytes;
    trims_client* client = daemon_.Connect();
    const int fd = ::open(path.c_str(), O_RDWR);
    std::thread cut([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(2 * round));
      (void)!::truncate(path.c_str(), 1000);
    });
    trims_lease* lease = nullptr;
    const trims_status status =
        trims_lease_open_file(client, fd, "shrinking", nullptr, &lease, nullptr);
    EXPECT_TRUE(status == TRIMS_OK || status == TRIMS_ABORTED || status == TRIMS_DATA_LOSS ||
                status == TRIMS_INVALID_ARGUMENT || status == TRIMS_OUT_OF_RANGE)
        << status;
    cut.join();
    trims_lease_close(lease);
    trims_client_disconnect(client);
    ::close(fd);
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, ASilentClientIsHungUpOnAndNobodyWaitsForIt) {
  RawClient silent(daemon_.runtime_dir());
  ASSERT_TRUE(silent.connected());
  trims_client* client = daemon_.Connect();
  EXPECT_EQ(trims_client_ping(client, nullptr), TRIMS_OK);
  trims_client_disconnect(client);
  EXPECT_TRUE(silent.Receive().closed);  // When its time for a hello is over.
  ExpectUnharmed();
}

TEST_F(HostileTest, AClientThatNeverReadsIsDroppedAndOthersAreServed) {
  RawClient deaf(daemon_.runtime_dir());
  ASSERT_TRUE(deaf.Greet());
  // Until the daemon hangs up: its buffers for this client are bounded.
  uint64_t request = 2;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreatePing(builder));
    if (!deaf.Send(FrameType::kPing, ++request, builder)) break;
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, SessionsOfOneUidAreBoundedAndOtherUidsAreServed) {
  std::vector<std::unique_ptr<RawClient>> crowd;
  int refused = 0, refused_in_words = 0;
  for (int i = 0; i < 260; ++i) {
    crowd.push_back(std::make_unique<RawClient>(daemon_.runtime_dir()));
    if (!crowd.back()->connected()) break;
    crowd.back()->SendHello();
    const RawPacket answer = crowd.back()->Receive();
    if (answer.closed) ++refused;  // The words were lost when both ends spoke at a time.
    if (answer.header.type == FrameType::kFailed) {
      ++refused;
      ++refused_in_words;
      EXPECT_NE(answer.As<v1::Failed>()->message()->str().find("sessions_per_uid_max"),
                std::string::npos);
    }
  }
  EXPECT_EQ(refused, 60);
  EXPECT_GT(refused_in_words, 0);
  if (::geteuid() == 0) {
    const pid_t other = StartChild(
        [&] {
          RawClient client(daemon_.runtime_dir());
          return client.Greet() ? 0 : 1;
        },
        kOtherUid);
    EXPECT_EQ(WaitChild(other), 0);
  }
  crowd.clear();
  ExpectUnharmed();
}

TEST_F(HostileTest, OpensInFlightOfOneSessionAreBounded) {
  const auto big = PatternModel(53, 20, 4'000'000);
  daemon_.WriteModel("big", big);
  RawClient client(daemon_.runtime_dir());
  ASSERT_TRUE(client.Greet());
  for (uint64_t request = 10; request < 110; ++request)
    ASSERT_TRUE(client.SendOpen(request, "big"));
  int leased = 0, refused = 0;
  for (int i = 0; i < 100; ++i) {
    const RawPacket answer = client.Receive();
    ASSERT_FALSE(answer.closed);
    if (answer.header.type == FrameType::kOpened) ++leased;
    if (answer.header.type == FrameType::kFailed) {
      ++refused;
      EXPECT_EQ(answer.As<v1::Failed>()->code(), static_cast<int>(StatusCode::kResourceExhausted));
    }
  }
  EXPECT_EQ(leased + refused, 100);
  EXPECT_GE(leased, 64);
}

TEST_F(HostileTest, LeasesOfOthersCanNotBeClosedAndADoubleCloseIsAnError) {
  RawClient mine(daemon_.runtime_dir());
  ASSERT_TRUE(mine.Greet());
  ASSERT_TRUE(mine.SendOpen(2, "m"));
  const RawPacket opened = mine.Receive();
  ASSERT_EQ(opened.header.type, FrameType::kOpened);
  const uint64_t lease = opened.As<v1::Opened>()->lease_id();
  const auto close = [lease](RawClient& client) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateClose(builder, lease, 0));
    client.Send(FrameType::kClose, 3, builder);
    return client.Receive();
  };
  RawClient thief(daemon_.runtime_dir());
  ASSERT_TRUE(thief.Greet());
  RawPacket answer = close(thief);
  ASSERT_EQ(answer.header.type, FrameType::kFailed);
  EXPECT_EQ(answer.As<v1::Failed>()->code(), static_cast<int>(StatusCode::kNotFound));
  EXPECT_EQ(close(mine).header.type, FrameType::kClosed);
  answer = close(mine);
  ASSERT_EQ(answer.header.type, FrameType::kFailed);
  EXPECT_EQ(answer.As<v1::Failed>()->code(), static_cast<int>(StatusCode::kNotFound));
}

}  // namespace
}  // namespace trims::testing_support

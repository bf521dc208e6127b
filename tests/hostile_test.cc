// Clients that do not behave: whatever one sends or tries, it costs that client
// its connection and nobody else anything, and the weights stay as they are.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <csetjmp>
#include <memory>
#include <set>

#include "base/limits.h"
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
  std::vector<std::byte> not_a_message = header(kFrameMagic, 2, 0);
  not_a_message.resize(60'000, std::byte{0xFF});
  const std::vector<std::pair<std::vector<std::byte>, std::string>> packets = {
      {std::vector<std::byte>(1), "packet of 1 bytes is shorter than a frame header"},
      {std::vector<std::byte>(15), "packet of 15 bytes is shorter than a frame header"},
      {std::vector<std::byte>(kFrameHeaderBytes), "does not start with the frame magic"},
      {header(0x12345678, 7, 0), "does not start with the frame magic"},
      {header(kFrameMagic, 0, 0), "unknown frame type 0"},
      {header(kFrameMagic, 9999, 0), "unknown frame type 9999"},
      {header(kFrameMagic, 7, 0x80), "unknown frame flags 128 in a frame of type 7"},
      {header(kFrameMagic, 1, 0), "second hello"},
      {header(kFrameMagic, 2, 0), "malformed Open"},
      {header(kFrameMagic, 3, 0), "OpenFile without its descriptor"},
      {header(kFrameMagic, 4, 0), "malformed Cancel"},
      {header(kFrameMagic, 5, 0), "malformed Close"},
      {header(kFrameMagic, 6, 0), "malformed Reattach"},
      {header(kFrameMagic, 7, 0), "message of type 7 is malformed or not for the daemon"},
      {header(kFrameMagic, 66, 0), "message of type 66 is malformed or not for the daemon"},
      {not_a_message, "malformed Open"},
  };
  for (const auto& [packet, reason] : packets) {
    RawClient client(daemon_.runtime_dir());
    ASSERT_TRUE(client.Greet());
    daemon_.ExpectSessionEnds(reason, 1);
    ASSERT_TRUE(client.SendBytes(packet));
    EXPECT_TRUE(client.Receive().closed) << reason;
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, BeforeHelloNothingElseIsHeard) {
  for (const FrameType type :
       {FrameType::kOpen, FrameType::kClose, FrameType::kPing, FrameType::kReattach}) {
    RawClient client(daemon_.runtime_dir());
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateOpenDirect(builder, "m"));
    daemon_.ExpectSessionEnds("first message is not a hello", 1);
    ASSERT_TRUE(client.Send(type, 1, builder));
    EXPECT_TRUE(client.Receive().closed);
  }
  ExpectUnharmed();
}

TEST_F(HostileTest, AnotherMajorVersionIsRefusedInWords) {
  RawClient client(daemon_.runtime_dir());
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateHelloDirect(builder, 99, 0, "from the future"));
  daemon_.ExpectSessionEnds("protocol of another major version", 1);
  ASSERT_TRUE(client.Send(FrameType::kHello, 1, builder));
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
    daemon_.ExpectSessionEnds(i % 2 == 0 ? "descriptor with a message that takes none"
                                         : "more than the 1 descriptors allowed came with it",
                              1);
    ASSERT_TRUE(client.Send(FrameType::kPing, 5, builder,
                            std::vector<int>(i % 2 == 0 ? 1 : 200, file.get())));
    EXPECT_TRUE(client.Receive().closed);
  }
  // Before hello, descriptors do not even arrive.
  daemon_.ExpectSessionEnds("more than the 0 descriptors allowed came with it", 1);
  RawClient early(daemon_.runtime_dir());
  flatbuffers::FlatBufferBuilder builder;
  builder.Finish(v1::CreateHelloDirect(builder, kProtocolMajor, kProtocolMinor, "raw"));
  ASSERT_TRUE(early.Send(FrameType::kHello, 1, builder, std::vector<int>(100, file.get())));
  EXPECT_TRUE(early.Receive().closed);
  ExpectUnharmed();
  // The connections of ExpectUnharmed's calls end in their own time.
  EXPECT_TRUE(Eventually([&] { return CountDescriptors(*daemon_.Worker()) <= before; }))
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

// What an open of a file answers that somebody cuts meanwhile, by when that is.
TEST_F(HostileTest, AFileThatIsCutWhileItIsReadIsAnErrorOfThatOpenOnly) {
  const auto model = PatternModel(52, 40, 1'000'000);
  const std::string path = daemon_.root() + "/shrinking.safetensors";
  const std::string bytes = format::WriteSafetensors(model);
  // Cuts the file when an open reaches a phase, which goes on in the daemon.
  struct Cut {
    std::string path;
    trims_phase at;
    bool done = false;
    void Now() {
      ASSERT_EQ(::truncate(path.c_str(), 1000), 0);
      done = true;
    }
  };
  constexpr trims_phase kBefore = -1, kAfter = -2;
  for (const trims_phase when : std::initializer_list<trims_phase>{
           kBefore, TRIMS_PHASE_RESOLVING, TRIMS_PHASE_HASHING, TRIMS_PHASE_LOADING, kAfter}) {
    std::ofstream(path, std::ios::binary) << bytes;
    trims_client* client = daemon_.Connect();
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    Cut cut{path, when};
    if (when == kBefore) cut.Now();
    trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
    options.progress_user = &cut;
    options.progress = [](void* user, trims_phase phase, uint64_t, uint64_t) {
      auto* const mine = static_cast<Cut*>(user);
      if (phase == mine->at && !mine->done) mine->Now();
      return 0;
    };
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    const trims_status status =
        trims_lease_open_file(client, fd, "shrinking", &options, &lease, &error);
    const std::string message = trims_error_message(error);
    if (when == kAfter) cut.Now();
    if (status == TRIMS_OK) {
      // Every byte had been read, and what was lent stays as it was.
      EXPECT_NE(when, kBefore);
      EXPECT_TRUE(HoldsModel(lease, model)) << when;
    } else {
      EXPECT_NE(when, kAfter) << message;
      // Seen while it was read; or whoever then looked again saw a short file.
      const bool seen = status == TRIMS_ABORTED && when != kBefore;
      EXPECT_EQ(status, seen ? TRIMS_ABORTED : TRIMS_INVALID_ARGUMENT) << message;
      EXPECT_NE(message.find(seen ? "changed while it was being read" : "is truncated"),
                std::string::npos)
          << message;
    }
    trims_error_free(error);
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
  daemon_.ExpectSessionEnds("no hello in time", 1);
  EXPECT_TRUE(silent.Receive().closed);  // When its time for a hello is over.
  ExpectUnharmed();
}

TEST_F(HostileTest, AClientThatNeverReadsIsDroppedAndOthersAreServed) {
  RawClient deaf(daemon_.runtime_dir());
  ASSERT_TRUE(deaf.Greet());
  // Until the daemon hangs up: its buffers for this client are bounded.
  daemon_.ExpectSessionEnds("does not read its answers", 1);
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
  constexpr int kAllowed = 200, kTooMany = 60;
  std::vector<std::unique_ptr<RawClient>> crowd;
  for (int i = 0; i < kAllowed; ++i) {
    crowd.push_back(std::make_unique<RawClient>(daemon_.runtime_dir()));
    ASSERT_TRUE(crowd.back()->Greet()) << i;
  }
  daemon_.ExpectSessionEnds("too many sessions of one uid", kTooMany);
  for (int i = 0; i < kTooMany; ++i) {
    // Says nothing: whoever speaks while the daemon hangs up may lose its words.
    RawClient refused(daemon_.runtime_dir());
    const RawPacket answer = refused.Receive();
    ASSERT_FALSE(answer.closed) << i;
    ASSERT_EQ(answer.header.type, FrameType::kFailed);
    const auto* const failed = answer.As<v1::Failed>();
    EXPECT_EQ(failed->code(), static_cast<int>(StatusCode::kResourceExhausted));
    EXPECT_NE(failed->message()->str().find("sessions_per_uid_max"), std::string::npos);
    EXPECT_TRUE(refused.Receive().closed);
  }
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
  // All are there before the worker sees the first, so it takes them in a few turns of its loop,
  // and reading and hashing 80 MB takes many times that: none is answered before the last is seen.
  constexpr int kSent = 100;
  const pid_t worker = *daemon_.Worker();
  ASSERT_EQ(::kill(worker, SIGSTOP), 0);
  for (uint64_t i = 0; i < kSent; ++i) ASSERT_TRUE(client.SendOpen(10 + i, "big"));
  ASSERT_EQ(::kill(worker, SIGCONT), 0);
  std::set<uint64_t> leased, refused, leases;
  for (int i = 0; i < kSent; ++i) {
    const RawPacket answer = client.Receive();
    ASSERT_FALSE(answer.closed);
    if (answer.header.type == FrameType::kOpened) {
      leased.insert(answer.header.request_id);
      leases.insert(answer.As<v1::Opened>()->lease_id());
      continue;
    }
    ASSERT_EQ(answer.header.type, FrameType::kFailed);
    EXPECT_EQ(answer.As<v1::Failed>()->code(), static_cast<int>(StatusCode::kResourceExhausted));
    refused.insert(answer.header.request_id);
  }
  std::set<uint64_t> first, others;
  for (uint64_t i = 0; i < kSent; ++i)
    (i < kMaxOpensInFlightPerSession ? first : others).insert(10 + i);
  EXPECT_EQ(leased, first);
  EXPECT_EQ(leases.size(), first.size());
  EXPECT_EQ(refused, others);
  // Each that was answered makes room for one more.
  ASSERT_TRUE(client.SendOpen(1000, "big"));
  EXPECT_EQ(client.Receive().header.type, FrameType::kOpened);
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

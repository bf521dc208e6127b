#include "daemon/lease_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../tests/raw_client.h"
#include "base/limits.h"
#include "daemon/test_trunk.h"
#include "ipc/region.h"

namespace trims {
namespace {

using flatbuffers::FlatBufferBuilder;
using testing_support::RawClient;
using testing_support::RawPacket;

constexpr char kUuid[] = "GPU-11111111-2222-3333-4444-555555555555";

// --- What the tests stand on --------------------------------------------------------

bool IsReadable(int fd) {
  pollfd ready{fd, POLLIN, 0};
  return ::poll(&ready, 1, 0) == 1;
}

// Runs `work` in a child, which then waits for its end. The child hears and says nothing but
// bytes on a socket pair.
class Child final {
 public:
  explicit Child(const std::function<void(int link)>& work) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    link_ = UniqueFd(pair[0]);
    UniqueFd theirs(pair[1]);
    pid_ = ::fork();
    if (pid_ != 0) return;
    link_.Reset();
    work(theirs.get());
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  ~Child() {
    link_.Reset();
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    Reap();
  }
  // One byte: go on.
  void Tell() { EXPECT_EQ(::write(link_.get(), "x", 1), 1); }
  void Hear() {
    char byte;
    EXPECT_EQ(::read(link_.get(), &byte, 1), 1);
  }
  // Returns when it has exited; nobody has waited for it yet.
  void WaitUntilGone() const {
    siginfo_t info;
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT), 0);
  }
  int Reap() {
    int status = 0;
    if (pid_ > 0) ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

  // For the child.
  static void Say(int link) { (void)!::write(link, "x", 1); }
  static void Listen(int link) {
    char byte;
    if (::read(link, &byte, 1) != 1) ::_exit(9);
  }

 private:
  UniqueFd link_;
  pid_t pid_ = -1;
};

struct OpenWords {
  std::string model = "a";
  v1::TierKind tier = v1::TierKind::Host;
  std::string uuid;
  v1::Granularity granularity = v1::Granularity::Model;
  std::vector<uint8_t> digest;
  uint64_t deadline_ms = 0;
  bool want_progress = false;
  int64_t keep_alive_ms = -2;
};

flatbuffers::Offset<v1::Open> MakeOpen(FlatBufferBuilder& builder, const OpenWords& words) {
  return v1::CreateOpenDirect(builder, words.model.c_str(), words.tier,
                              words.uuid.empty() ? nullptr : words.uuid.c_str(), words.granularity,
                              words.digest.empty() ? nullptr : &words.digest, words.deadline_ms,
                              words.want_progress, words.keep_alive_ms);
}

// Drives the loop itself: the server does something only while the test waits for it.
class LeaseServerTest : public testing::Test {
 protected:
  void Start(LeaseServer::Options options = {}, TestTrunk::Options trunk = {}) {
    trunk_ = std::make_unique<TestTrunk>(std::move(trunk));
    trunk_->AddModel("a");
    trunk_->Serve(options);
  }
  LeaseServer& server() { return trunk_->lease_server(); }
  const store::Store& store() { return trunk_->registry().store(); }
  size_t leases() { return store().Leases().size(); }

  RawClient Connect() { return RawClient(trunk_->config().runtime_dir); }
  RawClient Greeted() {
    RawClient client = Connect();
    EXPECT_TRUE(client.SendHello());
    EXPECT_EQ(Receive(client).header.type, FrameType::kWelcome);
    return client;
  }
  RawPacket Receive(RawClient& client) {
    if (trunk_->RunUntil([&] { return IsReadable(client.fd()); })) return client.Receive();
    RawPacket closed;
    closed.closed = true;
    return closed;
  }
  // The final answer, whatever progress comes before it.
  RawPacket Answer(RawClient& client) {
    for (;;) {
      RawPacket packet = Receive(client);
      if (packet.closed || packet.header.type != FrameType::kProgress) return packet;
    }
  }
  void Turn(int turns = 4) {
    for (int i = 0; i < turns; ++i) trunk_->RunOnce();
  }

  static bool SendOpen(RawClient& client, uint64_t request, const OpenWords& words) {
    FlatBufferBuilder builder;
    builder.Finish(MakeOpen(builder, words));
    return client.Send(FrameType::kOpen, request, builder);
  }
  RawPacket Open(RawClient& client, uint64_t request, const OpenWords& words = {}) {
    EXPECT_TRUE(SendOpen(client, request, words));
    return Answer(client);
  }
  uint64_t Lease(RawClient& client, uint64_t request, const OpenWords& words = {}) {
    const RawPacket packet = Open(client, request, words);
    EXPECT_EQ(packet.header.type, FrameType::kOpened);
    return packet.header.type == FrameType::kOpened ? packet.As<v1::Opened>()->lease_id() : 0;
  }
  static bool SendPing(RawClient& client, uint64_t request) {
    FlatBufferBuilder builder;
    builder.Finish(v1::CreatePing(builder));
    return client.Send(FrameType::kPing, request, builder);
  }
  // Whether its session lives.
  bool Answers(RawClient& client) {
    if (!SendPing(client, 777)) return false;
    const RawPacket packet = Receive(client);
    return !packet.closed && packet.header.type == FrameType::kPong &&
           packet.header.request_id == 777;
  }
  static bool SendCancel(RawClient& client, uint64_t request) {
    FlatBufferBuilder builder;
    builder.Finish(v1::CreateCancel(builder, request));
    return client.Send(FrameType::kCancel, 0, builder);
  }
  RawPacket Close(RawClient& client, uint64_t request, uint64_t lease) {
    FlatBufferBuilder builder;
    builder.Finish(v1::CreateClose(builder, lease, 0));
    EXPECT_TRUE(client.Send(FrameType::kClose, request, builder));
    return Receive(client);
  }
  static bool SendReattach(RawClient& client, uint64_t request, const std::vector<uint8_t>& digest,
                           uint64_t generation,
                           v1::Granularity granularity = v1::Granularity::Model,
                           v1::TierKind tier = v1::TierKind::Host) {
    FlatBufferBuilder builder;
    builder.Finish(
        v1::CreateReattachDirect(builder, &digest, generation, tier, kUuid, granularity));
    return client.Send(FrameType::kReattach, request, builder);
  }
  static void ExpectFailed(const RawPacket& packet, uint64_t request, StatusCode code,
                           const std::string& words) {
    ASSERT_FALSE(packet.closed) << words;
    ASSERT_EQ(packet.header.type, FrameType::kFailed) << words;
    EXPECT_EQ(packet.header.request_id, request);
    const v1::Failed* const failed = packet.As<v1::Failed>();
    ASSERT_NE(failed, nullptr);
    EXPECT_EQ(failed->code(), static_cast<int>(code)) << failed->message()->str();
    EXPECT_NE(failed->message()->str().find(words), std::string::npos) << failed->message()->str();
  }
  void ExpectHungUp(RawClient& client, const std::string& why) {
    EXPECT_TRUE(Receive(client).closed) << why;
  }

  // Pings without reading until an answer has found no room and waits in the server's queue.
  // Returns how many pings that took; their request ids count from kFirstPing.
  static constexpr uint64_t kFirstPing = 10'000;
  int FillSocket(RawClient& client) {
    for (int sent = 1; sent < 100'000; ++sent) {
      const int before = UnreadBytes(client.fd());
      EXPECT_TRUE(SendPing(client, kFirstPing + static_cast<uint64_t>(sent) - 1));
      trunk_->RunOnce();
      if (UnreadBytes(client.fd()) == before) return sent;
    }
    ADD_FAILURE() << "the socket takes any number of packets";
    return 0;
  }
  static int UnreadBytes(int fd) {
    int bytes = 0;
    EXPECT_EQ(::ioctl(fd, FIONREAD, &bytes), 0);
    return bytes;
  }

  std::unique_ptr<TestTrunk> trunk_;
};

// --- Hello --------------------------------------------------------------------------

TEST_F(LeaseServerTest, HelloIsAnsweredWithTheInstanceAndTheSession) {
  LeaseServer::Options options;
  options.id_base = 40;
  options.daemon_instance = 7;
  Start(options);
  RawClient client = Connect();
  ASSERT_TRUE(client.SendHello());
  const RawPacket packet = Receive(client);
  ASSERT_EQ(packet.header.type, FrameType::kWelcome);
  const v1::Welcome* const welcome = packet.As<v1::Welcome>();
  EXPECT_EQ(packet.header.request_id, 1u);
  EXPECT_EQ(welcome->protocol_major(), kProtocolMajor);
  EXPECT_EQ(welcome->daemon_instance(), 7u);
  EXPECT_EQ(welcome->session_id(), 40u);
  const auto session = server().FindSession(40);
  ASSERT_TRUE(session.has_value());
  EXPECT_EQ(session->pid, ::getpid());
  EXPECT_EQ(session->uid, ::geteuid());
  EXPECT_EQ(session->gid, ::getegid());
  EXPECT_FALSE(server().FindSession(41).has_value());
  Greeted();
  EXPECT_TRUE(server().FindSession(41).has_value());
}

TEST_F(LeaseServerTest, BeforeHelloNothingElseIsHeard) {
  Start();
  RawClient ping = Connect();
  SendPing(ping, 2);
  ExpectHungUp(ping, "ping");
  RawClient open = Connect();
  SendOpen(open, 2, {});
  ExpectHungUp(open, "open");
  RawClient cancel = Connect();
  SendCancel(cancel, 2);
  ExpectHungUp(cancel, "cancel");
  EXPECT_EQ(server().sessions(), 0u);
  EXPECT_EQ(leases(), 0u);
}

TEST_F(LeaseServerTest, ASecondHelloEndsTheSession) {
  Start();
  RawClient client = Greeted();
  ASSERT_TRUE(client.SendHello());
  ExpectHungUp(client, "hello");
}

TEST_F(LeaseServerTest, AnotherMajorVersionIsRefusedInWordsAndThenHungUpOn) {
  Start();
  RawClient client = Connect();
  FlatBufferBuilder builder;
  builder.Finish(v1::CreateHelloDirect(builder, kProtocolMajor + 1, 0, "future"));
  ASSERT_TRUE(client.Send(FrameType::kHello, 5, builder));
  ExpectFailed(Receive(client), 5, StatusCode::kFailedPrecondition, "lease protocol");
  ExpectHungUp(client, "version");
}

TEST_F(LeaseServerTest, WhoSaysNoHelloInTimeIsHungUpOnAndWhoDidStays) {
  LeaseServer::Options options;
  options.hello_deadline = std::chrono::milliseconds(30);
  Start(options);
  RawClient polite = Greeted();
  RawClient silent = Connect();
  ExpectHungUp(silent, "silence");  // The deadline is what ends the wait.
  EXPECT_TRUE(Answers(polite));
  EXPECT_EQ(server().sessions(), 1u);
}

// --- Frames -------------------------------------------------------------------------

constexpr FrameType kFromClients[] = {FrameType::kHello,  FrameType::kOpen,  FrameType::kOpenFile,
                                      FrameType::kCancel, FrameType::kClose, FrameType::kReattach,
                                      FrameType::kPing};
constexpr FrameType kFromDaemons[] = {
    FrameType::kWelcome, FrameType::kOpened,     FrameType::kOpenedMore, FrameType::kProgress,
    FrameType::kClosed,  FrameType::kReattached, FrameType::kPong,       FrameType::kFailed};

std::vector<std::byte> PacketOf(FrameType type, std::span<const std::byte> payload) {
  std::vector<std::byte> bytes(kFrameHeaderBytes);
  EncodeFrameHeader(FrameHeader{type, 0, 9},
                    std::span<std::byte, kFrameHeaderBytes>(bytes.data(), kFrameHeaderBytes));
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

TEST_F(LeaseServerTest, EveryMessageThatIsMalformedCostsItsSenderTheSessionAndNobodyElse) {
  Start();
  RawClient bystander = Greeted();
  const std::vector<std::byte> none;
  const std::vector<std::byte> zeros(64);
  const std::vector<std::byte> ones(64, std::byte{0xff});
  const std::vector<std::byte> cut = {std::byte{4}, std::byte{0}};
  for (const FrameType type : kFromClients) {
    for (const auto* payload : {&none, &zeros, &ones, &cut}) {
      RawClient client = Greeted();
      ASSERT_TRUE(client.SendBytes(PacketOf(type, *payload)));
      ExpectHungUp(client, "type " + std::to_string(static_cast<int>(type)) + ", " +
                               std::to_string(payload->size()) + " bytes");
    }
  }
  EXPECT_TRUE(Answers(bystander));
  EXPECT_EQ(server().sessions(), 1u);
}

TEST_F(LeaseServerTest, WhatOnlyADaemonSaysAndWhatIsNoFrameEndsTheSession) {
  Start();
  FlatBufferBuilder builder;
  builder.Finish(v1::CreatePing(builder));
  for (const FrameType type : kFromDaemons) {
    RawClient client = Greeted();
    ASSERT_TRUE(client.Send(type, 2, builder));
    ExpectHungUp(client, "type " + std::to_string(static_cast<int>(type)));
  }
  const std::vector<std::byte> good = PacketOf(FrameType::kPing, MessageBytes(builder));
  std::vector<std::vector<std::byte>> bad(4, good);
  bad[0][0] ^= std::byte{1};    // The magic number.
  bad[1][4] = std::byte{200};   // The type.
  bad[2][6] = std::byte{0x80};  // The flags.
  bad[3].resize(kFrameHeaderBytes - 1);
  for (const std::vector<std::byte>& packet : bad) {
    RawClient client = Greeted();
    ASSERT_TRUE(client.SendBytes(packet));
    ExpectHungUp(client, "frame");
  }
  RawClient client = Greeted();
  ASSERT_TRUE(client.SendBytes(good));
  EXPECT_EQ(Receive(client).header.type, FrameType::kPong);
}

TEST_F(LeaseServerTest, ADescriptorWhereNoneIsWelcomeIsClosedAndEndsTheSession) {
  Start();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto message = [](FrameType type, FlatBufferBuilder& builder) {
    switch (type) {
      case FrameType::kHello:
        return builder.Finish(v1::CreateHelloDirect(builder, 1, 0, "x"));
      case FrameType::kOpen:
        return builder.Finish(MakeOpen(builder, {}));
      case FrameType::kCancel:
        return builder.Finish(v1::CreateCancel(builder, 1));
      case FrameType::kClose:
        return builder.Finish(v1::CreateClose(builder, 1, 0));
      case FrameType::kReattach: {
        const std::vector<uint8_t> digest(32);
        return builder.Finish(v1::CreateReattachDirect(builder, &digest, 1));
      }
      default:
        return builder.Finish(v1::CreatePing(builder));
    }
  };
  const size_t before = OpenFdCount();
  for (const FrameType type : kFromClients) {
    if (type == FrameType::kOpenFile) continue;
    RawClient client = type == FrameType::kHello ? Connect() : Greeted();
    FlatBufferBuilder builder;
    message(type, builder);
    ASSERT_TRUE(client.Send(type, 2, builder, {null.get()}));
    ExpectHungUp(client, "type " + std::to_string(static_cast<int>(type)));
  }
  for (const size_t count : {0, 2, 250}) {  // OpenFile takes exactly one.
    RawClient client = Greeted();
    FlatBufferBuilder builder;
    const auto options = MakeOpen(builder, {});
    builder.Finish(v1::CreateOpenFileDirect(builder, "label", options));
    ASSERT_TRUE(client.Send(FrameType::kOpenFile, 2, builder, std::vector<int>(count, null.get())));
    ExpectHungUp(client, std::to_string(count) + " descriptors");
  }
  RawClient client = Greeted();
  FlatBufferBuilder builder;  // And options.
  builder.Finish(v1::CreateOpenFileDirect(builder, "label"));
  ASSERT_TRUE(client.Send(FrameType::kOpenFile, 2, builder, {null.get()}));
  ExpectHungUp(client, "no options");
  Turn();
  EXPECT_EQ(server().sessions(), 0u);
  EXPECT_EQ(OpenFdCount(), before + 1);  // `client`, which has not gone yet.
}

// --- Opens --------------------------------------------------------------------------

TEST_F(LeaseServerTest, APassedFileIsOpenedUnderItsLabelWhateverTheOptionsCallIt) {
  Start();
  const auto tensors = TestTrunk::SmallModel(5);
  const std::string path = trunk_->WriteModel("passed", tensors);
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  RawClient client = Greeted();
  FlatBufferBuilder builder;
  const auto options = MakeOpen(builder, {.model = "no such model"});
  builder.Finish(v1::CreateOpenFileDirect(builder, std::string(1000, 'l').c_str(), options));
  ASSERT_TRUE(client.Send(FrameType::kOpenFile, 2, builder, {file.get()}));
  const RawPacket packet = Answer(client);
  ASSERT_EQ(packet.header.type, FrameType::kOpened);
  EXPECT_EQ(packet.fds.size(), 2u);  // The index and one extent.
  ASSERT_EQ(store().Replicas().size(), 1u);
  EXPECT_EQ(store().Replicas()[0].name, std::string(kMaxModelNameBytes, 'l'));
}

TEST_F(LeaseServerTest, WhatThereIsNotIsRefusedInWordsAndTheSessionGoesOn) {
  TestTrunk::Options trunk;
  trunk.devices = {kUuid};
  Start({}, std::move(trunk));
  RawClient client = Greeted();
  ExpectFailed(Open(client, 2, {.model = "b"}), 2, StatusCode::kNotFound, "trims add b");
  ExpectFailed(Open(client, 3, {.model = "../b"}), 3, StatusCode::kInvalidArgument, "");
  ExpectFailed(Open(client, 4, {.tier = static_cast<v1::TierKind>(7)}), 4,
               StatusCode::kInvalidArgument, "unknown kind of tier 7");
  ExpectFailed(Open(client, 5, {.granularity = static_cast<v1::Granularity>(4)}), 5,
               StatusCode::kInvalidArgument, "unknown sharing granularity 4");
  ExpectFailed(Open(client, 6, {.digest = std::vector<uint8_t>(31)}), 6,
               StatusCode::kInvalidArgument, "expected ");
  ExpectFailed(Open(client, 7, {.digest = std::vector<uint8_t>(32)}), 7, StatusCode::kDataLoss,
               "expected sha256:000");
  const std::string hostile(200, 'x');
  const RawPacket device = Open(client, 8, {.tier = v1::TierKind::Device, .uuid = hostile});
  ExpectFailed(device, 8, StatusCode::kFailedPrecondition,
               "serves no device \"" + hostile.substr(0, 64) + "\"");
  ExpectFailed(Open(client, 9, {.tier = v1::TierKind::Device}), 9, StatusCode::kFailedPrecondition,
               "serves no device \"\"");
  EXPECT_EQ(leases(), 0u);
  EXPECT_TRUE(Answers(client));
}

TEST_F(LeaseServerTest, ADeviceIsNamedByItsUuidInTheAnswer) {
  TestTrunk::Options trunk;
  trunk.devices = {kUuid};
  Start({}, std::move(trunk));
  RawClient client = Greeted();
  const RawPacket packet = Open(client, 2, {.tier = v1::TierKind::Device, .uuid = kUuid});
  ASSERT_EQ(packet.header.type, FrameType::kOpened);
  const v1::Opened* const opened = packet.As<v1::Opened>();
  EXPECT_EQ(opened->tier(), v1::TierKind::Device);
  EXPECT_EQ(opened->device_uuid()->str(), kUuid);
  EXPECT_EQ(trunk_->device(0).loads_finished(), 1);
}

TEST_F(LeaseServerTest, GranularityAutoIsAnsweredWithTheOneUsed) {
  Start();
  RawClient client = Greeted();
  for (const v1::Granularity granularity : {v1::Granularity::Auto, v1::Granularity::Model,
                                            v1::Granularity::Slab, v1::Granularity::Layer}) {
    const RawPacket packet = Open(client, 2, {.granularity = granularity});
    ASSERT_EQ(packet.header.type, FrameType::kOpened);
    const v1::Granularity used = packet.As<v1::Opened>()->granularity();
    if (granularity == v1::Granularity::Auto) {
      EXPECT_NE(used, v1::Granularity::Auto);
    } else {
      EXPECT_EQ(used, granularity);
    }
  }
}

TEST_F(LeaseServerTest, KeepAliveIsHowLongAModelStaysWithoutALease) {
  Start();
  RawClient client = Greeted();
  ASSERT_EQ(Close(client, 3, Lease(client, 2, {.keep_alive_ms = 0})).header.type,
            FrameType::kClosed);
  EXPECT_EQ(store().Replicas().size(), 0u);
  for (const int64_t forever : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    ASSERT_EQ(Close(client, 3, Lease(client, 2, {.keep_alive_ms = forever})).header.type,
              FrameType::kClosed);
    EXPECT_EQ(store().Replicas().size(), 1u);
    EXPECT_FALSE(store().NextDeadline().has_value());
  }
}

TEST_F(LeaseServerTest, ARequestIdIsForOneOpenAtATime) {
  Start();
  RawClient client = Greeted();
  Lease(client, 2);
  Lease(client, 2);  // The first was answered.
  trunk_->AddModel("b");
  trunk_->host().Hold();
  ASSERT_TRUE(SendOpen(client, 2, {.model = "b"}));
  ASSERT_TRUE(SendOpen(client, 2, {.model = "b"}));
  ExpectHungUp(client, "twice");
  EXPECT_EQ(leases(), 0u);
  RawClient other = Greeted();
  ASSERT_TRUE(SendOpen(other, 2, {.model = "b"}));
  const std::vector<uint8_t> digest(32);
  ASSERT_TRUE(SendReattach(other, 2, digest, 1));
  ExpectHungUp(other, "a reattach is such a request, too");
}

TEST_F(LeaseServerTest, OpensInFlightAreBoundedAndEachIsAnswered) {
  Start();
  trunk_->host().Hold();
  RawClient client = Greeted();
  const size_t most = kMaxOpensInFlightPerSession;
  for (size_t i = 0; i < most; ++i) ASSERT_TRUE(SendOpen(client, 100 + i, {}));
  ExpectFailed(Open(client, 99), 99, StatusCode::kResourceExhausted, "opens in flight");
  const std::vector<uint8_t> digest(32);
  ASSERT_TRUE(SendReattach(client, 98, digest, 1));
  ExpectFailed(Receive(client), 98, StatusCode::kResourceExhausted, "opens in flight");
  RawClient other = Greeted();  // Each session has its own.
  ASSERT_TRUE(SendOpen(other, 1, {}));
  EXPECT_TRUE(Answers(other));
  trunk_->host().Release();
  std::set<uint64_t> answered;
  for (size_t i = 0; i < most; ++i) {
    const RawPacket packet = Answer(client);
    ASSERT_EQ(packet.header.type, FrameType::kOpened);
    answered.insert(packet.header.request_id);
  }
  EXPECT_EQ(answered.size(), most);
  EXPECT_EQ(leases(), most + 1);
  EXPECT_EQ(trunk_->host().loads_started(), 1);
}

TEST_F(LeaseServerTest, AnOpenWithADeadlineIsAnsweredByThenAndLeasesNothing) {
  Start();
  trunk_->host().Hold();
  RawClient client = Greeted();
  ExpectFailed(Open(client, 2, {.deadline_ms = 20}), 2, StatusCode::kDeadlineExceeded,
               "not ready within 20 ms");
  trunk_->host().Release();
  ASSERT_TRUE(trunk_->Settle());
  EXPECT_EQ(leases(), 0u);
  // The id is free again, and a deadline that is met does nothing.
  Lease(client, 2, {.deadline_ms = std::numeric_limits<uint64_t>::max()});
  EXPECT_TRUE(Answers(client));
  EXPECT_EQ(leases(), 1u);
}

TEST_F(LeaseServerTest, ACancelledOpenIsAnsweredOnceAndLeasesNothing) {
  Start();
  trunk_->host().Hold();
  RawClient client = Greeted();
  ASSERT_TRUE(SendOpen(client, 2, {}));
  ASSERT_TRUE(SendOpen(client, 3, {}));
  ASSERT_TRUE(SendCancel(client, 2));
  ExpectFailed(Receive(client), 2, StatusCode::kCancelled, "cancelled by its client");
  ASSERT_TRUE(SendCancel(client, 2));  // Unknown by now: nothing to say.
  trunk_->host().Release();
  const RawPacket packet = Answer(client);
  EXPECT_EQ(packet.header.type, FrameType::kOpened);  // The other's, who shared the load.
  EXPECT_EQ(packet.header.request_id, 3u);
  EXPECT_TRUE(Answers(client));
  EXPECT_EQ(leases(), 1u);
}

TEST_F(LeaseServerTest, ACancelThatCrossesTheAnswerChangesNothing) {
  Start();
  RawClient client = Greeted();
  ASSERT_TRUE(SendOpen(client, 2, {}));
  // The answer is on its way when the client says cancel.
  ASSERT_TRUE(trunk_->RunUntil([&] { return leases() == 1; }));
  ASSERT_TRUE(SendCancel(client, 2));
  const RawPacket packet = Answer(client);
  ASSERT_EQ(packet.header.type, FrameType::kOpened);
  EXPECT_TRUE(Answers(client));
  EXPECT_EQ(leases(), 1u);
  EXPECT_EQ(Close(client, 3, packet.As<v1::Opened>()->lease_id()).header.type, FrameType::kClosed);
}

TEST_F(LeaseServerTest, MoreDescriptorsThanAPacketCarriesComeInSeveral) {
  Start();
  constexpr size_t kTensors = 600;
  std::vector<format::TestTensor> tensors;
  for (size_t i = 0; i < kTensors; ++i)
    tensors.push_back(NoiseTensor("t" + std::to_string(i), 16, i));
  trunk_->AddModel("many", tensors);
  RawClient client = Greeted();
  const RawPacket first = Open(client, 2, {.model = "many", .granularity = v1::Granularity::Layer});
  ASSERT_EQ(first.header.type, FrameType::kOpened);
  const v1::Opened* const opened = first.As<v1::Opened>();
  ASSERT_EQ(opened->extent_bytes()->size(), kTensors);
  EXPECT_EQ(opened->tensor_count(), kTensors);
  size_t extents = first.fds.size() - 1;  // Behind the index.
  EXPECT_EQ(first.fds.size(), kMaxFdsPerPacket);
  uint16_t flags = first.header.flags;
  while (extents < kTensors) {
    EXPECT_EQ(flags, kFrameFlagMore);
    const RawPacket more = Receive(client);
    ASSERT_EQ(more.header.type, FrameType::kOpenedMore);
    EXPECT_EQ(more.header.request_id, 2u);
    EXPECT_EQ(more.As<v1::OpenedMore>()->first_extent(), extents);
    extents += more.fds.size();
    flags = more.header.flags;
  }
  EXPECT_EQ(extents, kTensors);
  EXPECT_EQ(flags, 0);
  EXPECT_TRUE(Answers(client));
}

// --- Progress -----------------------------------------------------------------------

TEST_F(LeaseServerTest, ProgressComesBeforeTheAnswerToWhoWantsIt) {
  Start();
  RawClient client = Greeted();
  for (const bool wanted : {false, true}) {
    const std::string name = wanted ? "wanted" : "unwanted";
    trunk_->AddModel(name);
    ASSERT_TRUE(SendOpen(client, 2, {.model = name, .want_progress = wanted}));
    int progress = 0;
    RawPacket packet = Receive(client);
    for (; !packet.closed && packet.header.type == FrameType::kProgress; packet = Receive(client)) {
      EXPECT_EQ(packet.header.request_id, 2u);
      ++progress;
    }
    EXPECT_EQ(packet.header.type, FrameType::kOpened);
    EXPECT_EQ(progress > 0, wanted) << progress;
  }
}

TEST_F(LeaseServerTest, ProgressIsDroppedForWhoDoesNotReadAndTheAnswerIsNot) {
  Start();
  RawClient client = Greeted();
  const int pings = FillSocket(client);
  ASSERT_TRUE(SendOpen(client, 2, {.want_progress = true}));
  ASSERT_TRUE(trunk_->RunUntil([&] { return leases() == 1; }));
  int pongs = 0;
  for (RawPacket packet = Receive(client);; packet = Receive(client)) {
    ASSERT_FALSE(packet.closed);
    ASSERT_NE(packet.header.type, FrameType::kProgress);
    if (packet.header.type == FrameType::kOpened) break;
    EXPECT_EQ(packet.header.request_id, kFirstPing + static_cast<uint64_t>(pongs));
    ++pongs;
  }
  EXPECT_EQ(pongs, pings);  // In order, none lost.
}

// --- Who does not read --------------------------------------------------------------

TEST_F(LeaseServerTest, TheQueueOfWhoDoesNotReadIsBoundedAndOthersAreServed) {
  Start();
  RawClient other = Greeted();
  RawClient deaf = Greeted();
  Lease(deaf, 2);
  FillSocket(deaf);
  // One waits already.
  for (size_t i = 1; i < kMaxReplyBacklogPerSession; ++i) {
    ASSERT_TRUE(SendPing(deaf, i));
    trunk_->RunOnce();
  }
  EXPECT_EQ(server().sessions(), 2u);
  EXPECT_TRUE(Answers(other));
  ASSERT_TRUE(SendPing(deaf, 1));
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 1; }));
  EXPECT_EQ(leases(), 0u);
  EXPECT_TRUE(Answers(other));
}

TEST_F(LeaseServerTest, WhoDoesNotReadInTimeIsHungUpOn) {
  LeaseServer::Options options;
  options.send_deadline = std::chrono::milliseconds(50);
  Start(options);
  RawClient deaf = Greeted();
  Lease(deaf, 2);
  FillSocket(deaf);
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 0; }));
  EXPECT_EQ(leases(), 0u);
}

TEST_F(LeaseServerTest, WhoReadsSlowlyButReadsIsKept) {
  LeaseServer::Options options;
  options.send_deadline = std::chrono::seconds(2);
  Start(options);
  RawClient slow = Greeted();
  // Asks for what makes long answers, so that the socket holds fewer than the queue.
  const std::string long_name = std::string(250, 'n') + "/" + std::string(250, 'm');
  const auto ask = [&] {
    EXPECT_TRUE(SendOpen(slow, 3, {.model = long_name}));
    trunk_->RunOnce();
    trunk_->Settle();  // Until the name has been looked for.
  };
  int room = 0;  // Packets.
  for (int before = -1; UnreadBytes(slow.fd()) != before; ++room) {
    before = UnreadBytes(slow.fd());
    ask();
  }
  --room;
  const int kept = static_cast<int>(kMaxReplyBacklogPerSession) - 20;
  ASSERT_LT(room, kept);
  // Its queue is never empty, for longer than the deadline.
  const Time end = Now() + options.send_deadline + std::chrono::milliseconds(500);
  int unread = room + 1;
  while (Now() < end) {
    for (; unread < room + kept; ++unread) ask();
    for (int i = 0; i < room; ++i, --unread) ASSERT_FALSE(slow.Receive().closed);
    trunk_->reactor().RunOnce(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(server().sessions(), 1u);
  for (; unread > 0; --unread) ASSERT_FALSE(Receive(slow).closed);
  EXPECT_TRUE(Answers(slow));
}

// The kernel bounds how many descriptors of one user may be on their way: a packet may wait
// although its socket has room. The limit is the user's, and root has none.
TEST_F(LeaseServerTest, WhatTheKernelDoesNotTakeYetWaitsWithoutKeepingTheLoopBusy) {
  Child child([this](int) {
    if (::geteuid() == 0) {
      ASSERT_EQ(::setresgid(65534, 65534, 65534), 0);
      ASSERT_EQ(::setresuid(65534, 65534, 65534), 0);
    }
    const rlimit few{256, 256};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    Start();
    std::vector<format::TestTensor> tensors;
    for (int i = 0; i < 60; ++i) tensors.push_back(NoiseTensor("t" + std::to_string(i), 16, i));
    trunk_->AddModel("wide", tensors);
    RawClient client = Greeted();
    constexpr uint64_t kOpens = 8;  // Of 61 descriptors each.
    for (uint64_t i = 0; i < kOpens; ++i) {
      ASSERT_TRUE(SendOpen(client, i, {.model = "wide", .granularity = v1::Granularity::Layer}));
    }
    ASSERT_TRUE(trunk_->RunUntil([&] { return leases() == kOpens; }));
    const Time end = Now() + std::chrono::milliseconds(200);
    int turns = 0;
    for (; Now() < end; ++turns) trunk_->reactor().RunOnce(std::chrono::seconds(1));
    EXPECT_LT(turns, 100);
    EXPECT_GT(turns, 1);  // It does try again.
    for (uint64_t i = 0; i < kOpens; ++i) {
      const RawPacket packet = Receive(client);
      ASSERT_EQ(packet.header.type, FrameType::kOpened);
      EXPECT_EQ(packet.fds.size(), 61u);
    }
    EXPECT_TRUE(Answers(client));
    trunk_.reset();
  });
  EXPECT_EQ(child.Reap(), 0);
}

TEST_F(LeaseServerTest, WhatWaitsInAQueueKeepsItsDescriptorsWhenTheModelIsEvicted) {
  Start();
  const auto tensors = TestTrunk::SmallModel(17);
  trunk_->AddModel("b", tensors);
  RawClient client = Greeted();
  const int pings = FillSocket(client);
  ASSERT_TRUE(SendOpen(client, 2, {.model = "b"}));
  ASSERT_TRUE(trunk_->RunUntil([&] { return leases() == 1; }));
  const store::LeaseView lease = store().Leases()[0];
  ASSERT_TRUE(trunk_->registry().Close(lease.session, lease.lease, 0).ok());
  trunk_->registry().Evict(lease.replica.model, std::nullopt, /*force=*/false);
  ASSERT_TRUE(store().Replicas().empty());
  const size_t others = OpenFdCount();
  for (int i = 0; i < pings; ++i) ASSERT_EQ(Receive(client).header.type, FrameType::kPong);
  RawPacket packet = Receive(client);
  ASSERT_EQ(packet.header.type, FrameType::kOpened);
  ASSERT_EQ(packet.fds.size(), 2u);
  // The extent, whole: one tensor after the other, each at a multiple of 256 bytes.
  std::string bytes(8 * kKiB + 256, '\0');
  ASSERT_EQ(::pread(packet.fds[1].get(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(bytes.substr(0, tensors[0].bytes.size()), tensors[0].bytes);
  EXPECT_EQ(bytes.substr(8 * kKiB, tensors[1].bytes.size()), tensors[1].bytes);
  // The server let go of the extent when it was sent.
  packet.fds.clear();
  EXPECT_EQ(OpenFdCount(), others - 1);  // The index is kept with the contents.
}

// --- Leases -------------------------------------------------------------------------

TEST_F(LeaseServerTest, ALeaseIsClosedOnceAndByItsSessionOnly) {
  Start();
  RawClient mine = Greeted();
  RawClient thief = Greeted();
  const uint64_t lease = Lease(mine, 2);
  ExpectFailed(Close(thief, 3, lease), 3, StatusCode::kNotFound, "no lease");
  EXPECT_EQ(leases(), 1u);
  const RawPacket closed = Close(mine, 4, lease);
  EXPECT_EQ(closed.header.type, FrameType::kClosed);
  EXPECT_EQ(closed.header.request_id, 4u);
  EXPECT_EQ(leases(), 0u);
  ExpectFailed(Close(mine, 5, lease), 5, StatusCode::kNotFound, "no lease");
}

TEST_F(LeaseServerTest, LeasesAndOpensInFlightEndWithTheConnection) {
  Start();
  trunk_->AddModel("b");
  {
    RawClient client = Greeted();
    Lease(client, 2);
    Lease(client, 3);
    trunk_->host().Hold();
    ASSERT_TRUE(SendOpen(client, 4, {.model = "b", .deadline_ms = 60'000}));
    ASSERT_TRUE(trunk_->RunUntil([&] { return trunk_->registry().loads_running() == 1; }));
    trunk_->host().WaitUntilHeld();
    EXPECT_EQ(leases(), 2u);
  }
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 0; }));
  EXPECT_EQ(leases(), 0u);
  // Nobody waits for the load any more.
  ASSERT_TRUE(trunk_->Settle());
  EXPECT_EQ(trunk_->host().loads_failed(), 1);
}

TEST_F(LeaseServerTest, AReattachIsALeaseOnWhatIsResidentAndNeverALoad) {
  Start();
  RawClient client = Greeted();
  const RawPacket packet = Open(client, 2);
  ASSERT_EQ(packet.header.type, FrameType::kOpened);
  const v1::Opened* const opened = packet.As<v1::Opened>();
  const std::vector<uint8_t> digest(opened->digest()->begin(), opened->digest()->end());
  RawClient again = Greeted();
  // Equal digests are equal bytes, whatever their generation.
  for (const uint64_t generation : {opened->generation(), opened->generation() + 1}) {
    ASSERT_TRUE(SendReattach(again, 3, digest, generation));
    const RawPacket reattached = Receive(again);
    ASSERT_EQ(reattached.header.type, FrameType::kReattached);
    EXPECT_EQ(reattached.header.request_id, 3u);
    EXPECT_EQ(Close(again, 4, reattached.As<v1::Reattached>()->lease_id()).header.type,
              FrameType::kClosed);
  }
  ASSERT_TRUE(SendReattach(again, 5, digest, opened->generation(), v1::Granularity::Layer));
  ExpectFailed(Receive(again), 5, StatusCode::kNotFound, "no model with digest");
  ASSERT_TRUE(SendReattach(again, 6, std::vector<uint8_t>(32, 1), 1));
  ExpectFailed(Receive(again), 6, StatusCode::kNotFound, "no model with digest");
  EXPECT_EQ(trunk_->host().loads_started(), 1);
}

TEST_F(LeaseServerTest, AReattachThatNamesNoReplicaIsRefusedInWords) {
  Start();
  RawClient client = Greeted();
  const std::vector<uint8_t> digest(32, 1);
  const std::vector<uint8_t> longer(33, 1);
  ASSERT_TRUE(SendReattach(client, 2, longer, 1));
  ASSERT_TRUE(SendReattach(client, 3, {}, 1));
  ASSERT_TRUE(SendReattach(client, 4, digest, 1, v1::Granularity::Auto));
  ASSERT_TRUE(SendReattach(client, 5, digest, 1, static_cast<v1::Granularity>(9)));
  ASSERT_TRUE(SendReattach(client, 6, digest, 1, v1::Granularity::Model, v1::TierKind::Device));
  ASSERT_TRUE(
      SendReattach(client, 7, digest, 1, v1::Granularity::Model, static_cast<v1::TierKind>(200)));
  for (uint64_t request = 2; request <= 7; ++request)
    ExpectFailed(Receive(client), request, StatusCode::kInvalidArgument, "names no replica");
  EXPECT_TRUE(Answers(client));
}

// --- Sessions -----------------------------------------------------------------------

TEST_F(LeaseServerTest, SessionsOfOneUidAreBoundedAndCountedDownWhenTheyEnd) {
  LeaseServer::Options options;
  options.sessions_per_uid_max = 2;
  Start(options);
  RawClient first = Greeted();
  auto second = std::make_unique<RawClient>(Greeted());
  const auto is_refused = [&] {
    RawClient third = Connect();
    third.SendHello();
    ExpectFailed(Receive(third), 0, StatusCode::kResourceExhausted, "sessions_per_uid_max");
    ExpectHungUp(third, "one too many");
  };
  is_refused();
  is_refused();  // Being refused leaves no trace.
  second.reset();
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 1; }));
  RawClient next = Greeted();
  is_refused();
  server().SetSessionsPerUidMax(3);
  RawClient third = Greeted();
  is_refused();
  server().SetSessionsPerUidMax(1);  // Who is there stays.
  EXPECT_TRUE(Answers(first) && Answers(next) && Answers(third));
  is_refused();
  server().SetSessionsPerUidMax(0);
  RawClient fourth = Greeted();
  EXPECT_EQ(server().sessions(), 4u);
}

TEST_F(LeaseServerTest, ASessionEndsWithItsProcessThoughAChildKeepsTheSocket) {
  Start();
  const std::string runtime_dir = trunk_->config().runtime_dir;
  Child child([&](int link) {
    RawClient client(runtime_dir);
    client.SendHello();
    SendOpen(client, 2, {});
    Child::Listen(link);
    if (::fork() == 0) Child::Listen(link);  // The heir, until the test ends.
  });
  ASSERT_TRUE(trunk_->RunUntil([&] { return leases() == 1; }));
  child.Tell();
  child.WaitUntilGone();
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 0; }));
  EXPECT_EQ(leases(), 0u);
}

// A live client was hung up on because another ended: its descriptors had got the numbers of the
// other's, whose process had an event on its way.
TEST_F(LeaseServerTest, WhoConnectsWhileAnotherEndsIsNotTakenForIt) {
  Start();
  const std::string runtime_dir = trunk_->config().runtime_dir;
  Child child([&](int link) {
    {
      RawClient client(runtime_dir);
      client.SendHello();
      Child::Listen(link);
    }
    Child::Say(link);  // Closed, and alive.
    Child::Listen(link);
  });
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 1; }));
  Turn();
  // The loop stands still: all this is in one batch, in this order.
  child.Tell();
  child.Hear();
  RawClient client = Connect();
  ASSERT_TRUE(client.SendHello());
  child.Tell();
  child.WaitUntilGone();
  Turn();
  EXPECT_EQ(server().sessions(), 1u);
  ASSERT_EQ(Receive(client).header.type, FrameType::kWelcome);
  EXPECT_TRUE(Answers(client));
}

TEST_F(LeaseServerTest, ManyClientsComeAndGoInOneBatch) {
  Start();
  {
    RawClient first = Greeted();
    Lease(first, 2);
  }  // The model stays.
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 0; }));
  const size_t before = OpenFdCount();
  for (int round = 0; round < 20; ++round) {
    std::vector<RawClient> clients;
    for (int i = 0; i < 40; ++i) {
      clients.push_back(Connect());
      clients.back().SendHello();
      SendOpen(clients.back(), 2, {});
      if (i % 3 == 0) clients.pop_back();
    }
    for (RawClient& client : clients) {
      EXPECT_EQ(Receive(client).header.type, FrameType::kWelcome);
      EXPECT_EQ(Answer(client).header.type, FrameType::kOpened);
    }
    ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == clients.size(); }));
    EXPECT_EQ(leases(), clients.size());
  }
  ASSERT_TRUE(trunk_->RunUntil([&] { return server().sessions() == 0; }));
  EXPECT_EQ(leases(), 0u);
  EXPECT_EQ(OpenFdCount(), before);
}

TEST_F(LeaseServerTest, WithoutDescriptorsAcceptingWaitsAndThoseWhoCameAreServedLater) {
  Start();
  RawClient early = Greeted();
  RawClient late = Connect();
  ASSERT_TRUE(late.SendHello());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{static_cast<rlim_t>(early.fd()), before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  Turn();
  EXPECT_EQ(server().sessions(), 1u);
  EXPECT_TRUE(Answers(early));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(Receive(late).header.type, FrameType::kWelcome);
}

TEST_F(LeaseServerTest, AServerThatGoesLeavesNothingOnTheLoop) {
  Start();
  RawClient leaseholder = Greeted();
  Lease(leaseholder, 2, {.deadline_ms = 100});
  trunk_->AddModel("b");
  trunk_->host().Hold();
  ASSERT_TRUE(SendOpen(leaseholder, 3, {.model = "b", .deadline_ms = 1, .want_progress = true}));
  RawClient deaf = Greeted();
  FillSocket(deaf);
  RawClient silent = Connect();
  Turn();
  // One that has done wrong, and whose end has not come yet when the server goes.
  RawClient bad = Greeted();
  ASSERT_TRUE(bad.SendBytes(std::vector<std::byte>(3)));
  trunk_->reactor().Post("test", [&] { trunk_->EndLeaseServer(); });
  trunk_->RunOnce();
  EXPECT_EQ(leases(), 0u);
  trunk_->host().Release();
  ASSERT_TRUE(trunk_->Settle());
  // Its timers would fire now.
  const Time end = Now() + std::chrono::milliseconds(150);
  while (Now() < end) trunk_->reactor().RunOnce(std::chrono::milliseconds(10));
  EXPECT_TRUE(bad.Receive().closed);
}

}  // namespace
}  // namespace trims

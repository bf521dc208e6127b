#include "daemon/control_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/text.h"
#include "daemon/control_status.h"
#include "daemon/fake_control_backend.h"
#include "trims/v1/control.grpc.pb.h"

namespace trims {
namespace {

using testing::HasSubstr;

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

// Blocks until the peer has closed its end.
void WaitForClose(int fd) {
  char buffer[4096];
  while (true) {
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got > 0 || (got < 0 && errno == EINTR)) continue;
    return;
  }
}

class ControlServerTest : public testing::Test {
 protected:
  void SetUp() override {
    backend_.AddModel("vgg16", 'a', 553'000'000);
    backend_.AddModel("lenet", 'b', 1'700'000);
    auto server = ControlServer::Start(&backend_);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
  }

  // The client's end of a new connection.
  UniqueFd Connect() {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    UniqueFd client(pair[0]);
    const Status served = server_->Serve(UniqueFd(pair[1]));
    EXPECT_TRUE(served.ok()) << served.ToString();
    return client;
  }

  std::shared_ptr<grpc::Channel> Channel() {
    UniqueFd client = Connect();
    ::fcntl(client.get(), F_SETFL, O_NONBLOCK);
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomInsecureChannelFromFd("trims", client.Take(), args);
  }

  std::unique_ptr<v1::Control::Stub> Stub() { return v1::Control::NewStub(Channel()); }

  FakeControlBackend backend_;
  std::unique_ptr<ControlServer> server_;
};

// A unary call with hand-made bytes, for services whose messages we do not have.
grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, std::string* response) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::Slice slice(request);
  const grpc::ByteBuffer request_bytes(&slice, 1);
  auto call = stub.PrepareUnaryCall(&context, method, request_bytes, &queue);
  grpc::ByteBuffer response_bytes;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response_bytes, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (status.ok()) {
    std::vector<grpc::Slice> slices;
    if (response_bytes.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        response->append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
  }
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return status;
}

// HealthCheckRequest{service = 1}; HealthCheckResponse{status = 1}.
std::string HealthOf(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string request;
  if (!service.empty()) {
    request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  }
  std::string response;
  const grpc::Status status = CallRaw(channel, "/grpc.health.v1.Health/Check", request, &response);
  if (!status.ok()) return StatusCodeName(FromGrpcStatus(status).code()).data();
  if (response == std::string("\x08\x01")) return "SERVING";
  if (response == std::string("\x08\x02")) return "NOT_SERVING";
  return "odd response";
}

TEST_F(ControlServerTest, AnswersUnaryCalls) {
  auto stub = Stub();
  grpc::ClientContext context;
  v1::ListResponse response;
  const grpc::Status status = stub->List(&context, v1::ListRequest(), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.models_size(), 2);
  EXPECT_EQ(response.models(0).name(), "lenet");
  EXPECT_EQ(response.models(1).weight_bytes(), 553'000'000u);
}

TEST_F(ControlServerTest, PassesCodesAndTextsOn) {
  auto stub = Stub();
  grpc::ClientContext context;
  v1::InfoRequest request;
  request.set_model("nothing");
  v1::InfoResponse response;
  const Status status = FromGrpcStatus(stub->Info(&context, request, &response));
  EXPECT_EQ(status, NotFoundError("no model named nothing"));
}

TEST_F(ControlServerTest, StreamsProgressUntilReady) {
  auto stub = Stub();
  grpc::ClientContext context;
  v1::LoadRequest request;
  request.set_model("vgg16");
  auto reader = stub->Load(&context, request);
  v1::LoadProgress progress;
  std::vector<v1::LoadPhase> phases;
  while (reader->Read(&progress)) phases.push_back(progress.phase());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(phases.front(), v1::LOAD_PHASE_QUEUED);
  EXPECT_EQ(phases.back(), v1::LOAD_PHASE_READY);
  EXPECT_EQ(progress.model().replicas(0).state(), v1::REPLICA_STATE_READY);
}

TEST_F(ControlServerTest, WatchMissesNothingAfterItsHeaders) {
  auto stub = Stub();
  grpc::ClientContext context;
  auto reader = stub->Watch(&context, v1::WatchRequest());
  reader->WaitForInitialMetadata();
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_READY);
  event.set_model("vgg16");
  backend_.Publish(event);
  v1::Event seen;
  ASSERT_TRUE(reader->Read(&seen));
  EXPECT_EQ(seen.model(), "vgg16");
  context.TryCancel();
  EXPECT_FALSE(reader->Read(&seen));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  backend_.WaitForAbandoned(1);
}

TEST_F(ControlServerTest, ServesFiftyConnectionsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> answered{0};
  for (int i = 0; i < 50; ++i) {
    threads.emplace_back([&] {
      auto stub = Stub();
      for (int call = 0; call < 5; ++call) {
        grpc::ClientContext context;
        v1::ListResponse response;
        if (stub->List(&context, v1::ListRequest(), &response).ok() &&
            response.models_size() == 2) {
          ++answered;
        }
      }
      grpc::ClientContext context;
      v1::LoadRequest request;
      request.set_model("lenet");
      auto reader = stub->Load(&context, request);
      v1::LoadProgress progress;
      while (reader->Read(&progress)) {
      }
      if (reader->Finish().ok() && progress.phase() == v1::LOAD_PHASE_READY) ++answered;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(answered, 50 * 6);
}

TEST_F(ControlServerTest, ManyWatchersDoNotBlockOtherCalls) {
  constexpr int kWatchers = 60;
  auto stub = Stub();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> readers;
  for (int i = 0; i < kWatchers; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->Watch(contexts.back().get(), v1::WatchRequest()));
    readers.back()->WaitForInitialMetadata();
  }
  grpc::ClientContext context;
  v1::ListResponse response;
  EXPECT_TRUE(stub->List(&context, v1::ListRequest(), &response).ok());
  for (int i = 0; i < kWatchers; ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
}

TEST_F(ControlServerTest, CallsBeyondTheThreadLimitAreRefusedAndTheServerRecovers) {
  auto stub = Stub();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> readers;
  bool refused = false;
  for (int i = 0; i < kMaxControlThreads + 8 && !refused; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    auto reader = stub->Watch(contexts.back().get(), v1::WatchRequest());
    reader->WaitForInitialMetadata();
    if (backend_.running() < i + 1) {
      refused = true;
      EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      contexts.pop_back();
    } else {
      readers.push_back(std::move(reader));
    }
  }
  EXPECT_TRUE(refused);
  for (size_t i = 0; i < readers.size(); ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
  backend_.WaitForRunning(0);
  grpc::Status status;
  do {  // The threads return a moment after their calls ended.
    grpc::ClientContext context;
    v1::ListResponse response;
    status = stub->List(&context, v1::ListRequest(), &response);
  } while (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ControlServerTest, NoticesAClientThatGoesInTheMiddleOfAStream) {
  backend_.HoldLoads(true);
  {
    auto stub = Stub();
    grpc::ClientContext context;
    v1::LoadRequest request;
    request.set_model("vgg16");
    auto reader = stub->Load(&context, request);
    v1::LoadProgress progress;
    ASSERT_TRUE(reader->Read(&progress));
    context.TryCancel();
    reader->Finish();
  }  // The channel closes its socket.
  backend_.WaitForAbandoned(1);
  backend_.HoldLoads(false);
  auto stub = Stub();
  grpc::ClientContext context;
  v1::ListResponse response;
  EXPECT_TRUE(stub->List(&context, v1::ListRequest(), &response).ok());
}

TEST_F(ControlServerTest, SurvivesGarbageAndClosesTheConnection) {
  std::mt19937_64 random(20190520);
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  for (int round = 0; round < 64; ++round) {
    UniqueFd client = Connect();
    std::string bytes = round % 2 == 0 ? preface : "";
    const size_t length = 1 + random() % 4096;
    for (size_t i = 0; i < length; ++i) bytes.push_back(static_cast<char>(random()));
    ASSERT_GT(::send(client.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
    ::shutdown(client.get(), SHUT_WR);
    WaitForClose(client.get());
  }
  grpc::ClientContext context;
  v1::ListResponse response;
  EXPECT_TRUE(Stub()->List(&context, v1::ListRequest(), &response).ok());
}

TEST_F(ControlServerTest, AcceptsAConnectionWhosePeerHasAlreadyGone) {
  for (int i = 0; i < 100; ++i) {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    ::close(pair[0]);
    EXPECT_TRUE(server_->Serve(UniqueFd(pair[1])).ok());
  }
  grpc::ClientContext context;
  v1::ListResponse response;
  EXPECT_TRUE(Stub()->List(&context, v1::ListRequest(), &response).ok());
}

TEST_F(ControlServerTest, RefusesConnectionsBeyondTheLimitAndFreesTheirPlaces) {
  std::vector<UniqueFd> clients;
  for (size_t i = 0; i < kMaxControlConnections; ++i) clients.push_back(Connect());
  EXPECT_EQ(server_->Connections(), kMaxControlConnections);
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  UniqueFd refused(pair[0]);
  EXPECT_EQ(server_->Serve(UniqueFd(pair[1])).code(), StatusCode::kResourceExhausted);
  WaitForClose(refused.get());  // Its other end was closed.

  for (UniqueFd& client : clients) client.Reset();
  while (server_->Connections() != 0) std::this_thread::yield();
  grpc::ClientContext context;
  v1::ListResponse response;
  EXPECT_TRUE(Stub()->List(&context, v1::ListRequest(), &response).ok());
}

TEST_F(ControlServerTest, LeaksNoDescriptor) {
  const auto use = [&] {
    auto stub = Stub();
    grpc::ClientContext context;
    v1::ListResponse response;
    ASSERT_TRUE(stub->List(&context, v1::ListRequest(), &response).ok());
    UniqueFd garbage = Connect();
    ASSERT_GT(::send(garbage.get(), "garbage", 7, MSG_NOSIGNAL), 0);
  };
  use();  // gRPC opens what it keeps.
  while (server_->Connections() != 0) std::this_thread::yield();
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 20; ++i) use();
  while (server_->Connections() != 0) std::this_thread::yield();
  while (OpenDescriptors() > before) std::this_thread::yield();
  EXPECT_LE(OpenDescriptors(), before);
}

TEST_F(ControlServerTest, RefusesWhatIsNoStreamSocket) {
  int packets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets), 0);
  UniqueFd other(packets[0]);
  EXPECT_EQ(server_->Serve(UniqueFd(packets[1])).code(), StatusCode::kInvalidArgument);
  UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_FALSE(server_->Serve(std::move(file)).ok());
  EXPECT_FALSE(server_->Serve(UniqueFd()).ok());
}

TEST_F(ControlServerTest, RefusesARequestOverTheLimit) {
  auto stub = Stub();
  grpc::ClientContext context;
  v1::InfoRequest request;
  request.set_model(std::string(kMaxControlRequestBytes + 1, 'x'));
  v1::InfoResponse response;
  EXPECT_EQ(stub->Info(&context, request, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ControlServerTest, RepairsTextThatIsNotUtf8) {
  backend_.Change("lenet", [](FakeControlBackend::FakeModel& model) {
    model.view.set_source("/models/\xff\xfe");
    model.tensors[0].set_name("tensor\x80");
    model.metadata["caf\xe9"] = "a\xc0z";
  });
  auto stub = Stub();
  grpc::ClientContext context;
  v1::InfoRequest request;
  request.set_model("lenet");
  request.set_include_tensors(true);
  v1::InfoResponse response;
  const grpc::Status status = stub->Info(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.model().source(), "/models/\uFFFD\uFFFD");
  EXPECT_EQ(response.tensors(0).name(), "tensor\uFFFD");
  EXPECT_EQ(response.metadata().at("caf\uFFFD"), "a\uFFFDz");
}

TEST_F(ControlServerTest, LongErrorsArriveShortened) {
  backend_.set_unary_error(FailedPreconditionError(std::string(100'000, '\xff')));
  auto stub = Stub();
  grpc::ClientContext context;
  v1::ListResponse response;
  const grpc::Status status = stub->List(&context, v1::ListRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_LE(status.error_message().size(), kMaxGrpcMessageBytes);
  EXPECT_THAT(status.error_message(), testing::EndsWith("…"));
}

TEST_F(ControlServerTest, HealthFollowsSetServing) {
  auto channel = Channel();
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  EXPECT_EQ(HealthOf(channel, "trims.v1.Control"), "SERVING");
  EXPECT_EQ(HealthOf(channel, "other"), "NOT_FOUND");
  server_->SetServing(false);
  EXPECT_EQ(HealthOf(channel, ""), "NOT_SERVING");
  EXPECT_EQ(HealthOf(channel, "trims.v1.Control"), "NOT_SERVING");
  server_->SetServing(true);
  EXPECT_EQ(HealthOf(channel, "trims.v1.Control"), "SERVING");
}

TEST_F(ControlServerTest, ReflectionListsAndDescribesTheService) {
  auto channel = Channel();
  // ServerReflectionRequest{list_services = 7}, {file_containing_symbol = 4}.
  const std::string requests[] = {std::string("\x3a\x01*"),
                                  std::string("\x22\x10trims.v1.Control")};
  const std::string expected[] = {"trims.v1.Control", "LoadProgress"};
  for (int i = 0; i < 2; ++i) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto wait = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      queue.Next(&tag, &ok);
      return ok;
    };
    auto call = stub.PrepareCall(
        &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
    call->StartCall(nullptr);
    ASSERT_TRUE(wait());
    grpc::Slice slice(requests[i]);
    call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    ASSERT_TRUE(wait());
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    ASSERT_TRUE(wait());
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(answer.Dump(&slices).ok());
    std::string text;
    for (const grpc::Slice& part : slices) {
      text.append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
    EXPECT_THAT(text, HasSubstr(expected[i]));
    context.TryCancel();
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    queue.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) {
    }
  }
}

TEST_F(ControlServerTest, ShutdownEndsStreamsAndSaysWhy) {
  backend_.HoldLoads(true);
  auto stub = Stub();
  grpc::ClientContext watch_context;
  auto watch = stub->Watch(&watch_context, v1::WatchRequest());
  watch->WaitForInitialMetadata();
  grpc::ClientContext load_context;
  v1::LoadRequest request;
  request.set_model("vgg16");
  auto load = stub->Load(&load_context, request);
  v1::LoadProgress progress;
  ASSERT_TRUE(load->Read(&progress));

  server_->Shutdown(std::chrono::seconds(20));
  EXPECT_EQ(backend_.running(), 0);
  v1::Event event;
  while (watch->Read(&event)) {
  }
  EXPECT_EQ(FromGrpcStatus(watch->Finish()), UnavailableError("the daemon is stopping"));
  while (load->Read(&progress)) {
  }
  EXPECT_EQ(FromGrpcStatus(load->Finish()), UnavailableError("the daemon is stopping"));
}

TEST_F(ControlServerTest, ShutdownClosesIdleConnectionsAndServesNoNewOnes) {
  UniqueFd silent = Connect();
  auto stub = Stub();
  grpc::ClientContext context;
  v1::ListResponse response;
  ASSERT_TRUE(stub->List(&context, v1::ListRequest(), &response).ok());
  server_->Shutdown(Duration::zero());
  WaitForClose(silent.get());
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  UniqueFd late(pair[0]);
  EXPECT_EQ(server_->Serve(UniqueFd(pair[1])).code(), StatusCode::kUnavailable);
  WaitForClose(late.get());
  server_->Shutdown(Duration::zero());
}

TEST_F(ControlServerTest, AnotherServerMayFollow) {
  server_.reset();
  auto next = ControlServer::Start(&backend_);
  ASSERT_TRUE(next.ok());
  server_ = std::move(*next);
  auto channel = Channel();
  EXPECT_EQ(HealthOf(channel, "trims.v1.Control"), "SERVING");
}

TEST(CheckControlPeerTest, FollowsTheRuleOfTheInode) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd one(pair[0]);
  const UniqueFd other(pair[1]);
  EXPECT_TRUE(CheckControlPeer(one.get(), ControlAccess::OfThisProcess()).ok());
  if (::geteuid() == 0) {
    // Root always may; RefusesAPeerOfAnotherUid has the rest of the rule.
    EXPECT_TRUE(CheckControlPeer(one.get(), {.owner = 1, .group = 1, .mode = 0600}).ok());
    return;
  }
  const uid_t stranger = ::geteuid() + 1;
  const gid_t group = ::getegid();
  EXPECT_TRUE(CheckControlPeer(one.get(), {.owner = stranger, .group = group, .mode = 0660}).ok());
  EXPECT_TRUE(CheckControlPeer(one.get(), {.owner = stranger, .group = 1, .mode = 0666}).ok());
  EXPECT_FALSE(CheckControlPeer(one.get(), {.owner = stranger, .group = group, .mode = 0600}).ok());
}

// A socket pair whose credentials are those of another uid and gid, made by a child.
UniqueFd ConnectionOf(uid_t uid, gid_t gid) {
  char directory[] = "/tmp/trims-control-XXXXXX";
  EXPECT_NE(::mkdtemp(directory), nullptr);
  EXPECT_EQ(::chmod(directory, 0755), 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = std::string(directory) + "/s";
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::chmod(path.c_str(), 0666), 0);
  EXPECT_EQ(::listen(listener.get(), 1), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (::setgroups(0, nullptr) != 0 || ::setresgid(gid, gid, gid) != 0 ||
        ::setresuid(uid, uid, uid) != 0 ||
        ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  UniqueFd connection(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  std::filesystem::remove_all(directory);
  return connection;
}

TEST(CheckControlPeerTest, RefusesAPeerOfAnotherUid) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can act under another uid";
  const UniqueFd peer = ConnectionOf(65534, 65533);
  ASSERT_TRUE(peer.valid());
  EXPECT_TRUE(CheckControlPeer(peer.get(), {.owner = 65534, .group = 1, .mode = 0600}).ok());
  EXPECT_TRUE(CheckControlPeer(peer.get(), {.owner = 0, .group = 65533, .mode = 0660}).ok());
  EXPECT_TRUE(CheckControlPeer(peer.get(), {.owner = 0, .group = 0, .mode = 0666}).ok());
  EXPECT_EQ(CheckControlPeer(peer.get(), {.owner = 0, .group = 65533, .mode = 0600}).code(),
            StatusCode::kPermissionDenied);
  const Status refused = CheckControlPeer(peer.get(), {.owner = 0, .group = 0, .mode = 0660});
  EXPECT_EQ(refused.code(), StatusCode::kPermissionDenied);
  EXPECT_THAT(refused.message(), HasSubstr("uid 65534"));
}

TEST(ControlStatusTest, EveryCodeSurvivesTheRoundTrip) {
  for (int code = 1; code <= static_cast<int>(StatusCode::kUnauthenticated); ++code) {
    const Status status(static_cast<StatusCode>(code), "text");
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
  }
  EXPECT_TRUE(FromGrpcStatus(ToGrpcStatus(OkStatus())).ok());
  EXPECT_EQ(FromGrpcStatus(grpc::Status(static_cast<grpc::StatusCode>(20), "x")).code(),
            StatusCode::kUnknown);
}

TEST(ControlStatusTest, MessagesAreCutBetweenCharacters) {
  std::string text;
  while (text.size() < 3 * kMaxGrpcMessageBytes) text += "aé€😀";
  for (int shift = 0; shift < 10; ++shift) {
    const std::string cut =
        ToGrpcStatus(InternalError(std::string(shift, '-') + text)).error_message();
    EXPECT_LE(cut.size(), kMaxGrpcMessageBytes);
    EXPECT_TRUE(IsValidUtf8(cut));
  }
}

}  // namespace
}  // namespace trims

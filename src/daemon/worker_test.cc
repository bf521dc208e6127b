// The worker in a process of its own, as the keeper starts it, and the test at the keeper's end of
// the link.
#include "daemon/worker.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../tests/raw_client.h"
#include "base/universal_hash.h"
#include "daemon/keeper.h"
#include "daemon/ledger_link.h"
#include "daemon/test_link.h"
#include "ipc/seqpacket.h"
#include "tier/test_model.h"

namespace trims {
namespace {

using testing_support::RawClient;
using testing_support::RawPacket;

constexpr char kHashKeyEntry[] = "device/hash-key";

class WorkerTest : public testing::Test {
 protected:
  WorkerTest() {
    for (const char* folder : {"run", "state", "base"})
      std::filesystem::create_directories(root_ / folder);
    lease_ = ListenAt(root_ / "run/lease.sock", SOCK_SEQPACKET, 0600).value();
    control_ = ListenAt(root_ / "run/control.sock", SOCK_STREAM, 0600).value();
  }
  ~WorkerTest() override {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  // Small and without devices, with these on top.
  LoadedConfig Config(std::map<std::string, std::string> settings = {}) const {
    ConfigSources sources;
    sources.flags = {{"runtime_dir", root_ / "run"}, {"state_dir", root_ / "state"},
                     {"base_dir", root_ / "base"},   {"devices", "none"},
                     {"use_hugetlb", "false"},       {"host_capacity_bytes", "64MiB"}};
    for (auto& [key, value] : settings) sources.flags[key] = value;
    sources.getenv = [](const std::string&) { return std::nullopt; };
    return LoadConfig(sources).value();
  }

  void StartProcess() {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    link_ = UniqueFd(pair[0]);
    const UniqueFd theirs(pair[1]);
    const UniqueFd log = log_.Open();
    const std::string program = std::filesystem::read_symlink("/proc/self/exe");
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::dup2(log.get(), STDERR_FILENO);
    const int link = ::fcntl(theirs.get(), F_DUPFD_CLOEXEC, 32);
    const int lease = ::fcntl(lease_.get(), F_DUPFD_CLOEXEC, 32);
    const int control = ::fcntl(control_.get(), F_DUPFD_CLOEXEC, 32);
    ::dup2(link, kWorkerLinkFd);
    ::dup2(lease, kWorkerLeaseFd);
    ::dup2(control, kWorkerControlFd);
    ::execl(program.c_str(), program.c_str(), kWorkerFlag, nullptr);
    ::_exit(127);
  }
  void Say(LinkType type, const std::string& key = "", const std::string& body = "", int fd = -1) {
    EXPECT_TRUE(SendLink(link_.get(), type, key, body, fd).ok());
  }
  std::string StartText(std::map<std::string, std::string> settings = {}) const {
    WorkerStart start;
    start.config = Config(std::move(settings));
    start.worker_number = 3;
    start.keeper_pid = 77;
    start.id_base = 1000;
    return EncodeWorkerStart(start);
  }
  void SayStart(std::map<std::string, std::string> settings = {}) {
    Say(LinkType::kStart, "", StartText(std::move(settings)));
  }
  // What the worker says until it is ready, by key.
  void WaitUntilReady() {
    for (;;) {
      Result<LinkMessage> message = NextLinkMessage(link_.get());
      ASSERT_TRUE(message.ok()) << message.status().ToString() << log_.seen();
      if (message->type == LinkType::kReady) return;
      ASSERT_EQ(message->type, LinkType::kPut);
      const std::string key = message->key;
      puts_[key] = *std::move(message);
    }
  }
  void StartReady(std::map<std::string, std::string> settings = {}) {
    StartProcess();
    SayStart(std::move(settings));
    Say(LinkType::kEntriesEnd);
    WaitUntilReady();
  }
  int ExitStatus() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  RawClient Connect() const { return RawClient(root_ / "run"); }

  const TemporaryDirectory root_;
  UniqueFd lease_, control_, link_;
  ProcessLog log_;
  pid_t pid_ = -1;
  std::map<std::string, LinkMessage> puts_;
};

TEST_F(WorkerTest, ServesWhenItHasSaidThatItIsReadyAndStopsWhenItIsTold) {
  root_.Write("base/m/model.safetensors", format::WriteSafetensors({NoiseTensor("w", 4096, 1)}));
  StartReady();
  RawClient client = Connect();
  ASSERT_TRUE(client.SendHello());
  const RawPacket welcome = client.Receive();
  ASSERT_EQ(welcome.header.type, FrameType::kWelcome);
  EXPECT_EQ(welcome.As<v1::Welcome>()->daemon_instance(), (uint64_t{77} << 32) | 3);
  EXPECT_EQ(welcome.As<v1::Welcome>()->session_id(), 1000u);
  ASSERT_TRUE(client.SendOpen(2, "m"));
  const RawPacket opened = client.Receive();
  ASSERT_EQ(opened.header.type, FrameType::kOpened) << opened.As<v1::Failed>()->message()->str();
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
  EXPECT_TRUE(client.Receive().closed);
}

TEST_F(WorkerTest, GivesTheKeeperEveryExtentBeforeAClientHasIt) {
  root_.Write("base/m/model.safetensors", format::WriteSafetensors({NoiseTensor("w", 4096, 1)}));
  StartReady();
  RawClient client = Connect();
  ASSERT_TRUE(client.Greet());
  ASSERT_TRUE(client.SendOpen(2, "m"));
  ASSERT_EQ(client.Receive().header.type, FrameType::kOpened);
  // All that was put by now is on the link.
  int extents = 0, replicas = 0;
  while (extents == 0 || replicas == 0) {
    pollfd ready{link_.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&ready, 1, 0), 1) << "a client has what the keeper has not";
    const Result<LinkMessage> message = ReceiveLink(link_.get());
    ASSERT_TRUE(message.ok());
    if (message->key.starts_with("extent/")) extents += message->fd.valid() ? 1 : 0;
    if (message->key.starts_with("replica/")) replicas += message->fd.valid() ? 1 : 0;
  }
}

TEST_F(WorkerTest, StopsWhenTheKeeperIsGone) {
  StartReady();
  link_.Reset();
  EXPECT_EQ(ExitStatus(), 0);
  log_.WaitFor("the keeper is gone, stopping");
}

TEST_F(WorkerTest, TheHashKeyIsMadeOnceAndHandedOn) {
  StartReady();
  ASSERT_TRUE(puts_.contains(kHashKeyEntry));
  const std::string seed = puts_.at(kHashKeyEntry).body;
  EXPECT_EQ(seed.size(), sizeof(UniversalHashKey::Seed));
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
  // The next one takes what it is given, unless that is none.
  for (const std::string& given : {seed, seed.substr(1), std::string()}) {
    puts_.clear();
    StartProcess();
    SayStart();
    Say(LinkType::kEntry, kHashKeyEntry, given);
    Say(LinkType::kEntriesEnd);
    WaitUntilReady();
    EXPECT_EQ(puts_.contains(kHashKeyEntry), given != seed) << given.size();
    if (given != seed) {
      EXPECT_NE(puts_.at(kHashKeyEntry).body, seed);  // Nobody can guess it.
    }
    Say(LinkType::kStop);
    EXPECT_EQ(ExitStatus(), 0);
  }
}

TEST_F(WorkerTest, WhatIsNoStartEndsItWithTheReason) {
  StartProcess();
  Say(LinkType::kEntry, "a", "b");
  EXPECT_EQ(ExitStatus(), 1);
  log_.WaitFor("the keeper's first message is not a start");
  for (const char* text : {"garbage", "{}", R"({"entries":[["eviction_policy","x","y"]]})"}) {
    StartProcess();
    Say(LinkType::kStart, "", text);
    EXPECT_EQ(ExitStatus(), 1);
    log_.WaitFor("worker can not start");
  }
  StartProcess();
  link_.Reset();
  EXPECT_EQ(ExitStatus(), 1);
}

TEST_F(WorkerTest, IsStoppedBeforeItHasItsLedger) {
  StartProcess();
  SayStart();
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 1);
  log_.WaitFor("stopped before it started");
}

TEST_F(WorkerTest, EntriesThatMeanNothingAreDropped) {
  StartProcess();
  SayStart();
  for (const char* key : {"extent/host/garbage", "replica/garbage", "pin/host/garbage", "pin/",
                          "rho", "whatever", ""}) {
    Say(LinkType::kEntry, key, "garbage");
  }
  Say(LinkType::kEntriesEnd);
  std::set<std::string> dropped;
  for (;;) {
    const Result<LinkMessage> message = NextLinkMessage(link_.get());
    ASSERT_TRUE(message.ok()) << log_.seen();
    if (message->type == LinkType::kReady) break;
    if (message->type == LinkType::kDrop) dropped.insert(message->key);
  }
  EXPECT_EQ(dropped, (std::set<std::string>{"extent/host/garbage", "replica/garbage",
                                            "pin/host/garbage", "pin/", "rho", "whatever", ""}));
}

TEST_F(WorkerTest, WithACatalogueThatIsBrokenNoWorkerWouldStart) {
  root_.Write("state/catalogue.json", "{");
  StartProcess();
  SayStart();
  Say(LinkType::kEntriesEnd);
  EXPECT_EQ(ExitStatus(), kWorkerFatalStatus);
  log_.WaitFor("cannot serve");
}

TEST_F(WorkerTest, AReloadTakesEffectAndOneThatIsNotUnderstoodIsIgnored) {
  StartReady();
  RawClient first = Connect();
  ASSERT_TRUE(first.Greet());
  for (const char* text : {"", "garbage", "{}", R"({"entries":[3]})",
                           R"({"entries":[["eviction_policy","x","y"]]})"}) {
    Say(LinkType::kConfig, "", text);
  }
  Say(static_cast<LinkType>(99), "", "");
  log_.WaitFor("keeper sent a message of unknown type, ignoring type=99");
  const std::string told = "reloaded configuration not understood, ignoring";
  size_t times = 0;
  for (size_t at = log_.seen().find(told); at != std::string::npos;
       at = log_.seen().find(told, at + 1))
    ++times;
  EXPECT_EQ(times, 5u);
  RawClient second = Connect();
  ASSERT_TRUE(second.Greet());
  Say(LinkType::kConfig, "", StartText({{"sessions_per_uid_max", "2"}}));
  Say(static_cast<LinkType>(98), "", "");
  log_.WaitFor("type=98");  // So the reload before it was read, too.
  RawClient third = Connect();
  third.SendHello();
  const RawPacket refused = third.Receive();
  EXPECT_TRUE(refused.closed || refused.header.type == FrameType::kFailed);
}

TEST_F(WorkerTest, TheTraceIsWrittenWhenItStops) {
  StartReady({{"write_profile", "true"}, {"profile_target", root_ / "trace.json"}});
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
  EXPECT_TRUE(std::filesystem::exists(root_ / "trace.json"));
}

TEST_F(WorkerTest, ATraceThatCanNotBeWrittenIsSaidAndDoesNoHarm) {
  StartReady({{"write_profile", "true"}, {"profile_target", root_ / "no/such/trace.json"}});
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
  log_.WaitFor("trace not written");
}

TEST_F(WorkerTest, SignalsOfATerminalAreTheKeepersBusiness) {
  StartReady();
  for (const int signal : {SIGINT, SIGQUIT, SIGHUP, SIGPIPE}) ASSERT_EQ(::kill(pid_, signal), 0);
  RawClient client = Connect();
  EXPECT_TRUE(client.Greet());
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
}

TEST_F(WorkerTest, WhatIsNoGrpcOnTheControlSocketHarmsNobody) {
  StartReady();
  for (const char* text : {"", "garbage\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage"}) {
    const Result<UniqueFd> operator_ = ConnectTo(root_ / "run/control.sock", SOCK_STREAM);
    ASSERT_TRUE(operator_.ok());
    (void)!::send(operator_->get(), text, std::string(text).size(), MSG_NOSIGNAL);
  }
  RawClient client = Connect();
  EXPECT_TRUE(client.Greet());
  Say(LinkType::kStop);
  EXPECT_EQ(ExitStatus(), 0);
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == trims::kWorkerFlag) return trims::RunWorker();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

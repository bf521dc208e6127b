// The keeper in a process of its own, and workers that are puppets: this program, started by the
// keeper as it would start a worker, hands its three descriptors to the test and does nothing but
// end as it is told. So the test itself is at the worker's end of the link.
#include "daemon/keeper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "daemon/ledger_link.h"
#include "daemon/log.h"
#include "daemon/test_link.h"
#include "daemon/worker.h"
#include "ipc/seqpacket.h"

namespace trims {
namespace {

constexpr char kDirectorVariable[] = "TRIMS_TEST_DIRECTOR";
// What a puppet that is told so does instead of exiting.
constexpr uint8_t kDieBySignal = 255;

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

int RunPuppet() {
  const char* const path = ::getenv(kDirectorVariable);
  if (path == nullptr) return 100;
  const UniqueFd director(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = AddressOf(path);
  if (::connect(director.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return 101;
  const pid_t pid = ::getpid();
  const std::array<int, 3> fds = {kWorkerLinkFd, kWorkerLeaseFd, kWorkerControlFd};
  if (!SendPacket(director.get(), std::as_bytes(std::span(&pid, 1)), {}, fds).ok()) return 102;
  for (const int fd : fds) ::close(fd);
  uint8_t how = 0;
  if (::read(director.get(), &how, 1) != 1) return 103;
  if (how == kDieBySignal) ::kill(pid, SIGSEGV);
  return how;
}

// A puppet, and its end of the link.
struct TestWorker {
  UniqueFd order;
  UniqueFd link, lease, control;
  pid_t pid = 0;
  WorkerStart start;
  std::map<std::string, LinkMessage> entries;

  // What the keeper sends first.
  void TakeLedger() {
    const Result<LinkMessage> first = Next();
    ASSERT_TRUE(first.ok());
    ASSERT_EQ(first->type, LinkType::kStart);
    Result<WorkerStart> decoded = DecodeWorkerStart(first->body);
    ASSERT_TRUE(decoded.ok()) << decoded.status().ToString();
    start = *std::move(decoded);
    for (;;) {
      Result<LinkMessage> message = Next();
      ASSERT_TRUE(message.ok());
      if (message->type == LinkType::kEntriesEnd) return;
      ASSERT_EQ(message->type, LinkType::kEntry);
      const std::string key = message->key;
      entries[key] = *std::move(message);
    }
  }
  Result<LinkMessage> Next() const { return NextLinkMessage(link.get()); }
  void Say(LinkType type, const std::string& key = "", const std::string& body = "", int fd = -1) {
    EXPECT_TRUE(SendLink(link.get(), type, key, body, fd).ok());
  }
  void SayReady() { Say(LinkType::kReady); }
  // Its end of the link goes with it, and not before: a keeper kills a worker that served and
  // has closed it.
  void Die(uint8_t how) {
    EXPECT_EQ(::write(order.get(), &how, 1), 1);
    EXPECT_TRUE(IsGone());
    link.Reset();
  }
  // Until the process is gone, whoever ended it.
  bool IsGone() {
    char byte;
    return WaitReadable(order.get()) && ::read(order.get(), &byte, 1) == 0;
  }
};

class KeeperTest : public testing::Test {
 protected:
  KeeperTest() {
    std::string pattern = testing::TempDir() + "keeperXXXXXX";
    root_ = ::mkdtemp(pattern.data());
    director_ = Bind("director", SOCK_SEQPACKET);
    EXPECT_EQ(::listen(director_.get(), 16), 0);
    notices_ = Bind("notices", SOCK_DGRAM);
    WriteConfig("");
  }
  ~KeeperTest() override {
    for (const pid_t pid : keepers_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }

  UniqueFd Bind(const std::string& name, int type) {
    UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    const sockaddr_un address = AddressOf(root_ + "/" + name);
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return socket;
  }
  std::string RuntimeDir() const { return root_ + "/run"; }
  std::string ConfigPath() const { return root_ + "/trims.toml"; }
  void WriteConfig(const std::string& text) { std::ofstream(ConfigPath()) << text; }
  Result<LoadedConfig> Load() const {
    ConfigSources sources;
    sources.flags = {{"runtime_dir", RuntimeDir()}, {"state_dir", root_ + "/state"}};
    sources.getenv = [](const std::string&) { return std::nullopt; };
    sources.files = {ConfigPath()};
    return LoadConfig(sources);
  }
  static std::string ThisProgram() { return std::filesystem::read_symlink("/proc/self/exe"); }

  void StartKeeper(KeeperOptions options = {}) {
    if (options.program.empty()) options.program = ThisProgram();
    if (options.config.entries.empty()) options.config = Load().value();
    options.reload = [this] { return Load(); };
    options.restart_pause_max = std::chrono::milliseconds(20);
    const UniqueFd theirs = log_.Open();
    keeper_ = ::fork();
    if (keeper_ == 0) {
      ::dup2(theirs.get(), STDERR_FILENO);
      ::setenv(kDirectorVariable, (root_ + "/director").c_str(), 1);
      ::setenv("NOTIFY_SOCKET", (root_ + "/notices").c_str(), 1);
      InitLog({});
      ::_exit(RunKeeper(std::move(options)));
    }
    keepers_.push_back(keeper_);
  }
  // One that kills a worker soon that ought to end.
  void StartImpatientKeeper() {
    KeeperOptions options;
    options.stop_deadline = std::chrono::milliseconds(50);
    StartKeeper(std::move(options));
  }
  // The next one that the keeper starts.
  TestWorker NextWorker() {
    TestWorker worker;
    if (!WaitReadable(director_.get())) {
      ADD_FAILURE() << "the keeper starts no worker; its log:\n" << log_.seen();
      return worker;
    }
    worker.order = UniqueFd(::accept4(director_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    std::array<std::byte, sizeof(pid_t)> buffer;
    if (!WaitReadable(worker.order.get())) return worker;
    Result<ReceivedPacket> packet = ReceivePacket(worker.order.get(), buffer, 3);
    EXPECT_TRUE(packet.ok());
    if (!packet.ok() || packet->fds.size() != 3) return worker;
    std::memcpy(&worker.pid, buffer.data(), sizeof worker.pid);
    worker.link = std::move(packet->fds[0]);
    worker.lease = std::move(packet->fds[1]);
    worker.control = std::move(packet->fds[2]);
    worker.TakeLedger();
    return worker;
  }
  TestWorker NextReadyWorker() {
    TestWorker worker = NextWorker();
    worker.SayReady();
    WaitForNotice("READY=1");
    return worker;
  }
  // In the log of the last keeper and its workers.
  void WaitForLog(const std::string& text) { log_.WaitFor(text); }
  std::string NextNotice() {
    char buffer[4096];
    if (!WaitReadable(notices_.get())) return "no notice";
    const ssize_t got = ::recv(notices_.get(), buffer, sizeof buffer, 0);
    return std::string(buffer, static_cast<size_t>(std::max<ssize_t>(got, 0)));
  }
  void WaitForNotice(const std::string& text) {
    for (;;) {
      const std::string notice = NextNotice();
      ASSERT_NE(notice, "no notice") << text;
      if (notice.find(text) != std::string::npos) return;
    }
  }
  void Signal(int signal) { EXPECT_EQ(::kill(keeper_, signal), 0); }
  // Waits for the keeper's end.
  int ExitStatus() {
    int status = 0;
    EXPECT_EQ(::waitpid(keeper_, &status, 0), keeper_);
    std::erase(keepers_, keeper_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  bool CanConnect() { return ConnectTo(RuntimeDir() + "/lease.sock", SOCK_SEQPACKET).ok(); }

  std::string root_;
  UniqueFd director_, notices_;
  ProcessLog log_;
  pid_t keeper_ = -1;
  std::vector<pid_t> keepers_;  // Not waited for yet.
};

// --- A worker's start -----------------------------------------------------------------

TEST_F(KeeperTest, AWorkerGetsItsNumberTheConfigurationAndTheSockets) {
  WriteConfig("slab_bytes = \"4MiB\"\n");
  StartKeeper();
  TestWorker worker = NextWorker();
  EXPECT_EQ(worker.start.worker_number, 1u);
  EXPECT_EQ(worker.start.keeper_pid, keeper_);
  EXPECT_GT(worker.start.started_at_unix, 0);
  EXPECT_EQ(worker.start.config.config.slab_bytes, 4u << 20);
  EXPECT_EQ(worker.start.config.config.runtime_dir, RuntimeDir());
  EXPECT_TRUE(worker.entries.empty());
  // Both sockets listen before the worker is ready, so that clients wait and are not refused.
  const Result<UniqueFd> client = ConnectTo(RuntimeDir() + "/lease.sock", SOCK_SEQPACKET);
  ASSERT_TRUE(client.ok()) << client.status().ToString();
  EXPECT_TRUE(WaitReadable(worker.lease.get()));
  EXPECT_TRUE(ConnectTo(RuntimeDir() + "/control.sock", SOCK_STREAM).ok());
  EXPECT_TRUE(WaitReadable(worker.control.get()));
  struct stat info {};
  ASSERT_EQ(::stat((RuntimeDir() + "/control.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, worker.start.config.config.control_socket_mode);
}

TEST_F(KeeperTest, EachWorkerHasANumberAndIdsThatNoneBeforeHad) {
  StartKeeper();
  TestWorker first = NextReadyWorker();
  first.Die(1);
  TestWorker second = NextWorker();
  EXPECT_EQ(second.start.worker_number, 2u);
  EXPECT_GE(second.start.id_base, first.start.id_base + (uint64_t{1} << 40));
  EXPECT_EQ(second.start.started_at_unix, first.start.started_at_unix);
}

// --- The ledger -----------------------------------------------------------------------

TEST_F(KeeperTest, WhatAWorkerPutTheNextOneGetsWithTheSameDescriptors) {
  StartKeeper();
  TestWorker first = NextReadyWorker();
  const UniqueFd old(::memfd_create("old", MFD_CLOEXEC));
  const UniqueFd memory(::memfd_create("memory", MFD_CLOEXEC));
  first.Say(LinkType::kPut, "a", "first", old.get());
  first.Say(LinkType::kPut, "b", "words only");
  first.Say(LinkType::kPut, "c", "to be dropped", old.get());
  first.Say(LinkType::kPut, "a", "second", memory.get());  // Replaces.
  first.Say(LinkType::kDrop, "c");
  first.Say(LinkType::kDrop, "never there");
  first.Die(kDieBySignal);
  for (int round = 0; round < 2; ++round) {  // And the one after the next.
    TestWorker next = NextReadyWorker();
    ASSERT_EQ(next.entries.size(), 2u);
    EXPECT_EQ(next.entries.at("a").body, "second");
    EXPECT_EQ(next.entries.at("b").body, "words only");
    EXPECT_FALSE(next.entries.at("b").fd.valid());
    struct stat mine {
    }, theirs{};
    ASSERT_EQ(::fstat(memory.get(), &mine), 0);
    ASSERT_EQ(::fstat(next.entries.at("a").fd.get(), &theirs), 0);
    EXPECT_EQ(mine.st_ino, theirs.st_ino);
    next.Die(1);
  }
}

TEST_F(KeeperTest, ALedgerLargerThanASocketIsHandedOn) {
  StartKeeper();
  TestWorker first = NextReadyWorker();
  const std::string body(kMaxLinkBodyBytes, 'b');
  for (int i = 0; i < 100; ++i) first.Say(LinkType::kPut, std::to_string(i), body);
  first.Die(1);
  EXPECT_EQ(NextWorker().entries.size(), 100u);
}

// --- Workers that die -----------------------------------------------------------------

TEST_F(KeeperTest, AWorkerThatServedIsReplacedHoweverOften) {
  StartKeeper();
  for (int i = 0; i < 2 * kWorkerCrashLoopLimit; ++i) NextReadyWorker().Die(1);
  NextReadyWorker();
  EXPECT_TRUE(CanConnect());
}

TEST_F(KeeperTest, WorkersThatDieBeforeTheyAreReadyAreGivenUpOnWithTheReason) {
  StartKeeper();
  for (int i = 0; i < kWorkerCrashLoopLimit; ++i) NextWorker().Die(3);
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("worker keeps dying before it is ready, giving up deaths=" +
             std::to_string(kWorkerCrashLoopLimit) + " last=\"exit status 3\"");
  EXPECT_FALSE(CanConnect());
}

TEST_F(KeeperTest, AWorkerThatBecomesReadyStartsTheCountAnew) {
  StartKeeper();
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < kWorkerCrashLoopLimit - 1; ++i) NextWorker().Die(kDieBySignal);
    NextReadyWorker().Die(1);
  }
  NextReadyWorker();
  WaitForLog("killed by Segmentation fault");
}

TEST_F(KeeperTest, AProgramThatCanNotBeStartedIsGivenUpOn) {
  KeeperOptions options;
  options.program = root_ + "/nothing";
  StartKeeper(std::move(options));
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("last=\"exit status 127\"");
}

TEST_F(KeeperTest, AWorkerThatSaysItWouldAlwaysEndSoEndsTheKeeper) {
  StartKeeper();
  NextWorker().Die(kWorkerFatalStatus);
  EXPECT_EQ(ExitStatus(), 1);
}

TEST_F(KeeperTest, NoWorkerOutlivesItsKeeper) {
  StartKeeper();
  TestWorker worker = NextReadyWorker();
  Signal(SIGKILL);
  EXPECT_TRUE(worker.IsGone());
  ExitStatus();
}

// --- Workers that say what they like --------------------------------------------------

TEST_F(KeeperTest, AMessageOfUnknownTypeIsIgnored) {
  StartKeeper();
  TestWorker worker = NextReadyWorker();
  worker.Say(static_cast<LinkType>(99), "key", "body");
  worker.Say(LinkType::kStart, "", "what only a keeper says");
  worker.Say(LinkType::kPut, "a", "after");
  WaitForLog("unknown type, ignoring type=99");
  WaitForLog("unknown type, ignoring type=1\n");
  worker.Die(1);
  EXPECT_EQ(NextWorker().entries.at("a").body, "after");
}

TEST_F(KeeperTest, AWorkerThatSendsWhatIsNoMessageIsReplacedAndTheLedgerStays) {
  const std::vector<std::string> garbage = {"x", std::string(16, '\xff'),
                                            std::string(kMaxPacketBytes + 100, 'x')};
  StartImpatientKeeper();
  for (const bool is_ready : {true, false}) {
    for (const std::string& bytes : garbage) {
      TestWorker worker = is_ready ? NextReadyWorker() : NextWorker();
      worker.Say(LinkType::kPut, "a", "kept");
      ASSERT_EQ(::send(worker.link.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(bytes.size()));
      EXPECT_TRUE(worker.IsGone());  // It lives on, unless it is killed.
    }
  }
  TestWorker next = NextReadyWorker();
  EXPECT_EQ(next.entries.at("a").body, "kept");
}

TEST_F(KeeperTest, AWorkerThatClosesItsLinkAndLivesIsReplaced) {
  StartImpatientKeeper();
  for (const bool is_ready : {true, false}) {
    TestWorker worker = is_ready ? NextReadyWorker() : NextWorker();
    worker.link.Reset();
    EXPECT_TRUE(worker.IsGone());
  }
  NextReadyWorker();
}

// --- Signals --------------------------------------------------------------------------

TEST_F(KeeperTest, ATermSignalStopsTheWorkerFirstAndTakesTheSocketsAway) {
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT}) {
    StartKeeper();
    TestWorker worker = NextReadyWorker();
    Signal(signal);
    const Result<LinkMessage> message = worker.Next();
    ASSERT_TRUE(message.ok());
    EXPECT_EQ(message->type, LinkType::kStop);
    EXPECT_TRUE(CanConnect());  // As long as the worker is at it.
    worker.Die(0);
    EXPECT_EQ(ExitStatus(), 0);
    WaitForNotice("STOPPING=1");
    EXPECT_FALSE(std::filesystem::exists(RuntimeDir() + "/lease.sock"));
    EXPECT_FALSE(std::filesystem::exists(RuntimeDir() + "/control.sock"));
  }
}

TEST_F(KeeperTest, AWorkerThatDoesNotStopInTimeIsKilled) {
  StartImpatientKeeper();
  TestWorker worker = NextReadyWorker();
  Signal(SIGTERM);
  EXPECT_EQ(ExitStatus(), 0);
  WaitForLog("worker did not stop in time, killing it");
  EXPECT_TRUE(worker.IsGone());
}

TEST_F(KeeperTest, ASecondTermSignalKillsTheWorkerAtOnce) {
  KeeperOptions options;
  options.stop_deadline = std::chrono::hours(1);
  StartKeeper(std::move(options));
  TestWorker worker = NextReadyWorker();
  Signal(SIGTERM);
  ASSERT_EQ(worker.Next()->type, LinkType::kStop);
  Signal(SIGTERM);
  EXPECT_EQ(ExitStatus(), 0);
}

TEST_F(KeeperTest, AReloadedSettingReachesThisWorkerAndTheNext) {
  WriteConfig("eviction_policy = \"lru\"\n");
  StartKeeper();
  TestWorker worker = NextReadyWorker();
  WriteConfig("eviction_policy = \"fifo\"\n");
  Signal(SIGHUP);
  const Result<LinkMessage> message = worker.Next();
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->type, LinkType::kConfig);
  const Result<WorkerStart> reloaded = DecodeWorkerStart(message->body);
  ASSERT_TRUE(reloaded.ok());
  EXPECT_EQ(reloaded->config.config.eviction_policy, store::PolicyKind::kFifo);
  EXPECT_EQ(NextNotice(), "RELOADING=1");
  EXPECT_EQ(NextNotice(), "READY=1");
  worker.Die(1);
  EXPECT_EQ(NextWorker().start.config.config.eviction_policy, store::PolicyKind::kFifo);
}

TEST_F(KeeperTest, AConfigurationThatCanNotBeUsedKeepsTheOldOne) {
  WriteConfig("eviction_policy = \"fifo\"\nslab_bytes = \"4MiB\"\n");
  StartKeeper();
  TestWorker worker = NextReadyWorker();
  WriteConfig("eviction_policy = \"no such\"\n");
  Signal(SIGHUP);
  WaitForLog("configuration not reloaded, keeping the old one");
  WaitForNotice("READY=1");
  // One that needs a restart is named, and nothing else of its file is taken either.
  WriteConfig("eviction_policy = \"lru\"\nslab_bytes = \"8MiB\"\n");
  Signal(SIGHUP);
  WaitForLog("this key needs a restart key=slab_bytes");
  WaitForNotice("READY=1");
  worker.Die(1);
  const TestWorker next = NextWorker();
  EXPECT_EQ(next.start.config.config.eviction_policy, store::PolicyKind::kFifo);
  EXPECT_EQ(next.start.config.config.slab_bytes, 4u << 20);
}

// --- The runtime directory ------------------------------------------------------------

TEST_F(KeeperTest, ASecondKeeperSaysWhoIsThereAndLeavesTheFirstAlone) {
  StartKeeper();
  TestWorker worker = NextReadyWorker();
  const pid_t first = keeper_;
  StartKeeper();
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("another trimsd (pid " + std::to_string(first) + ") serves " + RuntimeDir());
  EXPECT_TRUE(CanConnect());
  EXPECT_TRUE(WaitReadable(worker.lease.get()));
  keeper_ = first;
  worker.Say(LinkType::kStatusText, "", "still here");
  WaitForNotice("STATUS=still here");
  // When the first is gone, however it went, the directory is free.
  Signal(SIGKILL);
  ExitStatus();
  StartKeeper();
  NextReadyWorker();
}

TEST_F(KeeperTest, ARuntimeDirectoryThatIsNoneIsRefused) {
  std::ofstream(RuntimeDir()) << "a file";
  StartKeeper();
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("is not a directory");
}

TEST_F(KeeperTest, ARuntimeDirectoryOfAnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "giving a directory away takes root";
  std::filesystem::create_directory(RuntimeDir());
  ASSERT_EQ(::chown(RuntimeDir().c_str(), 65534, 65534), 0);
  StartKeeper();
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("belongs to uid 65534");
}

TEST_F(KeeperTest, ARuntimeDirectoryThatOthersMayWriteIsClosedToThem) {
  std::filesystem::create_directory(RuntimeDir());
  ASSERT_EQ(::chmod(RuntimeDir().c_str(), 0777), 0);
  StartKeeper();
  NextWorker();
  struct stat info {};
  ASSERT_EQ(::stat(RuntimeDir().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777u, 0755u);
  ASSERT_EQ(::stat((root_ + "/state").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777u, 0700u);
}

TEST_F(KeeperTest, AnAdminGroupThatIsNoneIsRefused) {
  WriteConfig("admin_group = \"no-such-group-here\"\n");
  StartKeeper();
  EXPECT_EQ(ExitStatus(), 1);
  WaitForLog("admin_group names no group of this machine: no-such-group-here");
}

// --- The service manager --------------------------------------------------------------

TEST_F(KeeperTest, TheServiceManagerHearsWhatBecomesOfTheDaemon) {
  StartKeeper();
  TestWorker worker = NextWorker();
  worker.SayReady();
  EXPECT_EQ(NextNotice(), "READY=1\nSTATUS=serving");
  worker.Say(LinkType::kStatusText, "", "7 models");
  EXPECT_EQ(NextNotice(), "STATUS=7 models");
  worker.Die(1);
  EXPECT_EQ(NextNotice(), "STATUS=restarting the worker");
  NextWorker().SayReady();
  EXPECT_EQ(NextNotice(), "READY=1\nSTATUS=serving");
}

TEST(NotifyTest, AnAbstractSocketIsReachedAndWhatIsNoneIsIgnored) {
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const std::string name = "trims-notify-test-" + std::to_string(::getpid());
  sockaddr_un address = AddressOf("@" + name);
  address.sun_path[0] = '\0';
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address),
                   static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())),
            0);
  const std::string too_long = "/" + std::string(sizeof address.sun_path, 'x');
  for (const std::string& nowhere :
       {std::string(), name, too_long, std::string("/nothing/there")}) {
    ::setenv("NOTIFY_SOCKET", nowhere.c_str(), 1);
    NotifyServiceManager("LOST=1");
  }
  ::setenv("NOTIFY_SOCKET", ("@" + name).c_str(), 1);
  NotifyServiceManager("READY=1");
  ::unsetenv("NOTIFY_SOCKET");
  NotifyServiceManager("LOST=1");
  char buffer[64];
  ASSERT_EQ(::recv(socket.get(), buffer, sizeof buffer, 0), 7);
  EXPECT_EQ(std::string(buffer, 7), "READY=1");
  EXPECT_LT(::recv(socket.get(), buffer, sizeof buffer, 0), 0);
}

// --- The start message ----------------------------------------------------------------

TEST(WorkerStartTest, ArrivesAsItWasSentWithTheOriginOfEverySetting) {
  WorkerStart start;
  ConfigSources sources;
  sources.flags = {{"runtime_dir", "/somewhere"}, {"memory_percentage", "0.25"}};
  sources.getenv = [](const std::string&) { return std::nullopt; };
  start.config = LoadConfig(sources).value();
  start.worker_number = 3;
  start.keeper_pid = 4;
  start.started_at_unix = 5;
  start.id_base = uint64_t{1} << 63;
  const Result<WorkerStart> arrived = DecodeWorkerStart(EncodeWorkerStart(start));
  ASSERT_TRUE(arrived.ok()) << arrived.status().ToString();
  EXPECT_EQ(arrived->worker_number, 3u);
  EXPECT_EQ(arrived->keeper_pid, 4);
  EXPECT_EQ(arrived->started_at_unix, 5);
  EXPECT_EQ(arrived->id_base, uint64_t{1} << 63);
  EXPECT_EQ(arrived->config.config.memory_percentage, 0.25);
  ASSERT_EQ(arrived->config.entries.size(), start.config.entries.size());
  for (size_t i = 0; i < start.config.entries.size(); ++i) {
    EXPECT_EQ(arrived->config.entries[i].value, start.config.entries[i].value);
    EXPECT_EQ(arrived->config.entries[i].origin, start.config.entries[i].origin);
  }
}

TEST(WorkerStartTest, WhatIsNoneIsAnErrorAndNeverAnException) {
  for (const char* text :
       {"", "{", "[]", "3", "{}", R"({"entries":3})", R"({"entries":{}})", R"({"entries":[3]})",
        R"({"entries":[["a","b"]]})", R"({"entries":[["a","b","c","d"]]})",
        R"({"entries":[[1,2,3]]})", R"({"entries":[["no_such_key","b","c"]]})",
        R"({"entries":[["eviction_policy","no such","c"]]})"}) {
    EXPECT_FALSE(DecodeWorkerStart(text).ok()) << text;
  }
  const Result<WorkerStart> odd =
      DecodeWorkerStart(R"({"entries":[],"worker_number":"x","id_base":null,"keeper_pid":1.5})");
  ASSERT_TRUE(odd.ok()) << odd.status().ToString();
  EXPECT_EQ(odd->worker_number, 0u);
  EXPECT_EQ(odd->id_base, 0u);
  EXPECT_EQ(odd->keeper_pid, 0);
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == trims::kWorkerFlag) return trims::RunPuppet();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

// The program itself, as a process, against a control server in this one.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "cli/text.h"
#include "daemon/control_server.h"
#include "daemon/fake_control_backend.h"

namespace trims::cli {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

// A running program with pipes, or a terminal as its stderr.
class Process final {
 public:
  Process(const std::vector<std::string>& words, const std::vector<std::string>& environment,
          bool terminal) {
    int out[2];
    int err[2];
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    if (terminal) {
      winsize size{.ws_row = 24, .ws_col = 100, .ws_xpixel = 0, .ws_ypixel = 0};
      EXPECT_EQ(::openpty(&err[0], &err[1], nullptr, nullptr, &size), 0);
      ::fcntl(err[0], F_SETFD, FD_CLOEXEC);
      ::fcntl(err[1], F_SETFD, FD_CLOEXEC);
    } else {
      EXPECT_EQ(::pipe2(err, O_CLOEXEC), 0);
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    std::vector<char*> argv = {const_cast<char*>(TRIMS_PROGRAM)};
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    std::vector<char*> envp;
    for (const std::string& one : environment) envp.push_back(const_cast<char*>(one.c_str()));
    for (char** one = environ; *one != nullptr; ++one) {  // Of the build, not of the test.
      const std::string_view name(*one);
      if (name.starts_with("TSAN_OPTIONS=") || name.starts_with("ASAN_OPTIONS="))
        envp.push_back(*one);
    }
    envp.push_back(nullptr);
    EXPECT_EQ(::posix_spawn(&pid_, TRIMS_PROGRAM, &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    ::close(err[1]);
    out_ = UniqueFd(out[0]);
    err_ = UniqueFd(err[0]);
  }

  pid_t pid() const { return pid_; }

  // Reads until `text` was seen on stdout.
  void WaitForOutput(const std::string& text) {
    while (outcome_.out.find(text) == std::string::npos && ReadSome()) {
    }
  }

  void WaitForError(const std::string& text) {
    while (outcome_.err.find(text) == std::string::npos && ReadSome()) {
    }
  }

  Outcome Wait() {
    while (ReadSome()) {
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    outcome_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome_;
  }

 private:
  bool ReadSome() {
    pollfd polls[2] = {{out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}};
    if (!out_.valid() && !err_.valid()) return false;
    ::poll(polls, 2, -1);
    char buffer[4096];
    for (int i = 0; i < 2; ++i) {
      UniqueFd& fd = i == 0 ? out_ : err_;
      if (!fd.valid() || polls[i].revents == 0) continue;
      const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
      if (got > 0) {
        (i == 0 ? outcome_.out : outcome_.err).append(buffer, static_cast<size_t>(got));
      } else {
        fd.Reset();  // End of file; EIO from a terminal.
      }
    }
    return true;
  }

  pid_t pid_ = -1;
  UniqueFd out_;
  UniqueFd err_;
  Outcome outcome_;
};

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/trims-cli-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
    backend_.AddModel("vgg16", 'a', 553'648'128);
    backend_.AddModel("lenet:1", 'b', 1'724'416);
    backend_.MakeResident("vgg16");
  }
  void TearDown() override {
    StopDaemon();
    std::filesystem::remove_all(directory_);
  }

  void StartDaemon() {
    auto server = ControlServer::Start(&backend_);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
    listener_ = Listen("control.sock", SOCK_STREAM);
    lease_listener_ = Listen("lease.sock", SOCK_SEQPACKET);
    ASSERT_EQ(::pipe2(stop_, O_CLOEXEC), 0);
    acceptor_ = std::thread([this] {
      while (true) {
        pollfd polls[2] = {{listener_.get(), POLLIN, 0}, {stop_[0], POLLIN, 0}};
        ::poll(polls, 2, -1);
        if (polls[1].revents != 0) return;
        UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!connection.valid()) continue;
        EXPECT_TRUE(server_->Serve(std::move(connection)).ok());
      }
    });
  }
  void StopDaemon() {
    if (!acceptor_.joinable()) return;
    ::close(stop_[1]);
    acceptor_.join();
    ::close(stop_[0]);
    server_.reset();
    listener_.Reset();
    lease_listener_.Reset();
  }

  UniqueFd Listen(const std::string& name, int type) {
    UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    (directory_ + "/" + name).copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(socket.get(), 64), 0);
    return socket;
  }

  std::vector<std::string> Environment() const {
    return {"TRIMS_RUNTIME_DIR=" + directory_, "PATH=/usr/bin:/bin", "HOME=" + directory_,
            "TERM=xterm", "LANG=C.UTF-8"};
  }
  std::unique_ptr<Process> Spawn(const std::vector<std::string>& words, bool terminal = false) {
    return std::make_unique<Process>(words, Environment(), terminal);
  }
  Outcome Run(const std::vector<std::string>& words) { return Spawn(words)->Wait(); }

  // gpu:0 serves, gpu:1 was lost, gpu:2 never worked.
  void AddDevices() {
    backend_.ChangeStatus([](v1::GetStatusResponse* status) {
      status->set_gpu("2 x NVIDIA H200");
      status->set_cuda_driver("13.0");
      status->set_verifications(7);
      status->set_quarantines(1);
      status->set_host_pinned_bytes(3 * kGiB);
      for (uint32_t i = 0; i < 3; ++i) {
        v1::DeviceView* device = status->add_devices();
        device->set_ordinal(i);
        device->set_uuid("GPU-fa4e" + std::string(i, '1') + "c0da");
        device->set_name(i == 2 ? "NVIDIA T4" : "NVIDIA H200");
        device->set_total_bytes(140 * kGiB);
        if (i == 2) {
          device->set_state("out of memory while making a context");
          break;
        }
        device->set_tier("gpu:" + device->uuid());
        device->set_ready(i == 0);
        device->set_state(i == 0 ? "ready" : "the device was lost");
        device->set_free_bytes(100 * kGiB);
        device->set_pinned_pool_bytes(i == 0 ? 128 * kMiB : 256 * kMiB);
        device->set_pinned_pool_bytes_max(256 * kMiB);
        v1::LinkView* host = device->add_links();
        host->set_from("host");
        host->set_bytes_per_second(55.1e9);
        v1::LinkView* peer = device->add_links();
        peer->set_from(i == 0 ? "GPU-fa4e1c0da" : "GPU-fa4ec0da");
        peer->set_bytes_per_second(i == 0 ? 396e9 : 0);
        peer->set_direct(i == 0);
        v1::TierView* tier = status->add_tiers();
        tier->set_name(device->tier());
        tier->set_budget_bytes(111 * kGiB);
        if (i == 0) tier->set_used_bytes(12 * kGiB);
        if (i == 0) tier->set_client_pinned_bytes(2 * kGiB);
        if (i == 1) tier->set_health("the device was lost");
      }
    });
  }

  FakeControlBackend backend_;
  std::string directory_;
  std::unique_ptr<ControlServer> server_;
  UniqueFd listener_;
  UniqueFd lease_listener_;
  int stop_[2] = {-1, -1};
  std::thread acceptor_;
};

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

const std::string kTier0 = "gpu:GPU-fa4ec0da";
const std::string kDigestA = "sha256:" + std::string(64, 'a');

// --- Lists --------------------------------------------------------------------

TEST_F(CliTest, LsShowsAnAlignedTable) {
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(Lines(outcome.out),
              ElementsAre("NAME     DIGEST             SIZE  TENSORS  RESIDENT  SOURCE",
                          "lenet:1  bbbbbbbbbbbb    1.6 MiB        2  -         /models/lenet:1",
                          "vgg16    aaaaaaaaaaaa  528.0 MiB        2  host      /models/vgg16"));
  EXPECT_THAT(outcome.err, IsEmpty());
}

TEST_F(CliTest, LsHasQuietJsonAndWholeDigests) {
  StartDaemon();
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\nvgg16\n");
  EXPECT_EQ(Run({"list", "--quiet"}).out, "lenet:1\nvgg16\n");
  EXPECT_THAT(Run({"ls", "--no-truncate"}).out, HasSubstr(kDigestA));
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"ls", "--json"}, {"--json", "ls"}}) {
    const json models = json::parse(Run(words).out);
    ASSERT_EQ(models.size(), 2u);
    EXPECT_EQ(models[1]["name"], "vgg16");
    EXPECT_EQ(models[1]["weight_bytes"], 553'648'128u);
    EXPECT_EQ(models[1]["origin"], "added");
    EXPECT_EQ(models[1]["replicas"][0]["state"], "ready");
    EXPECT_EQ(models[1]["replicas"][0]["until"], nullptr);
  }
}

TEST_F(CliTest, AModelWithoutANameIsListedByItsDigest) {
  backend_.Change("vgg16", [](FakeControlBackend::FakeModel& model) {
    model.view.set_name("my label");
    model.view.set_origin(v1::MODEL_ORIGIN_DESCRIPTOR);
  });
  StartDaemon();
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\n@" + kDigestA + "\n");
}

TEST_F(CliTest, NamesCanNotWriteOverTheScreen) {
  backend_.Change("vgg16", [](FakeControlBackend::FakeModel& model) {
    model.view.set_name("evil\x1b[2J\n\xc2\x9bname");
  });
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_THAT(outcome.out, HasSubstr("evil?[2J??name"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));
}

TEST_F(CliTest, PsSaysWhatEndsEachReplica) {
  char fill = 'b';
  for (const char* name : {"m-leased", "m-pinned", "m-draining", "m-expiring"}) {
    backend_.AddModel(name, ++fill, 1 << 20);
    backend_.MakeResident(name);
  }
  backend_.AddLease("m-leased", 7, 0, 42, "python3");
  backend_.Change("m-pinned",
                  [](auto& model) { model.view.mutable_replicas(0)->set_pinned(true); });
  backend_.Change("m-draining", [](auto& model) {
    model.view.mutable_replicas(0)->set_state(v1::REPLICA_STATE_DRAINING);
    model.view.mutable_replicas(0)->set_leases(3);
  });
  backend_.Change("m-expiring", [](auto& model) {
    *model.view.mutable_replicas(0)->mutable_until() =
        google::protobuf::util::TimeUtil::GetCurrentTime() +
        google::protobuf::util::TimeUtil::HoursToDuration(100);
  });
  StartDaemon();
  const Outcome outcome = Run({"ps"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_EQ(lines.size(), 8u);
  // How wide UNTIL is, the time decides.
  EXPECT_THAT(
      lines[0],
      AllOf(StartsWith("NAME        DIGEST             SIZE  TIER  LEASES  STATE     UNTIL "),
            EndsWith("  HELD BY")));
  EXPECT_THAT(lines[1], StartsWith("m-draining  eeeeeeeeeeee    1.0 MiB  host       3  draining  "
                                   "released "));
  EXPECT_THAT(lines[2], AllOf(StartsWith("m-expiring"), HasSubstr("h"), HasSubstr("from now")));
  EXPECT_THAT(
      lines[3],
      AllOf(StartsWith("m-leased    cccccccccccc    1.0 MiB  host       1  ready     released "),
            EndsWith("  python3(42)")));
  EXPECT_THAT(
      lines[4],
      AllOf(StartsWith("m-pinned    dddddddddddd    1.0 MiB  host       0  ready     unpinned "),
            EndsWith("  pinned")));
  EXPECT_THAT(
      lines[5],
      AllOf(StartsWith("vgg16       aaaaaaaaaaaa  528.0 MiB  host       0  ready     evicted "),
            EndsWith("  -")));
  EXPECT_EQ(lines[6], "");
  EXPECT_EQ(lines[7], "host: 1.0 GiB of 8.0 GiB");
}

TEST_F(CliTest, PsShowsWhoPinsWhatOnWhichDevice) {
  AddDevices();
  backend_.MakeResident("vgg16", kTier0);
  backend_.Change("vgg16", [](auto& model) { model.view.mutable_replicas(1)->set_pinned(true); });
  uint64_t lease = 0;
  for (const int pid : {4711, 12, 12, 13, 14, 15}) {
    backend_.AddLease("vgg16", ++lease, 0, pid, pid == 4711 ? "python" : "trims", kTier0);
  }
  StartDaemon();
  const std::string out = Run({"ps"}).out;
  EXPECT_THAT(out,
              HasSubstr("gpu:0       6  ready  unpinned  pinned, python(4711), trims(12) and 3 "
                        "more\n"));
  EXPECT_THAT(out, HasSubstr("host        0  ready  evicted   -\n"));
  EXPECT_THAT(out,
              HasSubstr("\nhost: 1.0 GiB of 8.0 GiB\n"
                        "gpu:0 NVIDIA H200: 12.0 GiB of 111.0 GiB, 2.0 GiB pinned by clients\n"
                        "gpu:1 NVIDIA H200: 0 B of 111.0 GiB: NOT SERVING: the device was "
                        "lost\n"
                        "gpu:2 NVIDIA T4: not served: out of memory while making a context\n"));
  const std::string whole = Run({"ps", "--no-truncate"}).out;
  EXPECT_THAT(whole, AllOf(HasSubstr(kTier0 + "       6"), HasSubstr("trims(15)\n"),
                           HasSubstr("\n" + kTier0 + " NVIDIA H200: 12.0 GiB")));
  const json rows = json::parse(Run({"ps", "--json"}).out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_TRUE(rows[0]["held_by"].empty());
  EXPECT_EQ(rows[1]["held_by"].size(), 5u);
  EXPECT_EQ(rows[1]["held_by"][1],
            json::parse(R"({"pid":12,"command":"trims","uid":0,"leases":2})"));
  EXPECT_EQ(Run({"ps", "-q"}).out, "vgg16\n");
}

TEST_F(CliTest, DevicesAreChosenByNumberUuidOrAlone) {
  AddDevices();
  StartDaemon();
  for (const char* typed : {"gpu:0", "0", "GPU-fa4ec", "gpu:fa4ec", "gpu:GPU-FA4EC"}) {
    const Outcome outcome = Run({"load", "lenet:1", "--device", typed});
    EXPECT_EQ(outcome.code, 0) << typed << ": " << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr(" in gpu:0")) << typed;
    EXPECT_EQ(backend_.load_requests().back().tier(), kTier0) << typed;
  }
  EXPECT_EQ(Run({"load", "lenet:1", "--tier", "gpu:0"}).code, 0);
  EXPECT_EQ(backend_.load_requests().back().tier(), kTier0);
  // Several devices: the daemon says so.
  EXPECT_EQ(Run({"load", "lenet:1", "--device", "gpu"}).code, 3);
  EXPECT_EQ(backend_.load_requests().back().tier(), "gpu");
  EXPECT_THAT(Run({"ls"}).out, HasSubstr("  gpu:0  "));
  EXPECT_THAT(Run({"show", "lenet:1"}).out, HasSubstr("gpu:0  ready"));
  EXPECT_EQ(Run({"pin", "lenet:1", "--device", "0"}).out, "lenet:1 is pinned in gpu:0\n");
  EXPECT_EQ(Run({"unpin", "lenet:1", "--device", "0"}).out,
            "lenet:1 is no longer pinned in gpu:0\n");
  EXPECT_THAT(Run({"verify", "lenet:1", "--device", "0"}).out, HasSubstr("gpu:0  1.6 MiB  intact"));
  backend_.AddLease("lenet:1", 7, 0, 42, "python3", kTier0);
  EXPECT_EQ(Run({"leases", "--device", "0", "-q"}).out, "7\n");
  EXPECT_THAT(Run({"leases"}).out, HasSubstr("gpu:0"));
  EXPECT_EQ(Run({"leases", "--device", "1", "-q"}).out, "");
  EXPECT_THAT(Run({"evict", "lenet:1", "--device", "0", "--force"}).out,
              HasSubstr("drains from gpu:0"));
}

TEST_F(CliTest, ANumberThatNoDeviceHasIsNotTakenForADigitOfItsUuid) {
  backend_.ChangeStatus([](v1::GetStatusResponse* status) {
    v1::DeviceView* device = status->add_devices();
    device->set_uuid("GPU-7ac0da");
    device->set_tier("gpu:GPU-7ac0da");
  });
  StartDaemon();
  EXPECT_EQ(Run({"load", "lenet:1", "--device", "gpu:7"}).code, 3);
  EXPECT_EQ(backend_.load_requests().back().tier(), "gpu:7");
}

TEST_F(CliTest, WrongDevicesAreExplained) {
  StartDaemon();
  for (const char* command : {"load", "pin", "unpin", "evict", "verify", "leases"}) {
    const Outcome both = Run({command, "vgg16", "--tier", "host", "--device", "gpu:0"});
    EXPECT_EQ(both.code, 2) << command;
    EXPECT_THAT(both.err, HasSubstr("--tier excludes --device")) << command;
    const Outcome host = Run({command, "vgg16", "--device", "host"});
    EXPECT_EQ(host.code, 2) << command;
    EXPECT_THAT(host.err,
                AllOf(HasSubstr("\"host\" is no device: gpu:0, a UUID"), HasSubstr("hint: ")))
        << command;
  }
  EXPECT_TRUE(backend_.load_requests().empty());
}

TEST_F(CliTest, PsJsonHasOneObjectPerReplica) {
  backend_.MakeResident("vgg16", "gpu:GPU-0");
  StartDaemon();
  const json rows = json::parse(Run({"ps", "--json"}).out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["name"], "vgg16");
  EXPECT_EQ(rows[0]["tier"], "host");
  EXPECT_EQ(rows[1]["tier"], "gpu:GPU-0");
  EXPECT_EQ(Run({"ps", "-q"}).out, "vgg16\n");
}

TEST_F(CliTest, LeasesSayWhoHoldsWhat) {
  backend_.AddLease("vgg16", 7, 0, 42, "python3");
  StartDaemon();
  const Outcome outcome = Run({"leases"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], HasSubstr("LEASE  MODEL"));
  EXPECT_THAT(lines[1], AllOf(HasSubstr("7  vgg16  aaaaaaaaaaaa  host  528.0 MiB  root"),
                              HasSubstr("42  python3")));
  EXPECT_EQ(Run({"leases", "-q"}).out, "7\n");
  EXPECT_EQ(json::parse(Run({"leases", "vgg16", "--json"}).out)[0]["command"], "python3");
  EXPECT_EQ(Run({"leases", "lenet:1", "-q"}).out, "");
  EXPECT_EQ(Run({"leases", "nothing"}).code, 3);
}

TEST_F(CliTest, ShowTellsEverything) {
  backend_.AddLease("vgg16", 7, 0, 42, "python3");
  StartDaemon();
  const Outcome outcome = Run({"show", "vgg16"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("name      vgg16\n"), HasSubstr(kDigestA),
                                 HasSubstr("528.0 MiB (553648128 bytes)"), HasSubstr("format = pt"),
                                 HasSubstr("GRANULARITY"), HasSubstr("python3")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("fc.weight")));
  EXPECT_THAT(Run({"show", "vgg16", "--tensors"}).out,
              AllOf(HasSubstr("fc.weight  F32"), HasSubstr("[69206016]")));
  EXPECT_THAT(Run({"show", "lenet:1"}).out, HasSubstr("not resident in any tier"));
  const json shown = json::parse(Run({"show", "vgg16", "--tensors", "--json"}).out);
  EXPECT_EQ(shown["tensors"][1]["name"], "fc.weight");
  EXPECT_EQ(shown["metadata"]["format"], "pt");
  EXPECT_EQ(shown["leases"][0]["pid"], 42);
  EXPECT_FALSE(json::parse(Run({"show", "vgg16", "--json"}).out).contains("tensors"));
}

TEST_F(CliTest, DigestsMayBeShortened) {
  StartDaemon();
  for (const std::string typed :
       {"aaaaaaaaaaaa", "sha256:aaaaaa", "@sha256:aaaaaaaaaa", "AAAAAA"}) {
    EXPECT_THAT(Run({"show", typed}).out, HasSubstr("name      vgg16\n")) << typed;
  }
  EXPECT_EQ(Run({"show", kDigestA}).code, 0);
  EXPECT_EQ(Run({"show", "@" + kDigestA}).code, 0);
  EXPECT_EQ(Run({"show", "sha256:cccccc"}).code, 3);
  EXPECT_EQ(Run({"show", "sha256:xyz"}).code, 2);
  backend_.AddModel("twin", 'a', 5);
  EXPECT_EQ(Run({"show", "aaaaaa"}).code, 0);  // One digest with two names.
  backend_.Change(
      "twin", [](auto& model) { model.view.set_digest("sha256:aaaaaaaa" + std::string(56, '0')); });
  const Outcome outcome = Run({"show", "aaaaaa"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("2 models"));
}

// --- Changes ------------------------------------------------------------------

TEST_F(CliTest, AddSendsAnAbsolutePath) {
  StartDaemon();
  const Outcome outcome = Run({"add", "mine/net:2", "some/../weights.safetensors"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::string expected = (std::filesystem::current_path() / "weights.safetensors").string();
  EXPECT_EQ(outcome.out, "mine/net:2 names " + expected + " (4.0 KiB in 2 tensors)\n");
  const Outcome again = Run({"add", "mine/net:2", "/x"});
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, AllOf(StartsWith("trims: the name mine/net:2 is taken\n"),
                               HasSubstr("hint: "), HasSubstr("--replace")));
  const Outcome replaced = Run({"add", "mine/net:2", "/x", "--replace", "--json"});
  EXPECT_EQ(json::parse(replaced.out)["source"], "/x");
}

TEST_F(CliTest, LoadReportsOnceWhenPiped) {
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(StartsWith("lenet:1 is in host: 1.6 MiB in "), HasSubstr("/s)\n")));
  EXPECT_THAT(outcome.err, IsEmpty());
  EXPECT_EQ(Run({"load", "lenet:1"}).out, "lenet:1 is already in host (1.6 MiB)\n");
  EXPECT_EQ(Run({"prefetch", "lenet:1", "-q"}).out, "");
}

TEST_F(CliTest, LoadShowsABarOnATerminal) {
  backend_.HoldLoads(true);
  StartDaemon();
  auto process = Spawn({"load", "lenet:1"}, true);
  backend_.WaitForRunning(1);
  backend_.HoldLoads(false);
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("lenet:1 loading"), HasSubstr("[####"),
                                 HasSubstr("of 1.6 MiB"), HasSubstr("left")));
}

TEST_F(CliTest, LoadJsonIsOneObjectPerLine) {
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1", "--json"});
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_GE(lines.size(), 3u);
  EXPECT_EQ(json::parse(lines.front())["phase"], "queued");
  const json last = json::parse(lines.back());
  EXPECT_EQ(last["phase"], "ready");
  EXPECT_EQ(last["name"], "lenet:1");
  EXPECT_EQ(last["model"]["replicas"][0]["tier"], "host");
}

TEST_F(CliTest, LoadPassesItsOptionsOn) {
  StartDaemon();
  EXPECT_EQ(Run({"load", "lenet:1", "vgg16", "--tier", "gpu:GPU-0", "--granularity", "auto",
                 "--keep-alive", "1m30s", "--pin"})
                .code,
            0);
  EXPECT_EQ(Run({"load", "vgg16", "--keep-alive", "forever"}).code, 0);
  EXPECT_EQ(Run({"load", "vgg16", "--keep-alive", "0"}).code, 0);
  const auto requests = backend_.load_requests();
  ASSERT_EQ(requests.size(), 4u);
  EXPECT_EQ(requests[1].model(), "vgg16");
  EXPECT_EQ(requests[1].tier(), "gpu:GPU-0");
  EXPECT_EQ(requests[1].granularity(), v1::SHARING_GRANULARITY_AUTO);
  EXPECT_EQ(requests[1].keep_alive().seconds(), 90);
  EXPECT_LT(requests[2].keep_alive().seconds(), 0);
  EXPECT_TRUE(requests[3].has_keep_alive());
  EXPECT_EQ(requests[3].keep_alive().seconds(), 0);
  EXPECT_THAT(Run({"ps"}).out, HasSubstr("unpinned"));
}

TEST_F(CliTest, LoadRefusesBadOptionsBeforeAsking) {
  StartDaemon();
  const Outcome outcome = Run({"load", "vgg16", "--keep-alive", "5"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--keep-alive"));
  EXPECT_EQ(Run({"load", "vgg16", "--granularity", "huge"}).code, 2);
  EXPECT_EQ(Run({"load"}).code, 2);
  EXPECT_TRUE(backend_.load_requests().empty());
}

TEST_F(CliTest, InterruptingALoadTellsTheDaemon) {
  backend_.HoldLoads(true);
  StartDaemon();
  auto process = Spawn({"load", "lenet:1"});
  backend_.WaitForRunning(1);
  ::kill(process->pid(), SIGINT);
  EXPECT_EQ(process->Wait().code, 128 + SIGINT);
  backend_.WaitForAbandoned(1);
}

TEST_F(CliTest, NoRoomIsExitCodeFive) {
  backend_.set_capacity_bytes(1000);
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("need 1724416 bytes"), HasSubstr("trims evict")));
}

TEST_F(CliTest, EvictDropsAndSaysHowMuch) {
  StartDaemon();
  EXPECT_EQ(Run({"evict", "vgg16"}).out, "vgg16 dropped from host, 528.0 MiB freed\n");
  const Outcome again = Run({"stop", "vgg16"});
  EXPECT_EQ(again.code, 3);
  EXPECT_THAT(again.err, HasSubstr("not resident"));
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\nvgg16\n");
}

TEST_F(CliTest, EvictRefusesLeasedModelsAndSaysWhoHoldsThem) {
  backend_.AddLease("vgg16", 7, 0, 4242, "python3");
  StartDaemon();
  const Outcome refused = Run({"evict", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("vgg16 is leased in host"), HasSubstr("--force"),
                                 HasSubstr("4242"), HasSubstr("python3")));
  EXPECT_THAT(refused.out, IsEmpty());
  const Outcome forced = Run({"evict", "vgg16", "--force", "--json"});
  EXPECT_EQ(forced.code, 0) << forced.err;
  const json results = json::parse(forced.out);
  EXPECT_EQ(results[0]["replicas"][0]["draining"], true);
  EXPECT_EQ(Run({"evict", "vgg16", "--force"}).out,
            "vgg16 drains from host: 1 leases still hold 528.0 MiB\n");
}

TEST_F(CliTest, OneFailureDoesNotStopTheOthersButDecidesTheCode) {
  StartDaemon();
  const Outcome outcome = Run({"evict", "nothing", "vgg16"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.out, HasSubstr("vgg16 dropped"));
}

TEST_F(CliTest, PinAndUnpin) {
  StartDaemon();
  EXPECT_EQ(Run({"pin", "vgg16"}).out, "vgg16 is pinned in host\n");
  EXPECT_THAT(Run({"pin", "lenet:1"}).out, HasSubstr("not loaded yet"));
  const Outcome refused = Run({"evict", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("pinned"), HasSubstr("--force")));
  EXPECT_EQ(Run({"unpin", "vgg16"}).out, "vgg16 is no longer pinned\n");
  EXPECT_EQ(json::parse(Run({"pin", "vgg16", "--json"}).out)[0]["pinned"], true);
  EXPECT_EQ(Run({"pin", "nothing"}).code, 3);
}

TEST_F(CliTest, RmTakesTheNameAway) {
  backend_.AddLease("vgg16", 7, 0, 4242, "python3");
  StartDaemon();
  const Outcome refused = Run({"rm", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, HasSubstr("4242"));
  EXPECT_EQ(Run({"rm", "lenet:1"}).out, "lenet:1 removed; its files stay at /models/lenet:1\n");
  EXPECT_EQ(Run({"rm", "vgg16", "--force"}).code, 0);
  EXPECT_EQ(Run({"ls", "-q"}).out, "");
  EXPECT_EQ(Run({"remove", "vgg16"}).code, 3);
}

TEST_F(CliTest, VerifyFindsDamage) {
  backend_.MakeResident("lenet:1");
  StartDaemon();
  const Outcome good = Run({"verify"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out,
              AllOf(HasSubstr("VERDICT"), HasSubstr("intact"), Not(HasSubstr("DAMAGED"))));
  EXPECT_EQ(Run({"verify", "-q"}).out, "");
  backend_.Change("lenet:1", [](auto& model) { model.corrupt = true; });
  const Outcome bad = Run({"verify"});
  EXPECT_EQ(bad.code, 6);
  EXPECT_THAT(bad.out, AllOf(HasSubstr("DAMAGED"), HasSubstr("tensor fc.weight, chunk 0")));
  EXPECT_THAT(bad.err, HasSubstr("1 of 2 replicas"));
  EXPECT_EQ(Run({"verify", "vgg16"}).code, 0);
  const Outcome lines = Run({"verify", "lenet:1", "--json"});
  EXPECT_EQ(lines.code, 6);
  EXPECT_EQ(json::parse(Lines(lines.out).back())["verdict"]["intact"], false);
}

TEST_F(CliTest, WatchPrintsALinePerEventUntilTheDaemonStops) {
  StartDaemon();
  for (const bool as_json : {false, true}) {
    auto process = Spawn(as_json ? std::vector<std::string>{"watch", "--json"}
                                 : std::vector<std::string>{"watch"});
    backend_.WaitForRunning(1);
    v1::Event event;
    event.set_kind(v1::EVENT_KIND_EVICTED);
    event.set_model("vgg16");
    event.set_tier("host");
    event.set_detail("lru");
    backend_.Publish(event);
    process->WaitForOutput("\n");
    if (as_json) StopDaemon();
    if (!as_json) ::kill(process->pid(), SIGTERM);
    const Outcome outcome = process->Wait();
    if (as_json) {
      EXPECT_EQ(json::parse(outcome.out)["kind"], "evicted");
      EXPECT_EQ(outcome.code, 7);
      EXPECT_THAT(outcome.err, HasSubstr("the daemon is stopping"));
    } else {
      EXPECT_THAT(outcome.out, HasSubstr("evicted      vgg16  host  lru\n"));
      backend_.WaitForAbandoned(1);
      backend_.WaitForRunning(0);
    }
  }
}

// --- The daemon itself --------------------------------------------------------

TEST_F(CliTest, StatusShowsTiersAndCounters) {
  StartDaemon();
  const Outcome outcome = Run({"status"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("restarted 2 times"), HasSubstr("10, of these 9 without a load"),
                    HasSubstr("export 3.0 us, open 12.0 us"), HasSubstr("host  8.0 GiB  1.0 GiB")));
  EXPECT_EQ(json::parse(Run({"status", "--json"}).out)["tiers"][0]["budget_bytes"],
            uint64_t{8} << 30);
}

TEST_F(CliTest, StatusShowsDevicesAndTheirHealth) {
  AddDevices();
  StartDaemon();
  const std::string out = Run({"status"}).out;
  EXPECT_THAT(out, AllOf(HasSubstr("cuda driver     13.0\n"),
                         HasSubstr("verified        7 replicas, of these 1 had wrong bytes\n"),
                         HasSubstr("host pinned     3.0 GiB, for copies to devices\n")));
  EXPECT_THAT(out,
              AllOf(HasSubstr("gpu:0  111.0 GiB"), HasSubstr("NOT SERVING: the device was lost")));
  EXPECT_THAT(out, HasSubstr("GPU-fa4ec0da    ready"));
  EXPECT_THAT(out,
              HasSubstr("100.0 GiB  140.0 GiB  128.0 MiB of 256.0 MiB  from host 55.1 GB/s, from "
                        "gpu:1 396.0 GB/s\n"));
  EXPECT_THAT(out, HasSubstr("from gpu:0 not measured (through the host)\n"));
  const json status = json::parse(Run({"status", "--json"}).out);
  EXPECT_EQ(status["devices"][0]["links"][1]["bytes_per_second"], 396e9);
  EXPECT_EQ(status["tiers"][1]["client_pinned_bytes"], 2 * kGiB);
}

TEST_F(CliTest, ConfigShowAsksTheDaemonOrThisProcess) {
  StartDaemon();
  EXPECT_EQ(Run({"config", "show"}).out, "KEY              VALUE\neviction_policy  lru\n");
  EXPECT_THAT(Run({"config", "show", "--origin"}).out,
              HasSubstr("environment UPRD_EVICTION_POLICY"));
  EXPECT_EQ(json::parse(Run({"config", "show", "--json"}).out)[0]["reloadable"], true);
  StopDaemon();
  const Outcome unreachable = Run({"config", "show"});
  EXPECT_EQ(unreachable.code, 7);
  EXPECT_THAT(unreachable.err, HasSubstr("--local"));
  const Outcome local = Run({"config", "show", "--local", "--origin"});
  EXPECT_EQ(local.code, 0) << local.err;
  EXPECT_THAT(local.out, AllOf(HasSubstr("runtime_dir"), HasSubstr(directory_),
                               HasSubstr("environment TRIMS_RUNTIME_DIR")));
}

TEST_F(CliTest, ConfigCheckFindsMistakesAndAcceptsTheDefaultFile) {
  const Outcome defaults = Run({"config", "default"});
  EXPECT_EQ(defaults.code, 0);
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << defaults.out;
  EXPECT_EQ(Run({"config", "check", path}).code, 0);
  std::ofstream(path) << "evicton_policy = \"lru\"\n";
  const Outcome bad = Run({"config", "check", path});
  EXPECT_NE(bad.code, 0);
  EXPECT_THAT(bad.err, AllOf(HasSubstr(path), HasSubstr("evicton_policy")));
  EXPECT_EQ(Run({"config", "check", path + ".none"}).code, 3);
  EXPECT_EQ(Run({"config"}).code, 2);
}

TEST_F(CliTest, VersionNamesBothSides) {
  EXPECT_THAT(Run({"version"}).out, HasSubstr("daemon not reachable"));
  EXPECT_EQ(json::parse(Run({"version", "--json"}).out)["daemon_version"], nullptr);
  StartDaemon();
  backend_.set_version("9.9.9");
  const Outcome outcome = Run({"version"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.out, AllOf(StartsWith("trims "), HasSubstr("daemon 9.9.9\n")));
}

TEST_F(CliTest, DoctorSaysWhatToDoWithoutADaemon) {
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("FAIL  control socket"), HasSubstr("trims serve"),
                                 HasSubstr("OK    memfd sealing"), HasSubstr("OK    /proc")));
}

TEST_F(CliTest, DoctorChecksARunningDaemon) {
  StartDaemon();
  backend_.set_version("9.9.9");
  const json findings = json::parse(Run({"doctor", "--json"}).out);
  const auto level = [&findings](const std::string& check) {
    for (const json& finding : findings) {
      EXPECT_EQ(finding["level"] == "OK", finding["advice"] == "") << finding;
      if (finding["check"] == check) return finding["level"].get<std::string>();
    }
    return std::string("missing");
  };
  EXPECT_EQ(level("runtime directory"), "OK");
  EXPECT_EQ(level("control socket"), "OK");
  EXPECT_EQ(level("lease socket"), "OK");
  EXPECT_EQ(level("daemon version"), "WARN");
  EXPECT_EQ(level("daemon worker"), "WARN");
  for (const char* check :
       {"memory", "open files", "locked memory", "huge pages", "transparent huge pages", "gpu"}) {
    EXPECT_NE(level(check), "missing") << check;
  }
}

TEST_F(CliTest, DoctorSaysWhatTheDaemonServesAndWhatIsWrongWithIt) {
  AddDevices();
  StartDaemon();
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(
      outcome.out,
      AllOf(HasSubstr("WARN  daemon gpu:0"), HasSubstr("load buffers 128.0 MiB of 256.0 MiB\n"),
            HasSubstr("LimitMEMLOCK=infinity"), HasSubstr("vm.nr_hugepages=128")));
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("FAIL  daemon gpu:1"), HasSubstr("the device was lost\n")));
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("WARN  daemon gpu:2"),
                                 HasSubstr("NVIDIA T4 is not served: out of memory")));
  EXPECT_THAT(outcome.out, HasSubstr("this process does not see GPU-fa4ec0da"));
}

#ifdef FAKE_CUDA_LIBRARY
TEST_F(CliTest, DoctorTriesTheDriverOfThisProcess) {
  StartDaemon();
  const std::vector<std::string> gpus = {"TRIMS_CUDA_LIBRARY=" FAKE_CUDA_LIBRARY,
                                         "FAKE_CUDA_DIR=" + directory_ + "/gpu",
                                         "FAKE_CUDA_DEVICES=2"};
  const auto doctor = [&](const std::vector<std::string>& more) {
    std::vector<std::string> environment = Environment();
    environment.insert(environment.end(), gpus.begin(), gpus.end());
    environment.insert(environment.end(), more.begin(), more.end());
    return Process({"doctor"}, environment, false).Wait().out;
  };
  EXPECT_THAT(
      doctor({}),
      AllOf(HasSubstr("2 devices visible to this process; the driver supports CUDA 13.0\n"),
            HasSubstr("GPU-fa4ec0da-0000-4000-8000-000000000001, 1.0 GiB; sharing memory was "
                      "tried: works\n"),
            HasSubstr("all devices read each other directly\n"),
            HasSubstr("the daemon does not see GPU-fa4ec0da-0000-4000-8000-000000000000, "
                      "GPU-fa4ec0da-0000-4000-8000-000000000001")));
  EXPECT_THAT(doctor({"CUDA_VISIBLE_DEVICES=1"}), HasSubstr("1 device visible"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=peer"}), HasSubstr("are copied through the host to"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=posix_fd"}),
              HasSubstr("no sharing of memory by descriptor"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=vmm"}), HasSubstr("no virtual memory management"));
  EXPECT_THAT(doctor({"FAKE_CUDA_FAIL=cuMemImportFromShareableHandle:1+=999"}),
              AllOf(HasSubstr("FAIL  gpu #0"), HasSubstr("sharing memory was tried: ")));
  EXPECT_THAT(doctor({"FAKE_CUDA_FAIL=cuInit:1+=304"}), HasSubstr("WARN  gpu "));
}
#endif

TEST_F(CliTest, DoctorFailsWhenOthersCanPlantSockets) {
  StartDaemon();
  ASSERT_EQ(::chmod(directory_.c_str(), 0777), 0);
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("FAIL  runtime directory"));
  EXPECT_EQ(Run({"ls"}).code, 7);
}

TEST_F(CliTest, ServeBecomesTheDaemonWithItsOptions) {
  // Beside a copy of the program, where an installed daemon would be.
  const std::string bin = directory_ + "/bin";
  std::filesystem::create_directory(bin);
  std::filesystem::copy_file(TRIMS_PROGRAM, bin + "/trims");
  std::ofstream(bin + "/trimsd") << "#!/bin/sh\necho \"$@\"\nexit 42\n";
  ASSERT_EQ(::chmod((bin + "/trimsd").c_str(), 0755), 0);
  const auto shell = [&](const std::string& arguments) {
    std::string out;
    FILE* pipe = ::popen((bin + "/trims " + arguments).c_str(), "r");
    char buffer[256];
    while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) out += buffer;
    return std::pair(out, WEXITSTATUS(::pclose(pipe)));
  };
  EXPECT_EQ(shell("serve --eviction-policy lru --json -q x"),
            std::pair(std::string("--eviction-policy lru --json -q x\n"), 42));
  EXPECT_EQ(shell("--runtime-dir /r serve --help").first, "--runtime-dir /r --help\n");
  EXPECT_EQ(shell("serve --runtime-dir /r").first, "--runtime-dir /r\n");
  EXPECT_EQ(shell("serve").first, "\n");
}

// --- bench --------------------------------------------------------------------

TEST_F(CliTest, BenchSaysWhatItsArgumentsShouldBe) {
  AddDevices();
  StartDaemon();
  const Outcome small = Run({"bench", "open", "--size", "64KiB", "--tensors", "10,5000"});
  EXPECT_EQ(small.code, 2);
  EXPECT_THAT(small.err, HasSubstr("--size 64KiB is too small for 5000 tensors"));
  const Outcome place = Run({"bench", "load", "--from", "tape"});
  EXPECT_THAT(place.err,
              HasSubstr("--from tape: page-cache, disk, host or peer:gpu:1 were expected"));
  EXPECT_EQ(place.code, 2);
  EXPECT_THAT(Run({"bench", "load", "--from", "host"}).err, HasSubstr("give --device gpu:0"));
  EXPECT_THAT(Run({"bench", "load", "--from", "peer"}).err, HasSubstr("give --device gpu:0"));
  const Outcome lost = Run({"bench", "open", "--device", "gpu:1"});
  EXPECT_EQ(lost.code, 7);
  EXPECT_THAT(lost.err, HasSubstr("does not serve gpu:1 (NVIDIA H200): the device was lost"));
  const Outcome none = Run({"bench", "open", "--device", "gpu:7"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("no device gpu:7; it serves gpu:0 (NVIDIA H200)"));
  EXPECT_THAT(Run({"bench", "open", "--device", "gpu:0"}).err,
              HasSubstr("this process can not use gpu:0: "));
}

TEST_F(CliTest, BenchCopyMeasuresWithoutADaemonAndLeavesNothing) {
  const std::string files = directory_ + "/files";
  std::filesystem::create_directory(files);
  const Outcome outcome =
      Run({"bench", "copy", "--size", "1MiB,3MiB", "--runs", "2", "--dir", files, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_EQ(result["benchmark"], "copy");
  EXPECT_GE(result["machine"]["cores"], 1);
  bool read = false;
  for (const json& one : result["results"]) {
    EXPECT_EQ(one["times"]["runs"], 2) << one;
    EXPECT_GT(one["bytes_per_second"], 0) << one;
    read = read || (one["copy"] == "page_cache_read" && one["bytes"] > (3 << 20));
  }
  EXPECT_TRUE(read) << outcome.out;
  EXPECT_TRUE(std::filesystem::is_empty(files));
  EXPECT_THAT(Run({"bench", "copy", "--size", "1MiB", "--runs", "1"}).out,
              AllOf(HasSubstr("host memcpy, 1 thread"), HasSubstr(" GB/s")));
}

TEST_F(CliTest, InterruptingABenchmarkLeavesNothing) {
  const std::string files = directory_ + "/files";
  std::filesystem::create_directory(files);
  auto process =
      Spawn({"bench", "copy", "--size", "4MiB", "--runs", "1000000", "--dir", files}, true);
  process->WaitForError("host memcpy");
  ::kill(process->pid(), SIGINT);
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("interrupted"));
  EXPECT_TRUE(std::filesystem::is_empty(files));
}

// --- Reaching the daemon ------------------------------------------------------

TEST_F(CliTest, NoDaemonIsExitCodeSevenEverywhere) {
  for (const std::vector<std::string>& words : {std::vector<std::string>{"ls"},
                                                {"ps"},
                                                {"show", "x"},
                                                {"load", "x"},
                                                {"evict", "x"},
                                                {"pin", "x"},
                                                {"unpin", "x"},
                                                {"rm", "x"},
                                                {"verify"},
                                                {"leases"},
                                                {"add", "x", "/y"},
                                                {"watch"},
                                                {"status"},
                                                {"bench", "open"},
                                                {"bench", "load"},
                                                {"config", "show"}}) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.code, 7) << words[0];
    EXPECT_THAT(outcome.err,
                AllOf(StartsWith("trims: can not reach the daemon"), HasSubstr("\nhint: ")))
        << words[0];
    EXPECT_THAT(outcome.out, IsEmpty()) << words[0];
  }
}

TEST_F(CliTest, ADeadSocketSaysThatTheDaemonMayBeGone) {
  Listen("control.sock", SOCK_STREAM);  // Closed at once; the inode stays.
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr("may be gone"));
}

TEST_F(CliTest, TheFlagOverridesTheEnvironment) {
  StartDaemon();
  EXPECT_EQ(Run({"--runtime-dir", "/nonexistent", "ls"}).code, 7);
  EXPECT_EQ(Run({"ls", "--runtime-dir=/nonexistent"}).code, 7);
  Process process({"ls", "-q", "--runtime-dir", directory_}, {"TRIMS_RUNTIME_DIR=/nonexistent"},
                  false);
  EXPECT_EQ(process.Wait().code, 0);
}

TEST_F(CliTest, TheDirectoryMayComeFromTheConfigurationFile) {
  StartDaemon();
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "runtime_dir = \"" << directory_ << "\"\n";
  Process process({"ls", "-q"}, {"TRIMS_CONFIG=" + path, "TRIMS_MISSPELT=1"}, false);
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "lenet:1\nvgg16\n");
}

TEST_F(CliTest, TheDefaultDirectoryIsTheDaemons) {
  if (::geteuid() == 0) {
    Process process({"config", "show", "--local", "--json"}, {"HOME=/root"}, false);
    EXPECT_THAT(process.Wait().out, HasSubstr("\"/run/trims\""));
    return;
  }
  Process process({"ls"}, {"XDG_RUNTIME_DIR=" + directory_}, false);
  EXPECT_THAT(process.Wait().err, HasSubstr(directory_ + "/trims"));
  Process other({"ls"}, {}, false);
  EXPECT_THAT(other.Wait().err, HasSubstr("/tmp/trims-" + std::to_string(::geteuid())));
}

TEST_F(CliTest, ErrorsOfTheDaemonAreShownWithAHint) {
  backend_.set_unary_error(UnavailableError("the worker is being restarted"));
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, StartsWith("trims: the worker is being restarted\nhint: "));
}

// --- The command line ---------------------------------------------------------

TEST_F(CliTest, UnknownCommandsGetASuggestion) {
  const Outcome outcome = Run({"laod", "vgg16"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err,
            "trims: there is no command \"laod\"\nhint: did you mean \"trims load\"?\n");
  EXPECT_THAT(Run({"frobnicate"}).err, HasSubstr("\"trims --help\" lists"));
}

TEST_F(CliTest, WrongArgumentsAreExitCodeTwo) {
  for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                {"--bogus"},
                                                {"ls", "--bogus"},
                                                {"ls", "extra"},
                                                {"show"},
                                                {"show", "a", "b"},
                                                {"evict"},
                                                {"add", "onlyname"},
                                                {"completion"},
                                                {"completion", "tcsh"},
                                                {"config", "shwo"},
                                                {"load", "x", "--tier"},
                                                {"load", "x", "--device"},
                                                {"bench"},
                                                {"bench", "opne"},
                                                {"bench", "open", "--size", "512"},
                                                {"bench", "open", "--size", "1KiB"},
                                                {"bench", "open", "--runs", "0"},
                                                {"bench", "open", "--tensors", "0"},
                                                {"bench", "open", "--sparse", "--dense"},
                                                {"bench", "load", "--dir", "/nonexistent"},
                                                {"bench", "copy", "--device", "host"},
                                                {"bench", "copy", "--from", "disk"}}) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.code, 2) << testing::PrintToString(words);
    EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: "), HasSubstr("hint: ")))
        << testing::PrintToString(words);
    EXPECT_THAT(outcome.out, IsEmpty()) << testing::PrintToString(words);
  }
}

TEST_F(CliTest, HelpGoesToStdoutAndNamesTheExitCodes) {
  const Outcome outcome = Run({"--help"});
  EXPECT_EQ(outcome.code, 0);
  for (const char* word :
       {"serve",  "add",    "ls",         "ps",      "show",
        "load",   "evict",  "pin",        "unpin",   "rm",
        "verify", "leases", "watch",      "status",  "config",
        "bench",  "doctor", "completion", "version", "7  the daemon can not be reached"}) {
    EXPECT_THAT(outcome.out, HasSubstr(word));
  }
  EXPECT_THAT(Run({"load", "--help"}).out,
              AllOf(HasSubstr("--granularity"), HasSubstr("trims load")));
  EXPECT_THAT(Run({"--version"}).out, StartsWith("trims "));
}

TEST_F(CliTest, ColoursOnlyOnATerminalThatWantsThem) {
  EXPECT_THAT(Run({"ls"}).err, Not(HasSubstr("\033[")));
  EXPECT_THAT(Spawn({"ls"}, true)->Wait().err, HasSubstr("\033["));
  std::vector<std::string> environment = Environment();
  environment.push_back("NO_COLOR=1");
  Process process({"ls"}, environment, true);
  EXPECT_THAT(process.Wait().err, Not(HasSubstr("\033[")));
}

// Output of a shell command; its exit status in `code`.
std::string Shell(const std::string& command, int* code) {
  std::string out;
  FILE* pipe = ::popen(command.c_str(), "r");
  char buffer[4096];
  while (size_t got = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, got);
  *code = WEXITSTATUS(::pclose(pipe));
  return out;
}

TEST_F(CliTest, BashCompletesCommandsOptionsAndModels) {
  StartDaemon();
  const std::string script = directory_ + "/trims.bash";
  std::ofstream(script) << Run({"completion", "bash"}).out;
  int code = -1;
  Shell("bash -n " + script, &code);
  ASSERT_EQ(code, 0);
  const auto complete = [&](const std::string& words) {
    // The last word is being completed.
    return Shell("PATH=" + std::filesystem::path(TRIMS_PROGRAM).parent_path().string() +
                     ":$PATH TRIMS_RUNTIME_DIR=" + directory_ + " bash -c 'source " + script +
                     "; COMP_WORDS=(" + words +
                     "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _trims; printf \"%s\\n\" "
                     "\"${COMPREPLY[@]}\"' 2>&1",
                 &code);
  };
  EXPECT_EQ(complete("trims lea"), "leases\n");
  EXPECT_THAT(complete("trims \"\""), AllOf(HasSubstr("evict\n"), HasSubstr("completion\n")));
  EXPECT_EQ(complete("trims load --gran"), "--granularity\n");
  EXPECT_EQ(complete("trims load --json vg"), "vgg16\n");
  EXPECT_EQ(complete("trims stop vg"), "vgg16\n");
  EXPECT_EQ(complete("trims --runtime-dir " + directory_ + " show vg"), "vgg16\n");
  EXPECT_EQ(complete("trims load --granularity l"), "layer\n");
  EXPECT_EQ(complete("trims ben"), "bench\n");
  EXPECT_EQ(complete("trims bench lo"), "load\n");
  EXPECT_EQ(complete("trims bench load --fro"), "--from\n");
  EXPECT_EQ(complete("trims bench load --from pag"), "page-cache\n");
  EXPECT_EQ(complete("trims config sh"), "show\n");
  EXPECT_EQ(complete("trims config show --lo"), "--local\n");
  EXPECT_EQ(complete("trims completion z"), "zsh\n");
}

TEST_F(CliTest, ZshAndFishScriptsParseWhereTheseShellsAre) {
  for (const std::string shell : {"zsh", "fish"}) {
    const Outcome outcome = Run({"completion", shell});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, AllOf(HasSubstr("granularity"), HasSubstr("trims ls -q")));
    int code = -1;
    Shell("command -v " + shell, &code);
    if (code != 0) continue;
    const std::string script = directory_ + "/script." + shell;
    std::ofstream(script) << outcome.out;
    EXPECT_EQ((Shell(shell + " -n " + script + " 2>&1", &code)), "");
    EXPECT_EQ(code, 0) << shell;
  }
}

// --- Text ---------------------------------------------------------------------

TEST(TextTest, TablesAreCutToTheWidthOfTheTerminal) {
  Table table({"NAME", ">SIZE"});
  table.AddRow({"a-name-that-is-much-too-long-for-the-line", "1 B"});
  table.AddRow({"é€", "22 B"});
  const std::vector<std::string> lines = Lines(table.Render(24));
  EXPECT_THAT(lines, ElementsAre("NAME                SIZE", "a-name-that-is-mu…   1 B",
                                 "é€                  22 B"));
  EXPECT_THAT(table.Render(), HasSubstr("too-long-for-the-line   1 B"));
}

TEST(TextTest, NearestIsQuietWhenNothingIsNear) {
  EXPECT_EQ(Nearest("laod", {"load", "ls"}), "load");
  EXPECT_EQ(Nearest("evit", {"evict", "verify"}), "evict");
  EXPECT_EQ(Nearest("xyzzy", {"evict", "verify", "load"}), "");
}

}  // namespace
}  // namespace trims::cli

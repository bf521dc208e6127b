#include "cli/test_cli.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <utility>

#include "daemon/control_server.h"

namespace trims::cli {

namespace {

// This process's end and the program's, of a pipe or of a terminal.
std::pair<UniqueFd, UniqueFd> OpenOutput(unsigned short columns) {
  int ends[2];
  if (columns == 0) {
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  } else {
    winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    EXPECT_EQ(::openpty(&ends[0], &ends[1], nullptr, nullptr, &size), 0);
    ::fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    ::fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  }
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

Process::Process(const Words& words, const std::vector<std::string>& environment,
                 Terminals terminals) {
  auto [out, program_out] = OpenOutput(terminals.out);
  auto [err, program_err] = OpenOutput(terminals.err);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, program_out.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, program_err.get(), 2);
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
  out_ = std::move(out);
  err_ = std::move(err);
}

Process::~Process() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Process::WaitForOutput(const std::string& text) {
  while (outcome_.out.find(text) == std::string::npos && ReadSome()) {
  }
}

void Process::WaitForError(const std::string& text) {
  while (outcome_.err.find(text) == std::string::npos && ReadSome()) {
  }
}

Outcome Process::Wait() {
  while (ReadSome()) {
  }
  int status = 0;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  outcome_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome_;
}

bool Process::ReadSome() {
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

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(line);
  }
  return lines;
}

std::string Shell(const std::string& command, int* code) {
  std::string out;
  FILE* pipe = ::popen(command.c_str(), "r");
  char buffer[4096];
  while (size_t got = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, got);
  *code = WEXITSTATUS(::pclose(pipe));
  return out;
}

CliTest::CliTest() = default;
CliTest::~CliTest() = default;

void CliTest::SetUp() {
  char directory[] = "/tmp/trims-cli-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  directory_ = directory;
  backend_.AddModel("vgg16", 'a', 553'648'128);
  backend_.AddModel("lenet:1", 'b', 1'724'416);
  backend_.MakeResident("vgg16");
}

void CliTest::TearDown() {
  StopDaemon();
  std::filesystem::remove_all(directory_);
}

void CliTest::StartDaemon() {
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

void CliTest::StopDaemon() {
  if (!acceptor_.joinable()) return;
  ::close(stop_[1]);
  acceptor_.join();
  ::close(stop_[0]);
  server_.reset();
  listener_.Reset();
  lease_listener_.Reset();
}

UniqueFd CliTest::Listen(const std::string& name, int type) {
  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  (directory_ + "/" + name).copy(address.sun_path, sizeof address.sun_path - 1);
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::listen(socket.get(), 64), 0);
  return socket;
}

std::vector<std::string> CliTest::Environment() const {
  return {"TRIMS_RUNTIME_DIR=" + directory_, "PATH=/usr/bin:/bin", "HOME=" + directory_,
          "TERM=xterm", "LANG=C.UTF-8"};
}

std::unique_ptr<Process> CliTest::Spawn(const Words& words, Terminals terminals) {
  return std::make_unique<Process>(words, Environment(), terminals);
}

Outcome CliTest::RunWith(const Words& words, const std::vector<std::string>& more) {
  std::vector<std::string> environment = Environment();
  environment.insert(environment.end(), more.begin(), more.end());
  return Process(words, environment).Wait();
}

json CliTest::RunJson(Words words, int code) {
  words.emplace_back("--json");
  const Outcome outcome = Run(words);
  EXPECT_EQ(outcome.code, code) << outcome.err;
  if (outcome.code != code) return nullptr;
  json parsed = json::parse(outcome.out, nullptr, false);
  EXPECT_FALSE(parsed.is_discarded()) << outcome.out;
  return parsed.is_discarded() ? json() : parsed;
}

void CliTest::AddDevices() {
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

}  // namespace trims::cli

// A real daemon for tests: trimsd in its own temporary directories, and models
// written on the spot. The daemon ends with the object, and must have ended well:
// with status 0, and without a session's end or an error in its log that the test
// did not announce. Header only.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "format/test_files.h"
#include "tests/log_judge.h"
#include "trims/trims.h"

namespace trims::testing_support {

// Repeats `condition` until it holds; false after `seconds`. For what other
// processes do in their own time.
inline bool Eventually(const std::function<bool()>& condition, int seconds = 30) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// The daemon under test: the environment's TRIMSD_BINARY, for tests that are run elsewhere
// than they were built, or this build's.
inline std::string DaemonBinary() {
  const char* const elsewhere = ::getenv("TRIMSD_BINARY");
  return elsewhere != nullptr ? elsewhere : TRIMSD_BINARY;
}

// How long a stress test goes on, and by which random numbers: what TRIMS_SOAK_SECONDS and
// TRIMS_TEST_SEED say, else 10 s and others each time.
inline int Seconds() {
  const char* text = ::getenv("TRIMS_SOAK_SECONDS");
  return text != nullptr ? std::atoi(text) : 10;
}

inline uint64_t Seed() {
  const char* text = ::getenv("TRIMS_TEST_SEED");
  const uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device()();
  std::printf("TRIMS_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

inline int CountDescriptors(pid_t pid) {
  int count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/" + std::to_string(pid) + "/fd", error), end;
       !error && it != end; it.increment(error)) {
    ++count;
  }
  return count;
}

// Runs `body` in a child process, as `uid` when this process is root; its return
// value is the exit status. Ends with the parent.
inline pid_t StartChild(const std::function<int()>& body, std::optional<uid_t> uid = std::nullopt) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (uid && ::geteuid() == 0 && (::setgid(*uid) != 0 || ::setuid(*uid) != 0)) ::_exit(120);
  ::_exit(body());
}

// Exit status, or 1000 + signal.
inline int WaitChild(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

class TestDaemon final {
 public:
  // `flags` as on trimsd's command line.
  explicit TestDaemon(std::vector<std::string> flags = {},
                      std::map<std::string, std::string> environment = {})
      : flags_(std::move(flags)), environment_(std::move(environment)) {
    std::string pattern = "/tmp/trims-test-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    ::chmod(root_.c_str(), 0755);  // Clients of other uids come here.
    std::filesystem::create_directories(base_dir());
    std::filesystem::create_directories(root_ + "/state");
    Start();
  }
  ~TestDaemon() {
    Stop();
    std::filesystem::remove_all(root_);
  }
  TestDaemon(const TestDaemon&) = delete;

  std::string runtime_dir() const { return root_ + "/run"; }
  std::string state_dir() const { return root_ + "/state"; }
  std::string base_dir() const { return root_ + "/models"; }
  const std::string& root() const { return root_; }
  pid_t keeper() const { return keeper_; }

  // The worker of the moment, or nullopt between two.
  std::optional<pid_t> Worker() const {
    std::ifstream children("/proc/" + std::to_string(keeper_) + "/task/" + std::to_string(keeper_) +
                           "/children");
    pid_t pid;
    if (children >> pid) return pid;
    return std::nullopt;
  }

  void Start() {
    // Readiness by the service manager's protocol, as in production.
    const std::string notify = root_ + "/notify";
    ::unlink(notify.c_str());
    UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, notify.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    std::vector<std::string> args = {DaemonBinary(), "--runtime-dir", runtime_dir(), "--state-dir",
                                     state_dir(),    "--base-dir",    base_dir()};
    args.insert(args.end(), flags_.begin(), flags_.end());
    StartWatcher();
    keeper_ = ::fork();
    ASSERT_GE(keeper_, 0);
    if (keeper_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::setenv("NOTIFY_SOCKET", notify.c_str(), 1);
      for (const auto& [key, value] : environment_) ::setenv(key.c_str(), value.c_str(), 1);
      const int log = ::open((root_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      ::dup2(log, STDERR_FILENO);
      std::vector<char*> argv;
      for (std::string& arg : args) argv.push_back(arg.data());
      argv.push_back(nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    pollfd wait{socket.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&wait, 1, 60'000), 1) << "trimsd did not become ready:\n" << Log();
  }

  // Exit status of the keeper; `expected` is expected. Judges the log.
  int Stop(int expected = 0) {
    if (keeper_ <= 0) return 0;
    ::kill(keeper_, SIGTERM);
    return WaitUntilStopped(expected);
  }
  // The same for a daemon that ends by itself.
  int WaitUntilStopped(int expected) {
    const int status = WaitChild(keeper_);
    keeper_ = -1;
    ::kill(watcher_, SIGKILL);
    (void)WaitChild(watcher_);
    const std::string log = Log();
    EXPECT_EQ(status, expected) << log;
    const std::string wrong = judge_.Judge(std::string_view(log).substr(judged_));
    judged_ = log.size();
    EXPECT_EQ(wrong + Text("/lies"), "") << "in this log:\n" << log;
    ::unlink((root_ + "/lies").c_str());
    return status;
  }

  // Announces that before the next Stop the daemon will hang up on clients: sessions that end
  // with `reason` in their log line, from `at_least` to `at_most` of them. Any other end that is
  // not the client's own fails the test, and so does "process ended" of a process that lives.
  void ExpectSessionEnds(const std::string& reason, int at_least, int at_most) {
    judge_.ExpectSessionEnds(reason, at_least, at_most);
  }
  void ExpectSessionEnds(const std::string& reason, int exactly) {
    judge_.ExpectSessionEnds(reason, exactly, exactly);
  }
  // The same for lines of level error.
  void ExpectErrors(const std::string& words, int at_least, int at_most) {
    judge_.ExpectErrors(words, at_least, at_most);
  }
  void ExpectErrors(const std::string& words, int exactly) {
    judge_.ExpectErrors(words, exactly, exactly);
  }
  // For a test that kills so many workers, each once.
  void ExpectWorkerDeaths(int exactly) { ExpectErrors(", starting another pid=", exactly); }

  // Kills the worker of the moment, which this announces, and waits until another one is there.
  void KillWorker() {
    std::optional<pid_t> worker = Worker();
    if (!worker) return;
    ExpectWorkerDeaths(1);
    ::kill(*worker, SIGKILL);
    EXPECT_TRUE(Eventually([&] {
      const auto now = Worker();
      return now && *now != *worker;
    }));
  }

  std::string Log() const { return Text("/log"); }

  // A directory model under base_dir: model.safetensors with these tensors.
  void WriteModel(const std::string& name, const std::vector<format::TestTensor>& tensors) {
    const std::string directory = base_dir() + "/" + name;
    std::filesystem::create_directories(directory);
    std::ofstream(directory + "/model.safetensors", std::ios::binary)
        << format::WriteSafetensors(tensors);
  }

  trims_client* Connect(uint32_t flags = 0) {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    const std::string directory = runtime_dir();
    options.runtime_dir = directory.c_str();
    options.flags = flags;
    options.connect_timeout_ms = 60'000;
    trims_client* client = nullptr;
    trims_error* error = nullptr;
    EXPECT_EQ(trims_client_connect(&options, &client, &error), TRIMS_OK)
        << trims_error_message(error);
    trims_error_free(error);
    return client;
  }

 private:
  std::string Text(const std::string& name) const {
    std::ifstream in(root_ + name);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  // A process that reads the log as it grows, and writes to the file "lies" which sessions were
  // ended because of a process that still lives: at Stop it may be gone. It keeps nothing open
  // of this process, whose tests wait for ends of pipes.
  void StartWatcher() {
    watcher_ = StartChild([this] {
      ::close_range(3, ~0u, 0);
      const std::string path = root_ + "/log";
      const int changes = ::inotify_init1(IN_CLOEXEC);
      const int log = ::open(path.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0644);
      const int lies =
          ::open((root_ + "/lies").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      if (::inotify_add_watch(changes, path.c_str(), IN_MODIFY) < 0) return 1;
      ::lseek(log, static_cast<off_t>(judged_), SEEK_SET);
      std::string line;
      char buffer[4096];
      for (;;) {
        for (ssize_t got; (got = ::read(log, buffer, sizeof buffer)) > 0;) {
          for (const char c : std::string_view(buffer, static_cast<size_t>(got))) {
            if (c != '\n') {
              line += c;
              continue;
            }
            if (LogJudge::HungUpOnTheLiving(line)) {
              line = "the process lived: " + line + "\n";
              (void)!::write(lies, line.data(), line.size());
            }
            line.clear();
          }
        }
        if (::read(changes, buffer, sizeof buffer) <= 0) return 1;
      }
    });
  }

  std::vector<std::string> flags_;
  std::map<std::string, std::string> environment_;
  std::string root_;
  pid_t keeper_ = -1;
  pid_t watcher_ = -1;
  LogJudge judge_;
  size_t judged_ = 0;  // Bytes of the log.
};

// Tensor "t<i>" of `bytes` bytes whose every word depends on seed, i and position.
inline format::TestTensor PatternTensor(uint64_t seed, int i, size_t bytes) {
  format::TestTensor tensor;
  tensor.name = "t" + std::to_string(i);
  tensor.dtype = DType::kU8;
  tensor.shape = {static_cast<int64_t>(bytes)};
  std::mt19937_64 random(seed * 1000003 + static_cast<uint64_t>(i));
  tensor.bytes.resize(bytes);
  for (size_t at = 0; at < bytes; at += 8) {
    const uint64_t word = random();
    std::memcpy(tensor.bytes.data() + at, &word, std::min<size_t>(8, bytes - at));
  }
  return tensor;
}

inline std::vector<format::TestTensor> PatternModel(uint64_t seed, int tensors, size_t bytes_each) {
  std::vector<format::TestTensor> model;
  for (int i = 0; i < tensors; ++i) model.push_back(PatternTensor(seed, i, bytes_each));
  return model;
}

// True when every tensor of the lease has the bytes that were written.
inline bool HoldsModel(const trims_lease* lease, const std::vector<format::TestTensor>& tensors) {
  if (trims_lease_tensor_count(lease) != tensors.size()) return false;
  for (const format::TestTensor& expected : tensors) {
    trims_tensor tensor;
    if (trims_lease_find_tensor(lease, expected.name.c_str(), &tensor) != TRIMS_OK ||
        tensor.size_bytes != expected.bytes.size() ||
        std::memcmp(tensor.data, expected.bytes.data(), expected.bytes.size()) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace trims::testing_support

// The program `trims` as a process, against a control server in this one: what the tests of its
// commands stand on.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "daemon/fake_control_backend.h"

namespace trims {
class ControlServer;
}

namespace trims::cli {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

using Words = std::vector<std::string>;

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

// Which of the program's outputs are terminals, and how many columns wide; 0: a pipe.
struct Terminals {
  unsigned short out = 0;
  unsigned short err = 0;
};

// A running program. Killed with the object if it still runs.
class Process final {
 public:
  Process(const Words& words, const std::vector<std::string>& environment,
          Terminals terminals = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }

  // Reads until `text` was seen on stdout, or on stderr.
  void WaitForOutput(const std::string& text);
  void WaitForError(const std::string& text);
  Outcome Wait();

 private:
  bool ReadSome();

  pid_t pid_ = -1;
  UniqueFd out_;
  UniqueFd err_;
  Outcome outcome_;
};

// Names gpu:0 of AddDevices.
inline const std::string kTier0 = "gpu:GPU-fa4ec0da";
inline const std::string kDigestA = "sha256:" + std::string(64, 'a');

// Without their ends, also those of terminals.
std::vector<std::string> Lines(const std::string& text);

// Output of a shell command; its exit status in `code`.
std::string Shell(const std::string& command, int* code);

// Begins without a daemon. Its backend has vgg16, resident in the host tier, and lenet:1.
class CliTest : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  void StartDaemon();
  void StopDaemon();
  // A socket in the daemon's directory that accepts nobody.
  UniqueFd Listen(const std::string& name, int type);

  // gpu:0 serves, gpu:1 was lost, gpu:2 never worked.
  void AddDevices();

  std::vector<std::string> Environment() const;
  std::unique_ptr<Process> Spawn(const Words& words, Terminals terminals = {});
  Outcome Run(const Words& words) { return Spawn(words)->Wait(); }
  Outcome RunWith(const Words& words, const std::vector<std::string>& more);
  // What `words` and --json print; null when that is no JSON or the exit code is not `code`.
  json RunJson(Words words, int code = 0);

  FakeControlBackend backend_;
  std::string directory_;

 private:
  std::unique_ptr<ControlServer> server_;
  UniqueFd listener_;
  UniqueFd lease_listener_;
  int stop_[2] = {-1, -1};
  std::thread acceptor_;

 public:
  CliTest();
  ~CliTest() override;
};

}  // namespace trims::cli

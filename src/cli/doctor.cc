// trims doctor: is this machine, and the daemon on it, fit for the work? One line
// per check, and under it what to do when it is not good.
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/doctor_gpu.h"
#include "cli/doctor_machine.h"
#include "cli/finding.h"
#include "cli/gpu_probe.h"
#include "cli/json.h"
#include "cli/text.h"
#include "trims/trims.hpp"

namespace trims::cli {
namespace {

const char* LevelWord(Level level) {
  return level == Level::kOk ? "OK" : level == Level::kWarn ? "WARN" : "FAIL";
}

std::string ModeText(mode_t mode) {
  char text[16];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777));
  return text;
}

Finding CheckRuntimeDir(const std::string& directory) {
  const std::string check = "runtime directory";
  struct stat found {};
  if (::lstat(directory.c_str(), &found) != 0) {
    return Bad(
        Level::kFail, check, directory + " is not there",
        "start a daemon with \"trims serve\", or name the right directory with --runtime-dir "
        "or TRIMS_RUNTIME_DIR");
  }
  if (!S_ISDIR(found.st_mode)) {
    return Bad(Level::kFail, check, directory + " is not a directory", "name another one");
  }
  const std::string text =
      directory + ", owner " + UserText(found.st_uid) + ", mode " + ModeText(found.st_mode);
  if ((found.st_mode & S_IWOTH) != 0) {
    return Bad(Level::kFail, check, text + ": everybody can plant sockets in it",
               "chmod o-w " + directory);
  }
  return Good(check, text);
}

Finding CheckLeaseSocket(const std::string& directory) {
  const std::string check = "lease socket";
  const std::string path = directory + "/lease.sock";
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) {
    return Bad(Level::kFail, check, path + " is not there", "start a daemon with \"trims serve\"");
  }
  const std::string text =
      path + ", owner " + UserText(found.st_uid) + ", mode " + ModeText(found.st_mode);
  if (Result<UniqueFd> socket = Connection::ConnectSocket(directory, "lease.sock", SOCK_SEQPACKET);
      !socket.ok()) {
    return Bad(Level::kFail, check, socket.status().message(),
               "look at the daemon's log; processes of this user can not open models");
  }
  return Good(check, text + ", reachable");
}

void CheckDaemon(const std::string& directory, std::vector<Finding>* findings,
                 std::optional<v1::GetStatusResponse>* status) {
  const std::string check = "control socket";
  const std::string path = directory + "/control.sock";
  Result<Connection> daemon = Connection::Open(directory);
  if (!daemon.ok()) {
    findings->push_back(
        Bad(Level::kFail, check, daemon.status().message(), Connection::HintFor(directory)));
    return;
  }
  v1::GetStatusResponse response;
  if (Status asked = daemon->GetStatus(v1::GetStatusRequest(), &response); !asked.ok()) {
    findings->push_back(
        Bad(Level::kFail, check, path + ": " + asked.message(),
            "the daemon is stopping, or its worker can not start: look at its log"));
    return;
  }
  struct stat found {};
  std::string owner;
  if (::stat(path.c_str(), &found) == 0) {
    owner = ", owner " + UserText(found.st_uid) + ", mode " + ModeText(found.st_mode);
  }
  findings->push_back(Good(check, path + owner + ", reachable"));
  if (response.version() == TRIMS_VERSION_STRING) {
    findings->push_back(Good("daemon version", response.version()));
  } else {
    findings->push_back(Bad(Level::kWarn, "daemon version",
                            response.version() + ", this program is " TRIMS_VERSION_STRING,
                            "restart the daemon after an update, or use the program of the same "
                            "version"));
  }
  if (response.worker_restarts() > 0) {
    findings->push_back(Bad(Level::kWarn, "daemon worker",
                            "restarted " + std::to_string(response.worker_restarts()) +
                                " times since the daemon started",
                            "look for the reason in the daemon's log"));
  } else {
    findings->push_back(Good("daemon worker",
                             "pid " + std::to_string(response.worker_pid()) + ", never restarted"));
  }
  *status = std::move(response);
}

ExitCode RunDoctor(const Context& context) {
  std::vector<Finding> findings;
  std::optional<v1::GetStatusResponse> daemon;
  if (Result<std::string> directory = RuntimeDir(context); directory.ok()) {
    findings.push_back(CheckRuntimeDir(*directory));
    CheckDaemon(*directory, &findings, &daemon);
    findings.push_back(CheckLeaseSocket(*directory));
  } else {
    findings.push_back(Bad(Level::kFail, "configuration", directory.status().message(),
                           "correct the setting that is named"));
  }
  GpuFindings gpus = CheckGpus(ProbeGpus(), daemon);
  for (Finding& finding : CheckMachine(daemon, gpus.present)) {
    findings.push_back(std::move(finding));
  }
  for (Finding& finding : gpus.findings) findings.push_back(std::move(finding));

  const bool failed = std::any_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.level == Level::kFail;
  });
  const ExitCode code = failed ? ExitCode::kFailure : ExitCode::kOk;
  if (context.json) {
    Json array = Json::array();
    for (const Finding& finding : findings) {
      array.push_back({{"level", LevelWord(finding.level)},
                       {"check", finding.check},
                       {"text", finding.text},
                       {"advice", finding.advice}});
    }
    PrintJson(array);
    return code;
  }
  const bool color = UseColor(STDOUT_FILENO);
  size_t width = 0;
  for (const Finding& finding : findings) width = std::max(width, finding.check.size());
  for (const Finding& finding : findings) {
    std::string level = LevelWord(finding.level);
    level.resize(4, ' ');
    if (color) {
      const char* code_of_level = finding.level == Level::kOk     ? "\033[32m"
                                  : finding.level == Level::kWarn ? "\033[33m"
                                                                  : "\033[31m";
      level = code_of_level + level + "\033[0m";
    }
    std::string check = finding.check;
    check.resize(width, ' ');
    Print(level + "  " + check + "  " + Printable(finding.text) + "\n");
    if (!finding.advice.empty()) {
      Print("      " + std::string(width, ' ') + "  -> " + Printable(finding.advice) + "\n");
    }
  }
  return code;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("doctor", "Check this machine and the daemon, and say what to do");
  OnRun(command, context, [&context] { return RunDoctor(context); });
}

}  // namespace trims::cli

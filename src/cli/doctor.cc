// trims doctor: is this machine, and the daemon on it, fit for the work? One line
// per check, and under it what to do when it is not good.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/limits.h"
#include "base/machine.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/doctor_gpu.h"
#include "cli/finding.h"
#include "cli/json.h"
#include "cli/text.h"
#include "daemon/config_layers.h"
#include "trims/trims.h"

namespace trims::cli {
namespace {

const char* LevelWord(Level level) {
  return level == Level::kOk ? "OK" : level == Level::kWarn ? "WARN" : "FAIL";
}

// A small file of the kernel's without the line ends behind it.
std::optional<std::string> ReadText(const std::string& path) {
  Result<std::string> text = ReadSmallFile(path, kMiB);
  if (!text.ok()) return std::nullopt;
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return *text;
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

std::string LimitText(rlim_t limit) {
  return limit == RLIM_INFINITY ? "unlimited" : std::to_string(limit);
}

// The daemon's own limits when they can be read, else this process's, which a
// daemon started from here would have.
struct Limit {
  std::string whose;
  rlim_t soft = 0;
};
Limit ReadLimit(int resource, const char* name,
                const std::optional<v1::GetStatusResponse>& daemon) {
  if (daemon && daemon->worker_pid() > 0) {
    std::ifstream file("/proc/" + std::to_string(daemon->worker_pid()) + "/limits");
    std::string line;
    while (std::getline(file, line)) {
      if (!line.starts_with(name)) continue;
      std::istringstream fields(line.substr(std::string_view(name).size()));
      std::string soft;
      fields >> soft;
      if (soft == "unlimited") return {"the daemon's", RLIM_INFINITY};
      if (const auto count = ParseCount(soft, std::numeric_limits<rlim_t>::max())) {
        return {"the daemon's", *count};
      }
    }
  }
  rlimit own{};
  ::getrlimit(static_cast<__rlimit_resource_t>(resource), &own);
  return {"this process's", own.rlim_cur};
}

Finding CheckNofile(const std::optional<v1::GetStatusResponse>& daemon) {
  // One descriptor per resident extent, session and tensor index.
  constexpr rlim_t kEnough = 65536;
  const Limit limit = ReadLimit(RLIMIT_NOFILE, "Max open files", daemon);
  const std::string text = limit.whose + " limit is " + LimitText(limit.soft);
  if (limit.soft != RLIM_INFINITY && limit.soft < kEnough) {
    return Bad(Level::kWarn, "open files", text,
               "the daemon needs a descriptor per resident extent and per session: LimitNOFILE=" +
                   std::to_string(kEnough) + " in its unit, or \"ulimit -n " +
                   std::to_string(kEnough) + "\" before \"trims serve\"");
  }
  return Good("open files", text);
}

Finding CheckMemlock(const std::optional<v1::GetStatusResponse>& daemon, bool gpu) {
  const Limit limit = ReadLimit(RLIMIT_MEMLOCK, "Max locked memory", daemon);
  const std::string text =
      limit.whose + " limit is " +
      (limit.soft == RLIM_INFINITY ? "unlimited" : FormatSize(static_cast<uint64_t>(limit.soft)));
  if (limit.soft != RLIM_INFINITY && gpu) {
    return Bad(Level::kWarn, "locked memory", text,
               "copies to a GPU want pinned memory: LimitMEMLOCK=infinity in the daemon's unit, or "
               "\"ulimit -l unlimited\"");
  }
  return Good("locked memory", text + (gpu ? "" : "; matters only with a GPU"));
}

Finding CheckProc() {
  char target[64];
  if (::readlink("/proc/self/exe", target, sizeof target) < 0 || !MemInfo("MemTotal")) {
    return Bad(Level::kFail, "/proc", "not mounted, or not readable",
               "mount it: memory is re-opened read-only through /proc/self/fd");
  }
  return Good("/proc", "mounted");
}

// Does what lending weights rests on: seals a memfd and tries to write it.
Finding CheckSealing() {
  const std::string check = "memfd sealing";
  const auto failed = [&check](const char* what) {
    return Bad(
        Level::kFail, check, ErrnoStatus(errno, what).message(),
        "weights can not be lent read-only here: Linux 5.1 or newer is needed, and a seccomp "
        "profile that allows memfd_create and fcntl(F_ADD_SEALS)");
  };
  const UniqueFd memory(::memfd_create("trims-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid()) return failed("memfd_create");
  if (::ftruncate(memory.get(), kHostPageBytes) != 0) return failed("ftruncate");
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
  if (::fcntl(memory.get(), F_ADD_SEALS,
              F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return failed("sealing a memfd");
  }
  void* writable =
      ::mmap(nullptr, kHostPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (writable != MAP_FAILED) {
    ::munmap(writable, kHostPageBytes);
    return Bad(Level::kFail, check, "a sealed memfd could still be mapped writable",
               "this kernel does not keep its promise: do not lend weights on it");
  }
  if (::pwrite(memory.get(), "x", 1, 0) == 1) {
    return Bad(Level::kFail, check, "a sealed memfd could still be written",
               "this kernel does not keep its promise: do not lend weights on it");
  }
  void* readable = ::mmap(nullptr, kHostPageBytes, PROT_READ, MAP_SHARED, memory.get(), 0);
  if (readable == MAP_FAILED) return failed("mapping a sealed memfd");
  ::munmap(readable, kHostPageBytes);
  return Good(check, "tried: works");
}

Finding CheckHugePages() {
  const uint64_t total = MemInfo("HugePages_Total").value_or(0);
  const uint64_t free = MemInfo("HugePages_Free").value_or(0);
  const uint64_t size = MemInfo("Hugepagesize").value_or(0);
  const std::string text = std::to_string(free) + " of " + std::to_string(total) +
                           " huge pages of " + FormatSize(size) + " are free";
  if (free == 0) {
    return Bad(Level::kWarn, "huge pages", text,
               "plain pages are used, which costs page faults at first touch; to reserve some: "
               "sysctl vm.nr_hugepages=N (a model takes its size / " +
                   FormatSize(size) + ")");
  }
  return Good("huge pages", text);
}

Finding CheckShmemThp() {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  const std::optional<std::string> text = ReadText(path);
  if (!text) return Good("transparent huge pages", "this kernel has none for shared memory");
  const size_t open = text->find('[');
  const size_t close = text->find(']');
  const std::string setting = open == std::string::npos || close == std::string::npos
                                  ? *text
                                  : text->substr(open + 1, close - open - 1);
  const std::string line = "for shared memory: " + setting;
  if (setting == "never" || setting == "deny") {
    return Bad(
        Level::kWarn, "transparent huge pages", line,
        "without reserved huge pages weights lie on 4 KiB pages; as root: echo within_size > " +
            path);
  }
  return Good("transparent huge pages", line);
}

Finding CheckMemory(const std::optional<v1::GetStatusResponse>& daemon) {
  const std::string check = "memory";
  const uint64_t machine = MemInfo("MemTotal").value_or(0);
  uint64_t budget = 0;
  std::string whose = "the host tier's budget";
  std::string pid = "self";
  if (daemon) {
    for (const v1::TierView& tier : daemon->tiers()) {
      if (tier.name() == "host") budget = tier.budget_bytes();
    }
    if (daemon->worker_pid() > 0 &&
        std::filesystem::exists("/proc/" + std::to_string(daemon->worker_pid()) + "/cgroup")) {
      pid = std::to_string(daemon->worker_pid());
    }
  } else {
    ConfigSources sources;
    sources.files = DefaultConfigFiles([](const std::string& name) -> std::optional<std::string> {
      const char* value = std::getenv(name.c_str());
      return value == nullptr ? std::nullopt : std::optional<std::string>(value);
    });
    const Result<LoadedConfig> loaded = LoadConfig(sources);
    if (!loaded.ok()) {
      return Bad(Level::kFail, check, loaded.status().message(),
                 "correct the setting that is named");
    }
    whose = "the budget that a daemon started here would have";
    budget = HostBudgetBytes(loaded->config, UsableMemoryBytes());
  }
  const uint64_t limit = MemoryLimitBytes(pid);
  const bool limited = limit < machine;
  const uint64_t available = std::min(limit, machine);
  const std::string text = whose + " is " + FormatSize(budget) + ", " +
                           (limited ? "its cgroup's limit " : "the machine has ") +
                           FormatSize(available);
  if (budget > available) {
    return Bad(Level::kFail, check, text,
               "the kernel would kill the daemon before it evicts: lower host_capacity_bytes or "
               "memory_percentage, or raise the cgroup's limit");
  }
  return Good(check, text);
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
  GpuFindings gpus = CheckGpus(daemon);
  findings.push_back(CheckProc());
  findings.push_back(CheckSealing());
  findings.push_back(CheckNofile(daemon));
  findings.push_back(CheckMemlock(daemon, gpus.present));
  findings.push_back(CheckMemory(daemon));
  findings.push_back(CheckHugePages());
  findings.push_back(CheckShmemThp());
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

#include "cli/doctor_machine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include "base/files.h"
#include "base/limits.h"
#include "base/machine.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "daemon/config_layers.h"

namespace trims::cli {
namespace {

// A small file of the kernel's without the line ends behind it.
std::optional<std::string> ReadText(const std::string& path) {
  Result<std::string> text = ReadSmallFile(path, kMiB);
  if (!text.ok()) return std::nullopt;
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return *text;
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
Limit ReadLimit(const std::string& root, int resource, const char* name,
                const std::optional<v1::GetStatusResponse>& daemon) {
  if (daemon && daemon->worker_pid() > 0) {
    std::ifstream file(root + "/proc/" + std::to_string(daemon->worker_pid()) + "/limits");
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

Finding CheckNofile(const std::string& root, const std::optional<v1::GetStatusResponse>& daemon) {
  // One descriptor per resident extent, session and tensor index.
  constexpr rlim_t kEnough = 65536;
  const Limit limit = ReadLimit(root, RLIMIT_NOFILE, "Max open files", daemon);
  const std::string text = limit.whose + " limit is " + LimitText(limit.soft);
  if (limit.soft != RLIM_INFINITY && limit.soft < kEnough) {
    return Bad(Level::kWarn, "open files", text,
               "the daemon needs a descriptor per resident extent and per session: LimitNOFILE=" +
                   std::to_string(kEnough) + " in its unit, or \"ulimit -n " +
                   std::to_string(kEnough) + "\" before \"trims serve\"");
  }
  return Good("open files", text);
}

Finding CheckMemlock(const std::string& root, const std::optional<v1::GetStatusResponse>& daemon,
                     bool gpu) {
  const Limit limit = ReadLimit(root, RLIMIT_MEMLOCK, "Max locked memory", daemon);
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

Finding CheckProc(const std::string& root) {
  char target[64];
  if (::readlink((root + "/proc/self/exe").c_str(), target, sizeof target) < 0 ||
      !MemInfo("MemTotal", root)) {
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

Finding CheckHugePages(const std::string& root) {
  const uint64_t total = MemInfo("HugePages_Total", root).value_or(0);
  const uint64_t free = MemInfo("HugePages_Free", root).value_or(0);
  const uint64_t size = MemInfo("Hugepagesize", root).value_or(0);
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

Finding CheckShmemThp(const std::string& root) {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  const std::optional<std::string> text = ReadText(root + path);
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

Finding CheckMemory(const std::string& root, const std::optional<v1::GetStatusResponse>& daemon) {
  const std::string check = "memory";
  const uint64_t machine = MemInfo("MemTotal", root).value_or(0);
  uint64_t budget = 0;
  std::string whose = "the host tier's budget";
  std::string pid = "self";
  if (daemon) {
    for (const v1::TierView& tier : daemon->tiers()) {
      if (tier.name() == "host") budget = tier.budget_bytes();
    }
    if (daemon->worker_pid() > 0 &&
        std::filesystem::exists(root + "/proc/" + std::to_string(daemon->worker_pid()) +
                                "/cgroup")) {
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
    budget = HostBudgetBytes(loaded->config, UsableMemoryBytes(root));
  }
  const uint64_t limit = MemoryLimitBytes(pid, root);
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

}  // namespace

std::vector<Finding> CheckMachine(const std::optional<v1::GetStatusResponse>& daemon, bool gpu,
                                  const std::string& root) {
  return {CheckProc(root),           CheckSealing(),
          CheckNofile(root, daemon), CheckMemlock(root, daemon, gpu),
          CheckMemory(root, daemon), CheckHugePages(root),
          CheckShmemThp(root)};
}

}  // namespace trims::cli

#include "daemon/keeper.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/limits.h"
#include "daemon/ledger_link.h"
#include "daemon/log.h"
#include "daemon/worker.h"
#include "ipc/seqpacket.h"

namespace trims {
namespace {

// Ids of one worker never repeat in the next: each gets a range of 2^40.
constexpr uint64_t kIdsPerWorker = uint64_t{1} << 40;
// A worker that does not take its ledger in this time is killed.
constexpr int kLinkSendTimeoutS = 30;

struct LedgerEntry {
  std::string body;
  UniqueFd fd;
};

// Makes the directory (one level) for this user alone to write. PERMISSION_DENIED
// when somebody else could have planted it.
Status PrepareDirectory(const std::string& path, mode_t mode) {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, error);
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, "creating directory " + path);
  }
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "looking at directory " + path);
  if (!S_ISDIR(info.st_mode)) return FailedPreconditionError(path + " is not a directory");
  if (info.st_uid != ::geteuid()) {
    return PermissionDeniedError(
        "directory " + path + " belongs to uid " + std::to_string(info.st_uid) + ", expected uid " +
        std::to_string(::geteuid()) + "; remove it or choose another with --runtime-dir");
  }
  if ((info.st_mode & 07777) != mode && ::chmod(path.c_str(), mode) != 0) {
    return ErrnoStatus(errno, "setting the mode of directory " + path);
  }
  return OkStatus();
}

// Locks the runtime directory for the life of the returned descriptor.
Result<UniqueFd> LockRuntimeDir(const std::string& directory) {
  const std::string path = directory + "/trimsd.lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd.valid()) return ErrnoStatus(errno, "opening lock file " + path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "locking " + path);
    char text[32] = {};
    (void)!::pread(fd.get(), text, sizeof text - 1, 0);
    return AlreadyExistsError("another trimsd (pid " +
                              std::to_string(std::strtol(text, nullptr, 10)) + ") serves " +
                              directory + "; stop it, or give this one another --runtime-dir");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0) {
    return ErrnoStatus(errno, "writing lock file " + path);
  }
  return fd;
}

Status GiveToGroup(const std::string& path, const std::string& group) {
  if (group.empty()) return OkStatus();
  const struct group* entry = ::getgrnam(group.c_str());
  if (entry == nullptr)
    return NotFoundError("admin_group names no group of this machine: " + group);
  if (::chown(path.c_str(), static_cast<uid_t>(-1), entry->gr_gid) != 0) {
    return ErrnoStatus(errno, "giving " + path + " to group " + group);
  }
  return OkStatus();
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

class Keeper final {
 public:
  explicit Keeper(KeeperOptions options) : options_(std::move(options)) {}

  int Run() {
    if (const Status status = Prepare(); !status.ok()) {
      LogError("cannot serve", {{"reason", status.message()}});
      return 1;
    }
    LogInfo("serving", {{"runtime_dir", config().runtime_dir}, {"pid", ::getpid()}});
    const int result = Serve();
    NotifyServiceManager("STOPPING=1");
    ::unlink(LeasePath().c_str());
    ::unlink(ControlPath().c_str());
    return result;
  }

 private:
  const DaemonConfig& config() const { return options_.config.config; }
  std::string LeasePath() const { return config().runtime_dir + "/lease.sock"; }
  std::string ControlPath() const { return config().runtime_dir + "/control.sock"; }

  Status Prepare() {
    RaiseDescriptorLimit();
    sigset_t signals;
    ::sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGCHLD})
      ::sigaddset(&signals, signal);
    ::sigprocmask(SIG_BLOCK, &signals, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    signals_ = UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_.valid()) return ErrnoStatus(errno, "receiving signals");

    RETURN_IF_ERROR(PrepareDirectory(config().runtime_dir, 0755));
    RETURN_IF_ERROR(PrepareDirectory(config().state_dir, 0700));
    ASSIGN_OR_RETURN(lock_, LockRuntimeDir(config().runtime_dir));
    ASSIGN_OR_RETURN(lease_, ListenAt(LeasePath(), SOCK_SEQPACKET, config().lease_socket_mode));
    ASSIGN_OR_RETURN(control_, ListenAt(ControlPath(), SOCK_STREAM, config().control_socket_mode));
    return GiveToGroup(ControlPath(), config().admin_group);
  }

  int Serve() {
    if (const Status status = StartWorker(); !status.ok()) {
      LogError("cannot start the worker", {{"reason", status.message()}});
      return 1;
    }
    for (;;) {
      pollfd fds[2] = {{signals_.get(), POLLIN, 0}, {link_.get(), POLLIN, 0}};
      const nfds_t count = link_.valid() ? 2 : 1;
      int timeout = -1;
      if (restart_at_) {
        timeout = static_cast<int>(std::clamp<int64_t>(
            std::chrono::ceil<std::chrono::milliseconds>(*restart_at_ - Now()).count(), 0, 60'000));
      } else if (stop_deadline_) {
        timeout = static_cast<int>(std::clamp<int64_t>(
            std::chrono::ceil<std::chrono::milliseconds>(*stop_deadline_ - Now()).count(), 0,
            60'000));
      }
      if (::poll(fds, count, timeout) < 0 && errno != EINTR) {
        LogError("poll failed", {{"reason", std::string(std::strerror(errno))}});
        return 1;
      }
      // What the worker said before it died must reach the ledger before its
      // death is acted on.
      if (count == 2 && fds[1].revents != 0) ReadLink();
      if (fds[0].revents != 0) {
        if (const std::optional<int> result = HandleSignals()) return *result;
      }
      if (restart_at_ && Now() >= *restart_at_) {
        restart_at_.reset();
        if (const Status status = StartWorker(); !status.ok()) {
          LogError("cannot start the worker", {{"reason", status.message()}});
          return 1;
        }
      }
      if (stop_deadline_ && Now() >= *stop_deadline_) {
        LogWarn("worker did not stop in time, killing it", {{"pid", worker_pid_}});
        KillWorker();
        stop_deadline_.reset();
      }
    }
  }

  Status StartWorker() {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
      return ErrnoStatus(errno, "creating the link to the worker");
    }
    UniqueFd mine(pair[0]);
    UniqueFd theirs(pair[1]);
    const timeval timeout{kLinkSendTimeoutS, 0};
    (void)::setsockopt(mine.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);

    ++worker_number_;
    worker_ready_ = false;
    const pid_t keeper_pid = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) return ErrnoStatus(errno, "starting the worker");
    if (pid == 0) {
      // A worker never outlives its keeper: nobody could adopt what it makes.
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != keeper_pid) ::_exit(1);
      sigset_t none;
      ::sigemptyset(&none);
      ::sigprocmask(SIG_SETMASK, &none, nullptr);
      // Above the three target numbers first, so that no dup2 overwrites a source.
      const int link = ::fcntl(theirs.get(), F_DUPFD_CLOEXEC, 16);
      const int lease = ::fcntl(lease_.get(), F_DUPFD_CLOEXEC, 16);
      const int control = ::fcntl(control_.get(), F_DUPFD_CLOEXEC, 16);
      if (::dup3(link, kWorkerLinkFd, 0) < 0 || ::dup3(lease, kWorkerLeaseFd, 0) < 0 ||
          ::dup3(control, kWorkerControlFd, 0) < 0) {
        ::_exit(126);
      }
      std::string program = options_.program;
      std::string flag = kWorkerFlag;
      char* const argv[] = {program.data(), flag.data(), nullptr};
      ::execv(program.c_str(), argv);
      ::_exit(127);
    }
    theirs.Reset();
    worker_pid_ = pid;
    link_ = std::move(mine);

    WorkerStart start;
    start.config = options_.config;
    start.worker_number = worker_number_;
    start.keeper_pid = keeper_pid;
    start.started_at_unix = started_at_unix_;
    start.id_base = worker_number_ * kIdsPerWorker;
    Status status = SendLink(link_.get(), LinkType::kStart, "", EncodeWorkerStart(start));
    for (auto it = ledger_.begin(); status.ok() && it != ledger_.end(); ++it) {
      status = SendLink(link_.get(), LinkType::kEntry, it->first, it->second.body,
                        it->second.fd.valid() ? it->second.fd.get() : -1);
    }
    if (status.ok()) status = SendLink(link_.get(), LinkType::kEntriesEnd, "", "");
    if (!status.ok()) {
      // The worker died or hangs before it had its ledger; its death is handled
      // like any other.
      LogWarn("worker did not take its ledger", {{"pid", pid}, {"reason", status.message()}});
      ::kill(pid, SIGKILL);
    }
    return OkStatus();
  }

  // Takes every message that is there. Ends at end of file, leaving the link closed.
  void ReadLink() {
    for (;;) {
      pollfd ready{link_.get(), POLLIN, 0};
      if (::poll(&ready, 1, 0) <= 0) return;
      Result<LinkMessage> message = ReceiveLink(link_.get());
      if (!message.ok()) {
        if (message.status().code() == StatusCode::kDeadlineExceeded) return;
        link_.Reset();
        LetGoOfWorker();
        return;
      }
      switch (message->type) {
        case LinkType::kReady:
          worker_ready_ = true;
          crashes_in_a_row_ = 0;
          ready_since_ = Now();
          NotifyServiceManager("READY=1\nSTATUS=serving");
          break;
        case LinkType::kPut:
          ledger_[message->key] = LedgerEntry{std::move(message->body), std::move(message->fd)};
          break;
        case LinkType::kDrop:
          ledger_.erase(message->key);
          break;
        case LinkType::kStatusText:
          NotifyServiceManager("STATUS=" + message->body);
          break;
        default:
          LogError("worker sent a message of unknown type, ignoring",
                   {{"type", static_cast<uint32_t>(message->type)}});
      }
    }
  }

  void KillWorker() const {
    if (worker_pid_ > 0) ::kill(worker_pid_, SIGKILL);
  }

  // Nobody talks any more to a worker whose link has ended. One that served runs no more:
  // descriptors are closed when its last thread is gone. What the kernel and the driver still do
  // for it, such as unpinning memory, can take half a second, and the next worker need not wait for
  // that.
  void LetGoOfWorker() {
    if (stopping_ || worker_pid_ <= 0) return;
    if (!worker_ready_) {
      // How it ends decides what comes next, so it may end by itself: a kill could hide that.
      stop_deadline_ = Now() + options_.stop_deadline;
      return;
    }
    KillWorker();  // In case it closed its link and lives.
    LogError("worker is gone, starting another",
             {{"pid", worker_pid_}, {"ledger_entries", ledger_.size()}});
    dying_.push_back(worker_pid_);
    worker_pid_ = -1;
    RestartServedWorker();
  }

  void RestartServedWorker() {
    // One that served for a while is replaced at once; one that dies again right after it
    // became ready is slowed down, but never given up on.
    if (Now() - ready_since_ > std::chrono::seconds(1)) {
      pause_ = Duration::zero();
    } else {
      LengthenPause(options_.restart_pause_max / 10);
    }
    RestartAfterPause();
  }

  void LengthenPause(Duration most) {
    constexpr Duration kLeast = std::chrono::milliseconds(kWorkerRestartBackoffMsMin);
    pause_ = std::clamp(pause_ * 2, kLeast, std::max(kLeast, most));
  }

  void RestartAfterPause() {
    NotifyServiceManager("STATUS=restarting the worker");
    restart_at_ = Now() + pause_;
  }

  static std::string HowItEnded(int status) {
    return WIFSIGNALED(status) ? std::string("killed by ") + ::strsignal(WTERMSIG(status))
                               : "exit status " + std::to_string(WEXITSTATUS(status));
  }

  // The exit status of the keeper when it is to end.
  std::optional<int> HandleSignals() {
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
      switch (info.ssi_signo) {
        case SIGCHLD:
          if (const std::optional<int> result = ReapWorker()) return result;
          break;
        case SIGHUP:
          Reload();
          break;
        default:
          if (stopping_) {
            KillWorker();
            break;
          }
          LogInfo("stopping",
                  {{"signal", std::string(::strsignal(static_cast<int>(info.ssi_signo)))}});
          stopping_ = true;
          if (worker_pid_ <= 0) return 0;
          stop_deadline_ = Now() + options_.stop_deadline;
          if (!link_.valid() || !SendLink(link_.get(), LinkType::kStop, "", "").ok()) KillWorker();
      }
    }
    return std::nullopt;
  }

  std::optional<int> ReapWorker() {
    int status = 0;
    for (auto it = dying_.begin(); it != dying_.end();) {
      if (::waitpid(*it, &status, WNOHANG) != *it) {
        ++it;
        continue;
      }
      LogInfo("the worker of before has ended", {{"pid", *it}, {"how", HowItEnded(status)}});
      it = dying_.erase(it);
    }
    if (worker_pid_ <= 0) return std::nullopt;
    const pid_t pid = ::waitpid(worker_pid_, &status, WNOHANG);
    if (pid != worker_pid_) return std::nullopt;
    // What it said before it died. Nobody has to be let go of any more.
    worker_pid_ = -1;
    stop_deadline_.reset();
    if (link_.valid()) ReadLink();
    link_.Reset();
    if (stopping_) {
      LogInfo("stopped", {});
      return 0;
    }
    const std::string how = HowItEnded(status);
    if (WIFEXITED(status) && WEXITSTATUS(status) == kWorkerFatalStatus)
      return 1;  // It has said why.
    LogError("worker died, starting another",
             {{"pid", pid}, {"how", how}, {"ledger_entries", ledger_.size()}});
    if (worker_ready_) {
      RestartServedWorker();
      return std::nullopt;
    }
    ++crashes_in_a_row_;
    if (crashes_in_a_row_ >= kWorkerCrashLoopLimit) {
      LogError("worker keeps dying before it is ready, giving up",
               {{"deaths", crashes_in_a_row_}, {"last", how}});
      return 1;
    }
    LengthenPause(options_.restart_pause_max);
    RestartAfterPause();
    return std::nullopt;
  }

  void Reload() {
    NotifyServiceManager("RELOADING=1");
    Result<LoadedConfig> loaded = options_.reload();
    if (!loaded.ok()) {
      LogError("configuration not reloaded, keeping the old one",
               {{"reason", loaded.status().message()}});
    } else {
      // What can not change while serving keeps its value, and is named.
      for (size_t i = 0; i < loaded->entries.size() && i < options_.config.entries.size(); ++i) {
        const ConfigEntry& before = options_.config.entries[i];
        const ConfigEntry& after = loaded->entries[i];
        if (!after.reloadable && before.value != after.value) {
          LogError("configuration not reloaded: this key needs a restart",
                   {{"key", after.key}, {"now", before.value}, {"asked", after.value}});
          NotifyServiceManager("READY=1");
          return;
        }
      }
      options_.config = *std::move(loaded);
      if (const Result<LogLevel> level = ParseLogLevel(config().log_level); level.ok())
        SetLogLevel(*level);
      WorkerStart start;
      start.config = options_.config;
      if (link_.valid())
        (void)!SendLink(link_.get(), LinkType::kConfig, "", EncodeWorkerStart(start)).ok();
      LogInfo("configuration reloaded", {});
    }
    NotifyServiceManager("READY=1");
  }

  KeeperOptions options_;
  UniqueFd signals_;
  UniqueFd lock_;
  UniqueFd lease_;
  UniqueFd control_;

  std::map<std::string, LedgerEntry> ledger_;

  pid_t worker_pid_ = -1;
  std::vector<pid_t> dying_;  // Workers of before that the kernel is not done with.
  UniqueFd link_;
  uint64_t worker_number_ = 0;
  const int64_t started_at_unix_ = ::time(nullptr);
  bool worker_ready_ = false;
  Time ready_since_{};
  int crashes_in_a_row_ = 0;
  Duration pause_ = Duration::zero();  // Before the next start.
  std::optional<Time> restart_at_;
  std::optional<Time> stop_deadline_;
  bool stopping_ = false;
};

}  // namespace

int RunKeeper(KeeperOptions options) { return Keeper(std::move(options)).Run(); }

std::string EncodeWorkerStart(const WorkerStart& start) {
  nlohmann::json json;
  json["worker_number"] = start.worker_number;
  json["keeper_pid"] = start.keeper_pid;
  json["started_at_unix"] = start.started_at_unix;
  json["id_base"] = start.id_base;
  nlohmann::json& entries = json["entries"] = nlohmann::json::array();
  for (const ConfigEntry& entry : start.config.entries) {
    entries.push_back({entry.key, entry.value, entry.origin});
  }
  // Paths may hold bytes that are not UTF-8; those are replaced, not thrown on.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<WorkerStart> DecodeWorkerStart(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InternalError("start message of the keeper is not JSON");
  // Absent is 0; anything but a number, too.
  const auto number = [&json](const char* key, auto zero) {
    const auto found = json.find(key);
    return found != json.end() && found->is_number_integer() ? found->get<decltype(zero)>() : zero;
  };
  WorkerStart start;
  start.worker_number = number("worker_number", uint64_t{0});
  start.keeper_pid = number("keeper_pid", int64_t{0});
  start.started_at_unix = number("started_at_unix", int64_t{0});
  start.id_base = number("id_base", uint64_t{0});
  const auto entries = json.find("entries");
  if (entries == json.end() || !entries->is_array())
    return InternalError("start message of the keeper has no settings");
  ConfigSources sources;
  std::map<std::string, std::string> origins;
  for (const auto& entry : *entries) {
    const bool is_setting =
        entry.is_array() && entry.size() == 3 &&
        std::all_of(entry.begin(), entry.end(), [](const auto& part) { return part.is_string(); });
    if (!is_setting) return InternalError("start message of the keeper: not a setting");
    sources.flags[entry[0]] = entry[1];
    origins[entry[0]] = entry[2];
  }
  sources.getenv = [](const std::string&) { return std::nullopt; };
  ASSIGN_OR_RETURN(start.config, LoadConfig(sources));
  for (ConfigEntry& entry : start.config.entries) {
    if (const auto it = origins.find(entry.key); it != origins.end()) entry.origin = it->second;
  }
  return start;
}

void NotifyServiceManager(const std::string& state) {
  const char* path = ::getenv("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return;
  (void)!::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL,
                  reinterpret_cast<const sockaddr*>(&address),
                  static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

}  // namespace trims

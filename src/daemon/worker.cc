#include "daemon/worker.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "base/limits.h"
#include "base/machine.h"
#include "base/universal_hash.h"
#include "daemon/control_calls.h"
#include "daemon/control_server.h"
#include "daemon/devices.h"
#include "daemon/keeper.h"
#include "daemon/lease_server.h"
#include "daemon/ledger.h"
#include "daemon/ledger_link.h"
#include "daemon/log.h"
#include "daemon/reactor.h"
#include "daemon/registry.h"

namespace trims {
namespace {

// How long calls of the control plane may take to finish when the daemon stops.
constexpr auto kShutdownGrace = std::chrono::seconds(1);

// Scheduling priority of the reactor's thread.
constexpr int kReactorNice = -15;

void ApplyLogLevel(const DaemonConfig& config) {
  if (const Result<LogLevel> level = ParseLogLevel(config.log_level); level.ok())
    SetLogLevel(*level);
}

class Worker final {
 public:
  int Run() {
    for (const int fd : {kWorkerLinkFd, kWorkerLeaseFd, kWorkerControlFd})
      (void)::fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (const Status status = ReceiveStart(); !status.ok()) {
      LogError("worker can not start", {{"reason", status.ToString()}});
      return 1;
    }
    ApplyLogLevel(start_.config.config);
    if (const Status status = Prepare(); !status.ok()) {
      LogError("cannot serve", {{"reason", status.message()}});
      return kWorkerFatalStatus;
    }
    for (LinkMessage& entry : entries_) registry_->AdoptEntry(std::move(entry));
    entries_.clear();
    registry_->FinishAdoption();
    if (const Status status = Serve(); !status.ok()) {
      LogError("cannot serve", {{"reason", status.message()}});
      return 1;
    }
    if (const DaemonConfig& config = registry_->config(); config.write_profile) {
      if (const Status status = registry_->profile().Write(config.profile_target); !status.ok()) {
        LogError("trace not written", {{"reason", status.message()}});
      } else {
        LogInfo("trace written", {{"path", config.profile_target}});
      }
    }
    return 0;
  }

 private:
  Status ReceiveStart() {
    ASSIGN_OR_RETURN(const LinkMessage start, ReceiveLink(link_.get()));
    if (start.type != LinkType::kStart)
      return InternalError("the keeper's first message is not a start");
    ASSIGN_OR_RETURN(start_, DecodeWorkerStart(start.body));
    for (;;) {
      ASSIGN_OR_RETURN(LinkMessage message, ReceiveLink(link_.get()));
      if (message.type == LinkType::kEntriesEnd) return OkStatus();
      if (message.type == LinkType::kEntry) entries_.push_back(std::move(message));
      if (message.type == LinkType::kStop) return CancelledError("stopped before it started");
    }
  }

  // The key of an earlier worker, so that what it left can be verified, or a new one.
  Result<std::shared_ptr<const UniversalHashKey>> HashKey() {
    for (const LinkMessage& entry : entries_) {
      UniversalHashKey::Seed seed;
      if (entry.key != kHashKeyLedgerKey || entry.body.size() != seed.size()) continue;
      std::memcpy(seed.data(), entry.body.data(), seed.size());
      return std::make_shared<const UniversalHashKey>(UniversalHashKey::FromSeed(seed));
    }
    ASSIGN_OR_RETURN(UniversalHashKey made, UniversalHashKey::Generate());
    RETURN_IF_ERROR(SendLink(link_.get(), LinkType::kPut, kHashKeyLedgerKey,
                             std::string(made.seed().begin(), made.seed().end())));
    return std::make_shared<const UniversalHashKey>(std::move(made));
  }

  Status Prepare() {
    const DaemonConfig& config = start_.config.config;
    ASSIGN_OR_RETURN(reactor_, Reactor::Create());
    ASSIGN_OR_RETURN(const std::shared_ptr<const UniversalHashKey> key, HashKey());
    devices_ = Devices::Open(config, key);
    Registry::Options options;
    options.config = config;
    options.id_base = start_.id_base;
    options.link = link_.get();
    HostTierOptions host;
    host.use_hugetlb = config.use_hugetlb;
    host.io_threads = config.io_threads;
    options.tiers.push_back({MakeHostTier(host), HostBudgetBytes(config, UsableMemoryBytes())});
    for (ServedTier& served : devices_->TakeTiers()) options.tiers.push_back(std::move(served));
    options.devices = devices_.get();
    options.on_tier_lost = [this](const std::string& tier) {
      if (control_ != nullptr) control_->SetTierServing(tier, false);
    };
    ASSIGN_OR_RETURN(options.catalogue, Catalogue::Open(config.state_dir, config.base_dir));
    Result<std::unique_ptr<SidecarStore>> sidecars =
        SidecarStore::Open(config.state_dir + "/sidecars");
    if (sidecars.ok()) {
      options.sidecars = *std::move(sidecars);
      const Status collected = options.sidecars->Collect();
      if (!collected.ok())
        LogWarn("sidecars not tidied up, ignoring", {{"reason", collected.message()}});
    } else {
      LogWarn("no sidecars, every file is hashed again", {{"reason", sidecars.status().message()}});
    }
    registry_ = std::make_unique<Registry>(reactor_.get(), std::move(options));
    return OkStatus();
  }

  Status Serve() {
    LeaseServer::Options lease_options;
    lease_options.id_base = start_.id_base;
    lease_options.daemon_instance =
        (static_cast<uint64_t>(start_.keeper_pid) << 32) | start_.worker_number;
    lease_options.sessions_per_uid_max = start_.config.config.sessions_per_uid_max;
    // The link stays blocking: a lease is never given before the keeper has the memory.
    for (const int fd : {kWorkerLeaseFd, kWorkerControlFd}) {
      if (::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
        return ErrnoStatus(errno, "preparing a socket");
    }
    leases_ = std::make_unique<LeaseServer>(reactor_.get(), registry_.get(),
                                            UniqueFd(kWorkerLeaseFd), lease_options);
    control_backend_ = std::make_unique<ControlCalls>(reactor_.get(), registry_.get(),
                                                      SessionsOf(leases_.get()), start_);
    struct stat info;
    ControlAccess access = ControlAccess::OfThisProcess();
    const std::string control_path = start_.config.config.runtime_dir + "/control.sock";
    if (::stat(control_path.c_str(), &info) == 0)
      access = ControlAccess{info.st_uid, info.st_gid, info.st_mode & 0777};
    ASSIGN_OR_RETURN(control_, ControlServer::Start(control_backend_.get(), access));
    const Tiers& tiers = registry_->tiers();
    for (store::TierIndex i = 0; i < tiers.size(); ++i)
      control_->SetTierServing(tiers.name(i), tiers[i].health().ok());

    RETURN_IF_ERROR(leases_->Start());
    ASSIGN_OR_RETURN(control_watch_,
                     reactor_->Watch(control_listener_.get(), EPOLLIN, "accept control connection",
                                     [this](uint32_t) { AcceptControl(); }));
    ASSIGN_OR_RETURN(link_watch_, reactor_->Watch(link_.get(), EPOLLIN, "keeper link",
                                                  [this](uint32_t) { ReadLink(); }));
    RETURN_IF_ERROR(SendLink(link_.get(), LinkType::kReady, "", ""));
    LogInfo("worker ready", {{"worker", start_.worker_number},
                             {"pid", ::getpid()},
                             {"host_budget_bytes", tiers.budget_bytes(tiers.host())},
                             {"devices", tiers.device_tiers().size()},
                             {"policy", store::PolicyName(registry_->config().eviction_policy)}});
    registry_->StartBackground();
    // This thread answers everybody and sleeps between answers; among many busy
    // clients it must not wait for its turn behind them. Loaders keep their place.
    // Not permitted to ordinary users, for whom it stays as it is.
    (void)!::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kReactorNice);
    if (std::thread::hardware_concurrency() >= kSocketSpinCores)
      reactor_->SetSpin(std::chrono::microseconds(kSocketSpinUs));
    reactor_->Run();

    if (stopper_.joinable()) stopper_.join();
    control_->Shutdown(Duration::zero());
    leases_.reset();
    return OkStatus();
  }

  void AcceptControl() {
    UniqueFd connection(
        ::accept4(control_listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection.valid()) return;
    const Status status = control_->Serve(std::move(connection));
    if (!status.ok()) LogWarn("control connection refused", {{"reason", status.message()}});
  }

  void ReadLink() {
    const Result<LinkMessage> message = ReceiveLink(link_.get());
    if (!message.ok()) {
      LogError("the keeper is gone, stopping", {{"reason", message.status().message()}});
      Stop();
      return;
    }
    switch (message->type) {
      case LinkType::kStop:
        Stop();
        break;
      case LinkType::kConfig: {
        Result<WorkerStart> reloaded = DecodeWorkerStart(message->body);
        if (!reloaded.ok()) {
          LogError("reloaded configuration not understood, ignoring",
                   {{"reason", reloaded.status().message()}});
          break;
        }
        ApplyLogLevel(reloaded->config.config);
        registry_->ApplyConfig(reloaded->config.config);
        leases_->SetSessionsPerUidMax(reloaded->config.config.sessions_per_uid_max);
        control_backend_->SetConfig(reloaded->config);
        break;
      }
      default:
        LogError("keeper sent a message of unknown type, ignoring",
                 {{"type", static_cast<uint32_t>(message->type)}});
    }
  }

  // Calls of the control plane wait for the reactor, so the reactor goes on while
  // they end.
  void Stop() {
    if (stopper_.joinable()) return;
    reactor_->Unwatch(link_watch_);
    reactor_->Unwatch(control_watch_);
    stopper_ = std::thread([this] {
      control_->Shutdown(kShutdownGrace);
      reactor_->Post("stop", [this] { reactor_->Stop(); });
    });
  }

  UniqueFd link_{kWorkerLinkFd};
  UniqueFd control_listener_{kWorkerControlFd};
  Reactor::WatchId link_watch_{};
  Reactor::WatchId control_watch_{};
  WorkerStart start_;
  std::vector<LinkMessage> entries_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Devices> devices_;  // Outlives the tiers, which the registry has.
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<LeaseServer> leases_;
  std::unique_ptr<ControlCalls> control_backend_;
  std::unique_ptr<ControlServer> control_;
  std::thread stopper_;
};

}  // namespace

int RunWorker() {
  // A terminal's Ctrl-C reaches the whole group; stopping is the keeper's word.
  for (const int signal : {SIGINT, SIGQUIT, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);
  InitLog(LogOptionsFromEnvironment(LogLevel::kInfo));
  return Worker().Run();
}

}  // namespace trims

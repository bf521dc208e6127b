// The keeper: the half of the daemon that does not die.
//
// It holds the lock of the runtime directory, the listening sockets, and the
// ledger: the original descriptor of every ready extent. It starts the worker,
// hands it the ledger, starts it again when it dies, and gives up with a clear
// message when it can not start. It parses nothing that a client, a file or the
// worker sends, and uses neither CUDA nor gRPC. One thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "daemon/config_layers.h"

namespace trims {

// Runs until SIGTERM, SIGINT or SIGQUIT (status 0) or until serving is
// impossible (status 1; the reason has been logged). `reload` reads the
// configuration again, for SIGHUP. `program` and `worker_args` start the worker.
struct KeeperOptions {
  LoadedConfig config;
  std::function<Result<LoadedConfig>()> reload;
  std::string program;  // Path of the daemon's binary.
  // How long a worker may take to end after it was asked to, and the longest pause before a
  // worker that keeps dying before it is ready is started again.
  Duration stop_deadline = std::chrono::seconds(10);
  Duration restart_pause_max = std::chrono::milliseconds(kWorkerRestartBackoffMsMax);
};
int RunKeeper(KeeperOptions options);

// The flag by which the keeper starts its worker; not for people.
inline constexpr char kWorkerFlag[] = "--worker-of-keeper";

// Descriptors that the worker inherits.
inline constexpr int kWorkerLinkFd = 3;
inline constexpr int kWorkerLeaseFd = 4;
inline constexpr int kWorkerControlFd = 5;

// The configuration as it travels from keeper to worker, and what else the
// worker needs to know at start.
struct WorkerStart {
  LoadedConfig config;
  uint64_t worker_number = 0;  // 1 for the first worker of this keeper.
  int64_t keeper_pid = 0;
  int64_t started_at_unix = 0;  // Of the keeper.
  uint64_t id_base = 0;         // First lease, load and generation number of this worker.
};
std::string EncodeWorkerStart(const WorkerStart& start);
// INTERNAL when it is not what EncodeWorkerStart wrote.
Result<WorkerStart> DecodeWorkerStart(const std::string& text);

// READY=1 and the like to the service manager; nothing without NOTIFY_SOCKET.
void NotifyServiceManager(const std::string& state);

}  // namespace trims

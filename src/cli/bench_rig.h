// What every benchmark against the daemon works with: the connection of an operator, the
// client library as a program would use it, and a model of its own that is gone afterwards, however
// the benchmark ends. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cli/bench_device.h"
#include "cli/bench_model.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/interrupts.h"
#include "cli/json.h"
#include "cli/tiers.h"
#include "trims/trims.h"

namespace trims::cli {

struct BenchOptions {
  std::string device;  // As a tier: "gpu:0"; empty: the host tier.
  std::vector<std::string> sizes;
  std::vector<uint32_t> tensors;
  int runs = 0;
  std::string directory;
  bool sparse = false;
  std::string from;  // Of load: page-cache, disk, host, peer:gpu:1.
};
// `sizes` as bytes. INVALID_ARGUMENT names the one that is none, or too small for its tensors.
Result<std::vector<uint64_t>> BenchSizes(const BenchOptions& options);

struct EndLease {
  void operator()(trims_lease* lease) const { trims_lease_close(lease); }
};
using Lease = std::unique_ptr<trims_lease, EndLease>;

// Where weights go in an open.
struct BenchPlace {
  std::string tier = "host";  // The daemon's name.
  std::string uuid;           // Of the device, else empty.
  std::string text = "host";  // For people: "gpu:0".

  std::string Title() const { return uuid.empty() ? "the host tier" : text; }
};

class BenchRig final {
 public:
  // Connects both ways. With a device also finds it here and makes a context on it: the error
  // says whether it is this process or the daemon that can not use it.
  static Result<std::unique_ptr<BenchRig>> Make(const Context& context, const std::string& device);

  ~BenchRig();
  BenchRig(const BenchRig&) = delete;
  BenchRig& operator=(const BenchRig&) = delete;

  Connection& daemon() { return daemon_; }
  const v1::GetStatusResponse& status() const { return status_; }
  const Interrupts& interrupts() const { return interrupts_; }
  const BenchPlace& place() const { return place_; }
  BenchDevice* device() { return device_ ? &*device_ : nullptr; }
  bool json() const { return json_; }

  // For what people type: "gpu:1". NOT_FOUND or UNAVAILABLE when the daemon does not serve it.
  Result<BenchPlace> FindPlace(const std::string& tier) const;

  // Opens as any client would; shows progress and can be interrupted.
  Result<Lease> Open(const std::string& model, const BenchPlace& place);
  // The same without progress: nothing but the call, to be measured. Not NULL when OK.
  trims_lease* OpenPlainly(const std::string& model, const BenchPlace& place, Status* status);
  // After this the daemon knows of all leases that were closed.
  Status Settle();

  // Drops the model's replicas but those in the tiers `keep`, also such as the daemon makes
  // by itself after a load, and waits until it has nothing more to do.
  Status KeepOnly(const std::string& model, const std::vector<std::string>& keep);
  // The same for all tiers, at the end: not to be interrupted, and takes seconds at most.
  void DropAll(const std::string& model);

  // The driver clears memory that was given back, 2.4 ms for each GiB measured on an H200,
  // and copies of that time are slower: they would measure something else.
  Status WaitUntilCleared(uint64_t bytes) const;

  // What the figures depend on.
  Json Machine() const;
  std::string MachineText() const;

 private:
  BenchRig(Connection daemon, v1::GetStatusResponse status, bool json);
  trims_open_options OpenOptions(const BenchPlace& place) const;
  Status KeepOnlyUntil(std::chrono::steady_clock::time_point deadline, const std::string& model,
                       const std::vector<std::string>& keep, const std::function<Status()>& wait);

  Connection daemon_;
  v1::GetStatusResponse status_;
  const bool json_;
  Interrupts interrupts_;
  trims_client* client_ = nullptr;
  BenchPlace place_;
  std::optional<BenchDevice> device_;
};

// A weights file that the daemon knows as "bench/<pid>-<n>". Removed from everywhere with
// the object.
class BenchModel final {
 public:
  static Result<std::unique_ptr<BenchModel>> Make(BenchRig& rig, const BenchModelSpec& spec);
  ~BenchModel();
  BenchModel(const BenchModel&) = delete;
  BenchModel& operator=(const BenchModel&) = delete;

  const std::string& name() const { return name_; }
  const std::string& path() const { return file_.path(); }
  uint64_t file_bytes() const { return file_.file_bytes(); }

 private:
  BenchModel(BenchRig& rig, BenchModelFile file);

  BenchRig& rig_;
  BenchModelFile file_;
  std::string name_;
  bool added_ = false;
};

// Seconds that `call` takes.
template <typename Call>
double TimeOf(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Fail() with what helps in a benchmark.
ExitCode FailBench(const Context& context, const Status& status);

// The three benchmarks. They print their results.
ExitCode RunBenchOpen(const Context& context, const BenchOptions& options);
ExitCode RunBenchLoad(const Context& context, const BenchOptions& options);
ExitCode RunBenchCopy(const Context& context, const BenchOptions& options);

}  // namespace trims::cli

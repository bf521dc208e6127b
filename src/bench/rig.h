// What every benchmark against the daemon works with: an operator's calls, the client library
// as a program would use it, and a device's floor. One thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/control.h"
#include "bench/device.h"
#include "bench/interrupts.h"
#include "bench/observer.h"
#include "trims/trims.hpp"

namespace trims::bench {

// Where weights go in an open.
struct Place {
  std::string tier = "host";  // The daemon's name.
  std::string uuid;           // Of the device, else empty.
  std::string text = "host";  // For people: "gpu:0".

  std::string Title() const { return uuid.empty() ? "the host tier" : text; }
};

struct RigOptions {
  std::string runtime_dir;
  uid_t daemon_uid = 0;  // Whose sockets those are, beside root and this process's own.
  Place place;
};

class Rig final {
 public:
  // Connects as a client. With a device also finds it here and makes a context on it: the
  // error says that it is this process that can not use it. `control` and `observer` outlive
  // the rig. Interrupts are caught from here on.
  static Result<std::unique_ptr<Rig>> Make(Control& control, Observer& observer,
                                           RigOptions options);

  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  Control& control() { return control_; }
  Observer& observer() { return observer_; }
  const Interrupts& interrupts() const { return interrupts_; }
  const Place& place() const { return place_; }
  Device* device() { return device_ ? &*device_ : nullptr; }
  const Device* device() const { return device_ ? &*device_ : nullptr; }

  // Opens as any client would; shows progress and can be interrupted.
  Result<Lease> Open(const std::string& model, const Place& place);
  // The same without progress: nothing but the call, to be measured.
  Expected<Lease> OpenPlainly(const std::string& model, const Place& place);
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

 private:
  Rig(Control& control, Observer& observer, Place place);
  Status KeepOnlyUntil(std::chrono::steady_clock::time_point deadline, const std::string& model,
                       const std::vector<std::string>& keep, const std::function<Status()>& wait);

  Control& control_;
  Observer& observer_;
  const Place place_;
  Interrupts interrupts_;
  Client client_;
  std::optional<Device> device_;
};

}  // namespace trims::bench

// The GPUs of this machine and what the worker makes of them: which it serves, why it
// does not serve the others, and how fast bytes come to each.
//
// Nothing here fails: a machine without a driver, and a device whose context can not
// be made, are facts to be told, and the host tier serves on. In a build without CUDA's
// headers there are never any devices, and that is the reason given.
//
// Owns what device tiers need to live (contexts, pinned host extents), so it outlives the
// tiers that it hands out. Thread-safe after Open; Facts() may block in the driver.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/universal_hash.h"
#include "daemon/config.h"
#include "daemon/tiers.h"
#include "tier/tier.h"

namespace trims {

// How fast bytes come to a device.
struct LinkFacts {
  std::string from;             // "host", or the UUID of another device.
  double bytes_per_second = 0;  // 0: not measured.
  bool direct = false;          // Between devices: not through host memory.
};

struct DeviceFacts {
  int ordinal = 0;
  std::string uuid;
  std::string name;
  std::string pci_bus_id;
  std::string tier;  // Empty: not served.
  Status state;      // OK: served and well.
  bool supports_vmm = false;
  bool supports_posix_fd = false;
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;  // 0 when it can not be told.
  uint64_t pinned_pool_bytes = 0;
  uint64_t pinned_pool_bytes_max = 0;
  std::vector<LinkFacts> links;
};

class Devices final {
 public:
  // Looks for GPUs and makes a tier for each that the configuration names: 0.1 to 0.3 s
  // where there are some.
  static std::unique_ptr<Devices> Open(const DaemonConfig& config,
                                       std::shared_ptr<const UniversalHashKey> key);
  ~Devices();
  Devices(const Devices&) = delete;
  Devices& operator=(const Devices&) = delete;

  // The tiers in the order of their devices, and what models may take of each. Once.
  std::vector<ServedTier> TakeTiers();

  // OK, or why there is no device at all.
  const Status& driver() const;
  // "13.0"; empty without a driver.
  const std::string& driver_version() const;
  // Every device, served or not, as it is now.
  std::vector<DeviceFacts> Facts() const;
  // Why a device is not served, for a client that asked for it by UUID.
  std::string WhyNotServed(const std::string& uuid) const;
  // The number of the device that a tier is on, as this process counts.
  std::optional<uint32_t> OrdinalOf(const std::string& tier) const;
  // Of the host tier: pinned for copies to devices.
  uint64_t host_pinned_bytes() const;
  bool is_host_pinning() const;

  // Measures every link, unless `known` (what this returned in an earlier worker) says how
  // fast each is. Takes 10 ms or so for each; for a thread in the background.
  std::string MeasureLinks(const std::string& known);
  // Whether a device should take what another has rather than what pinned host memory has.
  // Both by name of their tiers.
  bool PeerIsFaster(const std::string& to, const std::string& from) const;

 private:
  struct State;
  explicit Devices(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace trims

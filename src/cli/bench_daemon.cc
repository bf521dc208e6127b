#include "cli/bench_daemon.h"

#include <sys/utsname.h>

#include <thread>

#include "base/device_names.h"
#include "cli/text.h"
#include "cli/tiers.h"
#include "trims/trims.hpp"

namespace trims::cli {

Result<std::unique_ptr<BenchDaemon>> BenchDaemon::Connect(const Context& context) {
  ASSIGN_OR_RETURN(std::string directory, RuntimeDir(context));
  ASSIGN_OR_RETURN(Connection connection, Connection::Open(directory));
  std::unique_ptr<BenchDaemon> daemon(new BenchDaemon(std::move(directory), std::move(connection)));
  RETURN_IF_ERROR(daemon->GetStatus(v1::GetStatusRequest(), &daemon->status_));
  return daemon;
}

Result<bench::Place> BenchDaemon::FindPlace(const std::string& tier) const {
  if (tier == "host") return bench::Place();
  const TierNames names(status_);
  const std::string wanted = names.Resolve(tier);
  std::string served;
  for (const v1::DeviceView& device : status_.devices()) {
    const std::string text = names.DeviceText(device.uuid());
    if (wanted == DeviceTierName(device.uuid())) {
      if (!device.tier().empty() && device.ready()) {
        return bench::Place{.tier = device.tier(), .uuid = device.uuid(), .text = text};
      }
      return UnavailableError("the daemon does not serve " + text + " (" + device.name() +
                              "): " + device.state());
    }
    if (device.ready()) served += (served.empty() ? "" : ", ") + text + " (" + device.name() + ")";
  }
  return NotFoundError(
      "the daemon has no device " + tier +
      (served.empty() ? ", and serves none: " + status_.gpu() : "; it serves " + served));
}

Result<std::unique_ptr<bench::Rig>> BenchDaemon::MakeRig(const std::string& device,
                                                         bench::Observer& observer) {
  bench::RigOptions options = {
      .runtime_dir = runtime_dir_,
      .daemon_uid = status_.uid(),  // Of whom the control socket was, which was checked.
  };
  if (!device.empty()) {
    ASSIGN_OR_RETURN(options.place, FindPlace(device));
  }
  return bench::Rig::Make(*this, observer, std::move(options));
}

Json BenchDaemon::Machine() const {
  utsname system{};
  ::uname(&system);
  Json devices = Json::array();
  for (const v1::DeviceView& device : status_.devices()) {
    devices.push_back({{"ordinal", device.ordinal()},
                       {"uuid", device.uuid()},
                       {"name", device.name()},
                       {"total_bytes", device.total_bytes()},
                       {"ready", device.ready()}});
  }
  return {{"cores", std::thread::hardware_concurrency()}, {"kernel", system.release},
          {"daemon_version", status_.version()},          {"client_version", Version()},
          {"cuda_driver", status_.cuda_driver()},         {"devices", std::move(devices)}};
}

std::string BenchDaemon::MachineText(const bench::Rig& rig) const {
  std::string text = "daemon " + status_.version() + ", " +
                     std::to_string(std::thread::hardware_concurrency()) + " cores";
  if (rig.device() != nullptr) {
    text +=
        ", " + rig.place().text + " is " + rig.device()->name() + ", CUDA " + status_.cuda_driver();
  }
  return Printable(text);
}

}  // namespace trims::cli

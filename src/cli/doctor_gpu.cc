#include "cli/doctor_gpu.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "cli/text.h"
#include "cli/tiers.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

// /dev/nvidia0 and so on, without nvidiactl and nvidia-uvm.
std::vector<std::string> DeviceFiles(const std::string& root) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/dev", error)) {
    const std::string name = entry.path().filename().string();
    if (name.size() > 6 && name.starts_with("nvidia") &&
        name.find_first_not_of("0123456789", 6) == std::string::npos) {
      files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Those that this user may not open; the driver says of them only that there is no device.
std::string ClosedFiles(const std::string& root, const std::vector<std::string>& devices) {
  std::vector<std::string> files = devices;
  files.insert(files.end(), {root + "/dev/nvidiactl", root + "/dev/nvidia-uvm"});
  std::string closed;
  for (const std::string& file : files) {
    struct stat found {};
    if (::stat(file.c_str(), &found) != 0 || ::access(file.c_str(), R_OK | W_OK) == 0) continue;
    char mode[16];
    std::snprintf(mode, sizeof mode, "%04o", static_cast<unsigned>(found.st_mode & 07777));
    closed += (closed.empty() ? "" : ", ") + file + " (owner " + UserText(found.st_uid) +
              ", mode " + mode + ")";
  }
  return closed;
}

bool DriverLibraryLoads() {
  if (std::getenv("TRIMS_CUDA_LIBRARY") != nullptr) return true;  // Named: it is meant to be there.
  void* library = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return false;
  ::dlclose(library);
  return true;
}

Finding DriverFinding(const Result<GpuProbe>& probe, const std::string& root) {
  const std::string check = "gpu";
  if (probe.ok()) {
    return Good(check, std::to_string(probe->devices.size()) +
                           (probe->devices.size() == 1 ? " device" : " devices") +
                           " visible to this process; the driver supports CUDA " +
                           probe->driver_version);
  }
  const std::vector<std::string> files = DeviceFiles(root);
  if (files.empty() && !DriverLibraryLoads()) {
    return Good(check, "none: weights are served from the host tier");
  }
  std::string list;
  for (const std::string& file : files) list += (list.empty() ? "" : ", ") + file;
  const std::string text =
      (list.empty() ? "no /dev/nvidia0" : list) + "; " + probe.status().message();
  if (probe.status().code() == StatusCode::kUnimplemented) {
    return Bad(Level::kWarn, check, text,
               "build TrIMS where cuda.h is found to use the GPU; the host tier works without");
  }
  if (const std::string closed = ClosedFiles(root, files); !closed.empty()) {
    return Bad(Level::kWarn, check, text + "; this user may not open " + closed,
               "let this user read and write these files, by group or by mode");
  }
  return Bad(Level::kWarn, check, text,
             files.empty()
                 ? "give this container its devices, or load the nvidia kernel module"
                 : "install the NVIDIA driver's user library, or mount it into this container "
                   "(NVIDIA_DRIVER_CAPABILITIES=compute); nvidia-smi shows whether it works");
}

Finding DeviceFinding(const GpuView& device, const std::string& name) {
  const std::string text = device.name + ", " + device.uuid + ", " + FormatSize(device.total_bytes);
  if (!device.supports_vmm || !device.supports_posix_fd) {
    return Bad(
        Level::kWarn, name,
        text + "; it has no " +
            (device.supports_vmm ? "sharing of memory by descriptor" : "virtual memory management"),
        "models can not be shared on it; a newer driver, or the whole GPU in place of a "
        "virtual one, may help");
  }
  if (!device.tried.ok()) {
    return Bad(Level::kFail, name, text + "; sharing memory was tried: " + device.tried.message(),
               device.tried.code() == StatusCode::kResourceExhausted
                   ? "the device is full: see who uses it with nvidia-smi"
                   : "no process can use a model on it before that works; dmesg may say why");
  }
  return Good(name, text + "; sharing memory was tried: works");
}

Finding PeersFinding(const GpuProbe& probe, const TierNames& names) {
  std::string pairs;
  for (const GpuView& device : probe.devices) {
    for (const std::string& peer : device.unreachable_peers) {
      pairs += (pairs.empty() ? "" : ", ") + names.DeviceText(device.uuid) + " from " +
               names.DeviceText(peer);
    }
  }
  if (pairs.empty()) return Good("gpu peers", "all devices read each other directly");
  return Good("gpu peers", "models are copied through the host to " + pairs);
}

// One of the daemon's devices.
Finding ServedFinding(const v1::DeviceView& device, const v1::GetStatusResponse& daemon,
                      const std::string& name) {
  const std::string check = "daemon " + name;
  const v1::TierView* tier = nullptr;
  for (const v1::TierView& one : daemon.tiers()) {
    if (!device.tier().empty() && one.name() == device.tier()) tier = &one;
  }
  if (tier == nullptr) {
    return Bad(Level::kWarn, check, device.name() + " is not served: " + device.state(),
               "if it should be: see \"trims config show\" (devices), and the daemon's log");
  }
  if (!device.ready() || !tier->health().empty()) {
    return Bad(Level::kFail, check,
               device.name() + ": " + (tier->health().empty() ? device.state() : tier->health()),
               "models are served from the host; see dmesg and nvidia-smi, then restart the "
               "daemon");
  }
  std::string text = device.name() + ", " + device.state() + ": " + FormatSize(tier->used_bytes()) +
                     " of " + FormatSize(tier->budget_bytes()) + " used";
  if (device.pinned_pool_bytes_max() > 0) {
    text += "; load buffers " + FormatSize(device.pinned_pool_bytes()) + " of " +
            FormatSize(device.pinned_pool_bytes_max());
  }
  if (device.pinned_pool_bytes() < device.pinned_pool_bytes_max()) {
    return Bad(Level::kWarn, check, text,
               "loads are slower until all are there, which takes seconds after a start; if it "
               "stays so: LimitMEMLOCK=infinity in the daemon's unit, and huge pages "
               "(sysctl vm.nr_hugepages=" +
                   std::to_string(device.pinned_pool_bytes_max() / (2 * 1024 * 1024)) + ")");
  }
  return Good(check, text);
}

// Where this process and the daemon do not see the same devices.
void CompareViews(const Result<GpuProbe>& probe, const v1::GetStatusResponse& daemon,
                  std::vector<Finding>* findings) {
  const std::string check = "gpu view";
  std::string hidden;
  std::string unknown;
  for (const v1::DeviceView& device : daemon.devices()) {
    const bool seen =
        probe.ok() && std::any_of(probe->devices.begin(), probe->devices.end(),
                                  [&](const GpuView& one) { return one.uuid == device.uuid(); });
    if (!seen) hidden += (hidden.empty() ? "" : ", ") + device.uuid();
  }
  if (probe.ok()) {
    for (const GpuView& one : probe->devices) {
      const bool known =
          std::any_of(daemon.devices().begin(), daemon.devices().end(),
                      [&](const v1::DeviceView& device) { return one.uuid == device.uuid(); });
      if (!known) unknown += (unknown.empty() ? "" : ", ") + one.uuid;
    }
  }
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!hidden.empty()) {
    findings->push_back(
        Bad(Level::kWarn, check, "this process does not see " + hidden + ", which the daemon has",
            visible != nullptr
                ? "CUDA_VISIBLE_DEVICES=" + std::string(visible) +
                      " hides it here: models on it can not be opened by such a process"
                : "processes like this one can not open models on it: they need the device files "
                  "and the driver's library"));
  }
  if (!unknown.empty()) {
    findings->push_back(
        Bad(Level::kWarn, check, "the daemon does not see " + unknown + ", which this process has",
            daemon.devices().empty() && !daemon.gpu().empty()
                ? "the daemon says of its GPUs: " + daemon.gpu()
                : "look at CUDA_VISIBLE_DEVICES in the daemon's environment, or at its container"));
  }
  if (hidden.empty() && unknown.empty() && !daemon.devices().empty()) {
    findings->push_back(Good(check, "this process and the daemon see the same devices"));
  }
}

}  // namespace

GpuFindings CheckGpus(const Result<GpuProbe>& probe,
                      const std::optional<v1::GetStatusResponse>& daemon, const std::string& root) {
  std::vector<Finding> findings;
  const TierNames names = daemon ? TierNames(*daemon) : TierNames();
  findings.push_back(DriverFinding(probe, root));
  if (probe.ok()) {
    for (const GpuView& device : probe->devices) {
      // The daemon's number where it has one: that is what other commands accept.
      const std::string tier = DeviceTierName(device.uuid);
      const std::string name = names.Text(tier);
      findings.push_back(
          DeviceFinding(device, name == tier ? "gpu #" + std::to_string(device.ordinal) : name));
    }
    if (probe->devices.size() > 1) findings.push_back(PeersFinding(*probe, names));
  }
  if (daemon) {
    for (const v1::DeviceView& device : daemon->devices()) {
      findings.push_back(ServedFinding(device, *daemon, names.DeviceText(device.uuid())));
    }
    CompareViews(probe, *daemon, &findings);
  }
  const bool present =
      probe.ok() || !DeviceFiles(root).empty() || (daemon && !daemon->devices().empty());
  return {.present = present, .findings = std::move(findings)};
}

}  // namespace trims::cli

#include "cuda/driver.h"

#include <dlfcn.h>
#include <strings.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "cuda/driver_table.h"
#include "cuda/error.h"

namespace trims::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr const char* kLibraryVariable = "TRIMS_CUDA_LIBRARY";

// What the process knows of its driver. Leaked, so that nothing of CUDA is called
// or torn down at exit.
struct Loaded {
  Mutex mutex;
  const Driver* driver TRIMS_GUARDED_BY(mutex) = nullptr;
  pid_t pid TRIMS_GUARDED_BY(mutex) = 0;  // Who ran cuInit.
  // One by attempt, kept: CudaStatus may be reading an old one in another thread.
  std::vector<std::unique_ptr<DriverTable>> tables TRIMS_GUARDED_BY(mutex);
  std::atomic<const DriverTable*> complete{nullptr};
  std::atomic<const DriverTable*> partial{nullptr};
};

Loaded& TheLoaded() {
  static Loaded& loaded = *new Loaded;
  return loaded;
}

std::string FormatVersion(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// What a user can do about a cuInit that failed.
std::string Advice(int result) {
  switch (result) {
    case CUDA_ERROR_OPERATING_SYSTEM:
      return "often /proc is not mounted in this container or namespace, or /dev/nvidiactl and "
             "/dev/nvidia-uvm may not be opened";
    case CUDA_ERROR_NO_DEVICE: {
      const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
      return visible != nullptr
                 ? "CUDA_VISIBLE_DEVICES is \"" + std::string(visible) +
                       "\", which names no device of this machine that this user may open"
                 : std::string(
                       "this machine has no NVIDIA GPU, this container was given none, or this "
                       "user may not open /dev/nvidia*");
    }
    case CUDA_ERROR_STUB_LIBRARY:
      return "this is the toolkit's stub, made to link against: install the NVIDIA driver, or take "
             "the stubs folder out of LD_LIBRARY_PATH";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return "the library and the kernel module are of different versions: reboot after the "
             "update, or give the container the host's libraries";
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return "the compatibility library does not support this GPU: take it out of "
             "LD_LIBRARY_PATH or update the NVIDIA driver";
    case CUDA_ERROR_SYSTEM_NOT_READY:
      return "a service that the driver needs is not running, on NVSwitch machines "
             "nvidia-fabricmanager";
    case CUDA_ERROR_MPS_CONNECTION_FAILED:
    case CUDA_ERROR_MPS_RPC_FAILURE:
    case CUDA_ERROR_MPS_SERVER_NOT_READY:
    case CUDA_ERROR_MPS_MAX_CLIENTS_REACHED:
    case CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED:
      return "check the MPS control daemon and CUDA_MPS_PIPE_DIRECTORY";
    case CUDA_ERROR_UNKNOWN:
      return "often the kernel module nvidia_uvm is not loaded, or a device node is missing";
    default:
      return "try nvidia-smi, and look for NVRM in the kernel's log";
  }
}

// Opens the library and fills `table`, in the order of its members, as far as it gets.
Status Resolve(const std::string& library, DriverTable& table) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = ::dlerror();
    return UnavailableError("no usable NVIDIA driver: " +
                            std::string(why != nullptr ? why : library + " can not be opened") +
                            "; install the driver, or start the container with its libraries "
                            "(nvidia-container-toolkit)");
  }
  const char* missing = nullptr;
  const auto find = [&](const char* symbol, auto& function) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, symbol));
    if (function == nullptr && missing == nullptr) missing = symbol;
  };
#define TRIMS_CUDA_TEXT(name) #name
#define TRIMS_CUDA_FIND(name) find(TRIMS_CUDA_TEXT(name), table.name);
  TRIMS_CUDA_FUNCTIONS(TRIMS_CUDA_FIND)
#undef TRIMS_CUDA_FIND
#undef TRIMS_CUDA_TEXT
  if (missing == nullptr) return OkStatus();

  int version = 0;
  const bool knows = table.cuDriverGetVersion != nullptr &&
                     table.cuDriverGetVersion(&version) == CUDA_SUCCESS && version != 0;
  // The handle stays open: drivers are not made to be unloaded.
  return UnavailableError("the NVIDIA driver is too old: " + library +
                          (knows ? ", for CUDA " + FormatVersion(version) + "," : "") + " has no " +
                          missing + "; CUDA 11.4 (driver 470) or newer is needed");
}

}  // namespace

const DriverTable& Table() {
  const DriverTable* table = TheLoaded().complete.load(std::memory_order_acquire);
  TRIMS_CHECK(table != nullptr);
  return *table;
}

const DriverTable* PartialTable() { return TheLoaded().partial.load(std::memory_order_acquire); }

Result<const Driver*> Driver::Load() {
  Loaded& loaded = TheLoaded();
  const MutexLock lock(loaded.mutex);
  if (loaded.driver != nullptr) {
    if (loaded.pid != ::getpid()) {
      return UnavailableError("the CUDA driver does not survive fork(): it was loaded in process " +
                              std::to_string(loaded.pid) +
                              ", of which this one is a copy; load it after the fork, or "
                              "start this process with exec");
    }
    return loaded.driver;
  }

  // secure_getenv: who runs us with other rights than theirs may not choose our code.
  const char* chosen = ::secure_getenv(kLibraryVariable);
  const std::string library = chosen != nullptr && *chosen != '\0' ? chosen : kLibrary;
  loaded.tables.push_back(std::make_unique<DriverTable>());
  DriverTable* table = loaded.tables.back().get();
  const Status resolved = Resolve(library, *table);
  loaded.partial.store(table, std::memory_order_release);
  RETURN_IF_ERROR(resolved);

  if (const CUresult result = table->cuInit(0); result != CUDA_SUCCESS) {
    return UnavailableError(CudaStatus(result, "starting the CUDA driver (cuInit)").message() +
                            "; " + Advice(result));
  }
  int version = 0;
  if (const CUresult result = table->cuDriverGetVersion(&version); result != CUDA_SUCCESS) {
    return UnavailableError(CudaStatus(result, "asking the CUDA driver for its version").message());
  }
  int devices = 0;
  if (const CUresult result = table->cuDeviceGetCount(&devices); result != CUDA_SUCCESS) {
    return UnavailableError(CudaStatus(result, "counting CUDA devices").message());
  }
  if (devices <= 0) {
    return UnavailableError("the CUDA driver works but shows no device: " +
                            Advice(CUDA_ERROR_NO_DEVICE));
  }

  auto* driver = new Driver;
  driver->version_ = version;
  driver->library_ = library;
  loaded.complete.store(table, std::memory_order_release);
  loaded.pid = ::getpid();
  loaded.driver = driver;
  return loaded.driver;
}

std::string Driver::VersionText() const { return FormatVersion(version_); }

Result<std::vector<Device>> Driver::Devices() const {
  int count = 0;
  RETURN_IF_ERROR(CudaStatus(Table().cuDeviceGetCount(&count), "counting CUDA devices"));
  std::vector<Device> devices;
  devices.reserve(static_cast<size_t>(count));
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    ASSIGN_OR_RETURN(Device device, Device::Read(ordinal));
    devices.push_back(std::move(device));
  }
  return devices;
}

Result<Device> Driver::FindDevice(std::string_view uuid) const {
  ASSIGN_OR_RETURN(const std::vector<Device> devices, Devices());
  const std::string wanted(uuid);
  std::string seen;
  for (const Device& device : devices) {
    if (::strcasecmp(device.uuid().c_str(), wanted.c_str()) == 0) return device;
    seen.append(seen.empty() ? "" : ", ").append(device.uuid());
  }
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return NotFoundError(
      "device " + wanted + " is not visible to this process, which sees " + seen +
      (visible != nullptr ? " (CUDA_VISIBLE_DEVICES is \"" + std::string(visible) + "\")" : ""));
}

}  // namespace trims::cuda

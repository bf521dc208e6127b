#include "cuda/device.h"

#include <array>
#include <type_traits>
#include <utility>

#include "cuda/driver_table.h"
#include "cuda/error.h"

namespace trims::cuda {

struct Device::Facts {
  int ordinal = 0;
  std::string uuid;
  std::string name;
  std::string pci_bus_id;
  uint64_t total_bytes = 0;
  int compute_capability_major = 0;
  int compute_capability_minor = 0;
  int multiprocessors = 0;
  bool vmm = false;
  bool posix_fd = false;
  bool read_only_registration = false;
};

namespace {

std::string UuidText(const CUuuid& uuid, bool slice) {
  std::string text = slice ? "MIG" : "GPU";
  for (size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text.push_back('-');
    constexpr char kDigits[] = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(uuid.bytes[i]);
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

}  // namespace

Result<Device> Device::Read(int ordinal) {
  const DriverTable& table = Table();
  const std::string what = "reading CUDA device " + std::to_string(ordinal);
  CUdevice handle = 0;
  RETURN_IF_ERROR(CudaStatus(table.cuDeviceGet(&handle, ordinal), what));
  auto facts = std::make_shared<Facts>();
  facts->ordinal = ordinal;

  std::array<char, 256> text{};
  RETURN_IF_ERROR(CudaStatus(table.cuDeviceGetName(text.data(), text.size(), handle), what));
  facts->name = text.data();
  text.fill('\0');
  RETURN_IF_ERROR(CudaStatus(table.cuDeviceGetPCIBusId(text.data(), text.size(), handle), what));
  facts->pci_bus_id = text.data();
  CUuuid uuid{};
  RETURN_IF_ERROR(CudaStatus(table.cuDeviceGetUuid(&uuid, handle), what));
  // The driver has no attribute for it, but names slices "… MIG 1g.10gb".
  facts->uuid = UuidText(uuid, facts->name.find(" MIG ") != std::string::npos);
  size_t total = 0;
  RETURN_IF_ERROR(CudaStatus(table.cuDeviceTotalMem(&total, handle), what));
  facts->total_bytes = total;

  const auto attribute = [&](CUdevice_attribute which, auto& into) {
    int value = 0;
    const CUresult result = table.cuDeviceGetAttribute(&value, which, handle);
    if (result == CUDA_SUCCESS) into = static_cast<std::remove_reference_t<decltype(into)>>(value);
    return CudaStatus(result, what);
  };
  RETURN_IF_ERROR(
      attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, facts->compute_capability_major));
  RETURN_IF_ERROR(
      attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, facts->compute_capability_minor));
  RETURN_IF_ERROR(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, facts->multiprocessors));
  RETURN_IF_ERROR(attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, facts->vmm));
  RETURN_IF_ERROR(
      attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, facts->posix_fd));
  RETURN_IF_ERROR(attribute(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED,
                            facts->read_only_registration));
  return Device(std::move(facts));
}

int Device::ordinal() const { return facts_->ordinal; }
const std::string& Device::uuid() const { return facts_->uuid; }
const std::string& Device::name() const { return facts_->name; }
const std::string& Device::pci_bus_id() const { return facts_->pci_bus_id; }
uint64_t Device::total_bytes() const { return facts_->total_bytes; }
int Device::compute_capability_major() const { return facts_->compute_capability_major; }
int Device::compute_capability_minor() const { return facts_->compute_capability_minor; }
int Device::multiprocessors() const { return facts_->multiprocessors; }
bool Device::supports_vmm() const { return facts_->vmm; }
bool Device::supports_posix_fd() const { return facts_->posix_fd; }
bool Device::supports_read_only_registration() const { return facts_->read_only_registration; }

Result<bool> Device::CanAccessPeer(const Device& peer) const {
  if (ordinal() == peer.ordinal()) return true;  // The driver answers no to this one.
  int can = 0;
  RETURN_IF_ERROR(CudaStatus(Table().cuDeviceCanAccessPeer(&can, ordinal(), peer.ordinal()),
                             "asking whether " + uuid() + " can access " + peer.uuid()));
  return can != 0;
}

Result<Context> Context::Retain(const Device& device) {
  CUcontext context = nullptr;
  RETURN_IF_ERROR(CudaStatus(Table().cuDevicePrimaryCtxRetain(&context, device.ordinal()),
                             "retaining the context of " + device.uuid()));
  return Context(std::make_shared<const RetainedContext>(device, context));
}

const Device& Context::device() const { return retained_->device(); }

Result<Context::Memory> Context::GetMemory() const {
  const CurrentContext current(*this);
  RETURN_IF_ERROR(current.status());
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(CudaStatus(Table().cuMemGetInfo(&free, &total),
                             "asking for the free memory of " + device().uuid()));
  return Memory{.free_bytes = free, .total_bytes = total};
}

Status Context::Synchronize() const {
  const CurrentContext current(*this);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(Table().cuCtxSynchronize(), "waiting for work on " + device().uuid());
}

Status Context::EnablePeerAccess(const Context& peer) const {
  const CurrentContext current(*this);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuCtxEnablePeerAccess(peer.retained_->context(), 0);
  if (result == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) return OkStatus();
  return CudaStatus(result,
                    "letting " + device().uuid() + " access memory of " + peer.device().uuid());
}

CurrentContext::CurrentContext(const Context& context) : CurrentContext(context.retained()) {}

CurrentContext::CurrentContext(const std::shared_ptr<const RetainedContext>& retained)
    : status_(CudaStatus(Table().cuCtxPushCurrent(retained->context()),
                         "using the context of " + retained->device().uuid())) {}

CurrentContext::~CurrentContext() {
  if (!status_.ok()) return;
  CUcontext popped = nullptr;
  static_cast<void>(Table().cuCtxPopCurrent(&popped));
}

}  // namespace trims::cuda

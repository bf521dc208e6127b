// device.h where cuda.h was not found: there is no GPU support.
#include "bench/device.h"

namespace trims::bench {
namespace {

Status NoSupport() {
  return UnimplementedError("this program was built without GPU support: cuda.h was not found");
}

}  // namespace

struct Device::State {
  std::string uuid;
};

Device::Device(std::unique_ptr<State> state) : state_(std::move(state)) {}
Device::Device(Device&&) noexcept = default;
Device& Device::operator=(Device&&) noexcept = default;
Device::~Device() = default;

Result<Device> Device::Open(const std::string&) { return NoSupport(); }
Result<std::vector<Device>> Device::OpenAll() { return NoSupport(); }
const std::string& Device::uuid() const { return state_->uuid; }
const std::string& Device::name() const { return state_->uuid; }
int Device::ordinal() const { return -1; }
uint64_t Device::total_bytes() const { return 0; }
Status Device::MakeShared(uint64_t) { return NoSupport(); }
void Device::DropShared() {}
Result<OpenTimes> Device::MeasureMapping() const { return NoSupport(); }
Result<double> Device::MeasureCopy(Copy, uint64_t) { return NoSupport(); }
Result<double> Device::MeasureCopyFrom(Device&, uint64_t) { return NoSupport(); }

}  // namespace trims::bench

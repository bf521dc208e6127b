// gpu_probe.h and bench_device.h where cuda.h was not found: there is no GPU support.
#include "cli/bench_device.h"
#include "cli/gpu_probe.h"

namespace trims::cli {
namespace {

Status NoSupport() {
  return UnimplementedError("this program was built without GPU support: cuda.h was not found");
}

}  // namespace

Result<GpuProbe> ProbeGpus() { return NoSupport(); }

struct BenchDevice::State {
  std::string uuid;
};

BenchDevice::BenchDevice(std::unique_ptr<State> state) : state_(std::move(state)) {}
BenchDevice::BenchDevice(BenchDevice&&) noexcept = default;
BenchDevice& BenchDevice::operator=(BenchDevice&&) noexcept = default;
BenchDevice::~BenchDevice() = default;

Result<BenchDevice> BenchDevice::Open(const std::string&) { return NoSupport(); }
Result<std::vector<BenchDevice>> BenchDevice::OpenAll() { return NoSupport(); }
const std::string& BenchDevice::uuid() const { return state_->uuid; }
const std::string& BenchDevice::name() const { return state_->uuid; }
int BenchDevice::ordinal() const { return -1; }
uint64_t BenchDevice::total_bytes() const { return 0; }
Status BenchDevice::MakeShared(uint64_t) { return NoSupport(); }
void BenchDevice::DropShared() {}
Result<OpenTimes> BenchDevice::MeasureMapping() const { return NoSupport(); }
Result<double> BenchDevice::MeasureCopy(Copy, uint64_t) { return NoSupport(); }
Result<double> BenchDevice::MeasureCopyFrom(BenchDevice&, uint64_t) { return NoSupport(); }

}  // namespace trims::cli

#include "predict/backend.h"

namespace trims::predict {

Result<std::unique_ptr<Backend>> OpenBackend(const Device& device, const BackendOptions& options) {
  switch (device.kind) {
    case DeviceKind::kCpu:
      return OpenCpuBackend(options);
    case DeviceKind::kGpu:
      return OpenGpuBackend(device.ordinal, options);
  }
  return InvalidArgumentError("no such kind of device: " +
                              std::to_string(static_cast<int>(device.kind)));
}

}  // namespace trims::predict

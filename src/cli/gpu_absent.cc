// gpu_probe.h where cuda.h was not found: there is no GPU support.
#include "cli/gpu_probe.h"

namespace trims::cli {
namespace {

Status NoSupport() {
  return UnimplementedError("this program was built without GPU support: cuda.h was not found");
}

}  // namespace

Result<GpuProbe> ProbeGpus() { return NoSupport(); }

}  // namespace trims::cli

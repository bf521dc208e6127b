// The part of `trims doctor` that looks at GPUs: those of this process, and those that
// the daemon serves.
#pragma once

#include <optional>
#include <vector>

#include "cli/finding.h"
#include "trims/v1/control.pb.h"

namespace trims::cli {

struct GpuFindings {
  bool present = false;  // This process or the daemon has a GPU, whether it works or not.
  std::vector<Finding> findings;
};

GpuFindings CheckGpus(const std::optional<v1::GetStatusResponse>& daemon);

}  // namespace trims::cli

// The part of `trims doctor` that looks at GPUs: those of this process, and those that
// the daemon serves.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cli/finding.h"
#include "cli/gpu_probe.h"
#include "trims/v1/control.pb.h"

namespace trims::cli {

struct GpuFindings {
  bool present = false;  // This process or the daemon has a GPU, whether it works or not.
  std::vector<Finding> findings;
};

// `probe` is what this process could do with them. Device files are looked for below `root`,
// which is "" but in tests.
GpuFindings CheckGpus(const Result<GpuProbe>& probe,
                      const std::optional<v1::GetStatusResponse>& daemon,
                      const std::string& root = "");

}  // namespace trims::cli

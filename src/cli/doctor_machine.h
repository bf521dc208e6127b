// The part of `trims doctor` that looks at this machine: what its kernel offers, and what the
// daemon is allowed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/finding.h"
#include "trims/v1/control.pb.h"

namespace trims::cli {

// /proc and /sys are looked for below `root`, which is "" but in tests. `daemon` is what a
// running one said; without one, what one started here would have is looked at. `gpu`: there is
// one, so that memory may have to be pinned.
std::vector<Finding> CheckMachine(const std::optional<v1::GetStatusResponse>& daemon, bool gpu,
                                  const std::string& root = "");

}  // namespace trims::cli

// Opens of a resident model: what a process pays to get at its weights, from the call to
// pointers, beside what the same mappings cost without a daemon.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "bench/rig.h"
#include "bench/samples.h"
#include "bench/weights_file.h"

namespace trims::bench {

struct OpenFigures {
  uint64_t bytes = 0;            // Of the weights.
  uint64_t allocated_bytes = 0;  // Of their extents, which are what is mapped.
  uint32_t tensors = 0;
  double cold = 0;  // Seconds of the first open: hashing and loading.
  Samples open, close, floor_open, floor_close;
  // Each open was followed by its floor; else the device had no room for both at once, and all
  // opens were measured before all floors.
  bool interleaved = true;
};

// Makes such a model, loads and pins it where the rig says, and opens it `runs` times. ABORTED
// when somebody else makes the daemon evict it.
Result<OpenFigures> MeasureOpens(Rig& rig, const WeightsFileSpec& spec, int runs);

}  // namespace trims::bench

// Loads: how fast a model comes into a tier that does not have it, from each place that it may
// be in, beside the rates of the links that it comes over, measured in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/rig.h"
#include "bench/samples.h"
#include "bench/weights_file.h"

namespace trims::bench {

enum class From { kPageCache, kDisk, kHost, kPeer };

struct LoadSource {
  From from = From::kPageCache;
  Place peer;        // With kPeer.
  std::string text;  // "page cache", "gpu:1"
};

// A rate that no load can exceed.
struct LinkFloor {
  std::string key;   // In JSON.
  std::string text;  // For people.
  uint64_t bytes = 0;
  std::function<Result<double>()> measure;  // Empty when all has been measured.
  Samples samples;

  double Rate() const { return Ratio(static_cast<double>(bytes), samples.Median()); }
};

struct LoadFigures {
  uint64_t bytes = 0;            // Of the weights.
  uint64_t allocated_bytes = 0;  // Of their extents.
  uint32_t tensors = 0;
  double first = 0;  // Seconds of the first open, which also hashes the file.
  bool host_pinned = true;
  Samples load;
  std::vector<LinkFloor> floors;

  double Rate() const { return Ratio(static_cast<double>(bytes), load.Median()); }
};

// Makes such a model, brings it where `source` says, and loads it `runs` times from there to
// the rig's place. A source on the host tier or a peer is for rigs with a device. ABORTED when
// somebody else opens the model meanwhile.
Result<LoadFigures> MeasureLoads(Rig& rig, const LoadSource& source, const WeightsFileSpec& spec,
                                 int runs);

}  // namespace trims::bench

// The paper's test of whether sharing pays, and at what granularity:
//   rho = b/q - n * (o + s)
// b bytes, q read bandwidth, n shared objects, o cost of exporting one, s cost of
// opening one. Constants are measured on this machine at start.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/status.h"
#include "tier/manifest.h"

namespace trims {

struct RhoConstants {
  double read_bytes_per_second = 0;  // q; updated by every load.
  Duration export_cost{};            // o; per extent, daemon side (dup, passing).
  Duration open_cost{};              // s; per extent, client side (receive, map, unmap).
};

// Measures o and s with real memfds over a real socket pair (about 10 ms), and q
// by reading a file of up to 64 MiB in `directory` (written, synced and dropped from
// the page cache first), falling back to 1 GB/s when the directory is not writable.
RhoConstants MeasureRhoConstants(const std::string& directory);

// In seconds; > 0 means that sharing pays.
double Rho(const RhoConstants& constants, uint64_t bytes, uint64_t objects);

// The finest granularity whose rho keeps at least 9/10 of the model
// granularity's: layer, then slab, else model. Layer and slab let models share
// parts; this says when that freedom costs next to nothing.
store::Granularity ChooseGranularity(const RhoConstants& constants, const ModelManifest& manifest,
                                     uint64_t slab_bytes);

}  // namespace trims

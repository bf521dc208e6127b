// Writes a network's weights, random and reproducible, in the formats that TrIMS reads.
//
// Values depend on the seed and each tensor's name alone, so one network has the
// same numbers in every format. Files appear complete or not at all: they are
// written under another name and renamed. Throws std::runtime_error with a text
// for the user. Thread-compatible.
#pragma once

#include <cstdint>
#include <string>

#include "network.h"

namespace trims::models {

// The record layouts of MXNet's .params files, by the release that began each:
// V0 up to 0.10, V1 0.11, V2 0.12, V3 1.5 with NumPy shape semantics.
enum class ParamsVersion { kV0, kV1, kV2, kV3 };

void WriteMxnetParams(const Network& network, uint64_t seed, ParamsVersion version,
                      const std::string& path);
void WriteSafetensors(const Network& network, uint64_t seed, const std::string& path);

// One input of batch size 1 as raw little-endian floats.
void WriteInput(const Network& network, uint64_t seed, const std::string& path);

void WriteText(const std::string& text, const std::string& path);

}  // namespace trims::models

// The device code that is compiled into this program. Constant bytes, no threads' rule.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace trims::cuda {

// What holds the kernel trims_universal_hash (base/universal_hash_kernel.h), the best first:
// a fat binary with machine code when the build had nvcc, then PTX text that every driver
// of CUDA 10.0 and later compiles, with its zero byte. An empty span: this build has none.
// Module::Load takes each; when a driver refuses the first, try the next.
std::array<std::span<const std::byte>, 2> UniversalHashImages();

}  // namespace trims::cuda

// The keyed universal hash of device memory, at the memory's speed.
//
// Thread t of all threads hashes the columns t, t + T, t + 2 T, … (T threads in all,
// so a warp hashes whole blocks), the last one first because Horner's rule ends at
// the lowest power. CUDA block b writes one element to partials[b]: the sum over its
// columns i of v_i * r^(2 (i - 256 b)). ChunkedHash::AddPartials (base/universal_hash.h)
// makes the hash of them, and UniversalHashKernelReference there is this on a CPU.
//
// The key is an argument by value: the driver keeps arguments in the constant bank of
// the daemon's context, which no other process can map. After an edit run make-ptx.
#include <cstdint>

#include "base/universal_hash_kernel.h"

namespace {

using trims::FieldElement;

constexpr uint32_t kWarp = 32;
constexpr uint32_t kWarpsPerBlock = trims::kUniversalHashThreads / kWarp;

__device__ __forceinline__ void AddPiece(uint64_t (&y)[trims::kUniversalHashPasses],
                                         const uint4& piece, const uint32_t* key) {
#pragma unroll
  for (uint32_t pass = 0; pass < trims::kUniversalHashPasses; ++pass) {
    const uint32_t* const k = key + 4 * pass;
    y[pass] += static_cast<uint64_t>(piece.x + k[0]) * (piece.y + k[1]);
    y[pass] += static_cast<uint64_t>(piece.z + k[2]) * (piece.w + k[3]);
  }
}

// The piece at `offset`, of which the bytes from `bytes` on do not exist and count as zeros.
__device__ uint4 LoadLastPiece(const uint8_t* base, uint64_t offset, uint64_t bytes) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (uint32_t i = 0; i < trims::kUniversalHashPieceBytes; ++i) {
    if (offset + i < bytes)
      words[i / 4] |= static_cast<uint32_t>(base[offset + i]) << (8 * (i % 4));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ FieldElement ShuffleDown(const FieldElement& value, uint32_t distance) {
  return FieldElement{__shfl_down_sync(0xffffffffu, value.lo, distance),
                      __shfl_down_sync(0xffffffffu, value.hi, distance)};
}

}  // namespace

// `base` is aligned to 16 bytes. Launched with kUniversalHashThreads threads per CUDA
// block and any number of these; `partials` has an element for each.
extern "C" __global__ void __launch_bounds__(trims::kUniversalHashThreads)
    trims_universal_hash(const uint8_t* __restrict__ base, uint64_t bytes,
                         FieldElement* __restrict__ partials,
                         const trims::UniversalHashKernelKey key) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint64_t warp = uint64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  const uint64_t warps = uint64_t{gridDim.x} * kWarpsPerBlock;
  const uint64_t blocks =
      bytes / trims::kUniversalHashBlockBytes + (bytes % trims::kUniversalHashBlockBytes != 0);

  FieldElement sum{0, 0};
  if (warp < blocks) {
    uint64_t block = warp + (blocks - 1 - warp) / warps * warps;
    for (;;) {
      const uint64_t first =
          block * trims::kUniversalHashBlockBytes + lane * trims::kUniversalHashPieceBytes;
      uint64_t y[trims::kUniversalHashPasses] = {};
      if ((block + 1) * trims::kUniversalHashBlockBytes <= bytes) {
        const uint8_t* const column = base + first;
#pragma unroll 8
        for (uint32_t row = 0; row < trims::kUniversalHashRows; ++row) {
          // Streaming: the hash reads each byte once and should leave the caches to the clients.
          AddPiece(
              y,
              __ldcs(reinterpret_cast<const uint4*>(column + row * trims::kUniversalHashRowBytes)),
              key.nh + 4 * row);
        }
      } else {
#pragma unroll 1
        for (uint32_t row = 0; row < trims::kUniversalHashRows; ++row) {
          const uint64_t offset = first + row * trims::kUniversalHashRowBytes;
          if (offset >= bytes) break;
          AddPiece(y, LoadLastPiece(base, offset, bytes), key.nh + 4 * row);
        }
      }
      sum =
          FieldAdd(FieldMultiply(sum, key.stride), trims::FieldFromNh(y[0], y[1], y[2], key.point));
      if (block == warp) break;
      block -= warps;
    }
  }

#pragma unroll 1
  for (uint32_t bit = 0; bit < trims::kUniversalHashThreadBits; ++bit) {
    if (threadIdx.x >> bit & 1) sum = FieldMultiply(sum, key.thread_powers[bit]);
  }

  __shared__ FieldElement of_warps[kWarpsPerBlock];
#pragma unroll 1
  for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
    sum = FieldAdd(sum, ShuffleDown(sum, distance));
  }
  if (lane == 0) of_warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (uint32_t i = 1; i < kWarpsPerBlock; ++i) sum = FieldAdd(sum, of_warps[i]);
    partials[blockIdx.x] = sum;
  }
}

// What the host and the GPU must agree on to compute the keyed universal hash:
// the layout of a block, the arguments of the kernel, and the field of the second
// level. Compiled by the host's compiler and by nvcc, therefore without any other
// header of ours. docs/design/004-integrity-on-the-device.md says why it is as it is.
//
// A block of 16 KiB is a matrix of 32 rows of 32 pieces of 16 bytes, in address order.
// Each of its 32 columns (one per lane of a warp, which so reads 512 contiguous bytes)
// is hashed by NH into three words of 64 bits, and these become one element v of
// GF(2^127 - 1). Column c of block b of the bytes has the number i = 32 b + c, and
//
//   hash = length + r * sum over i of v_i * r^(2 i)
//
// Plain values and pure functions.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TRIMS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TRIMS_HOST_DEVICE inline
#endif

namespace trims {

inline constexpr uint32_t kUniversalHashPieceBytes = 16;
inline constexpr uint32_t kUniversalHashColumns = 32;  // A warp.
inline constexpr uint32_t kUniversalHashRows = 32;
inline constexpr uint32_t kUniversalHashPasses = 3;  // Toeplitz: each 2^-32.
inline constexpr uint32_t kUniversalHashRowBytes = kUniversalHashColumns * kUniversalHashPieceBytes;
inline constexpr uint32_t kUniversalHashBlockBytes = kUniversalHashRows * kUniversalHashRowBytes;
// Pass p uses the words of the key from 4 p on.
inline constexpr uint32_t kUniversalHashNhWords =
    4 * (kUniversalHashRows + kUniversalHashPasses - 1);
inline constexpr uint32_t kUniversalHashThreads = 256;  // Of each CUDA block of the kernel.
inline constexpr uint32_t kUniversalHashThreadBits = 8;
inline constexpr char kUniversalHashKernelName[] = "trims_universal_hash";

static_assert(kUniversalHashThreads == 1u << kUniversalHashThreadBits);
static_assert(kUniversalHashThreads % kUniversalHashColumns == 0);

// An element of GF(p), p = 2^127 - 1, as any number below 2^127: zero is 0 or p until
// Canonical() decides.
struct alignas(16) FieldElement {
  uint64_t lo;
  uint64_t hi;
};

// The argument `key` of the kernel. It depends on the number of CUDA blocks of the
// launch. As secret as the key that it comes from.
struct alignas(16) UniversalHashKernelKey {
  uint32_t nh[kUniversalHashNhWords];
  FieldElement point;                                    // r, below 2^126.
  FieldElement stride;                                   // r^(2 * threads * CUDA blocks).
  FieldElement thread_powers[kUniversalHashThreadBits];  // r^(2 * 2^k).
};

TRIMS_HOST_DEVICE void MultiplyWide(uint64_t a, uint64_t b, uint64_t* lo, uint64_t* hi) {
#if defined(__CUDA_ARCH__)
  *lo = a * b;
  *hi = __umul64hi(a, b);
#else
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  *lo = static_cast<uint64_t>(product);
  *hi = static_cast<uint64_t>(product >> 64);
#endif
}

// lo + 2^64 hi + 2^128 over, for over < 4, as an element: 2^127 = 1.
TRIMS_HOST_DEVICE FieldElement Fold(uint64_t lo, uint64_t hi, uint64_t over) {
  constexpr uint64_t kMask = ~uint64_t{0} >> 1;
  const uint64_t extra = 2 * over + (hi >> 63);  // Below 8.
  const uint64_t low = lo + extra;
  const uint64_t high = (hi & kMask) + (low < extra);  // At most 2^63, and then low < 8.
  return FieldElement{low + (high >> 63), high & kMask};
}

TRIMS_HOST_DEVICE FieldElement FieldAdd(FieldElement a, FieldElement b) {
  const uint64_t lo = a.lo + b.lo;
  return Fold(lo, a.hi + b.hi + (lo < a.lo), 0);
}

TRIMS_HOST_DEVICE FieldElement FieldMultiply(FieldElement a, FieldElement b) {
  // (a1 2^64 + a0)(b1 2^64 + b0), with a1, b1 < 2^63 and 2^128 = 2.
  uint64_t low0, low1, high0, high1, cross0, cross1, other0, other1;
  MultiplyWide(a.lo, b.lo, &low0, &low1);
  MultiplyWide(a.hi, b.hi, &high0, &high1);    // Below 2^126.
  MultiplyWide(a.lo, b.hi, &cross0, &cross1);  // Both below 2^127: their sum fits 128 bits.
  MultiplyWide(a.hi, b.lo, &other0, &other1);
  cross0 += other0;
  cross1 += other1 + (cross0 < other0);

  // low + 2 high + 2^64 cross0 + 2 cross1, each term below 2^128.
  uint64_t over = 0;
  const uint64_t twice1 = (high1 << 1) | (high0 >> 63);
  uint64_t sum0 = low0 + (high0 << 1);
  uint64_t carry = sum0 < low0;
  uint64_t sum1 = low1 + twice1;
  over += sum1 < low1;
  sum1 += carry;
  over += sum1 < carry;
  sum1 += cross0;
  over += sum1 < cross0;
  const uint64_t fold0 = cross1 << 1;
  sum0 += fold0;
  carry = (cross1 >> 63) + (sum0 < fold0);
  sum1 += carry;
  over += sum1 < carry;
  return Fold(sum0, sum1, over);
}

// Column hashes -> element: injective into two coefficients of 96 bits, c0 + c1 r.
TRIMS_HOST_DEVICE FieldElement FieldFromNh(uint64_t y0, uint64_t y1, uint64_t y2,
                                           FieldElement point) {
  return FieldAdd(FieldMultiply(FieldElement{y1, y2 >> 32}, point),
                  FieldElement{y0, y2 & 0xffffffffu});
}

}  // namespace trims

#include "base/universal_hash.h"

#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trims {

static_assert(std::endian::native == std::endian::little,
              "words are read as they lie in memory, here and on the GPU");

struct UniversalHashKey::Expanded {
  Seed seed;
  uint32_t nh[kUniversalHashNhWords];
  FieldElement powers[64];  // r^(2^k).

  FieldElement Power(uint64_t exponent) const {
    FieldElement power{1, 0};
    for (; exponent != 0; exponent &= exponent - 1) {
      power = FieldMultiply(power, powers[std::countr_zero(exponent)]);
    }
    return power;
  }
};

namespace {

constexpr uint64_t kColumnsPerCudaBlock = kUniversalHashThreads;
constexpr uint64_t kBytesPerCudaBlock =
    kColumnsPerCudaBlock / kUniversalHashColumns * kUniversalHashBlockBytes;

// NH of the columns of one block, y[pass][column].
struct BlockHashes {
  uint64_t y[kUniversalHashPasses][kUniversalHashColumns];
};

void AddPiece(const uint32_t* nh, const std::byte* piece, uint32_t column, BlockHashes* hashes) {
  uint32_t m[4];
  std::memcpy(m, piece, sizeof m);
  for (uint32_t pass = 0; pass < kUniversalHashPasses; ++pass) {
    const uint32_t* const k = nh + 4 * pass;
    hashes->y[pass][column] += uint64_t{m[0] + k[0]} * (m[1] + k[1]);
    hashes->y[pass][column] += uint64_t{m[2] + k[2]} * (m[3] + k[3]);
  }
}

void HashBlockPortable(const uint32_t* nh, const std::byte* block, BlockHashes* hashes) {
  *hashes = {};
  for (uint32_t row = 0; row < kUniversalHashRows; ++row) {
    for (uint32_t column = 0; column < kUniversalHashColumns; ++column) {
      AddPiece(nh + 4 * row,
               block + row * kUniversalHashRowBytes + column * kUniversalHashPieceBytes, column,
               hashes);
    }
  }
}

// The block at the end: pieces that do not exist add nothing, the last one ends in zeros.
void HashLastBlock(const uint32_t* nh, std::span<const std::byte> bytes, BlockHashes* hashes) {
  *hashes = {};
  for (size_t offset = 0; offset < bytes.size(); offset += kUniversalHashPieceBytes) {
    std::byte piece[kUniversalHashPieceBytes] = {};
    std::memcpy(piece, bytes.data() + offset, std::min(sizeof piece, bytes.size() - offset));
    const size_t row = offset / kUniversalHashRowBytes;
    AddPiece(nh + 4 * row, piece,
             static_cast<uint32_t>(offset % kUniversalHashRowBytes / kUniversalHashPieceBytes),
             hashes);
  }
}

#if defined(__x86_64__)
// A register holds two columns, and a product is made of each 64 bits' halves. Two registers,
// a cache line of a row, go down all rows together. No processor's prefetcher follows such
// steps, so each line asks for the one a block ahead; behind the end that asks for nothing.
__attribute__((target("avx2"))) void HashBlockAvx2(const uint32_t* nh, const std::byte* block,
                                                   BlockHashes* hashes) {
  constexpr uint32_t kRegisters = 2;
  constexpr uint32_t kGroupBytes = kRegisters * sizeof(__m256i);
  for (uint32_t group = 0; group < kUniversalHashRowBytes / kGroupBytes; ++group) {
    __m256i sums[kRegisters][kUniversalHashPasses];
    for (auto& of_register : sums) {
      for (auto& sum : of_register) sum = _mm256_setzero_si256();
    }
    const std::byte* at = block + group * kGroupBytes;
    for (uint32_t row = 0; row < kUniversalHashRows; ++row, at += kUniversalHashRowBytes) {
      __m256i key[kUniversalHashPasses];
      for (uint32_t pass = 0; pass < kUniversalHashPasses; ++pass) {
        key[pass] = _mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(nh + 4 * (row + pass))));
      }
      _mm_prefetch(
          reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(at) + kUniversalHashBlockBytes),
          _MM_HINT_T0);
      for (uint32_t i = 0; i < kRegisters; ++i) {
        const __m256i message =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + i * sizeof(__m256i)));
        for (uint32_t pass = 0; pass < kUniversalHashPasses; ++pass) {
          const __m256i keyed = _mm256_add_epi32(message, key[pass]);
          const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
          sums[i][pass] = _mm256_add_epi64(sums[i][pass], product);
        }
      }
    }
    for (uint32_t i = 0; i < kRegisters; ++i) {
      for (uint32_t pass = 0; pass < kUniversalHashPasses; ++pass) {
        const __m256i sum = sums[i][pass];
        const __m256i both = _mm256_add_epi64(sum, _mm256_shuffle_epi32(sum, 0x4e));
        uint64_t* const y = &hashes->y[pass][(group * kRegisters + i) * 2];
        y[0] = static_cast<uint64_t>(_mm256_extract_epi64(both, 0));
        y[1] = static_cast<uint64_t>(_mm256_extract_epi64(both, 2));
      }
    }
  }
}
#endif

using HashBlock = void (*)(const uint32_t* nh, const std::byte* block, BlockHashes* hashes);

HashBlock BlockFunction(UniversalHashImplementation implementation) {
#if defined(__x86_64__)
  if (implementation == UniversalHashImplementation::kAvx2) return HashBlockAvx2;
#endif
  TRIMS_CHECK(implementation == UniversalHashImplementation::kPortable);
  return HashBlockPortable;
}

HashBlock BestBlockFunction() {
  static const HashBlock best =
      BlockFunction(UniversalHashSupports(UniversalHashImplementation::kAvx2)
                        ? UniversalHashImplementation::kAvx2
                        : UniversalHashImplementation::kPortable);
  return best;
}

FieldElement ColumnElement(const BlockHashes& hashes, uint32_t column, FieldElement point) {
  return FieldFromNh(hashes.y[0][column], hashes.y[1][column], hashes.y[2][column], point);
}

// The sum over the columns of the block of v_c r^(2 c). `powers` are r^(2^k).
FieldElement BlockElement(const BlockHashes& hashes, const FieldElement* powers) {
  // Four of Horner's chains at once: a multiplication waits for the one before it.
  constexpr uint32_t kChains = 4;
  FieldElement chains[kChains] = {};
  for (uint32_t first = kUniversalHashColumns; first > 0;) {
    first -= kChains;
    for (uint32_t i = 0; i < kChains; ++i) {
      chains[i] = FieldAdd(FieldMultiply(chains[i], powers[3]),
                           ColumnElement(hashes, first + i, powers[0]));
    }
  }
  FieldElement element{0, 0};
  for (uint32_t i = kChains; i > 0;) {
    --i;
    element = FieldAdd(FieldMultiply(element, powers[1]), chains[i]);
  }
  return element;
}

// The sum over all columns i of `bytes` of v_i r^(2 i).
FieldElement Sum(HashBlock hash_block, const uint32_t* nh, const FieldElement* powers,
                 std::span<const std::byte> bytes) {
  constexpr int kBlockExponent = std::countr_zero(2 * kUniversalHashColumns);
  FieldElement sum{0, 0};
  FieldElement power{1, 0};
  BlockHashes hashes;
  while (!bytes.empty()) {
    if (bytes.size() >= kUniversalHashBlockBytes) {
      hash_block(nh, bytes.data(), &hashes);
    } else {
      HashLastBlock(nh, bytes, &hashes);
    }
    sum = FieldAdd(sum, FieldMultiply(BlockElement(hashes, powers), power));
    power = FieldMultiply(power, powers[kBlockExponent]);
    bytes = bytes.subspan(std::min<size_t>(bytes.size(), kUniversalHashBlockBytes));
  }
  return sum;
}

// r^(2 i) of the first column at `offset`.
uint64_t ExponentAt(uint64_t offset) {
  return 2 * (offset / kUniversalHashBlockBytes * kUniversalHashColumns);
}

// length + r * sum, as the one number below p that is equal to it.
HashValue Value(uint64_t length, FieldElement sum, FieldElement point) {
  const FieldElement value = FieldAdd(FieldMultiply(sum, point), FieldElement{length, 0});
  constexpr uint64_t kTop = ~uint64_t{0} >> 1;
  if (value.lo == ~uint64_t{0} && value.hi == kTop) return HashValue{};
  return HashValue{value.lo, value.hi};
}

}  // namespace

void UniversalHashKey::Overwrite::operator()(Expanded* expanded) const {
  explicit_bzero(expanded, sizeof *expanded);
  delete expanded;
}

UniversalHashKey::UniversalHashKey(const Seed& seed) : expanded_(new Expanded{}) {
  struct Words {
    uint32_t nh[kUniversalHashNhWords];
    uint64_t point[2];
  } words;
  static_assert(sizeof words == sizeof words.nh + sizeof words.point);
  ExpandUniversalHashSeed(seed, std::as_writable_bytes(std::span(&words, 1)));
  expanded_->seed = seed;
  std::memcpy(expanded_->nh, words.nh, sizeof words.nh);
  FieldElement power{words.point[0], words.point[1] >> 2};  // 126 bits.
  for (FieldElement& element : expanded_->powers) {
    element = power;
    power = FieldMultiply(power, power);
  }
  explicit_bzero(&words, sizeof words);
}

UniversalHashKey::UniversalHashKey(UniversalHashKey&&) noexcept = default;
UniversalHashKey& UniversalHashKey::operator=(UniversalHashKey&&) noexcept = default;
UniversalHashKey::~UniversalHashKey() = default;

Result<UniversalHashKey> UniversalHashKey::Generate() {
  Seed seed;
  // Up to 256 bytes come whole or not at all (getrandom(2)).
  ssize_t got;
  do {
    got = getrandom(seed.data(), seed.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ErrnoStatus(errno, "getrandom for a hash key");
  TRIMS_CHECK(static_cast<size_t>(got) == seed.size());
  UniversalHashKey key(seed);
  explicit_bzero(seed.data(), seed.size());
  return key;
}

UniversalHashKey UniversalHashKey::FromSeed(const Seed& seed) { return UniversalHashKey(seed); }

const UniversalHashKey::Seed& UniversalHashKey::seed() const { return expanded_->seed; }

UniversalHashKernelKey UniversalHashKey::KernelKey(uint32_t cuda_blocks) const {
  UniversalHashKernelKey key{};
  std::copy(std::begin(expanded_->nh), std::end(expanded_->nh), std::begin(key.nh));
  key.point = expanded_->powers[0];
  key.stride = expanded_->Power(2 * kColumnsPerCudaBlock * cuda_blocks);
  for (uint32_t bit = 0; bit < kUniversalHashThreadBits; ++bit) {
    key.thread_powers[bit] = expanded_->powers[bit + 1];
  }
  return key;
}

HashValue HashBytes(const UniversalHashKey& key, std::span<const std::byte> bytes) {
  ChunkedHash hash(key);
  hash.Add(0, bytes);
  return hash.Finish(bytes.size());
}

HashValue HashBytesWith(UniversalHashImplementation implementation, const UniversalHashKey& key,
                        std::span<const std::byte> bytes) {
  TRIMS_CHECK(UniversalHashSupports(implementation));
  const UniversalHashKey::Expanded& expanded = *key.expanded_;
  return Value(bytes.size(),
               Sum(BlockFunction(implementation), expanded.nh, expanded.powers, bytes),
               expanded.powers[0]);
}

bool UniversalHashSupports(UniversalHashImplementation implementation) {
#if defined(__x86_64__)
  if (implementation == UniversalHashImplementation::kAvx2) {
    return __builtin_cpu_supports("avx2") != 0;
  }
#endif
  return implementation == UniversalHashImplementation::kPortable;
}

void ChunkedHash::Count(uint64_t offset, uint64_t size) {
  TRIMS_CHECK(offset % kUniversalHashBlockBytes == 0);
  TRIMS_CHECK(size <= ~offset);
  added_bytes_ += size;
  end_ = std::max(end_, offset + size);
  if (size % kUniversalHashBlockBytes != 0) {
    TRIMS_CHECK(ragged_end_ == 0);  // Only the last chunk has such a size.
    ragged_end_ = offset + size;
  }
}

void ChunkedHash::Add(uint64_t offset, std::span<const std::byte> bytes) {
  Count(offset, bytes.size());
  const UniversalHashKey::Expanded& expanded = *key_->expanded_;
  const FieldElement sum = Sum(BestBlockFunction(), expanded.nh, expanded.powers, bytes);
  sum_ = FieldAdd(sum_, FieldMultiply(sum, expanded.Power(ExponentAt(offset))));
}

void ChunkedHash::AddPartials(uint64_t offset, uint64_t size,
                              std::span<const FieldElement> partials) {
  Count(offset, size);
  const UniversalHashKey::Expanded& expanded = *key_->expanded_;
  constexpr int kCudaBlockExponent = std::countr_zero(2 * kColumnsPerCudaBlock);
  FieldElement sum{0, 0};
  for (size_t i = partials.size(); i > 0;) {
    --i;
    // Whatever 128 bits stand there become an element.
    const FieldElement partial = Fold(partials[i].lo, partials[i].hi, 0);
    sum = FieldAdd(FieldMultiply(sum, expanded.powers[kCudaBlockExponent]), partial);
  }
  sum_ = FieldAdd(sum_, FieldMultiply(sum, expanded.Power(ExponentAt(offset))));
}

void ChunkedHash::Merge(const ChunkedHash& other) {
  TRIMS_CHECK(key_ == other.key_);
  TRIMS_CHECK(ragged_end_ == 0 || other.ragged_end_ == 0);
  sum_ = FieldAdd(sum_, other.sum_);
  added_bytes_ += other.added_bytes_;
  end_ = std::max(end_, other.end_);
  ragged_end_ = std::max(ragged_end_, other.ragged_end_);
}

HashValue ChunkedHash::Finish(uint64_t total_bytes) const {
  TRIMS_CHECK(added_bytes_ == total_bytes);
  TRIMS_CHECK(end_ == total_bytes);
  TRIMS_CHECK(ragged_end_ == 0 || ragged_end_ == total_bytes);
  return Value(total_bytes, sum_, key_->expanded_->powers[0]);
}

uint32_t UniversalHashCudaBlocks(uint64_t bytes, uint32_t multiprocessors) {
  // Six of 256 threads and 40 registers are resident at once; one round of them.
  constexpr uint64_t kPerMultiprocessor = 6;
  const uint64_t with_work = bytes / kBytesPerCudaBlock + (bytes % kBytesPerCudaBlock != 0 ? 1 : 0);
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(with_work, 1, std::max(1u, multiprocessors) * kPerMultiprocessor));
}

void UniversalHashKernelReference(uint32_t cuda_blocks, uint32_t threads, void** arguments) {
  TRIMS_CHECK(threads == kUniversalHashThreads);
  // SAFETY: the kernel's parameters, in order and by type.
  const std::byte* const base = *static_cast<const std::byte* const*>(arguments[0]);
  const uint64_t bytes = *static_cast<const uint64_t*>(arguments[1]);
  FieldElement* const partials = *static_cast<FieldElement* const*>(arguments[2]);
  const UniversalHashKernelKey& key = *static_cast<const UniversalHashKernelKey*>(arguments[3]);

  constexpr uint64_t kWarps = kUniversalHashThreads / kUniversalHashColumns;
  const uint64_t warps = cuda_blocks * kWarps;
  const uint64_t blocks =
      bytes / kUniversalHashBlockBytes + (bytes % kUniversalHashBlockBytes != 0 ? 1 : 0);
  const HashBlock hash_block = BestBlockFunction();
  for (uint32_t cuda_block = 0; cuda_block < cuda_blocks; ++cuda_block) {
    FieldElement of_threads[kUniversalHashThreads] = {};
    for (uint64_t i = 0; i < kWarps; ++i) {
      const uint64_t warp = cuda_block * kWarps + i;
      if (warp >= blocks) continue;
      FieldElement* const sums = &of_threads[i * kUniversalHashColumns];
      for (uint64_t block = warp + (blocks - 1 - warp) / warps * warps;; block -= warps) {
        const uint64_t offset = block * kUniversalHashBlockBytes;
        BlockHashes hashes;
        if (bytes - offset >= kUniversalHashBlockBytes) {
          hash_block(key.nh, base + offset, &hashes);
        } else {
          HashLastBlock(key.nh, {base + offset, static_cast<size_t>(bytes - offset)}, &hashes);
        }
        for (uint32_t lane = 0; lane < kUniversalHashColumns; ++lane) {
          sums[lane] = FieldAdd(FieldMultiply(sums[lane], key.stride),
                                ColumnElement(hashes, lane, key.point));
        }
        if (block == warp) break;
      }
    }
    FieldElement partial{0, 0};
    for (uint32_t thread = 0; thread < kUniversalHashThreads; ++thread) {
      FieldElement sum = of_threads[thread];
      for (uint32_t bit = 0; bit < kUniversalHashThreadBits; ++bit) {
        if ((thread >> bit & 1) != 0) sum = FieldMultiply(sum, key.thread_powers[bit]);
      }
      partial = FieldAdd(partial, sum);
    }
    partials[cuda_block] = partial;
  }
}

}  // namespace trims

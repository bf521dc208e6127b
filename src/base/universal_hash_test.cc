#include "base/universal_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace trims {
namespace {

constexpr size_t kBlock = kUniversalHashBlockBytes;
static_assert(kChunkBytes % kUniversalHashBlockBytes == 0);
static_assert(kTensorAlignment % kUniversalHashPieceBytes == 0);

using Bytes = std::vector<std::byte>;

Bytes Noise(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i + 8 <= size; i += 8) {
    const uint64_t word = random();
    std::memcpy(&bytes[i], &word, 8);
  }
  for (size_t i = size / 8 * 8; i < size; ++i) bytes[i] = static_cast<std::byte>(random());
  return bytes;
}

// Bytes of a formula, so that known answers need no generator of the C++ library.
Bytes Counting(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i * 131 + i / 256) & 255);
  return bytes;
}

UniversalHashKey KeyOf(uint8_t first) {
  UniversalHashKey::Seed seed;
  for (size_t i = 0; i < seed.size(); ++i) seed[i] = static_cast<uint8_t>(first + i);
  return UniversalHashKey::FromSeed(seed);
}

// --- Slow arithmetic by another way: schoolbook bits, to check the field against. ---

constexpr unsigned __int128 kPrime = (static_cast<unsigned __int128>(1) << 127) - 1;

unsigned __int128 Number(FieldElement a) {
  const unsigned __int128 value = (static_cast<unsigned __int128>(a.hi) << 64) | a.lo;
  return value % kPrime;
}

unsigned __int128 SlowMultiply(unsigned __int128 a, unsigned __int128 b) {
  unsigned __int128 sum = 0;
  for (int bit = 126; bit >= 0; --bit) {
    sum = sum * 2 % kPrime;
    if ((b >> bit & 1) != 0) sum = (sum + a) % kPrime;
  }
  return sum;
}

TEST(UniversalHashField, MultiplyAndAddAreThoseOfThePrime) {
  constexpr uint64_t kTop = ~uint64_t{0} >> 1;
  const uint64_t lows[] = {0, 1, 2, 7, 8, uint64_t{1} << 63, ~uint64_t{0} - 1, ~uint64_t{0}};
  const uint64_t highs[] = {0, 1, 3, uint64_t{1} << 62, kTop - 1, kTop};
  std::vector<FieldElement> elements;
  for (const uint64_t lo : lows) {
    for (const uint64_t hi : highs) elements.push_back({lo, hi});
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 100; ++i) elements.push_back({random(), random() & kTop});
  for (const FieldElement& a : elements) {
    for (const FieldElement& b : elements) {
      const FieldElement product = FieldMultiply(a, b);
      const FieldElement sum = FieldAdd(a, b);
      ASSERT_LE(product.hi, kTop);
      ASSERT_LE(sum.hi, kTop);
      ASSERT_TRUE(Number(product) == SlowMultiply(Number(a), Number(b)));
      ASSERT_TRUE(Number(sum) == (Number(a) + Number(b)) % kPrime);
    }
  }
}

TEST(UniversalHashField, FoldKeepsTheNumber) {
  const uint64_t words[] = {
      0, 1, 6, 7, 8, ~uint64_t{0} >> 1, uint64_t{1} << 63, ~uint64_t{0} - 1, ~uint64_t{0}};
  for (const uint64_t lo : words) {
    for (const uint64_t hi : words) {
      for (uint64_t over = 0; over < 4; ++over) {
        const FieldElement folded = Fold(lo, hi, over);
        ASSERT_LE(folded.hi, ~uint64_t{0} >> 1);
        const unsigned __int128 number =
            ((static_cast<unsigned __int128>(hi) << 64 | lo) % kPrime + 2 * over) % kPrime;
        ASSERT_TRUE(Number(folded) == number);
      }
    }
  }
}

// The hash as the design note writes it: no blocks, no Horner, no registers. `words` is
// the key's keystream.
HashValue ByTheBook(const UniversalHashKey::Seed& seed, std::span<const std::byte> bytes) {
  struct {
    uint32_t nh[kUniversalHashNhWords];
    uint64_t point[2];
  } words;
  ExpandUniversalHashSeed(seed, std::as_writable_bytes(std::span(&words, 1)));
  const unsigned __int128 r =
      static_cast<unsigned __int128>(words.point[1] >> 2) << 64 | words.point[0];
  unsigned __int128 sum = 0;
  unsigned __int128 power = r;
  for (size_t block = 0; block < bytes.size(); block += kBlock) {
    for (size_t column = 0; column < 32; ++column) {
      uint64_t y[3] = {};
      for (size_t row = 0; row < 32; ++row) {
        const size_t offset = block + row * 512 + column * 16;
        if (offset >= bytes.size()) break;
        uint32_t m[4] = {};
        std::memcpy(m, &bytes[offset], std::min<size_t>(16, bytes.size() - offset));
        for (size_t pass = 0; pass < 3; ++pass) {
          for (size_t pair = 0; pair < 4; pair += 2) {
            const uint32_t a = m[pair] + words.nh[4 * (row + pass) + pair];
            const uint32_t b = m[pair + 1] + words.nh[4 * (row + pass) + pair + 1];
            y[pass] += uint64_t{a} * b;
          }
        }
      }
      const unsigned __int128 c0 = static_cast<unsigned __int128>(y[2] & 0xffffffff) << 64 | y[0];
      const unsigned __int128 c1 = static_cast<unsigned __int128>(y[2] >> 32) << 64 | y[1];
      sum = (sum + SlowMultiply(c0, power)) % kPrime;
      power = SlowMultiply(power, r);
      sum = (sum + SlowMultiply(c1, power)) % kPrime;
      power = SlowMultiply(power, r);
    }
  }
  sum = (sum + bytes.size()) % kPrime;
  return {static_cast<uint64_t>(sum), static_cast<uint64_t>(sum >> 64)};
}

TEST(UniversalHash, IsTheFormulaOfTheDesignNote) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{512},
                            size_t{10'000}, kBlock - 1, kBlock, kBlock + 1, 3 * kBlock + 4711}) {
    const Bytes bytes = Noise(size, size);
    const UniversalHashKey key = KeyOf(9);
    EXPECT_EQ(HashBytes(key, bytes), ByTheBook(key.seed(), bytes)) << size;
  }
}

TEST(UniversalHash, EveryImplementationGivesOneValue) {
  const UniversalHashKey key = KeyOf(1);
  std::mt19937_64 random(2);
  for (int i = 0; i < 60; ++i) {
    const Bytes bytes = Noise(random() % (1 << (i % 20 + 1)) + (i % 3) * kBlock, random());
    const HashValue value = HashBytesWith(UniversalHashImplementation::kPortable, key, bytes);
    EXPECT_EQ(HashBytes(key, bytes), value);
    if (UniversalHashSupports(UniversalHashImplementation::kAvx2)) {
      EXPECT_EQ(HashBytesWith(UniversalHashImplementation::kAvx2, key, bytes), value);
    }
  }
}

TEST(UniversalHash, TheAddressOfTheBytesDoesNotMatter) {
  const UniversalHashKey key = KeyOf(1);
  const Bytes bytes = Noise(2 * kBlock + 100, 3);
  const HashValue value = HashBytes(key, bytes);
  for (size_t shift = 1; shift < 33; ++shift) {
    Bytes moved(shift);
    moved.insert(moved.end(), bytes.begin(), bytes.end());
    EXPECT_EQ(HashBytes(key, std::span(moved).subspan(shift)), value);
  }
}

TEST(UniversalHash, KnownAnswersStayKnown) {
  // Made by the formula in Python's integers, over the keystream of `openssl enc -aes-256-ctr`.
  const struct {
    size_t size;
    HashValue value;
  } known[] = {
      {0, {0x0000000000000000u, 0x0000000000000000u}},
      {1, {0x4e1b701654f55c48u, 0x47956a885d63b24bu}},
      {16, {0x901258be3b3382a8u, 0x23309783c23134b8u}},
      {1000, {0x8fa371bfeb212e2du, 0x16ca4c5d4a697ba8u}},
      {16384, {0x00b0ae3c0dc2c520u, 0x42cef5f236dd24deu}},
      {16385, {0xf78d250c2029d724u, 0x0411db4c41c4d3cdu}},
      {100000, {0x440a51c4fbb94040u, 0x5bab8fd3dbc36282u}},
  };
  const UniversalHashKey key = KeyOf(0);
  for (const auto& [size, value] : known) {
    EXPECT_EQ(HashBytes(key, Counting(size)), value) << size;
  }
}

TEST(UniversalHash, EveryFlippedBitOfASmallBufferIsAnotherValue) {
  const UniversalHashKey key = KeyOf(3);
  Bytes bytes = Noise(1537, 4);  // Four rows, the last with a piece of one byte.
  const HashValue clean = HashBytes(key, bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(HashBytes(key, bytes), clean) << "bit " << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_EQ(HashBytes(key, bytes), clean);
}

TEST(UniversalHash, RandomFlippedBitsOfALargeBufferAreOtherValues) {
  const UniversalHashKey key = KeyOf(3);
  Bytes bytes = Noise(40 * kBlock + 7, 5);
  const HashValue clean = HashBytes(key, bytes);
  std::mt19937_64 random(6);
  for (int i = 0; i < 500; ++i) {
    const size_t bit = random() % (bytes.size() * 8);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(HashBytes(key, bytes), clean) << "bit " << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

// NH alone is blind to the order of equal-keyed parts; the positions must come in.
TEST(UniversalHash, SwappedBlocksColumnsRowsAndWordsAreOtherValues) {
  const UniversalHashKey key = KeyOf(3);
  const Bytes bytes = Noise(16 * kBlock, 7);
  const HashValue clean = HashBytes(key, bytes);
  for (const size_t distance :
       {size_t{4}, size_t{8}, size_t{16}, size_t{512}, kBlock, 8 * kBlock}) {
    Bytes swapped = bytes;
    std::swap_ranges(swapped.begin(), swapped.begin() + static_cast<ptrdiff_t>(distance),
                     swapped.begin() + static_cast<ptrdiff_t>(distance));
    EXPECT_NE(HashBytes(key, swapped), clean) << distance;
  }
}

TEST(UniversalHash, AppendedZerosAreAnotherValue) {
  const UniversalHashKey key = KeyOf(3);
  Bytes bytes = Noise(100, 8);
  std::vector<HashValue> values = {HashBytes(key, bytes)};
  for (const size_t size :
       {size_t{101}, size_t{112}, size_t{113}, size_t{512}, kBlock, kBlock + 1, 2 * kBlock}) {
    bytes.resize(size);
    const HashValue value = HashBytes(key, bytes);
    EXPECT_EQ(std::ranges::count(values, value), 0) << size;
    values.push_back(value);
  }
  values.clear();
  for (size_t size = 0; size < 600; ++size) {
    const HashValue value = HashBytes(key, Bytes(size));
    EXPECT_EQ(std::ranges::count(values, value), 0) << size << " zeros";
    values.push_back(value);
  }
}

TEST(UniversalHash, OtherKeysGiveOtherValuesAndASeedGivesTheSame) {
  const Bytes bytes = Noise(5000, 9);
  std::vector<HashValue> values;
  for (uint8_t i = 0; i < 100; ++i) {
    const HashValue value = HashBytes(KeyOf(i), bytes);
    EXPECT_EQ(std::ranges::count(values, value), 0);
    EXPECT_EQ(HashBytes(UniversalHashKey::FromSeed(KeyOf(i).seed()), bytes), value);
    values.push_back(value);
  }
}

TEST(UniversalHash, GeneratedKeysDiffer) {
  Result<UniversalHashKey> one = UniversalHashKey::Generate();
  Result<UniversalHashKey> two = UniversalHashKey::Generate();
  ASSERT_TRUE(one.ok()) << one.status().ToString();
  ASSERT_TRUE(two.ok()) << two.status().ToString();
  EXPECT_TRUE(one->seed() != two->seed());
  EXPECT_NE(HashBytes(*one, Noise(64, 1)), HashBytes(*two, Noise(64, 1)));
}

TEST(UniversalHash, AMovedKeyIsTheSameKey) {
  UniversalHashKey key = KeyOf(5);
  const Bytes bytes = Noise(64, 1);
  const HashValue value = HashBytes(key, bytes);
  const UniversalHashKey moved = std::move(key);
  EXPECT_EQ(HashBytes(moved, bytes), value);
}

TEST(ChunkedHash, AnySplitInAnyOrderIsTheHashOfTheWhole) {
  const UniversalHashKey key = KeyOf(3);
  std::mt19937_64 random(10);
  for (int round = 0; round < 50; ++round) {
    const Bytes bytes = Noise(random() % (24 * kBlock), random());
    std::vector<std::pair<size_t, size_t>> chunks;  // Offset, size.
    for (size_t at = 0; at < bytes.size();) {
      const size_t size = std::min(bytes.size() - at, (random() % 5 + 1) * kBlock);
      chunks.emplace_back(at, size);
      at += size;
    }
    std::ranges::shuffle(chunks, random);
    ChunkedHash one(key);
    ChunkedHash two(key);
    for (const auto& [offset, size] : chunks) {
      ChunkedHash& hash = random() % 2 == 0 ? one : two;
      const std::span<const std::byte> chunk = std::span(bytes).subspan(offset, size);
      if (random() % 2 == 0) {
        hash.Add(offset, chunk);
        continue;
      }
      // As the kernel would have left it.
      const uint32_t cuda_blocks = static_cast<uint32_t>(random() % 5 + 1);
      std::vector<FieldElement> partials(cuda_blocks);
      const std::byte* base = chunk.data();
      uint64_t chunk_bytes = size;
      FieldElement* out = partials.data();
      UniversalHashKernelKey kernel_key = key.KernelKey(cuda_blocks);
      void* arguments[] = {&base, &chunk_bytes, &out, &kernel_key};
      UniversalHashKernelReference(cuda_blocks, kUniversalHashThreads, arguments);
      hash.AddPartials(offset, size, partials);
    }
    one.Merge(two);
    EXPECT_EQ(one.Finish(bytes.size()), HashBytes(key, bytes));
  }
}

TEST(ChunkedHash, ThreadsHashTheirChunksAndAreMerged) {
  const UniversalHashKey key = KeyOf(3);
  const Bytes bytes = Noise(64 * kBlock + 5, 11);
  constexpr size_t kThreads = 4;
  constexpr size_t kChunk = 3 * kBlock;
  std::vector<ChunkedHash> hashes(kThreads, ChunkedHash(key));
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (size_t at = i * kChunk; at < bytes.size(); at += kThreads * kChunk) {
          hashes[i].Add(at, std::span(bytes).subspan(at, std::min(kChunk, bytes.size() - at)));
        }
      });
    }
  }
  for (size_t i = 1; i < kThreads; ++i) hashes[0].Merge(hashes[i]);
  EXPECT_EQ(hashes[0].Finish(bytes.size()), HashBytes(key, bytes));
}

TEST(ChunkedHashDeathTest, MisuseIsFoundAndNotHashed) {
  const UniversalHashKey key = KeyOf(3);
  const Bytes bytes(3 * kBlock);
  const std::span<const std::byte> all(bytes);
  EXPECT_DEATH(ChunkedHash(key).Add(1, all), "offset");
  EXPECT_DEATH(ChunkedHash(key).Finish(1), "total_bytes");
  EXPECT_DEATH(
      {
        ChunkedHash hash(key);
        hash.Add(0, all.first(100));
        hash.Add(kBlock, all.first(100));
      },
      "ragged_end_");
  EXPECT_DEATH(
      {
        ChunkedHash hash(key);
        hash.Add(0, all.first(100));
        hash.Add(kBlock, all.first(kBlock));
        hash.Finish(kBlock + 100);
      },
      "total_bytes");
  EXPECT_DEATH(
      {
        const UniversalHashKey other = KeyOf(4);
        ChunkedHash(key).Merge(ChunkedHash(other));
      },
      "key_");
}

TEST(UniversalHashLaunch, HasWorkForEveryCudaBlockAndNoMoreThanTheDeviceHolds) {
  EXPECT_EQ(UniversalHashCudaBlocks(0, 132), 1u);
  EXPECT_EQ(UniversalHashCudaBlocks(1, 132), 1u);
  EXPECT_EQ(UniversalHashCudaBlocks(8 * kBlock, 132), 1u);
  EXPECT_EQ(UniversalHashCudaBlocks(8 * kBlock + 1, 132), 2u);
  EXPECT_EQ(UniversalHashCudaBlocks(uint64_t{1} << 40, 132),
            UniversalHashCudaBlocks(~uint64_t{0}, 132));
  EXPECT_EQ(UniversalHashCudaBlocks(uint64_t{1} << 40, 132) % 132, 0u);
  EXPECT_GE(UniversalHashCudaBlocks(uint64_t{1} << 40, 0), 1u);
}

}  // namespace
}  // namespace trims

// The keyed universal hash of resident bytes: a 127-bit value that tells whether
// memory which others can write still holds what the daemon put there.
//
// It is a universal hash and not a cryptographic one: its bound holds against whoever
// can write the memory but knows neither the key nor any hash value. Two messages of
// at most n bytes, chosen without them, collide with probability at most 2^-96 +
// (n + 16 KiB) 2^-134: less than 2^-95 for 16 GiB, less than 2^-93 for 1 TiB. Therefore keys and
// values stay inside the daemon, and neither has an operator<<. It is no identity either: that is
// SHA-256 (base/hash.h). docs/design/004-integrity-on-the-device.md has the construction and the
// proof.
//
// A hash can be taken in pieces: ChunkedHash adds chunks in any order, from this
// processor or as partial sums that the kernel trims_universal_hash left (src/cuda/
// kernels), and the result depends on the bytes and their number alone.
//
// Keys are move-only and immutable, so any number of threads may use one. A ChunkedHash
// is thread-compatible: give each thread its own and merge. Spans are borrowed during
// the call, a key for as long as a ChunkedHash of it lives.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "base/universal_hash_kernel.h"

namespace trims {

struct HashValue final {
  uint64_t lo = 0;
  uint64_t hi = 0;
  friend bool operator==(const HashValue&, const HashValue&) = default;
};

// The implementations on this processor; both give the same values.
enum class UniversalHashImplementation { kPortable, kAvx2 };

class UniversalHashKey final {
 public:
  using Seed = std::array<uint8_t, 32>;

  // A fresh key from the kernel's random numbers. Blocks only while the system that has
  // just started has none.
  static Result<UniversalHashKey> Generate();
  // The key that a seed stands for, the same one in every version of the program.
  static UniversalHashKey FromSeed(const Seed& seed);

  UniversalHashKey(UniversalHashKey&&) noexcept;
  UniversalHashKey& operator=(UniversalHashKey&&) noexcept;
  ~UniversalHashKey();  // Overwrites the key.

  // As secret as the key: for the keeper, which hands it to the next worker.
  const Seed& seed() const;

  // What a launch with `cuda_blocks` CUDA blocks takes as its last argument.
  UniversalHashKernelKey KernelKey(uint32_t cuda_blocks) const;

 private:
  friend class ChunkedHash;
  friend HashValue HashBytesWith(UniversalHashImplementation, const UniversalHashKey&,
                                 std::span<const std::byte>);
  struct Expanded;
  struct Overwrite {
    void operator()(Expanded* expanded) const;
  };
  explicit UniversalHashKey(const Seed& seed);

  std::unique_ptr<Expanded, Overwrite> expanded_;
};

HashValue HashBytes(const UniversalHashKey& key, std::span<const std::byte> bytes);

class ChunkedHash final {
 public:
  explicit ChunkedHash(const UniversalHashKey& key) : key_(&key) {}

  // Adds the bytes at `offset` of the whole. `offset` is a multiple of
  // kUniversalHashBlockBytes and so is the size, except where the whole ends.
  void Add(uint64_t offset, std::span<const std::byte> bytes);
  // The same from the kernel's result over `size` bytes, one element per CUDA block.
  void AddPartials(uint64_t offset, uint64_t size, std::span<const FieldElement> partials);
  // Takes over what `other`, of the same key, was given.
  void Merge(const ChunkedHash& other);

  // The hash of the whole, of which every byte has been added once: other sums of sizes
  // and chunks beyond the end abort, an overlap that makes up for a gap is not noticed.
  HashValue Finish(uint64_t total_bytes) const;

 private:
  void Count(uint64_t offset, uint64_t size);

  const UniversalHashKey* key_;  // Borrowed.
  FieldElement sum_{0, 0};
  uint64_t added_bytes_ = 0;
  uint64_t end_ = 0;         // Of the chunk that ends last.
  uint64_t ragged_end_ = 0;  // Of the chunk whose size is no multiple; 0: none yet.
};

// How many CUDA blocks to launch for so many bytes, on so many multiprocessors: enough to
// keep the memory busy, and none without work. At least 1.
uint32_t UniversalHashCudaBlocks(uint64_t bytes, uint32_t multiprocessors);

// The kernel on this processor: what a fake driver calls when `trims_universal_hash` is
// launched. `arguments` are those of cuLaunchKernel, with addresses of this process.
void UniversalHashKernelReference(uint32_t cuda_blocks, uint32_t threads, void** arguments);

// For tests and benchmarks: one implementation by name.
bool UniversalHashSupports(UniversalHashImplementation implementation);
HashValue HashBytesWith(UniversalHashImplementation implementation, const UniversalHashKey& key,
                        std::span<const std::byte> bytes);

// Fills `words` from the seed: the keystream of AES-256 in counter mode from block 0. In a
// file of its own, so that a program without OpenSSL can link another one.
void ExpandUniversalHashSeed(const UniversalHashKey::Seed& seed, std::span<std::byte> words);

}  // namespace trims

// The two hashes of the host side: SHA-256 for identity, XXH3-128 for fast
// per-chunk checksums (Sha256 and Checksum are our names for OpenSSL's EVP and
// xxHash). XXH3 with a secret seed detects accidents and, because host memory is
// sealed by the kernel, needs to detect nothing more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/digest.h"

namespace trims {

// Incremental SHA-256. Move-only; thread-compatible.
class Sha256 final {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view text);
  void UpdateU64(uint64_t value);  // Eight little-endian bytes.
  // Ends the computation; the object must not be used again.
  Digest Finish();

  static Digest Of(std::span<const std::byte> bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct Checksum final {
  uint64_t low = 0;
  uint64_t high = 0;
  friend auto operator<=>(const Checksum&, const Checksum&) = default;
};

// XXH3-128 of `bytes` under `seed`.
Checksum ChecksumOf(std::span<const std::byte> bytes, uint64_t seed = 0);

}  // namespace trims

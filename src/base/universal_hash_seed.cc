#include <openssl/evp.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>

#include "base/status.h"
#include "base/universal_hash.h"

namespace trims {

void ExpandUniversalHashSeed(const UniversalHashKey::Seed& seed, std::span<std::byte> words) {
  // Counter mode encrypts zeros to its keystream. AES and not ChaCha20, because a FIPS
  // provider has it too.
  const std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context(
      EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  TRIMS_CHECK(context != nullptr);
  constexpr unsigned char kCounter[16] = {};
  TRIMS_CHECK(
      EVP_EncryptInit_ex(context.get(), EVP_aes_256_ctr(), nullptr, seed.data(), kCounter) == 1);
  std::ranges::fill(words, std::byte{0});
  auto* const at = reinterpret_cast<unsigned char*>(words.data());
  int written = 0;
  TRIMS_CHECK(EVP_EncryptUpdate(context.get(), at, &written, at, static_cast<int>(words.size())) ==
              1);
  TRIMS_CHECK(static_cast<size_t>(written) == words.size());
}

}  // namespace trims

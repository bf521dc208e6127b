#include "base/hash.h"

#include <gtest/gtest.h>

namespace trims {
namespace {

// FIPS 180-2, appendix B.1.
TEST(Sha256Test, AgreesWithThePublishedVector) {
  Sha256 hash;
  hash.Update(std::string_view("a"));
  hash.Update(std::string_view("bc"));
  EXPECT_EQ(hash.Finish().ToHex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ChecksumTest, DependsOnEveryByteAndOnTheSeed) {
  std::byte bytes[100] = {};
  const Checksum before = ChecksumOf(bytes, 1);
  bytes[99] = std::byte{1};
  EXPECT_NE(ChecksumOf(bytes, 1), before);
  bytes[99] = std::byte{0};
  EXPECT_EQ(ChecksumOf(bytes, 1), before);
  EXPECT_NE(ChecksumOf(bytes, 2), before);
}

}  // namespace
}  // namespace trims

#include <gtest/gtest.h>

#include <cerrno>

#include "base/digest.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

TEST(StatusTest, OkHasNoMessageAndErrorsNameTheirCode) {
  EXPECT_EQ(OkStatus().ToString(), "OK");
  EXPECT_EQ(NotFoundError("no model x").ToString(), "NOT_FOUND: no model x");
}

TEST(StatusTest, ErrnoTextAndCodeAreKept) {
  const Status status = ErrnoStatus(EACCES, "opening a.params");
  EXPECT_EQ(status.code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(), "opening a.params: Permission denied");
  EXPECT_EQ(ErrnoStatus(ENOSPC, "x").code(), StatusCode::kResourceExhausted);
}

Result<int> Half(int value) {
  if (value % 2 != 0) return InvalidArgumentError("odd");
  return value / 2;
}

Result<int> Quarter(int value) {
  ASSIGN_OR_RETURN(const int half, Half(value));
  ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(ResultTest, MacrosPassValuesAndErrors) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
  EXPECT_FALSE(Result<int>(OkStatus()).ok());
}

TEST(DigestTest, ParsesWhatItPrintsAndRefusesTheRest) {
  Digest digest;
  for (size_t i = 0; i < 32; ++i) digest.bytes[i] = static_cast<uint8_t>(i * 7);
  EXPECT_EQ(*Digest::Parse(digest.ToString()), digest);
  EXPECT_EQ(*Digest::Parse("@" + digest.ToString()), digest);
  EXPECT_EQ(*Digest::Parse(digest.ToHex()), digest);
  EXPECT_FALSE(Digest::Parse("sha256:12").ok());
  EXPECT_FALSE(Digest::Parse(std::string(63, '0') + "g").ok());
  EXPECT_FALSE(Digest::Parse("../../../../etc/passwd").ok());
}

TEST(UniqueFdTest, ClosesExactlyOnce) {
  int raw;
  {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    raw = fd.get();
    UniqueFd moved = std::move(fd);
    EXPECT_FALSE(fd.valid());  // NOLINT(bugprone-use-after-move): the point of the test.
    EXPECT_EQ(::fcntl(raw, F_GETFD), FD_CLOEXEC);
  }
  EXPECT_EQ(::fcntl(raw, F_GETFD), -1);
}

TEST(DTypeTest, NamesRoundTrip) {
  for (uint8_t i = 0; i < kDTypeCount; ++i) {
    EXPECT_EQ(DTypeFromName(DTypeName(static_cast<DType>(i))), static_cast<DType>(i));
  }
  EXPECT_EQ(DTypeBits(DType::kF4), 4u);
  EXPECT_FALSE(DTypeFromName("F128").has_value());
}

}  // namespace
}  // namespace trims

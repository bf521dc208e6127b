#include "daemon/control_status.h"

#include <gtest/gtest.h>

#include <string>

#include "base/text.h"

namespace trims {
namespace {

TEST(ControlStatusTest, EveryCodeComesBackAsItWas) {
  for (int code = 1; code <= 16; ++code) {
    const Status status(static_cast<StatusCode>(code), "why");
    const grpc::Status sent = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(sent), status);
  }
  EXPECT_TRUE(ToGrpcStatus(OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(ControlStatusTest, ACodeThatIsNoneIsUnknown) {
  EXPECT_EQ(ToGrpcStatus(Status(static_cast<StatusCode>(99), "x")).error_code(),
            grpc::StatusCode::UNKNOWN);
  EXPECT_EQ(FromGrpcStatus(grpc::Status(static_cast<grpc::StatusCode>(99), "x")).code(),
            StatusCode::kUnknown);
  EXPECT_EQ(FromGrpcStatus(grpc::Status(static_cast<grpc::StatusCode>(-1), "x")).code(),
            StatusCode::kUnknown);
}

TEST(ControlStatusTest, LongTextsAreCutBetweenCharacters) {
  // Two bytes each, so that the limit falls into one at one of two offsets.
  for (const std::string& start : {std::string(), std::string("x")}) {
    std::string text = start;
    while (text.size() <= kMaxGrpcMessageBytes) text += "\xC3\xA9";
    const std::string cut = ToGrpcStatus(InternalError(text)).error_message();
    EXPECT_LE(cut.size(), kMaxGrpcMessageBytes);
    EXPECT_GE(cut.size(), kMaxGrpcMessageBytes - 4);
    EXPECT_TRUE(IsValidUtf8(cut));
    EXPECT_TRUE(cut.ends_with("…"));
  }
  const std::string whole(kMaxGrpcMessageBytes, 'x');
  EXPECT_EQ(ToGrpcStatus(InternalError(whole)).error_message(), whole);
}

}  // namespace
}  // namespace trims

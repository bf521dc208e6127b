#include "daemon/control_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>

#include "trims/v1/control.pb.h"

namespace trims {
namespace {

using ::testing::HasSubstr;

TEST(ControlRequestsTest, EveryGranularityIsUnderstood) {
  v1::LoadRequest request;
  const auto asked = [&](v1::SharingGranularity granularity) {
    request.set_granularity(granularity);
    return GranularityOf(request).value();
  };
  EXPECT_EQ(asked(v1::SHARING_GRANULARITY_UNSPECIFIED), store::Granularity::kModel);
  EXPECT_EQ(asked(v1::SHARING_GRANULARITY_MODEL), store::Granularity::kModel);
  EXPECT_EQ(asked(v1::SHARING_GRANULARITY_SLAB), store::Granularity::kSlab);
  EXPECT_EQ(asked(v1::SHARING_GRANULARITY_LAYER), store::Granularity::kLayer);
  EXPECT_EQ(asked(v1::SHARING_GRANULARITY_AUTO), std::nullopt);
  // All that the protocol has; what it gets has to be added above.
  EXPECT_EQ(v1::SharingGranularity_MAX, v1::SHARING_GRANULARITY_LAYER);
  for (const int number : {-1, 5, std::numeric_limits<int>::max()}) {
    request.set_granularity(static_cast<v1::SharingGranularity>(number));
    EXPECT_THAT(GranularityOf(request).status().message(), HasSubstr(std::to_string(number)));
  }
}

TEST(ControlRequestsTest, AKeepAliveIsExactUpToTheLongest) {
  v1::LoadRequest request;
  EXPECT_EQ(KeepAliveOf(request).value(), std::nullopt) << "the daemon's setting";
  const auto asked = [&](int64_t seconds, int32_t nanos) {
    request.mutable_keep_alive()->set_seconds(seconds);
    request.mutable_keep_alive()->set_nanos(nanos);
    return KeepAliveOf(request);
  };
  using KeepAlive = std::optional<Duration>;
  EXPECT_EQ(asked(0, 0).value(), KeepAlive(Duration::zero()));
  EXPECT_EQ(asked(300, 7).value(), KeepAlive(std::chrono::minutes(5) + Duration(7)));
  EXPECT_EQ(asked(9'223'372'036, 854'775'807).value(), KeepAlive(Duration::max()));
  EXPECT_EQ(asked(9'223'372'036, 854'775'808).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(asked(std::numeric_limits<int64_t>::max(), 0).status().code(),
            StatusCode::kInvalidArgument);
  // For ever, however it is said.
  for (const auto& [seconds, nanos] : {std::pair<int64_t, int32_t>{-1, 0},
                                       {0, -1},
                                       {std::numeric_limits<int64_t>::min(), -999'999'999}}) {
    const auto keep = asked(seconds, nanos).value();
    ASSERT_TRUE(keep.has_value());
    EXPECT_EQ(*keep, std::nullopt);
  }
}

TEST(ControlRequestsTest, KindsAreThoseOfTheProtocol) {
  v1::WatchRequest request;
  EXPECT_TRUE(EventKindsOf(request).value().empty());
  for (int kind = 1; kind <= v1::EventKind_MAX; ++kind)
    request.add_kinds(static_cast<v1::EventKind>(kind));
  EXPECT_EQ(EventKindsOf(request).value().size(), static_cast<size_t>(v1::EventKind_MAX));
  request.add_kinds(static_cast<v1::EventKind>(v1::EventKind_MAX + 1));
  EXPECT_EQ(EventKindsOf(request).status().code(), StatusCode::kInvalidArgument);
}

TEST(ControlRequestsTest, APathGoesFromTheRootAndHasNoEndInTheMiddle) {
  EXPECT_TRUE(CheckModelPath("/m").ok());
  EXPECT_THAT(CheckModelPath("").message(), HasSubstr("not absolute"));
  EXPECT_THAT(CheckModelPath("m").message(), HasSubstr("\"m\" is not absolute"));
  EXPECT_THAT(CheckModelPath(std::string("/m\0x", 4)).message(), HasSubstr("\"/m\" goes on"));
}

}  // namespace
}  // namespace trims

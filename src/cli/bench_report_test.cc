// How the commands of `trims bench` write what was measured.
#include "cli/bench_report.h"

#include <string>
#include <utility>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

TEST(BenchReportTest, TimesAreWrittenInTheUnitThatFits) {
  const std::pair<double, const char*> times[] = {
      {0, "0.0 us"},         {145.24e-6, "145.2 us"}, {999.9e-6, "999.9 us"}, {1e-3, "1.00 ms"},
      {1.934e-3, "1.93 ms"}, {0.5, "500.00 ms"},      {2.1, "2.10 s"},        {3600, "3600.00 s"},
  };
  for (const auto& [seconds, text] : times) EXPECT_EQ(TimeText(seconds), text);
}

TEST(BenchReportTest, RatiosToNothingAreDashes) {
  EXPECT_EQ(RatioText(1.116), "1.12");
  EXPECT_EQ(RatioText(0), "-");
  EXPECT_EQ(PercentText(0.971), "97 %");
  EXPECT_EQ(PercentText(0), "-");
}

TEST(BenchReportTest, TheSummaryHoldsWhatTheSamplesSay) {
  bench::Samples samples;
  for (const double seconds : {0.4, 0.1, 0.3, 0.2}) samples.Add(seconds);
  EXPECT_EQ(SummaryJson(samples).dump(),
            R"({"runs":4,"min_seconds":0.1,"median_seconds":0.25,"p90_seconds":0.4,)"
            R"("p99_seconds":0.4,"max_seconds":0.4,"mean_seconds":0.25})");
}

TEST(BenchReportTest, TheSummaryOfNothingIsZeros) {
  const Json summary = SummaryJson(bench::Samples());
  EXPECT_EQ(summary["runs"], 0);
  EXPECT_EQ(summary["median_seconds"], 0);
}

BenchOptions Sized(std::vector<std::string> sizes, std::vector<uint32_t> tensors) {
  BenchOptions options;
  options.sizes = std::move(sizes);
  options.tensors = std::move(tensors);
  return options;
}

TEST(BenchReportTest, SizesAreBytes) {
  const Result<std::vector<uint64_t>> sizes = BenchSizes(Sized({"1KiB", "2GiB"}, {4}));
  ASSERT_TRUE(sizes.ok()) << sizes.status().ToString();
  EXPECT_THAT(*sizes, ElementsAre(kKiB, 2 * kGiB));
}

TEST(BenchReportTest, SizesThatCanNotBeAreNamed) {
  EXPECT_THAT(BenchSizes(Sized({"1MiB", "much"}, {1})).status().message(),
              AllOf(StartsWith("--size: "), HasSubstr("much")));
  const Status small = BenchSizes(Sized({"1MiB", "1KiB"}, {4, 5})).status();
  EXPECT_EQ(small.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(small.message(),
            "--size 1KiB is too small for 5 tensors: each takes at least 256 bytes");
}

}  // namespace
}  // namespace trims::cli

// `trims leases`: who holds which model.
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class LeasesTest : public CliTest {};

TEST_F(LeasesTest, LeasesSayWhoHoldsWhat) {
  backend_.AddLease("vgg16", 7, 0, 42, "python3");
  StartDaemon();
  const Outcome outcome = Run({"leases"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], HasSubstr("LEASE  MODEL"));
  EXPECT_THAT(lines[1], AllOf(HasSubstr("7  vgg16  aaaaaaaaaaaa  host  528.0 MiB  root"),
                              HasSubstr("42  python3")));
  EXPECT_EQ(Run({"leases", "-q"}).out, "7\n");
  EXPECT_EQ(json::parse(Run({"leases", "vgg16", "--json"}).out)[0]["command"], "python3");
  EXPECT_EQ(Run({"leases", "lenet:1", "-q"}).out, "");
  EXPECT_EQ(Run({"leases", "nothing"}).code, 3);
}

TEST_F(LeasesTest, NobodyHoldsAnythingIsNoError) {
  StartDaemon();
  const Outcome outcome = Run({"leases"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "LEASE  MODEL  DIGEST  TIER  SIZE  USER  PID  COMMAND  SINCE\n");
  EXPECT_EQ(RunJson({"leases"}), json::array());
}

TEST_F(LeasesTest, ProcessesThatCanNotBeSeenHaveNoNumber) {
  backend_.AddLease("vgg16", 7, 4'000'000, 0, "");
  StartDaemon();
  EXPECT_THAT(Lines(Run({"leases"}).out)[1], HasSubstr("  4000000    -  -  "));
  const json lease = RunJson({"leases"})[0];
  EXPECT_EQ(lease["lease_id"], 7);
  EXPECT_EQ(lease["uid"], 4'000'000);
  EXPECT_EQ(lease["tier"], "host");
  EXPECT_THAT(lease["since"].get<std::string>(), EndsWith("Z"));
}

TEST_F(LeasesTest, DigestsAreWholeWhenNothingIsToBeCut) {
  backend_.AddLease("vgg16", 7, 0, 42, "python3");
  StartDaemon();
  EXPECT_THAT(Run({"leases", "--no-truncate"}).out, HasSubstr(kDigestA));
  EXPECT_THAT(Run({"leases", "aaaaaaaa"}).code, 0);  // The first digits of its digest.
}

}  // namespace
}  // namespace trims::cli

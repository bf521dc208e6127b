// `trims evict`: memory given back, and who keeps it from that.
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class EvictTest : public CliTest {};

TEST_F(EvictTest, EvictDropsAndSaysHowMuch) {
  StartDaemon();
  EXPECT_EQ(Run({"evict", "vgg16"}).out, "vgg16 dropped from host, 528.0 MiB freed\n");
  const Outcome again = Run({"stop", "vgg16"});
  EXPECT_EQ(again.code, 3);
  EXPECT_THAT(again.err, HasSubstr("not resident"));
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\nvgg16\n");
}

TEST_F(EvictTest, EvictRefusesLeasedModelsAndSaysWhoHoldsThem) {
  backend_.AddLease("vgg16", 7, 0, 4242, "python3");
  StartDaemon();
  const Outcome refused = Run({"evict", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("vgg16 is leased in host"), HasSubstr("--force"),
                                 HasSubstr("4242"), HasSubstr("python3")));
  EXPECT_THAT(refused.out, IsEmpty());
  const Outcome forced = Run({"evict", "vgg16", "--force", "--json"});
  EXPECT_EQ(forced.code, 0) << forced.err;
  const json results = json::parse(forced.out);
  EXPECT_EQ(results[0]["replicas"][0]["draining"], true);
  EXPECT_EQ(Run({"evict", "vgg16", "--force"}).out,
            "vgg16 drains from host: 1 leases still hold 528.0 MiB\n");
}

TEST_F(EvictTest, OneFailureDoesNotStopTheOthersButDecidesTheCode) {
  StartDaemon();
  const Outcome outcome = Run({"evict", "nothing", "vgg16"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.out, HasSubstr("vgg16 dropped"));
}

TEST_F(EvictTest, OneTierAtATime) {
  backend_.MakeResident("vgg16", "gpu:GPU-0");
  StartDaemon();
  EXPECT_EQ(Run({"evict", "vgg16", "--tier", "gpu:GPU-0"}).out,
            "vgg16 dropped from gpu:GPU-0, 528.0 MiB freed\n");
  EXPECT_EQ(Run({"evict", "vgg16", "--tier", "gpu:GPU-0"}).code, 3);
  EXPECT_EQ(RunJson({"ps"})[0]["tier"], "host");
}

TEST_F(EvictTest, JsonListsWhatWentOfEachModelThatCouldBeEvicted) {
  backend_.MakeResident("lenet:1");
  StartDaemon();
  const json results = RunJson({"evict", "lenet:1", "nothing", "vgg16"}, 3);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["name"], "lenet:1");
  EXPECT_EQ(results[0]["replicas"][0]["freed_bytes"], 1'724'416);
  EXPECT_EQ(results[0]["replicas"][0]["draining"], false);
  EXPECT_EQ(results[0]["replicas"][0]["replica"]["tier"], "host");
  EXPECT_EQ(results[1]["name"], "vgg16");
}

}  // namespace
}  // namespace trims::cli

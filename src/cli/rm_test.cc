// `trims rm`: names taken out of the catalogue.
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class RmTest : public CliTest {};

TEST_F(RmTest, RmTakesTheNameAway) {
  backend_.AddLease("vgg16", 7, 0, 4242, "python3");
  StartDaemon();
  const Outcome refused = Run({"rm", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, HasSubstr("4242"));
  EXPECT_EQ(Run({"rm", "lenet:1"}).out, "lenet:1 removed; its files stay at /models/lenet:1\n");
  EXPECT_EQ(Run({"rm", "vgg16", "--force"}).code, 0);
  EXPECT_EQ(Run({"ls", "-q"}).out, "");
  EXPECT_EQ(Run({"remove", "vgg16"}).code, 3);
}

TEST_F(RmTest, WhatWasResidentOnlyUnderThatNameIsEvicted) {
  StartDaemon();
  EXPECT_EQ(Run({"rm", "vgg16"}).out,
            "vgg16 removed; its files stay at /models/vgg16\n"
            "vgg16 dropped from host, 528.0 MiB freed\n");
}

TEST_F(RmTest, OneFailureDoesNotStopTheOthersButDecidesTheCode) {
  StartDaemon();
  const json results = RunJson({"rm", "nothing", "lenet:1", "vgg16"}, 3);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["model"]["name"], "lenet:1");
  EXPECT_EQ(results[1]["replicas"][0]["freed_bytes"], 553'648'128);
  EXPECT_EQ(RunJson({"ls"}), json::array());
}

}  // namespace
}  // namespace trims::cli

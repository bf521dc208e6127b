// `trims status`: the daemon itself.
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class StatusTest : public CliTest {};

TEST_F(StatusTest, StatusShowsTiersAndCounters) {
  StartDaemon();
  const Outcome outcome = Run({"status"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("restarted 2 times"), HasSubstr("10, of these 9 without a load"),
                    HasSubstr("export 3.0 us, open 12.0 us"), HasSubstr("host  8.0 GiB  1.0 GiB")));
  EXPECT_EQ(json::parse(Run({"status", "--json"}).out)["tiers"][0]["budget_bytes"],
            uint64_t{8} << 30);
}

TEST_F(StatusTest, StatusShowsDevicesAndTheirHealth) {
  AddDevices();
  StartDaemon();
  const std::string out = Run({"status"}).out;
  EXPECT_THAT(out, AllOf(HasSubstr("cuda driver     13.0\n"),
                         HasSubstr("verified        7 replicas, of these 1 had wrong bytes\n"),
                         HasSubstr("host pinned     3.0 GiB, for copies to devices\n")));
  EXPECT_THAT(out,
              AllOf(HasSubstr("gpu:0  111.0 GiB"), HasSubstr("NOT SERVING: the device was lost")));
  EXPECT_THAT(out, HasSubstr("GPU-fa4ec0da    ready"));
  EXPECT_THAT(out,
              HasSubstr("100.0 GiB  140.0 GiB  128.0 MiB of 256.0 MiB  from host 55.1 GB/s, from "
                        "gpu:1 396.0 GB/s\n"));
  EXPECT_THAT(out, HasSubstr("from gpu:0 not measured (through the host)\n"));
  const json status = json::parse(Run({"status", "--json"}).out);
  EXPECT_EQ(status["devices"][0]["links"][1]["bytes_per_second"], 396e9);
  EXPECT_EQ(status["tiers"][1]["client_pinned_bytes"], 2 * kGiB);
}

TEST_F(StatusTest, OnePropertyALineAndNothingAboutDevicesWithoutAny) {
  StartDaemon();
  const std::string out = Run({"status"}).out;
  EXPECT_THAT(out, StartsWith("version         0.1.0\nkeeper          pid 4000, started "));
  EXPECT_THAT(out,
              AllOf(HasSubstr("\nlease socket    -\n"), HasSubstr("\npolicy          lru\n"),
                    HasSubstr("\nsessions        3\n"),
                    HasSubstr("\nmodels          0 resident, 0 loads running\n"),
                    HasSubstr("\nrho             read 1.9 GiB/s, export 3.0 us, open 12.0 us")));
  EXPECT_THAT(out, AllOf(Not(HasSubstr("cuda driver")), Not(HasSubstr("host pinned")),
                         Not(HasSubstr("DEVICE"))));
}

TEST_F(StatusTest, SaysHowLongTheDaemonWasHeldUpWhenItWas) {
  StartDaemon();
  EXPECT_THAT(Run({"status"}).out, Not(HasSubstr("held up")));
  backend_.ChangeStatus([](v1::GetStatusResponse* status) {
    status->set_reactor_slow_callbacks(3);
    status->mutable_reactor_longest_callback()->set_nanos(23'412'345);
  });
  EXPECT_THAT(Run({"status"}).out,
              HasSubstr("held up         3 times for longer than 10 ms, for 23.4 ms at most\n"));
}

TEST_F(StatusTest, WhatTheDaemonSaysCanNotWriteOverTheScreen) {
  backend_.ChangeStatus([](v1::GetStatusResponse* status) { status->set_gpu("x\x1b[2J"); });
  StartDaemon();
  EXPECT_THAT(Run({"status"}).out, HasSubstr("gpu             x?[2J\n"));
}

TEST_F(StatusTest, JsonHasTheFieldsOfTheProtocol) {
  AddDevices();
  StartDaemon();
  const json status = RunJson({"status"});
  EXPECT_EQ(status["worker_restarts"], 2);
  EXPECT_EQ(status["opens_hit"], 9);
  EXPECT_EQ(status["rho"]["open_cost"], 12e-6);
  EXPECT_EQ(status["worker_started_at"], nullptr);
  ASSERT_EQ(status["devices"].size(), 3u);
  EXPECT_EQ(status["devices"][0]["ready"], true);
  EXPECT_EQ(status["devices"][2]["tier"], "");
  EXPECT_EQ(status["tiers"][2]["health"], "the device was lost");
}

}  // namespace
}  // namespace trims::cli

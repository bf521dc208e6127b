// `trims ps`: what is resident, who holds it, what ends it, and how full the tiers are.
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class PsTest : public CliTest {};

TEST_F(PsTest, PsSaysWhatEndsEachReplica) {
  char fill = 'b';
  for (const char* name : {"m-leased", "m-pinned", "m-draining", "m-expiring"}) {
    backend_.AddModel(name, ++fill, 1 << 20);
    backend_.MakeResident(name);
  }
  backend_.AddLease("m-leased", 7, 0, 42, "python3");
  backend_.Change("m-pinned",
                  [](auto& model) { model.view.mutable_replicas(0)->set_pinned(true); });
  backend_.Change("m-draining", [](auto& model) {
    model.view.mutable_replicas(0)->set_state(v1::REPLICA_STATE_DRAINING);
    model.view.mutable_replicas(0)->set_leases(3);
  });
  backend_.Change("m-expiring", [](auto& model) {
    *model.view.mutable_replicas(0)->mutable_until() =
        google::protobuf::util::TimeUtil::GetCurrentTime() +
        google::protobuf::util::TimeUtil::HoursToDuration(100);
  });
  StartDaemon();
  const Outcome outcome = Run({"ps"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_EQ(lines.size(), 8u);
  // How wide UNTIL is, the time decides.
  EXPECT_THAT(
      lines[0],
      AllOf(StartsWith("NAME        DIGEST             SIZE  TIER  LEASES  STATE     UNTIL "),
            EndsWith("  HELD BY")));
  EXPECT_THAT(lines[1], StartsWith("m-draining  eeeeeeeeeeee    1.0 MiB  host       3  draining  "
                                   "released "));
  EXPECT_THAT(lines[2], AllOf(StartsWith("m-expiring"), HasSubstr("h"), HasSubstr("from now")));
  EXPECT_THAT(
      lines[3],
      AllOf(StartsWith("m-leased    cccccccccccc    1.0 MiB  host       1  ready     released "),
            EndsWith("  python3(42)")));
  EXPECT_THAT(
      lines[4],
      AllOf(StartsWith("m-pinned    dddddddddddd    1.0 MiB  host       0  ready     unpinned "),
            EndsWith("  pinned")));
  EXPECT_THAT(
      lines[5],
      AllOf(StartsWith("vgg16       aaaaaaaaaaaa  528.0 MiB  host       0  ready     evicted "),
            EndsWith("  -")));
  EXPECT_EQ(lines[6], "");
  EXPECT_EQ(lines[7], "host: 1.0 GiB of 8.0 GiB");
}

TEST_F(PsTest, PsShowsWhoPinsWhatOnWhichDevice) {
  AddDevices();
  backend_.MakeResident("vgg16", kTier0);
  backend_.Change("vgg16", [](auto& model) { model.view.mutable_replicas(1)->set_pinned(true); });
  uint64_t lease = 0;
  for (const int pid : {4711, 12, 12, 13, 14, 15}) {
    backend_.AddLease("vgg16", ++lease, 0, pid, pid == 4711 ? "python" : "trims", kTier0);
  }
  StartDaemon();
  const std::string out = Run({"ps"}).out;
  EXPECT_THAT(out,
              HasSubstr("gpu:0       6  ready  unpinned  pinned, python(4711), trims(12) and 3 "
                        "more\n"));
  EXPECT_THAT(out, HasSubstr("host        0  ready  evicted   -\n"));
  EXPECT_THAT(out,
              HasSubstr("\nhost: 1.0 GiB of 8.0 GiB\n"
                        "gpu:0 NVIDIA H200: 12.0 GiB of 111.0 GiB, 2.0 GiB pinned by clients\n"
                        "gpu:1 NVIDIA H200: 0 B of 111.0 GiB: NOT SERVING: the device was "
                        "lost\n"
                        "gpu:2 NVIDIA T4: not served: out of memory while making a context\n"));
  const std::string whole = Run({"ps", "--no-truncate"}).out;
  EXPECT_THAT(whole, AllOf(HasSubstr(kTier0 + "       6"), HasSubstr("trims(15)\n"),
                           HasSubstr("\n" + kTier0 + " NVIDIA H200: 12.0 GiB")));
  const json rows = json::parse(Run({"ps", "--json"}).out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_TRUE(rows[0]["held_by"].empty());
  EXPECT_EQ(rows[1]["held_by"].size(), 5u);
  EXPECT_EQ(rows[1]["held_by"][1],
            json::parse(R"({"pid":12,"command":"trims","uid":0,"leases":2})"));
  EXPECT_EQ(Run({"ps", "-q"}).out, "vgg16\n");
}

TEST_F(PsTest, PsJsonHasOneObjectPerReplica) {
  backend_.MakeResident("vgg16", "gpu:GPU-0");
  StartDaemon();
  const json rows = json::parse(Run({"ps", "--json"}).out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["name"], "vgg16");
  EXPECT_EQ(rows[0]["tier"], "host");
  EXPECT_EQ(rows[1]["tier"], "gpu:GPU-0");
  EXPECT_EQ(Run({"ps", "-q"}).out, "vgg16\n");
}

TEST_F(PsTest, WithNothingResidentOnlyTheTiersAreLeft) {
  StartDaemon();
  ASSERT_EQ(Run({"evict", "vgg16"}).code, 0);
  EXPECT_EQ(Run({"ps"}).out,
            "NAME  DIGEST  SIZE  TIER  LEASES  STATE  UNTIL  HELD BY\n"
            "\n"
            "host: 1.0 GiB of 8.0 GiB\n");
  EXPECT_EQ(RunJson({"ps"}), json::array());
  EXPECT_EQ(Run({"ps", "-q"}).out, "");
}

TEST_F(PsTest, LeasesOfProcessesThatCanNotBeSeenAreCountedBySession) {
  for (const uint64_t lease : {1, 2}) backend_.AddLease("vgg16", lease, 0, 0, "");
  StartDaemon();
  EXPECT_THAT(Run({"ps"}).out, HasSubstr("  root, root\n"));
  const json held = RunJson({"ps"})[0]["held_by"];
  ASSERT_EQ(held.size(), 2u);
  EXPECT_EQ(held[0], json::parse(R"({"pid":0,"command":"","uid":0,"leases":1})"));
}

TEST_F(PsTest, NamesOfProcessesCanNotWriteOverTheScreen) {
  backend_.AddLease("vgg16", 1, 0, 7, "evil\x1b[2J");
  StartDaemon();
  EXPECT_THAT(Run({"ps"}).out, AllOf(HasSubstr("evil?[2J(7)"), Not(HasSubstr("\x1b"))));
}

TEST_F(PsTest, AnswersThatFailAreErrors) {
  backend_.set_unary_error(UnavailableError("the worker is being restarted"));
  StartDaemon();
  const Outcome outcome = Run({"ps"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, IsEmpty());
}

}  // namespace
}  // namespace trims::cli

// `trims bench`: its options, and what it does without a daemon. Against a daemon:
// tests/bench_test.cc.
#include <signal.h>

#include <filesystem>
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class BenchTest : public CliTest {};

TEST_F(BenchTest, BenchSaysWhatItsArgumentsShouldBe) {
  AddDevices();
  StartDaemon();
  const Outcome small = Run({"bench", "open", "--size", "64KiB", "--tensors", "10,5000"});
  EXPECT_EQ(small.code, 2);
  EXPECT_THAT(small.err, HasSubstr("--size 64KiB is too small for 5000 tensors"));
  const Outcome place = Run({"bench", "load", "--from", "tape"});
  EXPECT_THAT(place.err,
              HasSubstr("--from tape: page-cache, disk, host or peer:gpu:1 were expected"));
  EXPECT_EQ(place.code, 2);
  EXPECT_THAT(Run({"bench", "load", "--from", "host"}).err, HasSubstr("give --device gpu:0"));
  EXPECT_THAT(Run({"bench", "load", "--from", "peer"}).err, HasSubstr("give --device gpu:0"));
  const Outcome lost = Run({"bench", "open", "--device", "gpu:1"});
  EXPECT_EQ(lost.code, 7);
  EXPECT_THAT(lost.err, HasSubstr("does not serve gpu:1 (NVIDIA H200): the device was lost"));
  const Outcome none = Run({"bench", "open", "--device", "gpu:7"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("no device gpu:7; it serves gpu:0 (NVIDIA H200)"));
  EXPECT_THAT(Run({"bench", "open", "--device", "gpu:0"}).err,
              HasSubstr("this process can not use gpu:0: "));
}

TEST_F(BenchTest, BenchCopyMeasuresWithoutADaemonAndLeavesNothing) {
  const std::string files = directory_ + "/files";
  std::filesystem::create_directory(files);
  const Outcome outcome =
      Run({"bench", "copy", "--size", "1MiB,3MiB", "--runs", "2", "--dir", files, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json result = json::parse(outcome.out);
  EXPECT_EQ(result["benchmark"], "copy");
  EXPECT_GE(result["machine"]["cores"], 1);
  bool read = false;
  for (const json& one : result["results"]) {
    EXPECT_EQ(one["times"]["runs"], 2) << one;
    EXPECT_GT(one["bytes_per_second"], 0) << one;
    read = read || (one["copy"] == "page_cache_read" && one["bytes"] > (3 << 20));
  }
  EXPECT_TRUE(read) << outcome.out;
  EXPECT_TRUE(std::filesystem::is_empty(files));
  EXPECT_THAT(Run({"bench", "copy", "--size", "1MiB", "--runs", "1"}).out,
              AllOf(HasSubstr("host memcpy, 1 thread"), HasSubstr(" GB/s")));
}

TEST_F(BenchTest, InterruptingABenchmarkLeavesNothing) {
  const std::string files = directory_ + "/files";
  std::filesystem::create_directory(files);
  auto process =
      Spawn({"bench", "copy", "--size", "4MiB", "--runs", "1000000", "--dir", files}, {.err = 100});
  process->WaitForError("host memcpy");
  ::kill(process->pid(), SIGINT);
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("interrupted"));
  EXPECT_TRUE(std::filesystem::is_empty(files));
}

TEST_F(BenchTest, CopyTellsOfADeviceThatIsNotThere) {
  const Outcome outcome = Run({"bench", "copy", "--device", "gpu:7", "--size", "1MiB"});
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: "), HasSubstr("\nhint: ")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(BenchTest, ADiskThatIsTooSmallIsRefusedBeforeAnythingIsWritten) {
  const std::string files = directory_ + "/files";
  std::filesystem::create_directory(files);
  StartDaemon();
  const Outcome outcome =
      Run({"bench", "load", "--size", "900000GiB", "--runs", "1", "--dense", "--dir", files});
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.out, IsEmpty());
  EXPECT_TRUE(std::filesystem::is_empty(files));
}

}  // namespace
}  // namespace trims::cli

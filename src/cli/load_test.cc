// `trims load`: phases, rate and time left, and who stops it.
#include <signal.h>

#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class LoadTest : public CliTest {};

TEST_F(LoadTest, LoadReportsOnceWhenPiped) {
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(StartsWith("lenet:1 is in host: 1.6 MiB in "), HasSubstr("/s)\n")));
  EXPECT_THAT(outcome.err, IsEmpty());
  EXPECT_EQ(Run({"load", "lenet:1"}).out, "lenet:1 is already in host (1.6 MiB)\n");
  EXPECT_EQ(Run({"prefetch", "lenet:1", "-q"}).out, "");
}

TEST_F(LoadTest, LoadShowsABarOnATerminal) {
  backend_.HoldLoads(true);
  StartDaemon();
  auto process = Spawn({"load", "lenet:1"}, {.err = 100});
  backend_.WaitForRunning(1);
  backend_.HoldLoads(false);
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("lenet:1 loading"), HasSubstr("[####"),
                                 HasSubstr("of 1.6 MiB"), HasSubstr("left")));
}

TEST_F(LoadTest, LoadJsonIsOneObjectPerLine) {
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1", "--json"});
  const std::vector<std::string> lines = Lines(outcome.out);
  ASSERT_GE(lines.size(), 3u);
  EXPECT_EQ(json::parse(lines.front())["phase"], "queued");
  const json last = json::parse(lines.back());
  EXPECT_EQ(last["phase"], "ready");
  EXPECT_EQ(last["name"], "lenet:1");
  EXPECT_EQ(last["model"]["replicas"][0]["tier"], "host");
}

TEST_F(LoadTest, LoadPassesItsOptionsOn) {
  StartDaemon();
  EXPECT_EQ(Run({"load", "lenet:1", "vgg16", "--tier", "gpu:GPU-0", "--granularity", "auto",
                 "--keep-alive", "1m30s", "--pin"})
                .code,
            0);
  EXPECT_EQ(Run({"load", "vgg16", "--keep-alive", "forever"}).code, 0);
  EXPECT_EQ(Run({"load", "vgg16", "--keep-alive", "0"}).code, 0);
  const auto requests = backend_.load_requests();
  ASSERT_EQ(requests.size(), 4u);
  EXPECT_EQ(requests[1].model(), "vgg16");
  EXPECT_EQ(requests[1].tier(), "gpu:GPU-0");
  EXPECT_EQ(requests[1].granularity(), v1::SHARING_GRANULARITY_AUTO);
  EXPECT_EQ(requests[1].keep_alive().seconds(), 90);
  EXPECT_LT(requests[2].keep_alive().seconds(), 0);
  EXPECT_TRUE(requests[3].has_keep_alive());
  EXPECT_EQ(requests[3].keep_alive().seconds(), 0);
  EXPECT_THAT(Run({"ps"}).out, HasSubstr("unpinned"));
}

TEST_F(LoadTest, LoadRefusesBadOptionsBeforeAsking) {
  StartDaemon();
  const Outcome outcome = Run({"load", "vgg16", "--keep-alive", "5"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--keep-alive"));
  EXPECT_EQ(Run({"load", "vgg16", "--granularity", "huge"}).code, 2);
  EXPECT_EQ(Run({"load"}).code, 2);
  EXPECT_TRUE(backend_.load_requests().empty());
}

TEST_F(LoadTest, InterruptingALoadTellsTheDaemon) {
  backend_.HoldLoads(true);
  StartDaemon();
  auto process = Spawn({"load", "lenet:1"});
  backend_.WaitForRunning(1);
  ::kill(process->pid(), SIGINT);
  EXPECT_EQ(process->Wait().code, 128 + SIGINT);
  backend_.WaitForAbandoned(1);
}

TEST_F(LoadTest, NoRoomIsExitCodeFive) {
  backend_.set_capacity_bytes(1000);
  StartDaemon();
  const Outcome outcome = Run({"load", "lenet:1"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("need 1724416 bytes"), HasSubstr("trims evict")));
}

TEST_F(LoadTest, SeveralModelsGoOnAfterAFailureWhichDecidesTheCode) {
  StartDaemon();
  const Outcome outcome = Run({"load", "nothing", "lenet:1"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.out, StartsWith("lenet:1 is in host"));
  EXPECT_THAT(outcome.err, StartsWith("trims: no model named nothing\n"));
}

TEST_F(LoadTest, NoBarIsShownWhenNobodyWantsOne) {
  StartDaemon();
  EXPECT_THAT(Spawn({"load", "lenet:1", "-q"}, {.err = 100})->Wait().err, IsEmpty());
  ASSERT_EQ(Run({"evict", "lenet:1"}).code, 0);
  EXPECT_THAT(Spawn({"load", "lenet:1", "--json"}, {.err = 100})->Wait().err, IsEmpty());
}

TEST_F(LoadTest, ABarFitsIntoANarrowTerminal) {
  backend_.HoldLoads(true);
  StartDaemon();
  auto process = Spawn({"load", "lenet:1"}, {.err = 44});
  backend_.WaitForRunning(1);
  process->WaitForError("loading");
  backend_.HoldLoads(false);
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 0);
  std::string text = outcome.err;
  size_t drawn = 0;
  for (size_t at = text.find("\r\033[K"); at != std::string::npos; ++drawn) {
    const size_t next = text.find("\r\033[K", at + 1);
    const size_t end = next == std::string::npos ? text.size() : next;
    EXPECT_LE(end - at, 44 + 4) << text.substr(at, end - at);
    at = next;
  }
  EXPECT_GE(drawn, 3u) << text;
  EXPECT_THAT(text, Not(HasSubstr("[#")));
}

TEST_F(LoadTest, GranularitiesAreWordsInAnyCase) {
  StartDaemon();
  ASSERT_EQ(Run({"load", "lenet:1", "--granularity", "LAYER"}).code, 0);
  EXPECT_EQ(backend_.load_requests().back().granularity(), v1::SHARING_GRANULARITY_LAYER);
  EXPECT_EQ(Run({"load", "lenet:1"}).code, 0);
  EXPECT_EQ(backend_.load_requests().back().granularity(), v1::SHARING_GRANULARITY_MODEL);
  EXPECT_FALSE(backend_.load_requests().back().has_keep_alive());
}

}  // namespace
}  // namespace trims::cli

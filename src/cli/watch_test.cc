// `trims watch`: a line per event, until interrupted.
#include <signal.h>

#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class WatchTest : public CliTest {};

TEST_F(WatchTest, PrintsALinePerEventUntilTheDaemonStops) {
  StartDaemon();
  for (const bool as_json : {false, true}) {
    auto process = Spawn(as_json ? std::vector<std::string>{"watch", "--json"}
                                 : std::vector<std::string>{"watch"});
    backend_.WaitForRunning(1);
    v1::Event event;
    event.set_kind(v1::EVENT_KIND_EVICTED);
    event.set_model("vgg16");
    event.set_tier("host");
    event.set_detail("lru");
    backend_.Publish(event);
    process->WaitForOutput("\n");
    if (as_json) StopDaemon();
    if (!as_json) ::kill(process->pid(), SIGTERM);
    const Outcome outcome = process->Wait();
    if (as_json) {
      EXPECT_EQ(json::parse(outcome.out)["kind"], "evicted");
      EXPECT_EQ(outcome.code, 7);
      EXPECT_THAT(outcome.err, HasSubstr("the daemon is stopping"));
    } else {
      EXPECT_THAT(outcome.out, HasSubstr("evicted      vgg16  host  lru\n"));
      backend_.WaitForAbandoned(1);
      backend_.WaitForRunning(0);
    }
  }
}

TEST_F(WatchTest, EventsThatWereDroppedAreCounted) {
  StartDaemon();
  auto process = Spawn({"watch"});
  backend_.WaitForRunning(1);
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_DROPPED);
  event.set_dropped(12);
  backend_.Publish(event);
  process->WaitForOutput("\n");
  StopDaemon();
  EXPECT_THAT(process->Wait().out,
              EndsWith("  12 events were dropped: this reader was too slow\n"));
}

TEST_F(WatchTest, EventsWithoutANameShowTheDigestAndCanNotWriteOverTheScreen) {
  StartDaemon();
  auto process = Spawn({"watch"});
  backend_.WaitForRunning(1);
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_EVICTED);
  event.set_digest(kDigestA);
  event.set_detail("a\x1b[2Jb");
  backend_.Publish(event);
  process->WaitForOutput("\n");
  StopDaemon();
  EXPECT_THAT(process->Wait().out, EndsWith("evicted      aaaaaaaaaaaa  a?[2Jb\n"));
}

TEST_F(WatchTest, OnlyEventsOfTheModelThatWasNamedAreShown) {
  StartDaemon();
  auto process = Spawn({"watch", "vgg16"});
  backend_.WaitForRunning(1);
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_EVICTED);
  for (const char* model : {"lenet:1", "vgg16"}) {
    event.set_model(model);
    backend_.Publish(event);
  }
  process->WaitForOutput("\n");
  StopDaemon();
  EXPECT_THAT(process->Wait().out, AllOf(EndsWith("  vgg16\n"), Not(HasSubstr("lenet:1"))));
}

TEST_F(WatchTest, WrongDigestsAreRefusedBeforeAsking) {
  StartDaemon();
  EXPECT_EQ(Run({"watch", "sha256:xyz"}).code, 2);
}

}  // namespace
}  // namespace trims::cli

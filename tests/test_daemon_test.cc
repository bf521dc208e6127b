// The detectors of TestDaemon find what they are for: each test here does what no test may
// do, and expects to be told.
#include "tests/test_daemon.h"

#include <gtest/gtest-spi.h>

#include "tests/log_judge.h"
#include "tests/raw_client.h"

namespace trims::testing_support {
namespace {

constexpr char kEnd[] =
    "2026-01-31T12:00:00.123Z info session ended session=7 uid=0 pid=1 reason=\"second hello\"\n";
constexpr char kError[] = "2026-01-31T12:00:00.123Z error device lost, other tiers serve on id=0\n";

bool Holds(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

TEST(LogJudgeTest, NamesEndsAndErrorsThatNobodyAnnounced) {
  EXPECT_EQ(LogJudge().Judge(kEnd), std::string("not announced: ") + kEnd);
  EXPECT_EQ(LogJudge().Judge(kError), std::string("not announced: ") + kError);
  EXPECT_EQ(LogJudge().Judge(std::string(kEnd).substr(0, sizeof kEnd - 2)),  // A line cut short.
            std::string("not announced: ") + kEnd);
}

TEST(LogJudgeTest, LetsAllOtherLinesBe) {
  EXPECT_EQ(LogJudge().Judge(""), "");
  EXPECT_EQ(LogJudge().Judge("2026-01-31T12:00:00.123Z info stopped\n\n"
                             "2026-01-31T12:00:00.123Z warn client refused reason=\"an error x\"\n"
                             "2026-01-31T12:00:00.123Z info x name=\" session ended \"\n"),
            "");
}

TEST(LogJudgeTest, CountsWhatWasAnnouncedAndForgetsItThen) {
  LogJudge judge;
  judge.ExpectSessionEnds("hello", 1, 1);
  judge.ExpectErrors("device lost", 1, 2);
  EXPECT_EQ(judge.Judge(std::string(kEnd) + kError + kError), "");
  EXPECT_TRUE(Holds(judge.Judge(kEnd), "not announced"));
  judge.ExpectSessionEnds("hello", 1, 1);
  EXPECT_EQ(judge.Judge(std::string(kEnd) + kEnd), std::string("not announced: ") + kEnd);
  judge.ExpectSessionEnds("hello", 2, 3);
  EXPECT_TRUE(Holds(judge.Judge(kEnd), "announced, but seen 1 times and not 2"));
  judge.ExpectSessionEnds("no hello in time", 0, 1);
  EXPECT_EQ(judge.Judge(kEnd), std::string("not announced: ") + kEnd);
}

TEST(LogJudgeTest, AnEndIsNoErrorAndAnErrorNoEnd) {
  LogJudge judge;
  judge.ExpectErrors("", 0, LogJudge::kAnyNumber);
  EXPECT_TRUE(Holds(judge.Judge(kEnd), "not announced"));
  judge.ExpectSessionEnds("", 0, LogJudge::kAnyNumber);
  EXPECT_TRUE(Holds(judge.Judge(kError), "not announced"));
}

TEST(LogJudgeTest, NobodyWhoLivesHasEnded) {
  const auto said_of = [](pid_t pid) {
    return LogJudge().Judge("2026-01-31T12:00:00.123Z info session ended session=7 uid=0 pid=" +
                            std::to_string(pid) + " reason=\"process ended\"\n");
  };
  EXPECT_TRUE(Holds(said_of(::getpid()), "the process lives"));
  const pid_t child = StartChild([] { return 0; });
  siginfo_t info;
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(said_of(child), "");  // Nobody has waited for it.
  EXPECT_EQ(WaitChild(child), 0);
  EXPECT_EQ(said_of(child), "");
}

// A client that is hung up on: a first message that is not a hello.
void BeHungUpOn(const TestDaemon& daemon) {
  RawClient client(daemon.runtime_dir());
  ASSERT_TRUE(client.SendOpen(1, "m"));
  EXPECT_TRUE(client.Receive().closed);
}

TEST(TestDaemonTest, ASessionThatTheDaemonEndsFailsTheTest) {
  TestDaemon daemon;
  BeHungUpOn(daemon);
  EXPECT_NONFATAL_FAILURE(daemon.Stop(), "first message is not a hello");
}

TEST(TestDaemonTest, SoItDoesWhenTheDaemonEndsWithItsObject) {
  EXPECT_NONFATAL_FAILURE(
      {
        TestDaemon daemon;
        BeHungUpOn(daemon);
      },
      "not announced");
}

TEST(TestDaemonTest, AnAnnouncedOneDoesNotAndOneThatNeverComesDoes) {
  TestDaemon daemon;
  daemon.ExpectSessionEnds("first message is not a hello", 1);
  BeHungUpOn(daemon);
  EXPECT_EQ(daemon.Stop(), 0);
  daemon.Start();
  daemon.ExpectSessionEnds("first message is not a hello", 1);
  EXPECT_NONFATAL_FAILURE(daemon.Stop(), "announced, but seen 0 times and not 1");
}

TEST(TestDaemonTest, AClientThatEndsItselfIsNoEndOfTheDaemons) {
  TestDaemon daemon;
  trims_client* const client = daemon.Connect();
  EXPECT_EQ(trims_client_ping(client, nullptr), TRIMS_OK);
  trims_client_disconnect(client);
  const pid_t killed = StartChild([&] {
    ::kill(::getpid(), daemon.Connect() != nullptr ? SIGKILL : SIGTERM);
    return 0;
  });
  EXPECT_EQ(WaitChild(killed), 1000 + SIGKILL);
  EXPECT_EQ(daemon.Stop(), 0);
}

TEST(TestDaemonTest, ALieAboutAProcessThatEndsLaterIsFoundWhileItLives) {
  TestDaemon daemon;
  const pid_t child = StartChild([] { return ::pause(); });
  std::ofstream(daemon.root() + "/log", std::ios::app)
      << "2026-01-31T12:00:00.123Z info session ended session=7 uid=0 pid=" << child
      << " reason=\"process ended\"\n";
  EXPECT_TRUE(Eventually([&] { return std::filesystem::file_size(daemon.root() + "/lies") > 0; }));
  ::kill(child, SIGKILL);
  EXPECT_EQ(WaitChild(child), 1000 + SIGKILL);
  EXPECT_NONFATAL_FAILURE(daemon.Stop(), "the process lived");
}

TEST(TestDaemonTest, AnErrorInTheLogFailsTheTest) {
  TestDaemon daemon;
  const pid_t worker = *daemon.Worker();
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return daemon.Worker() && *daemon.Worker() != worker; }));
  EXPECT_NONFATAL_FAILURE(daemon.Stop(), ", starting another");
}

}  // namespace
}  // namespace trims::testing_support

// The command line itself: words, help, options and colours.
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class MainTest : public CliTest {};

TEST_F(MainTest, UnknownCommandsGetASuggestion) {
  const Outcome outcome = Run({"laod", "vgg16"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err,
            "trims: there is no command \"laod\"\nhint: did you mean \"trims load\"?\n");
  EXPECT_THAT(Run({"frobnicate"}).err, HasSubstr("\"trims --help\" lists"));
}

TEST_F(MainTest, WrongArgumentsAreExitCodeTwo) {
  for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                {"--bogus"},
                                                {"ls", "--bogus"},
                                                {"ls", "extra"},
                                                {"show"},
                                                {"show", "a", "b"},
                                                {"evict"},
                                                {"add", "onlyname"},
                                                {"completion"},
                                                {"completion", "tcsh"},
                                                {"config", "shwo"},
                                                {"load", "x", "--tier"},
                                                {"load", "x", "--device"},
                                                {"bench"},
                                                {"bench", "opne"},
                                                {"bench", "open", "--size", "512"},
                                                {"bench", "open", "--size", "1KiB"},
                                                {"bench", "open", "--runs", "0"},
                                                {"bench", "open", "--tensors", "0"},
                                                {"bench", "open", "--sparse", "--dense"},
                                                {"bench", "load", "--dir", "/nonexistent"},
                                                {"bench", "copy", "--device", "host"},
                                                {"bench", "copy", "--from", "disk"}}) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.code, 2) << testing::PrintToString(words);
    EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: "), HasSubstr("hint: ")))
        << testing::PrintToString(words);
    EXPECT_THAT(outcome.out, IsEmpty()) << testing::PrintToString(words);
  }
}

TEST_F(MainTest, HelpGoesToStdoutAndNamesTheExitCodes) {
  const Outcome outcome = Run({"--help"});
  EXPECT_EQ(outcome.code, 0);
  for (const char* word :
       {"serve",  "add",    "ls",         "ps",      "show",
        "load",   "evict",  "pin",        "unpin",   "rm",
        "verify", "leases", "watch",      "status",  "config",
        "bench",  "doctor", "completion", "version", "7  the daemon can not be reached"}) {
    EXPECT_THAT(outcome.out, HasSubstr(word));
  }
  EXPECT_THAT(Run({"load", "--help"}).out,
              AllOf(HasSubstr("--granularity"), HasSubstr("trims load")));
  EXPECT_THAT(Run({"--version"}).out, StartsWith("trims "));
}

TEST_F(MainTest, ColoursOnlyOnATerminalThatWantsThem) {
  EXPECT_THAT(Run({"ls"}).err, Not(HasSubstr("\033[")));
  EXPECT_THAT(Spawn({"ls"}, {.err = 100})->Wait().err, HasSubstr("\033["));
  std::vector<std::string> environment = Environment();
  environment.push_back("NO_COLOR=1");
  Process process({"ls"}, environment, {.err = 100});
  EXPECT_THAT(process.Wait().err, Not(HasSubstr("\033[")));
}

TEST_F(MainTest, EveryCommandHasHelpThatNamesIt) {
  for (const Words& words : {Words{"add"},
                             {"ls"},
                             {"ps"},
                             {"show"},
                             {"load"},
                             {"evict"},
                             {"pin"},
                             {"unpin"},
                             {"rm"},
                             {"verify"},
                             {"leases"},
                             {"watch"},
                             {"status"},
                             {"config"},
                             {"config", "show"},
                             {"config", "check"},
                             {"config", "default"},
                             {"bench"},
                             {"bench", "open"},
                             {"bench", "load"},
                             {"bench", "copy"},
                             {"doctor"},
                             {"completion"},
                             {"version"}}) {
    Words asked = words;
    asked.emplace_back("--help");
    const Outcome outcome = Run(asked);
    EXPECT_EQ(outcome.code, 0) << testing::PrintToString(words);
    std::string usage = "trims";
    for (const std::string& word : words) usage += " " + word;
    EXPECT_THAT(outcome.out, HasSubstr(usage));
    EXPECT_THAT(outcome.err, IsEmpty());
  }
}

TEST_F(MainTest, WrongArgumentsNameTheCommandWhoseHelpToRead) {
  EXPECT_THAT(Run({"bench", "open", "--runs", "0"}).err,
              EndsWith("hint: \"trims bench open --help\" shows what is accepted\n"));
  EXPECT_THAT(Run({"--bogus"}).err, EndsWith("hint: \"trims --help\" lists the commands\n"));
}

TEST_F(MainTest, AliasesAreCommandsAndSuggestions) {
  StartDaemon();
  EXPECT_EQ(Run({"list"}).out, Run({"ls"}).out);
  EXPECT_THAT(Run({"prefech"}).err, HasSubstr("did you mean \"trims prefetch\"?"));
  EXPECT_THAT(Run({"--runtime-dir", "/x", "stat"}).err, HasSubstr("no command \"stat\""));
}

TEST_F(MainTest, AResultThatCanNotBeWrittenIsAFailure) {
  StartDaemon();
  int code = -1;
  const std::string err =
      Shell("TRIMS_RUNTIME_DIR=" + directory_ + " " TRIMS_PROGRAM " ls 2>&1 >/dev/full", &code);
  EXPECT_EQ(code, 1);
  EXPECT_THAT(err, AllOf(StartsWith("trims: writing the result"), HasSubstr("No space left")));
}

TEST_F(MainTest, ATerminalThatIsDumbGetsNoColours) {
  std::vector<std::string> environment = {"TRIMS_RUNTIME_DIR=" + directory_, "TERM=dumb"};
  Process process({"ls"}, environment, {.err = 100});
  EXPECT_THAT(process.Wait().err, AllOf(HasSubstr("trims: "), Not(HasSubstr("\033["))));
}

}  // namespace
}  // namespace trims::cli

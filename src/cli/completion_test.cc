// `trims completion`: scripts for three shells, run where these are.
#include <filesystem>
#include <fstream>
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class CompletionTest : public CliTest {};

TEST_F(CompletionTest, BashCompletesCommandsOptionsAndModels) {
  StartDaemon();
  const std::string script = directory_ + "/trims.bash";
  std::ofstream(script) << Run({"completion", "bash"}).out;
  int code = -1;
  Shell("bash -n " + script, &code);
  ASSERT_EQ(code, 0);
  const auto complete = [&](const std::string& words) {
    // The last word is being completed.
    return Shell("PATH=" + std::filesystem::path(TRIMS_PROGRAM).parent_path().string() +
                     ":$PATH TRIMS_RUNTIME_DIR=" + directory_ + " bash -c 'source " + script +
                     "; COMP_WORDS=(" + words +
                     "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _trims; printf \"%s\\n\" "
                     "\"${COMPREPLY[@]}\"' 2>&1",
                 &code);
  };
  EXPECT_EQ(complete("trims lea"), "leases\n");
  EXPECT_THAT(complete("trims \"\""), AllOf(HasSubstr("evict\n"), HasSubstr("completion\n")));
  EXPECT_EQ(complete("trims load --gran"), "--granularity\n");
  EXPECT_EQ(complete("trims load --json vg"), "vgg16\n");
  EXPECT_EQ(complete("trims stop vg"), "vgg16\n");
  EXPECT_EQ(complete("trims --runtime-dir " + directory_ + " show vg"), "vgg16\n");
  EXPECT_EQ(complete("trims load --granularity l"), "layer\n");
  EXPECT_EQ(complete("trims ben"), "bench\n");
  EXPECT_EQ(complete("trims bench lo"), "load\n");
  EXPECT_EQ(complete("trims bench load --fro"), "--from\n");
  EXPECT_EQ(complete("trims bench load --from pag"), "page-cache\n");
  EXPECT_EQ(complete("trims config sh"), "show\n");
  EXPECT_EQ(complete("trims config show --lo"), "--local\n");
  EXPECT_EQ(complete("trims completion z"), "zsh\n");
}

TEST_F(CompletionTest, ZshAndFishScriptsParseWhereTheseShellsAre) {
  for (const std::string shell : {"zsh", "fish"}) {
    const Outcome outcome = Run({"completion", shell});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, AllOf(HasSubstr("granularity"), HasSubstr("trims ls -q")));
    int code = -1;
    Shell("command -v " + shell, &code);
    if (code != 0) continue;
    const std::string script = directory_ + "/script." + shell;
    std::ofstream(script) << outcome.out;
    EXPECT_EQ((Shell(shell + " -n " + script + " 2>&1", &code)), "");
    EXPECT_EQ(code, 0) << shell;
  }
}

// What bash offers for the last of `words`, without a daemon unless one was started.
class BashCompletionTest : public CompletionTest {
 protected:
  void SetUp() override {
    CompletionTest::SetUp();
    script_ = directory_ + "/trims.bash";
    std::ofstream(script_) << Run({"completion", "bash"}).out;
  }
  Words Complete(const std::string& words) {
    int code = -1;
    const std::string out =
        Shell("PATH=" + std::filesystem::path(TRIMS_PROGRAM).parent_path().string() +
                  ":$PATH TRIMS_RUNTIME_DIR=" + directory_ + " bash -c 'source " + script_ +
                  "; cd " + directory_ + "; COMP_WORDS=(" + words +
                  "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _trims; printf \"%s\\n\" "
                  "\"${COMPREPLY[@]}\"' 2>&1",
              &code);
    EXPECT_EQ(code, 0) << out;
    return Lines(out);
  }

  std::string script_;
};

TEST_F(BashCompletionTest, EveryCommandOfTheHelpIsOffered) {
  const Words offered = Complete("trims \"\"");
  for (const char* command :
       {"serve", "add", "ls", "ps", "show", "load", "evict", "pin", "unpin", "rm", "verify",
        "leases", "watch", "status", "config", "bench", "doctor", "completion", "version"}) {
    EXPECT_THAT(offered, testing::Contains(command));
  }
}

TEST_F(BashCompletionTest, OptionsOfTheRootAreOfferedBehindEveryCommand) {
  for (const char* words : {"trims ls --", "trims bench open --", "trims config show --"}) {
    EXPECT_THAT(Complete(words),
                AllOf(testing::Contains("--json"), testing::Contains("--runtime-dir")))
        << words;
  }
}

TEST_F(BashCompletionTest, ValuesAreOfferedWhereOnesAreExpected) {
  EXPECT_THAT(Complete("trims load x --granularity \"\""),
              ElementsAre("auto", "model", "slab", "layer"));
  EXPECT_THAT(Complete("trims load x --device \"\""), ElementsAre("gpu:"));
  EXPECT_THAT(Complete("trims load x --tier h"), ElementsAre("host"));
  EXPECT_THAT(Complete("trims load x --keep-alive \"\""), ElementsAre(""));  // No word fits.
}

TEST_F(BashCompletionTest, DirectoriesAreOfferedWhereOnesAreExpectedAndFilesWhereThese) {
  std::filesystem::create_directory(directory_ + "/some-folder");
  std::ofstream(directory_ + "/some-file.toml") << "";
  EXPECT_THAT(Complete("trims --runtime-dir some"), ElementsAre("some-folder"));
  EXPECT_THAT(Complete("trims bench open --dir some"), ElementsAre("some-folder"));
  EXPECT_THAT(Complete("trims config check some"),
              testing::UnorderedElementsAre("some-folder", "some-file.toml"));
}

TEST_F(BashCompletionTest, WithoutADaemonNoModelsAreOfferedAndNothingIsSaid) {
  EXPECT_THAT(Complete("trims show v"), ElementsAre(""));
}

TEST_F(BashCompletionTest, TheOptionBeforeACommandDoesNotHideIt) {
  EXPECT_THAT(Complete("trims --json --runtime-dir /x bench lo"), ElementsAre("load"));
}

TEST_F(CompletionTest, ScriptsAreForTheShellThatWasNamed) {
  EXPECT_THAT(Run({"completion", "bash"}).out, EndsWith("complete -F _trims trims\n"));
  EXPECT_THAT(Run({"completion", "zsh"}).out, StartsWith("#compdef trims\n"));
  EXPECT_THAT(Run({"completion", "fish"}).out,
              HasSubstr("complete -c trims -n __fish_use_subcommand -a ls -d "));
}

TEST_F(CompletionTest, FishHasEveryCommandWithItsHelpInQuotes) {
  const Outcome outcome = Run({"completion", "fish"});
  for (const std::string& line : Lines(outcome.out)) {
    EXPECT_THAT(line, testing::AnyOf(StartsWith("# "), StartsWith("complete -c trims"))) << line;
    size_t quotes = 0;
    for (size_t i = 0; i < line.size(); ++i) {
      quotes += line[i] == '\'' && (i == 0 || line[i - 1] != '\\');
    }
    EXPECT_EQ(quotes % 2, 0u) << line;
  }
  EXPECT_THAT(
      outcome.out,
      HasSubstr("-n '__fish_seen_subcommand_from evict stop' -a '(trims ls -q 2>/dev/null)'"));
}

TEST_F(CompletionTest, ZshHasEveryCommandAndItsAliasesAsOnePattern) {
  const std::string script = Run({"completion", "zsh"}).out;
  for (const char* pattern : {"    'evict'|'stop')\n", "    'ls'|'list')\n", "    'bench open')\n",
                              "    'completion')\n"}) {
    EXPECT_THAT(script, HasSubstr(pattern));
  }
  EXPECT_THAT(script, HasSubstr("entries=(bash zsh fish)\n"));
}

}  // namespace
}  // namespace trims::cli

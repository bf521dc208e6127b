// `trims version`.
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class VersionTest : public CliTest {};

TEST_F(VersionTest, VersionNamesBothSides) {
  EXPECT_THAT(Run({"version"}).out, HasSubstr("daemon not reachable"));
  EXPECT_EQ(json::parse(Run({"version", "--json"}).out)["daemon_version"], nullptr);
  StartDaemon();
  backend_.set_version("9.9.9");
  const Outcome outcome = Run({"version"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.out, AllOf(StartsWith("trims "), HasSubstr("daemon 9.9.9\n")));
}

TEST_F(VersionTest, ADaemonThatDoesNotAnswerIsNoFailure) {
  backend_.set_unary_error(UnavailableError("the worker is being restarted"));
  StartDaemon();
  const Outcome outcome = Run({"version"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.out, EndsWith("daemon not reachable\n"));
  EXPECT_THAT(outcome.err, IsEmpty());
}

TEST_F(VersionTest, JsonHasBothSides) {
  backend_.set_version("9.9.9");
  StartDaemon();
  const json version = RunJson({"version"});
  EXPECT_EQ(version["daemon_version"], "9.9.9");
  EXPECT_EQ("trims " + version["version"].get<std::string>() + "\n", Run({"--version"}).out);
}

}  // namespace
}  // namespace trims::cli

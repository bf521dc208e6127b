// Where every command looks for the daemon, and what its exit code says.
#include "cli/command.h"

#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class CommandTest : public CliTest {};

TEST_F(CommandTest, TheFlagOverridesTheEnvironment) {
  StartDaemon();
  EXPECT_EQ(Run({"--runtime-dir", "/nonexistent", "ls"}).code, 7);
  EXPECT_EQ(Run({"ls", "--runtime-dir=/nonexistent"}).code, 7);
  Process process({"ls", "-q", "--runtime-dir", directory_}, {"TRIMS_RUNTIME_DIR=/nonexistent"});
  EXPECT_EQ(process.Wait().code, 0);
}

TEST_F(CommandTest, TheDirectoryMayComeFromTheConfigurationFile) {
  StartDaemon();
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "runtime_dir = \"" << directory_ << "\"\n";
  Process process({"ls", "-q"}, {"TRIMS_CONFIG=" + path, "TRIMS_MISSPELT=1"});
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "lenet:1\nvgg16\n");
}

TEST_F(CommandTest, TheDefaultDirectoryIsTheDaemons) {
  if (::geteuid() == 0) {
    Process process({"config", "show", "--local", "--json"}, {"HOME=/root"});
    EXPECT_THAT(process.Wait().out, HasSubstr("\"/run/trims\""));
    return;
  }
  Process process({"ls"}, {"XDG_RUNTIME_DIR=" + directory_});
  EXPECT_THAT(process.Wait().err, HasSubstr(directory_ + "/trims"));
  Process other({"ls"}, {});
  EXPECT_THAT(other.Wait().err, HasSubstr("/tmp/trims-" + std::to_string(::geteuid())));
}

TEST_F(CommandTest, AConfigurationFileThatCanNotBeReadIsAnErrorBeforeAnythingElse) {
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "runtime_dir = [1\n";
  Process process({"ls"}, {"TRIMS_CONFIG=" + path});
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr(path), HasSubstr("hint: correct the setting, or name "
                                                            "the directory of the daemon's")));
}

TEST(ExitCodeTest, EveryStatusHasOne) {
  const std::pair<Status, ExitCode> codes[] = {
      {OkStatus(), ExitCode::kOk},
      {InvalidArgumentError("x"), ExitCode::kUsage},
      {NotFoundError("x"), ExitCode::kNotFound},
      {FailedPreconditionError("x"), ExitCode::kBusy},
      {ResourceExhaustedError("x"), ExitCode::kNoCapacity},
      {DataLossError("x"), ExitCode::kIntegrity},
      {UnavailableError("x"), ExitCode::kUnreachable},
      {CancelledError("x"), ExitCode::kFailure},
      {InternalError("x"), ExitCode::kFailure},
  };
  for (const auto& [status, code] : codes) EXPECT_EQ(ExitCodeOf(status), code) << status.ToString();
}

}  // namespace
}  // namespace trims::cli

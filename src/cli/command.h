// What every command of `trims` starts from.
//
// One file per command: `x.cc` defines `void AddXCommand(CLI::App&, Context&)`,
// declared below, which adds the subcommand with its options and says by OnRun
// what it does. main.cc calls them all. The program has one Context for its whole
// life; a command may keep a reference to it. One thread.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace CLI {
class App;
}

namespace trims::cli {

class Connection;

// Stable: scripts depend on these.
enum class ExitCode : int {
  kOk = 0,
  kFailure = 1,
  kUsage = 2,
  kNotFound = 3,
  kBusy = 4,
  kNoCapacity = 5,
  kIntegrity = 6,
  kUnreachable = 7,
};
// The table of the above for a Status.
ExitCode ExitCodeOf(const Status& status);

struct Context {
  std::string runtime_dir_flag;  // --runtime-dir, "" when not given.
  bool json = false;             // --json
  std::string program;           // argv[0]
  CLI::App* app = nullptr;       // The root, for completion.

  // Set by OnRun; main.cc calls it after the command line was accepted.
  std::function<ExitCode()> run;
};

// Makes `run` what the program does when `command` is given. `run` may keep
// references to options that live as long as the Context (use shared_ptr).
void OnRun(CLI::App* command, Context& context, std::function<ExitCode()> run);

// The same for a command that talks to the daemon: connects first, and fails with
// kUnreachable and a hint when it can not.
void OnRunWithDaemon(CLI::App* command, Context& context,
                     std::function<ExitCode(Connection& daemon)> run);

// --- Output ------------------------------------------------------------------

// Writes a result to stdout.
void Print(std::string_view text);
// Errors, progress and advice go to stderr:
//   trims: <message>
//   hint: <what to do next>
// Returns the exit code for `status`. Without a hint the one for its code is used.
ExitCode Fail(const Status& status, std::string_view hint = "");
// A wrong command line: exit code 2.
ExitCode FailUsage(std::string_view message, std::string_view hint = "");

// --- Places ------------------------------------------------------------------

// --runtime-dir, else what the daemon's own configuration says: TRIMS_RUNTIME_DIR,
// trims.toml, and the default (/run/trims for root, else $XDG_RUNTIME_DIR/trims,
// else /tmp/trims-<uid>).
Result<std::string> RuntimeDir(const Context& context);

// --- Commands, in the order of --help ----------------------------------------

void AddServeCommand(CLI::App& app, Context& context);
void AddAddCommand(CLI::App& app, Context& context);
void AddLsCommand(CLI::App& app, Context& context);
void AddPsCommand(CLI::App& app, Context& context);
void AddShowCommand(CLI::App& app, Context& context);
void AddLoadCommand(CLI::App& app, Context& context);
void AddEvictCommand(CLI::App& app, Context& context);
void AddPinCommand(CLI::App& app, Context& context);
void AddUnpinCommand(CLI::App& app, Context& context);
void AddRmCommand(CLI::App& app, Context& context);
void AddVerifyCommand(CLI::App& app, Context& context);
void AddLeasesCommand(CLI::App& app, Context& context);
// Defined by the target trims_cli_predict: predict.cc with its own libraries, in
// predict.cmake. Without that file the program is built without this command.
void AddPredictCommand(CLI::App& app, Context& context);
void AddWatchCommand(CLI::App& app, Context& context);
void AddStatusCommand(CLI::App& app, Context& context);
void AddConfigCommand(CLI::App& app, Context& context);
void AddBenchCommand(CLI::App& app, Context& context);
void AddDoctorCommand(CLI::App& app, Context& context);
void AddCompletionCommand(CLI::App& app, Context& context);
void AddVersionCommand(CLI::App& app, Context& context);

}  // namespace trims::cli

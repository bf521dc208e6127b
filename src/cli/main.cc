// trims: the program by which people and scripts talk to the daemon.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "base/status.h"
#include "cli/command.h"
#include "cli/text.h"
#include "trims/trims.hpp"

namespace trims::cli {
namespace {

constexpr char kFooter[] =
    "\nExit codes:\n"
    "  0  done\n"
    "  1  failed\n"
    "  2  wrong command line or argument\n"
    "  3  no such model, tier or file\n"
    "  4  in use: leased, pinned or loading\n"
    "  5  no capacity\n"
    "  6  wrong bytes: a checksum differs\n"
    "  7  the daemon can not be reached\n"
    "\nEnvironment:\n"
    "  TRIMS_RUNTIME_DIR  directory of the daemon's sockets, as --runtime-dir\n"
    "  TRIMS_CONFIG       configuration file that may name that directory\n"
    "  NO_COLOR           no colours, when set to anything\n";

void AddCommands(CLI::App& app, Context& context) {
  AddServeCommand(app, context);
  AddAddCommand(app, context);
  AddLsCommand(app, context);
  AddPsCommand(app, context);
  AddShowCommand(app, context);
  AddLoadCommand(app, context);
  AddEvictCommand(app, context);
  AddPinCommand(app, context);
  AddUnpinCommand(app, context);
  AddRmCommand(app, context);
  AddVerifyCommand(app, context);
  AddLeasesCommand(app, context);
#ifdef TRIMS_HAVE_PREDICT
  AddPredictCommand(app, context);
#endif
  AddWatchCommand(app, context);
  AddStatusCommand(app, context);
  AddConfigCommand(app, context);
  AddBenchCommand(app, context);
  AddDoctorCommand(app, context);
  AddCompletionCommand(app, context);
  AddVersionCommand(app, context);
}

// The first word that is neither an option nor an option's value.
std::string CommandWord(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--runtime-dir") {
      ++i;
    } else if (!arguments[i].starts_with("-")) {
      return arguments[i];
    }
  }
  return "";
}

// Of the command that was being parsed: "trims load".
std::string HelpCommand(const CLI::App& app) {
  std::string words = "trims";
  const CLI::App* deepest = &app;
  while (!deepest->get_subcommands().empty()) {
    deepest = deepest->get_subcommands().front();
    words += " " + deepest->get_name();
  }
  return words + " --help";
}

ExitCode Run(const std::vector<std::string>& arguments, const char* program) {
  Context context;
  context.program = program;
  CLI::App app("Keeps deep-learning weights resident on this machine and lends them to processes.",
               "trims");
  context.app = &app;
  app.fallthrough();  // --json and --runtime-dir also after the command.
  app.require_subcommand(1);
  app.add_option("--runtime-dir", context.runtime_dir_flag, "Directory of the daemon's sockets")
      ->type_name("DIR");
  app.add_flag("--json", context.json, "Results as JSON; progress and events as JSON lines");
  app.set_version_flag("--version", "trims " TRIMS_VERSION_STRING);
  AddCommands(app, context);
  app.footer(kFooter);  // After the commands, which would inherit it.

  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
    for (const std::string& alias : command->get_aliases()) commands.push_back(alias);
  }
  const std::string word = CommandWord(arguments);
  if (!word.empty() && std::find(commands.begin(), commands.end(), word) == commands.end()) {
    const std::string nearest = Nearest(word, commands);
    return FailUsage("there is no command \"" + word + "\"",
                     nearest.empty() ? "\"trims --help\" lists the commands"
                                     : "did you mean \"trims " + nearest + "\"?");
  }

  try {
    // CLI11 takes the words in reverse.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    const CLI::App* deepest = &app;
    std::string prefix;
    while (!deepest->get_subcommands().empty()) {
      prefix += (prefix.empty() ? "" : " ") + deepest->get_name();
      deepest = deepest->get_subcommands().front();
    }
    Print(deepest->help(prefix));
    return ExitCode::kOk;
  } catch (const CLI::CallForVersion& version) {
    Print(std::string(version.what()) + "\n");
    return ExitCode::kOk;
  } catch (const CLI::ParseError& error) {
    if (word.empty()) {
      return FailUsage("no command was given", "\"trims --help\" lists the commands");
    }
    return FailUsage(error.what(), "\"" + HelpCommand(app) + "\" shows what is accepted");
  }
  return context.run();
}

}  // namespace
}  // namespace trims::cli

int main(int argc, char** argv) {
  using trims::cli::ExitCode;
  ExitCode code = ExitCode::kFailure;
  try {
    code = trims::cli::Run(std::vector<std::string>(argv + 1, argv + argc), argv[0]);
  } catch (const std::exception& error) {  // Of libraries: out of memory, and bugs.
    trims::cli::Fail(trims::InternalError(error.what()));
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    trims::cli::Fail(trims::ErrnoStatus(errno, "writing the result"));
    if (code == ExitCode::kOk) code = ExitCode::kFailure;
  }
  return static_cast<int>(code);
}

// trims serve: becomes trimsd, in the foreground.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "cli/command.h"

namespace trims::cli {
namespace {

constexpr char kDaemon[] = "trimsd";

// Beside this program, in ../libexec, in the folder of the build tree, then on PATH.
std::vector<std::string> Candidates() {
  std::vector<std::string> candidates;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path directory = self.parent_path();
    candidates.push_back(directory / kDaemon);
    candidates.push_back(directory.parent_path() / "libexec" / kDaemon);
    candidates.push_back(directory.parent_path() / "libexec" / "trims" / kDaemon);
    candidates.push_back(directory.parent_path() / "daemon" / kDaemon);
  }
  if (const char* path = std::getenv("PATH"); path != nullptr) {
    std::istringstream parts(path);
    std::string part;
    while (std::getline(parts, part, ':')) {
      if (!part.empty()) candidates.push_back(part + "/" + kDaemon);
    }
  }
  return candidates;
}

ExitCode RunServe(const Context& context, const std::vector<std::string>& arguments) {
  for (const std::string& candidate : Candidates()) {
    if (::access(candidate.c_str(), X_OK) != 0) continue;
    std::vector<std::string> words = {candidate};
    if (!context.runtime_dir_flag.empty()) {
      words.insert(words.end(), {"--runtime-dir", context.runtime_dir_flag});
    }
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(candidate.c_str(), argv.data());
    return Fail(ErrnoStatus(errno, "starting " + candidate));
  }
  return Fail(Status(StatusCode::kUnknown,
                     "trimsd was not found beside this program, in ../libexec, or on PATH"),
              "install the daemon, or put its directory on PATH");
}

}  // namespace

void AddServeCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "serve", "Run the daemon in the foreground; options are trimsd's (trims serve --help)");
  command->alias("start");
  // Everything after the word is the daemon's, --help too.
  command->set_help_flag();
  command->fallthrough(false);
  command->prefix_command();
  OnRun(command, context, [&context, command] { return RunServe(context, command->remaining()); });
}

}  // namespace trims::cli

#include "cli/command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <utility>

#include "cli/connection.h"
#include "cli/text.h"
#include "daemon/config_layers.h"

namespace trims::cli {
namespace {

std::string_view DefaultHint(StatusCode code) {
  switch (code) {
    case StatusCode::kNotFound:
      return "\"trims ls\" shows the models that the daemon knows; \"trims add\" names another";
    case StatusCode::kFailedPrecondition:
      return "\"trims ps\" and \"trims leases\" show what is in use and by whom";
    case StatusCode::kResourceExhausted:
      return "\"trims ps\" shows what takes the room; free some with \"trims evict MODEL\", or "
             "raise the daemon's memory_percentage";
    case StatusCode::kDataLoss:
      return "the bytes are not what they were; compare the file with its origin, and run "
             "\"trims verify\"";
    case StatusCode::kUnavailable:
      return "the daemon is stopping or starting its worker again; repeat the command, and see "
             "\"trims doctor\"";
    case StatusCode::kPermissionDenied:
      return "the daemon reads files under its own user: check the owner and mode of the path and "
             "of the directories above it";
    case StatusCode::kAborted:
      return "a file changed while it was read; repeat the command when nobody writes it";
    case StatusCode::kAlreadyExists:
      return "choose another name, or give --replace";
    case StatusCode::kUnimplemented:
      return "the daemon is older than this program; compare with \"trims version\"";
    case StatusCode::kDeadlineExceeded:
      return "see what the daemon is doing with \"trims ps\" and in its log";
    default:
      return "";
  }
}

void PrintError(std::string_view message, std::string_view hint) {
  const bool color = UseColor(STDERR_FILENO);
  std::string text;
  text.append(color ? "\033[1;31mtrims:\033[0m " : "trims: ").append(Printable(message));
  text.append("\n");
  if (!hint.empty()) text.append("hint: ").append(Printable(hint)).append("\n");
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace

ExitCode ExitCodeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return ExitCode::kOk;
    case StatusCode::kInvalidArgument:
      return ExitCode::kUsage;
    case StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case StatusCode::kFailedPrecondition:
      return ExitCode::kBusy;
    case StatusCode::kResourceExhausted:
      return ExitCode::kNoCapacity;
    case StatusCode::kDataLoss:
      return ExitCode::kIntegrity;
    case StatusCode::kUnavailable:
      return ExitCode::kUnreachable;
    default:
      return ExitCode::kFailure;
  }
}

void OnRun(CLI::App* command, Context& context, std::function<ExitCode()> run) {
  command->final_callback([&context, run = std::move(run)] { context.run = run; });
}

void OnRunWithDaemon(CLI::App* command, Context& context,
                     std::function<ExitCode(Connection& daemon)> run) {
  OnRun(command, context, [&context, run = std::move(run)] {
    Result<std::string> directory = RuntimeDir(context);
    if (!directory.ok()) {
      return Fail(directory.status(),
                  "correct the setting, or name the directory of the daemon's "
                  "sockets with --runtime-dir");
    }
    Result<Connection> daemon = Connection::Open(*directory);
    if (!daemon.ok()) return Fail(daemon.status(), Connection::HintFor(*directory));
    return run(*daemon);
  });
}

void Print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

ExitCode Fail(const Status& status, std::string_view hint) {
  std::string message = status.message();
  if (message.empty()) message = StatusCodeName(status.code());
  PrintError(message, hint.empty() ? DefaultHint(status.code()) : hint);
  return ExitCodeOf(status);
}

ExitCode FailUsage(std::string_view message, std::string_view hint) {
  PrintError(message, hint);
  return ExitCode::kUsage;
}

Result<std::string> RuntimeDir(const Context& context) {
  if (!context.runtime_dir_flag.empty()) return context.runtime_dir_flag;
  // Only this one setting is of interest: misspelt variables and bad values of
  // others are the daemon's to complain about, and `trims config show --local`'s.
  const auto getenv = [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
  if (const auto directory = getenv("TRIMS_RUNTIME_DIR"); directory && !directory->empty()) {
    return *directory;
  }
  ConfigSources sources;
  sources.getenv = [&getenv](const std::string& name) -> std::optional<std::string> {
    if (name.starts_with("XDG_") || name == "HOME") return getenv(name);
    return std::nullopt;
  };
  sources.files = DefaultConfigFiles(getenv);
  ASSIGN_OR_RETURN(LoadedConfig loaded, LoadConfig(sources));
  return std::move(loaded.config.runtime_dir);
}

}  // namespace trims::cli

// trimsd: the daemon. Parses flags, then becomes the keeper; the keeper starts
// this same program again as its worker.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "daemon/config_layers.h"
#include "daemon/keeper.h"
#include "daemon/log.h"
#include "daemon/worker.h"

namespace {

using trims::ConfigSources;
using trims::InvalidArgumentError;
using trims::Result;
using trims::Status;

struct Flags {
  std::map<std::string, std::string> settings;
  std::string config_file;
  bool help = false;
  bool version = false;
};

// "--key value", "--key=value"; every key of the configuration is a flag, with
// '-' for '_'. A flag without a value is "true" (for the next word is a flag, too).
Result<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word == "-h") word = "--help";
    if (!word.starts_with("--") || word.size() == 2) {
      return InvalidArgumentError("unexpected argument \"" + word +
                                  "\"; trimsd takes flags only, see trimsd --help");
    }
    std::string key = word.substr(2);
    std::string value;
    if (key == "help") {
      flags.help = true;
      continue;
    }
    if (key == "version") {
      flags.version = true;
      continue;
    }
    if (const size_t equals = key.find('='); equals != std::string::npos) {
      value = key.substr(equals + 1);
      key.resize(equals);
    } else if (i + 1 < argc && !std::string(argv[i + 1]).starts_with("--")) {
      value = argv[++i];
    } else {
      value = "true";
    }
    if (key == "config") {
      flags.config_file = value;
      continue;
    }
    for (char& c : key) {
      if (c == '-') c = '_';
    }
    flags.settings[key] = value;
  }
  return flags;
}

Result<trims::LoadedConfig> Load(const Flags& flags) {
  ConfigSources sources;
  sources.flags = flags.settings;
  sources.files = flags.config_file.empty() ? trims::DefaultConfigFiles(nullptr)
                                            : std::vector<std::string>{flags.config_file};
  return trims::LoadConfig(sources);
}

void PrintHelp() {
  std::printf(
      "trimsd keeps deep-learning weights resident on this node and lends them to processes.\n\n"
      "Usage: trimsd [--config FILE] [--KEY VALUE]...\n\n"
      "  --config FILE  read this file instead of /etc/trims/trims.toml\n"
      "  --version      print the version\n"
      "  --help         this text\n\n"
      "Settings (flag > environment > trims.toml > default):\n");
  for (const trims::ConfigKey& key : trims::ConfigKeys()) {
    std::printf("  %s %s\n      %s\n      Default: %s. Variable: %s.\n", key.flag.c_str(),
                key.value_name.c_str(), key.help.c_str(),
                key.default_value.empty() ? "none" : key.default_value.c_str(), key.env.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == trims::kWorkerFlag) return trims::RunWorker();
  const Result<Flags> flags = ParseFlags(argc, argv);
  if (!flags.ok()) {
    std::fprintf(stderr, "trimsd: %s\n", flags.status().message().c_str());
    return 2;
  }
  if (flags->help) {
    PrintHelp();
    return 0;
  }
  if (flags->version) {
    std::printf("trimsd %s\n", TRIMS_VERSION_STRING);
    return 0;
  }
  Result<trims::LoadedConfig> config = Load(*flags);
  if (!config.ok()) {
    std::fprintf(stderr, "trimsd: %s\n", config.status().message().c_str());
    return 2;
  }
  const Result<trims::LogLevel> level = trims::ParseLogLevel(config->config.log_level);
  trims::InitLog(trims::LogOptionsFromEnvironment(level.ok() ? *level : trims::LogLevel::kInfo));
  trims::KeeperOptions options;
  options.config = *std::move(config);
  options.reload = [flags = *flags] { return Load(flags); };
  char self[4096];
  const ssize_t length = ::readlink("/proc/self/exe", self, sizeof self - 1);
  options.program = length > 0 ? std::string(self, static_cast<size_t>(length)) : argv[0];
  return trims::RunKeeper(std::move(options));
}

// make-model: model directories of true size with seeded random weights, for
// load tests, benchmarks and golden files. Needs nothing but the C++ library.
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "network.h"
#include "weights_file.h"

namespace trims::models {
namespace {

constexpr char kUsage[] =
    R"(usage: make-model NAME --out DIR [options]

Writes a model directory with random weights that depend on the options alone.

NAME
  lenet       28x28 gray, 431,080 weights
  alexnet     227x227, 62,378,344 weights (238 MiB)
  vgg16       224x224, 138,357,544 weights (528 MiB)
  synthetic   --tensors N tensors of --bytes B in all, without a graph

Options
  --out DIR            folder to write; made if missing
  --seed N             default 1
  --format FORMAT      params (model.params, default) or safetensors (model.safetensors)
  --version VERSION    layout of model.params: V0, V1, V2 (default) or V3
  --tensors N          synthetic only; default 10
  --bytes B            synthetic only; a number, or with KiB, MiB or GiB; default 1MiB
  --width-div N        divide the width of every layer but the last; default 1
  --image-size N       pixels; default the network's own
  --classes N          default 1000, lenet 10
  --with-input         also write input.bin, one random input as raw float32

Files: the weights, and but for synthetic model.symbol, features.txt and manifest.json.
)";

struct Options {
  std::string name;
  std::string out;
  uint64_t seed = 1;
  bool safetensors = false;
  bool version_given = false;
  ParamsVersion version = ParamsVersion::kV2;
  NetworkOptions network;
  bool network_given = false;
  uint64_t tensors = 10;
  uint64_t bytes = 1 << 20;
  bool synthetic_given = false;
  bool with_input = false;
};

[[noreturn]] void Refuse(const std::string& flag, const std::string& value, const char* expected) {
  throw std::invalid_argument(flag + " " + value + ": expected " + expected);
}

uint64_t ParseNumber(const std::string& flag, const std::string& text, uint64_t max) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > max) {
    Refuse(flag, text, ("a whole number up to " + std::to_string(max)).c_str());
  }
  return value;
}

int ParsePositive(const std::string& flag, const std::string& text) {
  const uint64_t value = ParseNumber(flag, text, 1'000'000);
  if (value == 0) Refuse(flag, text, "a number from 1 to 1000000");
  return static_cast<int>(value);
}

uint64_t ParseBytes(const std::string& flag, const std::string& text) {
  constexpr struct {
    const char* suffix;
    int shift;
  } kUnits[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}};
  for (const auto& unit : kUnits) {
    if (text.size() > 3 && text.ends_with(unit.suffix)) {
      return ParseNumber(flag, text.substr(0, text.size() - 3), uint64_t{1} << (44 - unit.shift))
             << unit.shift;
    }
  }
  return ParseNumber(flag, text, uint64_t{1} << 44);
}

ParamsVersion ParseVersion(const std::string& flag, const std::string& text) {
  if (text == "V0") return ParamsVersion::kV0;
  if (text == "V1") return ParamsVersion::kV1;
  if (text == "V2") return ParamsVersion::kV2;
  if (text == "V3") return ParamsVersion::kV3;
  Refuse(flag, text, "V0, V1, V2 or V3");
}

Options ParseOptions(const std::vector<std::string>& args) {
  Options options;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string flag = args[i];
    std::string value;
    bool has_value = false;
    if (flag.starts_with("--") && flag.find('=') != std::string::npos) {
      value = flag.substr(flag.find('=') + 1);
      flag.resize(flag.find('='));
      has_value = true;
    }
    const auto take = [&]() -> const std::string& {
      if (!has_value) {
        if (++i == args.size()) throw std::invalid_argument(flag + " needs a value");
        value = args[i];
      }
      return value;
    };
    if (flag == "--out") {
      options.out = take();
    } else if (flag == "--seed") {
      options.seed = ParseNumber(flag, take(), UINT64_MAX);
    } else if (flag == "--format") {
      if (take() != "params" && value != "safetensors")
        Refuse(flag, value, "params or safetensors");
      options.safetensors = value == "safetensors";
    } else if (flag == "--version") {
      options.version = ParseVersion(flag, take());
      options.version_given = true;
    } else if (flag == "--width-div") {
      options.network.width_div = ParsePositive(flag, take());
      options.network_given = true;
    } else if (flag == "--image-size") {
      options.network.image_size = ParsePositive(flag, take());
      options.network_given = true;
    } else if (flag == "--classes") {
      options.network.classes = ParsePositive(flag, take());
      options.network_given = true;
    } else if (flag == "--tensors") {
      options.tensors = static_cast<uint64_t>(ParsePositive(flag, take()));
      options.synthetic_given = true;
    } else if (flag == "--bytes") {
      options.bytes = ParseBytes(flag, take());
      options.synthetic_given = true;
    } else if (flag == "--with-input" && !has_value) {
      options.with_input = true;
    } else if (flag.starts_with("-")) {
      throw std::invalid_argument("unknown option " + flag + "; see make-model --help");
    } else if (options.name.empty()) {
      options.name = flag;
    } else {
      throw std::invalid_argument("more than one network: " + options.name + " and " + flag);
    }
  }
  if (options.name.empty()) throw std::invalid_argument("no network named; see make-model --help");
  if (options.out.empty()) throw std::invalid_argument("--out DIR is missing");
  if (options.safetensors && options.version_given) {
    throw std::invalid_argument(
        "--version is a layout of model.params; it means nothing with "
        "--format safetensors");
  }
  const bool synthetic = options.name == "synthetic";
  if (synthetic && (options.network_given || options.with_input)) {
    throw std::invalid_argument(
        "synthetic has no graph: --width-div, --image-size, --classes and "
        "--with-input do not apply");
  }
  if (!synthetic && options.synthetic_given) {
    throw std::invalid_argument("--tensors and --bytes apply to synthetic only");
  }
  return options;
}

std::string Labels(int classes) {
  std::string text;
  for (int i = 0; i < classes; ++i) {
    char line[64];
    std::snprintf(line, sizeof line, "n%08d class %d\n", i, i);
    text += line;
  }
  return text;
}

void Make(const Options& options) {
  const Network network = options.name == "synthetic"
                              ? MakeSynthetic(options.tensors, options.bytes)
                              : MakeNetwork(options.name, options.network);
  std::filesystem::create_directories(options.out);
  const std::string prefix = options.out + "/";
  if (!network.nodes.empty()) {
    WriteText(SymbolJson(network), prefix + "model.symbol");
    WriteText(Labels(network.classes), prefix + "features.txt");
    WriteText(ManifestJson(network), prefix + "manifest.json");
  }
  if (options.with_input) WriteInput(network, options.seed, prefix + "input.bin");
  const std::string weights = prefix + (options.safetensors ? "model.safetensors" : "model.params");
  if (options.safetensors) {
    WriteSafetensors(network, options.seed, weights);
  } else {
    WriteMxnetParams(network, options.seed, options.version, weights);
  }
  std::printf("%s: %zu tensors, %llu bytes of weights\n", weights.c_str(), network.tensors.size(),
              static_cast<unsigned long long>(network.weight_bytes()));
}

}  // namespace
}  // namespace trims::models

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  for (const std::string& arg : args) {
    if (arg == "--help" || arg == "-h") {
      std::fputs(trims::models::kUsage, stdout);
      return 0;
    }
  }
  try {
    trims::models::Make(trims::models::ParseOptions(args));
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "make-model: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make-model: %s\n", error.what());
    return 1;
  }
  return 0;
}

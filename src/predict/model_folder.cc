#include "predict/model_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/limits.h"
#include "base/unique_fd.h"

namespace trims::predict {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxLabelsBytes = 64 * kMiB;
constexpr uint64_t kMaxManifestBytes = kMiB;

// nullopt if there is no such file.
Result<std::optional<std::string>> ReadIfThere(const std::string& path, uint64_t bytes_max) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT || errno == ENOTDIR) return std::optional<std::string>();
    return ErrnoStatus(errno, "opening " + path);
  }
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return ErrnoStatus(errno, "looking at " + path);
  if (!S_ISREG(status.st_mode)) return InvalidArgumentError(path + " is not a file");
  if (static_cast<uint64_t>(status.st_size) > bytes_max) {
    return InvalidArgumentError(path + " has " + std::to_string(status.st_size) +
                                " bytes; at most " + std::to_string(bytes_max) + " were expected");
  }
  std::string text(static_cast<size_t>(status.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "reading " + path);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return std::optional<std::string>(std::move(text));
}

// Wrong kinds of values throw what nlohmann throws; the caller catches.
Manifest FromJson(const Json& json) {
  const Json& input = json.at("inputs").at(0);
  const Json& parameters = input.contains("parameters") ? input.at("parameters") : input;
  Manifest manifest;
  if (input.contains("name")) manifest.input_name = input.at("name").get<std::string>();
  const auto dimensions = parameters.at("dimensions").get<std::vector<int64_t>>();
  manifest.input.channels = dimensions.at(0);
  manifest.input.height = dimensions.at(1);
  manifest.input.width = dimensions.at(2);
  if (parameters.contains("mean")) {
    const Json& mean = parameters.at("mean");
    if (mean.is_number()) {
      manifest.input.mean.assign(manifest.input.channels == 1 ? 1 : 3, mean.get<float>());
    } else {
      manifest.input.mean = mean.get<std::vector<float>>();
    }
  }
  if (parameters.contains("scale")) manifest.input.scale = parameters.at("scale").get<float>();
  return manifest;
}

}  // namespace

std::string BaseName(std::string_view model) {
  while (model.size() > 1 && model.ends_with('/')) model.remove_suffix(1);
  model = model.substr(model.rfind('/') + 1);  // npos + 1 is 0.
  return std::string(model.substr(0, model.find(':')));
}

Result<std::string> ReadSymbol(const std::string& folder, const std::string& name) {
  std::string looked_for;
  for (const std::string& file : {std::string("model.symbol"), name + ".symbol",
                                  name + "-symbol.json", std::string("model-symbol.json")}) {
    ASSIGN_OR_RETURN(std::optional<std::string> text,
                     ReadIfThere(folder + "/" + file, kMaxSymbolJsonBytes));
    if (text) return *std::move(text);
    looked_for += (looked_for.empty() ? "" : ", ") + file;
  }
  return NotFoundError("no graph in " + folder + ": looked for " + looked_for);
}

Result<std::vector<std::string>> ReadLabels(const std::string& folder) {
  std::vector<std::string> labels;
  for (const char* file : {"features.txt", "synset.txt"}) {
    ASSIGN_OR_RETURN(const std::optional<std::string> text,
                     ReadIfThere(folder + "/" + file, kMaxLabelsBytes));
    if (!text) continue;
    for (size_t begin = 0; begin < text->size();) {
      const size_t end = std::min(text->find('\n', begin), text->size());
      std::string line = text->substr(begin, end - begin);
      if (line.ends_with('\r')) line.pop_back();
      labels.push_back(std::move(line));
      begin = end + 1;
    }
    break;
  }
  return labels;
}

Result<Manifest> ParseManifest(std::string_view json, const std::string& description) {
  Manifest manifest;
  try {
    manifest = FromJson(Json::parse(json));
  } catch (const std::exception& error) {
    return InvalidArgumentError(
        description + ": " + error.what() +
        R"(; expected {"inputs": [{"dimensions": [C, H, W], "mean": [...], "scale": s}]})");
  }
  const Status status = CheckImageInput(manifest.input);
  if (!status.ok()) return Status(status.code(), description + ": " + status.message());
  return manifest;
}

Result<std::optional<Manifest>> ReadManifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadIfThere(path, kMaxManifestBytes));
  if (!text) return std::optional<Manifest>();
  ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(*text, path));
  return std::optional<Manifest>(std::move(manifest));
}

}  // namespace trims::predict

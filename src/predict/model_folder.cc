#include "predict/model_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "format/model_files.h"

namespace trims::predict {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxLabelsBytes = 64 * kMiB;
constexpr uint64_t kMaxManifestBytes = kMiB;

Result<UniqueFd> OpenFolder(const std::string& folder) {
  UniqueFd fd(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + folder);
  return fd;
}

Result<std::string> ReadFile(const format::ModelDirectory& folder, const std::string& name,
                             uint64_t bytes_max) {
  const std::string path = folder.path + "/" + name;
  const UniqueFd fd(::openat(folder.fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + path);
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
  return text;
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

Result<std::string> ReadSymbol(const std::string& folder, const std::string& name) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFolder(folder));
  const format::ModelDirectory directory{fd.get(), folder, name};
  ASSIGN_OR_RETURN(const std::string file, format::FindGraph(directory));
  return ReadFile(directory, file, kMaxSymbolJsonBytes);
}

Result<std::vector<std::string>> ReadLabels(const std::string& folder) {
  std::vector<std::string> labels;
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFolder(folder));
  const format::ModelDirectory directory{fd.get(), folder, ""};
  ASSIGN_OR_RETURN(const std::optional<std::string> file, format::FindLabels(directory));
  if (!file) return labels;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(directory, *file, kMaxLabelsBytes));
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    labels.push_back(std::move(line));
    begin = end + 1;
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
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFolder(folder));
  const format::ModelDirectory directory{fd.get(), folder, ""};
  ASSIGN_OR_RETURN(const std::optional<std::string> file, format::FindManifest(directory));
  if (!file) return std::optional<Manifest>();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(directory, *file, kMaxManifestBytes));
  ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(text, folder + "/" + *file));
  return std::optional<Manifest>(std::move(manifest));
}

}  // namespace trims::predict

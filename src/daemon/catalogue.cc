#include "daemon/catalogue.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/unique_fd.h"
#include "format/model_files.h"

namespace trims {
namespace {

// The whole file; nullopt if there is none.
Result<std::optional<std::string>> ReadIfThere(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::optional<std::string>();
    return ErrnoStatus(errno, "opening " + path);
  }
  std::string text;
  std::array<char, 16384> buffer;
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "reading " + path);
    if (n == 0) return std::optional(std::move(text));
    text.append(buffer.data(), static_cast<size_t>(n));
  }
}

}  // namespace

Result<std::unique_ptr<Catalogue>> Catalogue::Open(const std::string& state_dir,
                                                   const std::string& base_dir) {
  std::string base = base_dir;
  while (base.size() > 1 && base.ends_with('/')) base.pop_back();
  std::unique_ptr<Catalogue> catalogue(new Catalogue(state_dir + "/catalogue.json", base));
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadIfThere(catalogue->file_));
  if (!text) return catalogue;
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const std::string broken =
      catalogue->file_ +
      " is not a catalogue that trimsd wrote; move it away and register the models again";
  if (!json.is_object() || !json.contains("models") || !json["models"].is_object())
    return DataLossError(broken);
  const MutexLock lock(catalogue->mu_);
  for (const auto& [name, path] : json["models"].items()) {
    const Result<ModelReference> reference = ParseModelReference(name);
    if (!path.is_string() || !reference.ok() || reference->digest) return DataLossError(broken);
    catalogue->registered_[name] = path.get<std::string>();
  }
  return catalogue;
}

Result<CatalogueEntry> Catalogue::Find(const std::string& name) const {
  {
    const MutexLock lock(mu_);
    if (const auto it = registered_.find(name); it != registered_.end()) {
      return CatalogueEntry{name, it->second, true};
    }
  }
  Result<std::string> path = format::FindModelDirectory(base_dir_, name);
  if (path.ok()) {
    CatalogueEntry entry{name, *std::move(path), false};
    for (const std::string& directory : ModelDirectoryNames(name)) {
      if (entry.path.ends_with("/" + directory)) break;
      entry.passed_over.push_back(base_dir_ + "/" + directory);
    }
    return entry;
  }
  if (path.status().code() != StatusCode::kNotFound) return path.status();
  return NotFoundError("no model named \"" + name + "\": it is not registered, and " +
                       path.status().message() + "; register it with `trims add " + name +
                       " PATH`");
}

Status Catalogue::Add(const std::string& name, const std::string& path, bool replace) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(name));
  if (reference.digest) return InvalidArgumentError("a digest can not be registered as a name");
  const MutexLock lock(mu_);
  std::map<std::string, std::string> entries = registered_;
  const auto it = entries.find(name);
  if (it != entries.end() && it->second != path && !replace) {
    return AlreadyExistsError("\"" + name + "\" is registered for " + it->second +
                              "; remove it first (`trims rm " + name + "`) or use --replace");
  }
  entries[name] = path;
  RETURN_IF_ERROR(Write(entries));
  registered_ = std::move(entries);
  version_.fetch_add(1, std::memory_order_release);
  return OkStatus();
}

Status Catalogue::Remove(const std::string& name) {
  const MutexLock lock(mu_);
  std::map<std::string, std::string> entries = registered_;
  if (entries.erase(name) == 0) {
    if (format::FindModelDirectory(base_dir_, name).ok()) {
      return FailedPreconditionError("\"" + name +
                                     "\" is not registered but found as a directory of " +
                                     base_dir_ + "; remove the directory to remove the name");
    }
    return NotFoundError("no model is registered as \"" + name + "\"; `trims ls` shows the names");
  }
  RETURN_IF_ERROR(Write(entries));
  registered_ = std::move(entries);
  version_.fetch_add(1, std::memory_order_release);
  return OkStatus();
}

std::vector<CatalogueEntry> Catalogue::List() const {
  std::map<std::string, CatalogueEntry> entries;
  std::error_code error;
  for (std::filesystem::directory_iterator it(base_dir_, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (it->is_directory(error) && ParseModelReference(name).ok()) {
      entries[name] = CatalogueEntry{name, it->path().string(), false};
    }
  }
  const MutexLock lock(mu_);
  for (const auto& [name, path] : registered_) entries[name] = CatalogueEntry{name, path, true};
  std::vector<CatalogueEntry> list;
  list.reserve(entries.size());
  for (auto& [name, entry] : entries) list.push_back(std::move(entry));
  return list;
}

// A crash leaves the old or the new catalogue, never half of one.
Status Catalogue::Write(const std::map<std::string, std::string>& entries) const {
  nlohmann::json json;
  json["models"] = nlohmann::json::object();
  for (const auto& [name, path] : entries) json["models"][name] = path;
  std::string text;
  try {
    text = json.dump(2) + "\n";
  } catch (const nlohmann::json::type_error&) {
    return InvalidArgumentError("the path of a registered model must be UTF-8");
  }
  const std::filesystem::path path(file_);
  const std::string directory_name = path.parent_path().string();
  const NewFile file{
      .name = path.filename(), .temporary = path.filename().string() + ".tmp", .mode = 0600};
  const UniqueFd directory(::open(directory_name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return ErrnoStatus(errno, "replacing " + file_);
  // One that a crash left there; only one process has this directory.
  ::unlinkat(directory.get(), file.temporary.c_str(), 0);
  const Status written = ReplaceFileAt(directory.get(), directory_name, file, text);
  if (written.ok()) return written;
  return Status(written.code(), "replacing " + file_ + ": " + written.message());
}

}  // namespace trims

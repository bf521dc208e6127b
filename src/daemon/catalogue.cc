#include "daemon/catalogue.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/limits.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-' || c == ' ';
}

Status CheckPart(std::string_view part, std::string_view what, std::string_view whole) {
  if (part.empty() || part == "." || part == "..") {
    return InvalidArgumentError("model name \"" + std::string(whole.substr(0, 80)) + "\" has " +
                                (part.empty() ? "an empty " : "a forbidden ") + std::string(what) +
                                "; expected [namespace/]name[:version] or @sha256:<digest>");
  }
  return OkStatus();
}

bool IsDirectory(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace

Result<ModelReference> ParseModelReference(std::string_view text) {
  ModelReference reference;
  if (text.empty()) {
    return InvalidArgumentError(
        "model name is empty; expected [namespace/]name[:version] or @sha256:<digest>");
  }
  if (text.size() > kMaxModelNameBytes) {
    return InvalidArgumentError("model name has " + std::to_string(text.size()) +
                                " bytes, at most " + std::to_string(kMaxModelNameBytes) +
                                " are allowed");
  }
  if (text.starts_with("@") || text.starts_with("sha256:")) {
    ASSIGN_OR_RETURN(reference.digest, Digest::Parse(text));
    return reference;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (!IsNameCharacter(c) && c != '/' && c != ':') {
      return InvalidArgumentError("model name has a character that is not allowed (byte " +
                                  std::to_string(static_cast<unsigned char>(c)) + " at position " +
                                  std::to_string(i) +
                                  "); allowed are letters, digits and . _ - / :");
    }
  }
  const size_t slash = text.find('/');
  const size_t colon = text.find(':');
  if ((slash != std::string_view::npos && text.find('/', slash + 1) != std::string_view::npos) ||
      (colon != std::string_view::npos && text.find(':', colon + 1) != std::string_view::npos) ||
      (colon != std::string_view::npos && slash != std::string_view::npos && colon < slash)) {
    return InvalidArgumentError("model name \"" + std::string(text.substr(0, 80)) +
                                "\" has too many parts; expected [namespace/]name[:version]");
  }
  std::string_view rest = text;
  if (slash != std::string_view::npos) {
    RETURN_IF_ERROR(CheckPart(rest.substr(0, slash), "namespace", text));
    rest.remove_prefix(slash + 1);
  }
  if (const size_t at = rest.find(':'); at != std::string_view::npos) {
    RETURN_IF_ERROR(CheckPart(rest.substr(at + 1), "version", text));
    rest = rest.substr(0, at);
  }
  RETURN_IF_ERROR(CheckPart(rest, "name", text));
  reference.name = std::string(text);
  return reference;
}

std::string CanonicalDirectoryName(std::string_view name) {
  std::string canonical(name);
  for (char& c : canonical) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (c == ' ' || c == '-' || c == ':') c = '_';
  }
  return canonical;
}

Result<std::unique_ptr<Catalogue>> Catalogue::Open(const std::string& state_dir,
                                                   const std::string& base_dir) {
  std::string base = base_dir;
  while (base.size() > 1 && base.ends_with('/')) base.pop_back();
  std::unique_ptr<Catalogue> catalogue(new Catalogue(state_dir + "/catalogue.json", base));
  std::ifstream in(catalogue->file_);
  if (!in) return catalogue;
  std::stringstream text;
  text << in.rdbuf();
  const nlohmann::json json =
      nlohmann::json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  const std::string broken =
      catalogue->file_ +
      " is not a catalogue that trimsd wrote; move it away and register the models again";
  if (!json.is_object() || !json.contains("models") || !json["models"].is_object())
    return DataLossError(broken);
  for (const auto& [name, path] : json["models"].items()) {
    if (!path.is_string() || !ParseModelReference(name).ok()) return DataLossError(broken);
    catalogue->registered_[name] = path.get<std::string>();
  }
  return catalogue;
}

Result<CatalogueEntry> Catalogue::Find(const std::string& name) const {
  {
    std::lock_guard lock(mu_);
    if (const auto it = registered_.find(name); it != registered_.end()) {
      return CatalogueEntry{name, it->second, true};
    }
  }
  // A namespace is one more directory level.
  for (const std::string& directory : {name, CanonicalDirectoryName(name)}) {
    const std::string path = base_dir_ + "/" + directory;
    if (IsDirectory(path)) return CatalogueEntry{name, path, false};
  }
  return NotFoundError("no model named \"" + name + "\": it is not registered and " + base_dir_ +
                       " has no directory " + CanonicalDirectoryName(name) +
                       "; register it with `trims add " + name + " PATH`");
}

Status Catalogue::Add(const std::string& name, const std::string& path, bool replace) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(name));
  if (reference.digest) return InvalidArgumentError("a digest can not be registered as a name");
  std::lock_guard lock(mu_);
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
  std::lock_guard lock(mu_);
  std::map<std::string, std::string> entries = registered_;
  if (entries.erase(name) == 0) {
    for (const std::string& directory : {name, CanonicalDirectoryName(name)}) {
      if (ParseModelReference(name).ok() && IsDirectory(base_dir_ + "/" + directory)) {
        return FailedPreconditionError("\"" + name +
                                       "\" is not registered but found as a directory of " +
                                       base_dir_ + "; remove the directory to remove the name");
      }
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
  std::lock_guard lock(mu_);
  for (const auto& [name, path] : registered_) entries[name] = CatalogueEntry{name, path, true};
  std::vector<CatalogueEntry> list;
  list.reserve(entries.size());
  for (auto& [name, entry] : entries) list.push_back(std::move(entry));
  return list;
}

// Temporary file, fsync, rename, fsync of the directory: a crash leaves the old
// or the new catalogue, never half of one.
Status Catalogue::Write(const std::map<std::string, std::string>& entries) const {
  nlohmann::json json;
  json["models"] = nlohmann::json::object();
  for (const auto& [name, path] : entries) json["models"][name] = path;
  const std::string text =
      json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const std::string temporary = file_ + ".tmp";
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, "creating " + temporary);
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::fsync(fd.get()) != 0) {
    return ErrnoStatus(errno, "writing " + temporary);
  }
  if (::rename(temporary.c_str(), file_.c_str()) != 0)
    return ErrnoStatus(errno, "replacing " + file_);
  UniqueFd directory(::open(std::filesystem::path(file_).parent_path().c_str(),
                            O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || ::fsync(directory.get()) != 0)
    return ErrnoStatus(errno, "syncing the state directory");
  return OkStatus();
}

}  // namespace trims

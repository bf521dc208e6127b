#include "format/model_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "format/model_name.h"
#include "format/text.h"

namespace trims::format {
namespace {

constexpr std::string_view kShardIndexName = "model.safetensors.index.json";
constexpr std::string_view kShardIndexSuffix = ".safetensors.index.json";

std::string Join(const std::string& directory, std::string_view name) {
  return directory + (directory.ends_with('/') ? "" : "/") + std::string(name);
}

bool IsAbsent(int error) {
  // No file of a directory is called something too long.
  return error == ENOENT || error == ENOTDIR || error == ENAMETOOLONG;
}

// "foo" of "foo-0012.params", as MXNet calls the parameters of an epoch: at least four
// digits.
std::optional<std::string_view> WithoutEpoch(std::string_view name) {
  if (!name.ends_with(".params")) return std::nullopt;
  name.remove_suffix(7);
  const size_t at = name.find_last_not_of("0123456789");
  if (at == std::string_view::npos || at == 0 || name[at] != '-' || name.size() - at - 1 < 4) {
    return std::nullopt;
  }
  return name.substr(0, at);
}

// One search in one directory: steps in the order of preference, each of which does
// nothing once a file was found or something went wrong. Remembers what it looked for
// and which directories were in the way, for the error at its end.
class Search final {
 public:
  // `what` is "weights" or another word for what is looked for.
  Search(const ModelDirectory& directory, std::string_view what)
      : directory_(directory), what_(what), stems_(ModelFileStems(directory.name)) {}

  // The canonical stems, best first.
  const std::vector<std::string>& stems() const { return stems_; }

  // The file of exactly this name.
  void Exactly(const std::string& name) {
    if (IsFile(name)) found_ = name;
    if (IsOver()) return;
    looked_for_ += (looked_for_.empty() ? "" : ", ") + name;
  }

  // The file whose name is `stem`, in any spelling, and `ending`.
  void Spelled(const std::string& stem, std::string_view ending) {
    OnlyOne([&](std::string_view name) {
      return name.ends_with(ending) &&
             CanonicalDirectoryName(name.substr(0, name.size() - ending.size())) == stem;
    });
  }

  // The file "STEM-NNNN.params", one epoch of `stem` in any spelling.
  void Epoch(const std::string& stem) {
    OnlyOne([&](std::string_view name) {
      const std::optional<std::string_view> prefix = WithoutEpoch(name);
      return prefix && CanonicalDirectoryName(*prefix) == stem;
    });
    if (!IsOver()) looked_for_ += ", " + stem + "-NNNN.params";
  }

  // The file with this ending, if there is one such file only.
  void Only(std::string_view ending) {
    OnlyOne([&](std::string_view name) {
      return name.size() > ending.size() && name.ends_with(ending);
    });
    if (!IsOver()) looked_for_.append(", any *").append(ending);
  }

  // The only file with one of these endings, if it is called like the beginning of the
  // name, up to a '_': what a version looks like is then of no importance.
  void OnlyBeginning(const std::vector<std::string_view>& endings) {
    if (!HasListing() || stems_.empty()) return;
    std::vector<std::string> files;
    std::string prefix;
    for (const std::string& name : *listing_) {
      for (const std::string_view ending : endings) {
        if (!name.ends_with(ending) || !IsFile(name)) continue;
        files.push_back(name);
        prefix = WithoutEpoch(name).value_or(
            std::string_view(name).substr(0, name.size() - ending.size()));
      }
      if (IsOver()) return;
    }
    if (files.size() == 1 && !prefix.empty() &&
        stems_[0].starts_with(CanonicalDirectoryName(prefix) + "_")) {
      found_ = files[0];
      return;
    }
    for (const std::string_view ending : endings) looked_for_.append(", a single *").append(ending);
    looked_for_ += " called like the beginning of the name";
  }

  Result<std::optional<std::string>> TakeFileIfThere() && {
    RETURN_IF_ERROR(status_);
    return std::move(found_);
  }
  Result<std::string> TakeFile() && {
    RETURN_IF_ERROR(status_);
    if (found_) return *std::move(found_);
    return NotFoundError("no " + what_ + " in " + directory_.path + ": looked for " + looked_for_ +
                         in_the_way_);
  }

 private:
  bool IsOver() const { return found_ || !status_.ok(); }

  // False when everything is over.
  bool HasListing() {
    if (!IsOver() && !listing_) status_ = List();
    return !IsOver();
  }

  void OnlyOne(const std::function<bool(std::string_view)>& is_meant) {
    if (!HasListing()) return;
    std::vector<std::string> files;
    for (const std::string& name : *listing_) {
      if (is_meant(name) && IsFile(name)) files.push_back(name);
      if (!status_.ok()) return;
    }
    if (files.size() == 1) found_ = files[0];
    if (files.size() <= 1) return;
    status_ = FailedPreconditionError(
        directory_.path + " has " + std::to_string(files.size()) + " files that may be its " +
        what_ + " (" + Quoted(files[0]) + ", " + Quoted(files[1]) +
        (files.size() > 2 ? ", ..." : "") + ") and none that is called " + looked_for_ +
        ": rename the one that is meant, or give its own path (`trims add NAME FILE`)");
  }

  // False for what is not there and for a directory; for anything else sets status_.
  bool IsFile(const std::string& name) {
    if (IsOver()) return false;
    struct stat info {};
    if (::fstatat(directory_.fd, name.c_str(), &info, 0) != 0) {
      if (!IsAbsent(errno)) {
        status_ = ErrnoStatus(errno, "looking at " + Join(directory_.path, name));
      }
      return false;
    }
    if (S_ISREG(info.st_mode)) return true;
    if (!S_ISDIR(info.st_mode)) {
      status_ = InvalidArgumentError(Join(directory_.path, name) + " is not a regular file: the " +
                                     what_ + " must be in one");
      return false;
    }
    const std::string remark = "; " + Quoted(name) + " is a directory";
    if (in_the_way_.find(remark) == std::string::npos) in_the_way_ += remark;
    return false;
  }

  // Names that are not hidden, sorted.
  Status List() {
    UniqueFd fd(::openat(directory_.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) return ErrnoStatus(errno, "listing " + directory_.path);
    DIR* const opened = ::fdopendir(fd.get());
    if (opened == nullptr) return ErrnoStatus(errno, "listing " + directory_.path);
    static_cast<void>(fd.Take());  // closedir closes it.
    const std::unique_ptr<DIR, int (*)(DIR*)> stream(opened, &::closedir);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream.get())) {
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus(errno, "listing " + directory_.path);
    std::sort(names.begin(), names.end());
    listing_ = std::move(names);
    return OkStatus();
  }

  const ModelDirectory& directory_;
  const std::string what_;
  const std::vector<std::string> stems_;
  std::optional<std::vector<std::string>> listing_;
  std::string looked_for_;
  std::string in_the_way_;
  std::optional<std::string> found_;
  Status status_ = OkStatus();
};

}  // namespace

Result<std::string> FindModelDirectory(const std::string& base_dir, std::string_view name) {
  ASSIGN_OR_RETURN(const ModelReference reference, ParseModelReference(name));
  if (reference.digest) {
    return InvalidArgumentError(
        "a digest names what a daemon has loaded, and no directory: name the model");
  }
  std::string looked_for;
  std::string in_the_way;
  for (const std::string& directory : ModelDirectoryNames(name)) {
    std::string path = Join(base_dir, directory);
    struct stat info {};
    const bool is_there = ::stat(path.c_str(), &info) == 0;
    if (is_there && S_ISDIR(info.st_mode)) return path;
    if (is_there) in_the_way += "; " + path + " is not a directory";
    looked_for += (looked_for.empty() ? "" : " or ") + path;
  }
  return NotFoundError("there is no directory " + looked_for + in_the_way);
}

Result<std::string> FindWeights(const ModelDirectory& directory) {
  Search search(directory, "weights");
  search.Exactly("model.params");
  for (const std::string& stem : search.stems()) {
    search.Exactly(stem + ".params");
    search.Exactly(stem + "-0000.params");
  }
  search.Exactly("model.safetensors");
  search.Exactly(std::string(kShardIndexName));
  for (const std::string& stem : search.stems()) {
    search.Spelled(stem, ".params");
    search.Spelled(stem, "-0000.params");
  }
  search.Only(".safetensors");
  search.Exactly("model-0000.params");
  for (const std::string& stem : search.stems()) search.Epoch(stem);
  search.Epoch("model");
  search.OnlyBeginning({".params"});
  return std::move(search).TakeFile();
}

Result<std::string> FindGraph(const ModelDirectory& directory) {
  Search search(directory, "graph");
  search.Exactly("model.symbol");
  for (const std::string& stem : search.stems()) {
    search.Exactly(stem + ".symbol");
    search.Exactly(stem + "-symbol.json");
  }
  search.Exactly("model-symbol.json");
  for (const std::string& stem : search.stems()) {
    search.Spelled(stem, ".symbol");
    search.Spelled(stem, "-symbol.json");
  }
  search.OnlyBeginning({".symbol", "-symbol.json"});
  return std::move(search).TakeFile();
}

Result<std::optional<std::string>> FindLabels(const ModelDirectory& directory) {
  Search search(directory, "labels");
  search.Exactly("features.txt");
  search.Exactly("synset.txt");
  return std::move(search).TakeFileIfThere();
}

Result<std::optional<std::string>> FindManifest(const ModelDirectory& directory) {
  Search search(directory, "manifest");
  search.Exactly("manifest.json");
  return std::move(search).TakeFileIfThere();
}

bool IsShardIndexName(std::string_view path) { return path.ends_with(kShardIndexSuffix); }

}  // namespace trims::format

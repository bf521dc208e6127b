// Names of models: which path a name stands for.
//
// Two sources: names registered by `trims add`, kept in <state_dir>/catalogue.json,
// and the directories of base_dir, by the 2019 convention. A registered name wins.
// Thread-safe; Add, Remove and List block on the file system.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"

namespace trims {

// "[namespace/]name[:version]" or "[@]sha256:<64 hex>".
struct ModelReference {
  std::string name;  // "" when by digest.
  std::optional<Digest> digest;
};
// INVALID_ARGUMENT names the character that is not allowed, or the part that is
// empty or too long. Letters, digits, '.', '_', '-' and ' ' make up a part; no
// part is "." or "..". So a name is never a path.
Result<ModelReference> ParseModelReference(std::string_view text);

// The 2019 directory name of "[namespace/]name[:version]": lower case, and ' ',
// '-' and ':' become '_'. "BVLC-AlexNet:1.0" -> "bvlc_alexnet_1.0".
std::string CanonicalDirectoryName(std::string_view name);

struct CatalogueEntry {
  std::string name;
  std::string path;
  bool registered = false;  // By `trims add`; else found in base_dir.
};

class Catalogue final {
 public:
  // Reads <state_dir>/catalogue.json when it exists. DATA_LOSS when it is not
  // what Add wrote: the file is left alone, and the message says so.
  static Result<std::unique_ptr<Catalogue>> Open(const std::string& state_dir,
                                                 const std::string& base_dir);

  // Where the model's files are; NOT_FOUND says where was looked and how to add it.
  Result<CatalogueEntry> Find(const std::string& name) const;

  // ALREADY_EXISTS when the name stands for another path and not `replace`.
  Status Add(const std::string& name, const std::string& path, bool replace);
  // NOT_FOUND when not registered; FAILED_PRECONDITION for a directory of base_dir.
  Status Remove(const std::string& name);
  // Changes with every Add and Remove: what Find answered holds at least as long
  // as this number stays and the files it led to are there.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // Registered names, then base_dir's directories; sorted by name.
  std::vector<CatalogueEntry> List() const;

 private:
  Catalogue(std::string file, std::string base_dir)
      : file_(std::move(file)), base_dir_(std::move(base_dir)) {}
  Status Write(const std::map<std::string, std::string>& entries) const;

  const std::string file_;
  const std::string base_dir_;
  std::atomic<uint64_t> version_{1};
  mutable std::mutex mu_;
  std::map<std::string, std::string> registered_;  // Guarded by mu_.
};

}  // namespace trims

// Names of models: which path a name stands for.
//
// Two sources: names registered by `trims add`, kept in <state_dir>/catalogue.json,
// and the directories of base_dir (format/model_files.h). A registered name wins; it
// is found as it was registered, in no other spelling.
// Thread-safe; Add, Remove and List block on the file system.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "format/model_name.h"

namespace trims {

struct CatalogueEntry {
  std::string name;
  std::string path;
  bool registered = false;  // By `trims add`; else found in base_dir.
  // Paths that would be the model's directory instead, were there a directory.
  std::vector<std::string> passed_over = {};
};

class Catalogue final {
 public:
  // Reads <state_dir>/catalogue.json when it exists. DATA_LOSS when it is not
  // what Add wrote: the file is left alone, and the message says so. Another error
  // when it can not be read.
  static Result<std::unique_ptr<Catalogue>> Open(const std::string& state_dir,
                                                 const std::string& base_dir);

  // Where the model's files are; NOT_FOUND says where was looked and how to add it.
  Result<CatalogueEntry> Find(const std::string& name) const;

  // ALREADY_EXISTS when the name stands for another path and not `replace`.
  // INVALID_ARGUMENT for what is no name and for a path that is not UTF-8. On failure
  // nothing has changed, here and on disk.
  Status Add(const std::string& name, const std::string& path, bool replace);
  // NOT_FOUND when not registered; FAILED_PRECONDITION for a directory of base_dir.
  Status Remove(const std::string& name);
  // Changes with every Add and Remove: what Find answered holds at least as long
  // as this number stays and the files it led to are there.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // Registered names and base_dir's directories with names of their own; sorted by
  // name. What lies in a namespace's directory is found, but not listed.
  std::vector<CatalogueEntry> List() const;

 private:
  Catalogue(std::string file, std::string base_dir)
      : file_(std::move(file)), base_dir_(std::move(base_dir)) {}
  Status Write(const std::map<std::string, std::string>& entries) const;

  const std::string file_;
  const std::string base_dir_;
  std::atomic<uint64_t> version_{1};
  mutable Mutex mu_;
  std::map<std::string, std::string> registered_ TRIMS_GUARDED_BY(mu_);
};

}  // namespace trims

// Where a model's bytes come from: one weights file, a directory of them, or a
// descriptor a client passed. Opening a source does the file-system work once;
// reading goes through its descriptors only, so a path that is swapped later
// changes nothing. Blocking; thread-compatible, const members thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "format/model_file.h"
#include "tier/manifest.h"

namespace trims {

struct SourceFile {
  std::string path;            // "" for a passed descriptor.
  UniqueFd fd;                 // O_RDONLY.
  FileIdentity identity;
};

class Source final {
 public:
  // A weights file, or a model directory: model.params, <name>.params,
  // <name>-0000.params, model.safetensors, model.safetensors.index.json with its
  // shards, or exactly one *.safetensors, in that order. `name` is the directory's
  // canonical model name. NOT_FOUND lists what was looked for.
  static Result<Source> OpenPath(const std::string& path, const std::string& name);
  // Takes a client's descriptor. INVALID_ARGUMENT unless it is a readable regular file.
  static Result<Source> FromDescriptor(UniqueFd fd, const std::string& label);

  const std::vector<SourceFile>& files() const { return files_; }
  std::vector<FileIdentity> Identities() const;
  // Same files, unchanged, by stat(2) of the paths (or descriptors). Fast enough
  // for every open: one stat per file, plus one for the directory.
  bool StillCurrent() const;
  uint64_t total_bytes() const;
  const std::string& description() const { return description_; }

 private:
  std::vector<SourceFile> files_;
  std::string description_;
};

}  // namespace trims

// Where a model's bytes come from: one weights file, a directory of them, or a
// descriptor a client passed. Opening a source does the file-system work once;
// reading goes through its descriptors only, so a path that is swapped later
// changes nothing. Blocking; thread-compatible, const members thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "format/model_file.h"
#include "tier/manifest.h"

namespace trims {

struct SourceFile {
  std::string path;  // "" for a passed descriptor.
  UniqueFd fd;       // O_RDONLY.
  FileIdentity identity;
};

class Source final {
 public:
  // A weights file, a *.safetensors.index.json with its shards beside it, or the
  // directory of the model `name`, of which format/model_files.h says which file has
  // the weights; its errors are passed on. Symbolic links are followed, as whoever
  // names the path is trusted to choose it; a shard name inside an index can not leave
  // the directory.
  static Result<Source> OpenPath(const std::string& path, const std::string& name);
  // Takes a client's descriptor. INVALID_ARGUMENT unless it is a readable regular file.
  static Result<Source> FromDescriptor(UniqueFd fd, const std::string& label);

  // The files with weights, then, of a sharded model, its index file.
  const std::vector<SourceFile>& files() const { return files_; }
  size_t weight_file_count() const { return files_.size() - (shard_index_ ? 1 : 0); }
  // Which shard has which tensor; `files` names the weight files in order.
  const std::optional<format::ShardIndex>& shard_index() const { return shard_index_; }

  std::vector<FileIdentity> Identities() const;
  // Same files, unchanged, by stat(2) of the paths (or descriptors). Fast enough
  // for every open: one stat per file, plus one for the directory. Also false
  // after anything was added to or removed from a model directory, as another file
  // may now come first.
  bool StillCurrent() const;
  // ABORTED, naming the file, when one is no longer what it was at opening.
  Status CheckUnchanged() const;
  uint64_t total_bytes() const;  // Of the files with weights.
  // The directory that holds the model, without a slash at its end; "" for a
  // passed descriptor.
  const std::string& directory() const { return directory_; }
  // Opened as a directory, of which an entry more or less may be other weights.
  bool is_directory() const { return is_directory_; }
  const std::string& description() const { return description_; }
  // "…/model.safetensors", for messages.
  std::string DescribeFile(size_t index) const;
  // True for a passed descriptor on a FUSE file system: whoever mounted it may be
  // its user and invents inode numbers and times, so its identities prove nothing
  // and no manifest may be looked up or kept under them.
  bool has_forgeable_identity() const { return has_forgeable_identity_; }

 private:
  Source() = default;

  std::vector<SourceFile> files_;
  std::optional<format::ShardIndex> shard_index_;
  std::string directory_;
  bool is_directory_ = false;  // Opened as a directory, which is then watched:
  uint64_t directory_device_ = 0;
  uint64_t directory_inode_ = 0;
  int64_t directory_mtime_ns_ = 0;
  bool has_forgeable_identity_ = false;
  std::string description_;
};

}  // namespace trims

// From a source to a manifest: the sidecar when these very files were seen
// before, else parse and hash every tensor (SHA-256 for identity, XXH3 chunks for
// later loads, in one pass over the bytes, several threads). Blocking, on loader
// threads; thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {

class SidecarStore;

struct IngestResult {
  std::shared_ptr<const ModelManifest> manifest;
  bool from_sidecar = false;
  // Why the manifest could not be recorded (a full disk, say), for the log: the
  // model is usable all the same, and is hashed again next time.
  Status sidecar_status;
};

// `sidecars` may be null. ABORTED when a file changed while being read, DATA_LOSS
// when it can not be read to its end, INVALID_ARGUMENT when it is no weights file
// or a shard index contradicts its shards.
Result<IngestResult> Ingest(const Source& source, SidecarStore* sidecars, LoadControl& control,
                            int threads = 0);

// Manifests of files already seen, one file each under `directory`, named by the
// SHA-256 of the identities in the file name and checked against the identities
// inside. Written to a temporary file, fsynced, renamed; unreadable ones are
// removed and rebuilt. A file whose mtime is less than two seconds before the
// moment of ingest is not recorded: its identity could still stay equal across a
// further write.
class SidecarStore final {
 public:
  // Makes `directory` (0700) and its parents where missing. PERMISSION_DENIED
  // when it belongs to somebody else, who could plant manifests in it.
  static Result<std::unique_ptr<SidecarStore>> Open(const std::string& directory);
  // Null when absent or unusable.
  std::shared_ptr<const ModelManifest> Find(const std::vector<FileIdentity>& identities);
  Status Put(const ModelManifest& manifest);
  // Removes temporaries of crashed runs and the oldest entries beyond `entries_max`.
  Status Collect(size_t entries_max = 100'000);

 private:
  SidecarStore(std::string directory, UniqueFd fd, std::string run)
      : directory_(std::move(directory)), fd_(std::move(fd)), run_(std::move(run)) {}
  std::string directory_;
  UniqueFd fd_;      // Of the directory.
  std::string run_;  // Tells this run's temporaries from those of crashed ones.
  std::atomic<uint64_t> temporaries_{0};
};

}  // namespace trims

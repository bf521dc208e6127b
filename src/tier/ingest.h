// From a source to a manifest: the sidecar when these very files were seen
// before, else parse and hash every tensor (SHA-256 for identity, XXH3 chunks for
// later loads, in one pass over the bytes, several threads). Blocking, on loader
// threads; thread-safe.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {

class SidecarStore;

struct IngestResult {
  std::shared_ptr<const ModelManifest> manifest;
  bool from_sidecar = false;
};

// `sidecars` may be null. ABORTED when a file changed while being read.
Result<IngestResult> Ingest(const Source& source, SidecarStore* sidecars, LoadControl& control, int threads = 0);

// Manifests of files already seen, one file each under `directory`, named by the
// SHA-256 of the identities in the file name and checked against the identities
// inside. Written to a temporary file, fsynced, renamed; unreadable ones are
// removed and rebuilt. A file whose mtime is less than two seconds before the
// moment of ingest is not recorded: its identity could still stay equal across a
// further write.
class SidecarStore final {
 public:
  static Result<std::unique_ptr<SidecarStore>> Open(const std::string& directory);
  // Null when absent or unusable.
  std::shared_ptr<const ModelManifest> Find(const std::vector<FileIdentity>& identities);
  Status Put(const ModelManifest& manifest);
  // Removes temporaries of crashed runs and the oldest entries beyond `entries_max`.
  Status Collect(size_t entries_max = 100'000);

 private:
  explicit SidecarStore(std::string directory) : directory_(std::move(directory)) {}
  std::string directory_;
};

}  // namespace trims

// What the daemon knows about a model's contents, apart from where they are
// resident: its tensors, the files that hold them, its identity, and the
// checksums that every later load is verified with. And how tensors are laid
// out in extents. Plain values; functions are pure.
//
// Identity. A model's digest is the SHA-256 over its tensors sorted by name:
// for each, name length (u64), name, dtype (u64), rank (u64), dimensions (u64
// each), SHA-256 of the bytes; preceded by the text "trims-model-v1\n" and the
// number of tensors (u64). Little-endian throughout. So the identity does not
// depend on file name, file format, sharding or tensor order.
//
// An extent's key is the SHA-256 over "trims-extent-v1\n", its size (u64), the
// number of pieces (u64), and for each piece in order: SHA-256 of the tensor's
// bytes, size (u64), offset in the extent (u64). Two extents with one key hold
// the same bytes, so models that share a layer share its memory, and no second
// hash pass over the data is needed.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status.h"
#include "store/types.h"

namespace trims {

// What changes when a file's contents change, as far as stat(2) can tell.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  int64_t ctime_ns = 0;
  friend auto operator<=>(const FileIdentity&, const FileIdentity&) = default;
};
// INVALID_ARGUMENT unless `fd` is a regular file.
Result<FileIdentity> IdentifyFile(int fd, const std::string& description);

struct ManifestTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint32_t file = 0;    // Index into ModelManifest::file_identities.
  uint64_t offset = 0;  // In that file.
  uint64_t size_bytes = 0;
  Digest content;                // SHA-256 of its bytes.
  std::vector<Checksum> chunks;  // XXH3 of each kChunkBytes piece, seed 0; the last may be short.
};

struct ModelManifest {
  Digest digest;
  std::vector<ManifestTensor> tensors;  // Sorted by name, unique.
  std::map<std::string, std::string> metadata;
  std::vector<FileIdentity> file_identities;  // Of the source it was made from, in its order.
  uint64_t weight_bytes = 0;                  // Sum of tensors' sizes.
};

// Sets `digest` and `weight_bytes` from the tensors.
void FinishManifest(ModelManifest& manifest);

// FlatBuffers of proto/trims/v1/sidecar.fbs, with a checksum over the whole: the
// form used in sidecar files and in the keeper's ledger. Deserialize verifies
// everything (structure, order, ranges, checksum): DATA_LOSS otherwise.
std::string SerializeManifest(const ModelManifest& manifest);
Result<ModelManifest> DeserializeManifest(std::span<const std::byte> bytes);

struct Piece {
  uint32_t tensor = 0;         // Index into ModelManifest::tensors.
  uint64_t extent_offset = 0;  // A multiple of kTensorAlignment.
};
struct ExtentSpec {
  Digest key;
  uint64_t bytes = 0;         // Used bytes, rounded up to kHostPageBytes.
  std::vector<Piece> pieces;  // By rising offset.
};
struct Placement {
  uint32_t extent = 0;
  uint64_t offset = 0;
};
// The same in every tier.
struct Layout {
  store::Granularity granularity = store::Granularity::kModel;
  std::vector<ExtentSpec> extents;    // Unique keys.
  std::vector<Placement> placements;  // One per tensor, in manifest order.
};
// model: one extent. slab: blocks of `slab_bytes`, a tensor never crosses one, a
// larger tensor has its own. layer: one per distinct tensor. Zero-size tensors
// are placed at offset 0 of extent 0. A model without any bytes has one extent of
// one page. RESOURCE_EXHAUSTED over kMaxExtentsPerModel, naming the granularity
// to use instead.
Result<Layout> MakeLayout(const ModelManifest& manifest, store::Granularity granularity,
                          uint64_t slab_bytes = kDefaultSlabBytes);

store::ModelPlan MakePlan(const ModelManifest& manifest, const Layout& layout, std::string name);

// The bytes of the tensor index (index.fbs, size-prefixed), to be put into a
// sealed memfd and passed with every lease.
std::string BuildTensorIndex(const ModelManifest& manifest, const Layout& layout);

}  // namespace trims

// The unit of loading and verifying: one chunk of one tensor in one extent. Only
// for use inside this folder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"
#include "tier/manifest.h"

namespace trims {

struct ChunkWork {
  uint32_t extent = 0;  // Index into the list of extents that was asked for.
  uint32_t tensor = 0;  // Index into ModelManifest::tensors.
  uint32_t chunk = 0;   // Of the tensor.
  uint32_t bytes = 0;
  uint64_t extent_offset = 0;  // Of this chunk's first byte.
};

// Every chunk of `extents`. INVALID_ARGUMENT when a spec does not fit the
// manifest: it is of another model.
inline Result<std::vector<ChunkWork>> ListChunks(const ModelManifest& manifest,
                                                 const std::vector<const ExtentSpec*>& extents) {
  std::vector<ChunkWork> work;
  for (uint32_t e = 0; e < extents.size(); ++e) {
    for (const Piece& piece : extents[e]->pieces) {
      const bool is_known = piece.tensor < manifest.tensors.size();
      const uint64_t size = is_known ? manifest.tensors[piece.tensor].size_bytes : 0;
      if (!is_known || piece.extent_offset > extents[e]->bytes ||
          size > extents[e]->bytes - piece.extent_offset) {
        return InvalidArgumentError("extent " + extents[e]->key.ToShort() +
                                    " does not belong to model " + manifest.digest.ToShort());
      }
      uint32_t chunk = 0;
      for (uint64_t at = 0; at < size; at += kChunkBytes, ++chunk) {
        work.push_back({e, piece.tensor, chunk,
                        static_cast<uint32_t>(std::min(kChunkBytes, size - at)),
                        piece.extent_offset + at});
      }
    }
  }
  return work;
}

inline std::string DescribeChunk(const ManifestTensor& tensor, uint32_t chunk) {
  return "tensor \"" + tensor.name.substr(0, 200) + "\", chunk " + std::to_string(chunk) + " of " +
         std::to_string(tensor.chunks.size());
}

}  // namespace trims

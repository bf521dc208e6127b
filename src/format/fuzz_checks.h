// What every accepted index and every error must satisfy, for fuzzers. A
// violation aborts.
#pragma once

#include <cstdint>
#include <set>
#include <string_view>

#include "base/dtype.h"
#include "base/limits.h"
#include "base/status.h"
#include "format/model_file.h"
#include "format/text.h"

namespace trims::format {

// Offsets lie in the file, sizes are those of shape and type, names are unique
// and printable.
inline void CheckFileIndex(const FileIndex& index, uint64_t file_size) {
  std::set<std::string_view> names;
  for (const TensorEntry& tensor : index.tensors) {
    TRIMS_CHECK(tensor.offset <= file_size && tensor.size_bytes <= file_size - tensor.offset);
    TRIMS_CHECK(tensor.shape.size() <= kMaxTensorRank);
    unsigned __int128 bits = 1;
    bool fits = true;
    for (const int64_t dim : tensor.shape) {
      TRIMS_CHECK(dim >= 0);
      fits = fits && bits <= UINT64_MAX;
      bits = fits ? bits * static_cast<uint64_t>(dim) : 0;
    }
    TRIMS_CHECK(fits && bits <= UINT64_MAX);
    TRIMS_CHECK(bits * DTypeBits(tensor.dtype) ==
                static_cast<unsigned __int128>(tensor.size_bytes) * 8);
    TRIMS_CHECK(CheckName(tensor.name, "tensor").ok());
    TRIMS_CHECK(names.insert(tensor.name).second);
  }
}

// Printable ASCII of a sensible length: no byte of the file gets out unescaped.
inline void CheckMessage(const Status& status) {
  TRIMS_CHECK(!status.message().empty() && status.message().size() < 2048);
  for (const char c : status.message()) TRIMS_CHECK(c >= 0x20 && c < 0x7f);
}

}  // namespace trims::format

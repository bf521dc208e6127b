// Fuzzes the safetensors header, recognition by content, and the shard index:
// whatever the bytes, what is accepted must keep what model_file.h promises.
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "format/fuzz_checks.h"
#include "format/model_file.h"

namespace {

using trims::format::FileIndex;
using trims::format::MemorySource;
using trims::format::ShardIndex;

void CheckTiling(const FileIndex& index, uint64_t file_size) {
  uint64_t position = index.tensors.empty() ? file_size : index.tensors.front().offset;
  for (const trims::format::TensorEntry& tensor : index.tensors) {
    TRIMS_CHECK(tensor.offset == position);
    position += tensor.size_bytes;
  }
  TRIMS_CHECK(position == file_size);
}

void CheckShards(const ShardIndex& index) {
  std::set<std::string> files;
  for (const auto& [tensor, file] : index.weight_map) {
    TRIMS_CHECK(!tensor.empty() && !file.empty());
    TRIMS_CHECK(file.find('/') == std::string::npos && file != "." && file != "..");
    files.insert(file);
  }
  TRIMS_CHECK(!files.empty());
  TRIMS_CHECK(std::vector<std::string>(files.begin(), files.end()) == index.files);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::span<const std::byte> file = std::as_bytes(std::span(bytes, size));
  const MemorySource source(file, "fuzz");
  const trims::Result<FileIndex> index = trims::format::ParseSafetensors(source);
  const trims::Result<FileIndex> recognised = trims::format::ParseModelFile(source);
  if (index.ok()) {
    trims::format::CheckFileIndex(*index, size);
    CheckTiling(*index, size);
    TRIMS_CHECK(recognised.ok() && recognised->tensors.size() == index->tensors.size());
  } else {
    trims::format::CheckMessage(index.status());
  }
  if (!recognised.ok()) trims::format::CheckMessage(recognised.status());
  const trims::Result<ShardIndex> shards = trims::format::ParseSafetensorsShardIndex(source);
  if (shards.ok()) {
    CheckShards(*shards);
  } else {
    trims::format::CheckMessage(shards.status());
  }
  return 0;
}

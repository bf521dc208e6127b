// Fuzzes MXNet's .params, with and without recognition by content.
#include <cstddef>
#include <cstdint>
#include <span>

#include "format/fuzz_checks.h"
#include "format/model_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const trims::format::MemorySource source(std::as_bytes(std::span(bytes, size)), "fuzz");
  const trims::Result<trims::format::FileIndex> index = trims::format::ParseMxnetParams(source);
  const trims::Result<trims::format::FileIndex> recognised = trims::format::ParseModelFile(source);
  if (recognised.ok()) trims::format::CheckFileIndex(*recognised, size);
  if (!index.ok()) {
    trims::format::CheckMessage(index.status());
    return 0;
  }
  trims::format::CheckFileIndex(*index, size);
  TRIMS_CHECK(recognised.ok() && recognised->tensors.size() == index->tensors.size());
  // Arrays lie in the file one after the other, each behind a head of its own.
  uint64_t position = 24;
  for (const trims::format::TensorEntry& tensor : index->tensors) {
    TRIMS_CHECK(tensor.offset >= position + 16);
    position = tensor.offset + tensor.size_bytes;
  }
  return 0;
}

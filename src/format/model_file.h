// Weights files: bytes in, a checked index out.
//
// A parser reads a ByteSource and returns where every tensor lies, having checked
// every number against the file before allocating or trusting anything: a file
// is hostile until parsed. Parsers never read tensor bytes. Pure but for the
// source's reads; safe to run on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace trims::format {

// Random access to the bytes of one file.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  // Fills `out` from `offset`. OUT_OF_RANGE past the end (the file shrank or a
  // caller's bug), DATA_LOSS on an I/O error.
  virtual Status ReadAt(uint64_t offset, std::span<std::byte> out) const = 0;
  // For messages: the path, or "descriptor 7".
  virtual const std::string& description() const = 0;
};

// Over memory; borrows `bytes`.
class MemorySource final : public ByteSource {
 public:
  MemorySource(std::span<const std::byte> bytes, std::string description)
      : bytes_(bytes), description_(std::move(description)) {}
  uint64_t size() const override { return bytes_.size(); }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override;
  const std::string& description() const override { return description_; }

 private:
  std::span<const std::byte> bytes_;
  std::string description_;
};

// Over a descriptor, by pread; borrows it. The size is taken once, by fstat.
class FileSource final : public ByteSource {
 public:
  static Result<FileSource> Open(int fd, std::string description);
  uint64_t size() const override { return size_; }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override;
  const std::string& description() const override { return description_; }

 private:
  FileSource(int fd, uint64_t size, std::string description)
      : fd_(fd), size_(size), description_(std::move(description)) {}
  int fd_;
  uint64_t size_;
  std::string description_;
};

struct TensorEntry {
  std::string name;  // As in the file: MXNet's "arg:" and "aux:" are kept.
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // Row-major; empty for a scalar.
  uint64_t offset = 0;         // Of its first byte in the file.
  uint64_t size_bytes = 0;
};

enum class FileFormat : uint8_t { kSafetensors, kMxnetParams };

struct FileIndex {
  FileFormat format = FileFormat::kSafetensors;
  std::vector<TensorEntry> tensors;             // In file order; names unique.
  std::map<std::string, std::string> metadata;  // safetensors' __metadata__.
};

// Errors name the file, the offset or tensor, what was found and what was expected.
// Names are unique UTF-8 of 1 to kMaxTensorNameBytes bytes without control characters.

// Accepts what the reference parser accepts, but for a key given twice, a tensor
// without a name, and more than 65,536 metadata entries. Tensors come in the
// order of their offsets and tile the file to its end.
Result<FileIndex> ParseSafetensors(const ByteSource& source);
// Variants V0 (MXNet 0.10 and before) to V3 (1.5 and later, np shapes), dense.
// Where the file has no names, arrays are called "0", "1", ... by position. Arrays
// that are none (no shape, no elements) are left out of a list without names
// and an error in one with names. The device that an array was saved from and
// bytes after the list are ignored.
Result<FileIndex> ParseMxnetParams(const ByteSource& source);
// Decides by content, not by name; recognises Git LFS pointers, HTML pages,
// empty files, zip/pickle (.pt), GGUF and says so instead of "bad magic".
Result<FileIndex> ParseModelFile(const ByteSource& source);

// model.safetensors.index.json: which file holds which tensor.
struct ShardIndex {
  std::map<std::string, std::string>
      weight_map;                  // Tensor name -> file name, a plain name without '/'.
  std::vector<std::string> files;  // Sorted, unique.
};
Result<ShardIndex> ParseSafetensorsShardIndex(const ByteSource& source);

}  // namespace trims::format

// The weights file that a benchmark works with: safetensors, of equal tensors, whose
// contents no other file has. Move-only; the file goes with the object.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "bench/interrupts.h"

namespace trims::bench {

struct WeightsFileSpec {
  uint64_t bytes = 0;    // Of all tensors together.
  uint32_t tensors = 1;  // At least 256 bytes for each.
  // Holes with a few words in each tensor, so that size costs no disk; else noise.
  bool sparse = false;
  std::string directory;
};

class WeightsFile final {
 public:
  // Called now and then from the calling thread.
  using OnProgress = std::function<void(uint64_t done_bytes)>;

  // Writes it, to the disk itself (fsync) when it is not sparse. RESOURCE_EXHAUSTED when the
  // directory has too little room; CANCELLED when interrupted. Nothing is left after a failure.
  static Result<WeightsFile> Write(const WeightsFileSpec& spec, const Interrupts& interrupts,
                                   const OnProgress& on_progress);

  WeightsFile(WeightsFile&& other) noexcept : path_(std::move(other.path_)) {
    bytes_ = other.bytes_;
    other.path_.clear();
  }
  WeightsFile& operator=(WeightsFile&&) = delete;
  ~WeightsFile();

  const std::string& path() const { return path_; }
  uint64_t file_bytes() const { return bytes_; }

 private:
  WeightsFile(std::string path, uint64_t bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;  // Absolute.
  uint64_t bytes_ = 0;
};

}  // namespace trims::bench

// Where a predictor's weights come from.
//
// A WeightProvider names tensors and gives their addresses; they stay valid and
// unchanged for its life and must never be written. Implementations: FileWeights
// here, a private copy of a file, and LeaseWeights (lease_weights.h), shared
// memory lent by the daemon. Finding is thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "format/model_file.h"
#include "predict/anonymous_memory.h"

namespace trims::predict {

struct Weight {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* bytes = nullptr;
  uint64_t size_bytes = 0;
};

class WeightProvider {
 public:
  virtual ~WeightProvider() = default;
  // By its exact name in the file.
  virtual std::optional<Weight> Find(std::string_view name) const = 0;
  // For messages: "model x" or a path.
  virtual std::string Describe() const = 0;

  // Memory of the predictors that use these weights: what they hold now, and the
  // most they ever held together, which the daemon plans with.
  void AddInternalBytes(uint64_t bytes);
  void RemoveInternalBytes(uint64_t bytes) { internal_bytes_.fetch_sub(bytes); }
  uint64_t peak_internal_bytes() const { return peak_internal_bytes_.load(); }

 private:
  std::atomic<uint64_t> internal_bytes_{0};
  std::atomic<uint64_t> peak_internal_bytes_{0};
};

// The weight that belongs to a graph's variable: "arg:<name>", "aux:<name>" as
// MXNet's files have it, else the bare name (safetensors, Gluon's files).
std::optional<Weight> FindWeight(const WeightProvider& provider, std::string_view variable);

// Converts `count` elements of any alignment to float32. UNIMPLEMENTED for
// complex numbers and types below 8 bits or with an 8-bit float.
Status ConvertToFloat(DType dtype, const std::byte* bytes, size_t count, float* out);

// Weights read into private memory. What a process does without a daemon: each
// holds its own copy.
class FileWeights final : public WeightProvider {
 public:
  // An MXNet parameter list or a safetensors file in memory; copied, as MXNet does.
  static Result<std::shared_ptr<FileWeights>> FromBytes(std::span<const std::byte> bytes,
                                                        const std::string& description);
  // What the daemon would load of this path: a weights file, a
  // *.safetensors.index.json with its shards beside it, or the directory of the model
  // `name` by the rules of format/model_files.h.
  static Result<std::shared_ptr<FileWeights>> FromPath(const std::string& path,
                                                       const std::string& name);

  std::optional<Weight> Find(std::string_view name) const override;
  std::string Describe() const override { return description_; }

 private:
  explicit FileWeights(std::string description) : description_(std::move(description)) {}
  Status Add(const format::ByteSource& source);
  // Opens `name` in `directory` (AT_FDCWD, or an open one); messages call it `path`.
  Status AddFile(int directory, const std::string& name, const std::string& path);
  // Also the shards, if the file is a list of shards.
  Status AddFileOrShards(int directory, const std::string& name, const std::string& path);

  const std::string description_;
  std::vector<AnonymousMemory> memory_;  // One block per file, read-only once filled.
  std::map<std::string, Weight, std::less<>> tensors_;
};

}  // namespace trims::predict

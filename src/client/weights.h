// The mapped weights of one lease: extents, in host or device memory, and the tensor index
// over them.
//
// Built from descriptors that the daemon sent. Opening looks at the index's frame
// only, so it costs the same for any number of tensors; each tensor is checked when
// it is asked for, so that a broken index is an error and never a wild pointer.
// Immutable after Map, hence thread-safe. Everything handed out points into the
// mappings and lives as long as this object.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/digest.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "client/device_extent.h"
#include "ipc/region.h"
#include "trims/v1/index_generated.h"
#include "trims/v1/lease_generated.h"

namespace trims::client {

// What the daemon said in Opened, checked for shape.
struct LeaseFacts {
  Digest digest;
  uint64_t generation = 0;
  v1::TierKind tier = v1::TierKind::Host;
  v1::Granularity granularity = v1::Granularity::Model;
  bool loaded = false;
  uint32_t tensor_count = 0;
  uint64_t total_bytes = 0;
  uint64_t index_bytes = 0;
  std::vector<uint64_t> extent_bytes;
  std::string device_uuid;
  std::string model_dir;
};

// A range of addresses: of this process, or of the device. Only to be read.
struct MappedExtent {
  const std::byte* data = nullptr;
  uint64_t size = 0;
  std::variant<ReadOnlyMapping, DeviceExtent> mapping;
};

struct TensorView {
  std::string_view name;  // NUL-terminated.
  const std::byte* bytes = nullptr;
  const int64_t* shape = nullptr;
  uint64_t size_bytes = 0;
  uint64_t offset = 0;
  uint32_t extent = 0;
  uint32_t rank = 0;
  uint8_t dtype = 0;
};

struct MetadataView {
  std::string_view key;    // NUL-terminated.
  std::string_view value;  // NUL-terminated.
};

// The mapped index of one load of a model. Immutable, shared by leases on it.
class MappedIndex final {
 public:
  // PERMISSION_DENIED when it is not sealed, OUT_OF_RANGE when it has another size, DATA_LOSS
  // when it is none. Looks at its frame only.
  static Result<std::shared_ptr<const MappedIndex>> Map(const LeaseFacts& facts, UniqueFd fd);

  uint32_t tensor_count() const { return tensors_->size(); }
  uint32_t metadata_count() const { return metadata_ == nullptr ? 0 : metadata_->size(); }
  // Null when the index is broken there.
  const v1::Tensor* Tensor(uint32_t index) const { return Checked(*tensors_, index); }
  const v1::KeyValue* Metadata(uint32_t index) const { return Checked(*metadata_, index); }

 private:
  MappedIndex() = default;
  // The element of a vector of tables after it has passed the verifier, or null.
  template <typename T>
  const T* Checked(const flatbuffers::Vector<flatbuffers::Offset<T>>& vector, uint32_t index) const;

  uint64_t bytes_ = 0;  // Of the mapping below; the rest is padding.
  ReadOnlyMapping mapping_;
  const flatbuffers::Vector<flatbuffers::Offset<v1::Tensor>>* tensors_ = nullptr;
  const flatbuffers::Vector<flatbuffers::Offset<v1::KeyValue>>* metadata_ = nullptr;
};

// The indexes that a client mapped last, so that a process which opens a model again and
// again maps its index once. Thread-safe.
class IndexCache final {
 public:
  static constexpr size_t kEntries = 8;

  // Null when there is none of the very same load.
  std::shared_ptr<const MappedIndex> Find(const LeaseFacts& facts) const;
  // Instead of the one that was kept longest.
  void Keep(const LeaseFacts& facts, std::shared_ptr<const MappedIndex> index);
  void Clear();

 private:
  struct Entry {
    Digest digest;
    uint64_t generation = 0;
    uint64_t index_bytes = 0;
    v1::Granularity granularity{};
    std::vector<uint64_t> extent_bytes;
    std::shared_ptr<const MappedIndex> index;

    bool IsOf(const LeaseFacts& facts) const;
  };

  mutable Mutex mutex_;
  std::array<Entry, kEntries> entries_ TRIMS_GUARDED_BY(mutex_);
  size_t next_ TRIMS_GUARDED_BY(mutex_) = 0;
};

class Weights final {
 public:
  // `fds`: the index, then the extents in order, as many as `facts` says, which lie on
  // `device` if there is one. Fails with PERMISSION_DENIED for one that is not sealed,
  // OUT_OF_RANGE for one of another size, DATA_LOSS for an index that is none, and as
  // DeviceExtent::Map says. `cache` is borrowed for the call.
  static Result<Weights> Map(const LeaseFacts& facts, std::vector<UniqueFd> fds,
                             const std::optional<TargetDevice>& device, IndexCache& cache);

  Weights(Weights&&) noexcept = default;
  Weights& operator=(Weights&&) noexcept = default;

  const std::vector<MappedExtent>& extents() const { return extents_; }
  uint32_t tensor_count() const { return index_->tensor_count(); }
  uint32_t metadata_count() const { return index_->metadata_count(); }

  // OUT_OF_RANGE, NOT_FOUND, or DATA_LOSS when the index is broken there. Allocate
  // nothing.
  StatusCode Tensor(uint32_t index, TensorView* tensor) const;
  StatusCode FindTensor(std::string_view name, TensorView* tensor) const;
  StatusCode Metadata(uint32_t index, MetadataView* pair) const;
  StatusCode FindMetadata(std::string_view key, MetadataView* pair) const;

 private:
  Weights() = default;

  std::shared_ptr<const MappedIndex> index_;
  std::vector<MappedExtent> extents_;
};

}  // namespace trims::client

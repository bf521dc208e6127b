#include "client/weights.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/dtype.h"
#include "base/limits.h"

namespace trims::client {
namespace {

// Shapes are handed out as they lie in the index.
static_assert(std::endian::native == std::endian::little);

const uint8_t* Bytes(const ReadOnlyMapping& mapping) {
  return reinterpret_cast<const uint8_t*>(mapping.data());
}

// A verifier for one element; the limits are of tables in one element.
flatbuffers::Verifier VerifierOf(const uint8_t* data, uint64_t size) {
  flatbuffers::Verifier::Options options;
  options.max_depth = 8;
  options.max_tables = 8;
  return flatbuffers::Verifier(data, size, options);
}

// Adopts and maps a memfd that should hold `size` bytes. Memory comes in pages, of
// up to 2 MiB, so the memfd may be larger by less than one.
Result<ReadOnlyMapping> MapReceived(UniqueFd fd, uint64_t size, const std::string& what) {
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "looking at " + what);
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (size == 0 || file_bytes < size || file_bytes - size >= kHugePageBytes) {
    return OutOfRangeError(what + " has " + std::to_string(file_bytes) + " bytes, announced were " +
                           std::to_string(size));
  }
  Result<ReadOnlyRegion> region = ReadOnlyRegion::Adopt(std::move(fd), file_bytes);
  if (!region.ok()) {
    return Status(region.status().code(), what + ": " + region.status().message());
  }
  Result<ReadOnlyMapping> mapping = region->Map();
  if (!mapping.ok()) {
    return Status(mapping.status().code(), what + ": " + mapping.status().message());
  }
  return mapping;
}

std::string_view View(const flatbuffers::String* text) { return {text->c_str(), text->size()}; }

// Whether a tensor of this type and shape has this size.
bool IsSizeOf(uint64_t size_bytes, uint8_t dtype, const int64_t* shape, uint32_t rank) {
  if (dtype >= kDTypeCount) return true;  // A newer daemon's; it has no size we know.
  uint64_t elements = std::find(shape, shape + rank, 0) == shape + rank ? 1 : 0;
  for (uint32_t i = 0; i < rank; ++i) {
    if (shape[i] < 0 ||
        __builtin_mul_overflow(elements, static_cast<uint64_t>(shape[i]), &elements)) {
      return false;
    }
  }
  uint64_t bits;
  if (__builtin_mul_overflow(elements, uint64_t{DTypeBits(static_cast<DType>(dtype))}, &bits)) {
    return false;
  }
  return (bits + 7) / 8 == size_bytes;
}

}  // namespace

Result<std::shared_ptr<const MappedIndex>> MappedIndex::Map(const LeaseFacts& facts, UniqueFd fd) {
  if (facts.index_bytes < 2 * sizeof(flatbuffers::uoffset_t) ||
      facts.index_bytes >= FLATBUFFERS_MAX_BUFFER_SIZE) {
    return DataLossError("the tensor index can not have " + std::to_string(facts.index_bytes) +
                         " bytes");
  }
  std::shared_ptr<MappedIndex> index(new MappedIndex);
  ASSIGN_OR_RETURN(index->mapping_,
                   MapReceived(std::move(fd), facts.index_bytes, "the tensor index"));
  index->bytes_ = facts.index_bytes;

  // SAFETY: the index is sealed read-only memory, so what is checked stays so. The
  // root and the frames of its vectors are checked here, elements in Checked().
  const uint8_t* const data = Bytes(index->mapping_);
  constexpr uint64_t kPrefix = sizeof(flatbuffers::uoffset_t);
  constexpr uint64_t kShortest = kPrefix + sizeof(flatbuffers::uoffset_t) + 4;
  if (facts.index_bytes < kShortest || !v1::SizePrefixedTensorIndexBufferHasIdentifier(data)) {
    return DataLossError("what should be the tensor index does not have the identifier \"TIDX\"");
  }
  if (flatbuffers::ReadScalar<flatbuffers::uoffset_t>(data) > facts.index_bytes - kPrefix) {
    return DataLossError("the tensor index is cut off");
  }
  flatbuffers::Verifier verifier = VerifierOf(data, facts.index_bytes);
  const uint64_t root_offset =
      kPrefix + flatbuffers::ReadScalar<flatbuffers::uoffset_t>(data + kPrefix);
  if (root_offset + sizeof(flatbuffers::soffset_t) > facts.index_bytes) {
    return DataLossError("the tensor index is broken: its root lies outside of it");
  }
  const auto* table = reinterpret_cast<const flatbuffers::Table*>(data + root_offset);
  const auto* root = reinterpret_cast<const v1::TensorIndex*>(table);
  if (!table->VerifyTableStart(verifier) ||
      !table->VerifyOffsetRequired(verifier, v1::TensorIndex::VT_TENSORS) ||
      !verifier.VerifyVector(root->tensors()) ||
      !table->VerifyOffset(verifier, v1::TensorIndex::VT_METADATA) ||
      !verifier.VerifyVector(root->metadata())) {
    return DataLossError("the tensor index is broken: its root is malformed");
  }
  index->tensors_ = root->tensors();
  index->metadata_ = root->metadata();
  if (index->tensor_count() != facts.tensor_count) {
    return DataLossError("the tensor index lists " + std::to_string(index->tensor_count()) +
                         " tensors, announced were " + std::to_string(facts.tensor_count));
  }
  return std::shared_ptr<const MappedIndex>(std::move(index));
}

template <typename T>
const T* MappedIndex::Checked(const flatbuffers::Vector<flatbuffers::Offset<T>>& vector,
                              uint32_t index) const {
  const uint8_t* const data = Bytes(mapping_);
  const uint8_t* const element = vector.Data() + size_t{index} * sizeof(flatbuffers::uoffset_t);
  const uint64_t at = static_cast<uint64_t>(element - data) +
                      flatbuffers::ReadScalar<flatbuffers::uoffset_t>(element);
  if (at + sizeof(flatbuffers::soffset_t) > bytes_) return nullptr;
  const auto* table = reinterpret_cast<const T*>(data + at);
  flatbuffers::Verifier verifier = VerifierOf(data, bytes_);
  return table->Verify(verifier) ? table : nullptr;
}

bool IndexCache::Entry::IsOf(const LeaseFacts& facts) const {
  return index != nullptr && generation == facts.generation && digest == facts.digest &&
         granularity == facts.granularity && index_bytes == facts.index_bytes &&
         index->tensor_count() == facts.tensor_count && extent_bytes == facts.extent_bytes;
}

std::shared_ptr<const MappedIndex> IndexCache::Find(const LeaseFacts& facts) const {
  const MutexLock lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry.IsOf(facts)) return entry.index;
  }
  return nullptr;
}

void IndexCache::Keep(const LeaseFacts& facts, std::shared_ptr<const MappedIndex> index) {
  const MutexLock lock(mutex_);
  entries_[next_] = {facts.digest,      facts.generation,   facts.index_bytes,
                     facts.granularity, facts.extent_bytes, std::move(index)};
  next_ = (next_ + 1) % entries_.size();
}

void IndexCache::Clear() {
  const MutexLock lock(mutex_);
  entries_ = {};
}

Result<Weights> Weights::Map(const LeaseFacts& facts, std::vector<UniqueFd> fds,
                             const std::optional<TargetDevice>& device, IndexCache& cache) {
  TRIMS_CHECK(fds.size() == facts.extent_bytes.size() + 1);
  Weights weights;
  weights.index_ = cache.Find(facts);
  const bool is_known = weights.index_ != nullptr;
  if (!is_known) {
    ASSIGN_OR_RETURN(weights.index_, MappedIndex::Map(facts, std::move(fds[0])));
  }

  weights.extents_.reserve(facts.extent_bytes.size());
  for (size_t i = 0; i < facts.extent_bytes.size(); ++i) {
    const uint64_t bytes = facts.extent_bytes[i];
    if (device) {
      Result<DeviceExtent> extent = DeviceExtent::Map(*device, std::move(fds[i + 1]), bytes);
      if (!extent.ok()) {
        return Status(extent.status().code(),
                      "extent " + std::to_string(i) + ": " + extent.status().message());
      }
      // SAFETY: an address of the device, handed out as such and never followed here.
      const auto* const begin = reinterpret_cast<const std::byte*>(extent->pointer());
      weights.extents_.push_back({begin, bytes, std::move(extent).value()});
      continue;
    }
    ASSIGN_OR_RETURN(ReadOnlyMapping extent,
                     MapReceived(std::move(fds[i + 1]), bytes, "extent " + std::to_string(i)));
    const std::byte* const begin = extent.data();
    weights.extents_.push_back({begin, extent.size(), std::move(extent)});
  }
  if (!is_known) cache.Keep(facts, weights.index_);
  return weights;
}

StatusCode Weights::Tensor(uint32_t index, TensorView* tensor) const {
  if (index >= tensor_count()) return StatusCode::kOutOfRange;
  const v1::Tensor* entry = index_->Tensor(index);
  if (entry == nullptr || entry->extent() >= extents_.size()) return StatusCode::kDataLoss;
  const MappedExtent& extent = extents_[entry->extent()];
  if (entry->offset() > extent.size || entry->size_bytes() > extent.size - entry->offset() ||
      entry->offset() % kTensorAlignment != 0) {
    return StatusCode::kDataLoss;
  }
  TensorView view;
  if (entry->shape() != nullptr && entry->shape()->size() > 0) {
    // SAFETY: verified to lie in the index and to be aligned; little-endian.
    view.shape = reinterpret_cast<const int64_t*>(entry->shape()->Data());
    view.rank = entry->shape()->size();
  }
  if (!IsSizeOf(entry->size_bytes(), entry->dtype(), view.shape, view.rank)) {
    return StatusCode::kDataLoss;
  }
  view.name = View(entry->name());
  view.bytes = extent.data + entry->offset();
  view.size_bytes = entry->size_bytes();
  view.offset = entry->offset();
  view.extent = entry->extent();
  view.dtype = entry->dtype();
  *tensor = view;
  return StatusCode::kOk;
}

StatusCode Weights::Metadata(uint32_t index, MetadataView* pair) const {
  if (index >= metadata_count()) return StatusCode::kOutOfRange;
  const v1::KeyValue* entry = index_->Metadata(index);
  if (entry == nullptr) return StatusCode::kDataLoss;
  *pair = {View(entry->key()), View(entry->value())};
  return StatusCode::kOk;
}

StatusCode Weights::FindTensor(std::string_view name, TensorView* tensor) const {
  uint32_t low = 0;
  uint32_t high = tensor_count();
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    const v1::Tensor* entry = index_->Tensor(middle);
    if (entry == nullptr) return StatusCode::kDataLoss;
    const int order = View(entry->name()).compare(name);
    if (order == 0) return Tensor(middle, tensor);
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return StatusCode::kNotFound;
}

StatusCode Weights::FindMetadata(std::string_view key, MetadataView* pair) const {
  uint32_t low = 0;
  uint32_t high = metadata_count();
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    MetadataView entry;
    if (const StatusCode code = Metadata(middle, &entry); code != StatusCode::kOk) return code;
    const int order = entry.key.compare(key);
    if (order == 0) {
      *pair = entry;
      return StatusCode::kOk;
    }
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return StatusCode::kNotFound;
}

}  // namespace trims::client

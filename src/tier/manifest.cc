#include "tier/manifest.h"

#include <flatbuffers/flatbuffers.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/round.h"
#include "trims/v1/index_generated.h"
#include "trims/v1/sidecar_generated.h"

namespace trims {
namespace {

namespace fbs = v1::sidecar;

constexpr std::string_view kFrameMagic = "TRIMSMF1";
constexpr size_t kFrameBytes = 32;
constexpr uint64_t kMaxWeightBytes = uint64_t{1} << 60;  // Sums with padding stay far from 2^64.
static_assert(kFrameBytes % 16 == 0, "the FlatBuffer behind the frame must stay aligned");

uint64_t ChunkCount(uint64_t bytes) {
  return bytes / kChunkBytes + (bytes % kChunkBytes != 0 ? 1 : 0);
}

void StoreU64(std::string& out, size_t at, uint64_t value) {
  for (size_t i = 0; i < 8; ++i) out[at + i] = static_cast<char>(value >> (8 * i));
}

uint64_t LoadU64(const std::byte* in) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value |= static_cast<uint64_t>(in[i]) << (8 * i);
  return value;
}

// What a tensor of this type and shape must occupy; nullopt if it has no size.
std::optional<uint64_t> ExpectedBytes(DType dtype, const std::vector<int64_t>& shape) {
  uint64_t bits = DTypeBits(dtype);
  bool is_empty = false;
  for (const int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (dimension == 0) is_empty = true;
  }
  if (is_empty) return 0;
  for (const int64_t dimension : shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(dimension), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

// The verifier of FlatBuffers 2.0 checks where a vector's length lies but not
// where its elements do, which are 8 bytes wide here.
template <typename Vector>
bool IsAligned(const Vector* vector) {
  return vector->size() == 0 ||
         reinterpret_cast<uintptr_t>(vector->Data()) % alignof(uint64_t) == 0;
}

Status Damaged(const std::string& what) { return DataLossError("damaged manifest: " + what); }

Status CheckTensor(const ManifestTensor& tensor, const ModelManifest& manifest) {
  const std::string label = "tensor \"" + tensor.name.substr(0, 100) + "\"";
  if (tensor.name.size() > kMaxTensorNameBytes) {
    return Damaged("a tensor name of " + std::to_string(tensor.name.size()) + " bytes");
  }
  if (static_cast<uint8_t>(tensor.dtype) >= kDTypeCount) {
    return Damaged(label + " has the unknown type number " +
                   std::to_string(static_cast<unsigned>(tensor.dtype)));
  }
  if (tensor.shape.size() > kMaxTensorRank) {
    return Damaged(label + " has rank " + std::to_string(tensor.shape.size()));
  }
  const std::optional<uint64_t> expected = ExpectedBytes(tensor.dtype, tensor.shape);
  if (!expected || *expected != tensor.size_bytes) {
    return Damaged(label + " has a size that does not follow from its type and shape");
  }
  if (tensor.file >= manifest.file_identities.size()) {
    return Damaged(label + " lies in a file that is not listed");
  }
  const uint64_t file_size = manifest.file_identities[tensor.file].size;
  if (tensor.offset > file_size || tensor.size_bytes > file_size - tensor.offset) {
    return Damaged(label + " lies outside its file");
  }
  if (tensor.chunks.size() != ChunkCount(tensor.size_bytes)) {
    return Damaged(label + " has " + std::to_string(tensor.chunks.size()) +
                   " chunk checksums; expected " + std::to_string(ChunkCount(tensor.size_bytes)));
  }
  return OkStatus();
}

Digest DigestOf(const ModelManifest& manifest) {
  Sha256 hash;
  hash.Update(std::string_view("trims-model-v1\n"));
  hash.UpdateU64(manifest.tensors.size());
  for (const ManifestTensor& tensor : manifest.tensors) {
    hash.UpdateU64(tensor.name.size());
    hash.Update(std::string_view(tensor.name));
    hash.UpdateU64(static_cast<uint64_t>(tensor.dtype));
    hash.UpdateU64(tensor.shape.size());
    for (const int64_t dimension : tensor.shape) hash.UpdateU64(static_cast<uint64_t>(dimension));
    hash.Update(std::as_bytes(std::span(tensor.content.bytes)));
  }
  return hash.Finish();
}

Digest KeyOf(const ExtentSpec& extent, const ModelManifest& manifest) {
  Sha256 hash;
  hash.Update(std::string_view("trims-extent-v1\n"));
  hash.UpdateU64(extent.bytes);
  hash.UpdateU64(extent.pieces.size());
  for (const Piece& piece : extent.pieces) {
    const ManifestTensor& tensor = manifest.tensors[piece.tensor];
    hash.Update(std::as_bytes(std::span(tensor.content.bytes)));
    hash.UpdateU64(tensor.size_bytes);
    hash.UpdateU64(piece.extent_offset);
  }
  return hash.Finish();
}

// Collects extents one after the other and keeps one of each key.
class LayoutBuilder final {
 public:
  LayoutBuilder(const ModelManifest& manifest, Layout& layout)
      : manifest_(manifest), layout_(layout) {}

  uint64_t open_bytes() const { return end_; }

  void Append(uint32_t tensor) {
    const uint64_t offset = RoundUp(end_, kTensorAlignment);
    open_.pieces.push_back({tensor, offset});
    end_ = offset + manifest_.tensors[tensor].size_bytes;
  }

  // Ends the extent that is open, if it has anything in it.
  void Close() {
    if (open_.pieces.empty()) return;
    open_.bytes = RoundUp(end_, kHostPageBytes);
    open_.key = KeyOf(open_, manifest_);
    const auto [found, is_new] =
        by_key_.emplace(open_.key, static_cast<uint32_t>(layout_.extents.size()));
    for (const Piece& piece : open_.pieces) {
      layout_.placements[piece.tensor] = {found->second, piece.extent_offset};
    }
    if (is_new) layout_.extents.push_back(std::move(open_));
    open_ = {};
    end_ = 0;
  }

 private:
  const ModelManifest& manifest_;
  Layout& layout_;
  std::unordered_map<Digest, uint32_t> by_key_;
  ExtentSpec open_;
  uint64_t end_ = 0;
};

}  // namespace

Result<FileIdentity> IdentifyFile(int fd, const std::string& description) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "reading the state of " + description);
  if (!S_ISREG(info.st_mode)) {
    return InvalidArgumentError(description + " is not a regular file: weights must be in one");
  }
  FileIdentity identity;
  identity.device = info.st_dev;
  identity.inode = info.st_ino;
  identity.size = static_cast<uint64_t>(info.st_size);
  identity.mtime_ns = info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec;
  identity.ctime_ns = info.st_ctim.tv_sec * int64_t{1'000'000'000} + info.st_ctim.tv_nsec;
  return identity;
}

void FinishManifest(ModelManifest& manifest) {
  manifest.weight_bytes = 0;
  for (const ManifestTensor& tensor : manifest.tensors) manifest.weight_bytes += tensor.size_bytes;
  manifest.digest = DigestOf(manifest);
}

std::string SerializeManifest(const ModelManifest& manifest) {
  flatbuffers::FlatBufferBuilder builder(1024 + manifest.tensors.size() * 192);
  std::vector<flatbuffers::Offset<fbs::Tensor>> tensors;
  tensors.reserve(manifest.tensors.size());
  std::vector<fbs::Checksum> chunks;
  for (const ManifestTensor& tensor : manifest.tensors) {
    chunks.clear();
    for (const Checksum& chunk : tensor.chunks) chunks.emplace_back(chunk.low, chunk.high);
    const auto name = builder.CreateString(tensor.name);
    const auto shape = tensor.shape.empty() ? 0 : builder.CreateVector(tensor.shape);
    const auto content =
        builder.CreateVector(tensor.content.bytes.data(), tensor.content.bytes.size());
    const auto chunk_vector = chunks.empty() ? 0 : builder.CreateVectorOfStructs(chunks);
    tensors.push_back(fbs::CreateTensor(builder, name, static_cast<uint8_t>(tensor.dtype), shape,
                                        tensor.file, tensor.offset, tensor.size_bytes, content,
                                        chunk_vector));
  }
  std::vector<fbs::FileIdentity> files;
  files.reserve(manifest.file_identities.size());
  for (const FileIdentity& file : manifest.file_identities) {
    files.emplace_back(file.device, file.inode, file.size, file.mtime_ns, file.ctime_ns);
  }
  std::vector<flatbuffers::Offset<fbs::KeyValue>> metadata;
  for (const auto& [key, value] : manifest.metadata) {
    const auto key_string = builder.CreateString(key);
    metadata.push_back(fbs::CreateKeyValue(builder, key_string, builder.CreateString(value)));
  }
  const auto digest =
      builder.CreateVector(manifest.digest.bytes.data(), manifest.digest.bytes.size());
  const auto file_vector = builder.CreateVectorOfStructs(files);
  const auto tensor_vector = builder.CreateVector(tensors);
  const auto metadata_vector = metadata.empty() ? 0 : builder.CreateVector(metadata);
  fbs::FinishManifestBuffer(
      builder, fbs::CreateManifest(builder, digest, file_vector, tensor_vector, metadata_vector));

  const std::span<const std::byte> payload =
      std::as_bytes(std::span(builder.GetBufferPointer(), builder.GetSize()));
  const Checksum checksum = ChecksumOf(payload, payload.size());
  std::string out(kFrameBytes + payload.size(), '\0');
  std::memcpy(out.data(), kFrameMagic.data(), kFrameMagic.size());
  StoreU64(out, 8, payload.size());
  StoreU64(out, 16, checksum.low);
  StoreU64(out, 24, checksum.high);
  std::memcpy(out.data() + kFrameBytes, payload.data(), payload.size());
  return out;
}

Result<ModelManifest> DeserializeManifest(std::span<const std::byte> bytes) {
  if (bytes.size() < kFrameBytes) {
    return Damaged(std::to_string(bytes.size()) + " bytes, less than its frame of " +
                   std::to_string(kFrameBytes));
  }
  if (std::memcmp(bytes.data(), kFrameMagic.data(), kFrameMagic.size()) != 0) {
    return Damaged("it does not begin with " + std::string(kFrameMagic) +
                   " (of another version, or no manifest)");
  }
  std::span<const std::byte> payload = bytes.subspan(kFrameBytes);
  if (LoadU64(bytes.data() + 8) != payload.size()) {
    return Damaged("it says " + std::to_string(LoadU64(bytes.data() + 8)) + " bytes and has " +
                   std::to_string(payload.size()));
  }
  const Checksum expected{LoadU64(bytes.data() + 16), LoadU64(bytes.data() + 24)};
  if (ChecksumOf(payload, payload.size()) != expected) return Damaged("its checksum is wrong");

  // FlatBuffers reads numbers in place, so an unaligned view is copied first.
  std::unique_ptr<uint64_t[]> aligned;
  if (reinterpret_cast<uintptr_t>(payload.data()) % alignof(uint64_t) != 0) {
    aligned = std::make_unique<uint64_t[]>(payload.size() / sizeof(uint64_t) + 1);
    std::memcpy(aligned.get(), payload.data(), payload.size());
    payload = {reinterpret_cast<const std::byte*>(aligned.get()), payload.size()};
  }
  const auto* data = reinterpret_cast<const uint8_t*>(payload.data());
  flatbuffers::Verifier verifier(data, payload.size(), /*max_depth=*/8,
                                 /*max_tables=*/2 * kMaxTensorsPerModel);
  if (!fbs::VerifyManifestBuffer(verifier)) return Damaged("it is no valid FlatBuffer");
  const fbs::Manifest* const root = fbs::GetManifest(data);

  ModelManifest manifest;
  if (root->files()->size() > kMaxFilesPerModel) return Damaged("too many files");
  if (root->tensors()->size() > kMaxTensorsPerModel) return Damaged("too many tensors");
  if (!IsAligned(root->files())) return Damaged("its list of files is misaligned");
  for (const fbs::FileIdentity* file : *root->files()) {
    manifest.file_identities.push_back(
        {file->device(), file->inode(), file->size(), file->mtime_ns(), file->ctime_ns()});
  }
  manifest.tensors.reserve(root->tensors()->size());
  uint64_t weight_bytes = 0;
  for (const fbs::Tensor* source : *root->tensors()) {
    ManifestTensor tensor;
    tensor.name = source->name()->str();
    tensor.dtype = static_cast<DType>(source->dtype());
    if (source->shape() != nullptr) {
      if (source->shape()->size() > kMaxTensorRank) return Damaged("a rank above the limit");
      if (!IsAligned(source->shape())) return Damaged("a shape is misaligned");
      tensor.shape.assign(source->shape()->begin(), source->shape()->end());
    }
    tensor.file = source->file();
    tensor.offset = source->offset();
    tensor.size_bytes = source->size_bytes();
    const Result<Digest> content =
        Digest::FromBytes(source->content()->data(), source->content()->size());
    if (!content.ok()) return Damaged("a tensor's SHA-256 that is not 32 bytes");
    tensor.content = *content;
    if (source->chunks() != nullptr) {
      if (!IsAligned(source->chunks())) return Damaged("a list of checksums is misaligned");
      tensor.chunks.reserve(source->chunks()->size());
      for (const fbs::Checksum* chunk : *source->chunks()) {
        tensor.chunks.push_back({chunk->low(), chunk->high()});
      }
    }
    RETURN_IF_ERROR(CheckTensor(tensor, manifest));
    if (!manifest.tensors.empty() && !(manifest.tensors.back().name < tensor.name)) {
      return Damaged("tensors are not sorted by name, or not unique");
    }
    if (__builtin_add_overflow(weight_bytes, tensor.size_bytes, &weight_bytes) ||
        weight_bytes > kMaxWeightBytes) {
      return Damaged("more than 2^60 bytes of weights");
    }
    manifest.tensors.push_back(std::move(tensor));
  }
  if (root->metadata() != nullptr) {
    const std::string* last_key = nullptr;
    for (const fbs::KeyValue* pair : *root->metadata()) {
      const auto [at, is_new] = manifest.metadata.emplace(pair->key()->str(), pair->value()->str());
      if (!is_new || (last_key != nullptr && !(*last_key < at->first))) {
        return Damaged("metadata is not sorted by key, or not unique");
      }
      last_key = &at->first;
    }
  }
  FinishManifest(manifest);
  const Result<Digest> digest = Digest::FromBytes(root->digest()->data(), root->digest()->size());
  if (!digest.ok() || *digest != manifest.digest) {
    return Damaged("its digest does not follow from its tensors");
  }
  return manifest;
}

Result<Layout> MakeLayout(const ModelManifest& manifest, store::Granularity granularity,
                          uint64_t slab_bytes) {
  const bool is_slab = granularity == store::Granularity::kSlab;
  if (is_slab && (slab_bytes < kHostPageBytes || slab_bytes % kHostPageBytes != 0)) {
    return InvalidArgumentError("a slab of " + std::to_string(slab_bytes) +
                                " bytes: expected a positive multiple of " +
                                std::to_string(kHostPageBytes));
  }
  Layout layout;
  layout.granularity = granularity;
  layout.placements.resize(manifest.tensors.size());

  LayoutBuilder shared(manifest, layout);
  for (uint32_t i = 0; i < manifest.tensors.size(); ++i) {
    const uint64_t size = manifest.tensors[i].size_bytes;
    if (size == 0) continue;  // Stays at offset 0 of extent 0.
    switch (granularity) {
      case store::Granularity::kModel:
        shared.Append(i);
        break;
      case store::Granularity::kSlab:
        // A tensor larger than a slab ends up alone: nothing fits behind it.
        if (RoundUp(shared.open_bytes(), kTensorAlignment) + size > slab_bytes) shared.Close();
        shared.Append(i);
        break;
      case store::Granularity::kLayer:
        shared.Append(i);
        shared.Close();
        break;
    }
    if (layout.extents.size() > kMaxExtentsPerModel) {
      return ResourceExhaustedError(
          is_slab
              ? "slabs of " + std::to_string(slab_bytes) +
                    " bytes would cut this model into "
                    "more than " +
                    std::to_string(kMaxExtentsPerModel) +
                    " extents: use larger slabs or the granularity \"model\""
              : "the granularity \"layer\" would cut this model into more than " +
                    std::to_string(kMaxExtentsPerModel) + " extents: use \"slab\" or \"model\"");
    }
  }
  shared.Close();
  if (layout.extents.size() > kMaxExtentsPerModel) {
    return ResourceExhaustedError("this model would be cut into more than " +
                                  std::to_string(kMaxExtentsPerModel) +
                                  " extents: use the granularity \"model\"");
  }
  if (layout.extents.empty()) {
    ExtentSpec page;
    page.bytes = kHostPageBytes;
    page.key = KeyOf(page, manifest);
    layout.extents.push_back(std::move(page));
  }
  return layout;
}

store::ModelPlan MakePlan(const ModelManifest& manifest, const Layout& layout, std::string name) {
  store::ModelPlan plan;
  plan.model = manifest.digest;
  plan.name = std::move(name);
  plan.extents.reserve(layout.extents.size());
  for (const ExtentSpec& extent : layout.extents)
    plan.extents.push_back({extent.key, extent.bytes});
  plan.weight_bytes = manifest.weight_bytes;
  return plan;
}

std::string BuildTensorIndex(const ModelManifest& manifest, const Layout& layout) {
  flatbuffers::FlatBufferBuilder builder(1024 + manifest.tensors.size() * 128);
  // The last one first: what is built last comes to lie in front, beside the vector, so that
  // a client's first look at the first tensors is one page fault.
  std::vector<flatbuffers::Offset<v1::Tensor>> tensors(manifest.tensors.size());
  for (size_t i = manifest.tensors.size(); i-- > 0;) {
    const ManifestTensor& tensor = manifest.tensors[i];
    const auto name = builder.CreateString(tensor.name);
    const auto shape = tensor.shape.empty() ? 0 : builder.CreateVector(tensor.shape);
    tensors[i] = v1::CreateTensor(builder, name, static_cast<uint8_t>(tensor.dtype), shape,
                                  layout.placements[i].extent, layout.placements[i].offset,
                                  tensor.size_bytes);
  }
  std::vector<flatbuffers::Offset<v1::KeyValue>> metadata;
  for (const auto& [key, value] : manifest.metadata) {
    const auto key_string = builder.CreateString(key);
    metadata.push_back(v1::CreateKeyValue(builder, key_string, builder.CreateString(value)));
  }
  // The manifest is sorted as the schema's keys ask, by bytes; FlatBuffers' own
  // sort would compare the same and cost time.
  const auto tensor_vector = builder.CreateVector(tensors);
  const auto metadata_vector = metadata.empty() ? 0 : builder.CreateVector(metadata);
  v1::FinishSizePrefixedTensorIndexBuffer(
      builder, v1::CreateTensorIndex(builder, tensor_vector, metadata_vector));
  return std::string(reinterpret_cast<const char*>(builder.GetBufferPointer()), builder.GetSize());
}

}  // namespace trims

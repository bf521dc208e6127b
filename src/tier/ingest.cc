#include "tier/ingest.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "base/hash.h"
#include "base/limits.h"
#include "base/text.h"
#include "tier/crew.h"

namespace trims {
namespace {

// What FlatBuffers can hold is 2 GiB; a manifest near that is an attack or a
// model beyond what one node can hold.
constexpr uint64_t kMaxManifestBytes = kGiB;
constexpr size_t kHashStepBytes = 256 * kKiB;  // Hashed while still in the cache.

// Messages show at most this much of a name.
constexpr size_t kShownNameBytes = 200;

// The tensors of all files of the source with their places, unhashed, sorted.
Result<ModelManifest> ReadHeaders(const Source& source,
                                  const std::vector<format::FileSource>& files) {
  ModelManifest manifest;
  manifest.file_identities = source.Identities();
  const std::optional<format::ShardIndex>& shards = source.shard_index();
  uint64_t manifest_bytes = 0;
  uint64_t weight_bytes = 0;
  for (uint32_t i = 0; i < files.size(); ++i) {
    ASSIGN_OR_RETURN(format::FileIndex index, format::ParseModelFile(files[i]));
    for (format::TensorEntry& entry : index.tensors) {
      if (shards) {
        const auto mapped = shards->weight_map.find(entry.name);
        if (mapped == shards->weight_map.end() || mapped->second != shards->files[i]) {
          return InvalidArgumentError(
              files[i].description() + " holds the tensor " + Quoted(entry.name, kShownNameBytes) +
              ", which the index " + source.DescribeFile(files.size()) +
              (mapped == shards->weight_map.end() ? " does not name"
                                                  : " says is in " + mapped->second));
        }
      }
      manifest_bytes += entry.name.size() + 8 * entry.shape.size() +
                        sizeof(Checksum) * (entry.size_bytes / kChunkBytes + 1) + 128;
      if (__builtin_add_overflow(weight_bytes, entry.size_bytes, &weight_bytes) ||
          manifest_bytes > kMaxManifestBytes || manifest.tensors.size() >= kMaxTensorsPerModel) {
        return ResourceExhaustedError(
            source.description() + " is larger than any model can be: more than " +
            std::to_string(kMaxTensorsPerModel) + " tensors or " +
            std::to_string(kMaxManifestBytes) + " bytes to describe them");
      }
      ManifestTensor tensor;
      tensor.name = std::move(entry.name);
      tensor.dtype = entry.dtype;
      tensor.shape = std::move(entry.shape);
      tensor.file = i;
      tensor.offset = entry.offset;
      tensor.size_bytes = entry.size_bytes;
      manifest.tensors.push_back(std::move(tensor));
    }
    // Shards repeat their metadata; where they differ the first one counts.
    for (auto& [key, value] : index.metadata) {
      manifest_bytes += key.size() + value.size() + 64;
      manifest.metadata.emplace(key, std::move(value));
    }
  }
  std::sort(manifest.tensors.begin(), manifest.tensors.end(),
            [](const ManifestTensor& a, const ManifestTensor& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(
      manifest.tensors.begin(), manifest.tensors.end(),
      [](const ManifestTensor& a, const ManifestTensor& b) { return a.name == b.name; });
  if (twice != manifest.tensors.end()) {
    return InvalidArgumentError(source.description() + " holds the tensor " +
                                Quoted(twice->name, kShownNameBytes) + " twice, in " +
                                files[twice->file].description() + " and " +
                                files[(twice + 1)->file].description());
  }
  if (shards && shards->weight_map.size() != manifest.tensors.size()) {
    // Every tensor found is named, so some name has no tensor. Both are sorted.
    auto tensor = manifest.tensors.begin();
    for (const auto& [name, file] : shards->weight_map) {
      if (tensor != manifest.tensors.end() && tensor->name == name) {
        ++tensor;
        continue;
      }
      return InvalidArgumentError("the index " + source.DescribeFile(files.size()) +
                                  " names the tensor " + Quoted(name, kShownNameBytes) +
                                  ", which its shard " + file + " does not hold");
    }
  }
  return manifest;
}

// Fills `content` and `chunks`. `buffer` has kChunkBytes.
Status HashTensor(const format::FileSource& file, ManifestTensor& tensor,
                  std::span<std::byte> buffer, const std::atomic<bool>& stop, Progress& progress) {
  Sha256 hash;
  for (uint64_t at = 0; at < tensor.size_bytes;) {
    if (stop.load(std::memory_order_relaxed)) return OkStatus();
    const std::span<std::byte> chunk =
        buffer.first(static_cast<size_t>(std::min(kChunkBytes, tensor.size_bytes - at)));
    for (size_t done = 0; done < chunk.size();) {
      const std::span<std::byte> step =
          chunk.subspan(done, std::min(kHashStepBytes, chunk.size() - done));
      RETURN_IF_ERROR(file.ReadAt(tensor.offset + at + done, step));
      hash.Update(step);
      done += step.size();
    }
    tensor.chunks.push_back(ChecksumOf(chunk));
    at += chunk.size();
    RETURN_IF_ERROR(progress.Add(chunk.size()));
  }
  tensor.content = hash.Finish();
  return OkStatus();
}

Status HashTensors(const std::vector<format::FileSource>& files, ModelManifest& manifest,
                   LoadControl& control, int threads) {
  // The hash of one tensor is sequential: the largest first, so that none of them
  // is left over at the end.
  std::vector<uint32_t> order(manifest.tensors.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return manifest.tensors[a].size_bytes > manifest.tensors[b].size_bytes;
  });
  uint64_t total = 0;
  for (const ManifestTensor& tensor : manifest.tensors) total += tensor.size_bytes;
  Progress progress(control, total);
  RETURN_IF_ERROR(progress.CheckWanted());
  std::atomic<size_t> next{0};
  return RunCrew(CrewSize(threads, order.size()), [&](const std::atomic<bool>& stop) -> Status {
    std::vector<std::byte> buffer(kChunkBytes);
    while (!stop.load(std::memory_order_relaxed)) {
      const size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= order.size()) break;
      ManifestTensor& tensor = manifest.tensors[order[i]];
      const Status status = HashTensor(files[tensor.file], tensor, buffer, stop, progress);
      if (status.code() == StatusCode::kOutOfRange) {
        return DataLossError("tensor " + Quoted(tensor.name, kShownNameBytes) + ": " +
                             status.message());
      }
      RETURN_IF_ERROR(status);
    }
    return OkStatus();
  });
}

}  // namespace

Result<IngestResult> Ingest(const Source& source, SidecarStore* sidecars, LoadControl& control,
                            int threads) {
  if (source.has_forgeable_identity()) sidecars = nullptr;
  if (sidecars != nullptr) {
    if (std::shared_ptr<const ModelManifest> known = sidecars->Find(source.Identities())) {
      return IngestResult{std::move(known), /*from_sidecar=*/true, OkStatus()};
    }
  }
  std::vector<format::FileSource> files;
  files.reserve(source.weight_file_count());
  for (size_t i = 0; i < source.weight_file_count(); ++i) {
    ASSIGN_OR_RETURN(format::FileSource file,
                     format::FileSource::Open(source.files()[i].fd.get(), source.DescribeFile(i)));
    files.push_back(std::move(file));
  }
  Result<ModelManifest> manifest = ReadHeaders(source, files);
  Status status = manifest.status();
  if (status.ok()) status = HashTensors(files, *manifest, control, threads);
  // Whatever went wrong: if a file changed meanwhile, that is the reason.
  if (status.code() != StatusCode::kCancelled) RETURN_IF_ERROR(source.CheckUnchanged());
  RETURN_IF_ERROR(status);
  FinishManifest(*manifest);
  IngestResult result;
  if (sidecars != nullptr) result.sidecar_status = sidecars->Put(*manifest);
  result.manifest = std::make_shared<const ModelManifest>(std::move(manifest).value());
  return result;
}

}  // namespace trims

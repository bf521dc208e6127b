// Loading into host memory.
//
// Every extent gets a memfd; threads take chunks of up to 8 MiB in file order and
// bring each one from the source into its place, then compare the checksum of what
// lies there with the manifest's, while it is still in the cache. Nothing leaves
// this file before every chunk has compared equal and every memfd is sealed.
//
// There are two ways to fill, because of what a page fault costs. On 2 MiB pages
// the source is read straight into the mapping: one copy. On 4 KiB pages a fault
// for each of them costs more than copying it twice, so the source is read into a
// small buffer that stays in the cache, written with write(2), and read back for
// the checksum; measured, that is 1.4 times as fast as faulting.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <utility>

#include "base/hash.h"
#include "base/limits.h"
#include "base/machine.h"
#include "base/round.h"
#include "ipc/region.h"
#include "tier/chunk_read.h"
#include "tier/chunk_work.h"
#include "tier/crew.h"
#include "tier/tier.h"

namespace trims {
namespace {

constexpr uint64_t kCopyStepBytes = 256 * kKiB;  // Stays in a core's cache between copies.
constexpr uint64_t kPopulateStepBytes = 64 * kMiB;

class HostTier final : public Tier {
 public:
  explicit HostTier(const HostTierOptions& options) : options_(options) {
    if (!options_.available_bytes) {
      options_.available_bytes = [] { return AvailableMemoryBytes(); };
    }
  }

  const std::string& name() const override { return name_; }
  store::TierKind kind() const override { return store::TierKind::kHost; }

  uint64_t AllocationBytes(uint64_t bytes) const override {
    return RoundUp(bytes, WantsHugePages(bytes) ? kHugePageBytes : kHostPageBytes);
  }

  Result<std::vector<ResidentExtent>> Load(const LoadJob& job, LoadControl& control) override;
  Result<ResidentExtent> Adopt(const ExtentSpec& spec, UniqueFd fd,
                               const std::string& integrity) override;
  Status Verify(const ResidentExtent& extent, const ExtentSpec& spec, const ModelManifest& manifest,
                LoadControl& control) override;
  std::optional<uint64_t> FreeBytes() const override { return options_.available_bytes(); }

 private:
  bool WantsHugePages(uint64_t bytes) const {
    return options_.use_hugetlb && bytes >= kHugeExtentBytes;
  }
  Result<std::vector<WritableRegion>> Allocate(const LoadJob& job, const Progress& progress) const;
  Status Fill(const LoadJob& job, const ChunkWork& work, WritableRegion& region,
              std::vector<std::byte>& buffer) const;

  const std::string name_ = "host";
  HostTierOptions options_;
};

// One region for each extent, on 2 MiB pages where those are really there.
Result<std::vector<WritableRegion>> HostTier::Allocate(const LoadJob& job,
                                                       const Progress& progress) const {
  const auto label = [&](size_t i) { return "trims:" + job.extents[i]->key.ToShort(); };
  std::vector<std::optional<WritableRegion>> huge(job.extents.size());
  struct Step {
    size_t extent;
    uint64_t offset;
  };
  std::vector<Step> steps;
  for (size_t i = 0; i < job.extents.size(); ++i) {
    if (!WantsHugePages(job.extents[i]->bytes)) continue;
    Result<WritableRegion> region =
        WritableRegion::Create(label(i), job.extents[i]->bytes, PageKind::kHuge2M);
    if (!region.ok()) continue;
    huge[i] = std::move(region).value();
    for (uint64_t at = 0; at < huge[i]->size(); at += kPopulateStepBytes) steps.push_back({i, at});
  }
  // A reserved page can still be refused when it is touched: by a hugetlb control
  // group limit (which pods have by default) or a NUMA binding. So they are all
  // allocated before the first byte is read.
  std::vector<std::atomic<bool>> refused(job.extents.size());
  std::atomic<size_t> next{0};
  const Status populated = RunCrew(
      CrewSize(options_.io_threads, steps.size()), [&](const std::atomic<bool>& stop) -> Status {
        while (!stop.load(std::memory_order_relaxed)) {
          const size_t s = next.fetch_add(1, std::memory_order_relaxed);
          if (s >= steps.size()) break;
          RETURN_IF_ERROR(progress.CheckWanted());
          WritableRegion& region = *huge[steps[s].extent];
          const uint64_t bytes = std::min(kPopulateStepBytes, region.size() - steps[s].offset);
          if (!region.Populate(steps[s].offset, bytes).ok()) refused[steps[s].extent] = true;
        }
        return OkStatus();
      });
  RETURN_IF_ERROR(populated);

  uint64_t plain_bytes = 0;
  for (size_t i = 0; i < job.extents.size(); ++i) {
    if (refused[i]) huge[i].reset();
    if (!huge[i]) plain_bytes += RoundUp(job.extents[i]->bytes, kHostPageBytes);
  }
  if (const uint64_t available = options_.available_bytes(); plain_bytes > available) {
    return ResourceExhaustedError("loading needs " + std::to_string(plain_bytes) +
                                  " bytes of host memory and " + std::to_string(available) +
                                  " are available on this machine or in this control group: lower "
                                  "the host tier's capacity, or give the daemon more memory");
  }
  std::vector<WritableRegion> regions;
  regions.reserve(job.extents.size());
  for (size_t i = 0; i < job.extents.size(); ++i) {
    if (huge[i]) {
      regions.push_back(std::move(*huge[i]));
      continue;
    }
    ASSIGN_OR_RETURN(WritableRegion region,
                     WritableRegion::Create(label(i), job.extents[i]->bytes, PageKind::kPlain));
    regions.push_back(std::move(region));
  }
  return regions;
}

// Brings one chunk to its place and checks what arrived there.
Status HostTier::Fill(const LoadJob& job, const ChunkWork& work, WritableRegion& region,
                      std::vector<std::byte>& buffer) const {
  const ManifestTensor& tensor = job.manifest->tensors[work.tensor];
  const int fd = job.source->files()[tensor.file].fd.get();
  const uint64_t file_offset = tensor.offset + uint64_t{work.chunk} * kChunkBytes;
  const auto describe = [&] {
    return job.source->DescribeFile(tensor.file) + ", " + DescribeChunk(tensor, work.chunk);
  };
  std::span<std::byte> landed;
  if (region.has_large_pages()) {
    RETURN_IF_ERROR(region.Populate(work.extent_offset, work.bytes));
    landed = region.bytes().subspan(work.extent_offset, work.bytes);
    RETURN_IF_ERROR(ReadExactly(fd, file_offset, landed, describe()));
  } else {
    buffer.resize(kChunkBytes);
    landed = std::span(buffer).first(work.bytes);
    for (uint64_t at = 0; at < work.bytes; at += kCopyStepBytes) {
      const auto step = landed.subspan(at, std::min<uint64_t>(kCopyStepBytes, work.bytes - at));
      RETURN_IF_ERROR(ReadExactly(fd, file_offset + at, step, describe()));
      RETURN_IF_ERROR(region.Write(work.extent_offset + at, step));
      RETURN_IF_ERROR(region.Read(work.extent_offset + at, step));
    }
  }
  if (ChecksumOf(landed) != tensor.chunks[work.chunk]) {
    return DamagedChunkError(describe(), work, file_offset);
  }
  return OkStatus();
}

Result<std::vector<ResidentExtent>> HostTier::Load(const LoadJob& job, LoadControl& control) {
  if (job.manifest->file_identities != job.source->Identities()) {
    return AbortedError(job.source->description() +
                        " is no longer the file that this model was read from: open it again");
  }
  RETURN_IF_ERROR(job.source->CheckUnchanged());
  ASSIGN_OR_RETURN(std::vector<ChunkWork> work, ListChunks(*job.manifest, job.extents));
  // In file order, so that a disk sees one pass over the file.
  const std::vector<ManifestTensor>& tensors = job.manifest->tensors;
  std::sort(work.begin(), work.end(), [&](const ChunkWork& a, const ChunkWork& b) {
    return std::tie(tensors[a.tensor].file, tensors[a.tensor].offset, a.tensor, a.chunk, a.extent) <
           std::tie(tensors[b.tensor].file, tensors[b.tensor].offset, b.tensor, b.chunk, b.extent);
  });
  uint64_t total = 0;
  for (const ChunkWork& chunk : work) total += chunk.bytes;
  Progress progress(control, total);
  RETURN_IF_ERROR(progress.CheckWanted());

  ASSIGN_OR_RETURN(std::vector<WritableRegion> regions, Allocate(job, progress));
  std::atomic<size_t> next{0};
  Status status = RunCrew(CrewSize(options_.io_threads, work.size()),
                          [&](const std::atomic<bool>& stop) -> Status {
                            std::vector<std::byte> buffer;
                            while (!stop.load(std::memory_order_relaxed)) {
                              const size_t i = next.fetch_add(1, std::memory_order_relaxed);
                              if (i >= work.size()) break;
                              RETURN_IF_ERROR(Fill(job, work[i], regions[work[i].extent], buffer));
                              RETURN_IF_ERROR(progress.Add(work[i].bytes));
                            }
                            return OkStatus();
                          });
  if (status.code() == StatusCode::kDataLoss || status.code() == StatusCode::kOutOfRange) {
    // A file that is being written explains both, and is not a damaged one.
    RETURN_IF_ERROR(job.source->CheckUnchanged());
    return DataLossError(status.message());
  }
  RETURN_IF_ERROR(status);

  std::vector<ResidentExtent> resident;
  resident.reserve(regions.size());
  for (size_t i = 0; i < regions.size(); ++i) {
    ASSIGN_OR_RETURN(ReadOnlyRegion sealed, std::move(regions[i]).Seal());
    ResidentExtent extent;
    extent.key = job.extents[i]->key;
    extent.bytes = AllocationBytes(job.extents[i]->bytes);
    extent.map_bytes = sealed.size();
    extent.fd = std::move(sealed).TakeFd();
    resident.push_back(std::move(extent));
  }
  return resident;
}

Result<ResidentExtent> HostTier::Adopt(const ExtentSpec& spec, UniqueFd fd,
                                       const std::string& /*integrity*/) {
  ResidentExtent extent;
  extent.key = spec.key;
  // Which pages the earlier worker found free decides between two sizes.
  const off_t end = ::lseek(fd.get(), 0, SEEK_END);
  extent.map_bytes = end == static_cast<off_t>(RoundUp(spec.bytes, kHugePageBytes))
                         ? RoundUp(spec.bytes, kHugePageBytes)
                         : RoundUp(spec.bytes, kHostPageBytes);
  ASSIGN_OR_RETURN(ReadOnlyRegion region, ReadOnlyRegion::Adopt(std::move(fd), extent.map_bytes));
  extent.bytes = std::max(AllocationBytes(spec.bytes), extent.map_bytes);
  extent.fd = std::move(region).TakeFd();
  return extent;
}

Status HostTier::Verify(const ResidentExtent& extent, const ExtentSpec& spec,
                        const ModelManifest& manifest, LoadControl& control) {
  ASSIGN_OR_RETURN(const std::vector<ChunkWork> work, ListChunks(manifest, {&spec}));
  uint64_t total = 0;
  for (const ChunkWork& chunk : work) total += chunk.bytes;
  Progress progress(control, total);
  RETURN_IF_ERROR(progress.CheckWanted());
  std::atomic<size_t> next{0};
  // By read(2) and not through a mapping: memory that the hardware has given up is
  // an error here and would be a SIGBUS there.
  return RunCrew(
      CrewSize(options_.io_threads, work.size()), [&](const std::atomic<bool>& stop) -> Status {
        std::vector<std::byte> buffer(kChunkBytes);
        while (!stop.load(std::memory_order_relaxed)) {
          const size_t i = next.fetch_add(1, std::memory_order_relaxed);
          if (i >= work.size()) break;
          const ManifestTensor& tensor = manifest.tensors[work[i].tensor];
          const auto bytes = std::span(buffer).first(work[i].bytes);
          const Status read =
              ReadExactly(extent.fd.get(), work[i].extent_offset, bytes, "resident memory");
          if (!read.ok()) {
            return DataLossError(DescribeChunk(tensor, work[i].chunk) + ": " + read.message());
          }
          if (ChecksumOf(bytes) != tensor.chunks[work[i].chunk]) {
            return DataLossError("resident memory, " + DescribeChunk(tensor, work[i].chunk) +
                                 ": the checksum differs from the one it was loaded with");
          }
          RETURN_IF_ERROR(progress.Add(work[i].bytes));
        }
        return OkStatus();
      });
}

}  // namespace

std::unique_ptr<Tier> MakeHostTier(const HostTierOptions& options) {
  return std::make_unique<HostTier>(options);
}

}  // namespace trims

#include "tier/device_hash.h"

#include <algorithm>
#include <utility>

#include "base/limits.h"
#include "base/universal_hash_kernel.h"
#include "cuda/kernels/kernels.h"

namespace trims {
namespace {

// A launch takes a quarter of a millisecond for so many bytes, and 4 GiB pass between
// two looks at whether the result is still wanted.
constexpr uint64_t kLaunchBytes = kGiB;
constexpr uint64_t kFlushBytes = 4 * kGiB;
constexpr uint64_t kPartials = 64 * kKiB;
constexpr uint64_t kLandingPartials = 256 * kKiB;  // 4 MiB.

static_assert(kLaunchBytes % kUniversalHashBlockBytes == 0);

Result<cuda::Module> LoadKernels(const cuda::Context& context) {
  Status failure = UnimplementedError("this build has no device code");
  for (const std::span<const std::byte> image : cuda::UniversalHashImages()) {
    if (image.empty()) continue;
    Result<cuda::Module> module = cuda::Module::Load(context, image);
    if (module.ok()) return module;
    failure = module.status();
  }
  return failure;
}

}  // namespace

Result<std::unique_ptr<DeviceHash>> DeviceHash::Make(std::shared_ptr<const cuda::Context> context,
                                                     std::shared_ptr<const UniversalHashKey> key) {
  ASSIGN_OR_RETURN(cuda::Module module, LoadKernels(*context));
  ASSIGN_OR_RETURN(const cuda::Kernel kernel, module.Find(kUniversalHashKernelName));
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create(*context));
  ASSIGN_OR_RETURN(cuda::DeviceBuffer partials,
                   cuda::DeviceBuffer::Allocate(*context, kPartials * sizeof(FieldElement)));
  ASSIGN_OR_RETURN(cuda::PinnedBuffer copies,
                   cuda::PinnedBuffer::Allocate(*context, kPartials * sizeof(FieldElement)));
  const int multiprocessors = context->device().multiprocessors();
  return std::unique_ptr<DeviceHash>(new DeviceHash(
      std::move(context), std::move(key), std::move(module), kernel, std::move(stream),
      std::move(partials), std::move(copies), static_cast<uint32_t>(multiprocessors)));
}

DeviceHash::DeviceHash(std::shared_ptr<const cuda::Context> context,
                       std::shared_ptr<const UniversalHashKey> key, cuda::Module module,
                       cuda::Kernel kernel, cuda::Stream stream, cuda::DeviceBuffer partials,
                       cuda::PinnedBuffer copies, uint32_t multiprocessors)
    : context_(std::move(context)),
      key_(std::move(key)),
      module_(std::move(module)),
      kernel_(kernel),
      multiprocessors_(multiprocessors),
      stream_(std::move(stream)),
      partials_(std::move(partials)),
      copies_(std::move(copies)) {}

DeviceHash::~DeviceHash() {
  // A call of the driver may fail for a reason that passes; the destructors try again.
  static_cast<void>(partials_.Free());
  static_cast<void>(copies_.Free());
  for (cuda::DeviceBuffer& buffer : spare_) static_cast<void>(buffer.Free());
}

uint32_t DeviceHash::BlocksFor(uint64_t bytes) const {
  return static_cast<uint32_t>(
      std::min<uint64_t>(kPartials, UniversalHashCudaBlocks(bytes, multiprocessors_)));
}

Result<std::vector<HashValue>> DeviceHash::Hash(
    std::span<const Range> ranges, const std::function<Status(uint64_t bytes)>& on_done) const {
  std::vector<ChunkedHash> sums(ranges.size(), ChunkedHash(*key_));
  std::vector<Launch> launches;
  uint64_t queued_partials = 0;
  uint64_t queued_bytes = 0;
  const MutexLock lock(mutex_);
  const auto flush = [&]() TRIMS_REQUIRES(mutex_) -> Status {
    RETURN_IF_ERROR(AddUp(partials_.pointer(), launches, sums));
    launches.clear();
    queued_partials = 0;
    return on_done(std::exchange(queued_bytes, 0));
  };
  for (size_t r = 0; r < ranges.size(); ++r) {
    for (uint64_t at = 0; at < ranges[r].bytes; at += kLaunchBytes) {
      const uint64_t bytes = std::min(kLaunchBytes, ranges[r].bytes - at);
      const uint32_t blocks = BlocksFor(bytes);
      if (queued_partials + blocks > kPartials || queued_bytes + bytes > kFlushBytes) {
        RETURN_IF_ERROR(flush());
      }
      const cuda::DevicePointer partials =
          partials_.pointer() + queued_partials * sizeof(FieldElement);
      Status launched =
          kernel_.Launch(stream_, {.blocks = blocks, .threads = kUniversalHashThreads},
                         ranges[r].begin + at, bytes, partials, key_->KernelKey(blocks));
      if (!launched.ok()) {
        // The launches before this one still read memory that is about to go.
        static_cast<void>(stream_.Synchronize());
        return launched;
      }
      launches.push_back({r, at, bytes, blocks});
      queued_partials += blocks;
      queued_bytes += bytes;
    }
  }
  RETURN_IF_ERROR(flush());
  std::vector<HashValue> values;
  values.reserve(ranges.size());
  for (size_t r = 0; r < ranges.size(); ++r) values.push_back(sums[r].Finish(ranges[r].bytes));
  return values;
}

Status DeviceHash::AddUp(cuda::DevicePointer begin, std::span<const Launch> launches,
                         std::vector<ChunkedHash>& sums) const {
  if (launches.empty()) return OkStatus();
  uint64_t count = 0;
  for (const Launch& launch : launches) count += launch.blocks;
  const Status copied = stream_.CopyToHost(copies_.data(), begin, count * sizeof(FieldElement));
  Status finished = stream_.Synchronize();
  // A call of the driver may fail for a reason that passes, and nothing may be in flight.
  if (!finished.ok()) static_cast<void>(stream_.Synchronize());
  RETURN_IF_ERROR(copied);
  RETURN_IF_ERROR(finished);
  // SAFETY: pinned memory is aligned to pages and has just been filled by the copy.
  const auto* partials = reinterpret_cast<const FieldElement*>(copies_.data());
  for (const Launch& launch : launches) {
    sums[launch.range].AddPartials(launch.offset, launch.bytes, {partials, launch.blocks});
    partials += launch.blocks;
  }
  return OkStatus();
}

// --- As bytes land ---------------------------------------------------------------------

Result<std::unique_ptr<DeviceHash::Landing>> DeviceHash::BeginLanding(std::vector<Range> ranges,
                                                                      size_t pieces) const {
  if (pieces > kLandingPartials / BlocksFor(kLaunchBytes)) {
    return ResourceExhaustedError("no room for the partial sums of " + std::to_string(pieces) +
                                  " pieces");
  }
  {
    const MutexLock lock(mutex_);
    if (!spare_.empty()) {
      cuda::DeviceBuffer buffer = std::move(spare_.back());
      spare_.pop_back();
      return std::unique_ptr<Landing>(new Landing(*this, std::move(ranges), std::move(buffer)));
    }
  }
  ASSIGN_OR_RETURN(
      cuda::DeviceBuffer buffer,
      cuda::DeviceBuffer::Allocate(*context_, kLandingPartials * sizeof(FieldElement)));
  return std::unique_ptr<Landing>(new Landing(*this, std::move(ranges), std::move(buffer)));
}

DeviceHash::Landing::Landing(const DeviceHash& hash, std::vector<Range> ranges,
                             cuda::DeviceBuffer partials)
    : hash_(hash), ranges_(std::move(ranges)), partials_(std::move(partials)) {}

DeviceHash::Landing::~Landing() {
  const MutexLock lock(hash_.mutex_);
  hash_.spare_.push_back(std::move(partials_));
}

Status DeviceHash::Landing::Queue(const cuda::Stream& stream, size_t range, uint64_t offset,
                                  uint64_t bytes) {
  const uint32_t blocks = hash_.BlocksFor(bytes);
  uint64_t at = 0;
  {
    const MutexLock lock(mutex_);
    TRIMS_CHECK(used_ + blocks <= kLandingPartials);
    at = std::exchange(used_, used_ + blocks);
    launches_.push_back({range, offset, bytes, blocks});
  }
  return hash_.kernel_.Launch(
      stream, {.blocks = blocks, .threads = kUniversalHashThreads}, ranges_[range].begin + offset,
      bytes, partials_.pointer() + at * sizeof(FieldElement), hash_.key_->KernelKey(blocks));
}

Result<std::vector<HashValue>> DeviceHash::Landing::Finish() {
  std::vector<ChunkedHash> sums(ranges_.size(), ChunkedHash(*hash_.key_));
  const MutexLock own_lock(mutex_);
  if (used_ > 0) {
    const MutexLock lock(hash_.mutex_);
    for (uint64_t done = 0, next = 0; next < launches_.size();) {
      // As many as the pinned memory holds.
      uint64_t count = 0;
      size_t end = next;
      while (end < launches_.size() && count + launches_[end].blocks <= kPartials)
        count += launches_[end++].blocks;
      RETURN_IF_ERROR(hash_.AddUp(partials_.pointer() + done * sizeof(FieldElement),
                                  std::span(launches_).subspan(next, end - next), sums));
      done += count;
      next = end;
    }
  }
  std::vector<HashValue> values;
  values.reserve(ranges_.size());
  for (size_t r = 0; r < ranges_.size(); ++r) values.push_back(sums[r].Finish(ranges_[r].bytes));
  return values;
}

}  // namespace trims

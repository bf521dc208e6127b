#include "tier/pinned_pool.h"

#include <algorithm>
#include <new>
#include <system_error>

#include "base/limits.h"
#include "base/round.h"

namespace trims {
namespace {

constexpr uint64_t kSliceBytes = 8 * kPinnedBufferBytes;  // 2 ms to 80 ms to prepare.

}  // namespace

PinnedBuffers& PinnedBuffers::operator=(PinnedBuffers&& other) noexcept {
  PinnedBuffers before(std::move(*this));
  pool_ = std::exchange(other.pool_, nullptr);
  pooled_ = std::exchange(other.pooled_, 0);
  buffers_ = std::exchange(other.buffers_, {});
  own_ = std::move(other.own_);
  return *this;
}

PinnedBuffers::~PinnedBuffers() {
  if (pool_ != nullptr) pool_->GiveBack(buffers_, pooled_);
  // A call of the driver may fail for a reason that passes; the destructor tries again.
  if (own_ != nullptr) static_cast<void>(own_->Free());
}

void PinnedBuffers::Abandon() {
  pool_ = nullptr;
  pooled_ = 0;
  buffers_.clear();
  static_cast<void>(own_.release());
}

PinnedPool::PinnedPool(std::shared_ptr<const cuda::Context> context, uint64_t bytes)
    : context_(std::move(context)) {
  const uint64_t rounded = RoundUp(bytes, kPinnedBufferBytes);
  if (rounded == 0) {
    is_prepared_ = true;
    return;
  }
  try {
    thread_ = std::thread([this, rounded] { Prepare(rounded); });
  } catch (const std::system_error& error) {
    status_ = ResourceExhaustedError(std::string("no thread to pin memory with: ") + error.what());
    is_prepared_ = true;
  }
}

PinnedPool::~PinnedPool() {
  {
    const MutexLock lock(mutex_);
    is_stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  for (Slice& slice : slices_) static_cast<void>(slice.registration.Unregister());
}

void PinnedPool::Prepare(uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += kSliceBytes) {
    {
      const MutexLock lock(mutex_);
      if (is_stopping_) break;
    }
    Status failure;
    try {
      Result<Slice> slice = PrepareSlice(std::min(kSliceBytes, bytes - at));
      failure = slice.status();
      if (slice.ok()) {
        const MutexLock lock(mutex_);
        slices_.push_back(std::move(slice).value());
        const std::span<std::byte> memory = slices_.back().memory.bytes();
        for (uint64_t i = 0; i + kPinnedBufferBytes <= memory.size(); i += kPinnedBufferBytes) {
          free_.push_back(memory.data() + i);
        }
      }
    } catch (const std::bad_alloc&) {
      failure = ResourceExhaustedError("no memory to keep account of pinned memory");
    }
    if (!failure.ok()) {
      const MutexLock lock(mutex_);
      status_ = std::move(failure);
      break;
    }
  }
  const MutexLock lock(mutex_);
  is_prepared_ = true;
  prepared_.NotifyAll();
}

Result<PinnedPool::Slice> PinnedPool::PrepareSlice(uint64_t bytes) const {
  Result<WritableRegion> memory = ResourceExhaustedError("");
  for (const PageKind pages : {PageKind::kHuge2M, PageKind::kPlain}) {
    memory = WritableRegion::Create("trims:pinned", bytes, pages);
    if (!memory.ok()) continue;
    const Status populated = memory->Populate(0, bytes);
    if (populated.ok()) break;
    memory = populated;
  }
  if (!memory.ok()) return memory.status();
  ASSIGN_OR_RETURN(cuda::HostRegistration registration,
                   cuda::HostRegistration::Register(*context_, memory->bytes().data(),
                                                    memory->size(), cuda::Access::kReadWrite));
  return Slice{std::move(memory).value(), std::move(registration)};
}

Result<PinnedBuffers> PinnedPool::Take(size_t most, size_t least) {
  PinnedBuffers taken;
  taken.buffers_.reserve(std::max(most, least));
  {
    const MutexLock lock(mutex_);
    if (free_.size() >= least) {
      taken.pool_ = this;
      taken.pooled_ = std::min(most, free_.size());
      taken.buffers_.assign(free_.end() - static_cast<ptrdiff_t>(taken.pooled_), free_.end());
      free_.resize(free_.size() - taken.pooled_);
      return taken;
    }
  }
  ASSIGN_OR_RETURN(cuda::PinnedBuffer own,
                   cuda::PinnedBuffer::Allocate(*context_, least * kPinnedBufferBytes));
  taken.own_ = std::make_unique<cuda::PinnedBuffer>(std::move(own));
  for (size_t i = 0; i < least; ++i)
    taken.buffers_.push_back(taken.own_->data() + i * kPinnedBufferBytes);
  return taken;
}

void PinnedPool::GiveBack(const std::vector<std::byte*>& buffers, size_t count) {
  const MutexLock lock(mutex_);
  // Never more than were in it, so this allocates nothing.
  free_.insert(free_.end(), buffers.begin(), buffers.begin() + static_cast<ptrdiff_t>(count));
}

void PinnedPool::WaitUntilPrepared() const {
  const MutexLock lock(mutex_);
  while (!is_prepared_) prepared_.Wait(mutex_);
}

uint64_t PinnedPool::prepared_bytes() const {
  const MutexLock lock(mutex_);
  uint64_t bytes = 0;
  for (const Slice& slice : slices_) bytes += slice.memory.size();
  return bytes;
}

Status PinnedPool::status() const {
  const MutexLock lock(mutex_);
  return status_;
}

}  // namespace trims

#include "tier/host_pins.h"

#include <algorithm>
#include <new>
#include <string>
#include <system_error>
#include <utility>

namespace trims {

PinnedExtent::~PinnedExtent() {
  // A call of the driver may fail for a reason that passes; the destructors try again.
  for (cuda::HostRegistration& slice : slices_) static_cast<void>(slice.Unregister());
}

Result<std::unique_ptr<HostPins>> HostPins::Make(const cuda::Device& device) {
  if (!device.supports_read_only_registration()) {
    return UnimplementedError(device.uuid() + " (" + device.name() +
                              ") can not pin memory that is only readable: models in host "
                              "memory come to it through buffers, at a lower rate");
  }
  ASSIGN_OR_RETURN(cuda::Context context, cuda::Context::Retain(device));
  std::unique_ptr<HostPins> pins(new HostPins(std::move(context)));
  try {
    pins->thread_ = std::thread([pins = pins.get()] { pins->Run(); });
  } catch (const std::system_error& error) {
    return ResourceExhaustedError(std::string("no thread to pin memory with: ") + error.what());
  }
  return pins;
}

HostPins::HostPins(cuda::Context context) : context_(std::move(context)) {}

HostPins::~HostPins() {
  {
    const MutexLock lock(mutex_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void HostPins::Add(std::shared_ptr<const ResidentExtent> extent) {
  const MutexLock lock(mutex_);
  const Digest key = extent->key;
  const auto [entry, is_new] = entries_.try_emplace(key);
  if (!is_new) return;
  entry->second.extent = std::move(extent);
  to_pin_.push_back(key);
  changed_.NotifyAll();
}

void HostPins::Remove(const Digest& key) {
  const MutexLock lock(mutex_);
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return;
  gone_.push_back(std::move(entry->second));
  entries_.erase(entry);
  changed_.NotifyAll();
}

std::shared_ptr<const PinnedExtent> HostPins::Find(const Digest& key) const {
  const MutexLock lock(mutex_);
  const auto entry = entries_.find(key);
  return entry == entries_.end() ? nullptr : entry->second.pinned;
}

void HostPins::WaitUntilIdle() const {
  const MutexLock lock(mutex_);
  while (!to_pin_.empty() || !gone_.empty() || is_busy_) changed_.Wait(mutex_);
}

uint64_t HostPins::pinned_bytes() const {
  const MutexLock lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [key, entry] : entries_) {
    if (entry.pinned != nullptr) bytes += entry.pinned->size();
  }
  return bytes;
}

bool HostPins::is_busy() const {
  const MutexLock lock(mutex_);
  return is_busy_ || !to_pin_.empty() || !gone_.empty();
}

Status HostPins::status() const {
  const MutexLock lock(mutex_);
  return status_;
}

bool HostPins::IsWanted(const std::shared_ptr<const ResidentExtent>& extent) const {
  const MutexLock lock(mutex_);
  const auto entry = entries_.find(extent->key);
  return !is_stopping_ && entry != entries_.end() && entry->second.extent == extent;
}

void HostPins::Run() {
  const MutexLock lock(mutex_);
  while (true) {
    while (!is_stopping_ && to_pin_.empty() && gone_.empty()) changed_.Wait(mutex_);
    if (is_stopping_) return;
    is_busy_ = true;
    if (!gone_.empty()) {
      std::vector<Entry> gone = std::exchange(gone_, {});
      const MutexUnlock unlock(mutex_);
      gone.clear();
    } else {
      const Digest key = to_pin_.front();
      to_pin_.pop_front();
      const auto entry = entries_.find(key);
      // Removed since, or removed and added again and pinned already.
      if (entry != entries_.end() && entry->second.extent != nullptr) {
        std::shared_ptr<const ResidentExtent> extent = entry->second.extent;
        Result<std::shared_ptr<const PinnedExtent>> pinned = CancelledError("");
        {
          const MutexUnlock unlock(mutex_);
          pinned = Pin(extent);
        }
        const auto now = entries_.find(key);
        const bool is_wanted = now != entries_.end() && now->second.extent == extent;
        if (!pinned.ok() && pinned.status().code() != StatusCode::kCancelled) {
          status_ = pinned.status();
        }
        if (is_wanted) {
          now->second.extent = nullptr;  // The mapping keeps the memory.
          if (pinned.ok()) now->second.pinned = std::move(pinned).value();
        }
        const MutexUnlock unlock(mutex_);
        pinned = CancelledError("");  // Unpins it where it was not wanted any more.
        extent = nullptr;
      }
    }
    is_busy_ = false;
    changed_.NotifyAll();
  }
}

Result<std::shared_ptr<const PinnedExtent>> HostPins::Pin(
    const std::shared_ptr<const ResidentExtent>& extent) const {
  try {
    ASSIGN_OR_RETURN(UniqueFd fd, extent->fd.Dup());
    ASSIGN_OR_RETURN(const ReadOnlyRegion region,
                     ReadOnlyRegion::Adopt(std::move(fd), extent->map_bytes));
    const std::shared_ptr<PinnedExtent> pinned(new PinnedExtent);
    ASSIGN_OR_RETURN(pinned->mapping_, region.Map());
    const std::span<const std::byte> bytes = pinned->mapping_.bytes();
    for (uint64_t at = 0; at < bytes.size(); at += PinnedExtent::kSliceBytes) {
      if (!IsWanted(extent)) return CancelledError("nobody wants this extent any more");
      const uint64_t size = std::min<uint64_t>(PinnedExtent::kSliceBytes, bytes.size() - at);
      ASSIGN_OR_RETURN(
          cuda::HostRegistration slice,
          cuda::HostRegistration::Register(context_, bytes.data() + at, size, cuda::Access::kRead));
      pinned->slices_.push_back(std::move(slice));
    }
    return std::shared_ptr<const PinnedExtent>(pinned);
  } catch (const std::bad_alloc&) {
    return ResourceExhaustedError("no memory to keep account of pinned memory");
  }
}

}  // namespace trims

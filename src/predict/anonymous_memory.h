// A private, zero-filled, page-aligned block from the kernel. Move-only; unmapped
// on destruction. Pages cost memory only once they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/status.h"

namespace trims::predict {

class AnonymousMemory final {
 public:
  AnonymousMemory() = default;
  // RESOURCE_EXHAUSTED if the kernel refuses; `what` says for what it was.
  static Result<AnonymousMemory> Allocate(uint64_t bytes, const char* what);
  AnonymousMemory(AnonymousMemory&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  AnonymousMemory& operator=(AnonymousMemory&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~AnonymousMemory();

  std::byte* data() const { return address_; }
  uint64_t size() const { return bytes_; }
  // From here on nothing may write to it. Never undone.
  Status MakeReadOnly();

 private:
  AnonymousMemory(std::byte* address, uint64_t bytes) : address_(address), bytes_(bytes) {}
  std::byte* address_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace trims::predict

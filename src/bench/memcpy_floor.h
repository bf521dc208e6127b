// The floor of copies in host memory: memcpy, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/status.h"

namespace trims::bench {

// Two buffers, both in memory, and copies of one to the other. Move-only; one thread.
class MemcpyFloor final {
 public:
  static Result<MemcpyFloor> Make(uint64_t bytes);
  // Seconds of one copy by so many threads, each a part of it.
  double Measure(unsigned threads) const;
  // Where the last copy went.
  const std::byte* PeekCopy() const { return to_.get(); }

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(std::byte* data) const;
  };
  using Buffer = std::unique_ptr<std::byte, Unmap>;
  static Result<Buffer> Allocate(uint64_t bytes);
  MemcpyFloor(Buffer from, Buffer to) : from_(std::move(from)), to_(std::move(to)) {}

  Buffer from_;
  Buffer to_;
};

}  // namespace trims::bench

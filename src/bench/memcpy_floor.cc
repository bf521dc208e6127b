#include "bench/memcpy_floor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bench/parallel.h"

namespace trims::bench {

void MemcpyFloor::Unmap::operator()(std::byte* data) const { ::munmap(data, bytes); }

Result<MemcpyFloor::Buffer> MemcpyFloor::Allocate(uint64_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "allocating memory to copy");
  return Buffer(static_cast<std::byte*>(data), Unmap{bytes});
}

Result<MemcpyFloor> MemcpyFloor::Make(uint64_t bytes) {
  ASSIGN_OR_RETURN(Buffer from, Allocate(bytes));
  ASSIGN_OR_RETURN(Buffer to, Allocate(bytes));
  // Never written memory may be one page of zeros, many times.
  std::memset(from.get(), 1, bytes);
  std::memset(to.get(), 2, bytes);
  return MemcpyFloor(std::move(from), std::move(to));
}

double MemcpyFloor::Measure(unsigned threads) const {
  const size_t bytes = from_.get_deleter().bytes;
  const size_t part = (bytes + threads - 1) / threads;
  return InParallel(threads, [&](unsigned i) {
    const size_t begin = std::min(bytes, i * part);
    std::memcpy(to_.get() + begin, from_.get() + begin, std::min(part, bytes - begin));
  });
}

}  // namespace trims::bench

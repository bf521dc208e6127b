// What this machine can do without a daemon: the floors that benchmarks compare with. Functions
// measure once and return seconds; those of devices are in bench_device.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/interrupts.h"

namespace trims::cli {

double Seconds(std::chrono::steady_clock::time_point from,
               std::chrono::steady_clock::time_point to);

// Opening and closing, in seconds.
struct OpenTimes {
  double open = 0;
  double close = 0;
};

// What an open on the host tier can not do without: mapping sealed memory of that size and a
// tensor index, and reading a byte of the latter. The memory is never touched and costs nothing.
class HostMappingFloor final {
 public:
  static Result<HostMappingFloor> Make(uint64_t bytes);
  Result<OpenTimes> Measure() const;

 private:
  HostMappingFloor(UniqueFd weights, UniqueFd index, uint64_t bytes)
      : weights_(std::move(weights)), index_(std::move(index)), bytes_(bytes) {}

  UniqueFd weights_;
  UniqueFd index_;
  uint64_t bytes_ = 0;
};

// Reads all of a file in blocks of 8 MiB, with several threads that each keep one block.
// kDirect goes past the page cache: UNIMPLEMENTED where the file system can not.
enum class ReadKind { kPageCache, kDirect };
Result<double> MeasureRead(const std::string& path, ReadKind kind, unsigned threads,
                           const Interrupts& interrupts);

// Takes a file out of the page cache. FAILED_PRECONDITION when most of it stays there.
Status DropFromPageCache(const std::string& path, const Interrupts& interrupts);

// Two buffers, and copies of one to the other by several threads.
class MemcpyFloor final {
 public:
  static Result<MemcpyFloor> Make(uint64_t bytes);
  double Measure(unsigned threads) const;

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

// Threads that a parallel read is worth measuring with: cores, at most 16.
unsigned ReadThreads();

}  // namespace trims::cli

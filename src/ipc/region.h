// Regions and mappings: the two halves of zero-copy weights.
//
// A WritableRegion is a memfd being filled by the daemon. Seal() turns it into a
// ReadOnlyRegion, which can be sent to another process. A ReadOnlyMapping is an
// address range made from a region, and outlives it. Neither of the latter two
// can be turned into something writable by anyone: the kernel refuses new
// writable mappings, write(2), growing, shrinking, hole punching and further
// sealing. Thread-compatible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims {

enum class PageKind : uint8_t { kPlain = 0, kHuge2M = 1 };

class ReadOnlyMapping final {
 public:
  ReadOnlyMapping() = default;
  ReadOnlyMapping(ReadOnlyMapping&& other) noexcept;
  ReadOnlyMapping& operator=(ReadOnlyMapping&& other) noexcept;
  ~ReadOnlyMapping();  // Unmaps.

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  friend class ReadOnlyRegion;
  ReadOnlyMapping(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class ReadOnlyRegion final {
 public:
  ReadOnlyRegion() = default;
  // Adopts a descriptor received from a peer, which is not trusted: fails with
  // PERMISSION_DENIED unless `fd` is a memfd sealed against new writable
  // mappings, growing, shrinking and further sealing, and with OUT_OF_RANGE if
  // its size is not `size` bytes. On failure `fd` is closed.
  static Result<ReadOnlyRegion> Adopt(UniqueFd fd, uint64_t size);

  // Maps the whole region PROT_READ, MAP_SHARED. Blocks only for page tables.
  // `populate` fills the page table in the call: worth it where every page will
  // be read anyway, never on the open path.
  Result<ReadOnlyMapping> Map(bool populate = false) const;

  uint64_t size() const { return size_; }
  bool valid() const { return fd_.valid(); }
  int PeekFd() const { return fd_.get(); }  // Borrowed; O_RDONLY.
  UniqueFd TakeFd() && { return std::move(fd_); }

 private:
  friend class WritableRegion;
  ReadOnlyRegion(UniqueFd fd, uint64_t size) : fd_(std::move(fd)), size_(size) {}
  UniqueFd fd_;
  uint64_t size_ = 0;
};

class WritableRegion final {
 public:
  // A new memfd of `size` bytes (rounded up to its page size), mapped writable
  // in this process. With kHuge2M the pages are reserved now, and
  // RESOURCE_EXHAUSTED says that the machine has too few. With kPlain 2 MiB pages
  // are asked for and used where the system's shmem_enabled setting allows them.
  // `label` is what /proc/PID/maps shows.
  static Result<WritableRegion> Create(const std::string& label, uint64_t size, PageKind pages);

  WritableRegion(WritableRegion&& other) noexcept;
  WritableRegion& operator=(WritableRegion&& other) noexcept;
  ~WritableRegion();

  std::span<std::byte> bytes() { return {data_, size_}; }
  uint64_t size() const { return size_; }

  // True where pages are 2 MiB (hugetlb, or transparent ones that the system
  // grants): fill through bytes(). Otherwise Write() is about twice as fast, as a
  // fault for every 4 KiB costs more than copying them.
  bool has_large_pages() const { return has_large_pages_; }

  // write(2) and read(2) of a part. Unlike an access through bytes(), memory that
  // ran out is RESOURCE_EXHAUSTED and no SIGBUS. Write is for plain pages only.
  // Both are safe from several threads at once on parts that do not overlap.
  Status Write(uint64_t offset, std::span<const std::byte> bytes);
  Status Read(uint64_t offset, std::span<std::byte> bytes) const;
  // Allocates the pages of a range, for a fill through bytes() from several
  // threads that must not meet a SIGBUS.
  Status Populate(uint64_t offset, uint64_t bytes);

  // Allocates what is not yet allocated, so that no reader's access can fail for
  // want of memory. Drops this process's writable mapping, adds
  // F_SEAL_FUTURE_WRITE, SHRINK, GROW and SEAL, and re-opens the memory O_RDONLY.
  // On failure the memory is freed.
  Result<ReadOnlyRegion> Seal() &&;

 private:
  WritableRegion(UniqueFd fd, std::byte* data, uint64_t size, bool has_large_pages)
      : fd_(std::move(fd)), data_(data), size_(size), has_large_pages_(has_large_pages) {}
  Status CheckRange(uint64_t offset, uint64_t bytes) const;

  UniqueFd fd_;
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  bool has_large_pages_ = false;
};

}  // namespace trims

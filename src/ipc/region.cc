#include "ipc/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "base/limits.h"
#include "base/round.h"

// Numbers of the kernel's interface that older C library headers lack. The
// running kernel decides whether it knows them.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace trims {
namespace {

constexpr int kSizeSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
constexpr int kSealsWeAdd = kSizeSeals | F_SEAL_FUTURE_WRITE;

std::string SealNames(int seals) {
  if (seals == 0) return "none";
  std::string names;
  const auto add = [&](int bit, const char* name) {
    if ((seals & bit) == 0) return;
    if (!names.empty()) names += '|';
    names += name;
  };
  add(F_SEAL_SEAL, "SEAL");
  add(F_SEAL_SHRINK, "SHRINK");
  add(F_SEAL_GROW, "GROW");
  add(F_SEAL_WRITE, "WRITE");
  add(F_SEAL_FUTURE_WRITE, "FUTURE_WRITE");
  return names;
}

UniqueFd MakeMemfd(const std::string& label, unsigned int page_flags) {
  // The kernel's limit for a name is 249 bytes; a longer label is only cut.
  const std::string name = label.substr(0, 200);
  const unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | page_flags;
  // Linux before 6.3 does not know MFD_NOEXEC_SEAL. There the memory could be
  // executed by who holds it, which is a pity but no danger to the weights.
  int fd = ::memfd_create(name.c_str(), flags | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create(name.c_str(), flags);
  return UniqueFd(fd);
}

// The choice in brackets of a file like "always [advise] never"; "" if there is none.
std::string SelectedWord(const char* path) {
  const UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return "";
  char text[256];
  const ssize_t size = ::read(fd.get(), text, sizeof text);
  if (size <= 0) return "";
  const std::string_view view(text, static_cast<size_t>(size));
  const size_t begin = view.find('[');
  const size_t end = view.find(']', begin == view.npos ? 0 : begin);
  if (begin == view.npos || end == view.npos) return "";
  return std::string(view.substr(begin + 1, end - begin - 1));
}

// Whether madvise(MADV_HUGEPAGE) on a memfd has an effect. Only a matter of speed.
bool SystemGrantsLargePlainPages() {
  std::string word =
      SelectedWord("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled");
  if (word.empty() || word == "inherit") {  // Linux before 6.11 has the second file alone.
    word = SelectedWord("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  }
  return word == "always" || word == "advise" || word == "within_size" || word == "force";
}

std::string Describe(const std::string& label, uint64_t size) {
  return "shared memory \"" + label + "\" of " + std::to_string(size) + " bytes";
}

}  // namespace

// --- ReadOnlyMapping ----------------------------------------------------------

ReadOnlyMapping::ReadOnlyMapping(ReadOnlyMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

ReadOnlyMapping& ReadOnlyMapping::operator=(ReadOnlyMapping&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

ReadOnlyMapping::~ReadOnlyMapping() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

// --- ReadOnlyRegion -----------------------------------------------------------

Result<ReadOnlyRegion> ReadOnlyRegion::Adopt(UniqueFd fd, uint64_t size) {
  if (!fd.valid()) return InvalidArgumentError("adopting a region: no descriptor");
  // Only memfds and files of tmpfs and hugetlbfs have seals at all, and no other
  // kind can carry the ones asked for below.
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) {
    return PermissionDeniedError(
        "the descriptor received is not a memfd: reading its seals failed; expected a sealed "
        "memfd");
  }
  const bool is_write_sealed = (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
  if ((seals & kSizeSeals) != kSizeSeals || !is_write_sealed) {
    return PermissionDeniedError("the memfd received is not sealed: it has the seals " +
                                 SealNames(seals) + "; expected at least " +
                                 SealNames(kSealsWeAdd));
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0) return ErrnoStatus(errno, "reading the access mode of the memfd received");
  if ((flags & O_ACCMODE) != O_RDONLY) {
    return PermissionDeniedError(
        "the memfd received was not opened read-only; expected a descriptor opened O_RDONLY");
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return ErrnoStatus(errno, "reading the size of the memfd received");
  }
  // SAFETY: the size is sealed, so what is read here stays true, and no access
  // inside it can meet the end of the file (SIGBUS).
  if (size == 0 || static_cast<uint64_t>(info.st_size) != size) {
    return OutOfRangeError("the memfd received has " + std::to_string(info.st_size) +
                           " bytes; expected " + std::to_string(size));
  }
  return ReadOnlyRegion(std::move(fd), size);
}

Result<ReadOnlyMapping> ReadOnlyRegion::Map(bool populate) const {
  if (!fd_.valid()) return FailedPreconditionError("mapping a region: it is empty");
  if (size_ > std::numeric_limits<size_t>::max()) {
    return OutOfRangeError("mapping " + std::to_string(size_) +
                           " bytes: more than this process can address");
  }
  void* const address =
      ::mmap(nullptr, size_, PROT_READ, MAP_SHARED | (populate ? MAP_POPULATE : 0), fd_.get(), 0);
  if (address == MAP_FAILED) {
    return ErrnoStatus(errno, "mapping " + std::to_string(size_) +
                                  " bytes read-only (is RLIMIT_AS or vm.max_map_count reached?)");
  }
  return ReadOnlyMapping(static_cast<const std::byte*>(address), size_);
}

// --- WritableRegion -----------------------------------------------------------

WritableRegion::WritableRegion(WritableRegion&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      has_large_pages_(other.has_large_pages_) {}

WritableRegion& WritableRegion::operator=(WritableRegion&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(data_, size_);
    fd_ = std::move(other.fd_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    has_large_pages_ = other.has_large_pages_;
  }
  return *this;
}

WritableRegion::~WritableRegion() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<WritableRegion> WritableRegion::Create(const std::string& label, uint64_t size,
                                              PageKind pages) {
  const bool is_huge = pages == PageKind::kHuge2M;
  const uint64_t page = is_huge ? kHugePageBytes : kHostPageBytes;
  if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - page) {
    return InvalidArgumentError("creating " + Describe(label, size) +
                                ": the size must be positive and below 2^63");
  }
  size = RoundUp(size, page);
  UniqueFd fd = MakeMemfd(label, is_huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0U);
  if (!fd.valid()) {
    // A kernel without 2 MiB pages answers ENODEV or ENOENT: for the caller that
    // is a machine that has none.
    if (is_huge && (errno == ENODEV || errno == ENOENT || errno == EINVAL || errno == ENOSYS)) {
      return ResourceExhaustedError("creating " + Describe(label, size) +
                                    " on 2 MiB pages: this machine has no such pages");
    }
    return ErrnoStatus(errno, "creating " + Describe(label, size));
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return ErrnoStatus(errno, "sizing " + Describe(label, size));
  }
  // For hugetlb, mmap reserves every page for this file or fails, so that no
  // later touch, here or in a client, can find the pool empty.
  void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) {
    const int error = errno;
    if (is_huge && error == ENOMEM) {
      return ResourceExhaustedError("creating " + Describe(label, size) + ": needs " +
                                    std::to_string(size / kHugePageBytes) +
                                    " free 2 MiB pages and the machine has fewer (see "
                                    "HugePages_Free in /proc/meminfo, vm.nr_hugepages)");
    }
    return ErrnoStatus(error, "mapping " + Describe(label, size));
  }
  bool has_large_pages = is_huge;
  // Only whole large pages are asked for: one beyond the end would take memory
  // that no account shows.
  const uint64_t large_bytes = size / kHugePageBytes * kHugePageBytes;
  if (!is_huge && large_bytes > 0 && SystemGrantsLargePlainPages()) {
    has_large_pages = ::madvise(address, large_bytes, MADV_HUGEPAGE) == 0;
  }
  return WritableRegion(std::move(fd), static_cast<std::byte*>(address), size, has_large_pages);
}

Status WritableRegion::CheckRange(uint64_t offset, uint64_t bytes) const {
  if (offset <= size_ && bytes <= size_ - offset) return OkStatus();
  return OutOfRangeError("access to " + std::to_string(bytes) + " bytes at " +
                         std::to_string(offset) + " of a region of " + std::to_string(size_));
}

Status WritableRegion::Write(uint64_t offset, std::span<const std::byte> bytes) {
  RETURN_IF_ERROR(CheckRange(offset, bytes.size()));
  while (!bytes.empty()) {
    const ssize_t done =
        ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      return ErrnoStatus(done < 0 ? errno : ENOSPC,
                         "writing " + std::to_string(bytes.size()) + " bytes of shared memory");
    }
    offset += static_cast<uint64_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return OkStatus();
}

Status WritableRegion::Read(uint64_t offset, std::span<std::byte> bytes) const {
  RETURN_IF_ERROR(CheckRange(offset, bytes.size()));
  while (!bytes.empty()) {
    const ssize_t done = ::pread(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      return ErrnoStatus(done < 0 ? errno : EIO,
                         "reading " + std::to_string(bytes.size()) + " bytes of shared memory");
    }
    offset += static_cast<uint64_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return OkStatus();
}

Status WritableRegion::Populate(uint64_t offset, uint64_t bytes) {
  RETURN_IF_ERROR(CheckRange(offset, bytes));
  // madvise wants whole pages of the system's size; larger ones are its business.
  const uint64_t begin = RoundDown(offset, kHostPageBytes);
  const uint64_t end = RoundUp(offset + bytes, kHostPageBytes);
  while (::madvise(data_ + begin, end - begin, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == EINVAL) {
      // Linux before 5.14. fallocate allocates as well, without the page table.
      if (::fallocate(fd_.get(), 0, static_cast<off_t>(begin), static_cast<off_t>(end - begin)) ==
          0) {
        return OkStatus();
      }
      if (errno == EINTR) continue;
    }
    // EFAULT is what a refused fault becomes: a hugetlb or memory control group
    // limit. Touched without this call it would have been a SIGBUS.
    if (errno == EFAULT || errno == ENOMEM || errno == ENOSPC) {
      return ResourceExhaustedError("allocating " + std::to_string(end - begin) +
                                    " bytes of shared memory: the machine or this process's "
                                    "control group has no more");
    }
    return ErrnoStatus(errno,
                       "allocating " + std::to_string(end - begin) + " bytes of shared memory");
  }
  return OkStatus();
}

Result<ReadOnlyRegion> WritableRegion::Seal() && {
  WritableRegion self = std::move(*this);  // Freed on every way out of here.
  if (self.data_ == nullptr) return FailedPreconditionError("sealing a region: it is empty");
  struct stat info {};
  if (::fstat(self.fd_.get(), &info) != 0) return ErrnoStatus(errno, "sealing a memfd");
  // st_blocks counts what is allocated; usually the fill has touched every page.
  if (static_cast<uint64_t>(info.st_blocks) * 512 < self.size_) {
    RETURN_IF_ERROR(self.Populate(0, self.size_));
  }
  // Unmapped before the seals: afterwards nobody, this process included, can write.
  ::munmap(std::exchange(self.data_, nullptr), self.size_);
  const UniqueFd fd = std::move(self.fd_);
  const uint64_t size = self.size_;
  // A second barrier beside the seals: the mode keeps other users from opening the
  // memory anew at all.
  if (::fchmod(fd.get(), 0400) != 0) return ErrnoStatus(errno, "making a memfd read-only");
  if (::fcntl(fd.get(), F_ADD_SEALS, kSealsWeAdd) != 0) {
    return ErrnoStatus(errno, "sealing a memfd (F_SEAL_FUTURE_WRITE needs Linux 5.1)");
  }
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  UniqueFd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!read_only.valid()) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      return FailedPreconditionError(
          "re-opening a memfd read-only needs /proc, and /proc/self/fd is not there: mount procfs "
          "in this process's file system");
    }
    return ErrnoStatus(error, "re-opening a memfd read-only through " + path);
  }
  return ReadOnlyRegion(std::move(read_only), size);
}

}  // namespace trims

#include "tier/rho.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "ipc/region.h"

namespace trims {
namespace {

constexpr size_t kExtents = 64;  // In one packet, as a lease sends them.
constexpr size_t kRounds = 7;
static_assert(kExtents <= kMaxFdsPerPacket);

// Where nothing can be measured: a bare open of two extents over a socket takes
// about 50 us on a small machine, of which each side does a half.
constexpr Duration kFallbackCost = std::chrono::microseconds(12);
constexpr double kFallbackReadRate = 1e9;

constexpr uint64_t kProbeFileBytes = 64 * kMiB;
constexpr uint64_t kProbeStepBytes = 4 * kMiB;
constexpr Duration kProbeWriteTime = std::chrono::milliseconds(500);

Duration Median(std::vector<Duration>& times) {
  std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

// The control message of a packet with kExtents descriptors.
struct Ancillary {
  alignas(cmsghdr) char bytes[CMSG_SPACE(kExtents * sizeof(int))];
};

msghdr MakeMessage(iovec& part, char& byte, Ancillary& ancillary) {
  part = {&byte, 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = ancillary.bytes;
  message.msg_controllen = sizeof ancillary.bytes;
  return message;
}

// The daemon's side: duplicate, pass, drop the duplicates.
bool Export(int socket, const std::vector<ReadOnlyRegion>& regions) {
  std::vector<UniqueFd> copies;
  copies.reserve(regions.size());
  for (const ReadOnlyRegion& region : regions) {
    copies.emplace_back(::fcntl(region.PeekFd(), F_DUPFD_CLOEXEC, 0));
    if (!copies.back().valid()) return false;
  }
  char byte = 0;
  iovec part{};
  Ancillary ancillary{};
  msghdr message = MakeMessage(part, byte, ancillary);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(copies.size() * sizeof(int));
  for (size_t i = 0; i < copies.size(); ++i) {
    const int fd = copies[i].get();
    std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof fd);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

// The client's side: receive, check, map, unmap, close.
bool Open(int socket, uint64_t size) {
  char byte = 0;
  iovec part{};
  Ancillary ancillary{};
  msghdr message = MakeMessage(part, byte, ancillary);
  // tidy: allow recvmsg, because the kernel's bare work is what is measured here.
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return false;
  bool all = true;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      const Result<ReadOnlyRegion> region = ReadOnlyRegion::Adopt(UniqueFd(fd), size);
      all = all && region.ok() && region->Map().ok();
    }
  }
  return all;
}

void MeasureCosts(RhoConstants& constants) {
  constants.export_cost = kFallbackCost;
  constants.open_cost = kFallbackCost;
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return;
  const UniqueFd daemon(ends[0]);
  const UniqueFd client(ends[1]);
  std::vector<ReadOnlyRegion> regions;
  for (size_t i = 0; i < kExtents; ++i) {
    Result<WritableRegion> region =
        WritableRegion::Create("trims:probe", kHostPageBytes, PageKind::kPlain);
    if (!region.ok()) return;
    Result<ReadOnlyRegion> sealed = std::move(region).value().Seal();
    if (!sealed.ok()) return;
    regions.push_back(std::move(sealed).value());
  }
  std::vector<Duration> exports;
  std::vector<Duration> opens;
  for (size_t i = 0; i < kRounds; ++i) {
    const Time start = Now();
    if (!Export(daemon.get(), regions)) return;
    const Time sent = Now();
    if (!Open(client.get(), kHostPageBytes)) return;
    exports.push_back((sent - start) / static_cast<int64_t>(kExtents));
    opens.push_back((Now() - sent) / static_cast<int64_t>(kExtents));
  }
  constants.export_cost = Median(exports);
  constants.open_cost = Median(opens);
}

// A nameless file in `directory`.
UniqueFd MakeProbeFile(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  // File systems without O_TMPFILE (overlayfs of old, NFS).
  std::string path = directory + "/.trims-probe-XXXXXX";
  fd.Reset(::mkostemp(path.data(), O_CLOEXEC));
  if (fd.valid()) ::unlink(path.c_str());
  return fd;
}

double MeasureReadRate(const std::string& directory) {
  const UniqueFd fd = MakeProbeFile(directory);
  if (!fd.valid()) return kFallbackReadRate;
  // Numbers without a pattern, as some file systems compress.
  std::vector<uint64_t> words(kProbeStepBytes / sizeof(uint64_t));
  uint64_t state = 0x9e3779b97f4a7c15;
  for (uint64_t& word : words) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    word = state;
  }
  const std::span<std::byte> buffer = std::as_writable_bytes(std::span(words));
  uint64_t size = 0;
  for (const Time start = Now(); size < kProbeFileBytes && Now() - start < kProbeWriteTime;) {
    const ssize_t done = ::write(fd.get(), buffer.data(), buffer.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0 || ::fdatasync(fd.get()) != 0) break;
    size += static_cast<uint64_t>(done);
  }
  if (size == 0) return kFallbackReadRate;
  // Clean pages only can be dropped, hence the sync before.
  if (::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED) != 0) return kFallbackReadRate;
  const Time start = Now();
  for (uint64_t at = 0; at < size;) {
    const ssize_t done = ::pread(fd.get(), buffer.data(), buffer.size(), static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return kFallbackReadRate;
    at += static_cast<uint64_t>(done);
  }
  const double seconds = std::chrono::duration<double>(Now() - start).count();
  return seconds > 0 ? static_cast<double>(size) / seconds : kFallbackReadRate;
}

}  // namespace

RhoConstants MeasureRhoConstants(const std::string& directory) {
  RhoConstants constants;
  MeasureCosts(constants);
  constants.read_bytes_per_second = MeasureReadRate(directory);
  return constants;
}

double Rho(const RhoConstants& constants, uint64_t bytes, uint64_t objects) {
  const double cost =
      std::chrono::duration<double>(constants.export_cost + constants.open_cost).count();
  return static_cast<double>(bytes) / constants.read_bytes_per_second -
         static_cast<double>(objects) * cost;
}

store::Granularity ChooseGranularity(const RhoConstants& constants, const ModelManifest& manifest,
                                     uint64_t slab_bytes) {
  const double whole = Rho(constants, manifest.weight_bytes, 1);
  // Sharing such a small model costs more than reading it: finer parts cost more still.
  if (whole <= 0) return store::Granularity::kModel;
  for (const store::Granularity granularity :
       {store::Granularity::kLayer, store::Granularity::kSlab}) {
    const Result<Layout> layout = MakeLayout(manifest, granularity, slab_bytes);
    if (layout.ok() &&
        Rho(constants, manifest.weight_bytes, layout->extents.size()) >= 0.9 * whole) {
      return granularity;
    }
  }
  return store::Granularity::kModel;
}

}  // namespace trims

// Is read-only read-only? A client is another user's process that holds the
// descriptor and tries everything the kernel offers.
#include "ipc/region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "ipc/test_huge_pages.h"

namespace trims {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr uid_t kNobody = 65534;

size_t OpenFdCount() {
  return static_cast<size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

std::byte PatternAt(size_t i) { return static_cast<std::byte>((i * 7 + 3) & 0xff); }

void FillPattern(std::span<std::byte> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = PatternAt(i);
}

bool HasPattern(std::span<const std::byte> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != PatternAt(i)) return false;
  }
  return true;
}

// --- Attacks ------------------------------------------------------------------

// Each returns true when it got through. They run in a process of their own.
struct Attack {
  const char* name;
  bool (*succeeds)(int fd, size_t size);
  bool works_on_hugetlb = true;  // Of an unsealed memfd.
};

void* MapShared(int fd, size_t size, int protection) {
  return ::mmap(nullptr, size, protection, MAP_SHARED, fd, 0);
}

// A second description of the same memory with write access.
int Reopen(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return ::open(path.c_str(), O_RDWR | O_CLOEXEC);
}

const Attack kAttacks[] = {
    {"store through a read-only mapping after mprotect(PROT_WRITE)",
     [](int fd, size_t size) {
       void* const at = MapShared(fd, size, PROT_READ);
       if (at == MAP_FAILED) return false;
       if (::mprotect(at, size, PROT_READ | PROT_WRITE) != 0) return false;
       std::memset(at, 0x5a, 64);
       return true;
     }},
    {"map it shared and writable",
     [](int fd, size_t size) {
       void* const at = MapShared(fd, size, PROT_READ | PROT_WRITE);
       if (at == MAP_FAILED) return false;
       std::memset(at, 0x5a, 64);
       return true;
     }},
    {"write(2)", [](int fd, size_t) { return ::write(fd, "attack", 6) > 0; }, false},
    {"pwrite(2)", [](int fd, size_t) { return ::pwrite(fd, "attack", 6, 0) > 0; }, false},
    {"ftruncate to nothing", [](int fd, size_t) { return ::ftruncate(fd, 0) == 0; }},
    {"ftruncate to twice the size",
     [](int fd, size_t size) { return ::ftruncate(fd, static_cast<off_t>(2 * size)) == 0; }},
    {"fallocate beyond the end",
     [](int fd, size_t size) {
       return ::fallocate(fd, 0, static_cast<off_t>(size), kHugePageBytes) == 0;
     }},
    {"punch a hole",
     [](int fd, size_t size) {
       return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                          static_cast<off_t>(size)) == 0;
     }},
    {"madvise(MADV_REMOVE)",
     [](int fd, size_t size) {
       void* at = MapShared(fd, size, PROT_READ | PROT_WRITE);
       if (at == MAP_FAILED) at = MapShared(fd, size, PROT_READ);
       return at != MAP_FAILED && ::madvise(at, size, MADV_REMOVE) == 0;
     }},
    {"re-open through /proc, then pwrite or map writable",
     [](int fd, size_t size) {
       const int again = Reopen(fd);
       if (again < 0) return false;
       if (::pwrite(again, "attack", 6, 0) > 0) return true;
       return MapShared(again, size, PROT_READ | PROT_WRITE) != MAP_FAILED;
     }},
    {"re-open through /proc, then ftruncate",
     [](int fd, size_t) {
       const int again = Reopen(fd);
       return again >= 0 && ::ftruncate(again, 0) == 0;
     }},
    {"add a seal of its own",
     [](int fd, size_t) { return ::fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0; }},
    {"add a seal of its own through a re-opened descriptor",
     [](int fd, size_t) {
       const int again = Reopen(fd);
       return again >= 0 && ::fcntl(again, F_ADD_SEALS, F_SEAL_GROW) == 0;
     }},
};

enum class Outcome { kRefused, kGotThrough, kKilled, kBroken };

// Runs `action` in a child, as this user or as another one.
template <typename Action>
Outcome RunInChild(bool as_stranger, const Action& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    // The sanitizers' own report of the fault would hide the signal.
    std::signal(SIGSEGV, SIG_DFL);
    std::signal(SIGBUS, SIG_DFL);
    if (as_stranger && (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) ::_exit(2);
    ::_exit(action() ? 1 : 0);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return Outcome::kBroken;
  if (WIFSIGNALED(status)) return Outcome::kKilled;
  switch (WEXITSTATUS(status)) {
    case 0:
      return Outcome::kRefused;
    case 1:
      return Outcome::kGotThrough;
    default:
      return Outcome::kBroken;
  }
}

// As another user where this process may become one.
template <typename Action>
Outcome RunAsStranger(const Action& action) {
  return RunInChild(/*as_stranger=*/::geteuid() == 0, action);
}

class RegionTest : public ::testing::TestWithParam<PageKind> {
 protected:
  void SetUp() override {
    if (GetParam() == PageKind::kHuge2M) {
      huge_pages_ = std::make_unique<ReservedHugePages>(8);
      if (!huge_pages_->reason().empty()) GTEST_SKIP() << huge_pages_->reason();
    }
    fds_before_ = OpenFdCount();
  }
  void TearDown() override {
    if (IsSkipped()) return;
    EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked";
  }

  WritableRegion MakeRegion(uint64_t size = 2 * kHugePageBytes) {
    Result<WritableRegion> region = WritableRegion::Create("region-test", size, GetParam());
    EXPECT_TRUE(region.ok()) << region.status().ToString();
    return std::move(region).value();
  }
  ReadOnlyRegion MakeSealed(uint64_t size = 2 * kHugePageBytes) {
    WritableRegion region = MakeRegion(size);
    FillPattern(region.bytes());
    Result<ReadOnlyRegion> sealed = std::move(region).Seal();
    EXPECT_TRUE(sealed.ok()) << sealed.status().ToString();
    return std::move(sealed).value();
  }

  std::unique_ptr<ReservedHugePages> huge_pages_;
  size_t fds_before_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Pages, RegionTest, ::testing::Values(PageKind::kPlain, PageKind::kHuge2M),
                         [](const auto& tested) {
                           return tested.param == PageKind::kPlain ? "Plain" : "Huge2M";
                         });

TEST_P(RegionTest, SealedMemoryResistsEveryAttack) {
  if (::geteuid() != 0) {
    std::printf("not root: the attacks run as this same user, not as another one\n");
  }
  const ReadOnlyRegion region = MakeSealed();
  for (const Attack& attack : kAttacks) {
    EXPECT_EQ(RunAsStranger([&] { return attack.succeeds(region.PeekFd(), region.size()); }),
              Outcome::kRefused)
        << attack.name;
  }
  EXPECT_EQ(RunAsStranger([&] {
              void* const at = MapShared(region.PeekFd(), region.size(), PROT_READ);
              if (at == MAP_FAILED) return false;
              *static_cast<volatile char*>(at) = 1;
              return true;
            }),
            Outcome::kKilled)
      << "a store through the read-only mapping";
  const Result<ReadOnlyMapping> mapping = region.Map();
  ASSERT_TRUE(mapping.ok()) << mapping.status().ToString();
  EXPECT_TRUE(HasPattern(mapping->bytes())) << "the bytes were changed";
}

// The owner, root or not, has no way back either.
TEST_P(RegionTest, SealedMemoryResistsItsOwnMaker) {
  const ReadOnlyRegion region = MakeSealed();
  for (const Attack& attack : kAttacks) {
    EXPECT_EQ(RunInChild(/*as_stranger=*/false,
                         [&] { return attack.succeeds(region.PeekFd(), region.size()); }),
              Outcome::kRefused)
        << attack.name;
  }
  const Result<ReadOnlyMapping> mapping = region.Map();
  ASSERT_TRUE(mapping.ok());
  EXPECT_TRUE(HasPattern(mapping->bytes()));
}

// Proves the attacks: each of them gets through where nothing is sealed.
TEST_P(RegionTest, EveryAttackWorksOnUnsealedMemory) {
  for (const Attack& attack : kAttacks) {
    if (GetParam() == PageKind::kHuge2M && !attack.works_on_hugetlb) continue;
    const UniqueFd fd(::memfd_create(
        "unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING |
                        (GetParam() == PageKind::kHuge2M ? MFD_HUGETLB | (21U << 26) : 0U)));
    ASSERT_TRUE(fd.valid());
    ASSERT_EQ(::ftruncate(fd.get(), 2 * kHugePageBytes), 0);
    EXPECT_EQ(RunAsStranger([&] { return attack.succeeds(fd.get(), 2 * kHugePageBytes); }),
              Outcome::kGotThrough)
        << attack.name;
  }
}

TEST_P(RegionTest, PrivateCopiesDoNotReachTheRegion) {
  const ReadOnlyRegion region = MakeSealed();
  // On hugetlb the copy takes a page of the pool for itself.
  void* const at =
      ::mmap(nullptr, region.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, region.PeekFd(), 0);
  ASSERT_NE(at, MAP_FAILED);
  std::memset(at, 0x5a, 64);
  const Result<ReadOnlyMapping> mapping = region.Map();
  ASSERT_TRUE(mapping.ok());
  EXPECT_TRUE(HasPattern(mapping->bytes()));
  ::munmap(at, region.size());
}

TEST_P(RegionTest, KeepsItsBytesThroughSealing) {
  const ReadOnlyRegion region = MakeSealed(3 * kHostPageBytes);
  const Result<ReadOnlyMapping> mapping = region.Map(/*populate=*/true);
  ASSERT_TRUE(mapping.ok());
  EXPECT_EQ(mapping->size(), region.size());
  EXPECT_TRUE(HasPattern(mapping->bytes()));
}

TEST_P(RegionTest, RoundsItsSizeUpToPages) {
  const uint64_t page = GetParam() == PageKind::kPlain ? kHostPageBytes : kHugePageBytes;
  EXPECT_EQ(MakeRegion(1).size(), page);
  EXPECT_EQ(MakeRegion(page).size(), page);
  EXPECT_EQ(MakeRegion(page + 1).size(), 2 * page);
}

TEST_P(RegionTest, StartsAsZeros) {
  WritableRegion region = MakeRegion();
  EXPECT_TRUE(std::all_of(region.bytes().begin(), region.bytes().end(),
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(RegionTest, SealingAllocatesEveryPage) {
  Result<ReadOnlyRegion> sealed = MakeRegion().Seal();  // Nothing was ever written.
  ASSERT_TRUE(sealed.ok()) << sealed.status().ToString();
  struct stat info {};
  ASSERT_EQ(::fstat(sealed->PeekFd(), &info), 0);
  EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, sealed->size());
}

TEST_P(RegionTest, SealingLeavesNoWritableMappingBehind) {
  const auto writable_mappings = [] {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) {
      if (line.find("region-test") != line.npos && line.find(" rw") != line.npos) ++count;
    }
    return count;
  };
  WritableRegion region = MakeRegion();
  EXPECT_EQ(writable_mappings(), 1);
  Result<ReadOnlyRegion> sealed = std::move(region).Seal();
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(writable_mappings(), 0);
}

TEST_P(RegionTest, AMappingOutlivesItsRegion) {
  ReadOnlyMapping mapping;
  {
    const ReadOnlyRegion region = MakeSealed();
    mapping = region.Map().value();
  }
  EXPECT_TRUE(HasPattern(mapping.bytes()));
}

TEST_P(RegionTest, ThreadsPopulateAndFillAtOnce) {
  WritableRegion region = MakeRegion();
  std::vector<std::thread> threads;
  const size_t half = region.size() / 2;
  for (size_t part = 0; part < 2; ++part) {
    threads.emplace_back([&region, part, half] {
      EXPECT_TRUE(region.Populate(part * half, half).ok());
      for (size_t i = part * half; i < (part + 1) * half; ++i) region.bytes()[i] = PatternAt(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(HasPattern(region.bytes()));
}

TEST_P(RegionTest, AccessStaysInside) {
  WritableRegion region = MakeRegion();
  std::vector<std::byte> bytes(16);
  EXPECT_EQ(region.Write(region.size() - 15, bytes).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(region.Read(region.size() - 15, bytes).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(region.Read(UINT64_MAX - 3, bytes).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(region.Populate(1, region.size()).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(region.Read(region.size() - 16, bytes).ok());
}

TEST_P(RegionTest, AdoptAcceptsWhatSealGives) {
  ReadOnlyRegion region = MakeSealed();
  const uint64_t size = region.size();
  const Result<ReadOnlyRegion> adopted = ReadOnlyRegion::Adopt(std::move(region).TakeFd(), size);
  ASSERT_TRUE(adopted.ok()) << adopted.status().ToString();
  EXPECT_TRUE(HasPattern(adopted->Map().value().bytes()));
}

TEST_P(RegionTest, AdoptRefusesAnotherSize) {
  for (const int64_t difference : {-4096, -1, 1, 4096}) {
    ReadOnlyRegion region = MakeSealed();
    const uint64_t size = region.size() + static_cast<uint64_t>(difference);
    EXPECT_EQ(ReadOnlyRegion::Adopt(std::move(region).TakeFd(), size).status().code(),
              StatusCode::kOutOfRange);
  }
}

// --- Without page kinds -------------------------------------------------------

class AdoptTest : public ::testing::Test {
 protected:
  void SetUp() override { fds_before_ = OpenFdCount(); }
  void TearDown() override { EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked"; }

  // A memfd of one page with these seals, opened again in `mode`.
  static UniqueFd Memfd(int seals, int mode) {
    const UniqueFd fd(::memfd_create("adopt-test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_EQ(::ftruncate(fd.get(), kHostPageBytes), 0);
    EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
    return UniqueFd(::open(path.c_str(), mode | O_CLOEXEC));
  }
  static Status Adopt(UniqueFd fd) {
    EXPECT_TRUE(fd.valid());
    return ReadOnlyRegion::Adopt(std::move(fd), kHostPageBytes).status();
  }

  size_t fds_before_ = 0;
};

TEST_F(AdoptTest, AcceptsBothKindsOfWriteSeal) {
  constexpr int kSize = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
  EXPECT_TRUE(Adopt(Memfd(kSize | F_SEAL_FUTURE_WRITE, O_RDONLY)).ok());
  EXPECT_TRUE(Adopt(Memfd(kSize | F_SEAL_WRITE, O_RDONLY)).ok());
}

TEST_F(AdoptTest, RefusesWhenAnySealIsMissing) {
  constexpr int kAll = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
  for (const int missing : {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE, kAll}) {
    const Status status = Adopt(Memfd(kAll & ~missing, O_RDONLY));
    EXPECT_EQ(status.code(), StatusCode::kPermissionDenied) << missing;
    EXPECT_THAT(status.message(), HasSubstr("not sealed"));
  }
}

TEST_F(AdoptTest, RefusesADescriptorThatCanWrite) {
  constexpr int kAll = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
  EXPECT_EQ(Adopt(Memfd(kAll, O_RDWR)).code(), StatusCode::kPermissionDenied);
}

TEST_F(AdoptTest, RefusesWhatIsNoMemfd) {
  const std::string path = ::testing::TempDir() + "/region_test_file";
  std::ofstream(path) << std::string(kHostPageBytes, 'x');
  EXPECT_EQ(Adopt(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC))).code(),
            StatusCode::kPermissionDenied);
  std::filesystem::remove(path);
  EXPECT_EQ(Adopt(UniqueFd(::open("/dev/zero", O_RDONLY | O_CLOEXEC))).code(),
            StatusCode::kPermissionDenied);
  EXPECT_EQ(Adopt(UniqueFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC))).code(),
            StatusCode::kPermissionDenied);
  EXPECT_EQ(Adopt(UniqueFd(::open("/proc/self/exe", O_PATH | O_CLOEXEC))).code(),
            StatusCode::kPermissionDenied);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  EXPECT_EQ(Adopt(UniqueFd(ends[0])).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(Adopt(UniqueFd(ends[1])).code(), StatusCode::kPermissionDenied);
}

TEST_F(AdoptTest, RefusesNoDescriptorAtAll) {
  EXPECT_EQ(ReadOnlyRegion::Adopt(UniqueFd(), kHostPageBytes).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(WritableRegionTest, RefusesSizesThatCanNotBe) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{1} << 63, UINT64_MAX}) {
    EXPECT_EQ(WritableRegion::Create("x", size, PageKind::kPlain).status().code(),
              StatusCode::kInvalidArgument)
        << size;
  }
}

TEST(WritableRegionTest, TooFewHugePagesIsResourceExhausted) {
  const size_t fds = OpenFdCount();
  const Status status = WritableRegion::Create("x", uint64_t{1} << 46, PageKind::kHuge2M).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
  EXPECT_EQ(OpenFdCount(), fds);
}

TEST(WritableRegionTest, AMovedFromRegionIsEmpty) {
  WritableRegion first = WritableRegion::Create("x", 1, PageKind::kPlain).value();
  WritableRegion second = std::move(first);
  EXPECT_EQ(std::move(first).Seal().status().code(), StatusCode::kFailedPrecondition);  // NOLINT
  EXPECT_TRUE(std::move(second).Seal().ok());
  EXPECT_EQ(ReadOnlyRegion().Map().status().code(), StatusCode::kFailedPrecondition);
}

TEST(WritableRegionTest, WritesArriveInTheMapping) {
  WritableRegion region = WritableRegion::Create("x", 3 * kHostPageBytes, PageKind::kPlain).value();
  std::vector<std::byte> bytes(kHostPageBytes + 100);
  FillPattern(bytes);
  ASSERT_TRUE(region.Write(17, bytes).ok());
  EXPECT_TRUE(HasPattern(region.bytes().subspan(17, bytes.size())));
  std::vector<std::byte> back(bytes.size());
  ASSERT_TRUE(region.Read(17, back).ok());
  EXPECT_EQ(back, bytes);
}

TEST(WritableRegionTest, SealingWithoutProcSaysSo) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", "/proc", "tmpfs", 0, nullptr) != 0) {
      ::_exit(2);
    }
    Result<WritableRegion> region = WritableRegion::Create("x", 1, PageKind::kPlain);
    if (!region.ok()) ::_exit(3);
    const Status status = std::move(region).value().Seal().status();
    ::_exit(status.code() == StatusCode::kFailedPrecondition &&
                    status.message().find("/proc") != std::string::npos
                ? 0
                : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "hiding /proc needs a mount namespace, hence root";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace trims

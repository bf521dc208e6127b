#include "base/machine.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "base/limits.h"

namespace trims {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

class MachineTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "machineXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root_;
};

class UsableMemoryTest : public MachineTest {
 protected:
  void SetUp() override {
    MachineTest::SetUp();
    Write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\n");
    Write("proc/self/cgroup", "0::/a/b\n");
  }
};

TEST_F(UsableMemoryTest, WithoutALimitTheMachinesMemoryCounts) {
  Write("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(UsableMemoryBytes(root_), 16 * kGiB);
  EXPECT_EQ(MemoryLimitBytes("self", root_), kNoLimit);
}

TEST_F(UsableMemoryTest, TheLeastLimitOfTheGroupAndItsParentsCounts) {
  Write("sys/fs/cgroup/a/b/memory.max", "8589934592\n");
  Write("sys/fs/cgroup/a/memory.max", "4294967296\n");
  EXPECT_EQ(UsableMemoryBytes(root_), 4 * kGiB);
  Write("sys/fs/cgroup/memory.max", "1073741824\n");
  EXPECT_EQ(UsableMemoryBytes(root_), kGiB);
}

TEST_F(UsableMemoryTest, GroupsOfTheFirstVersionCountToo) {
  Write("proc/self/cgroup",
        "9:cpu,cpuacct:/docker/1\n7:hugetlb,memory:/docker/1\n1:name=systemd:/\n0::/\n");
  Write("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "2147483648\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(UsableMemoryBytes(root_), 2 * kGiB);
}

TEST_F(UsableMemoryTest, EachProcessHasGroupsOfItsOwn) {
  Write("proc/12/cgroup", "0::/c\n");
  Write("sys/fs/cgroup/c/memory.max", "4096\n");
  EXPECT_EQ(MemoryLimitBytes("12", root_), 4096u);
  EXPECT_EQ(MemoryLimitBytes("self", root_), kNoLimit);
  EXPECT_EQ(MemoryLimitBytes("13", root_), kNoLimit);
}

class AvailableMemoryTest : public MachineTest {};

TEST_F(AvailableMemoryTest, IsUnlimitedWhereTheSystemSaysNothing) {
  EXPECT_EQ(AvailableMemoryBytes(root_), kNoLimit);
  EXPECT_EQ(UsableMemoryBytes(root_), 0u);
}

TEST_F(AvailableMemoryTest, IsWhatTheKernelCallsAvailable) {
  Write("proc/meminfo", "MemTotal:  100 kB\nMemFree:  5 kB\nMemAvailable:      40 kB\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 40U * 1024);
}

TEST_F(AvailableMemoryTest, IsLimitedByEveryGroupAbove) {
  Write("proc/meminfo", "MemAvailable: 1000000 kB\n");
  Write("proc/self/cgroup", "1:name=systemd:/x\n0::/pods/pod/box\n");
  Write("sys/fs/cgroup/pods/pod/box/memory.max", "max\n");
  Write("sys/fs/cgroup/pods/pod/memory.max", "100000\n");
  Write("sys/fs/cgroup/pods/pod/memory.current", "60000\n");
  // Page cache is given back when memory is wanted: 40000 + 10000 + 5000 are free.
  Write("sys/fs/cgroup/pods/pod/memory.stat",
        "anon 45000\nfile 99999\ninactive_file 10000\nactive_file 5000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 55000U);
  Write("sys/fs/cgroup/pods/memory.max", "70000\n");
  Write("sys/fs/cgroup/pods/memory.current", "69000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 1000U);
  Write("sys/fs/cgroup/pods/memory.current", "80000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 0U);
}

TEST_F(AvailableMemoryTest, IsLessThanTheMachineHas) {
  EXPECT_GT(AvailableMemoryBytes(), 0U);
  EXPECT_LT(AvailableMemoryBytes(), uint64_t{1} << 50);
}

TEST_F(MachineTest, MemInfoIsInBytesOrCounts) {
  Write("proc/meminfo", "MemTotal:       16 kB\nHugePages_Free:        3\nOdd: x\n");
  EXPECT_EQ(MemInfo("MemTotal", root_), 16 * kKiB);
  EXPECT_EQ(MemInfo("HugePages_Free", root_), 3u);
  EXPECT_EQ(MemInfo("Odd", root_), std::nullopt);
  EXPECT_EQ(MemInfo("Mem", root_), std::nullopt);
  EXPECT_EQ(MemInfo("MemTotal", root_ + "/absent"), std::nullopt);
}

TEST_F(MachineTest, CoresAreAtLeastOneAndAtMostAsked) {
  EXPECT_EQ(Cores(1), 1);
  EXPECT_GE(Cores(1 << 20), 1);
  EXPECT_LE(Cores(2), 2);
}

}  // namespace
}  // namespace trims

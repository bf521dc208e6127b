#include "daemon/machine.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace trims {
namespace {

class MachineTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "machineXXXXXX";
    root_ = std::string(::mkdtemp(pattern.data())) + "/";
    Write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\n");
    Write("proc/self/cgroup", "0::/a/b\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(MachineTest, WithoutALimitTheMachinesMemoryCounts) {
  Write("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(UsableMemoryBytes(root_), uint64_t{16} << 30);
}

TEST_F(MachineTest, TheLeastLimitOfTheGroupAndItsParentsCounts) {
  Write("sys/fs/cgroup/a/b/memory.max", "8589934592\n");
  Write("sys/fs/cgroup/a/memory.max", "4294967296\n");
  EXPECT_EQ(UsableMemoryBytes(root_), uint64_t{4} << 30);
}

TEST_F(MachineTest, HostCapacityWinsOverThePercentage) {
  DaemonConfig config;
  config.memory_percentage = 0.5;
  EXPECT_EQ(HostBudgetBytes(config, root_), uint64_t{8} << 30);
  config.host_capacity_bytes = 123;
  EXPECT_EQ(HostBudgetBytes(config, root_), 123u);
}

}  // namespace
}  // namespace trims

// What `trims doctor` says of a machine, on machines that are made up.
#include "cli/doctor_machine.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

// A /proc and a /sys of its own, in which all is well.
class DoctorMachineTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    root_ = directory_ + "/machine";
    std::filesystem::create_directories(root_ + "/proc/self");
    std::filesystem::create_symlink("/bin/true", root_ + "/proc/self/exe");
    Write("/proc/meminfo", MemInfo(16));
    Write("/proc/4001/limits",
          "Limit                     Soft Limit           Hard Limit           Units\n"
          "Max locked memory         unlimited            unlimited            bytes\n"
          "Max open files            1048576              1048576              files\n");
    Write("/proc/4001/cgroup", "0::/system.slice/trimsd.service\n");
    Write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
          "always [within_size] advise never deny force\n");
    daemon_.emplace();
    daemon_->set_worker_pid(4001);
    v1::TierView* tier = daemon_->add_tiers();
    tier->set_name("host");
    tier->set_budget_bytes(8 * kGiB);
  }

  static std::string MemInfo(int free_huge_pages) {
    return "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nHugePages_Total:      32\n"
           "HugePages_Free:       " +
           std::to_string(free_huge_pages) + "\nHugepagesize:       2048 kB\n";
  }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  Finding Find(const std::string& check, bool gpu = false) {
    for (const Finding& finding : CheckMachine(daemon_, gpu, root_)) {
      if (finding.check == check) return finding;
    }
    return {Level::kFail, check, "no such finding", ""};
  }

  std::string root_;
  std::optional<v1::GetStatusResponse> daemon_;
};

TEST_F(DoctorMachineTest, AMachineOnWhichAllIsWellNeedsNoAdvice) {
  const std::vector<Finding> findings = CheckMachine(daemon_, true, root_);
  EXPECT_EQ(findings.size(), 7u);
  for (const Finding& finding : findings) {
    EXPECT_EQ(finding.level, Level::kOk) << finding.check << ": " << finding.text;
    EXPECT_EQ(finding.advice, "") << finding.check;
  }
}

TEST_F(DoctorMachineTest, WithoutProcNothingCanBeLent) {
  std::filesystem::remove(root_ + "/proc/self/exe");
  const Finding finding = Find("/proc");
  EXPECT_EQ(finding.level, Level::kFail);
  EXPECT_EQ(finding.text, "not mounted, or not readable");
  EXPECT_EQ(finding.advice, "mount it: memory is re-opened read-only through /proc/self/fd");
}

TEST_F(DoctorMachineTest, ProcWithoutMemoryIsNoProc) {
  Write("/proc/meminfo", "");
  EXPECT_EQ(Find("/proc").level, Level::kFail);
}

TEST_F(DoctorMachineTest, SealingIsTriedOnThisKernel) {
  const Finding finding = Find("memfd sealing");
  EXPECT_EQ(finding.level, Level::kOk) << finding.text;
  EXPECT_EQ(finding.text, "tried: works");
}

TEST_F(DoctorMachineTest, FewOpenFilesAreAWarningWithTheSettingToChange) {
  Write("/proc/4001/limits", "Max open files            1024                 4096       files\n");
  const Finding finding = Find("open files");
  EXPECT_EQ(finding.level, Level::kWarn);
  EXPECT_EQ(finding.text, "the daemon's limit is 1024");
  EXPECT_THAT(finding.advice, AllOf(HasSubstr("LimitNOFILE=65536"), HasSubstr("ulimit -n 65536")));
  Write("/proc/4001/limits", "Max open files            unlimited            unlimited  files\n");
  EXPECT_EQ(Find("open files").text, "the daemon's limit is unlimited");
  EXPECT_EQ(Find("open files").level, Level::kOk);
  Write("/proc/4001/limits", "Max open files            65536                65536      files\n");
  EXPECT_EQ(Find("open files").level, Level::kOk);
}

TEST_F(DoctorMachineTest, WithoutADaemonItIsThisProcessThatIsLookedAt) {
  daemon_.reset();
  EXPECT_THAT(Find("open files").text, StartsWith("this process's limit is "));
  EXPECT_THAT(Find("locked memory").text, StartsWith("this process's limit is "));
  EXPECT_THAT(Find("memory").text, StartsWith("the budget that a daemon started here would have"));
}

TEST_F(DoctorMachineTest, LimitsThatCanNotBeReadAreThisProcesss) {
  Write("/proc/4001/limits", "Max open files            soon                 never      files\n");
  EXPECT_THAT(Find("open files").text, StartsWith("this process's limit is "));
}

TEST_F(DoctorMachineTest, LockedMemoryMattersOnlyWithAGpu) {
  Write("/proc/4001/limits", "Max locked memory         8388608              8388608    bytes\n");
  const Finding without = Find("locked memory", false);
  EXPECT_EQ(without.level, Level::kOk);
  EXPECT_EQ(without.text, "the daemon's limit is 8.0 MiB; matters only with a GPU");
  const Finding with = Find("locked memory", true);
  EXPECT_EQ(with.level, Level::kWarn);
  EXPECT_THAT(with.advice, AllOf(HasSubstr("LimitMEMLOCK=infinity"), HasSubstr("ulimit -l")));
}

TEST_F(DoctorMachineTest, ABudgetThatTheMachineDoesNotHaveFails) {
  daemon_->mutable_tiers(0)->set_budget_bytes(17 * kGiB);
  const Finding finding = Find("memory");
  EXPECT_EQ(finding.level, Level::kFail);
  EXPECT_EQ(finding.text, "the host tier's budget is 17.0 GiB, the machine has 16.0 GiB");
  EXPECT_THAT(finding.advice, AllOf(HasSubstr("lower host_capacity_bytes or memory_percentage"),
                                    HasSubstr("raise the cgroup's limit")));
}

TEST_F(DoctorMachineTest, TheTightestCgroupAboveTheDaemonCounts) {
  Write("/sys/fs/cgroup/system.slice/trimsd.service/memory.max", "max\n");
  EXPECT_EQ(Find("memory").text, "the host tier's budget is 8.0 GiB, the machine has 16.0 GiB");
  Write("/sys/fs/cgroup/system.slice/memory.max", std::to_string(9 * kGiB) + "\n");
  EXPECT_EQ(Find("memory").text, "the host tier's budget is 8.0 GiB, its cgroup's limit 9.0 GiB");
  EXPECT_EQ(Find("memory").level, Level::kOk);
  Write("/sys/fs/cgroup/system.slice/trimsd.service/memory.max", std::to_string(4 * kGiB) + "\n");
  EXPECT_EQ(Find("memory").text, "the host tier's budget is 8.0 GiB, its cgroup's limit 4.0 GiB");
  EXPECT_EQ(Find("memory").level, Level::kFail);
}

TEST_F(DoctorMachineTest, CgroupsOfTheFirstVersionCount) {
  Write("/proc/4001/cgroup", "5:cpu,cpuacct:/fast\n7:memory:/docker/12ab\n");
  Write("/sys/fs/cgroup/memory/fast/memory.limit_in_bytes", "1\n");
  Write("/sys/fs/cgroup/memory/docker/12ab/memory.limit_in_bytes", std::to_string(6 * kGiB) + "\n");
  EXPECT_EQ(Find("memory").text, "the host tier's budget is 8.0 GiB, its cgroup's limit 6.0 GiB");
}

TEST_F(DoctorMachineTest, NoFreeHugePagesAreAWarningThatSaysWhatAModelTakes) {
  EXPECT_EQ(Find("huge pages").text, "16 of 32 huge pages of 2.0 MiB are free");
  Write("/proc/meminfo", MemInfo(0));
  const Finding finding = Find("huge pages");
  EXPECT_EQ(finding.level, Level::kWarn);
  EXPECT_EQ(finding.text, "0 of 32 huge pages of 2.0 MiB are free");
  EXPECT_THAT(finding.advice, AllOf(HasSubstr("sysctl vm.nr_hugepages=N"),
                                    HasSubstr("(a model takes its size / 2.0 MiB)")));
}

TEST_F(DoctorMachineTest, TransparentHugePagesThatAreOffAreAWarningWithTheCommand) {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  EXPECT_EQ(Find("transparent huge pages").text, "for shared memory: within_size");
  for (const std::string setting : {"never", "deny"}) {
    Write(path, "always within_size advise [" + setting + "] force\n");
    const Finding finding = Find("transparent huge pages");
    EXPECT_EQ(finding.level, Level::kWarn) << setting;
    EXPECT_EQ(finding.text, "for shared memory: " + setting);
    EXPECT_THAT(finding.advice, EndsWith("as root: echo within_size > " + path));
  }
  std::filesystem::remove(root_ + path);
  EXPECT_EQ(Find("transparent huge pages").level, Level::kOk);
  EXPECT_EQ(Find("transparent huge pages").text, "this kernel has none for shared memory");
}

}  // namespace
}  // namespace trims::cli

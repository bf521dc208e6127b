// What `trims doctor` says of GPUs: of the fake driver's, and of such as are made up.
#include "cli/doctor_gpu.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

// Two good devices that the daemon serves and this process sees, and a /dev of their own.
class DoctorGpuTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    root_ = directory_ + "/machine";
    std::filesystem::create_directories(root_ + "/dev");
    ::unsetenv("CUDA_VISIBLE_DEVICES");
    ::unsetenv("TRIMS_CUDA_LIBRARY");
    probe_.driver_version = "13.0";
    daemon_.emplace();
    daemon_->set_gpu("2 x NVIDIA H200");
    for (int i = 0; i < 2; ++i) {
      const std::string uuid = i == 0 ? "GPU-aa" : "GPU-bb";
      GpuView& view = probe_.devices.emplace_back();
      view.ordinal = i;
      view.uuid = uuid;
      view.name = "NVIDIA H200";
      view.total_bytes = 140 * kGiB;
      view.supports_vmm = true;
      view.supports_posix_fd = true;
      v1::DeviceView* device = daemon_->add_devices();
      device->set_ordinal(static_cast<uint32_t>(i));
      device->set_uuid(uuid);
      device->set_name("NVIDIA H200");
      device->set_tier("gpu:" + uuid);
      device->set_ready(true);
      device->set_state("ready");
      device->set_pinned_pool_bytes(256 * kMiB);
      device->set_pinned_pool_bytes_max(256 * kMiB);
      v1::TierView* tier = daemon_->add_tiers();
      tier->set_name(device->tier());
      tier->set_used_bytes(kGiB);
      tier->set_budget_bytes(100 * kGiB);
    }
  }

  std::vector<Finding> Check() { return CheckGpus(probe_, daemon_, root_).findings; }
  // Of a process that has no driver, for that reason.
  std::vector<Finding> CheckWithout(const Status& why) {
    return CheckGpus(why, std::nullopt, root_).findings;
  }
  Finding Find(const std::string& check) {
    for (const Finding& finding : Check()) {
      if (finding.check == check) return finding;
    }
    return {Level::kFail, check, "no such finding", ""};
  }

  std::string root_;
  GpuProbe probe_;
  std::optional<v1::GetStatusResponse> daemon_;
};

#ifdef FAKE_CUDA_LIBRARY
TEST_F(DoctorGpuTest, DoctorTriesTheDriverOfThisProcess) {
  StartDaemon();
  const std::vector<std::string> gpus = {"TRIMS_CUDA_LIBRARY=" FAKE_CUDA_LIBRARY,
                                         "FAKE_CUDA_DIR=" + directory_ + "/gpu",
                                         "FAKE_CUDA_DEVICES=2"};
  const auto doctor = [&](const std::vector<std::string>& more) {
    std::vector<std::string> environment = Environment();
    environment.insert(environment.end(), gpus.begin(), gpus.end());
    environment.insert(environment.end(), more.begin(), more.end());
    return Process({"doctor"}, environment).Wait().out;
  };
  EXPECT_THAT(
      doctor({}),
      AllOf(HasSubstr("2 devices visible to this process; the driver supports CUDA 13.0\n"),
            HasSubstr("GPU-fa4ec0da-0000-4000-8000-000000000001, 1.0 GiB; sharing memory was "
                      "tried: works\n"),
            HasSubstr("all devices read each other directly\n"),
            HasSubstr("the daemon does not see GPU-fa4ec0da-0000-4000-8000-000000000000, "
                      "GPU-fa4ec0da-0000-4000-8000-000000000001")));
  EXPECT_THAT(doctor({"CUDA_VISIBLE_DEVICES=1"}), HasSubstr("1 device visible"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=peer"}), HasSubstr("are copied through the host to"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=posix_fd"}),
              HasSubstr("no sharing of memory by descriptor"));
  EXPECT_THAT(doctor({"FAKE_CUDA_LACKS=vmm"}), HasSubstr("no virtual memory management"));
  EXPECT_THAT(doctor({"FAKE_CUDA_FAIL=cuMemImportFromShareableHandle:1+=999"}),
              AllOf(HasSubstr("FAIL  gpu #0"), HasSubstr("sharing memory was tried: ")));
  EXPECT_THAT(doctor({"FAKE_CUDA_FAIL=cuInit:1+=304"}), HasSubstr("WARN  gpu "));
}
#endif

TEST_F(DoctorGpuTest, GpusWithWhichAllIsWellNeedNoAdvice) {
  const std::vector<Finding> findings = Check();
  for (const Finding& finding : findings) {
    EXPECT_EQ(finding.level, Level::kOk) << finding.check << ": " << finding.text;
    EXPECT_EQ(finding.advice, "") << finding.check;
  }
  EXPECT_EQ(findings.size(), 7u);
  EXPECT_EQ(findings[0].text, "2 devices visible to this process; the driver supports CUDA 13.0");
  EXPECT_EQ(Find("gpu:1").text, "NVIDIA H200, GPU-bb, 140.0 GiB; sharing memory was tried: works");
  EXPECT_EQ(Find("gpu peers").text, "all devices read each other directly");
  EXPECT_EQ(Find("daemon gpu:0").text,
            "NVIDIA H200, ready: 1.0 GiB of 100.0 GiB used; load buffers 256.0 MiB of 256.0 MiB");
  EXPECT_EQ(Find("gpu view").text, "this process and the daemon see the same devices");
}

TEST_F(DoctorGpuTest, WithoutAGpuTheHostTierServesAndThatIsGood) {
  const GpuFindings found = CheckGpus(UnavailableError("no driver"), std::nullopt, root_);
  EXPECT_FALSE(found.present);
  ASSERT_EQ(found.findings.size(), 1u);
  if (found.findings[0].level != Level::kOk)
    GTEST_SKIP() << "this machine has the driver's library";
  EXPECT_EQ(found.findings[0].text, "none: weights are served from the host tier");
}

TEST_F(DoctorGpuTest, DeviceFilesWithoutADriverAreAWarning) {
  for (const char* name : {"nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "nvidia0x", "null"}) {
    std::ofstream(root_ + "/dev/" + name) << "";
  }
  const GpuFindings found = CheckGpus(UnavailableError("no driver"), std::nullopt, root_);
  EXPECT_TRUE(found.present);
  ASSERT_EQ(found.findings.size(), 1u);
  EXPECT_EQ(found.findings[0].level, Level::kWarn);
  EXPECT_EQ(found.findings[0].text, root_ + "/dev/nvidia0, " + root_ + "/dev/nvidia1; no driver");
  EXPECT_THAT(found.findings[0].advice, StartsWith("install the NVIDIA driver's user library"));
}

TEST_F(DoctorGpuTest, DeviceFilesThatThisUserMayNotOpenAreNamed) {
  if (::geteuid() == 0) GTEST_SKIP() << "root opens everything";
  std::ofstream(root_ + "/dev/nvidia0") << "";
  std::filesystem::permissions(root_ + "/dev/nvidia0", std::filesystem::perms::none);
  const std::vector<Finding> findings = CheckWithout(UnavailableError("no device"));
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_THAT(findings[0].text, AllOf(HasSubstr("this user may not open " + root_ + "/dev/nvidia0"),
                                      HasSubstr("mode 0000")));
  EXPECT_EQ(findings[0].advice, "let this user read and write these files, by group or by mode");
}

TEST_F(DoctorGpuTest, ADriverWithoutDeviceFilesIsAContainerWithoutItsDevices) {
  ::setenv("TRIMS_CUDA_LIBRARY", "/some/libcuda.so.1", 1);
  const std::vector<Finding> findings = CheckWithout(UnavailableError("no device"));
  ::unsetenv("TRIMS_CUDA_LIBRARY");
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].level, Level::kWarn);
  EXPECT_EQ(findings[0].text, "no /dev/nvidia0; no device");
  EXPECT_EQ(findings[0].advice,
            "give this container its devices, or load the nvidia kernel module");
}

TEST_F(DoctorGpuTest, AProgramWithoutGpuSupportSaysHowToBuildOne) {
  std::ofstream(root_ + "/dev/nvidia0") << "";
  const std::vector<Finding> findings = CheckWithout(UnimplementedError("cuda.h was not found"));
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].level, Level::kWarn);
  EXPECT_EQ(findings[0].advice,
            "build TrIMS where cuda.h is found to use the GPU; the host tier works without");
}

TEST_F(DoctorGpuTest, DevicesOnWhichNothingCanBeSharedAreWarnings) {
  probe_.devices[0].supports_vmm = false;
  probe_.devices[1].supports_posix_fd = false;
  EXPECT_EQ(Find("gpu:0").level, Level::kWarn);
  EXPECT_THAT(Find("gpu:0").text, EndsWith("; it has no virtual memory management"));
  EXPECT_EQ(Find("gpu:1").level, Level::kWarn);
  EXPECT_THAT(Find("gpu:1").text, EndsWith("; it has no sharing of memory by descriptor"));
  EXPECT_THAT(Find("gpu:1").advice, StartsWith("models can not be shared on it; a newer driver"));
}

TEST_F(DoctorGpuTest, SharingThatFailedFailsWithAdviceThatFitsTheReason) {
  probe_.devices[0].tried = ResourceExhaustedError("out of memory");
  probe_.devices[1].tried = InternalError("error 999");
  EXPECT_EQ(Find("gpu:0").level, Level::kFail);
  EXPECT_THAT(Find("gpu:0").text, EndsWith("; sharing memory was tried: out of memory"));
  EXPECT_EQ(Find("gpu:0").advice, "the device is full: see who uses it with nvidia-smi");
  EXPECT_EQ(Find("gpu:1").level, Level::kFail);
  EXPECT_EQ(Find("gpu:1").advice,
            "no process can use a model on it before that works; dmesg may say why");
}

TEST_F(DoctorGpuTest, PeersThatCanNotBeReadAreGoodButTold) {
  probe_.devices[0].unreachable_peers = {"GPU-bb"};
  EXPECT_EQ(Find("gpu peers").level, Level::kOk);
  EXPECT_EQ(Find("gpu peers").text, "models are copied through the host to gpu:0 from gpu:1");
}

TEST_F(DoctorGpuTest, DevicesThatTheDaemonLostFail) {
  daemon_->mutable_tiers(0)->set_health("the device was lost");
  daemon_->mutable_devices(1)->set_ready(false);
  daemon_->mutable_devices(1)->set_state("not ready");
  EXPECT_EQ(Find("daemon gpu:0").level, Level::kFail);
  EXPECT_EQ(Find("daemon gpu:0").text, "NVIDIA H200: the device was lost");
  EXPECT_EQ(Find("daemon gpu:1").text, "NVIDIA H200: not ready");
  EXPECT_EQ(Find("daemon gpu:1").advice,
            "models are served from the host; see dmesg and nvidia-smi, then restart the daemon");
}

TEST_F(DoctorGpuTest, DevicesThatTheDaemonDoesNotServeAreWarnings) {
  daemon_->mutable_devices(1)->clear_tier();
  daemon_->mutable_devices(1)->set_state("not wanted");
  EXPECT_EQ(Find("daemon gpu:1").level, Level::kWarn);
  EXPECT_EQ(Find("daemon gpu:1").text, "NVIDIA H200 is not served: not wanted");
  EXPECT_THAT(Find("daemon gpu:1").advice, HasSubstr("\"trims config show\" (devices)"));
}

TEST_F(DoctorGpuTest, LoadBuffersThatAreMissingAreAWarningWithTheirNumberOfPages) {
  daemon_->mutable_devices(0)->set_pinned_pool_bytes(128 * kMiB);
  EXPECT_EQ(Find("daemon gpu:0").level, Level::kWarn);
  EXPECT_THAT(Find("daemon gpu:0").text, EndsWith("load buffers 128.0 MiB of 256.0 MiB"));
  EXPECT_THAT(Find("daemon gpu:0").advice,
              AllOf(HasSubstr("LimitMEMLOCK=infinity"), HasSubstr("(sysctl vm.nr_hugepages=128)")));
}

TEST_F(DoctorGpuTest, DevicesThatOnlyOneSideSeesAreWarningsOfBoth) {
  probe_.devices[1].uuid = "GPU-cc";
  std::vector<Finding> views;
  for (const Finding& finding : Check()) {
    if (finding.check == "gpu view") views.push_back(finding);
  }
  ASSERT_EQ(views.size(), 2u);
  EXPECT_EQ(views[0].text, "this process does not see GPU-bb, which the daemon has");
  EXPECT_THAT(views[0].advice, StartsWith("processes like this one can not open models on it"));
  EXPECT_EQ(views[1].text, "the daemon does not see GPU-cc, which this process has");
  EXPECT_THAT(views[1].advice, StartsWith("look at CUDA_VISIBLE_DEVICES in the daemon's"));
  EXPECT_EQ(Find("gpu #1").level, Level::kOk);  // The daemon has no number for it.
}

TEST_F(DoctorGpuTest, DevicesHiddenByAVariableAreExplainedByIt) {
  probe_.devices.pop_back();
  ::setenv("CUDA_VISIBLE_DEVICES", "0", 1);
  const Finding view = Find("gpu view");
  ::unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_EQ(view.level, Level::kWarn);
  EXPECT_THAT(view.advice, StartsWith("CUDA_VISIBLE_DEVICES=0 hides it here"));
}

TEST_F(DoctorGpuTest, ADaemonWithoutDevicesIsAskedWhy) {
  daemon_->clear_devices();
  daemon_->set_gpu("none: libcuda.so.1 was not found");
  EXPECT_EQ(Find("gpu view").advice,
            "the daemon says of its GPUs: none: libcuda.so.1 was not found");
}

}  // namespace
}  // namespace trims::cli

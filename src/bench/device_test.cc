// The floors of devices, on the fake driver or on the GPUs of this machine: that they do what
// they say they measure, and hold nothing afterwards.
#include "bench/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "bench/copies.h"
#include "bench/mapping_floor.h"
#include "bench/test_bench.h"
#include "tier/test_cuda.h"

namespace trims::bench {
namespace {

class DeviceTest : public BenchTest {
 protected:
  void SetUp() override {
    BenchTest::SetUp();
    ASSERT_FALSE(VisibleDevices().empty());  // Loads the driver.
    if (!OnRealGpu()) {
      ASSERT_EQ(FAKE(fake_cuda_fail)(""), 0);
    }
    before_ = HeldMemoryObjects();
  }
  void TearDown() override {
    EXPECT_EQ(HeldMemoryObjects(), before_);  // All devices of the test are gone.
    if (!OnRealGpu()) {
      EXPECT_EQ(FAKE(fake_cuda_fail)(""), 0);
    }
    BenchTest::TearDown();
  }

  uint64_t before_ = 0;
};

TEST_F(DeviceTest, AllThatThisProcessSeesAreOpened) {
  const std::vector<Device> devices = Must(Device::OpenAll());
  const std::vector<cuda::Device> seen = VisibleDevices();
  ASSERT_EQ(devices.size(), seen.size());
  for (size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(devices[i].uuid(), seen[i].uuid());
    EXPECT_EQ(devices[i].name(), seen[i].name());
    EXPECT_EQ(devices[i].ordinal(), static_cast<int>(i));
    EXPECT_EQ(devices[i].total_bytes(), seen[i].total_bytes());
  }
}

TEST_F(DeviceTest, ADeviceThatIsNotSeenIsNotFound) {
  EXPECT_EQ(Device::Open("GPU-00000000-none").status().code(), StatusCode::kNotFound);
}

TEST_F(DeviceTest, AMappingIsOfMemoryThatOnlyItsDescriptorHolds) {
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  ASSERT_TRUE(device.MakeShared(8 * kMiB).ok());
  const uint64_t held = HeldMemoryObjects();
  EXPECT_EQ(held, before_);
  for (int i = 0; i < 5; ++i) {
    const OpenTimes times = Must(device.MeasureMapping());
    EXPECT_GT(times.open, 0);
    EXPECT_GT(times.close, 0);
    EXPECT_EQ(HeldMemoryObjects(), held);
  }
}

TEST_F(DeviceTest, EachMappingImportsReservesMapsAndGivesBack) {
  SKIP_ON_REAL_GPU("the driver's calls are counted");
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  ASSERT_TRUE(device.MakeShared(8 * kMiB).ok());
  ASSERT_EQ(FAKE(fake_cuda_fail)(""), 0);
  for (int i = 0; i < 3; ++i) Must(device.MeasureMapping());
  for (const char* call : {"cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap",
                           "cuMemSetAccess", "cuMemUnmap", "cuMemAddressFree", "cuMemRelease"}) {
    EXPECT_EQ(FAKE(fake_cuda_calls)(call), 3u) << call;
  }
}

TEST_F(DeviceTest, AFailingMappingLeavesNothing) {
  SKIP_ON_REAL_GPU("calls that fail are planned");
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  ASSERT_TRUE(device.MakeShared(8 * kMiB).ok());
  const uint64_t held = HeldMemoryObjects();
  for (const char* call :
       {"cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"}) {
    ASSERT_EQ(FAKE(fake_cuda_fail)((std::string(call) + ":1=999").c_str()), 0);
    EXPECT_FALSE(device.MeasureMapping().ok()) << call;
    EXPECT_EQ(HeldMemoryObjects(), held) << call;
  }
  EXPECT_TRUE(device.MeasureMapping().ok());
}

TEST_F(DeviceTest, NoRoomIsResourceExhaustedAndLeavesNothing) {
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  EXPECT_EQ(device.MakeShared(2 * device.total_bytes()).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(HeldMemoryObjects(), before_);
  EXPECT_TRUE(device.MakeShared(kMiB).ok());
}

TEST_F(DeviceTest, SharedMemoryIsReplacedAndGoesWithTheFloor) {
  SKIP_ON_REAL_GPU("how much is free depends on others");
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  const uint64_t most = device.total_bytes() * 3 / 4;
  {
    MappingFloor floor(&device);
    ASSERT_TRUE(floor.Make(most).ok());
    ASSERT_TRUE(floor.Make(most).ok());  // There is no room for both.
    EXPECT_TRUE(floor.Measure().ok());
  }
  EXPECT_TRUE(device.MakeShared(most).ok());
}

TEST_F(DeviceTest, CopiesKeepTheirBuffersUntilTheyAreTooSmall) {
  SKIP_ON_REAL_GPU("the driver's calls are counted");
  Device device = Must(Device::Open(VisibleDevices()[0].uuid()));
  ASSERT_EQ(FAKE(fake_cuda_fail)(""), 0);
  for (int i = 0; i < 3; ++i) Must(device.MeasureCopy(Device::Copy::kFromHost, 4 * kMiB));
  Must(device.MeasureCopy(Device::Copy::kToHost, 2 * kMiB));
  EXPECT_EQ(HeldMemoryObjects(), before_ + 2);                  // One there, one here.
  Must(device.MeasureCopy(Device::Copy::kOnDevice, 4 * kMiB));  // Needs twice as much.
  EXPECT_EQ(HeldMemoryObjects(), before_ + 2);
}

TEST_F(DeviceTest, EveryCopyTakesTime) {
  std::vector<Device> devices = Must(Device::OpenAll());
  for (Device& device : devices) {
    for (const Device::Copy copy :
         {Device::Copy::kFromHost, Device::Copy::kToHost, Device::Copy::kOnDevice}) {
      EXPECT_GT(Must(device.MeasureCopy(copy, kMiB)), 0);
    }
    for (Device& peer : devices) {
      if (&peer != &device) {
        EXPECT_GT(Must(device.MeasureCopyFrom(peer, kMiB)), 0);
      }
    }
  }
}

TEST_F(DeviceTest, CopiesAreMeasuredWithTheDeviceThatIsAskedForAndCalledAsTold) {
  std::vector<Device> devices = Must(Device::OpenAll());
  if (devices.size() < 2) GTEST_SKIP() << "there is one device";
  const Interrupts interrupts;
  QuietObserver observer;
  CopyBench copies({.runs = 2,
                    .directory = directory_,
                    .only_uuid = devices[1].uuid(),
                    .name_of = [](const std::string& uuid) { return "<" + uuid + ">"; }},
                   interrupts, observer);
  const Status status = copies.Run(kMiB, devices);
  ASSERT_TRUE(status.ok()) << status.ToString();
  const std::string wanted = "<" + devices[1].uuid() + ">";
  std::vector<std::string> keys;
  for (const CopyFigures& figures : copies.figures()) {
    if (figures.threads > 0) continue;  // Of the host.
    keys.push_back(figures.key);
    EXPECT_TRUE(figures.from == wanted || figures.to == wanted) << figures.text;
    EXPECT_EQ(figures.samples.size(), 2u);
  }
  ASSERT_GE(keys.size(), 4u);
  EXPECT_THAT(std::vector<std::string>(keys.begin(), keys.begin() + 3),
              testing::ElementsAre("pinned_to_device", "device_to_pinned", "on_device"));
  EXPECT_EQ(keys[3], "peer_to_device");
}

}  // namespace
}  // namespace trims::bench

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}

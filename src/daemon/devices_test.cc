#include "daemon/devices.h"

#include <gtest/gtest.h>
#include <strings.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/limits.h"
#include "daemon/log.h"
#include "tier/test_cuda.h"

namespace trims {
namespace {

std::string UuidOf(int ordinal) { return VisibleDevices().at(static_cast<size_t>(ordinal)).uuid(); }

std::unique_ptr<Devices> Open(const std::string& named = "all",
                              const std::function<void(DaemonConfig&)>& change = nullptr) {
  DaemonConfig config;
  config.devices = named;
  config.pinned_pool_bytes = 4 * kChunkBytes;
  config.io_threads = 1;
  config.memory_percentage = 0.5;
  if (change) change(config);
  return Devices::Open(config, TestKey());
}

// What a device says of itself, with the tiers handed out as to a registry: facts of tiers that
// are gone are nobody's.
struct Opened {
  explicit Opened(const std::string& named = "all",
                  const std::function<void(DaemonConfig&)>& change = nullptr)
      : devices(Open(named, change)), tiers(devices->TakeTiers()) {}
  std::unique_ptr<Devices> devices;
  std::vector<ServedTier> tiers;
};

std::string Logged(const std::function<void()>& work) {
  InitLog({});
  testing::internal::CaptureStderr();
  work();
  std::string text = testing::internal::GetCapturedStderr();
  InitLog({});
  return text;
}

class DevicesTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(VisibleDevices().empty());  // Loads the driver.
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    objects_before_ = HeldMemoryObjects();
  }
  void TearDown() override {
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    EXPECT_EQ(HeldMemoryObjects(), objects_before_) << "memory leaked";
  }
  uint64_t objects_before_ = 0;
};

// `check` in a process that has not loaded a driver yet, with this in its environment.
#define EXPECT_IN_FRESH_PROCESS(name, value, check)              \
  do {                                                           \
    GTEST_FLAG_SET(death_test_style, "threadsafe");              \
    EXPECT_EXIT(                                                 \
        {                                                        \
          const std::string machine = ::getenv("FAKE_CUDA_DIR"); \
          ::setenv(name, value, 1);                              \
          check();                                               \
          std::filesystem::remove_all(machine);                  \
          std::_Exit(testing::Test::HasFailure() ? 1 : 0);       \
        },                                                       \
        testing::ExitedWithCode(0), "");                         \
  } while (false)

TEST_F(DevicesTest, EveryDeviceIsServedUnlessTheConfigurationSaysOtherwise) {
  const Opened opened;
  ASSERT_EQ(opened.tiers.size(), VisibleDevices().size());
  EXPECT_TRUE(opened.devices->driver().ok());
  EXPECT_NE(opened.devices->driver_version(), "");
  const std::vector<DeviceFacts> facts = opened.devices->Facts();
  ASSERT_EQ(facts.size(), opened.tiers.size());
  for (size_t i = 0; i < facts.size(); ++i) {
    const std::string& name = opened.tiers[i].tier->name();
    EXPECT_EQ(facts[i].ordinal, static_cast<int>(i));
    EXPECT_EQ(facts[i].uuid, UuidOf(static_cast<int>(i)));
    EXPECT_EQ(facts[i].tier, "gpu:" + facts[i].uuid);
    EXPECT_EQ(name, facts[i].tier);
    EXPECT_TRUE(facts[i].state.ok()) << facts[i].state.ToString();
    EXPECT_TRUE(facts[i].supports_vmm && facts[i].supports_posix_fd);
    EXPECT_EQ(opened.tiers[i].budget_bytes, facts[i].total_bytes / 2);
    EXPECT_GT(facts[i].free_bytes, 0u);
    EXPECT_LE(facts[i].free_bytes, facts[i].total_bytes);
    EXPECT_EQ(facts[i].pinned_pool_bytes_max, 4 * kChunkBytes);
    EXPECT_LE(facts[i].pinned_pool_bytes, facts[i].pinned_pool_bytes_max);
    EXPECT_EQ(opened.devices->OrdinalOf(name), static_cast<uint32_t>(i));
    // From the host and from each other device, not measured yet.
    ASSERT_EQ(facts[i].links.size(), facts.size());
    EXPECT_EQ(facts[i].links[0].from, "host");
    for (const LinkFacts& link : facts[i].links) EXPECT_EQ(link.bytes_per_second, 0);
  }
  EXPECT_FALSE(opened.devices->OrdinalOf("host").has_value());
  EXPECT_FALSE(opened.devices->OrdinalOf("gpu:none").has_value());
  EXPECT_TRUE(opened.devices->TakeTiers().empty());  // Once.
  EXPECT_EQ(opened.devices->host_pinned_bytes(), 0u);
  EXPECT_FALSE(opened.devices->is_host_pinning());
}

TEST_F(DevicesTest, NoneIsAnswerEnoughAndTouchesNoDriver) {
  const Opened opened("none");
  EXPECT_TRUE(opened.tiers.empty());
  EXPECT_EQ(opened.devices->driver().code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(opened.devices->WhyNotServed("").find("devices is none"), std::string::npos);
  EXPECT_EQ(opened.devices->driver_version(), "");
  EXPECT_TRUE(opened.devices->Facts().empty());
  EXPECT_EQ(opened.devices->MeasureLinks(""), "{}");
  EXPECT_FALSE(opened.devices->PeerIsFaster("gpu:a", "gpu:b"));
}

TEST_F(DevicesTest, OnlyNamedDevicesAreServedByNumberOrUuidInAnyCase) {
  if (VisibleDevices().size() < 2) GTEST_SKIP() << "one device only";
  std::string upper = UuidOf(1);
  for (char& letter : upper) letter = static_cast<char>(::toupper(letter));
  for (const std::string& named : {std::string("1"), UuidOf(1), upper, std::string("7, 1")}) {
    const Opened opened(named, [](DaemonConfig& config) { config.device_capacity_bytes = 12345; });
    ASSERT_EQ(opened.tiers.size(), 1u) << named;
    EXPECT_EQ(opened.tiers[0].tier->name(), "gpu:" + UuidOf(1));
    EXPECT_EQ(opened.tiers[0].budget_bytes, 12345u);
    const std::vector<DeviceFacts> facts = opened.devices->Facts();
    EXPECT_EQ(facts[0].tier, "");
    EXPECT_EQ(facts[0].state.code(), StatusCode::kFailedPrecondition);
    EXPECT_TRUE(facts[0].links.empty());
    ASSERT_EQ(facts[1].links.size(), 1u);  // From the host; the other is not served.
    EXPECT_NE(opened.devices->WhyNotServed(UuidOf(0)).find("does not name it"), std::string::npos);
    EXPECT_EQ(opened.devices->WhyNotServed("GPU-unknown"), "it serves " + UuidOf(1));
  }
}

TEST_F(DevicesTest, AListThatNamesNothingHereIsSaidInTheLog) {
  const std::string log = Logged([] {
    const Opened opened("77");
    EXPECT_TRUE(opened.tiers.empty());
    EXPECT_EQ(opened.devices->WhyNotServed("GPU-unknown"), "it serves no device");
  });
  EXPECT_NE(log.find("the setting devices names none that is here devices=77"), std::string::npos)
      << log;
}

// --- Links --------------------------------------------------------------------------

TEST_F(DevicesTest, MeasuredLinksAreFactsAndAreNotMeasuredAgain) {
  const Opened opened;
  const std::string measured = opened.devices->MeasureLinks("");
  for (const DeviceFacts& device : opened.devices->Facts()) {
    for (const LinkFacts& link : device.links) EXPECT_GT(link.bytes_per_second, 0) << link.from;
  }
  if (OnRealGpu()) return;
  // By the next worker, to which this is handed: no copy is made.
  const Opened next;
  FAKE(fake_cuda_fail)("");
  EXPECT_EQ(nlohmann::json::parse(next.devices->MeasureLinks(measured)),
            nlohmann::json::parse(measured));
  EXPECT_EQ(FAKE(fake_cuda_calls)("cuStreamCreate"), 0u);
}

TEST_F(DevicesTest, WhatIsKnownOfLinksIsTakenAndWhatIsNoneIsMeasured) {
  SKIP_ON_REAL_GPU("figures are made up");
  const std::string first = UuidOf(0), second = UuidOf(1);
  for (const std::string& garbage :
       {std::string("garbage"), std::string("[]"), std::string("{\"x\":3}"),
        "{\"" + first + " host\":\"fast\"}", "{\"" + first + " host\":-1}",
        "{\"" + first + " host\":null}"}) {
    const Opened opened;
    opened.devices->MeasureLinks(garbage);
    EXPECT_GT(opened.devices->Facts()[0].links[0].bytes_per_second, 0) << garbage;
  }
  const nlohmann::json known = {{first + " host", 10.0},
                                {first + " " + second, 30.0},
                                {second + " host", 20.0},
                                {second + " " + first, 15.0}};
  const Opened opened;
  // Nobody knows yet: a link between them is better than none.
  EXPECT_TRUE(opened.devices->PeerIsFaster("gpu:" + first, "gpu:" + second));
  opened.devices->MeasureLinks(known.dump());
  EXPECT_EQ(opened.devices->Facts()[0].links[0].bytes_per_second, 10.0);
  EXPECT_EQ(opened.devices->Facts()[1].links[1].bytes_per_second, 15.0);
  EXPECT_TRUE(opened.devices->PeerIsFaster("gpu:" + first, "gpu:" + second));
  EXPECT_FALSE(opened.devices->PeerIsFaster("gpu:" + second, "gpu:" + first));
  EXPECT_FALSE(opened.devices->PeerIsFaster("gpu:" + first, "host"));
  EXPECT_FALSE(opened.devices->PeerIsFaster("gpu:none", "gpu:" + first));
}

TEST_F(DevicesTest, ALinkThatCanNotBeMeasuredIsLeftOut) {
  SKIP_ON_REAL_GPU("plans a failure");
  const Opened opened;
  FAKE(fake_cuda_fail)
  ("cuMemAlloc:1+=2,cuMemAlloc_v2:1+=2,cuMemAllocHost:1+=2,cuMemHostAlloc:1+=2");
  const nlohmann::json measured = nlohmann::json::parse(opened.devices->MeasureLinks(""));
  EXPECT_EQ(measured, nlohmann::json::object());
  EXPECT_EQ(opened.devices->Facts()[0].links[0].bytes_per_second, 0);
}

// --- Trouble --------------------------------------------------------------------------

TEST_F(DevicesTest, ADeviceWithoutAContextIsNotServedAndTheOthersAre) {
  SKIP_ON_REAL_GPU("plans a failure");
  FAKE(fake_cuda_fail)("cuDevicePrimaryCtxRetain:1=2");
  const std::string log = Logged([] {
    const Opened opened;
    ASSERT_EQ(opened.tiers.size(), 1u);
    int refused = 0;
    for (const DeviceFacts& device : opened.devices->Facts()) {
      if (device.state.ok()) continue;
      ++refused;
      EXPECT_EQ(device.tier, "");
      EXPECT_EQ(opened.devices->WhyNotServed(device.uuid), device.state.message());
    }
    EXPECT_EQ(refused, 1);
    EXPECT_TRUE(opened.devices->driver().ok());
  });
  EXPECT_NE(log.find("device not served device="), std::string::npos) << log;
}

// Whichever call of the driver fails, the daemon starts, says why a device is not served, and
// leaves nothing behind.
TEST_F(DevicesTest, AnyCallOfTheDriverMayFailWhileItStarts) {
  SKIP_ON_REAL_GPU("plans failures");
  SetLogLevel(LogLevel::kError);
  FAKE(fake_cuda_fail)("");
  { const Opened opened; }
  const uint64_t calls = FAKE(fake_cuda_calls)("*");
  ASSERT_GT(calls, 10u);
  testing::internal::CaptureStderr();
  for (uint64_t call = 1; call <= calls; ++call) {
    ASSERT_EQ(FAKE(fake_cuda_fail)(("*:" + std::to_string(call) + "=999").c_str()), 0);
    const Opened opened;
    FAKE(fake_cuda_fail)("");
    size_t served = 0;
    for (const DeviceFacts& device : opened.devices->Facts()) {
      served += device.tier.empty() ? 0 : 1;
      EXPECT_EQ(device.tier.empty(), !device.state.ok()) << call << device.state.ToString();
    }
    EXPECT_EQ(served, opened.tiers.size()) << call;
    if (opened.devices->driver().ok()) {
      EXPECT_GE(served + 1, VisibleDevices().size()) << call;  // One failure costs one device.
    } else {
      EXPECT_NE(opened.devices->WhyNotServed(""), "") << call;
    }
  }
  testing::internal::GetCapturedStderr();
  SetLogLevel(LogLevel::kInfo);
}

TEST(DevicesMachineTest, AMachineWithoutADriverIsAFactAndNoError) {
  SKIP_ON_REAL_GPU("another machine");
  EXPECT_IN_FRESH_PROCESS("TRIMS_CUDA_LIBRARY", "/nothing/libcuda.so.1", [] {
    const Opened opened;
    EXPECT_TRUE(opened.tiers.empty());
    EXPECT_EQ(opened.devices->driver().code(), StatusCode::kUnavailable);
    EXPECT_EQ(opened.devices->WhyNotServed("GPU-1"), opened.devices->driver().message());
    EXPECT_TRUE(opened.devices->Facts().empty());
    EXPECT_EQ(opened.devices->MeasureLinks("{}"), "{}");
  });
}

TEST(DevicesMachineTest, DevicesThatCanNotShareMemoryAreListedWithTheReason) {
  SKIP_ON_REAL_GPU("another machine");
  EXPECT_IN_FRESH_PROCESS("FAKE_CUDA_LACKS", "vmm,posix_fd", [] {
    const Opened opened;
    EXPECT_TRUE(opened.tiers.empty());
    EXPECT_TRUE(opened.devices->driver().ok());
    EXPECT_EQ(opened.devices->Facts().size(), 2u);
    for (const DeviceFacts& device : opened.devices->Facts()) {
      EXPECT_EQ(device.state.code(), StatusCode::kUnimplemented) << device.state.ToString();
      EXPECT_FALSE(device.supports_vmm);
    }
    EXPECT_EQ(opened.devices->WhyNotServed(UuidOf(0)), opened.devices->Facts()[0].state.message());
  });
}

TEST(DevicesMachineTest, WithoutALinkBetweenDevicesNoPeerIsFaster) {
  SKIP_ON_REAL_GPU("another machine");
  EXPECT_IN_FRESH_PROCESS("FAKE_CUDA_LACKS", "peer,read_only_registration", [] {
    const Opened opened;
    EXPECT_EQ(opened.tiers.size(), 2u);
    EXPECT_FALSE(
        opened.devices->PeerIsFaster(opened.tiers[0].tier->name(), opened.tiers[1].tier->name()));
    EXPECT_FALSE(opened.devices->Facts()[0].links[1].direct);
    // Nor can host memory be pinned.
    EXPECT_EQ(opened.devices->host_pinned_bytes(), 0u);
    EXPECT_FALSE(opened.devices->is_host_pinning());
  });
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}

#include "base/device_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trims {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const std::vector<NumberedDevice>& Devices() {
  static const std::vector<NumberedDevice> devices = {
      {0, "GPU-7a11"}, {1, "MIG-7a22"}, {{}, "GPU-1234567"}};
  return devices;
}

TEST(DeviceNamesTest, ADeviceIsNamedByNumberOrTheFirstDigitsOfItsUuid) {
  EXPECT_EQ(DeviceTierName("GPU-7a11"), "gpu:GPU-7a11");
  EXPECT_THAT(MatchDevices("gpu:0", Devices()), ElementsAre(0));
  EXPECT_THAT(MatchDevices("gpu:1", Devices()), ElementsAre(1));
  for (const char* typed : {"gpu:GPU-7a11", "gpu:gpu-7A1", "gpu:7a1"})
    EXPECT_THAT(MatchDevices(typed, Devices()), ElementsAre(0)) << typed;
  EXPECT_THAT(MatchDevices("gpu:7a", Devices()), ElementsAre(0, 1));
  EXPECT_THAT(MatchDevices("gpu:mig-", Devices()), ElementsAre(1));
  EXPECT_THAT(MatchDevices("gpu:12345", Devices()), ElementsAre(2));
}

TEST(DeviceNamesTest, ANumberIsNeverTheBeginningOfAUuid) {
  for (const char* typed : {"gpu:7", "gpu:2", "gpu:12", "gpu:1234"})
    EXPECT_THAT(MatchDevices(typed, Devices()), IsEmpty()) << typed;
}

TEST(DeviceNamesTest, GpuAloneMeansTheOnlyDevice) {
  EXPECT_THAT(MatchDevices("gpu", Devices()), IsEmpty());
  EXPECT_THAT(MatchDevices("gpu", {}), IsEmpty());
  EXPECT_THAT(MatchDevices("gpu", {{3, "GPU-1"}}), ElementsAre(0));
}

TEST(DeviceNamesTest, WhatIsNoDeviceMatchesNone) {
  for (const char* typed : {"", "host", "gpu:", "gpux", "GPU-7a11", "gpu:GPU-7a11x", "gpu:-"})
    EXPECT_THAT(MatchDevices(typed, Devices()), IsEmpty()) << typed;
}

}  // namespace
}  // namespace trims

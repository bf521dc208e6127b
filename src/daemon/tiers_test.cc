#include "daemon/tiers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/devices.h"
#include "tier/fake_tier.h"

namespace trims {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<ServedTier> Served(const std::vector<std::pair<std::string, uint64_t>>& all) {
  std::vector<ServedTier> served;
  for (const auto& [name, budget] : all)
    served.push_back({std::make_unique<FakeTier>(name), budget});
  return served;
}

// No tier is the host because of its number.
class TiersTest : public ::testing::Test {
 protected:
  const Tiers tiers_{Served({{"gpu:GPU-fa4e-1", 10}, {"host", 20}, {"gpu:GPU-FB00-2", 30}}),
                     nullptr};
};

TEST_F(TiersTest, TheHostIsWhereItIs) {
  EXPECT_EQ(tiers_.size(), 3u);
  EXPECT_EQ(tiers_.host(), 1u);
  EXPECT_THAT(tiers_.device_tiers(), ElementsAre(0u, 2u));
  EXPECT_TRUE(tiers_.IsDevice(0) && !tiers_.IsDevice(1) && tiers_.IsDevice(2));
  EXPECT_EQ(tiers_.DeviceUuid(0), "GPU-fa4e-1");
  EXPECT_EQ(tiers_.DeviceUuid(1), "");
  EXPECT_EQ(tiers_.name(2), "gpu:GPU-FB00-2");
}

TEST_F(TiersTest, TheStoreIsToldTheSameInTheSameOrder) {
  const std::vector<store::TierConfig> configs = tiers_.ForStore();
  ASSERT_EQ(configs.size(), 3u);
  for (store::TierIndex i = 0; i < 3; ++i) {
    EXPECT_EQ(configs[i].name, tiers_.name(i));
    EXPECT_EQ(configs[i].budget_bytes, tiers_.budget_bytes(i));
    EXPECT_EQ(configs[i].kind == store::TierKind::kHost, i == tiers_.host());
  }
  EXPECT_EQ(tiers_.largest_budget_bytes(), 30u);
}

TEST_F(TiersTest, AWholeNameIsFoundInAnyCase) {
  EXPECT_EQ(tiers_.ByName("HOST"), 1u);
  EXPECT_EQ(tiers_.ByName("GPU:gpu-fb00-2"), 2u);
  for (const char* name : {"", "hos", "host ", "gpu:GPU-fa4e", "gpu"})
    EXPECT_FALSE(tiers_.ByName(name).has_value()) << name;
}

TEST_F(TiersTest, WhatPeopleWriteIsResolvedOrTheTiersAreListed) {
  EXPECT_EQ(tiers_.Resolve("host").value(), 1u);
  EXPECT_EQ(tiers_.Resolve("gpu:fa4e").value(), 0u);
  EXPECT_EQ(tiers_.Resolve("gpu:GPU-fb").value(), 2u);
  const Status several = tiers_.Resolve("gpu:f").status();
  EXPECT_EQ(several.code(), StatusCode::kNotFound);
  EXPECT_THAT(several.message(), HasSubstr("several begin so"));
  const Status none = tiers_.Resolve("disk").status();
  EXPECT_EQ(none.code(), StatusCode::kNotFound);
  EXPECT_THAT(none.message(), HasSubstr("gpu:GPU-fa4e-1, host, gpu:GPU-FB00-2"));
}

TEST(TiersOfAMachineWithoutDevicesTest, SaysWhyThereIsNone) {
  DaemonConfig config;
  config.devices = "none";
  const std::unique_ptr<Devices> devices = Devices::Open(config, nullptr);
  const Tiers tiers(Served({{"host", 1}}), devices.get());
  const Status why = tiers.Resolve("gpu").status();
  EXPECT_EQ(why.code(), StatusCode::kNotFound);
  EXPECT_THAT(why.message(), HasSubstr("(no device: "));
  EXPECT_THAT(tiers.Resolve("disk").status().message(), ::testing::Not(HasSubstr("no device")));
  EXPECT_FALSE(tiers.PeerIsFaster(0, 0));
}

TEST_F(TiersTest, WithoutADriverNoPeerIsFaster) {
  EXPECT_FALSE(tiers_.PeerIsFaster(0, 2));
  EXPECT_EQ(tiers_.devices(), nullptr);
}

TEST_F(TiersTest, DevicesAndOnlyTheyAreToldOfHostMemory) {
  auto extent = std::make_shared<ResidentExtent>();
  extent->key.bytes[0] = 7;
  const auto told = [&](store::TierIndex i) {
    return dynamic_cast<FakeTier&>(tiers_[i]).host_extents();
  };
  tiers_.HostExtentReady(extent);
  EXPECT_THAT(told(0), ElementsAre(extent->key));
  EXPECT_THAT(told(1), IsEmpty());
  EXPECT_THAT(told(2), ElementsAre(extent->key));
  tiers_.HostExtentGone(extent->key);
  EXPECT_THAT(told(2), IsEmpty());
}

TEST(TiersDeathTest, ThereIsExactlyOneHost) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Tiers(Served({{"gpu:a", 1}}), nullptr), "host");
  EXPECT_DEATH(Tiers(Served({{"host", 1}, {"host", 1}}), nullptr), "host");
}

}  // namespace
}  // namespace trims

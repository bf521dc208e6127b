// What tiers are called: by people, by the daemon, and by --tier and --device.
#include "cli/tiers.h"

#include <string>

#include "base/device_names.h"
#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class TiersTest : public CliTest {};

TEST_F(TiersTest, DevicesAreChosenByNumberUuidOrAlone) {
  AddDevices();
  StartDaemon();
  for (const char* typed : {"gpu:0", "0", "GPU-fa4ec", "gpu:fa4ec", "gpu:GPU-FA4EC"}) {
    const Outcome outcome = Run({"load", "lenet:1", "--device", typed});
    EXPECT_EQ(outcome.code, 0) << typed << ": " << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr(" in gpu:0")) << typed;
    EXPECT_EQ(backend_.load_requests().back().tier(), kTier0) << typed;
  }
  EXPECT_EQ(Run({"load", "lenet:1", "--tier", "gpu:0"}).code, 0);
  EXPECT_EQ(backend_.load_requests().back().tier(), kTier0);
  // Several devices: the daemon says so.
  EXPECT_EQ(Run({"load", "lenet:1", "--device", "gpu"}).code, 3);
  EXPECT_EQ(backend_.load_requests().back().tier(), "gpu");
  EXPECT_THAT(Run({"ls"}).out, HasSubstr("  gpu:0  "));
  EXPECT_THAT(Run({"show", "lenet:1"}).out, HasSubstr("gpu:0  ready"));
  EXPECT_EQ(Run({"pin", "lenet:1", "--device", "0"}).out, "lenet:1 is pinned in gpu:0\n");
  EXPECT_EQ(Run({"unpin", "lenet:1", "--device", "0"}).out,
            "lenet:1 is no longer pinned in gpu:0\n");
  EXPECT_THAT(Run({"verify", "lenet:1", "--device", "0"}).out, HasSubstr("gpu:0  1.6 MiB  intact"));
  backend_.AddLease("lenet:1", 7, 0, 42, "python3", kTier0);
  EXPECT_EQ(Run({"leases", "--device", "0", "-q"}).out, "7\n");
  EXPECT_THAT(Run({"leases"}).out, HasSubstr("gpu:0"));
  EXPECT_EQ(Run({"leases", "--device", "1", "-q"}).out, "");
  EXPECT_THAT(Run({"evict", "lenet:1", "--device", "0", "--force"}).out,
              HasSubstr("drains from gpu:0"));
}

TEST_F(TiersTest, ANumberThatNoDeviceHasIsNotTakenForADigitOfItsUuid) {
  backend_.ChangeStatus([](v1::GetStatusResponse* status) {
    v1::DeviceView* device = status->add_devices();
    device->set_uuid("GPU-7ac0da");
    device->set_tier("gpu:GPU-7ac0da");
  });
  StartDaemon();
  EXPECT_EQ(Run({"load", "lenet:1", "--device", "gpu:7"}).code, 3);
  EXPECT_EQ(backend_.load_requests().back().tier(), "gpu:7");
}

TEST_F(TiersTest, WrongDevicesAreExplained) {
  StartDaemon();
  for (const char* command : {"load", "pin", "unpin", "evict", "verify", "leases"}) {
    const Outcome both = Run({command, "vgg16", "--tier", "host", "--device", "gpu:0"});
    EXPECT_EQ(both.code, 2) << command;
    EXPECT_THAT(both.err, HasSubstr("--tier excludes --device")) << command;
    const Outcome host = Run({command, "vgg16", "--device", "host"});
    EXPECT_EQ(host.code, 2) << command;
    EXPECT_THAT(host.err,
                AllOf(HasSubstr("\"host\" is no device: gpu:0, a UUID"), HasSubstr("hint: ")))
        << command;
  }
  EXPECT_TRUE(backend_.load_requests().empty());
}

v1::GetStatusResponse StatusWith(const std::vector<std::string>& uuids) {
  v1::GetStatusResponse status;
  for (const std::string& uuid : uuids) {
    v1::DeviceView* device = status.add_devices();
    device->set_ordinal(static_cast<uint32_t>(status.devices_size() - 1));
    device->set_uuid(uuid);
  }
  return status;
}

TEST(TierNamesTest, PeopleSeeNumbersUnlessTheyWantAllOfIt) {
  const TierNames names(StatusWith({"GPU-aa", "GPU-bb"}));
  EXPECT_EQ(names.Text("gpu:GPU-bb"), "gpu:1");
  EXPECT_EQ(names.Text("gpu:GPU-bb", true), "gpu:GPU-bb");
  EXPECT_EQ(names.DeviceText("GPU-aa"), "gpu:0");
  for (const char* other : {"host", "gpu:GPU-cc", "gpu:1", ""}) {
    EXPECT_EQ(names.Text(other), other);
  }
}

TEST(TierNamesTest, WhatMeansNoDeviceOrSeveralIsLeftToTheDaemon) {
  const TierNames names(StatusWith({"GPU-aa11", "GPU-aa22"}));
  EXPECT_EQ(names.Resolve("gpu:GPU-aa1"), "gpu:GPU-aa11");
  EXPECT_EQ(names.Resolve("gpu:1"), "gpu:GPU-aa22");
  for (const char* unclear : {"gpu:aa", "gpu", "gpu:2", "gpu:GPU-ff", "host", ""}) {
    EXPECT_EQ(names.Resolve(unclear), unclear);
  }
  EXPECT_EQ(TierNames().Resolve("gpu:0"), "gpu:0");
}

TEST(TierNamesTest, ADeviceIsANumberAUuidOrTheOnlyOne) {
  const std::pair<const char*, const char*> typed[] = {
      {"gpu", "gpu"},           {"GPU", "gpu"},           {"0", "gpu:0"},
      {"gpu:0", "gpu:0"},       {"GPU:fa4e", "gpu:fa4e"}, {"GPU-fa4e", "gpu:GPU-fa4e"},
      {"gpu-fa", "gpu:gpu-fa"}, {"MIG-12", "gpu:MIG-12"},
  };
  for (const auto& [word, tier] : typed) {
    const Result<std::string> device = DeviceTier(word);
    ASSERT_TRUE(device.ok()) << word << ": " << device.status().ToString();
    EXPECT_EQ(*device, tier) << word;
  }
  for (const char* wrong : {"", "host", "gpu:", "disk", "-1", "1.5", "0x1"}) {
    const Result<std::string> device = DeviceTier(wrong);
    EXPECT_EQ(device.status().code(), StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(device.status().message(),
                HasSubstr("\"" + std::string(wrong) + "\" is no device: gpu:0, a UUID"));
  }
}

}  // namespace
}  // namespace trims::cli

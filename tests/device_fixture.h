// What the tests of a daemon with devices share: a machine of the fake driver or the real
// one, a daemon on it, models and clients. Header only.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "tests/device_clients.h"
#include "tests/test_control.h"
#include "tests/test_daemon.h"

namespace trims::testing_support {

// Bytes of a model of a usual size: what the fake driver copies in a moment, and on a real
// GPU what TRIMS_TEST_MODEL_MIB says.
inline uint64_t ModelBytes() {
  if (!OnRealGpu()) return 4 * kMiB;
  const char* const text = ::getenv("TRIMS_TEST_MODEL_MIB");
  return (text != nullptr ? std::strtoull(text, nullptr, 10) : 64) * kMiB;
}

// As device memory is allocated.
inline uint64_t AllocatedBytes(uint64_t bytes) {
  return (bytes + 2 * kMiB - 1) / (2 * kMiB) * 2 * kMiB;
}

class DeviceFixture : public testing::Test {
 protected:
  using Environment = DeviceMachine::Environment;

  // The machine, before the first daemon or client.
  void MakeMachine(const Environment& settings = {}) {
    machine_ = std::make_unique<DeviceMachine>(FAKE_CUDA_LIBRARY, settings);
  }
  const DeviceMachine& machine() {
    if (machine_ == nullptr) MakeMachine();
    return *machine_;
  }
  // A daemon, which serves all devices unless `flags` say otherwise.
  void StartDaemon(std::vector<std::string> flags = {}, const Environment& environment = {}) {
    Environment all = machine().environment();
    for (const auto& [name, value] : environment) all[name] = value;
    std::vector<std::string> every = {"--log-level", "info"};
    if (!OnRealGpu()) {
      for (const char* word : {"--pinned-pool-bytes", "32MiB", "--io-threads", "2"})
        every.emplace_back(word);
    }
    for (std::string& flag : flags) every.push_back(std::move(flag));
    daemon_ = std::make_unique<TestDaemon>(every, all);
    control_ = std::make_unique<TestControl>(daemon_->runtime_dir());
    uuids_.clear();
    if (HasFatalFailure()) return;  // It did not become ready: nobody would answer.
    const v1::GetStatusResponse status = control_->Status();
    for (const v1::DeviceView& device : status.devices()) uuids_.push_back(device.uuid());
  }
  TestDaemon& daemon() { return *daemon_; }
  TestControl& control() { return *control_; }

  size_t device_count() const { return uuids_.size(); }
  const std::string& Uuid(size_t ordinal = 0) const { return uuids_.at(ordinal); }
  std::string Tier(size_t ordinal = 0) const { return "gpu:" + Uuid(ordinal); }

  // A model under the daemon's base directory, and what clients must get of it.
  uint64_t WriteModel(const std::string& name, uint64_t seed, uint64_t bytes = 0, int tensors = 4) {
    if (bytes == 0) bytes = ModelBytes();
    return sums_[name] = WriteDeviceModel(daemon_->base_dir() + "/" + name, seed, tensors,
                                          bytes / static_cast<uint64_t>(tensors) / 256 * 256);
  }
  const std::map<std::string, uint64_t>& sums() const { return sums_; }
  uint64_t SumOf(const std::string& model) const { return sums_.at(model); }

  // A client that is connected.
  std::unique_ptr<DeviceClient> StartClient(const Environment& environment = {},
                                            Isolation isolation = Isolation::kNone) {
    Environment all = machine().environment();
    for (const auto& [name, value] : environment) all[name] = value;
    auto client = std::make_unique<DeviceClient>(all, isolation);
    if (client->trouble().empty()) {
      const ClientReply reply = client->Ask("connect " + daemon_->runtime_dir());
      EXPECT_TRUE(reply.ok()) << reply.status.ToString();
    }
    return client;
  }

  // The client leases `model` in slot "x", and its kernels read the right bytes.
  ClientReply OpenRight(DeviceClient& client, const std::string& model, size_t ordinal = 0) {
    ClientReply opened = client.Ask("open x " + model + " uuid=" + Uuid(ordinal));
    EXPECT_TRUE(opened.ok()) << opened.status.ToString();
    if (opened.ok()) ExpectRight(client, model);
    return opened;
  }
  void ExpectRight(DeviceClient& client, const std::string& model) {
    const ClientReply sum = client.Ask("sum x");
    EXPECT_TRUE(sum.ok()) << sum.status.ToString();
    if (!sum.ok()) return;
    EXPECT_EQ(sum.Number("sum"), SumOf(model)) << model;
  }

  v1::TierView TierView(size_t ordinal = 0) {
    const v1::GetStatusResponse status = control_->Status();
    for (const v1::TierView& tier : status.tiers()) {
      if (tier.name() == Tier(ordinal)) return tier;
    }
    ADD_FAILURE() << "no tier " << Tier(ordinal);
    return {};
  }
  uint64_t UsedBytes(size_t ordinal = 0) { return TierView(ordinal).used_bytes(); }

  // The model's replica in a tier; null fields when it has none.
  v1::ReplicaView Replica(const std::string& model, const std::string& tier) {
    const v1::ListResponse resident = control_->List(true);
    for (const v1::ModelView& view : resident.models()) {
      if (view.name() != model) continue;
      for (const v1::ReplicaView& replica : view.replicas()) {
        if (replica.tier() == tier) return replica;
      }
    }
    return {};
  }
  bool IsReady(const std::string& model, const std::string& tier) {
    return Replica(model, tier).state() == v1::REPLICA_STATE_READY;
  }

  // Lines of the daemon's log that hold all of `words`.
  int CountLog(const std::vector<std::string>& words) const {
    std::istringstream log(daemon_->Log());
    int count = 0;
    for (std::string line; std::getline(log, line);) {
      bool holds = true;
      for (const std::string& word : words) holds = holds && line.find(word) != std::string::npos;
      count += holds ? 1 : 0;
    }
    return count;
  }
  // How often the model's bytes were brought into a tier.
  int Loads(const std::string& model, const std::string& tier) const {
    return CountLog({" loaded model=" + model + " ", "tier=" + tier});
  }

  // Free memory of a device as another process sees it. With the fake driver exactly; a
  // real one clears in its own time what was freed.
  uint64_t FreeBytes(size_t ordinal = 0) {
    if (observer_ == nullptr) observer_ = std::make_unique<DeviceClient>(machine().environment());
    const ClientReply reply = observer_->Ask("memory");
    EXPECT_TRUE(reply.ok()) << reply.status.ToString();
    return reply.ok() ? reply.Number("free-" + Uuid(ordinal)) : 0;
  }

 private:
  std::unique_ptr<DeviceMachine> machine_;
  std::unique_ptr<TestDaemon> daemon_;
  std::unique_ptr<TestControl> control_;
  std::unique_ptr<DeviceClient> observer_;
  std::vector<std::string> uuids_;
  std::map<std::string, uint64_t> sums_;
};

}  // namespace trims::testing_support

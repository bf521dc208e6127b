// Stress on devices: the worker is killed again and again while clients compute on weights in
// device memory, and clients are killed while the worker loads and evicts. Bounded here
// (TRIMS_SOAK_SECONDS makes it longer, as `make soak` does). The seed is printed and taken
// from TRIMS_TEST_SEED. With TRIMS_TEST_REAL_GPU=1 on the GPUs of the machine.
#include <random>
#include <set>

#include "tests/device_fixture.h"

namespace trims::testing_support {
namespace {

class DeviceCrashTest : public DeviceFixture {
 protected:
  // Room for three of four models on each device, so that loads and evictions never end.
  void SetUp() override {
    const uint64_t bytes = OnRealGpu() ? 64 * kMiB : 4 * kMiB;
    StartDaemon({"--device-capacity-bytes", std::to_string(3 * bytes / kMiB) + "MiB"});
    for (int i = 0; i < 4; ++i)
      WriteModel("m" + std::to_string(i), 100 + static_cast<uint64_t>(i), bytes);
    for (size_t i = 0; i < device_count(); ++i) {
      if (i < 2) uuids_ += (i > 0 ? "," : "") + Uuid(i);
    }
    for (size_t i = 0; i < device_count(); ++i) free_.push_back(FreeBytes(i));
  }
  std::unique_ptr<DeviceClient> StartRoamer(uint64_t seed) {
    auto client = StartClient();
    client->StartRoaming({.seed = seed, .models = sums(), .uuids = uuids_, .may_be_full = true});
    return client;
  }
  // Waits for the clients' verdicts: what they had was right, and it was something.
  void Finish(const std::vector<std::unique_ptr<DeviceClient>>& clients) {
    uint64_t opens = 0, longest_us = 0;
    for (const auto& client : clients) {
      const ClientReply reply = client->StopRoaming();
      EXPECT_TRUE(reply.ok()) << reply.status.ToString();
      if (!reply.ok()) continue;
      opens += reply.Number("opens");
      longest_us = std::max(longest_us, reply.Number("longest-us"));
    }
    std::printf("%llu opens, the longest took %.0f ms\n", static_cast<unsigned long long>(opens),
                static_cast<double>(longest_us) / 1000);
    EXPECT_GT(opens, 0U);
  }
  // Nothing is leased, nothing is wrong, and all memory comes back.
  void ExpectQuiet() {
    EXPECT_TRUE(Eventually([&] { return control().Status().sessions() == 0; }));
    EXPECT_EQ(control().Status().leases(), 0U);
    EXPECT_EQ(control().Status().quarantines(), 0U);
    for (const v1::VerifyVerdict& verdict : control().Verify(""))
      EXPECT_TRUE(verdict.intact()) << verdict.model() << ": " << verdict.detail();
    EXPECT_TRUE(control().last().ok()) << control().last().error_message();
    for (const auto& written : sums()) {
      EXPECT_TRUE(Eventually([&] {
        control().Evict(written.first, true);
        return control().last().ok() ||
               control().last().error_code() == grpc::StatusCode::NOT_FOUND;
      })) << control().last().error_message();
    }
    for (size_t i = 0; i < device_count(); ++i) {
      EXPECT_TRUE(Eventually([&] { return UsedBytes(i) == 0; })) << UsedBytes(i);
      // Scratch memory of loads is made at need and kept.
      const uint64_t slack = OnRealGpu() ? kGiB : 32 * kMiB;
      EXPECT_TRUE(Eventually([&] { return FreeBytes(i) + slack >= free_[i]; }))
          << free_[i] - FreeBytes(i);
    }
    EXPECT_EQ(daemon().Log().find("giving up"), std::string::npos);
  }
  std::string uuids_;
  std::vector<uint64_t> free_;
};

TEST_F(DeviceCrashTest, KillingTheWorkerAgainAndAgainDisturbsNoClient) {
  const uint64_t seed = Seed();
  std::vector<std::unique_ptr<DeviceClient>> clients;
  const int count = OnRealGpu() ? 16 : 6;
  for (int i = 0; i < count; ++i) clients.push_back(StartRoamer(seed + static_cast<uint64_t>(i)));
  std::mt19937_64 random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(Seconds());
  std::set<pid_t> killed;  // One that is dying may be found again.
  for (int turn = 0; std::chrono::steady_clock::now() < end; ++turn) {
    // At any instant of a worker's life; a real one needs longer to be born.
    std::this_thread::sleep_for(
        std::chrono::microseconds(random() % (OnRealGpu() ? 2'000'000 : 500'000)));
    // Every fifth one has served first, so that the keeper never sees a crash loop.
    if (turn % 5 == 0) control().Status();
    if (const auto worker = daemon().Worker()) {
      ::kill(*worker, SIGKILL);
      killed.insert(*worker);
    }
  }
  Finish(clients);
  std::printf("%zu kills\n", killed.size());
  EXPECT_GT(killed.size(), 0U);
  for (const auto& client : clients) EXPECT_TRUE(client->Ask("disconnect").ok());
  clients.clear();  // Each has a context, which takes memory of the device.
  ExpectQuiet();
  // No worker died of anything else, and each of these was replaced.
  daemon().ExpectWorkerDeaths(static_cast<int>(killed.size()));
  EXPECT_EQ(control().Status().worker_restarts(), killed.size());
}

TEST_F(DeviceCrashTest, KilledClientsLeaveNothingBehind) {
  const uint64_t seed = Seed();
  std::mt19937_64 random(seed);
  std::vector<std::unique_ptr<DeviceClient>> clients;
  const int count = OnRealGpu() ? 16 : 6;
  for (int i = 0; i < count; ++i) clients.push_back(StartRoamer(random()));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(Seconds());
  int kills = 0;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(
        std::chrono::microseconds(random() % (OnRealGpu() ? 400'000 : 50'000)));
    std::unique_ptr<DeviceClient>& one = clients[random() % clients.size()];
    ::kill(one->pid(), SIGKILL);
    EXPECT_EQ(one->Wait(), 1000 + SIGKILL);  // Not dead before of an error.
    ++kills;
    one = StartRoamer(random());
  }
  Finish(clients);
  std::printf("%d kills\n", kills);
  EXPECT_GT(kills, 0);
  EXPECT_EQ(control().Status().worker_restarts(), 0U);
  for (const auto& client : clients) EXPECT_TRUE(client->Ask("disconnect").ok());
  clients.clear();  // As above.
  ExpectQuiet();
}

}  // namespace
}  // namespace trims::testing_support

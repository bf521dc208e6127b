// Weights in device memory, lent by a real daemon to real processes: one copy, right bytes,
// and what no death and no hostility changes. Runs against the fake driver, and with
// TRIMS_TEST_REAL_GPU=1 against the driver and GPUs of the machine, where what only the fake can
// do (small memories, planned failures) is skipped. TRIMS_TEST_MODEL_MIB sizes the models there.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "base/clock.h"
#include "tests/device_fixture.h"
#include "tests/raw_client.h"

namespace trims::testing_support {
namespace {

// So that a kernel takes a few milliseconds on a real GPU.
int Rounds() {
  return OnRealGpu() ? static_cast<int>(std::max<uint64_t>(1, 8 * kGiB / ModelBytes())) : 1;
}

bool Mentions(const std::string& text, const std::vector<std::string>& words) {
  return std::all_of(words.begin(), words.end(),
                     [&](const std::string& word) { return text.find(word) != std::string::npos; });
}

class DeviceTest : public DeviceFixture {};

// --- One copy, and who may use it -------------------------------------------------------

TEST_F(DeviceTest, AllClientsComputeOnOneCopy) {
  StartDaemon();
  const int clients = OnRealGpu() ? 32 : 8;
  WriteModel("m", 1);
  std::vector<std::unique_ptr<DeviceClient>> all;
  for (int i = 0; i < clients; ++i) {
    all.push_back(StartClient());
    // Contexts and scratch memory, before anything is counted.
    ASSERT_TRUE(all.back()->Ask("memory").ok());
  }
  control().Load("m", nullptr, Tier());
  ASSERT_TRUE(control().last().ok()) << control().last().error_message();
  const uint64_t used = UsedBytes();
  EXPECT_EQ(used, AllocatedBytes(ModelBytes()));
  const uint64_t free = FreeBytes();
  for (const auto& client : all) {
    const ClientReply opened = OpenRight(*client, "m");
    EXPECT_EQ(opened.Number("loaded"), 0U);
    EXPECT_EQ(opened.Text("uuid"), Uuid());
  }
  EXPECT_EQ(control().Status().leases(), static_cast<uint32_t>(clients));
  EXPECT_EQ(UsedBytes(), used);
  // A real driver takes some for its own tables.
  const uint64_t slack = OnRealGpu() ? used / 4 : 0;
  // The measurement of the links at start has 64 MiB of each device for a moment.
  EXPECT_TRUE(Eventually([&] { return FreeBytes() + slack >= free; }))
      << FreeBytes() << " of " << free;
  EXPECT_EQ(Loads("m", Tier()), 1);
}

class IsolationTest : public DeviceFixture, public testing::WithParamInterface<Isolation> {};

TEST_P(IsolationTest, AClientWithoutAnyRightComputes) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as another user";
  StartDaemon();
  WriteModel("m", 2);
  const auto client = StartClient({}, GetParam());
  if (!client->trouble().empty()) GTEST_SKIP() << client->trouble();
  OpenRight(*client, "m");
  const v1::ListLeasesResponse leases = control().Leases();
  ASSERT_EQ(leases.leases_size(), 1);
  EXPECT_EQ(leases.leases(0).uid(), kIsolatedUid);
  EXPECT_EQ(leases.leases(0).tier(), Tier());
}

std::string IsolationName(const testing::TestParamInfo<Isolation>& tested) {
  if (tested.param == Isolation::kOtherUid) return "OtherUid";
  return tested.param == Isolation::kUserNamespace ? "UserNamespace" : "OtherNamespaces";
}

INSTANTIATE_TEST_SUITE_P(All, IsolationTest,
                         testing::Values(Isolation::kOtherUid, Isolation::kUserNamespace,
                                         Isolation::kOtherNamespaces),
                         IsolationName);

TEST_F(DeviceTest, AClientWithoutProcIsToldToMountIt) {
  StartDaemon();
  WriteModel("m", 3);
  std::unique_ptr<DeviceClient> client;
  if (OnRealGpu()) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to take /proc away";
    client = StartClient({}, Isolation::kWithoutProc);
    if (!client->trouble().empty()) GTEST_SKIP() << client->trouble();
  } else {
    client = StartClient({{"FAKE_CUDA_FAIL", "cuInit:1+=304"}});
  }
  const ClientReply opened = client->Ask("open x m uuid=" + Uuid());
  EXPECT_FALSE(opened.ok());
  EXPECT_TRUE(Mentions(opened.status.message(), {"/proc"})) << opened.status.ToString();
  // It can still use the host's copy.
  EXPECT_TRUE(client->Ask("open y m host=1").ok());
}

TEST_F(DeviceTest, OrdinalsAreThoseThatTheClientSees) {
  StartDaemon();
  if (device_count() < 2) GTEST_SKIP() << "needs two devices";
  WriteModel("m", 4);
  const auto client = StartClient({{"CUDA_VISIBLE_DEVICES", "1"}});
  ClientReply opened = client->Ask("open x m ordinal=0");
  ASSERT_TRUE(opened.ok()) << opened.status.ToString();
  EXPECT_EQ(opened.Text("uuid"), Uuid(1));
  EXPECT_EQ(opened.Number("ordinal"), 0U);
  ExpectRight(*client, "m");
  EXPECT_TRUE(IsReady("m", Tier(1)));
  EXPECT_FALSE(IsReady("m", Tier(0)));
  // What it can not see it can not have, and it is told why.
  opened = client->Ask("open y m uuid=" + Uuid(0));
  EXPECT_FALSE(opened.ok());
  EXPECT_TRUE(Mentions(opened.status.message(), {"CUDA_VISIBLE_DEVICES"}))
      << opened.status.ToString();
  opened = client->Ask("open y m ordinal=1");
  EXPECT_FALSE(opened.ok());
}

TEST_F(DeviceTest, TwoDevicesHaveACopyEachWithTheSameBytes) {
  // The second one is filled from the first where they are peers, which is faster here.
  MakeMachine({{"FAKE_CUDA_COPY_GBPS", "2"}});
  StartDaemon();
  if (device_count() < 2) GTEST_SKIP() << "needs two devices";
  WriteModel("m", 5);
  const auto client = StartClient();
  EXPECT_EQ(OpenRight(*client, "m", 0).Number("loaded"), 1U);
  EXPECT_EQ(OpenRight(*client, "m", 1).Number("loaded"), 1U);
  EXPECT_EQ(OpenRight(*client, "m", 1).Number("loaded"), 0U);
  EXPECT_EQ(UsedBytes(0), AllocatedBytes(ModelBytes()));
  EXPECT_EQ(UsedBytes(1), AllocatedBytes(ModelBytes()));
  for (const size_t ordinal : {0, 1}) EXPECT_EQ(Loads("m", Tier(ordinal)), 1);
  const v1::GetStatusResponse status = control().Status();
  int direct = 0;
  for (const v1::LinkView& link : status.devices(1).links())
    direct += link.from() == Uuid(0) && link.direct() ? 1 : 0;
  if (!OnRealGpu()) {
    EXPECT_EQ(direct, 1);  // As fake devices are.
  }
  EXPECT_EQ(CountLog({" loading model=m ", "tier=" + Tier(1), "from=peer"}), direct)
      << daemon().Log();
}

// --- Bytes that only the daemon may write -------------------------------------------------

TEST_F(DeviceTest, AKernelThatWritesTheWeightsDiesAlone) {
  StartDaemon();
  const uint64_t sum = WriteModel("m", 10);
  std::vector<std::unique_ptr<DeviceClient>> others;
  for (int i = 0; i < 2; ++i) {
    others.push_back(StartClient());
    OpenRight(*others.back(), "m");
    ASSERT_TRUE(others.back()->StartComputing("x", sum, Rounds()).ok());
  }
  const auto writer = StartClient();
  OpenRight(*writer, "m");
  const ClientReply copied = writer->Ask("copy x");
  EXPECT_FALSE(copied.ok()) << "a copy onto the weights";
  ExpectRight(*writer, "m");
  const ClientReply written = writer->Ask("write x");
  EXPECT_EQ(written.status.code(), StatusCode::kInternal) << written.status.ToString();
  for (const auto& other : others) {
    const ClientReply reply = other->ComputeOnce();
    EXPECT_TRUE(reply.ok()) << reply.status.ToString();
    EXPECT_TRUE(other->StopComputing().ok());
  }
  const auto verdicts = control().Verify("m", Tier());
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_TRUE(verdicts[0].intact()) << verdicts[0].detail();
  OpenRight(*StartClient(), "m");
  EXPECT_EQ(control().Status().quarantines(), 0U);
}

// Flips a bit of model "m" on device 0, by what it was lent.
class HostileDeviceTest : public DeviceFixture {
 protected:
  // A client that leases "m" and has it mapped writable.
  std::unique_ptr<DeviceClient> StartHostile(Isolation isolation = Isolation::kNone) {
    auto client = StartClient({}, isolation);
    if (!client->trouble().empty()) return client;
    const ClientReply opened = client->Ask("raw-open " + daemon().runtime_dir() + " m " + Uuid());
    EXPECT_TRUE(opened.ok()) << opened.status.ToString();
    EXPECT_TRUE(opened.ok() && generation_ == 0) << "one at a time";
    if (opened.ok()) generation_ = opened.Number("generation");
    return client;
  }
  void Flip(DeviceClient& client) {
    const ClientReply flipped = client.Ask("raw-flip 12345");
    EXPECT_TRUE(flipped.ok()) << flipped.status.ToString();
  }
  // The bad replica is out of use, and the next lease is on other memory.
  void ExpectReloaded() {
    daemon().ExpectErrors("wrong bytes in a resident model, quarantined", 1);
    EXPECT_EQ(control().Status().quarantines(), 1U) << daemon().Log();
    EXPECT_EQ(CountLog({" wrong bytes in a resident model, quarantined model=m "}), 1)
        << daemon().Log();
    const auto client = StartClient();
    const ClientReply opened = OpenRight(*client, "m");
    EXPECT_EQ(opened.Number("loaded"), 1U);
    EXPECT_NE(opened.Number("generation"), generation_);
    const auto verdicts = control().Verify("m", Tier());
    ASSERT_EQ(verdicts.size(), 1U);
    EXPECT_TRUE(verdicts[0].intact()) << verdicts[0].detail();
  }
  uint64_t generation_ = 0;
};

TEST_F(HostileDeviceTest, ABitThatAClientFlippedIsFoundOnDemandAndTheReplicaIsLoadedAfresh) {
  StartDaemon({"--scrub-bytes-per-second", "0B"});
  WriteModel("m", 11);
  const auto hostile = StartHostile();
  auto verdicts = control().Verify("m", Tier());
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_TRUE(verdicts[0].intact());
  Flip(*hostile);
  verdicts = control().Verify("m", Tier());
  ASSERT_TRUE(control().last().ok()) << control().last().error_message();
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_FALSE(verdicts[0].intact());
  EXPECT_NE(verdicts[0].detail(), "");
  // The hostile client still has it mapped, so its memory is still counted.
  EXPECT_EQ(TierView().client_pinned_bytes(), AllocatedBytes(ModelBytes()));
  ExpectReloaded();
  EXPECT_TRUE(hostile->Ask("raw-close").ok());
  EXPECT_TRUE(Eventually([&] { return TierView().client_pinned_bytes() == 0; }));
  EXPECT_EQ(UsedBytes(), AllocatedBytes(ModelBytes()));
}

TEST_F(HostileDeviceTest, ABitThatAnUntrustedUidFlippedIsFoundWhenItsLeaseEnds) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as another user";
  StartDaemon({"--scrub-bytes-per-second", "0B", "--trusted-uids", ""});
  WriteModel("m", 12);
  const auto hostile = StartHostile(Isolation::kOtherUid);
  ASSERT_EQ(hostile->trouble(), "");
  Flip(*hostile);
  EXPECT_EQ(control().Status().quarantines(), 0U);
  hostile->Kill();  // However it ends.
  EXPECT_TRUE(Eventually([&] { return control().Status().quarantines() == 1; })) << daemon().Log();
  ExpectReloaded();
}

TEST_F(HostileDeviceTest, ATrustedUidIsNotCheckedWhenItsLeaseEnds) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as another user";
  StartDaemon({"--scrub-bytes-per-second", "0B", "--trusted-uids", std::to_string(kIsolatedUid)});
  WriteModel("m", 13);
  {
    const auto client = StartClient({}, Isolation::kOtherUid);
    ASSERT_EQ(client->trouble(), "");
    OpenRight(*client, "m");
  }
  EXPECT_TRUE(Eventually([&] { return control().Status().sessions() == 0; }));
  EXPECT_EQ(control().Status().verifications(), 0U);
}

TEST_F(HostileDeviceTest, ChecksAfterManyShortLeasesLeaveTheDeviceMostOfItsTime) {
  SKIP_ON_REAL_GPU("needs checks that take a while");
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as another user";
  StartDaemon({"--scrub-bytes-per-second", "0B", "--trusted-uids", ""});
  WriteModel("m", 15, 64 * kMiB);
  control().Load("m", nullptr, Tier());
  using Seconds = std::chrono::duration<double>;
  Seconds check(1e9);
  for (int i = 0; i < 3; ++i) {
    const auto verdicts = control().Verify("m", Tier());
    ASSERT_EQ(verdicts.size(), 1U);
    check = std::min(check, Seconds(verdicts[0].took().nanos() * 1e-9));
  }
  const uint64_t before = control().Status().verifications();
  const auto client = StartClient({}, Isolation::kOtherUid);
  ASSERT_EQ(client->trouble(), "");
  const Time start = Now();
  int leases = 0;
  for (; Seconds(Now() - start) < 40 * check; ++leases) {
    ASSERT_TRUE(client->Ask("open x m uuid=" + Uuid()).ok());
    ASSERT_TRUE(client->Ask("close x").ok());
  }
  // A check each, one after the other, would be 40; with pauses of nine times their length, 4.
  const Seconds took = Now() - start;
  const auto checks = static_cast<double>(control().Status().verifications() - before);
  EXPECT_GT(leases, 40);
  EXPECT_GE(checks, 1);
  EXPECT_LE(checks, took / check / 5 + 1) << leases << " leases";
}

TEST_F(HostileDeviceTest, ABitThatAClientFlippedIsFoundByTheScrub) {
  StartDaemon({"--scrub-bytes-per-second", "1GiB"});
  WriteModel("m", 14);
  const auto hostile = StartHostile();
  Flip(*hostile);
  EXPECT_TRUE(Eventually([&] { return control().Status().quarantines() == 1; }, 60))
      << daemon().Log();
  ExpectReloaded();
}

TEST_F(HostileDeviceTest, ABitThatWasFlippedWhileNoWorkerLivedIsFoundByTheNextOne) {
  StartDaemon({"--scrub-bytes-per-second", "0B"});
  WriteModel("m", 15);
  const auto hostile = StartHostile();
  // No new worker starts until the keeper goes on.
  daemon().ExpectWorkerDeaths(1);
  daemon().ExpectErrors("replica not adopted", 1);
  const pid_t worker = *daemon().Worker();
  ASSERT_EQ(::kill(daemon().keeper(), SIGSTOP), 0);
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  Flip(*hostile);
  ASSERT_EQ(::kill(daemon().keeper(), SIGCONT), 0);
  ASSERT_TRUE(Eventually([&] { return daemon().Worker() && *daemon().Worker() != worker; }));
  const auto client = StartClient();
  const ClientReply opened = OpenRight(*client, "m");
  EXPECT_EQ(opened.Number("loaded"), 1U);
  EXPECT_NE(opened.Number("generation"), generation_);
  EXPECT_EQ(CountLog({" adopted model=m", "tier=" + Tier()}), 0) << daemon().Log();
  EXPECT_EQ(Loads("m", Tier()), 2);
}

// --- Workers that die ---------------------------------------------------------------------

TEST_F(DeviceTest, NoClientNoticesThatTheWorkerDiesAndTheModelIsServedOn) {
  StartDaemon();
  const uint64_t sum = WriteModel("m", 20);
  std::vector<std::unique_ptr<DeviceClient>> clients;
  uint64_t generation = 0;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(StartClient());
    generation = OpenRight(*clients.back(), "m").Number("generation");
    ASSERT_TRUE(clients.back()->StartComputing("x", sum, Rounds()).ok());
  }
  daemon().ExpectWorkerDeaths(4);
  // While no worker lives.
  const pid_t first = *daemon().Worker();
  ASSERT_EQ(::kill(daemon().keeper(), SIGSTOP), 0);
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  for (const auto& client : clients) {
    const ClientReply reply = client->ComputeOnce();
    EXPECT_TRUE(reply.ok()) << reply.status.ToString();
  }
  ASSERT_EQ(::kill(daemon().keeper(), SIGCONT), 0);
  ASSERT_TRUE(Eventually([&] { return daemon().Worker() && *daemon().Worker() != first; }));

  // And how soon the next one serves.
  const auto newcomer = StartClient();
  ASSERT_TRUE(newcomer->Ask("memory").ok());  // Its context is not what is waited for.
  for (int death = 1; death < 4; ++death) {
    ClientReply opened = newcomer->Ask("open x m uuid=" + Uuid());
    ASSERT_TRUE(opened.ok()) << opened.status.ToString();
    EXPECT_TRUE(newcomer->Ask("close x").ok());
    const pid_t worker = *daemon().Worker();
    const auto killed = std::chrono::steady_clock::now();
    ASSERT_EQ(::kill(worker, SIGKILL), 0);
    opened = newcomer->Ask("open x m uuid=" + Uuid());
    std::printf("served again %.0f ms after the kill\n",
                std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - killed)
                    .count());
    ASSERT_TRUE(opened.ok()) << opened.status.ToString() << "\n" << daemon().Log();
    EXPECT_EQ(opened.Number("generation"), generation);
    ExpectRight(*newcomer, "m");
    EXPECT_NE(control().Status().worker_pid(), worker);
    for (const auto& client : clients) {
      const ClientReply reply = client->ComputeOnce();
      EXPECT_TRUE(reply.ok()) << reply.status.ToString();
    }
  }
  EXPECT_TRUE(newcomer->Ask("disconnect").ok());
  EXPECT_EQ(Loads("m", Tier()), 1) << daemon().Log();
  EXPECT_EQ(CountLog({" adopted model=m", "tier=" + Tier()}), 4) << daemon().Log();
  for (const auto& client : clients) {
    EXPECT_TRUE(client->StopComputing().ok());
    // It takes its lease up again by itself.
    EXPECT_TRUE(client->Ask("ping").ok());
    EXPECT_EQ(client->Ask("facts x").Number("attached"), 1U);
  }
  EXPECT_TRUE(Eventually([&] { return control().Status().leases() == 8U; }));
  EXPECT_EQ(UsedBytes(), AllocatedBytes(ModelBytes()));
  // Where the time went.
  if (OnRealGpu()) std::printf("%s", daemon().Log().c_str());
}

TEST_F(DeviceTest, WhatWasHalfLoadedWhenTheWorkerDiedIsFreedAndLoadedAgain) {
  SKIP_ON_REAL_GPU("needs a slow device");
  MakeMachine();
  StartDaemon({}, {{"FAKE_CUDA_COPY_GBPS", "0.05"}});
  WriteModel("m", 21, 16 * kMiB);
  const uint64_t free = FreeBytes();
  daemon().ExpectWorkerDeaths(1);
  const pid_t worker = *daemon().Worker();
  std::thread load([&] { TestControl(daemon().runtime_dir()).Load("m", nullptr, Tier()); });
  EXPECT_TRUE(Eventually([&] { return free - FreeBytes() >= 16 * kMiB; }));
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  load.join();  // UNAVAILABLE: the caller may try again.
  EXPECT_TRUE(Eventually([&] { return control().Status().worker_pid() != worker; }));
  EXPECT_TRUE(Eventually([&] { return FreeBytes() == free; })) << free - FreeBytes();
  EXPECT_EQ(UsedBytes(), 0U);
  const auto client = StartClient();
  EXPECT_EQ(OpenRight(*client, "m").Number("loaded"), 1U);
}

// --- More models than memory --------------------------------------------------------------

class OversubscriptionTest : public DeviceFixture,
                             public testing::WithParamInterface<const char*> {};

TEST_P(OversubscriptionTest, NothingInUseIsEvictedAndFullIsSaidInFull) {
  constexpr int kModels = 9;
  const uint64_t bytes = OnRealGpu() ? 64 * kMiB : 4 * kMiB;
  StartDaemon({"--device-capacity-bytes", std::to_string(kModels / 3 * bytes / kMiB) + "MiB",
               "--eviction-policy", GetParam()});
  for (int i = 0; i < kModels; ++i)
    WriteModel("m" + std::to_string(i), 30 + static_cast<uint64_t>(i), bytes);
  std::vector<std::unique_ptr<DeviceClient>> clients;
  const size_t count = OnRealGpu() ? 16 : 6;
  for (size_t i = 0; i < count; ++i) {
    clients.push_back(StartClient());
    clients.back()->StartRoaming({.seed = i,
                                  .models = sums(),
                                  .uuids = Uuid(),
                                  .opens = OnRealGpu() ? 60U : 20U,
                                  .may_be_full = true});
  }
  uint64_t opens = 0, exhausted = 0, loads = 0;
  for (const auto& client : clients) {
    const ClientReply reply = client->FinishRoaming();
    ASSERT_TRUE(reply.ok()) << reply.status.ToString();
    opens += reply.Number("opens");
    exhausted += reply.Number("exhausted");
    loads += reply.Number("loads");
  }
  std::printf("%llu opens, %llu of them loads, %llu times full\n",
              static_cast<unsigned long long>(opens), static_cast<unsigned long long>(loads),
              static_cast<unsigned long long>(exhausted));
  EXPECT_GT(opens, 0U);
  const v1::TierView tier = TierView();
  EXPECT_LE(tier.used_bytes(), tier.budget_bytes());
  if (std::string(GetParam()) == "never") {
    EXPECT_EQ(tier.evictions(), 0U);
    EXPECT_EQ(tier.replicas(), kModels / 3U);
    EXPECT_GT(exhausted, 0U);
  } else {
    EXPECT_GT(loads, static_cast<uint64_t>(kModels));  // Some went, and came again.
  }
}

INSTANTIATE_TEST_SUITE_P(All, OversubscriptionTest,
                         testing::Values("never", "lru", "fifo", "lcu", "random", "flush", "eager",
                                         "gdsf"),
                         [](const auto& tested) { return std::string(tested.param); });

TEST_F(DeviceTest, AModelThatDoesNotFitNamesItsNeedAndWhoHoldsTheRest) {
  const uint64_t bytes = OnRealGpu() ? 64 * kMiB : 4 * kMiB;
  StartDaemon({"--device-capacity-bytes", std::to_string(2 * bytes / kMiB) + "MiB"});
  for (const char* name : {"a", "b", "c"}) WriteModel(name, static_cast<uint64_t>(name[0]), bytes);
  const auto client = StartClient();
  ASSERT_TRUE(client->Ask("open a a uuid=" + Uuid()).ok());
  ASSERT_TRUE(client->Ask("open b b uuid=" + Uuid()).ok());
  ClientReply opened = client->Ask("open x c uuid=" + Uuid());
  EXPECT_EQ(opened.status.code(), StatusCode::kResourceExhausted) << opened.status.ToString();
  EXPECT_EQ(opened.Number("need"), bytes);
  EXPECT_EQ(opened.Number("free"), 0U);
  EXPECT_EQ(opened.Number("evictable"), 0U);
  EXPECT_TRUE(
      Mentions(opened.status.message(), {"gpu:", "need", "free", "evictable", "a (", "b ("}))
      << opened.status.ToString();
  EXPECT_TRUE(client->Ask("close a").ok());
  EXPECT_EQ(OpenRight(*client, "c").Number("loaded"), 1U);
}

TEST_F(DeviceTest, MemoryThatOtherProcessesTookIsNotPromised) {
  SKIP_ON_REAL_GPU("needs a small memory");
  MakeMachine({{"FAKE_CUDA_MEMORY", "64MiB"}});
  StartDaemon({"--device-capacity-bytes", "60MiB"});
  WriteModel("a", 40, 12 * kMiB);
  WriteModel("b", 41, 12 * kMiB);
  const auto client = StartClient();
  EXPECT_EQ(OpenRight(*client, "a").Number("loaded"), 1U);
  // All but 4 MiB: the budget says that there is room for "b", the device does not.
  const auto hog = StartClient();
  ASSERT_TRUE(hog->Ask("hog " + Uuid() + " " + std::to_string(FreeBytes() - 4 * kMiB)).ok());
  ClientReply opened = client->Ask("open y b uuid=" + Uuid());
  EXPECT_EQ(opened.status.code(), StatusCode::kResourceExhausted) << opened.status.ToString();
  EXPECT_EQ(opened.Number("need"), 12 * kMiB);
  EXPECT_LT(opened.Number("free"), 12 * kMiB);
  EXPECT_TRUE(Mentions(opened.status.message(), {"gpu:", "free"})) << opened.status.ToString();
  ExpectRight(*client, "a");
  // What nobody uses makes room.
  EXPECT_TRUE(client->Ask("close x").ok());
  opened = OpenRight(*client, "b");
  EXPECT_TRUE(opened.ok());
  EXPECT_FALSE(IsReady("a", Tier()));
  // And so does the end of the other process.
  hog->Kill();
  EXPECT_TRUE(client->Ask("open y a uuid=" + Uuid()).ok());
}

// --- What stays on the host ----------------------------------------------------------------

TEST_F(DeviceTest, WithPersistCpuTheHostHasACopyFromWhichTheDeviceIsFilledAgain) {
  StartDaemon({}, {{"UPRD_PERSIST_CPU", "true"}});
  WriteModel("m", 50);
  const auto client = StartClient();
  EXPECT_EQ(OpenRight(*client, "m").Number("loaded"), 1U);
  EXPECT_TRUE(Eventually([&] { return IsReady("m", "host"); })) << daemon().Log();
  EXPECT_TRUE(Eventually([&] { return control().Status().host_pinned_bytes() > 0; }));
  EXPECT_TRUE(client->Ask("close x").ok());
  EXPECT_TRUE(Eventually([&] { return control().Status().leases() == 0; }));
  control().Evict("m", false, Tier());
  ASSERT_TRUE(control().last().ok()) << control().last().error_message();
  EXPECT_FALSE(IsReady("m", Tier()));
  EXPECT_TRUE(IsReady("m", "host"));
  EXPECT_EQ(OpenRight(*client, "m").Number("loaded"), 1U);
  EXPECT_EQ(Loads("m", "host"), 1);
  EXPECT_EQ(CountLog({" loading model=m ", "tier=" + Tier(), "from=host"}), 1) << daemon().Log();
}

TEST_F(DeviceTest, WithoutPersistCpuNothingIsPutOnTheHost) {
  StartDaemon({}, {{"UPRD_PERSIST_CPU", "false"}});
  WriteModel("m", 51);
  WriteModel("n", 52);
  const auto client = StartClient();
  OpenRight(*client, "m");
  OpenRight(*client, "n");
  EXPECT_TRUE(IsReady("m", Tier()));  // Nobody leases it any more: it stays where it is.
  EXPECT_EQ(Loads("m", "host"), 0);
  EXPECT_FALSE(IsReady("m", "host"));
}

class DropsDeviceCopyTest : public DeviceFixture,
                            public testing::WithParamInterface<const char*> {};

TEST_P(DropsDeviceCopyTest, TheDeviceCopyGoesWithItsLastLeaseAndTheHostCopyStays) {
  if (std::string(GetParam()) == "eager") {
    StartDaemon({"--eviction-policy", "eager"});
  } else {
    StartDaemon({}, {{"UPRD_PERSIST_ONLY_CPU", "true"}});
  }
  WriteModel("m", 53);
  const auto client = StartClient();
  const auto other = StartClient();
  OpenRight(*client, "m");
  OpenRight(*other, "m");
  EXPECT_TRUE(Eventually([&] { return IsReady("m", "host"); })) << daemon().Log();
  EXPECT_TRUE(client->Ask("close x").ok());
  EXPECT_TRUE(Eventually([&] { return control().Status().leases() == 1; }));
  EXPECT_TRUE(IsReady("m", Tier()));
  ExpectRight(*other, "m");
  EXPECT_TRUE(other->Ask("close x").ok());
  EXPECT_TRUE(Eventually([&] { return UsedBytes() == 0; }));
  EXPECT_TRUE(IsReady("m", "host"));
  EXPECT_EQ(OpenRight(*client, "m").Number("loaded"), 1U);
  EXPECT_EQ(Loads("m", "host"), 1);
}

INSTANTIATE_TEST_SUITE_P(All, DropsDeviceCopyTest, testing::Values("persist_only_cpu", "eager"),
                         [](const auto& tested) { return std::string(tested.param); });

// --- Without a device, or with a broken one ---------------------------------------------------

class DegradedTest : public DeviceFixture {
 protected:
  // Host opens work, and a device open fails with `code` and these words.
  void ExpectHostOnly(const std::string& uuid, StatusCode code,
                      const std::vector<std::string>& words) {
    const auto client = StartClient();
    EXPECT_TRUE(client->Ask("open h m host=1").ok());
    ExpectRefused(uuid, code, words);
  }
  // By the daemon itself: a client's library may find the same reason before it asks.
  void ExpectRefused(const std::string& uuid, StatusCode code,
                     const std::vector<std::string>& words) {
    RawClient raw(daemon().runtime_dir());
    ASSERT_TRUE(raw.Greet());
    ASSERT_TRUE(raw.SendDeviceOpen(2, "m", uuid));
    const RawPacket answer = raw.Receive();
    ASSERT_EQ(answer.header.type, FrameType::kFailed);
    const auto* failed = answer.As<v1::Failed>();
    EXPECT_EQ(static_cast<StatusCode>(failed->code()), code) << failed->message()->str();
    EXPECT_TRUE(Mentions(failed->message()->str(), words)) << failed->message()->str();
  }
  static constexpr const char* kSomeUuid = "GPU-fa4ec0da-0000-4000-8000-000000000000";
};

TEST_F(DegradedTest, WithoutADriverTheHostServesAndDevicesSayWhyNot) {
  StartDaemon({}, {{"TRIMS_CUDA_LIBRARY", "/nonexistent/libcuda.so.1"}});
  WriteModel("m", 60);
  const v1::GetStatusResponse status = control().Status();
  EXPECT_EQ(status.devices_size(), 0);
  EXPECT_EQ(status.cuda_driver(), "");
  EXPECT_TRUE(Mentions(status.gpu(), {"driver"})) << status.gpu();
  ExpectHostOnly(kSomeUuid, StatusCode::kFailedPrecondition, {"driver"});
  control().Load("m", nullptr, "gpu:0");
  EXPECT_FALSE(control().last().ok());
}

TEST_F(DegradedTest, DevicesCanBeSwitchedOff) {
  // No device is touched: a library that can not be loaded would be a reason to complain.
  StartDaemon({"--devices", "none"});
  WriteModel("m", 61);
  const v1::GetStatusResponse status = control().Status();
  EXPECT_EQ(status.tiers_size(), 1);
  for (const v1::DeviceView& device : status.devices()) EXPECT_EQ(device.tier(), "");
  ExpectHostOnly(kSomeUuid, StatusCode::kFailedPrecondition, {"devices"});
}

TEST_F(DegradedTest, OnlyTheDevicesThatAreListedAreServed) {
  StartDaemon();
  if (device_count() < 2) GTEST_SKIP() << "needs two devices";
  const std::string first = Uuid(0), second = Uuid(1);
  StartDaemon({"--devices", "1"});
  WriteModel("m", 62);
  const auto client = StartClient();
  EXPECT_TRUE(client->Ask("open x m uuid=" + second).ok());
  ExpectRefused(first, StatusCode::kFailedPrecondition, {"devices"});
}

TEST_F(DegradedTest, ADeviceWithoutAContextIsNotServedAndTheOthersAre) {
  SKIP_ON_REAL_GPU("plans a failure");
  StartDaemon({}, {{"FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain:1=2"}});
  daemon().ExpectErrors("device not served", 1);
  WriteModel("m", 63);
  const v1::GetStatusResponse status = control().Status();
  ASSERT_EQ(status.devices_size(), 2);
  int ready = 0;
  for (const v1::DeviceView& device : status.devices()) {
    if (device.ready()) {
      ++ready;
      const auto client = StartClient();
      EXPECT_TRUE(client->Ask("open x m uuid=" + device.uuid()).ok());
    } else {
      EXPECT_TRUE(Mentions(device.state(), {"memory"})) << device.state();
      ExpectHostOnly(device.uuid(), StatusCode::kFailedPrecondition, {device.uuid(), "context"});
    }
  }
  EXPECT_EQ(ready, 1);
}

TEST_F(DegradedTest, ALostDeviceIsUnavailableAndTheRestServesOn) {
  SKIP_ON_REAL_GPU("breaks a device");
  StartDaemon();
  WriteModel("m", 64);
  WriteModel("n", 65);
  const auto client = StartClient();
  OpenRight(*client, "m", 1);
  constexpr int kLaunchFailed = 719;
  daemon().ExpectErrors("device lost, other tiers serve on", 1);
  machine().BreakDevice(0, kLaunchFailed);
  control().Load("n", nullptr, Tier(0));
  EXPECT_EQ(control().last().error_code(), grpc::StatusCode::UNAVAILABLE)
      << control().last().error_message();
  EXPECT_TRUE(Eventually([&] { return !control().Status().devices(0).ready(); }));
  EXPECT_NE(TierView(0).health(), "");
  EXPECT_EQ(TierView(1).health(), "");
  EXPECT_EQ(control().Status().devices(0).state(), TierView(0).health());
  ExpectHostOnly(Uuid(0), StatusCode::kUnavailable, {Uuid(0)});
  ExpectRight(*client, "m");
  EXPECT_TRUE(client->Ask("open y n uuid=" + Uuid(1)).ok());
  machine().MendDevice(0);
}

// --- Nothing is left behind -------------------------------------------------------------------

TEST_F(DeviceTest, ClientsThatEndHoweverLeaveNothingBehind) {
  StartDaemon({"--scrub-bytes-per-second", "0B"});
  WriteModel("m", 70);
  WriteModel("n", 71);
  const auto visit = [&](bool is_killed) {
    const auto client = StartClient();
    OpenRight(*client, "m");
    EXPECT_TRUE(client->Ask("open y n uuid=" + Uuid()).ok());
    EXPECT_TRUE(client->Ask("open z m host=1").ok());
    if (is_killed) return;
    EXPECT_TRUE(client->Ask("disconnect").ok());
  };
  const auto empty = [&] {
    EXPECT_TRUE(Eventually([&] {
      const v1::GetStatusResponse status = control().Status();
      return status.sessions() == 0 && status.leases() == 0 && status.loads_running() == 0;
    }));
    for (const char* name : {"m", "n"}) {
      EXPECT_TRUE(Eventually([&] {
        control().Evict(name, true);
        return control().last().ok() ||
               control().last().error_code() == grpc::StatusCode::NOT_FOUND;
      })) << control().last().error_message();
    }
    EXPECT_TRUE(Eventually([&] {
      const v1::GetStatusResponse status = control().Status();
      return std::all_of(status.tiers().begin(), status.tiers().end(),
                         [](const v1::TierView& tier) { return tier.used_bytes() == 0; });
    }));
  };
  visit(false);  // What the daemon keeps for good is made now.
  empty();
  const int worker = CountDescriptors(*daemon().Worker());
  const int keeper = CountDescriptors(daemon().keeper());
  const uint64_t free = FreeBytes();
  for (int i = 0; i < 6; ++i) visit(i % 2 == 1);
  empty();
  EXPECT_TRUE(Eventually([&] { return CountDescriptors(daemon().keeper()) <= keeper; }))
      << CountDescriptors(daemon().keeper()) << " of " << keeper;
  // Sockets of the control plane come and go; the real driver opens files of its own.
  const int slack = OnRealGpu() ? 16 : 2;
  EXPECT_TRUE(Eventually([&] { return CountDescriptors(*daemon().Worker()) <= worker + slack; }))
      << CountDescriptors(*daemon().Worker()) << " of " << worker;
  const uint64_t slack_bytes = OnRealGpu() ? ModelBytes() / 2 : 0;
  EXPECT_TRUE(Eventually([&] { return FreeBytes() + slack_bytes >= free; }))
      << free - FreeBytes() << " bytes are missing";
  EXPECT_EQ(control().Status().worker_restarts(), 0U);
}

}  // namespace
}  // namespace trims::testing_support

// One copy: what the processes that use a model have in memory, together.
#include <gtest/gtest.h>

#include <set>

#include "tests/test_control.h"
#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

// Proportional set size of the mappings of our extents in a process.
uint64_t WeightsPssBytes(pid_t pid) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  std::string line;
  bool ours = false;
  uint64_t kib = 0;
  while (std::getline(smaps, line)) {
    if (line.find("/memfd:trims") != std::string::npos) {
      ours = true;
    } else if (line.find('-') != std::string::npos && line.find(' ') > line.find('-')) {
      ours = false;
    } else if (ours && line.starts_with("Pss:")) {
      kib += std::strtoull(line.c_str() + 4, nullptr, 10);
    }
  }
  return kib * 1024;
}

class SharingTest : public testing::Test {
 protected:
  // Starts `count` processes that lease `models` in turn, read all of it, and stay.
  void StartReaders(TestDaemon& daemon, int count, const std::vector<std::string>& models,
                    trims_granularity granularity) {
    ASSERT_EQ(::pipe2(ready_, O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(hold_, O_CLOEXEC), 0);
    for (int i = 0; i < count; ++i) {
      readers_.push_back(StartChild([&, i] {
        ::close(hold_[1]);
        trims_client* client = daemon.Connect();
        trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
        options.granularity = granularity;
        trims_lease* lease = nullptr;
        if (trims_lease_open(client, models[static_cast<size_t>(i) % models.size()].c_str(),
                             &options, &lease, nullptr) != TRIMS_OK) {
          return 1;
        }
        uint64_t sum = 0;
        for (uint32_t e = 0; e < trims_lease_extent_count(lease); ++e) {
          trims_extent extent;
          if (trims_lease_extent(lease, e, &extent) != TRIMS_OK) return 2;
          const auto* bytes = static_cast<const unsigned char*>(extent.data);
          for (uint64_t at = 0; at < extent.size_bytes; at += 4096) sum += bytes[at];
        }
        const char c = static_cast<char>(sum);
        (void)!::write(ready_[1], &c, 1);
        char end;
        return ::read(hold_[0], &end, 1) == 0 ? 0 : 3;
      }));
    }
    char c;
    for (int i = 0; i < count; ++i) ASSERT_EQ(::read(ready_[0], &c, 1), 1);
  }
  void EndReaders() {
    ::close(hold_[1]);
    for (const pid_t reader : readers_) EXPECT_EQ(WaitChild(reader), 0);
    readers_.clear();
  }
  std::vector<pid_t> readers_;
  int ready_[2] = {-1, -1};
  int hold_[2] = {-1, -1};
};

TEST_F(SharingTest, EightProcessesHaveOneCopyOfTheWeights) {
  TestDaemon daemon;
  constexpr uint64_t kBytes = 64 << 20;
  daemon.WriteModel("m", PatternModel(60, 8, kBytes / 8));
  StartReaders(daemon, 8, {"m"}, TRIMS_GRANULARITY_MODEL);
  uint64_t pss = 0;
  for (const pid_t reader : readers_) pss += WeightsPssBytes(reader);
  std::printf("PSS of the weights in 8 processes: %.3f x one copy\n",
              static_cast<double>(pss) / kBytes);
  // One copy, and one of its index; each of their 16 mappings is rounded down to whole KiB.
  EXPECT_GE(pss, kBytes - uint64_t{16} * 1024);
  EXPECT_LE(pss, kBytes + uint64_t{16} * 1024);
  EndReaders();
}

TEST_F(SharingTest, ModelsThatShareLayersShareTheirMemoryAtLayerGranularity) {
  TestDaemon daemon;
  constexpr uint64_t kLayer = 4 << 20;
  const auto base = PatternModel(61, 8, kLayer);
  std::vector<std::string> names;
  for (int i = 0; i < 4; ++i) {
    auto tuned = base;
    tuned[7] = PatternTensor(70 + static_cast<uint64_t>(i), 7, kLayer);  // Another head.
    names.push_back("tuned" + std::to_string(i));
    daemon.WriteModel(names.back(), tuned);
  }
  StartReaders(daemon, 8, names, TRIMS_GRANULARITY_LAYER);
  TestControl control(daemon.runtime_dir());
  EXPECT_EQ(control.Status().tiers(0).used_bytes(), 7 * kLayer + 4 * kLayer);
  EndReaders();
}

// --- Eviction and admission, as an operator sets them --------------------------------

struct PolicyCase {
  std::string policy;
  std::set<std::string> left;  // Of a, b, c after d was opened; room is for three.
};

class PolicyTest : public testing::TestWithParam<PolicyCase> {};

TEST_P(PolicyTest, EvictsAsItsNameSaysAndNeverWhatIsLeased) {
  TestDaemon daemon({"--host-capacity-bytes", "7MiB", "--eviction-policy", GetParam().policy});
  for (const char* name : {"a", "b", "c", "d"}) {
    daemon.WriteModel(name, PatternModel(static_cast<uint64_t>(name[0]), 1, 2 << 20));
  }
  trims_client* client = daemon.Connect();
  const auto open = [&](const char* name, int times) {
    for (int i = 0; i < times; ++i) {
      trims_lease* lease = nullptr;
      EXPECT_EQ(trims_lease_open(client, name, nullptr, &lease, nullptr), TRIMS_OK);
      trims_lease_close(lease);
    }
  };
  // Loaded a, b, c; last opened c, b, a; c is opened once, b so often that its weight in gdsf
  // is greater whatever the time of either load, which is measured, on a busy machine.
  open("a", 3);
  open("b", 1);
  open("c", 1);
  open("b", 100);
  trims_lease* held = nullptr;
  ASSERT_EQ(trims_lease_open(client, "a", nullptr, &held, nullptr), TRIMS_OK);
  trims_lease* d = nullptr;
  const trims_status status = trims_lease_open(client, "d", nullptr, &d, nullptr);
  EXPECT_EQ(status, GetParam().policy == "never" ? TRIMS_RESOURCE_EXHAUSTED : TRIMS_OK);
  TestControl control(daemon.runtime_dir());
  std::set<std::string> left;
  const v1::ListResponse resident = control.List(true);
  for (const v1::ModelView& model : resident.models()) left.insert(model.name());
  left.erase("d");
  if (GetParam().policy == "random") {
    EXPECT_TRUE(left.contains("a"));
    EXPECT_EQ(left.size(), 2u);
  } else {
    EXPECT_EQ(left, GetParam().left);
  }
  EXPECT_TRUE(HoldsModel(held, PatternModel('a', 1, 2 << 20)));
  trims_lease_close(held);
  trims_lease_close(d);
  trims_client_disconnect(client);
}

INSTANTIATE_TEST_SUITE_P(
    All, PolicyTest,
    testing::Values(PolicyCase{"never", {"a", "b", "c"}}, PolicyCase{"LRU", {"a", "b"}},
                    PolicyCase{"fifo", {"a", "c"}}, PolicyCase{"lcu", {"a", "b"}},
                    PolicyCase{"random", {}}, PolicyCase{"flush", {"a"}}, PolicyCase{"all", {"a"}},
                    PolicyCase{"eager", {"a"}}, PolicyCase{"gdsf", {"a", "b"}}),
    [](const auto& tested) { return tested.param.policy; });

TEST(KeepAliveTest, AModelGoesWhenItsTimeIsUpAndSaysWhenThatIs) {
  TestDaemon daemon({"--keep-alive", "300ms"});
  daemon.WriteModel("m", PatternModel(62, 1, 1 << 20));
  daemon.WriteModel("stays", PatternModel(63, 1, 1 << 20));
  trims_client* client = daemon.Connect();
  trims_lease* lease = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.keep_alive_ms = TRIMS_KEEP_ALIVE_FOREVER;
  trims_lease* stays = nullptr;
  ASSERT_EQ(trims_lease_open(client, "stays", &options, &stays, nullptr), TRIMS_OK);
  trims_lease_close(lease);
  trims_lease_close(stays);
  TestControl control(daemon.runtime_dir());
  EXPECT_TRUE(Eventually([&] {
    const v1::ListResponse resident = control.List(true);
    return resident.models_size() == 1 && resident.models(0).name() == "stays";
  }));
  const v1::ListResponse resident = control.List(true);
  EXPECT_FALSE(resident.models(0).replicas(0).has_until());
  trims_client_disconnect(client);
}

TEST(PersistTest, WithoutPersistCpuTheHostCopyGoesWithItsLastLease) {
  TestDaemon daemon({}, {{"UPRD_PERSIST_CPU", "false"}});
  daemon.WriteModel("m", PatternModel(64, 1, 1 << 20));
  trims_client* client = daemon.Connect();
  trims_lease* lease = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
  TestControl control(daemon.runtime_dir());
  EXPECT_EQ(control.List(true).models_size(), 1);
  trims_lease_close(lease);
  EXPECT_TRUE(Eventually([&] { return control.List(true).models_size() == 0; }));
  trims_client_disconnect(client);
}

TEST(EstimateTest, MeasuredPeaksCountInAdmissionAsLongAsTheyAreAskedTo) {
  for (const bool counted : {true, false}) {
    TestDaemon daemon({"--host-capacity-bytes", "6MiB"},
                      {{"UPRD_ESTIMATE_WITH_INTERNAL_MEMORY", counted ? "TRUE" : "0"}});
    daemon.WriteModel("m", PatternModel(65, 1, 2 << 20));
    trims_client* client = daemon.Connect();
    trims_lease* lease = nullptr;
    ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
    trims_lease_set_peak_internal_bytes(lease, 5 << 20);
    trims_lease_close(lease);
    TestControl control(daemon.runtime_dir());
    ASSERT_TRUE(Eventually([&] { return control.Status().leases() == 0; }));
    control.Evict("m");
    ASSERT_TRUE(control.last().ok()) << control.last().error_message();
    trims_error* error = nullptr;
    const trims_status status = trims_lease_open(client, "m", nullptr, &lease, &error);
    EXPECT_EQ(status, counted ? TRIMS_RESOURCE_EXHAUSTED : TRIMS_OK);
    if (counted) {
      EXPECT_EQ(trims_error_need_bytes(error), 7u << 20);
    }
    trims_error_free(error);
    if (status == TRIMS_OK) trims_lease_close(lease);
    trims_client_disconnect(client);
  }
}

TEST(ProfileTest, TheDaemonWritesItsTraceWhenItIsAskedTo) {
  std::string path;
  {
    TestDaemon daemon(
        {"--write-profile", "true", "--profile-target", "/tmp/trims-profile-test.json"});
    daemon.WriteModel("m", PatternModel(66, 1, 1 << 20));
    trims_client* client = daemon.Connect();
    trims_lease* lease = nullptr;
    ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
    trims_lease_close(lease);
    trims_client_disconnect(client);
    daemon.Stop();
  }
  std::ifstream in("/tmp/trims-profile-test.json");
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_NE(text.str().find("\"load_owned\""), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("\"open\""), std::string::npos);
  EXPECT_NE(text.str().find("\"eviction_policy\""), std::string::npos);
  std::filesystem::remove("/tmp/trims-profile-test.json");
}

}  // namespace
}  // namespace trims::testing_support

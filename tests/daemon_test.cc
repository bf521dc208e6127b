// The daemon as its users meet it: a real trimsd, real clients in their own
// processes, over real sockets.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

using format::TestTensor;

TEST(DaemonTest, LendsAModelWithItsBytes) {
  TestDaemon daemon;
  const auto model = PatternModel(1, 10, 100'000);
  daemon.WriteModel("m", model);
  trims_client* client = daemon.Connect();
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, &error), TRIMS_OK)
      << trims_error_message(error);
  EXPECT_TRUE(trims_lease_was_loaded(lease));
  EXPECT_TRUE(HoldsModel(lease, model));
  EXPECT_EQ(std::string(trims_lease_model_dir(lease)), daemon.base_dir() + "/m");
  trims_lease* again = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &again, &error), TRIMS_OK);
  EXPECT_FALSE(trims_lease_was_loaded(again));
  EXPECT_EQ(trims_lease_generation(again), trims_lease_generation(lease));
  trims_lease_close(again);
  trims_lease_close(lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, EveryGranularityLendsTheSameBytesAndDigest) {
  TestDaemon daemon({"--slab-bytes", "2MiB"});
  const auto model = PatternModel(2, 300, 20'000);
  daemon.WriteModel("m", model);
  trims_client* client = daemon.Connect();
  std::string digest;
  for (const trims_granularity granularity : {TRIMS_GRANULARITY_MODEL, TRIMS_GRANULARITY_SLAB,
                                              TRIMS_GRANULARITY_LAYER, TRIMS_GRANULARITY_AUTO}) {
    trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
    options.granularity = granularity;
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    ASSERT_EQ(trims_lease_open(client, "m", &options, &lease, &error), TRIMS_OK)
        << trims_error_message(error);
    EXPECT_TRUE(HoldsModel(lease, model)) << granularity;
    if (digest.empty()) digest = trims_lease_digest_text(lease);
    EXPECT_EQ(digest, trims_lease_digest_text(lease));
    const uint32_t extents = trims_lease_extent_count(lease);
    if (granularity == TRIMS_GRANULARITY_MODEL) {
      EXPECT_EQ(extents, 1u);
    }
    if (granularity == TRIMS_GRANULARITY_SLAB) {
      EXPECT_EQ(extents, 3u);
    }
    if (granularity == TRIMS_GRANULARITY_LAYER) {
      EXPECT_EQ(extents, 300u);
    }  // More than one packet's descriptors.
    trims_lease_close(lease);
  }
  trims_client_disconnect(client);
}

TEST(DaemonTest, OpensByDigestAndRefusesAnotherThanExpected) {
  TestDaemon daemon;
  const auto model = PatternModel(3, 3, 1000);
  daemon.WriteModel("m", model);
  trims_client* client = daemon.Connect();
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, &error), TRIMS_OK);
  const std::string reference = std::string("@") + trims_lease_digest_text(lease);
  trims_lease* by_digest = nullptr;
  ASSERT_EQ(trims_lease_open(client, reference.c_str(), nullptr, &by_digest, &error), TRIMS_OK)
      << trims_error_message(error);
  EXPECT_TRUE(HoldsModel(by_digest, model));
  trims_lease_close(by_digest);

  uint8_t other[32] = {1};
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.expected_digest = other;
  trims_lease* refused = nullptr;
  EXPECT_EQ(trims_lease_open(client, "m", &options, &refused, &error), TRIMS_DATA_LOSS);
  EXPECT_NE(std::string(trims_error_message(error)).find("expected sha256:01"), std::string::npos)
      << trims_error_message(error);
  trims_error_free(error);
  error = nullptr;
  EXPECT_EQ(trims_lease_open(client, ("@sha256:" + std::string(64, '0')).c_str(), nullptr, &refused,
                             &error),
            TRIMS_NOT_FOUND);
  trims_error_free(error);
  trims_lease_close(lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, OpensAPassedFileForWhoeverCanReadItAndNobodyElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as two users";
  TestDaemon daemon;
  const auto model = PatternModel(4, 4, 5000);
  const std::string path = daemon.root() + "/private.safetensors";
  std::ofstream(path, std::ios::binary) << format::WriteSafetensors(model);
  ASSERT_EQ(::chown(path.c_str(), 4001, 4001), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  // The owner opens it and stays.
  int done[2];
  ASSERT_EQ(::pipe(done), 0);
  const pid_t owner = StartChild(
      [&] {
        ::close(done[1]);
        trims_client* client = daemon.Connect();
        const int fd = ::open(path.c_str(), O_RDONLY);
        trims_lease* lease = nullptr;
        if (fd < 0 ||
            trims_lease_open_file(client, fd, "mine", nullptr, &lease, nullptr) != TRIMS_OK)
          return 1;
        if (!HoldsModel(lease, model)) return 2;
        const std::string digest = std::string("@") + trims_lease_digest_text(lease) + "\n";
        if (::write(pipe_fds[1], digest.data(), digest.size()) < 0) return 3;
        char c;
        return ::read(done[0], &c, 1) == 0 ? 0 : 4;
      },
      4001);
  ::close(done[0]);
  char digest[128] = {};
  ASSERT_GT(::read(pipe_fds[0], digest, sizeof digest - 1), 0);
  digest[std::strcspn(digest, "\n")] = '\0';
  // Another user has the digest and no right: the model does not exist for them.
  const pid_t other = StartChild(
      [&] {
        trims_client* client = daemon.Connect();
        trims_lease* lease = nullptr;
        if (trims_lease_open(client, digest, nullptr, &lease, nullptr) != TRIMS_NOT_FOUND) return 1;
        return ::open(path.c_str(), O_RDONLY) < 0 ? 0 : 2;
      },
      4002);
  EXPECT_EQ(WaitChild(other), 0);
  // The owner's other process has the right without showing the file again.
  const pid_t same = StartChild(
      [&] {
        trims_client* client = daemon.Connect();
        trims_lease* lease = nullptr;
        return trims_lease_open(client, digest, nullptr, &lease, nullptr) == TRIMS_OK &&
                       HoldsModel(lease, model)
                   ? 0
                   : 1;
      },
      4001);
  EXPECT_EQ(WaitChild(same), 0);
  ::close(done[1]);
  EXPECT_EQ(WaitChild(owner), 0);
}

TEST(DaemonTest, AFileThatChangedIsAnotherModelAndTheOldLeaseKeepsItsBytes) {
  TestDaemon daemon;
  const auto before = PatternModel(5, 3, 10'000);
  const auto after = PatternModel(6, 3, 10'000);
  daemon.WriteModel("m", before);
  trims_client* client = daemon.Connect();
  trims_lease* old_lease = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &old_lease, nullptr), TRIMS_OK);
  daemon.WriteModel("m", after);
  trims_lease* new_lease = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &new_lease, nullptr), TRIMS_OK);
  EXPECT_TRUE(HoldsModel(old_lease, before));
  EXPECT_TRUE(HoldsModel(new_lease, after));
  EXPECT_NE(std::string(trims_lease_digest_text(old_lease)), trims_lease_digest_text(new_lease));
  trims_lease_close(old_lease);
  trims_lease_close(new_lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, TwoNamesOfOneContentShareItAndEitherFileCanLoadIt) {
  TestDaemon daemon({"--eviction-policy", "eager"});
  const auto model = PatternModel(20, 3, 10'000);
  for (const char* name : {"one", "two"}) daemon.WriteModel(name, model);
  trims_client* client = daemon.Connect();
  for (const char* name : {"one", "two", "one", "two"}) {
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    ASSERT_EQ(trims_lease_open(client, name, nullptr, &lease, &error), TRIMS_OK)
        << name << ": " << trims_error_message(error);
    EXPECT_TRUE(trims_lease_was_loaded(lease));  // Nothing stayed: each loads from its own file.
    EXPECT_TRUE(HoldsModel(lease, model));
    trims_lease_close(lease);
  }
  trims_lease* both[2] = {};
  ASSERT_EQ(trims_lease_open(client, "one", nullptr, &both[0], nullptr), TRIMS_OK);
  ASSERT_EQ(trims_lease_open(client, "two", nullptr, &both[1], nullptr), TRIMS_OK);
  EXPECT_EQ(trims_lease_generation(both[0]), trims_lease_generation(both[1]));
  trims_lease_close(both[0]);
  trims_lease_close(both[1]);
  trims_client_disconnect(client);
}

TEST(DaemonTest, AFileLargerThanAnyBudgetIsRefusedUnread) {
  TestDaemon daemon({"--host-capacity-bytes", "4MiB"});
  const std::string path = daemon.root() + "/sparse.safetensors";
  std::ofstream(path, std::ios::binary) << format::WriteSafetensors(PatternModel(21, 1, 1000));
  ASSERT_EQ(::truncate(path.c_str(), int64_t{1} << 42), 0);
  trims_client* client = daemon.Connect();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  EXPECT_EQ(trims_lease_open_file(client, fd, "sparse", nullptr, &lease, &error),
            TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_EQ(trims_error_need_bytes(error), uint64_t{1} << 42);
  EXPECT_NE(std::string(trims_error_message(error)).find("4.0 MiB"), std::string::npos)
      << trims_error_message(error);
  trims_error_free(error);
  ::close(fd);
  trims_client_disconnect(client);
}

TEST(DaemonTest, ModelsWithOneHeaderAndOtherWeightsAreTwoModels) {
  TestDaemon daemon;
  daemon.WriteModel("a", PatternModel(7, 3, 1000));
  daemon.WriteModel("b", PatternModel(8, 3, 1000));
  trims_client* client = daemon.Connect();
  trims_lease* a = nullptr;
  trims_lease* b = nullptr;
  ASSERT_EQ(trims_lease_open(client, "a", nullptr, &a, nullptr), TRIMS_OK);
  ASSERT_EQ(trims_lease_open(client, "b", nullptr, &b, nullptr), TRIMS_OK);
  EXPECT_NE(std::string(trims_lease_digest_text(a)), trims_lease_digest_text(b));
  EXPECT_TRUE(HoldsModel(a, PatternModel(7, 3, 1000)));
  EXPECT_TRUE(HoldsModel(b, PatternModel(8, 3, 1000)));
  trims_lease_close(a);
  trims_lease_close(b);
  trims_client_disconnect(client);
}

TEST(DaemonTest, BadFilesAndNamesAreRefusedWithAReasonAndServingGoesOn) {
  TestDaemon daemon;
  std::filesystem::create_directories(daemon.base_dir() + "/cut");
  std::ofstream(daemon.base_dir() + "/cut/model.safetensors", std::ios::binary)
      << format::WriteSafetensors(PatternModel(9, 2, 1000)).substr(0, 900);
  std::filesystem::create_directories(daemon.base_dir() + "/empty");
  daemon.WriteModel("good", PatternModel(10, 2, 1000));
  trims_client* client = daemon.Connect();
  const std::map<std::string, std::pair<trims_status, std::string>> cases = {
      {"cut", {TRIMS_INVALID_ARGUMENT, "model.safetensors"}},
      {"empty", {TRIMS_NOT_FOUND, "model.params"}},
      {"absent", {TRIMS_NOT_FOUND, "trims add absent"}},
      {"../good", {TRIMS_INVALID_ARGUMENT, "namespace"}},
      {"", {TRIMS_INVALID_ARGUMENT, "1 to 512 bytes"}},
  };
  for (const auto& [name, expected] : cases) {
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    EXPECT_EQ(trims_lease_open(client, name.c_str(), nullptr, &lease, &error), expected.first)
        << name << ": " << trims_error_message(error);
    EXPECT_NE(std::string(trims_error_message(error)).find(expected.second), std::string::npos)
        << name << ": " << trims_error_message(error);
    trims_error_free(error);
  }
  trims_lease* lease = nullptr;
  EXPECT_EQ(trims_lease_open(client, "good", nullptr, &lease, nullptr), TRIMS_OK);
  trims_lease_close(lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, ConcurrentOpensOfAColdModelShareOneLoad) {
  TestDaemon daemon;
  const auto model = PatternModel(11, 8, 4'000'000);
  daemon.WriteModel("m", model);
  std::vector<pid_t> children;
  for (int i = 0; i < 8; ++i) {
    children.push_back(StartChild([&] {
      trims_client* client = daemon.Connect();
      trims_lease* lease = nullptr;
      if (trims_lease_open(client, "m", nullptr, &lease, nullptr) != TRIMS_OK) return 1;
      return HoldsModel(lease, model) ? 0 : 2;
    }));
  }
  for (const pid_t child : children) EXPECT_EQ(WaitChild(child), 0);
  const std::string log = daemon.Log();
  size_t loads = 0;
  for (size_t at = log.find("loaded model="); at != std::string::npos;
       at = log.find("loaded model=", at + 1))
    ++loads;
  EXPECT_EQ(loads, 1u) << log;
}

TEST(DaemonTest, ALoadReportsProgressAndCanBeCancelledAndStartedAgain) {
  TestDaemon daemon;
  const auto model = PatternModel(22, 8, 20'000'000);
  daemon.WriteModel("m", model);
  trims_client* client = daemon.Connect();
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = [](void*, trims_phase, uint64_t, uint64_t) { return 1; };
  trims_lease* lease = nullptr;
  EXPECT_EQ(trims_lease_open(client, "m", &options, &lease, nullptr), TRIMS_CANCELLED);
  options.progress = nullptr;
  options.deadline_ms = 1;
  EXPECT_EQ(trims_lease_open(client, "m", &options, &lease, nullptr), TRIMS_DEADLINE_EXCEEDED);
  options.deadline_ms = 0;
  struct Seen {
    int calls = 0;
    uint64_t last = 0;
  } seen;
  options.progress_user = &seen;
  options.progress = [](void* user, trims_phase, uint64_t done, uint64_t total) {
    auto* mine = static_cast<Seen*>(user);
    ++mine->calls;
    EXPECT_LE(done, total);
    mine->last = done;
    return 0;
  };
  trims_error* error = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", &options, &lease, &error), TRIMS_OK)
      << trims_error_message(error);
  EXPECT_GT(seen.calls, 0);
  EXPECT_TRUE(HoldsModel(lease, model));
  trims_lease_close(lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, NoRoomIsSaidWithTheNumbersAndTheHolders) {
  TestDaemon daemon({"--host-capacity-bytes", "3MiB"});
  daemon.WriteModel("a", PatternModel(12, 1, 2 << 20));
  daemon.WriteModel("b", PatternModel(13, 1, 2 << 20));
  trims_client* client = daemon.Connect();
  trims_lease* a = nullptr;
  ASSERT_EQ(trims_lease_open(client, "a", nullptr, &a, nullptr), TRIMS_OK);
  trims_lease* b = nullptr;
  trims_error* error = nullptr;
  EXPECT_EQ(trims_lease_open(client, "b", nullptr, &b, &error), TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_EQ(trims_error_need_bytes(error), 2u << 20);
  EXPECT_EQ(trims_error_free_bytes(error), 1u << 20);
  EXPECT_EQ(trims_error_evictable_bytes(error), 0u);
  EXPECT_NE(std::string(trims_error_message(error)).find("a ("), std::string::npos)
      << trims_error_message(error);
  trims_error_free(error);
  trims_lease_close(a);
  // Closed means evictable: now it fits.
  EXPECT_EQ(trims_lease_open(client, "b", nullptr, &b, nullptr), TRIMS_OK);
  trims_lease_close(b);
  trims_client_disconnect(client);
}

TEST(DaemonTest, ASecondDaemonSaysWhoHoldsTheDirectoryAndEnds) {
  TestDaemon daemon;
  const std::string command = std::string(TRIMSD_BINARY) + " --runtime-dir " +
                              daemon.runtime_dir() + " --state-dir " + daemon.state_dir() +
                              " 2>&1; echo status=$?";
  FILE* out = ::popen(command.c_str(), "r");
  char text[4096] = {};
  (void)!::fread(text, 1, sizeof text - 1, out);
  ::pclose(out);
  EXPECT_NE(std::string(text).find("pid " + std::to_string(daemon.keeper())), std::string::npos)
      << text;
  EXPECT_NE(std::string(text).find("status=1"), std::string::npos) << text;
  trims_client* client = daemon.Connect();  // The first one still serves.
  EXPECT_EQ(trims_client_ping(client, nullptr), TRIMS_OK);
  trims_client_disconnect(client);
}

TEST(DaemonTest, AKilledClientsLeaseEndsAtOnceAlsoWhenItsChildKeepsTheSocket) {
  TestDaemon daemon({"--host-capacity-bytes", "3MiB"});
  daemon.WriteModel("a", PatternModel(14, 1, 2 << 20));
  daemon.WriteModel("b", PatternModel(15, 1, 2 << 20));
  for (const bool with_grandchild : {false, true}) {
    int ready[2], hold[2];
    ASSERT_EQ(::pipe(ready), 0);
    ASSERT_EQ(::pipe(hold), 0);
    const pid_t child = StartChild([&] {
      trims_client* client = daemon.Connect();
      trims_lease* lease = nullptr;
      if (trims_lease_open(client, "a", nullptr, &lease, nullptr) != TRIMS_OK) return 1;
      if (with_grandchild && ::fork() == 0) {
        ::close(hold[1]);
        char c;
        (void)!::read(hold[0], &c, 1);  // Lives, with the inherited socket, until the test lets go.
        ::_exit(0);
      }
      (void)!::write(ready[1], "r", 1);
      ::pause();
      return 0;
    });
    char c;
    ASSERT_EQ(::read(ready[0], &c, 1), 1);
    trims_client* client = daemon.Connect();
    trims_lease* b = nullptr;
    EXPECT_EQ(trims_lease_open(client, "b", nullptr, &b, nullptr), TRIMS_RESOURCE_EXHAUSTED);
    ::kill(child, SIGKILL);
    EXPECT_EQ(WaitChild(child), 1000 + SIGKILL);
    EXPECT_TRUE(Eventually(
        [&] { return trims_lease_open(client, "b", nullptr, &b, nullptr) == TRIMS_OK; }));
    trims_lease_close(b);
    trims_client_disconnect(client);
    for (const int fd : {ready[0], ready[1], hold[0], hold[1]}) ::close(fd);
  }
}

TEST(DaemonTest, AWorkerThatIsKilledLosesNoReadyModelAndItsSuccessorServesItWithoutALoad) {
  TestDaemon daemon;
  const auto model = PatternModel(16, 5, 1'000'000);
  daemon.WriteModel("m", model);
  trims_client* client = daemon.Connect();
  trims_lease* lease = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &lease, nullptr), TRIMS_OK);
  const uint64_t generation = trims_lease_generation(lease);
  const uint64_t instance = trims_client_server_instance(client);
  daemon.KillWorker();
  EXPECT_TRUE(HoldsModel(lease, model));
  ASSERT_EQ(trims_client_ping(client, nullptr), TRIMS_OK);
  EXPECT_NE(trims_client_server_instance(client), instance);
  EXPECT_TRUE(trims_lease_is_attached(lease));
  trims_lease* again = nullptr;
  ASSERT_EQ(trims_lease_open(client, "m", nullptr, &again, nullptr), TRIMS_OK);
  EXPECT_EQ(trims_lease_generation(again), generation);
  EXPECT_TRUE(HoldsModel(again, model));
  const std::string log = daemon.Log();
  EXPECT_EQ(log.find("loaded model="), log.rfind("loaded model=")) << log;
  trims_lease_close(again);
  trims_lease_close(lease);
  trims_client_disconnect(client);
}

TEST(DaemonTest, AdoptedModelsAreServedAgainAtEveryGranularityWithSharedLayers) {
  TestDaemon daemon({"--slab-bytes", "2MiB"});
  auto a = PatternModel(17, 20, 300'000);
  auto b = a;
  b[3] = PatternTensor(999, 3, 300'000);  // A fine-tune: one layer differs.
  daemon.WriteModel("a", a);
  daemon.WriteModel("b", b);
  trims_client* client = daemon.Connect();
  for (int round = 0; round < 2; ++round) {
    for (const trims_granularity granularity :
         {TRIMS_GRANULARITY_LAYER, TRIMS_GRANULARITY_SLAB, TRIMS_GRANULARITY_MODEL}) {
      trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
      options.granularity = granularity;
      trims_lease* lease_a = nullptr;
      trims_lease* lease_b = nullptr;
      trims_error* error = nullptr;
      ASSERT_EQ(trims_lease_open(client, "a", &options, &lease_a, &error), TRIMS_OK)
          << trims_error_message(error);
      ASSERT_EQ(trims_lease_open(client, "b", &options, &lease_b, &error), TRIMS_OK)
          << trims_error_message(error);
      EXPECT_TRUE(HoldsModel(lease_a, a));
      EXPECT_TRUE(HoldsModel(lease_b, b));
      trims_lease_close(lease_a);
      trims_lease_close(lease_b);
    }
    if (round == 0) daemon.KillWorker();
  }
  const std::string log = daemon.Log();
  size_t loads = 0;
  for (size_t at = log.find("loaded model="); at != std::string::npos;
       at = log.find("loaded model=", at + 1))
    ++loads;
  EXPECT_EQ(loads, 6u) << log;
  trims_client_disconnect(client);
}

}  // namespace
}  // namespace trims::testing_support

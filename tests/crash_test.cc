// Stress: the worker is killed again and again while clients work, and clients
// are killed while the worker works. Bounded here (TRIMS_SOAK_SECONDS makes it
// longer, as `make soak` does). The seed is printed and taken from TRIMS_TEST_SEED.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>

#include "tests/test_control.h"
#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

constexpr int kClients = 16;

// What the clients tell the test while they run: shared memory.
struct Board {
  std::atomic<bool> stop;
  std::atomic<uint64_t> opens;
  std::atomic<uint64_t> longest_us;
};

Board* NewBoard() {
  void* memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return new (memory) Board{};
}

// Descriptors of memfds of ours that a process holds.
int CountMemfds(pid_t pid) {
  int count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/" + std::to_string(pid) + "/fd", error), end;
       !error && it != end; it.increment(error)) {
    std::error_code link_error;
    const std::string target = std::filesystem::read_symlink(it->path(), link_error).string();
    if (target.find("memfd:trims") != std::string::npos) ++count;
  }
  return count;
}

class CrashTest : public testing::Test {
 protected:
  CrashTest() : daemon_({"--host-capacity-bytes", "40MiB", "--log-level", "info"}) {
    for (int i = 0; i < 4; ++i) {
      models_.push_back(PatternModel(100 + i, 6, 400'000 + 1000 * i));
      daemon_.WriteModel("m" + std::to_string(i), models_.back());
    }
  }

  // What the worker's descriptors are, sorted.
  std::vector<std::string> Descriptors() {
    std::vector<std::string> kinds;
    std::error_code error;
    for (std::filesystem::directory_iterator
             it("/proc/" + std::to_string(*daemon_.Worker()) + "/fd", error),
         end;
         !error && it != end; it.increment(error)) {
      std::error_code gone;
      std::string target = std::filesystem::read_symlink(it->path(), gone).string();
      kinds.push_back(target.substr(0, target.find('[')));  // "socket:[NUMBER]"
    }
    std::sort(kinds.begin(), kinds.end());
    return kinds;
  }
  // The same when no connection of the control plane is closing any more.
  std::vector<std::string> IdleDescriptors() {
    std::vector<std::string> last;
    int same = 0;
    EXPECT_TRUE(Eventually([&] {
      std::vector<std::string> now = Descriptors();
      same = now == last ? same + 1 : 0;
      last = std::move(now);
      return same == 100;  // Looks, 2 ms apart.
    }));
    return last;
  }

  // Opens every model in every way, and closes it.
  int VisitAll() {
    trims_client* client = daemon_.Connect();
    for (size_t which = 0; which < models_.size(); ++which) {
      for (int granularity = 1; granularity <= 3; ++granularity) {
        trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
        options.granularity = static_cast<trims_granularity>(granularity);
        trims_lease* lease = nullptr;
        if (trims_lease_open(client, ("m" + std::to_string(which)).c_str(), &options, &lease,
                             nullptr) != TRIMS_OK ||
            !HoldsModel(lease, models_[which])) {
          return 1;
        }
        trims_lease_close(lease);
      }
    }
    trims_client_disconnect(client);
    return 0;
  }

  // Opens, computes (compares every byte) and closes, once at least, until told to stop.
  int ClientLoop(Board* board, uint64_t seed) {
    std::mt19937_64 random(seed);
    trims_client* client = daemon_.Connect();
    if (client == nullptr) return 1;
    do {
      const size_t which = random() % models_.size();
      trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
      options.granularity = static_cast<trims_granularity>(1 + random() % 3);
      trims_lease* lease = nullptr;
      trims_error* error = nullptr;
      const auto start = std::chrono::steady_clock::now();
      const trims_status status =
          trims_lease_open(client, ("m" + std::to_string(which)).c_str(), &options, &lease, &error);
      const uint64_t us =
          static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                    std::chrono::steady_clock::now() - start)
                                    .count());
      if (status != TRIMS_OK) {
        std::fprintf(stderr, "client error: %s: %s\n", trims_status_name(status),
                     trims_error_message(error));
        return 2;
      }
      uint64_t longest = board->longest_us;
      while (us > longest && !board->longest_us.compare_exchange_weak(longest, us)) {
      }
      if (!HoldsModel(lease, models_[which])) {
        std::fprintf(stderr, "wrong bytes in m%zu\n", which);
        return 3;
      }
      trims_lease_close(lease);
      ++board->opens;
    } while (!board->stop);
    trims_client_disconnect(client);
    return 0;
  }

  // Nothing is leased, and nothing is held that is not accounted for.
  void ExpectQuiet() {
    TestControl control(daemon_.runtime_dir());
    EXPECT_TRUE(Eventually([&] { return control.Status().sessions() == 0; }))
        << control.Status().sessions();
    EXPECT_EQ(control.Status().leases(), 0u);
    const v1::ListResponse resident = control.List(true);
    for (const v1::ModelView& model : resident.models()) {
      // Not while its adoption is so recent that its clients may still come back.
      EXPECT_TRUE(Eventually([&] {
        control.Evict(model.name());
        return control.last().ok();
      })) << control.last().error_message();
    }
    EXPECT_EQ(control.Status().tiers(0).used_bytes(), 0u);
    EXPECT_TRUE(Eventually([&] { return CountMemfds(daemon_.keeper()) == 0; }))
        << CountMemfds(daemon_.keeper());
  }

  TestDaemon daemon_;
  std::vector<std::vector<format::TestTensor>> models_;
};

TEST_F(CrashTest, KillingTheWorkerAgainAndAgainDisturbsNoClient) {
  const uint64_t seed = Seed();
  Board* board = NewBoard();
  std::vector<pid_t> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.push_back(StartChild([&, i] { return ClientLoop(board, seed + i); }));
  }
  std::mt19937_64 random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(Seconds());
  std::set<pid_t> killed;  // One that is dying may be found again.
  for (int turn = 0; std::chrono::steady_clock::now() < end; ++turn) {
    // At any instant of a worker's life: before it is ready, while it adopts, in
    // the middle of loads and of answers.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400'000));
    // Every fifth one has served first, so that the keeper never sees a crash loop.
    if (turn % 5 == 0) TestControl(daemon_.runtime_dir()).Status();
    if (const auto worker = daemon_.Worker()) {
      ::kill(*worker, SIGKILL);
      killed.insert(*worker);
    }
  }
  board->stop = true;
  for (const pid_t client : clients) EXPECT_EQ(WaitChild(client), 0);  // Each had a model.
  std::printf("%zu kills, %llu opens, longest open %.1f ms\n", killed.size(),
              static_cast<unsigned long long>(board->opens),
              static_cast<double>(board->longest_us) / 1000);
  // A turn lasts 0.4 s, and the worker that every fifth one waits for comes 2 s after the last
  // one's death at the latest: five turns are done in 4 s and what a worker's start takes, and
  // each turn but those between two workers kills one.
  EXPECT_GE(killed.size(), static_cast<size_t>(Seconds()) / 5);
  ExpectQuiet();
  // No worker died of anything else, and each of these was replaced.
  daemon_.ExpectWorkerDeaths(static_cast<int>(killed.size()));
  EXPECT_EQ(TestControl(daemon_.runtime_dir()).Status().worker_restarts(), killed.size());
}

TEST_F(CrashTest, KilledClientsLeaveNothingBehind) {
  const uint64_t seed = Seed();
  Board* board = NewBoard();
  std::mt19937_64 random(seed);
  // What a worker keeps open for good is open after the first visit.
  EXPECT_EQ(WaitChild(StartChild([&] { return VisitAll(); })), 0);
  ExpectQuiet();
  const std::vector<std::string> descriptors = IdleDescriptors();
  std::vector<pid_t> clients(kClients, -1);
  const auto start_client = [&](size_t i) {
    clients[i] = StartChild([&, client_seed = random()] { return ClientLoop(board, client_seed); });
  };
  for (size_t i = 0; i < clients.size(); ++i) start_client(i);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(Seconds());
  int kills = 0;
  while (std::chrono::steady_clock::now() < end) {
    // At any instant of a client's life.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    const size_t which = random() % clients.size();
    ::kill(clients[which], SIGKILL);
    const int status = WaitChild(clients[which]);
    EXPECT_EQ(status, 1000 + SIGKILL);  // Not dead before of an error.
    ++kills;
    start_client(which);
  }
  board->stop = true;
  for (const pid_t client : clients) EXPECT_EQ(WaitChild(client), 0);  // Each had a model.
  std::printf("%d kills, %llu opens\n", kills, static_cast<unsigned long long>(board->opens));
  EXPECT_GT(kills, 0);
  EXPECT_EQ(TestControl(daemon_.runtime_dir()).Status().worker_restarts(), 0u);
  ExpectQuiet();
  // Sockets, pidfds and files of all those clients are closed.
  EXPECT_EQ(IdleDescriptors(), descriptors);
}

TEST_F(CrashTest, AWorkerThatNeverBecomesReadyIsGivenUpOn) {
  // A catalogue nobody wrote: the next worker can not serve and says so.
  std::ofstream(daemon_.state_dir() + "/catalogue.json") << "broken";
  daemon_.ExpectWorkerDeaths(1);
  daemon_.ExpectErrors("catalogue.json is not a catalogue", 1);
  ::kill(*daemon_.Worker(), SIGKILL);
  daemon_.WaitUntilStopped(/*expected=*/1);
  std::ofstream(daemon_.state_dir() + "/catalogue.json") << "{\"models\": {}}";
  daemon_.Start();
}

}  // namespace
}  // namespace trims::testing_support

// Clients whose daemon's worker dies and comes back, and whose process forks or has many
// threads.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/test_client.h"
#include "trims/trims.h"

namespace trims::client {
namespace {

// --- Restarts of the worker ---------------------------------------------------------

TEST_F(ClientTest, WorkerThatDiesDuringAnOpenIsWaitedForAndLeasesAreRegisteredAgain) {
  std::atomic<int> opens = 0;
  daemon_.SetHook([&](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    if (++opens != 2) return false;
    connection.drop = true;
    return true;
  });
  daemon_.AddModel("b", MakeFakeModel(2, 2));
  Connect();
  trims_lease* first = Open("m");
  EXPECT_EQ(trims_lease_id(first), 1u);
  trims_lease* second = Open("b");
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(opens, 3);
  EXPECT_EQ(daemon_.log().reattaches, (std::vector<uint64_t>{100}));
  EXPECT_EQ(trims_lease_is_attached(first), 1);
  EXPECT_EQ(trims_lease_id(first), 2u) << "the new worker's number";
  EXPECT_EQ(FirstElement(first), 0.0f);
  trims_lease_close(first);
  trims_lease_close(second);
  Settle();
  EXPECT_EQ(daemon_.log().closes, (std::vector<uint64_t>{2, 3}));
}

TEST_F(ClientTest, WorkerThatDiesBetweenThePartsOfAnAnswerCostsNothing) {
  std::atomic<int> opens = 0;
  daemon_.AddModel("wide", MakeFakeModel(300));
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen || ++opens > 1) return false;
    const FakeModel& model = daemon.model("wide");
    flatbuffers::FlatBufferBuilder builder;
    const std::vector<uint8_t> digest(32, 1);
    builder.Finish(v1::CreateOpenedDirect(builder, 77, &digest, 1, v1::TierKind::Host, nullptr,
                                          v1::Granularity::Layer, 0, 300, model.index_bytes,
                                          &model.extent_bytes));
    const int index = model.index.get();
    FakeDaemon::Send(connection, FrameType::kOpened, frame.header.request_id, builder,
                     kFrameFlagMore, std::span(&index, 1));
    connection.drop = true;
    return true;
  });
  Connect();
  trims_lease* lease = Open("wide");
  EXPECT_EQ(FirstElement(lease, "t0299"), 299.0f);
  trims_lease_close(lease);
}

TEST_F(ClientTest, LeaseThatADaemonHasForgottenStaysReadableAndIsClosedInSilence) {
  Connect();
  trims_lease* lease = Open();
  daemon_.KillWorker(/*remembers=*/false);
  Ping();
  EXPECT_EQ(trims_client_server_instance(client_), 2u);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  EXPECT_EQ(FirstElement(lease), 0.0f);
  trims_lease_close(lease);
  Settle();
  EXPECT_TRUE(daemon_.log().closes.empty());
  EXPECT_EQ(CountMappings(), 1);  // The index, for the next open.
}

TEST_F(ClientTest, LeaseClosedWhileTheWorkerWasDownIsNotRegisteredAgain) {
  Connect();
  trims_lease* kept = Open();
  trims_lease* closed = Open();
  daemon_.KillWorker();
  // Whether or not the library has noticed yet.
  trims_lease_close(closed);
  Ping();
  daemon_.WaitFor([](const auto& log) { return !log.reattaches.empty(); });
  EXPECT_EQ(daemon_.log().reattaches.size(), 1u);
  EXPECT_EQ(trims_lease_is_attached(kept), 1);
  trims_lease_close(kept);
}

TEST_F(ClientTest, ManyLeasesAreRegisteredAgain) {
  Connect();
  std::vector<trims_lease*> leases;
  for (int i = 0; i < 300; ++i) leases.push_back(Open());
  daemon_.KillWorker();
  Ping();
  EXPECT_EQ(daemon_.log().reattaches.size(), 300u);
  std::set<uint64_t> ids;
  for (trims_lease* lease : leases) {
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    ids.insert(trims_lease_id(lease));
    trims_lease_close(lease);
  }
  EXPECT_EQ(ids.size(), 300u);
  Settle();
  EXPECT_EQ(daemon_.log().closes.size(), 300u);
}

TEST_F(ClientTest, WorkerThatDoesNotComeBackIsUnavailableAfterTheTimeoutAndUsableLater) {
  Connect(0, /*timeout_ms=*/60);
  trims_lease* lease = Open();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  std::string message;
  EXPECT_EQ(OpenStatus("m", nullptr, &message), TRIMS_UNAVAILABLE);
  EXPECT_NE(message.find("60 ms"), std::string::npos) << message;
  EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_UNAVAILABLE);
  EXPECT_EQ(trims_client_service(client_, nullptr), TRIMS_UNAVAILABLE);
  EXPECT_EQ(FirstElement(lease), 0.0f);
  daemon_.PauseAccepting(false);
  while (trims_client_ping(client_, nullptr) != TRIMS_OK) {
  }
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  trims_lease_close(lease);
}

TEST_F(ClientTest, DeadlineHoldsWhileTheWorkerIsDown) {
  Connect();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.deadline_ms = 30;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_DEADLINE_EXCEEDED);
  Reports reports;
  reports.cancel = [] { return true; };
  options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = Reports::Call;
  options.progress_user = &reports;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_CANCELLED);
  daemon_.PauseAccepting(false);
  Ping();
}

TEST_F(ClientTest, EventLoopIsToldOfALostConnection) {
  Connect();
  trims_lease* lease = Open();
  const int fd = trims_client_poll_fd(client_);
  ASSERT_GE(fd, 0);
  pollfd watch = {fd, POLLIN, 0};
  EXPECT_EQ(poll(&watch, 1, 0), 0);
  ASSERT_EQ(trims_client_service(client_, nullptr), TRIMS_OK) << "nothing to do is fine";
  for (uint64_t round = 2; round < 5; ++round) {
    daemon_.KillWorker();
    ASSERT_EQ(poll(&watch, 1, -1), 1);
    ASSERT_EQ(trims_client_service(client_, nullptr), TRIMS_OK);
    EXPECT_EQ(trims_client_poll_fd(client_), fd);
    EXPECT_EQ(trims_client_server_instance(client_), round);
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    EXPECT_EQ(poll(&watch, 1, 0), 0);
  }
  trims_lease_close(lease);
}

TEST_F(ClientTest, EventLoopIsToldOfALossThatAnotherCallNoticed) {
  Connect();
  trims_lease* lease = Open();
  const int fd = trims_client_poll_fd(client_);
  std::atomic<bool> gone = false;
  daemon_.KillWorker();
  daemon_.OnEachConnection([&](FakeDaemon::Connection&) { gone = true; });
  EXPECT_FALSE(gone);
  trims_lease_close(lease);  // Sends into the broken connection.
  pollfd watch = {fd, POLLIN, 0};
  EXPECT_EQ(poll(&watch, 1, -1), 1);
  EXPECT_EQ(trims_client_service(client_, nullptr), TRIMS_OK);
  EXPECT_EQ(poll(&watch, 1, 0), 0);
}

TEST_F(ClientTest, BackgroundThreadRegistersLeasesWithoutAnyCall) {
  Connect(TRIMS_CONNECT_BACKGROUND);
  trims_lease* lease = Open();
  for (size_t round = 1; round <= 3; ++round) {
    daemon_.KillWorker();
    daemon_.WaitFor([&](const auto& log) { return log.reattaches.size() == round; });
  }
  Ping();
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  trims_lease_close(lease);
  trims_lease_close(Open());
}

TEST_F(ClientTest, BackgroundThreadEndsWithTheClientWhateverTheDaemonDoes) {
  Connect(TRIMS_CONNECT_BACKGROUND);
  trims_lease* lease = Open();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  Disconnect();
  EXPECT_EQ(FirstElement(lease), 0.0f);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  trims_lease_close(lease);
}

TEST_F(ClientTest, LeasesOutliveTheirClient) {
  Connect();
  trims_lease* lease = Open();
  Disconnect();
  EXPECT_EQ(FirstElement(lease), 0.0f);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  trims_lease_close(lease);
}

// --- fork, threads ---------------------------------------------------------------------

TEST_F(ClientTest, ForkedChildMayReadAndMayNotTalk) {
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    trims_lease* lease = Open();
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int failures = 0;
      trims_lease* other = nullptr;
      failures +=
          trims_lease_open(client_, "m", nullptr, &other, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_ping(client_, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_service(client_, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_poll_fd(client_) != -1;
      failures += FirstElement(lease) != 0.0f;
      trims_lease_close(lease);
      trims_client_disconnect(client_);
      failures += CountMappings() != 0;
      _exit(failures);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_TRUE(daemon_.log().closes.empty());
    EXPECT_EQ(FirstElement(lease), 0.0f);
    Ping();
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    Disconnect();
    trims_lease_close(lease);
  }
}

TEST_F(ClientTest, SlowOpenDoesNotHoldUpOthers) {
  std::vector<uint64_t> slow;
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    const std::string name = ReadMessage<v1::Open>(frame.payload)->model()->str();
    if (name == "slow") {
      slow.push_back(frame.header.request_id);
      return true;
    }
    if (name == "release") {
      for (const uint64_t id : slow) daemon.SendOpened(connection, id, daemon.model("m"));
      slow.clear();
    }
    return false;
  });
  daemon_.AddModel("release", MakeFakeModel(1));
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    const size_t opens = daemon_.log().opens.size();
    std::vector<std::thread> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.emplace_back([this] { trims_lease_close(Open("slow")); });
    }
    daemon_.WaitFor([&](const auto& log) { return log.opens.size() == opens + 3; });
    // Three wait, one of them receives for all.
    for (int i = 0; i < 20; ++i) EXPECT_EQ(OpenStatus("m"), TRIMS_OK);
    trims_lease_close(Open("release"));
    for (std::thread& thread : waiting) thread.join();
    Disconnect();
  }
}

TEST_F(ClientTest, MoreThreadsThanTheDaemonAllowsOpensTakeTurns) {
  std::atomic<int> in_flight = 0;
  std::atomic<int> most = 0;
  std::vector<uint64_t> held;
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type == FrameType::kPing) {
      for (const uint64_t id : std::exchange(held, {})) {
        --in_flight;
        daemon.SendOpened(connection, id, daemon.model("m"));
      }
      return false;
    }
    if (frame.header.type != FrameType::kOpen) return false;
    most = std::max<int>(most, ++in_flight);
    held.push_back(frame.header.request_id);
    return true;
  });
  Connect();
  std::atomic<int> done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 150; ++i) {
    threads.emplace_back([&] {
      trims_lease_close(Open());
      ++done;
    });
  }
  daemon_.WaitFor([](const auto& log) { return log.opens.size() >= kMaxOpensInFlightPerSession; });
  while (done < 150) Ping();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, static_cast<int>(kMaxOpensInFlightPerSession));
}

TEST_F(ClientTest, ThreadsOpenReadAndCloseWhileTheWorkerDiesAgainAndAgain) {
  daemon_.AddModel("wide", MakeFakeModel(260, 2));
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    const uint64_t first_instance = trims_client_server_instance(client_);
    std::atomic<bool> stop = false;
    std::thread killer([&] {
      size_t last = daemon_.log().opens.size();
      while (!stop) {
        // In the middle of the work: leases are held, opens unanswered.
        daemon_.WaitFor([&](const auto& log) { return stop || log.opens.size() >= last + 9; });
        last = daemon_.log().opens.size();
        daemon_.KillWorker();
      }
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 20; ++i) {
          trims_lease* lease = Open(t % 3 == 0 ? "wide" : "m");
          ASSERT_NE(lease, nullptr);
          EXPECT_EQ(FirstElement(lease), 0.0f);
          if (t % 3 == 0) {
            EXPECT_EQ(FirstElement(lease, "t0259"), 259.0f);
          }
          trims_lease_close(lease);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    stop = true;
    daemon_.KillWorker();
    killer.join();
    Ping();
    EXPECT_GT(trims_client_server_instance(client_), first_instance + 5) << "hardly anything died";
    Disconnect();
  }
}

TEST_F(ClientTest, ManyClosesWithoutAnyOtherCallAreAllApplied) {
  Connect();
  std::vector<trims_lease*> leases;
  for (int i = 0; i < 500; ++i) leases.push_back(Open());
  for (trims_lease* lease : leases) trims_lease_close(lease);
  Settle();
  EXPECT_EQ(daemon_.log().closes.size(), 500u);
  EXPECT_EQ(daemon_.log().connections, 1);
}

}  // namespace
}  // namespace trims::client

#include "daemon/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "daemon/reactor_call.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using ::testing::SizeIs;

SessionTable Everybody() {
  return {[] { return size_t{0}; },
          [](store::SessionId id) {
            return std::optional<SessionView>({.id = id, .uid = 7, .pid = 42});
          }};
}

class SnapshotTest : public ::testing::Test {
 protected:
  // Leased on the host by as many sessions of their own.
  void Lease(const std::string& name, int sessions) {
    for (int i = 0; i < sessions; ++i) {
      const OpenResult opened = trunk_.Open(TestTrunk::Named(name, ++session_));
      ASSERT_TRUE(opened.status.ok()) << opened.status.ToString();
    }
  }
  Digest DigestOf(const std::string& name) {
    return trunk_.OnReactor([&] { return *trunk_.registry().DigestOfName(name); });
  }
  Result<Snapshot> Take(const SnapshotRequest& request,
                        const SessionTable& sessions = Everybody()) {
    return TakeSnapshot(&trunk_.reactor(), &trunk_.registry(), sessions, request);
  }

  TestTrunk trunk_;
  store::SessionId session_ = 0;
};

TEST_F(SnapshotTest, HasWhatIsResidentAndWhoHoldsIt) {
  trunk_.AddModel("a");
  trunk_.AddModel("b");
  trunk_.AddModel("cold");
  trunk_.StartThread();
  Lease("b", 2);
  Lease("a", 3);
  const Result<Snapshot> taken =
      Take({.names = {"a", "cold"}, .with_leases = true, .with_tiers = true});
  ASSERT_TRUE(taken.ok()) << taken.status().ToString();
  const Snapshot& snapshot = *taken;
  EXPECT_EQ(snapshot.tier_names, std::vector<std::string>{"host"});
  ASSERT_THAT(snapshot.replicas, SizeIs(2));
  EXPECT_TRUE(std::is_sorted(snapshot.replicas.begin(), snapshot.replicas.end(),
                             [](const auto& x, const auto& y) { return x.replica < y.replica; }));
  ASSERT_THAT(snapshot.leases, SizeIs(5));
  EXPECT_EQ(snapshot.lease_count, 5u);
  EXPECT_THAT(snapshot.sessions, SizeIs(5));
  for (size_t i = 1; i < snapshot.leases.size(); ++i)
    EXPECT_LT(snapshot.leases[i - 1].lease, snapshot.leases[i].lease);
  for (const store::LeaseView& lease : snapshot.leases) {
    EXPECT_FALSE(snapshot.ReplicasOf(lease.replica.model).empty());
    EXPECT_EQ(snapshot.sessions.at(lease.session).pid, 42);
  }
  ASSERT_NE(snapshot.DigestOf("a"), nullptr);
  EXPECT_EQ(*snapshot.DigestOf("a"), DigestOf("a"));
  EXPECT_EQ(snapshot.DigestOf("b"), nullptr) << "nobody has asked for it";
  EXPECT_EQ(snapshot.DigestOf("cold"), nullptr);
  const Snapshot::Model* const model = snapshot.Find(DigestOf("a"));
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->name, "a");
  EXPECT_TRUE(model->is_public);
  EXPECT_EQ(model->manifest->tensors.size(), 2u);
  ASSERT_THAT(snapshot.ReplicasOf(DigestOf("a")), SizeIs(1));
  EXPECT_EQ(snapshot.ReplicasOf(DigestOf("a"))[0].leases, 3u);
  EXPECT_TRUE(snapshot.ReplicasOf(Digest()).empty());
  EXPECT_EQ(snapshot.Find(Digest()), nullptr);
  ASSERT_THAT(snapshot.tiers, SizeIs(1));
  EXPECT_GT(snapshot.tiers[0].view.leased_bytes, 0u);
  EXPECT_EQ(snapshot.counters.opens, 5u);
}

TEST_F(SnapshotTest, LeavesOutWhatIsNotAskedFor) {
  trunk_.AddModel("a");
  trunk_.AddModel("b");
  trunk_.StartThread();
  Lease("a", 1);
  Lease("b", 2);
  const Digest a = DigestOf("a"), b = DigestOf("b");
  trunk_.OnReactor([&] { trunk_.registry().Pin(a, 0, true); });
  const Snapshot brief = Take({}).value();
  EXPECT_THAT(brief.replicas, SizeIs(2));
  EXPECT_TRUE(brief.Find(a)->is_pinned);
  EXPECT_FALSE(brief.Find(b)->is_pinned);
  EXPECT_THAT(brief.leases, SizeIs(0));
  EXPECT_THAT(brief.tiers, SizeIs(0));
  EXPECT_EQ(brief.lease_count, 3u);
  for (const SnapshotRequest& only :
       {SnapshotRequest{.names = {"b"}, .only_these = true, .with_leases = true},
        SnapshotRequest{.digests = {b}, .only_these = true, .with_leases = true}}) {
    const Snapshot some = Take(only).value();
    EXPECT_THAT(some.replicas, SizeIs(1));
    EXPECT_THAT(some.models, SizeIs(1));
    ASSERT_THAT(some.leases, SizeIs(2));
    EXPECT_EQ(some.leases[0].replica.model, b);
  }
}

TEST_F(SnapshotTest, AModelThatIsPinnedAndUnknownIsThereWithoutContents) {
  trunk_.StartThread();
  Digest digest;
  digest.bytes.fill(5);
  trunk_.OnReactor([&] { trunk_.registry().Pin(digest, 0, true); });
  const Snapshot snapshot = Take({}).value();
  ASSERT_NE(snapshot.Find(digest), nullptr);
  EXPECT_TRUE(snapshot.Find(digest)->is_pinned);
  EXPECT_EQ(snapshot.Find(digest)->manifest, nullptr);
  EXPECT_TRUE(snapshot.Find(digest)->name.empty());
  trunk_.OnReactor([&] { trunk_.registry().Pin(digest, 0, false); });
}

// Peers are looked up in passes: between two of them the reactor is everybody's again.
TEST_F(SnapshotTest, LooksPeersUpInPassesAndDoesWithoutThoseThatHaveEnded) {
  trunk_.AddModel("a");
  trunk_.StartThread();
  const size_t sessions = kSessionsPerPass + 10;
  Lease("a", 1);  // Loads it; the others are answered at once.
  trunk_.OnReactor([&] {
    for (size_t i = 1; i < sessions; ++i) {
      trunk_.registry().Open(
          trunk_.registry().NewOpenId(), TestTrunk::Named("a", ++session_),
          [](const OpenResult& result) { EXPECT_TRUE(result.status.ok()); }, nullptr);
    }
  });
  size_t asked = 0;
  std::set<size_t> passes;  // How many had been asked for when each pass began.
  size_t in_this_pass = 0;
  SessionTable table;
  table.count = [] { return size_t{0}; };
  table.find = [&](store::SessionId id) -> std::optional<SessionView> {
    if (in_this_pass++ == 0) {
      passes.insert(asked);
      trunk_.reactor().Post("test: a pass has ended", [&] { in_this_pass = 0; });
    }
    ++asked;
    if (id == 3) return std::nullopt;
    return SessionView{.id = id, .pid = 1};
  };
  const Snapshot snapshot = Take({.with_leases = true}, table).value();
  EXPECT_EQ(asked, sessions);
  EXPECT_EQ(passes, (std::set<size_t>{0, kSessionsPerPass}));
  EXPECT_EQ(snapshot.leases.size(), sessions);
  EXPECT_EQ(snapshot.sessions.size(), sessions - 1);
  EXPECT_FALSE(snapshot.sessions.contains(3));
}

TEST_F(SnapshotTest, IsUnavailableWhenTheReactorHasEnded) {
  trunk_.StartThread();
  trunk_.StopThread();
  EXPECT_EQ(Take({}).status().code(), StatusCode::kUnavailable);
}

// --- Calls into the reactor --------------------------------------------------------

TEST(CallOnReactorTest, ReturnsWhatTheWorkReturnedAndRunsItOnTheLoopsThread) {
  const std::unique_ptr<Reactor> reactor = Reactor::Create().value();
  std::thread loop([&] { reactor->Run(); });
  std::thread::id ran_on;
  const Status status = CallOnReactor(reactor.get(), "test", [&] {
    ran_on = std::this_thread::get_id();
    return NotFoundError("as it was");
  });
  EXPECT_EQ(status, NotFoundError("as it was"));
  EXPECT_EQ(ran_on, loop.get_id());
  reactor->Post("test ends", [&] { reactor->Stop(); });
  loop.join();
  bool has_run = false;
  EXPECT_EQ(CallOnReactor(reactor.get(), "test", [&] { return has_run = true, OkStatus(); }).code(),
            StatusCode::kUnavailable);
  EXPECT_FALSE(has_run);
}

TEST(CallOnReactorTest, AnswersThoseWhoWaitWhenTheLoopEndsBeforeTheirTurn) {
  const std::unique_ptr<Reactor> reactor = Reactor::Create().value();
  bool has_run = false;
  std::atomic<bool> is_asking{false};
  std::thread other([&] {
    is_asking = true;
    EXPECT_EQ(
        CallOnReactor(reactor.get(), "test", [&] { return has_run = true, OkStatus(); }).code(),
        StatusCode::kUnavailable);
  });
  while (!is_asking) std::this_thread::yield();
  // Whether it has been posted by now or not, the loop ends without having run it.
  reactor->Stop();
  reactor->Run();
  other.join();
  EXPECT_FALSE(has_run);
}

}  // namespace
}  // namespace trims

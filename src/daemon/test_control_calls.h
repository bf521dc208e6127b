// The real control calls over the trunk of a worker with fake tiers, for tests. Header only,
// never part of the product.
//
// Thread rule: the test's thread, but for `calls`, which are ControlBackend's.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/control_calls.h"
#include "daemon/test_control_world.h"
#include "daemon/test_trunk.h"

namespace trims {

class TestControlCalls final : public ControlWorld {
 public:
  TestControlCalls() : TestControlCalls(OneGpu()) {}
  explicit TestControlCalls(TestTrunk::Options options) : trunk_(std::move(options)) {
    WorkerStart start;
    start.keeper_pid = 4000;
    start.started_at_unix = 1'700'000'000;
    start.worker_number = 3;
    start.config.config = trunk_.config();
    start.config.entries.push_back(
        {.key = "eviction_policy", .value = "lru", .origin = "default", .help = "Who goes."});
    calls_ =
        std::make_unique<ControlCalls>(&trunk_.reactor(), &trunk_.registry(), Sessions(), start);
    trunk_.StartThread();
  }
  ~TestControlCalls() override { trunk_.StopThread(); }

  static TestTrunk::Options OneGpu() {
    TestTrunk::Options options;
    options.devices = {"GPU-0"};
    options.config.persist_cpu = true;
    return options;
  }

  TestTrunk& trunk() { return trunk_; }
  ControlCalls& calls() { return *calls_; }

  // Of a session of its own, in a process of this id. Returns the lease.
  store::LeaseId LeaseBy(int32_t pid, OpenRequest request) {
    request.session = ++last_session_;
    trunk_.OnReactor([&] {
      peers_[last_session_] = {.id = last_session_, .uid = request.uid, .gid = 100, .pid = pid};
    });
    const OpenResult opened = trunk_.Open(std::move(request));
    EXPECT_TRUE(opened.status.ok()) << opened.status.ToString();
    return opened.lease;
  }
  void EndSession(store::SessionId session) {
    trunk_.OnReactor([&] {
      peers_.erase(session);
      trunk_.registry().EndSession(session);
    });
  }

  // --- ControlWorld ---

  ControlBackend& backend() override { return *calls_; }
  void AddModel(const std::string& name) override { trunk_.AddModel(name); }
  std::string MakeFile() override {
    ++files_;
    return trunk_.WriteModel("file" + std::to_string(files_), TestTrunk::SmallModel(900 + files_));
  }
  void Lease(const std::string& name) override {
    OpenRequest request = TestTrunk::Named(name);
    request.granularity = store::Granularity::kModel;
    LeaseBy(::getpid(), std::move(request));
  }
  void Damage(const std::string& name) override {
    const auto keys = trunk_.OnReactor([&] {
      std::vector<Digest> found;
      const auto digest = trunk_.registry().DigestOfName(name);
      for (const store::ReplicaView& view : trunk_.registry().store().Replicas()) {
        if (view.replica.model != digest) continue;
        for (const store::Extent& extent : view.extents) found.push_back(extent.key);
      }
      return found;
    });
    EXPECT_FALSE(keys.empty());
    for (const Digest& key : keys) trunk_.host().Damage(key);
  }
  void HoldLoads(bool is_held) override {
    is_held ? trunk_.host().Hold() : trunk_.host().Release();
  }
  void TakeAllRoom() override { trunk_.host().SetMachineBytes(1); }
  void Happen(const std::string& name) override {
    trunk_.OnReactor(
        [&] { trunk_.registry().Pin(*trunk_.registry().DigestOfName(name), 0, true); });
  }

 private:
  SessionTable Sessions() {
    return {[this] { return peers_.size(); },
            [this](store::SessionId id) {
              const auto it = peers_.find(id);
              return it == peers_.end() ? std::optional<SessionView>() : it->second;
            }};
  }

  TestTrunk trunk_;
  std::map<store::SessionId, SessionView> peers_;  // The reactor's thread only.
  store::SessionId last_session_ = 0;
  uint64_t files_ = 0;
  std::unique_ptr<ControlCalls> calls_;
};

// With short ways to make each call.
class ControlCallsFixture : public ::testing::Test {
 protected:
  TestControlCalls& world() { return world_; }
  TestTrunk& trunk() { return world_.trunk(); }
  ControlBackend& calls() { return world_.calls(); }

  static ControlBackend::Cancelled Never() {
    return [] { return false; };
  }
  Status Load(const v1::LoadRequest& request, v1::LoadProgress* last = nullptr) {
    return calls().Load(
        request,
        [&](const v1::LoadProgress& progress) {
          if (last != nullptr) *last = progress;
          return true;
        },
        Never());
  }
  Status Load(const std::string& model, v1::LoadProgress* last = nullptr) {
    v1::LoadRequest request;
    request.set_model(model);
    return Load(request, last);
  }
  Status Unpin(const std::string& model, v1::UnpinResponse* response) {
    v1::UnpinRequest request;
    request.set_model(model);
    return calls().Unpin(request, response, Never());
  }
  Status Verify(const std::string& model, std::vector<v1::VerifyVerdict>* verdicts) {
    v1::VerifyRequest request;
    request.set_model(model);
    return calls().Verify(
        request,
        [&](const v1::VerifyProgress& progress) {
          if (progress.has_verdict()) verdicts->push_back(progress.verdict());
          return true;
        },
        Never());
  }
  Status Remove(const std::string& name, bool force = false) {
    v1::RemoveRequest request;
    request.set_name(name);
    request.set_force(force);
    v1::RemoveResponse response;
    return calls().Remove(request, &response);
  }
  v1::ListResponse List() {
    v1::ListResponse response;
    const Status status = calls().List(v1::ListRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return response;
  }
  v1::InfoResponse Info(const std::string& model) {
    v1::InfoRequest request;
    request.set_model(model);
    v1::InfoResponse response;
    const Status status = calls().Info(request, &response);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return response;
  }
  size_t Replicas() {
    return trunk().OnReactor([&] { return trunk().registry().store().Replicas().size(); });
  }
  // The catalogue can not be written any more: its temporary file is a directory.
  void BreakCatalogue() {
    const std::string path = trunk().config().state_dir + "/catalogue.json.tmp";
    ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
    ASSERT_EQ(::mkdir((path + "/full").c_str(), 0700), 0);
  }

 private:
  TestControlCalls world_;
};

}  // namespace trims

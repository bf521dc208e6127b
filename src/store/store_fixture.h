// What the store's tests share: short ways to build events and to read actions.
// Every event that goes through Step is followed by CheckInvariants.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "store/store.h"

namespace trims::store {

inline Digest NumberedDigest(uint64_t number) {
  Digest digest;
  uint64_t z = number;
  for (size_t i = 0; i < digest.bytes.size(); i += 8) {
    z += 0x9e3779b97f4a7c15;
    uint64_t mixed = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    mixed ^= mixed >> 27;
    std::memcpy(&digest.bytes[i], &mixed, 8);
  }
  return digest;
}

template <typename T>
std::vector<T> All(const std::vector<Action>& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  }
  return found;
}

template <typename T>
bool Has(const std::vector<Action>& actions) {
  return !All<T>(actions).empty();
}

inline std::vector<Notify> Notices(const std::vector<Action>& actions, Notify::Kind kind) {
  std::vector<Notify> found;
  for (const Notify& notify : All<Notify>(actions)) {
    if (notify.kind == kind) found.push_back(notify);
  }
  return found;
}

class StoreFixture : public ::testing::Test {
 protected:
  using seconds = std::chrono::seconds;
  using milliseconds = std::chrono::milliseconds;

  static Config OneTier(uint64_t budget) {
    Config config;
    config.tiers = {{.name = "host", .budget_bytes = budget}};
    return config;
  }

  void Start(Config config) { store_ = std::make_unique<Store>(std::move(config)); }
  Store& store() { return *store_; }

  std::vector<Action> Step(const Event& event) {
    std::vector<Action> actions = store_->Apply(event, now_);
    store_->CheckInvariants();
    return actions;
  }
  void Pass(Duration duration) { now_ += duration; }
  Time now() const { return now_; }

  // A model of one extent of its own.
  static ModelPlan Plan(uint64_t model, uint64_t bytes) {
    return PlanOf(model, {{.key = NumberedDigest(1000 + model), .bytes = bytes}});
  }
  static ModelPlan PlanOf(uint64_t model, std::vector<Extent> extents) {
    ModelPlan plan;
    plan.model = NumberedDigest(model);
    plan.name = "m" + std::to_string(model);
    plan.extents = std::move(extents);
    for (const Extent& extent : plan.extents) plan.weight_bytes += extent.bytes;
    return plan;
  }
  static Extent Piece(uint64_t number, uint64_t bytes) {
    return {.key = NumberedDigest(5000 + number), .bytes = bytes};
  }
  static ReplicaKey KeyOf(uint64_t model, TierIndex tier = 0) {
    return {.model = NumberedDigest(model), .tier = tier, .granularity = Granularity::kModel};
  }

  OpenAsked Asks(const ModelPlan& plan, SessionId session = 1, uint32_t uid = 1000) {
    OpenAsked event;
    event.open = next_open_++;
    event.session = session;
    event.uid = uid;
    event.plan = plan;
    return event;
  }
  std::vector<Action> Open(const ModelPlan& plan, SessionId session = 1, uint32_t uid = 1000) {
    return Step(Asks(plan, session, uid));
  }
  LoadAsked Prefetches(const ModelPlan& plan) {
    LoadAsked event;
    event.open = next_open_++;
    event.plan = plan;
    return event;
  }
  OpenId NextOpen() { return next_open_++; }

  static LoadId StartedLoad(const std::vector<Action>& actions) {
    const auto loads = All<StartLoad>(actions);
    EXPECT_EQ(loads.size(), 1u);
    return loads.empty() ? 0 : loads[0].load;
  }
  static LeaseId LeaseOf(const std::vector<Action>& actions) {
    const auto replies = All<ReplyLease>(actions);
    EXPECT_EQ(replies.size(), 1u);
    return replies.empty() ? 0 : replies[0].lease;
  }
  static Status ErrorOf(const std::vector<Action>& actions) {
    const auto replies = All<ReplyError>(actions);
    EXPECT_EQ(replies.size(), 1u);
    return replies.empty() ? OkStatus() : replies[0].status;
  }
  static std::vector<Digest> Released(const std::vector<Action>& actions) {
    std::vector<Digest> keys;
    for (const ReleaseExtents& release : All<ReleaseExtents>(actions)) {
      keys.insert(keys.end(), release.extents.begin(), release.extents.end());
    }
    return keys;
  }
  // The numbers of the models that were evicted, in order.
  static std::vector<uint64_t> Evicted(const std::vector<Action>& actions) {
    std::vector<uint64_t> models;
    for (const Notify& notify : Notices(actions, Notify::Kind::kEvicted)) {
      for (uint64_t model = 0; model < 1000; ++model) {
        if (NumberedDigest(model) == notify.replica.model) models.push_back(model);
      }
    }
    return models;
  }

  // Opens, loads what is missing, and returns the lease.
  LeaseId Load(const ModelPlan& plan, SessionId session = 1, uint32_t uid = 1000) {
    const auto actions = Open(plan, session, uid);
    if (Has<ReplyLease>(actions)) return LeaseOf(actions);
    return LeaseOf(Step(LoadFinished{.load = StartedLoad(actions)}));
  }
  std::vector<Action> Close(LeaseId lease, SessionId session = 1, uint64_t peak = 0) {
    return Step(LeaseClosed{.session = session, .lease = lease, .peak_internal_bytes = peak});
  }
  // Resident, and leased by nobody.
  void Put(const ModelPlan& plan) { Close(Load(plan)); }

  uint64_t Used(TierIndex tier = 0) { return store().Tiers()[tier].used_bytes; }
  ReplicaState StateOf(uint64_t model, TierIndex tier = 0) {
    const auto view = store().Find(KeyOf(model, tier));
    return view.has_value() ? view->state : ReplicaState::kAbsent;
  }

 private:
  std::unique_ptr<Store> store_;
  Time now_{seconds(1000)};
  OpenId next_open_ = 1;
};

// One tier of 100 bytes.
class StoreTest : public StoreFixture {
 protected:
  StoreTest() { Start(OneTier(100)); }
};

}  // namespace trims::store

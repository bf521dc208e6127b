// What the store costs on the path of an open: one open of a resident model and its
// close, among many replicas and leases, and making room among many candidates.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "store/store.h"

namespace trims::store {
namespace {

constexpr uint64_t kBytes = 1 << 20;

Digest NumberedDigest(uint64_t number) {
  Digest digest;
  const uint64_t mixed = number * 0x9e3779b97f4a7c15;
  std::memcpy(digest.bytes.data(), &mixed, sizeof mixed);
  return digest;
}

ModelPlan Plan(uint64_t model, uint64_t extents) {
  ModelPlan plan;
  plan.model = NumberedDigest(model);
  plan.name = "model-" + std::to_string(model);
  for (uint64_t i = 0; i < extents; ++i) {
    plan.extents.push_back({.key = NumberedDigest((model << 20) + i + 1), .bytes = kBytes});
  }
  return plan;
}

class World {
 public:
  explicit World(uint64_t budget, PolicyKind policy = PolicyKind::kLru)
      : store_(With(budget, policy)) {}

  std::vector<Action> Apply(const Event& event) {
    now_ += std::chrono::microseconds(1);
    return store_.Apply(event, now_);
  }
  OpenAsked Asks(uint64_t model, uint64_t extents, SessionId session) {
    OpenAsked event;
    event.open = ++open_;
    event.session = session;
    event.uid = static_cast<uint32_t>(session);
    event.plan = Plan(model, extents);
    return event;
  }
  LeaseId Open(const Event& event) {
    std::vector<Action> actions = Apply(event);
    for (size_t i = 0; i < actions.size(); ++i) {
      if (const auto* start = std::get_if<StartLoad>(&actions[i])) {
        actions = Apply(LoadFinished{.load = start->load});
        i = 0;
      }
    }
    for (const Action& action : actions) {
      if (const auto* reply = std::get_if<ReplyLease>(&action)) return reply->lease;
    }
    return 0;
  }
  OpenId NextOpen() { return ++open_; }
  const Store& store() const { return store_; }

 private:
  static Config With(uint64_t budget, PolicyKind policy) {
    Config config;
    config.tiers = {{.name = "host", .budget_bytes = budget}};
    config.policy = policy;
    config.keep_alive = std::chrono::minutes(5);
    return config;
  }
  Store store_;
  Time now_{};
  OpenId open_ = 0;
};

// Arguments: resident models, leases already out, extents of a model.
void OpenAndClose(benchmark::State& state) {
  const auto models = static_cast<uint64_t>(state.range(0));
  const auto leases = static_cast<uint64_t>(state.range(1));
  const auto extents = static_cast<uint64_t>(state.range(2));
  World world(models * extents * kBytes);
  for (uint64_t model = 0; model < models; ++model) {
    const LeaseId lease = world.Open(world.Asks(model, extents, 1));
    world.Apply(LeaseClosed{.session = 1, .lease = lease});
  }
  for (uint64_t i = 0; i < leases; ++i) world.Open(world.Asks(i % models, extents, 2 + i % 64));
  uint64_t model = 0;
  SessionId session = 100;
  for (auto _ : state) {
    model = (model + 7919) % models;
    session = 100 + (session + 1) % 64;
    const LeaseId lease = world.Open(OpenResidentAsked{.open = world.NextOpen(),
                                                       .session = session,
                                                       .uid = static_cast<uint32_t>(session),
                                                       .model = NumberedDigest(model)});
    benchmark::DoNotOptimize(world.Apply(LeaseClosed{.session = session, .lease = lease}));
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(OpenAndClose)
    ->ArgNames({"models", "leases", "extents"})
    ->Args({1, 0, 1})
    ->Args({100, 0, 1})
    ->Args({10'000, 0, 1})
    ->Args({100, 10'000, 1})
    ->Args({10'000, 50'000, 1})
    ->Args({10, 100, 5'000});

// The same through OpenAsked, which carries the plan; building it is not counted.
void OpenByPlanAndClose(benchmark::State& state) {
  const auto extents = static_cast<uint64_t>(state.range(0));
  World world(extents * kBytes);
  OpenAsked event = world.Asks(1, extents, 1);
  world.Apply(LeaseClosed{.session = 1, .lease = world.Open(event)});
  Event asked = event;
  for (auto _ : state) {
    std::get<OpenAsked>(asked).open = world.NextOpen();
    const LeaseId lease = world.Open(asked);
    benchmark::DoNotOptimize(world.Apply(LeaseClosed{.session = 1, .lease = lease}));
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(OpenByPlanAndClose)->ArgName("extents")->Arg(1)->Arg(5'000);

// Every open is a miss that evicts one of the resident models.
void MakeRoom(benchmark::State& state) {
  const auto models = static_cast<uint64_t>(state.range(0));
  World world(models * kBytes, static_cast<PolicyKind>(state.range(1)));
  uint64_t model = 0;
  const auto cycle = [&] {
    const LeaseId lease = world.Open(world.Asks(++model, 1, 1));
    world.Apply(LeaseClosed{.session = 1, .lease = lease});
  };
  for (uint64_t i = 0; i < models; ++i) cycle();
  for (auto _ : state) cycle();
  state.SetLabel(std::string(PolicyName(static_cast<PolicyKind>(state.range(1)))));
}
BENCHMARK(MakeRoom)
    ->ArgNames({"models", "policy"})
    ->Args({10, static_cast<int>(PolicyKind::kLru)})
    ->Args({1'000, static_cast<int>(PolicyKind::kLru)})
    ->Args({1'000, static_cast<int>(PolicyKind::kGdsf)});

// A session dies with all its leases.
void EndSession(benchmark::State& state) {
  const auto leases = static_cast<uint64_t>(state.range(0));
  World world(100 * kBytes);
  for (auto _ : state) {
    state.PauseTiming();
    for (uint64_t i = 0; i < leases; ++i) world.Open(world.Asks(i % 100, 1, 1));
    state.ResumeTiming();
    benchmark::DoNotOptimize(world.Apply(SessionEnded{.session = 1}));
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(leases));
}
BENCHMARK(EndSession)->ArgName("leases")->Arg(1)->Arg(1'000);

// What a snapshot asks of the store: every replica, every lease and, by the last argument,
// what each tier adds up to. Models share every other extent with the one before.
void LookAtEverything(benchmark::State& state) {
  const auto models = static_cast<uint64_t>(state.range(0));
  const auto leases = static_cast<uint64_t>(state.range(1));
  const auto extents = static_cast<uint64_t>(state.range(2));
  World world(models * extents * kBytes);
  for (uint64_t i = 0; i < leases; ++i) {
    const uint64_t model = i % models;
    OpenAsked event = world.Asks(model, extents, 1 + i);
    for (uint64_t at = 1; at < extents; at += 2)
      event.plan.extents[at].key = NumberedDigest((model / 2 << 20) + at + (uint64_t{1} << 60));
    world.Open(event);
  }
  for (auto _ : state) {
    std::vector<ReplicaSummary> replicas;
    std::vector<LeaseView> held;
    held.reserve(world.store().lease_count());
    world.store().ForEachReplica([&](const ReplicaSummary& one) { replicas.push_back(one); });
    world.store().ForEachLease([&](const LeaseView& one) { held.push_back(one); });
    benchmark::DoNotOptimize(replicas.data());
    benchmark::DoNotOptimize(held.data());
    if (state.range(3) != 0) benchmark::DoNotOptimize(world.store().Tiers());
  }
}
BENCHMARK(LookAtEverything)
    ->ArgNames({"models", "leases", "extents", "tiers"})
    ->Args({2'000, 60'000, 1, 0})
    ->Args({2'000, 60'000, 1, 1})
    ->Args({2'000, 60'000, 200, 0})
    ->Args({2'000, 60'000, 200, 1})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace trims::store

BENCHMARK_MAIN();

// How long a snapshot holds the reactor: with residents and leases beyond what a node is
// made for, and with models of several extents that share half of them (store_benchmark has
// hundreds).
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <memory>
#include <string>

#include "daemon/snapshot.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

constexpr int kModels = 2000;
constexpr int kLeases = 60'000;

// Made once: loading so many models takes a while.
class Node {
 public:
  explicit Node(bool has_layers) : trunk_(Large()) {
    trunk_.host().SetSynthetic(true);
    for (int i = 0; i < kModels; ++i) {
      const std::string name = "model" + std::to_string(i);
      trunk_.AddModel(name, has_layers ? Layers(i) : TestTrunk::SmallModel(i * 2, 64));
      OpenRequest request = TestTrunk::Named(name, ++session_);
      request.granularity = has_layers ? store::Granularity::kLayer : store::Granularity::kModel;
      TRIMS_CHECK(trunk_.Open(std::move(request)).status.ok());
      request_.names.push_back(name);
    }
    for (int i = kModels; i < kLeases; ++i) {
      OpenRequest request = TestTrunk::Named("model" + std::to_string(i % kModels), ++session_);
      request.granularity = has_layers ? store::Granularity::kLayer : store::Granularity::kModel;
      trunk_.registry().Open(
          trunk_.registry().NewOpenId(), std::move(request),
          [](const OpenResult& result) { TRIMS_CHECK(result.status.ok()); }, nullptr);
    }
    // Names whose files can not be watched are looked at before they are answered.
    TRIMS_CHECK(trunk_.RunUntil(
        [this] { return trunk_.registry().store().lease_count() == size_t{kLeases}; }));
  }

  TestTrunk& trunk() { return trunk_; }
  const SnapshotRequest& request() const { return request_; }

 private:
  static TestTrunk::Options Large() {
    TestTrunk::Options options;
    options.host_bytes = 64 * kGiB;
    return options;
  }
  // Four tensors, as many as descriptors allow, of which every other is that of the model before.
  static std::vector<format::TestTensor> Layers(int model) {
    std::vector<format::TestTensor> tensors;
    for (int i = 0; i < 4; ++i) {
      const int seed = i % 2 == 0 ? 1'000'000 + i + (model / 2) * 100 : model * 100 + i;
      tensors.push_back(NoiseTensor("t" + std::to_string(i), 16, static_cast<uint64_t>(seed)));
    }
    return tensors;
  }

  TestTrunk trunk_;
  store::SessionId session_ = 0;
  SnapshotRequest request_;
};

// One at a time: each has tens of thousands of descriptors.
Node& NodeOf(bool has_layers) {
  static std::unique_ptr<Node> node;
  static bool node_has_layers = false;
  if (node == nullptr || node_has_layers != has_layers) {
    node.reset();
    rlimit descriptors{};
    TRIMS_CHECK(::getrlimit(RLIMIT_NOFILE, &descriptors) == 0);
    descriptors.rlim_cur = descriptors.rlim_max;
    TRIMS_CHECK(::setrlimit(RLIMIT_NOFILE, &descriptors) == 0);
    node = std::make_unique<Node>(has_layers);
    node_has_layers = has_layers;
  }
  return *node;
}

SessionTable Nobody() {
  return {[] { return size_t{kLeases}; },
          [](store::SessionId id) { return std::optional<SessionView>({.id = id}); }};
}

// The pass alone: what the reactor is held for.
void BM_SnapshotPass(benchmark::State& state) {
  Node& node = NodeOf(state.range(0) != 0);
  SnapshotRequest request = node.request();
  request.with_leases = state.range(1) != 0;
  const SessionTable sessions = Nobody();
  for (auto _ : state) {
    state.PauseTiming();  // As TakeSnapshot.
    {
      Snapshot snapshot;
      snapshot.leases.resize(kLeases);
      snapshot.leases.clear();
      state.ResumeTiming();
      LookAt(node.trunk().registry(), sessions, request, &snapshot);
      benchmark::DoNotOptimize(snapshot.replicas.data());
      state.PauseTiming();  // Freeing it is not the reactor's either.
    }
    state.ResumeTiming();
  }
}
BENCHMARK(BM_SnapshotPass)
    ->ArgNames({"layers", "leases"})
    ->Args({0, 0})
    ->Args({0, 1})
    ->Args({1, 1})
    ->Unit(benchmark::kMillisecond);

// The other one.
void BM_SnapshotTiers(benchmark::State& state) {
  Node& node = NodeOf(state.range(0) != 0);
  for (auto _ : state) {
    Snapshot snapshot;
    LookAtTiers(node.trunk().registry(), &snapshot);
    benchmark::DoNotOptimize(snapshot.tiers.data());
  }
}
BENCHMARK(BM_SnapshotTiers)->ArgName("layers")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

// Order: on the caller's thread.
void BM_SnapshotSort(benchmark::State& state) {
  Node& node = NodeOf(false);
  SnapshotRequest request = node.request();
  request.with_leases = true;
  const SessionTable sessions = Nobody();
  for (auto _ : state) {
    state.PauseTiming();
    Snapshot snapshot;
    LookAt(node.trunk().registry(), sessions, request, &snapshot);
    state.ResumeTiming();
    snapshot.Sort();
  }
}
BENCHMARK(BM_SnapshotSort)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace trims

BENCHMARK_MAIN();

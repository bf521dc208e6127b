// What using weights in place costs, against private packed copies: VGG-16 of true
// size with random weights. `private_MiB` is what a process has beside the weights.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <map>

#include "predict/test_network.h"

namespace trims::predict {
namespace {

struct Vgg16 {
  std::shared_ptr<const Graph> graph;
  std::shared_ptr<MemoryWeights> weights;
};

const Vgg16& Network() {
  static const Vgg16* const network = [] {
    SymbolWriter writer;
    auto weights = std::make_shared<MemoryWeights>();
    std::mt19937 random(1);
    const auto add = [&](const std::string& name, const Shape& shape, float size) {
      weights->Set("arg:" + name, shape,
                   RandomFloats(random, static_cast<size_t>(ElementCount(shape)), -size, size));
    };
    const auto relu = [&](const std::string& name) {
      writer.Op("Activation", name + "_relu", {name}, {{"act_type", "relu"}});
      return name + "_relu";
    };
    std::string last = "data";
    int64_t channels = 3;
    const int64_t filters[] = {64, 128, 256, 512, 512};
    const int layers[] = {2, 2, 3, 3, 3};
    for (int block = 0; block < 5; ++block) {
      for (int layer = 0; layer < layers[block]; ++layer) {
        const std::string name =
            "conv" + std::to_string(block + 1) + "_" + std::to_string(layer + 1);
        writer.Op("Convolution", name, {last, name + "_weight", name + "_bias"},
                  {{"kernel", "(3, 3)"},
                   {"pad", "(1, 1)"},
                   {"num_filter", std::to_string(filters[block])}});
        add(name + "_weight", {filters[block], channels, 3, 3}, 0.05f);
        add(name + "_bias", {filters[block]}, 0.1f);
        channels = filters[block];
        last = relu(name);
      }
      const std::string pool = "pool" + std::to_string(block + 1);
      writer.Op("Pooling", pool, {last},
                {{"kernel", "(2, 2)"}, {"stride", "(2, 2)"}, {"pool_type", "max"}});
      last = pool;
    }
    int64_t inputs = 512 * 7 * 7;
    for (const auto& [name, hidden] :
         {std::pair<std::string, int64_t>{"fc6", 4096}, {"fc7", 4096}, {"fc8", 1000}}) {
      writer.Op("FullyConnected", name, {last, name + "_weight", name + "_bias"},
                {{"num_hidden", std::to_string(hidden)}});
      add(name + "_weight", {hidden, inputs}, 0.01f);
      add(name + "_bias", {hidden}, 0.1f);
      inputs = hidden;
      last = name == "fc8" ? name : relu(name);
    }
    writer.Op("SoftmaxOutput", "prob", {last, "prob_label"});
    return new Vgg16{Graph::FromJson(writer.Json()).value(), weights};
  }();
  return *network;
}

std::unique_ptr<Predictor> Build(bool pack) {
  const Vgg16& network = Network();
  return Predictor::Create(network.graph, network.weights, {{"data", {1, 3, 224, 224}}},
                           {.pack_weights = pack})
      .value();
}

const std::vector<float>& Image() {
  static const auto* const image = [] {
    std::mt19937 random(2);
    return new std::vector<float>(RandomFloats(random, 3 * 224 * 224, -128, 128));
  }();
  return *image;
}

void BM_Forward(benchmark::State& state) {
  const auto predictor = Build(state.range(0) != 0);
  TRIMS_CHECK(predictor->SetInput("data", Image()).ok());
  TRIMS_CHECK(predictor->Forward().ok());
  for (auto _ : state) TRIMS_CHECK(predictor->Forward().ok());
  state.counters["private_MiB"] =
      static_cast<double>(predictor->private_bytes()) / (1024.0 * 1024.0);
}
BENCHMARK(BM_Forward)
    ->ArgName("packed")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

// From weights and graph to the first output: what a short-lived process waits for.
void BM_BindAndFirstForward(benchmark::State& state) {
  Network();
  for (auto _ : state) {
    const auto predictor = Build(state.range(0) != 0);
    TRIMS_CHECK(predictor->SetInput("data", Image()).ok());
    TRIMS_CHECK(predictor->Forward().ok());
  }
}
BENCHMARK(BM_BindAndFirstForward)
    ->ArgName("packed")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void BM_Bind(benchmark::State& state) {
  Network();
  for (auto _ : state) benchmark::DoNotOptimize(Build(state.range(0) != 0));
}
BENCHMARK(BM_Bind)->ArgName("packed")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace trims::predict

BENCHMARK_MAIN();

// The keyed universal hash on this processor, beside XXH3 (what host memory is checked
// with) and a plain copy in the same run: one buffer that fits a cache, one that does not.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/universal_hash.h"

namespace trims {
namespace {

const std::vector<std::byte>& Noise() {
  static const std::vector<std::byte> noise = [] {
    std::vector<std::byte> bytes(size_t{256} << 20);
    std::mt19937_64 random(1);
    for (size_t i = 0; i < bytes.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&bytes[i], &word, 8);
    }
    return bytes;
  }();
  return noise;
}

std::span<const std::byte> Input(const benchmark::State& state) {
  return std::span(Noise()).first(static_cast<size_t>(state.range(0)));
}

void Done(benchmark::State& state) { state.SetBytesProcessed(state.iterations() * state.range(0)); }

void UniversalHash(benchmark::State& state, UniversalHashImplementation implementation) {
  if (!UniversalHashSupports(implementation)) {
    state.SkipWithError("this processor has no such instructions");
    return;
  }
  const UniversalHashKey key = UniversalHashKey::FromSeed({1, 2, 3});
  const std::span<const std::byte> input = Input(state);
  for (auto _ : state) benchmark::DoNotOptimize(HashBytesWith(implementation, key, input));
  Done(state);
}
BENCHMARK_CAPTURE(UniversalHash, portable, UniversalHashImplementation::kPortable)
    ->Arg(256 << 10)
    ->Arg(256 << 20);
BENCHMARK_CAPTURE(UniversalHash, avx2, UniversalHashImplementation::kAvx2)
    ->Arg(4 << 10)
    ->Arg(256 << 10)
    ->Arg(256 << 20);

void Xxh3(benchmark::State& state) {
  const std::span<const std::byte> input = Input(state);
  for (auto _ : state) benchmark::DoNotOptimize(ChecksumOf(input, 1));
  Done(state);
}
BENCHMARK(Xxh3)->Arg(256 << 10)->Arg(256 << 20);

void Memcpy(benchmark::State& state) {
  const std::span<const std::byte> input = Input(state);
  std::vector<std::byte> copy(input.size());
  for (auto _ : state) {
    std::memcpy(copy.data(), input.data(), input.size());
    benchmark::ClobberMemory();
  }
  Done(state);
}
BENCHMARK(Memcpy)->Arg(256 << 10)->Arg(256 << 20);

}  // namespace
}  // namespace trims

BENCHMARK_MAIN();

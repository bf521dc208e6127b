// How fast a model comes to a device from each place it may be in, beside what the
// machine can do at all in the same run: one copy of pinned memory, one read of the file past
// the page cache, one copy between devices. TRIMS_BENCHMARK_MIB sets the model's size.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "tier/device_tier.h"
#include "tier/host_pins.h"
#include "tier/model_benchmark.h"

namespace trims {
namespace {

using Extents = std::vector<std::shared_ptr<const ResidentExtent>>;

// What all benchmarks share, made once.
struct World {
  World()
      : devices(OrDie(OrDie(cuda::Driver::Load())->Devices())),
        context(OrDie(cuda::Context::Retain(devices[0]))),
        model(Tensors()),
        key(std::make_shared<const UniversalHashKey>(OrDie(UniversalHashKey::Generate()))) {
    if (devices[0].supports_read_only_registration()) pins = OrDie(HostPins::Make(devices[0]));
    for (const cuda::Device& device : devices) {
      tiers.push_back(OrDie(MakeDeviceTier({.device = device, .key = key, .pins = pins.get()})));
      if (const Status status = WaitUntilPrepared(*tiers.back()); !status.ok()) {
        Die(status.ToString());
      }
      if (tiers.size() == 2) break;
    }
    host = Shared(OrDie(MakeHostTier({})->Load(model.Job(), control)));
  }

  static uint64_t Tensors() {
    const char* const mebibytes = std::getenv("TRIMS_BENCHMARK_MIB");
    const uint64_t bytes =
        (mebibytes != nullptr ? std::strtoull(mebibytes, nullptr, 10) : 512) * kMiB;
    return std::max<uint64_t>(1, bytes / BenchmarkModel::kTensorBytes);
  }
  static Extents Shared(std::vector<ResidentExtent> extents) {
    Extents shared;
    for (ResidentExtent& extent : extents) {
      shared.push_back(std::make_shared<const ResidentExtent>(std::move(extent)));
    }
    return shared;
  }
  static World& Get() {
    static World world;
    return world;
  }

  std::vector<cuda::Device> devices;
  cuda::Context context;
  BenchmarkModel model;
  std::shared_ptr<const UniversalHashKey> key;
  std::unique_ptr<HostPins> pins;
  std::vector<std::unique_ptr<Tier>> tiers;
  Extents host;
  LoadControl control;
};

void SetRate(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(World::Get().model.bytes()) * state.iterations());
}

// The driver clears memory that was given back with the copy engine, 2.4 ms for each GiB
// (measured on an H200), and copies of that time are slower: they measure something else.
void WaitUntilCleared(uint64_t bytes) {
  // tidy: allow sleep, because the driver does not tell when it is done.
  std::this_thread::sleep_for(std::chrono::milliseconds(20 + 10 * bytes / kGiB));
}

// Loads once an iteration; giving back what was loaded is not measured.
void LoadAgain(benchmark::State& state, Tier& tier, const LoadJob& job) {
  LoadControl control;
  for (auto _ : state) {
    Result<std::vector<ResidentExtent>> resident = tier.Load(job, control);
    if (!resident.ok()) {
      state.SkipWithError(resident.status().ToString().c_str());
      return;
    }
    state.PauseTiming();
    resident->clear();
    WaitUntilCleared(World::Get().model.bytes());
    state.ResumeTiming();
  }
  SetRate(state);
}

void DropFromPageCache(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  static_cast<void>(::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED));
}

void FloorPinnedCopy(benchmark::State& state) {
  World& world = World::Get();
  const uint64_t bytes = world.model.bytes();
  const cuda::PinnedBuffer from = OrDie(cuda::PinnedBuffer::Allocate(world.context, bytes));
  const cuda::DeviceBuffer to = OrDie(cuda::DeviceBuffer::Allocate(world.context, bytes));
  const cuda::Stream stream = OrDie(cuda::Stream::Create(world.context));
  for (auto _ : state) {
    Status status = stream.CopyToDevice(to.pointer(), from.data(), bytes);
    if (status.ok()) status = stream.Synchronize();
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  SetRate(state);
}
BENCHMARK(FloorPinnedCopy)->UseRealTime()->Unit(benchmark::kMillisecond);

void LoadFromPinnedHostMemory(benchmark::State& state) {
  World& world = World::Get();
  for (const auto& extent : world.host) world.tiers[0]->HostExtentReady(extent);
  if (world.pins == nullptr || (world.pins->WaitUntilIdle(), !world.pins->status().ok())) {
    state.SkipWithError("read-only memory can not be pinned here");
    return;
  }
  LoadJob job = world.model.Job();
  job.host = world.host;
  LoadAgain(state, *world.tiers[0], job);
  for (const auto& extent : world.host) world.tiers[0]->HostExtentGone(extent->key);
  world.pins->WaitUntilIdle();
}
BENCHMARK(LoadFromPinnedHostMemory)->UseRealTime()->Unit(benchmark::kMillisecond);

void LoadFromHostMemory(benchmark::State& state) {
  World& world = World::Get();
  LoadJob job = world.model.Job();
  job.host = world.host;
  LoadAgain(state, *world.tiers[0], job);
}
BENCHMARK(LoadFromHostMemory)->UseRealTime()->Unit(benchmark::kMillisecond);

void PinHostMemory(benchmark::State& state) {
  World& world = World::Get();
  if (world.pins == nullptr) {
    state.SkipWithError("read-only memory can not be pinned here");
    return;
  }
  for (auto _ : state) {
    for (const auto& extent : world.host) world.pins->Add(extent);
    world.pins->WaitUntilIdle();
    state.PauseTiming();
    for (const auto& extent : world.host) world.pins->Remove(extent->key);
    world.pins->WaitUntilIdle();
    state.ResumeTiming();
  }
  SetRate(state);
}
BENCHMARK(PinHostMemory)->UseRealTime()->Unit(benchmark::kMillisecond);

void LoadFromPageCache(benchmark::State& state) {
  World& world = World::Get();
  const UniqueFd fd(::open(world.model.path().c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> buffer(kChunkBytes);
  while (::read(fd.get(), buffer.data(), buffer.size()) > 0) {
  }
  LoadAgain(state, *world.tiers[0], world.model.Job());
}
BENCHMARK(LoadFromPageCache)->UseRealTime()->Unit(benchmark::kMillisecond);

// One thread, blocks of 8 MiB, past the page cache.
void FloorDiskRead(benchmark::State& state) {
  World& world = World::Get();
  DropFromPageCache(world.model.path());
  const UniqueFd fd(::open(world.model.path().c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  void* buffer = nullptr;
  if (!fd.valid() || ::posix_memalign(&buffer, kHostPageBytes, kChunkBytes) != 0) {
    state.SkipWithError("files can not be read past the page cache here");
    return;
  }
  for (auto _ : state) {
    for (off_t at = 0; ::pread(fd.get(), buffer, kChunkBytes, at) > 0; at += kChunkBytes) {
    }
  }
  std::free(buffer);
  SetRate(state);
}
BENCHMARK(FloorDiskRead)->UseRealTime()->Unit(benchmark::kMillisecond);

void LoadFromDisk(benchmark::State& state) {
  World& world = World::Get();
  DropFromPageCache(world.model.path());
  LoadAgain(state, *world.tiers[0], world.model.Job());
}
BENCHMARK(LoadFromDisk)->UseRealTime()->Unit(benchmark::kMillisecond);

void FloorPeerCopy(benchmark::State& state) {
  World& world = World::Get();
  if (world.tiers.size() < 2) {
    state.SkipWithError("one device only");
    return;
  }
  const cuda::Context peer = OrDie(cuda::Context::Retain(world.devices[1]));
  static_cast<void>(world.context.EnablePeerAccess(peer).ok());
  static_cast<void>(peer.EnablePeerAccess(world.context).ok());
  const uint64_t bytes = world.model.bytes();
  const cuda::DeviceBuffer from = OrDie(cuda::DeviceBuffer::Allocate(peer, bytes));
  const cuda::DeviceBuffer to = OrDie(cuda::DeviceBuffer::Allocate(world.context, bytes));
  const cuda::Stream stream = OrDie(cuda::Stream::Create(world.context));
  for (auto _ : state) {
    Status status = stream.CopyFromPeer(to.pointer(), peer, from.pointer(), bytes);
    if (status.ok()) status = stream.Synchronize();
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  SetRate(state);
}
BENCHMARK(FloorPeerCopy)->UseRealTime()->Unit(benchmark::kMillisecond);

void LoadFromPeer(benchmark::State& state) {
  World& world = World::Get();
  if (world.tiers.size() < 2) {
    state.SkipWithError("one device only");
    return;
  }
  LoadJob job = world.model.Job();
  job.peer = World::Shared(OrDie(world.tiers[1]->Load(job, world.control)));
  job.source = nullptr;
  LoadAgain(state, *world.tiers[0], job);
}
BENCHMARK(LoadFromPeer)->UseRealTime()->Unit(benchmark::kMillisecond);

void Verify(benchmark::State& state) {
  World& world = World::Get();
  const std::vector<ResidentExtent> resident =
      OrDie(world.tiers[0]->Load(world.model.Job(), world.control));
  for (auto _ : state) {
    const Status status = world.tiers[0]->Verify(resident[0], world.model.layout().extents[0],
                                                 world.model.manifest(), world.control);
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  SetRate(state);
}
BENCHMARK(Verify)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

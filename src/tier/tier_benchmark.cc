// How fast a model comes into host memory, beside what this machine can do at
// all: read(2) into ordinary memory and memcpy, in the same run. The file lies in
// the page cache, so that memory and not a disk is measured.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "ipc/region.h"
#include "tier/ingest.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {
namespace {

constexpr uint64_t kTensorBytes = 32 * kMiB;
constexpr uint64_t kTensors = 16;
constexpr uint64_t kModelBytes = kTensors * kTensorBytes;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "tier_benchmark: %s\n", what.c_str());
  std::exit(1);
}

// A safetensors file of 512 MiB, removed at exit.
class ModelFile final {
 public:
  ModelFile() {
    const char* const tmp = std::getenv("TMPDIR");
    path_ = std::string(tmp != nullptr ? tmp : "/tmp") + "/tier-benchmark-XXXXXX";
    const UniqueFd fd(::mkostemp(path_.data(), O_CLOEXEC));
    if (!fd.valid()) Die("can not create " + path_);
    std::string header = "{";
    for (uint64_t i = 0; i < kTensors; ++i) {
      header += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[" +
                std::to_string(kTensorBytes) + "],\"data_offsets\":[" +
                std::to_string(i * kTensorBytes) + "," + std::to_string((i + 1) * kTensorBytes) +
                "]}";
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    const uint64_t header_bytes = header.size();
    Write(fd.get(), &header_bytes, sizeof header_bytes);
    Write(fd.get(), header.data(), header.size());
    std::vector<uint64_t> words(kTensorBytes / 8);
    uint64_t state = 1;
    for (uint64_t i = 0; i < kTensors; ++i) {
      for (uint64_t& word : words) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word = state;
      }
      Write(fd.get(), words.data(), kTensorBytes);
    }
  }
  ~ModelFile() { std::filesystem::remove(path_); }

  const std::string& path() const { return path_; }

 private:
  static void Write(int fd, const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t done = ::write(fd, at, size);
      if (done <= 0) Die("can not write the model file");
      at += done;
      size -= static_cast<size_t>(done);
    }
  }
  std::string path_;
};

struct Model {
  ModelFile file;
  std::unique_ptr<Source> source;
  std::shared_ptr<const ModelManifest> manifest;
  Layout layout;

  Model() {
    Result<Source> opened = Source::OpenPath(file.path(), "benchmark");
    if (!opened.ok()) Die(opened.status().ToString());
    source = std::make_unique<Source>(std::move(opened).value());
    LoadControl control;
    const Result<IngestResult> ingested = Ingest(*source, nullptr, control);
    if (!ingested.ok()) Die(ingested.status().ToString());
    manifest = ingested->manifest;
    layout = MakeLayout(*manifest, store::Granularity::kModel).value();
  }
  LoadJob Job() const {
    LoadJob job;
    job.manifest = manifest.get();
    job.source = source.get();
    for (const ExtentSpec& extent : layout.extents) job.extents.push_back(&extent);
    return job;
  }
};

Model& TheModel() {
  static Model model;
  return model;
}

// Every thread takes its part of the model; `work(offset, bytes)` does it.
template <typename Work>
void InThreads(int64_t threads, const Work& work) {
  std::vector<std::thread> others;
  const uint64_t part = kModelBytes / static_cast<uint64_t>(threads);
  for (int64_t i = 1; i < threads; ++i) {
    others.emplace_back([&work, i, part] { work(static_cast<uint64_t>(i) * part, part); });
  }
  work(0, part);
  for (std::thread& thread : others) thread.join();
}

void SetRate(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(kModelBytes));
}

// --- What the machine can do --------------------------------------------------

void Memcpy(benchmark::State& state) {
  const std::unique_ptr<char[]> from(new char[kModelBytes]);
  const std::unique_ptr<char[]> to(new char[kModelBytes]);
  std::memset(from.get(), 1, kModelBytes);
  std::memset(to.get(), 2, kModelBytes);
  for (auto _ : state) {
    InThreads(state.range(0), [&](uint64_t at, uint64_t bytes) {
      std::memcpy(to.get() + at, from.get() + at, bytes);
    });
    benchmark::ClobberMemory();
  }
  SetRate(state);
}
BENCHMARK(Memcpy)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

// What a process without TrIMS does: fresh memory, read(2), no check of anything.
void ReadIntoFreshMemory(benchmark::State& state) {
  const int fd = TheModel().source->files()[0].fd.get();
  for (auto _ : state) {
    const std::unique_ptr<char, void (*)(void*)> memory(
        static_cast<char*>(std::malloc(kModelBytes)), &std::free);
    std::atomic<bool> failed{false};
    InThreads(state.range(0), [&](uint64_t at, uint64_t bytes) {
      for (uint64_t done = 0; done < bytes;) {
        const ssize_t got =
            ::pread(fd, memory.get() + at + done, std::min(kChunkBytes, bytes - done),
                    static_cast<off_t>(at + done));
        if (got <= 0) {
          failed = true;
          return;
        }
        done += static_cast<uint64_t>(got);
      }
    });
    if (failed) state.SkipWithError("read failed");
  }
  SetRate(state);
}
BENCHMARK(ReadIntoFreshMemory)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

// --- What TrIMS does ----------------------------------------------------------

void LoadHost(benchmark::State& state, bool use_hugetlb) {
  const Model& model = TheModel();
  HostTierOptions options;
  options.use_hugetlb = use_hugetlb;
  options.io_threads = static_cast<int>(state.range(0));
  const std::unique_ptr<Tier> tier = MakeHostTier(options);
  {
    // In a virtual machine the first touch of a page of memory is the hypervisor's cost.
    LoadControl control;
    if (!tier->Load(model.Job(), control).ok()) state.SkipWithError("the first load failed");
  }
  for (auto _ : state) {
    LoadControl control;
    Result<std::vector<ResidentExtent>> resident = tier->Load(model.Job(), control);
    if (!resident.ok()) {
      state.SkipWithError(resident.status().ToString().c_str());
      break;
    }
    state.PauseTiming();
    if (use_hugetlb && (*resident)[0].map_bytes % kHugePageBytes != 0) {
      state.SkipWithError("this machine has too few free huge pages (260 are needed)");
    }
    resident->clear();
    state.ResumeTiming();
  }
  SetRate(state);
}
void LoadPlainPages(benchmark::State& state) { LoadHost(state, false); }
BENCHMARK(LoadPlainPages)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);
void LoadHugePages(benchmark::State& state) {
  // The tier falls back silently, so ask first.
  if (!WritableRegion::Create("benchmark", kModelBytes + kHugePageBytes, PageKind::kHuge2M).ok()) {
    state.SkipWithError("this machine has too few free huge pages (260 are needed)");
    return;
  }
  LoadHost(state, true);
}
BENCHMARK(LoadHugePages)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

void Verify(benchmark::State& state) {
  const Model& model = TheModel();
  HostTierOptions options;
  options.io_threads = static_cast<int>(state.range(0));
  const std::unique_ptr<Tier> tier = MakeHostTier(options);
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier->Load(model.Job(), control);
  if (!resident.ok()) {
    state.SkipWithError(resident.status().ToString().c_str());
    return;
  }
  for (auto _ : state) {
    if (!tier->Verify((*resident)[0], model.layout.extents[0], *model.manifest, control).ok()) {
      state.SkipWithError("verification failed");
    }
  }
  SetRate(state);
}
BENCHMARK(Verify)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

void IngestSha256(benchmark::State& state) {
  const Model& model = TheModel();
  for (auto _ : state) {
    LoadControl control;
    if (!Ingest(*model.source, nullptr, control, static_cast<int>(state.range(0))).ok()) {
      state.SkipWithError("ingest failed");
    }
  }
  SetRate(state);
}
BENCHMARK(IngestSha256)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

// The client's first touch of every page of a mapping, cost that the page kind decides.
void ClientFirstTouch(benchmark::State& state) {
  const Model& model = TheModel();
  HostTierOptions options;
  options.use_hugetlb = state.range(0) != 0;
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident =
      MakeHostTier(options)->Load(model.Job(), control);
  if (!resident.ok()) {
    state.SkipWithError(resident.status().ToString().c_str());
    return;
  }
  const ResidentExtent& extent = (*resident)[0];
  for (auto _ : state) {
    const Result<ReadOnlyRegion> region =
        ReadOnlyRegion::Adopt(extent.fd.Dup().value(), extent.map_bytes);
    const Result<ReadOnlyMapping> mapping = region->Map();
    uint64_t sum = 0;
    for (size_t at = 0; at < mapping->size(); at += kHostPageBytes) {
      sum += static_cast<uint64_t>(mapping->data()[at]);
    }
    benchmark::DoNotOptimize(sum);
  }
  SetRate(state);
}
BENCHMARK(ClientFirstTouch)
    ->ArgName("hugetlb_if_free")
    ->Arg(0)
    ->Arg(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void LayoutOf5000Tensors(benchmark::State& state) {
  ModelManifest manifest;
  manifest.file_identities.resize(1);
  for (int i = 0; i < 5000; ++i) {
    ManifestTensor tensor;
    tensor.name = "model.layers." + std::to_string(100000 + i) + ".weight";
    tensor.dtype = DType::kU8;
    tensor.shape = {4096};
    tensor.size_bytes = 4096;
    tensor.content.bytes[0] = static_cast<uint8_t>(i);
    tensor.content.bytes[1] = static_cast<uint8_t>(i >> 8);
    manifest.tensors.push_back(std::move(tensor));
  }
  FinishManifest(manifest);
  for (auto _ : state) {
    const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kLayer);
    benchmark::DoNotOptimize(BuildTensorIndex(manifest, *layout));
  }
}
BENCHMARK(LayoutOf5000Tensors)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace trims

BENCHMARK_MAIN();

// Checks the keyed universal hash on a real GPU against this processor's, and times it.
//
//   nvcc -std=c++20 -O3 -I src -o hash_check tools/gpu/hash_check.cu
//        src/base/universal_hash.cc src/base/status.cc -lcuda                    (one line)
//   nvcc -std=c++20 -I src -arch=sm_90 -fatbin -o universal_hash.fatbin
//        src/cuda/kernels/universal_hash.cu                                      (one line)
//   ./hash_check universal_hash.fatbin src/cuda/kernels/universal_hash.ptx
//
// Every IMAGE (fat binary, cubin or PTX text) is checked in turn. Options: --device N,
// --max-gib N (default 16; the device needs that much free), --sweep (times other numbers
// of CUDA blocks too). Ends with 0 when every value agreed. Needs the driver, no OpenSSL.
#include <cuda.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "base/universal_hash.h"

// The program brings its own expansion of the seed: what is compared here is the hash.
void trims::ExpandUniversalHashSeed(const UniversalHashKey::Seed& seed,
                                    std::span<std::byte> words) {
  uint64_t state = 0;
  std::memcpy(&state, seed.data(), sizeof state);
  for (std::byte& word : words) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    word = static_cast<std::byte>((z ^ (z >> 31)) >> 56);
  }
}

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

void Check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  cuGetErrorName(result, &name);
  std::fprintf(stderr, "hash_check: %s: %s\n", what, name != nullptr ? name : "unknown error");
  std::exit(2);
}

// Everything about one device that the checks need, for the life of the program.
struct Gpu {
  CUdevice device = 0;
  int multiprocessors = 0;
  CUdeviceptr memory = 0;
  uint64_t bytes = 0;
  CUdeviceptr partials = 0;
  CUstream stream = nullptr;
  CUevent begin = nullptr;
  CUevent end = nullptr;
  std::vector<trims::FieldElement> host_partials;
  std::byte* staging = nullptr;  // Pinned.
};
constexpr uint64_t kStagingBytes = 64 * kMiB;
constexpr uint32_t kMaxCudaBlocks = 1u << 16;

struct Timing {
  double kernel_ms;
  double whole_ms;  // Launch, kernel, copy of the partials, combination.
};

trims::HashValue HashOnGpu(Gpu& gpu, CUfunction kernel, const trims::UniversalHashKey& key,
                           uint64_t offset, uint64_t bytes, uint32_t cuda_blocks, Timing* timing) {
  const auto start = Clock::now();
  trims::UniversalHashKernelKey kernel_key = key.KernelKey(cuda_blocks);
  CUdeviceptr base = gpu.memory + offset;
  void* arguments[] = {&base, &bytes, &gpu.partials, &kernel_key};
  Check(cuEventRecord(gpu.begin, gpu.stream), "cuEventRecord");
  Check(cuLaunchKernel(kernel, cuda_blocks, 1, 1, trims::kUniversalHashThreads, 1, 1, 0, gpu.stream,
                       arguments, nullptr),
        "cuLaunchKernel");
  Check(cuEventRecord(gpu.end, gpu.stream), "cuEventRecord");
  Check(cuMemcpyDtoHAsync(gpu.staging, gpu.partials, cuda_blocks * sizeof(trims::FieldElement),
                          gpu.stream),
        "cuMemcpyDtoHAsync of the partial sums");
  Check(cuStreamSynchronize(gpu.stream), "the kernel");
  std::memcpy(gpu.host_partials.data(), gpu.staging, cuda_blocks * sizeof(trims::FieldElement));
  trims::ChunkedHash hash(key);
  hash.AddPartials(0, bytes, std::span(gpu.host_partials).first(cuda_blocks));
  const trims::HashValue value = hash.Finish(bytes);
  if (timing != nullptr) {
    timing->whole_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    float kernel_ms = 0;
    Check(cuEventElapsedTime(&kernel_ms, gpu.begin, gpu.end), "cuEventElapsedTime");
    timing->kernel_ms = kernel_ms;
  }
  return value;
}

trims::HashValue HashOnCpu(Gpu& gpu, const trims::UniversalHashKey& key, uint64_t offset,
                           uint64_t bytes) {
  trims::ChunkedHash hash(key);
  for (uint64_t at = 0; at < bytes; at += kStagingBytes) {
    const uint64_t size = std::min(kStagingBytes, bytes - at);
    Check(cuMemcpyDtoH(gpu.staging, gpu.memory + offset + at, size), "cuMemcpyDtoH");
    hash.Add(at, {gpu.staging, static_cast<size_t>(size)});
  }
  return hash.Finish(bytes);
}

// Noise in the first 64 MiB, doubled from there, with every 64 MiB given its own first bytes.
void Fill(Gpu& gpu) {
  uint64_t x = 0x243f6a8885a308d3u;
  auto* const words = reinterpret_cast<uint64_t*>(gpu.staging);
  for (uint64_t i = 0; i < kStagingBytes / 8; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    words[i] = x;
  }
  for (uint64_t at = 0; at < gpu.bytes; at += kStagingBytes) {
    words[0] = at;
    Check(cuMemcpyHtoD(gpu.memory + at, gpu.staging, std::min(kStagingBytes, gpu.bytes - at)),
          "cuMemcpyHtoD");
  }
}

Timing Median(Gpu& gpu, CUfunction kernel, const trims::UniversalHashKey& key, uint64_t bytes,
              uint32_t cuda_blocks) {
  constexpr int kRuns = 21;
  std::vector<double> kernel_ms, whole_ms;
  for (int run = 0; run < kRuns + 3; ++run) {
    Timing timing;
    HashOnGpu(gpu, kernel, key, 0, bytes, cuda_blocks, &timing);
    if (run < 3) continue;
    kernel_ms.push_back(timing.kernel_ms);
    whole_ms.push_back(timing.whole_ms);
  }
  std::ranges::sort(kernel_ms);
  std::ranges::sort(whole_ms);
  return Timing{kernel_ms[kRuns / 2], whole_ms[kRuns / 2]};
}

std::string ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "hash_check: can not read %s\n", path);
    std::exit(2);
  }
  return std::string(std::istreambuf_iterator<char>(file), {});  // c_str() ends PTX in a zero.
}

// How many disagreements.
int CheckValues(Gpu& gpu, CUfunction kernel, const trims::UniversalHashKey& key) {
  const uint64_t block = trims::kUniversalHashBlockBytes;
  std::vector<uint64_t> sizes = {0,
                                 1,
                                 15,
                                 16,
                                 17,
                                 511,
                                 512,
                                 513,
                                 4096,
                                 block - 1,
                                 block,
                                 block + 1,
                                 8 * block,
                                 8 * block + 16,
                                 33 * block - 5,
                                 kMiB + 7,
                                 8 * kMiB,
                                 100 * kMiB,
                                 100 * kMiB + 3,
                                 kGiB,
                                 kGiB + 77,
                                 gpu.bytes};
  uint64_t x = 0x13198a2e03707344u;
  for (int i = 0; i < 20; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    sizes.push_back((x >> 33) % (64 * kMiB));
  }
  int wrong = 0;
  for (const uint64_t bytes : sizes) {
    if (bytes > gpu.bytes) continue;
    const trims::HashValue expected = HashOnCpu(gpu, key, 0, bytes);
    const uint32_t usual =
        trims::UniversalHashCudaBlocks(bytes, static_cast<uint32_t>(gpu.multiprocessors));
    for (const uint32_t cuda_blocks : {usual, 1u, 7u, 1000u}) {
      if (bytes > kGiB && cuda_blocks == 1) continue;  // Slow.
      const trims::HashValue value = HashOnGpu(gpu, kernel, key, 0, bytes, cuda_blocks, nullptr);
      if (value == expected) continue;
      ++wrong;
      std::printf("  WRONG VALUE for %llu bytes with %u CUDA blocks\n",
                  static_cast<unsigned long long>(bytes), cuda_blocks);
    }
  }

  // Chunk by chunk, as bytes land, and over the whole: one value.
  const uint64_t whole = std::min<uint64_t>(gpu.bytes, 100 * kMiB + 5);
  trims::ChunkedHash chunks(key);
  for (uint64_t at = 0; at < whole; at += 8 * kMiB) {
    const uint64_t size = std::min(8 * kMiB, whole - at);
    const uint32_t cuda_blocks =
        trims::UniversalHashCudaBlocks(size, static_cast<uint32_t>(gpu.multiprocessors));
    HashOnGpu(gpu, kernel, key, at, size, cuda_blocks, nullptr);
    chunks.AddPartials(at, size, std::span(gpu.host_partials).first(cuda_blocks));
  }
  if (chunks.Finish(whole) != HashOnCpu(gpu, key, 0, whole)) {
    ++wrong;
    std::printf("  WRONG VALUE chunk by chunk\n");
  }

  // One flipped bit anywhere is another value.
  const uint32_t cuda_blocks =
      trims::UniversalHashCudaBlocks(gpu.bytes, static_cast<uint32_t>(gpu.multiprocessors));
  const trims::HashValue clean = HashOnGpu(gpu, kernel, key, 0, gpu.bytes, cuda_blocks, nullptr);
  for (int i = 0; i < 64; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    const uint64_t at = i == 0 ? 0 : i == 1 ? gpu.bytes - 1 : (x >> 20) % gpu.bytes;
    unsigned char byte = 0;
    Check(cuMemcpyDtoH(&byte, gpu.memory + at, 1), "cuMemcpyDtoH");
    const unsigned char flipped = byte ^ static_cast<unsigned char>(1u << (i % 8));
    Check(cuMemcpyHtoD(gpu.memory + at, &flipped, 1), "cuMemcpyHtoD");
    if (HashOnGpu(gpu, kernel, key, 0, gpu.bytes, cuda_blocks, nullptr) == clean) {
      ++wrong;
      std::printf("  A FLIPPED BIT at %llu is not noticed\n", static_cast<unsigned long long>(at));
    }
    Check(cuMemcpyHtoD(gpu.memory + at, &byte, 1), "cuMemcpyHtoD");
  }
  if (HashOnGpu(gpu, kernel, key, 0, gpu.bytes, cuda_blocks, nullptr) != clean) {
    ++wrong;
    std::printf("  The value did not come back with the bytes\n");
  }
  return wrong;
}

void PrintTimes(Gpu& gpu, CUfunction kernel, const trims::UniversalHashKey& key, bool sweep) {
  std::printf("  %9s %11s %11s %11s %9s\n", "size", "CUDA blocks", "kernel ms", "in all ms",
              "TB/s");
  const auto multiprocessors = static_cast<uint32_t>(gpu.multiprocessors);
  for (const uint64_t bytes : {8 * kMiB, 100 * kMiB, kGiB, 16 * kGiB}) {
    if (bytes > gpu.bytes) continue;
    std::vector<uint32_t> counts = {trims::UniversalHashCudaBlocks(bytes, multiprocessors)};
    if (sweep) {
      for (const uint32_t each : {1, 2, 3, 4, 5, 6, 8, 12, 16, 32}) {
        counts.push_back(each * multiprocessors);
      }
    }
    for (const uint32_t cuda_blocks : counts) {
      const Timing timing = Median(gpu, kernel, key, bytes, cuda_blocks);
      std::printf("  %5llu MiB %11u %11.4f %11.4f %9.3f\n",
                  static_cast<unsigned long long>(bytes / kMiB), cuda_blocks, timing.kernel_ms,
                  timing.whole_ms, static_cast<double>(bytes) / timing.whole_ms / 1e9);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  int ordinal = 0;
  uint64_t max_gib = 16;
  bool sweep = false;
  std::vector<const char*> images;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--sweep") {
      sweep = true;
    } else if ((argument == "--device" || argument == "--max-gib") && i + 1 < argc) {
      (argument == "--device"
           ? static_cast<void>(ordinal = std::atoi(argv[i + 1]))
           : static_cast<void>(max_gib = std::strtoull(argv[i + 1], nullptr, 10)));
      ++i;
    } else if (argument.starts_with("--")) {
      std::fprintf(stderr, "hash_check: unknown option %s\n", argv[i]);
      return 2;
    } else {
      images.push_back(argv[i]);
    }
  }
  if (images.empty() || max_gib == 0) {
    std::fprintf(stderr, "usage: hash_check [--device N] [--max-gib N] [--sweep] IMAGE...\n");
    return 2;
  }

  Gpu gpu;
  Check(cuInit(0), "cuInit");
  Check(cuDeviceGet(&gpu.device, ordinal), "cuDeviceGet");
  CUcontext context = nullptr;
  Check(cuDevicePrimaryCtxRetain(&context, gpu.device), "cuDevicePrimaryCtxRetain");
  Check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  char name[128] = {};
  Check(cuDeviceGetName(name, sizeof name, gpu.device), "cuDeviceGetName");
  Check(cuDeviceGetAttribute(&gpu.multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                             gpu.device),
        "cuDeviceGetAttribute");
  gpu.bytes = max_gib * kGiB;
  Check(cuMemAlloc(&gpu.memory, gpu.bytes), "cuMemAlloc of the bytes (see --max-gib)");
  Check(cuMemAlloc(&gpu.partials, kMaxCudaBlocks * sizeof(trims::FieldElement)), "cuMemAlloc");
  gpu.host_partials.resize(kMaxCudaBlocks);
  void* staging = nullptr;
  Check(cuMemAllocHost(&staging, kStagingBytes), "cuMemAllocHost");
  gpu.staging = static_cast<std::byte*>(staging);
  Check(cuStreamCreate(&gpu.stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  Check(cuEventCreate(&gpu.begin, CU_EVENT_DEFAULT), "cuEventCreate");
  Check(cuEventCreate(&gpu.end, CU_EVENT_DEFAULT), "cuEventCreate");
  Fill(gpu);

  trims::UniversalHashKey::Seed seed = {};
  const auto now =
      static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::memcpy(seed.data(), &now, sizeof now);
  const trims::UniversalHashKey key = trims::UniversalHashKey::FromSeed(seed);

  int wrong = 0;
  for (const char* const path : images) {
    const std::string image = ReadFile(path);
    CUmodule module = nullptr;
    Check(cuModuleLoadData(&module, image.c_str()), path);
    CUfunction kernel = nullptr;
    Check(cuModuleGetFunction(&kernel, module, trims::kUniversalHashKernelName),
          "cuModuleGetFunction");
    int registers = 0;
    Check(cuFuncGetAttribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, kernel), "cuFuncGetAttribute");
    int resident = 0;
    Check(cuOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel,
                                                      trims::kUniversalHashThreads, 0),
          "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    std::printf("%s on %s: %d multiprocessors, %d registers, %d CUDA blocks on each\n", path, name,
                gpu.multiprocessors, registers, resident);
    const int wrong_here = CheckValues(gpu, kernel, key);
    std::printf("  values: %s (clock seed %llu)\n", wrong_here == 0 ? "all agree" : "WRONG",
                static_cast<unsigned long long>(now));
    wrong += wrong_here;
    PrintTimes(gpu, kernel, key, sweep);
    Check(cuModuleUnload(module), "cuModuleUnload");
  }
  return wrong == 0 ? 0 : 1;
}

// The kernel's own source on this processor: the few words of CUDA that it uses are
// given meanings here, and each of its threads is one of ours, so that every build
// tests the code that runs on a GPU and not only the reference beside it.
#include <gtest/gtest.h>

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "base/universal_hash.h"
#include "cuda/kernels/kernels.h"

namespace {

struct Index {
  uint32_t x;
};
struct uint4 {
  uint32_t x, y, z, w;
};
uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

thread_local Index threadIdx;
thread_local Index blockIdx;
thread_local Index gridDim;

constexpr uint32_t kThreadsOfWarp = 32;
constexpr uint32_t kWarps = trims::kUniversalHashThreads / kThreadsOfWarp;

struct Warp {
  std::barrier<> barrier{kThreadsOfWarp};
  uint64_t slots[kThreadsOfWarp] = {};
};
Warp warps_of_block[kWarps];
std::barrier<> barrier_of_block{trims::kUniversalHashThreads};

void __syncthreads() { barrier_of_block.arrive_and_wait(); }

uint64_t __shfl_down_sync(uint32_t mask, uint64_t value, uint32_t distance) {
  EXPECT_EQ(mask, 0xffffffffu);
  Warp& warp = warps_of_block[threadIdx.x / kThreadsOfWarp];
  const uint32_t lane = threadIdx.x % kThreadsOfWarp;
  warp.slots[lane] = value;
  warp.barrier.arrive_and_wait();
  const uint64_t got = lane + distance < kThreadsOfWarp ? warp.slots[lane + distance] : value;
  warp.barrier.arrive_and_wait();
  return got;
}

uint4 __ldcs(const uint4* address) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 16, 0u) << "a misaligned address on the GPU";
  uint4 value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

}  // namespace

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#include "cuda/kernels/universal_hash.cu"

namespace trims {
namespace {

void RunKernel(uint32_t cuda_blocks, std::span<const std::byte> bytes, FieldElement* partials,
               const UniversalHashKernelKey& key) {
  for (uint32_t block = 0; block < cuda_blocks; ++block) {
    std::vector<std::jthread> threads;
    threads.reserve(kUniversalHashThreads);
    for (uint32_t thread = 0; thread < kUniversalHashThreads; ++thread) {
      threads.emplace_back([&, thread] {
        threadIdx.x = thread;
        blockIdx.x = block;
        gridDim.x = cuda_blocks;
        trims_universal_hash(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), partials,
                             key);
      });
    }
  }
}

class AlignedNoise final {
 public:
  // Exactly `size` bytes on the heap, so that a sanitizer sees a read behind them.
  explicit AlignedNoise(size_t size)
      : bytes_(new (std::align_val_t(16)) std::byte[size]), size_(size) {
    std::mt19937_64 random(size);
    for (size_t i = 0; i < size; ++i) bytes_.get()[i] = static_cast<std::byte>(random());
  }
  std::span<const std::byte> span() const { return {bytes_.get(), size_}; }

 private:
  struct Delete {
    void operator()(std::byte* bytes) const { ::operator delete[](bytes, std::align_val_t(16)); }
  };
  std::unique_ptr<std::byte[], Delete> bytes_;
  size_t size_;
};

TEST(UniversalHashSource, TheKernelTheReferenceAndTheProcessorAgree) {
  const UniversalHashKey key = UniversalHashKey::FromSeed({7, 7, 7});
  constexpr size_t kBlock = kUniversalHashBlockBytes;
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{16}, size_t{511}, size_t{513}, kBlock - 1, kBlock, kBlock + 17,
        8 * kBlock, 9 * kBlock + 1000, 40 * kBlock + 12345}) {
    const AlignedNoise noise(size);
    for (const uint32_t cuda_blocks : {1u, 2u, 3u}) {
      SCOPED_TRACE(testing::Message() << size << " bytes, " << cuda_blocks << " CUDA blocks");
      const UniversalHashKernelKey kernel_key = key.KernelKey(cuda_blocks);
      std::vector<FieldElement> partials(cuda_blocks, FieldElement{1, 2});
      RunKernel(cuda_blocks, noise.span(), partials.data(), kernel_key);
      ChunkedHash hash(key);
      hash.AddPartials(0, size, partials);
      EXPECT_EQ(hash.Finish(size), HashBytes(key, noise.span()));

      std::vector<FieldElement> expected(cuda_blocks);
      const std::byte* base = noise.span().data();
      uint64_t bytes = size;
      FieldElement* out = expected.data();
      UniversalHashKernelKey argument = kernel_key;
      void* arguments[] = {&base, &bytes, &out, &argument};
      UniversalHashKernelReference(cuda_blocks, kUniversalHashThreads, arguments);
      for (uint32_t i = 0; i < cuda_blocks; ++i) {
        EXPECT_EQ(partials[i].lo, expected[i].lo);
        EXPECT_EQ(partials[i].hi, expected[i].hi);
      }
    }
  }
}

TEST(UniversalHashImages, EveryBuildHasPtxTextWithItsZeroByteAndTheKernelsName) {
  const std::span<const std::byte> ptx = cuda::UniversalHashImages()[1];
  ASSERT_FALSE(ptx.empty());
  EXPECT_EQ(ptx.back(), std::byte{0});
  const std::string_view text(reinterpret_cast<const char*>(ptx.data()), ptx.size() - 1);
  EXPECT_EQ(text.find('\0'), std::string_view::npos);
  EXPECT_NE(text.find(".entry trims_universal_hash("), std::string_view::npos);
  EXPECT_NE(text.find(".version 6.3"), std::string_view::npos);
  EXPECT_NE(text.find(".target sm_75"), std::string_view::npos);
}

TEST(UniversalHashImages, TheFatBinaryIsOneWhenTheBuildHadACompiler) {
  const std::span<const std::byte> image = cuda::UniversalHashImages()[0];
  if (image.empty()) GTEST_SKIP() << "built without nvcc";
  uint32_t magic = 0;
  ASSERT_GT(image.size(), sizeof magic);
  std::memcpy(&magic, image.data(), sizeof magic);
  EXPECT_EQ(magic, 0xba55ed50u);  // Of a fat binary.
}

}  // namespace
}  // namespace trims

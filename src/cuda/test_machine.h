// What the tests of this folder share: the driver that they run against, and a check that
// nothing of it is left. Header only.
//
// They run against the fake driver of tests/fake_cuda, and with TRIMS_TEST_REAL_GPU=1 against
// the driver and GPU of the machine. Tests of what only the fake can do (small memories,
// planned failures) skip there and say so.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/stream.h"
#include "fake_cuda/fake_cuda.h"

namespace trims::cuda {

inline constexpr uint64_t kUnit = 2 * kMiB;  // As device memory is allocated.

inline bool OnRealGpu() {
  const char* setting = std::getenv("TRIMS_TEST_REAL_GPU");
  return setting != nullptr && std::string(setting) == "1";
}

#define SKIP_ON_REAL_GPU(reason) \
  if (OnRealGpu()) GTEST_SKIP() << "fake driver only: " reason

// The result's value, or a failed test that says what went wrong and aborts it.
template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << result.status().ToString();
    std::abort();
  }
  return std::move(result).value();
}

#define EXPECT_OK(expr)                                      \
  do {                                                       \
    const Status expected_ok = (expr);                       \
    EXPECT_TRUE(expected_ok.ok()) << expected_ok.ToString(); \
  } while (false)

// --- Steering the fake -------------------------------------------------------------

// A function of the loaded fake library.
template <typename F>
F* FakeFunction(const char* name) {
  static void* library = ::dlopen(std::getenv("TRIMS_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
  void* found = library != nullptr ? ::dlsym(library, name) : nullptr;
  if (found == nullptr) {
    std::fprintf(stderr, "the fake driver has no %s\n", name);
    std::abort();
  }
  return reinterpret_cast<F*>(found);
}
#define FAKE(name) FakeFunction<decltype(name)>(#name)

inline uint64_t TotalObjects() {
  fake_cuda_objects held{};
  FAKE(fake_cuda_count)(&held);
  return held.handles + held.reservations + held.mappings + held.buffers + held.pinned_buffers +
         held.registrations + held.streams + held.events + held.modules + held.retained_contexts;
}

inline size_t OpenDescriptors() {
  const std::filesystem::directory_iterator folder("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(folder), end(folder)));
}

// Every test ends with what it began with.
class CudaTest : public ::testing::Test {
 protected:
  CudaTest() {
    driver_ = Must(Driver::Load());
    devices_ = Must(driver_->Devices());
    if (!OnRealGpu()) {
      FAKE(fake_cuda_fail)("");
      objects_ = TotalObjects();
      descriptors_ = OpenDescriptors();
    }
  }
  ~CudaTest() override {
    if (OnRealGpu()) return;
    FAKE(fake_cuda_fail)("");
    EXPECT_EQ(TotalObjects(), objects_) << "the test leaked an object of the driver";
    EXPECT_EQ(OpenDescriptors(), descriptors_) << "the test leaked a descriptor";
  }

  const Device& device() const { return devices_.front(); }

  const Driver* driver_ = nullptr;
  std::vector<Device> devices_;

 private:
  uint64_t objects_ = 0;
  size_t descriptors_ = 0;
};

class CudaContextTest : public CudaTest {
 protected:
  CudaContextTest()
      : context_(Must(Context::Retain(device()))), stream_(Must(Stream::Create(context_))) {}

  std::vector<uint32_t> Read(DevicePointer from, uint64_t words) {
    std::vector<uint32_t> read(words);
    EXPECT_OK(stream_.CopyToHost(read.data(), from, words * sizeof(uint32_t)));
    EXPECT_OK(stream_.Synchronize());
    return read;
  }
  void Write(DevicePointer to, const std::vector<uint32_t>& words) {
    EXPECT_OK(stream_.CopyToDevice(to, words.data(), words.size() * sizeof(uint32_t)));
    EXPECT_OK(stream_.Synchronize());
  }

  Context context_;
  Stream stream_;
};

inline std::vector<uint32_t> Pattern(size_t words, uint32_t seed = 1) {
  std::vector<uint32_t> pattern(words);
  std::iota(pattern.begin(), pattern.end(), seed);
  return pattern;
}

inline uint64_t SumOf(const std::vector<uint32_t>& words) {
  return std::accumulate(words.begin(), words.end(), uint64_t{0});
}

}  // namespace trims::cuda

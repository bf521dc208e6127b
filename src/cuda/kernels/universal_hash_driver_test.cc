// The kernel through the driver API: the image of this build is loaded, launched on
// device memory and combined, whole and chunk by chunk. Against the fake driver, which runs
// the reference; with TRIMS_TEST_REAL_GPU=1 against the machine's own driver and GPU.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/universal_hash.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/kernels/kernels.h"
#include "cuda/memory.h"
#include "cuda/stream.h"

namespace trims::cuda {
namespace {

bool OnRealGpu() {
  const char* const setting = ::getenv("TRIMS_TEST_REAL_GPU");
  return setting != nullptr && std::string_view(setting) == "1";
}

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << result.status().ToString();
    std::abort();
  }
  return std::move(result).value();
}

void Must(const Status& status) { EXPECT_TRUE(status.ok()) << status.ToString(); }

// The machine of the fake driver, in a directory of this test; nothing on a real GPU.
class FakeMachine final : public ::testing::Environment {
 public:
  void SetUp() override {
    if (OnRealGpu()) {
      ::unsetenv("TRIMS_CUDA_LIBRARY");
      return;
    }
    ::setenv("TRIMS_CUDA_LIBRARY", FAKE_CUDA_LIBRARY, 1);
    folder_ = (std::filesystem::temp_directory_path() / "universal_hash_XXXXXX").string();
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    ::setenv("FAKE_CUDA_DIR", folder_.c_str(), 1);
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

 private:
  std::string folder_;
};
[[maybe_unused]] ::testing::Environment* const fake_machine =
    ::testing::AddGlobalTestEnvironment(new FakeMachine);

// Loads an image, and hashes parts of a buffer on the device.
class DeviceHash final {
 public:
  DeviceHash(const Context& context, std::span<const std::byte> image, const UniversalHashKey& key)
      : key_(key),
        multiprocessors_(static_cast<uint32_t>(context.device().multiprocessors())),
        module_(Must(Module::Load(context, image))),
        kernel_(Must(module_.Find(kUniversalHashKernelName))),
        stream_(Must(Stream::Create(context))),
        partials_(Must(DeviceBuffer::Allocate(context, kMiB))) {}

  void Add(ChunkedHash& hash, DevicePointer base, uint64_t offset, uint64_t bytes) {
    const uint32_t blocks = UniversalHashCudaBlocks(bytes, multiprocessors_);
    const uint64_t at = base + offset;
    Must(kernel_.Launch(stream_, {.blocks = blocks, .threads = kUniversalHashThreads}, at, bytes,
                        partials_.pointer(), key_.KernelKey(blocks)));
    std::vector<FieldElement> partials(blocks);
    Must(stream_.CopyToHost(partials.data(), partials_.pointer(), blocks * sizeof(FieldElement)));
    Must(stream_.Synchronize());
    hash.AddPartials(offset, bytes, partials);
  }

  const Stream& stream() const { return stream_; }

 private:
  const UniversalHashKey& key_;
  uint32_t multiprocessors_;
  Module module_;
  Kernel kernel_;
  Stream stream_;
  DeviceBuffer partials_;
};

TEST(UniversalHashDriver, EveryImageHashesDeviceMemoryAsTheProcessorHashesItsOwn) {
  const Driver* const driver = Must(Driver::Load());
  const Context context = Must(Context::Retain(Must(driver->Devices()).front()));
  const UniversalHashKey key = Must(UniversalHashKey::Generate());

  std::vector<std::byte> bytes(2 * kChunkBytes + 12'345);
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(&bytes[i], &word, 8);
  }
  const HashValue expected = HashBytes(key, bytes);

  for (const std::span<const std::byte> image : UniversalHashImages()) {
    if (image.empty()) continue;
    DeviceHash device(context, image, key);
    const DeviceBuffer memory = Must(DeviceBuffer::Allocate(context, bytes.size()));
    Must(device.stream().CopyToDevice(memory.pointer(), bytes.data(), bytes.size()));

    ChunkedHash whole(key);
    device.Add(whole, memory.pointer(), 0, bytes.size());
    EXPECT_EQ(whole.Finish(bytes.size()), expected);

    ChunkedHash chunks(key);
    for (uint64_t at = 0; at < bytes.size(); at += kChunkBytes) {
      device.Add(chunks, memory.pointer(), at, std::min<uint64_t>(kChunkBytes, bytes.size() - at));
    }
    EXPECT_EQ(chunks.Finish(bytes.size()), expected);

    const std::byte flipped = bytes[kChunkBytes + 99] ^ std::byte{16};
    Must(device.stream().CopyToDevice(memory.pointer() + kChunkBytes + 99, &flipped, 1));
    ChunkedHash changed(key);
    device.Add(changed, memory.pointer(), 0, bytes.size());
    EXPECT_NE(changed.Finish(bytes.size()), expected);
  }
}

}  // namespace
}  // namespace trims::cuda

// What the tests of device memory share: the driver that they run against, and what a
// client does with a descriptor. Header only, never part of the product.
//
// They run against the fake driver of tests/fake_cuda, and with TRIMS_TEST_REAL_GPU=1
// against the driver and GPUs of the machine. Tests of what only the fake can do (planned
// failures, small memories) skip there and say so.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/universal_hash.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "cuda/test_machine.h"
#include "fake_cuda/fake_cuda.h"
#include "tier/test_model.h"
#include "tier/tier.h"

namespace trims {

using cuda::FakeFunction;
using cuda::Must;
using cuda::OnRealGpu;

inline std::vector<cuda::Device> VisibleDevices() {
  return Must(Must(cuda::Driver::Load())->Devices());
}

// Memory, mappings and registrations of this process; 0 on a real GPU, which does not tell.
inline uint64_t HeldMemoryObjects() {
  if (OnRealGpu()) return 0;
  fake_cuda_objects held{};
  FAKE(fake_cuda_count)(&held);
  return held.handles + held.reservations + held.mappings + held.buffers + held.pinned_buffers +
         held.registrations;
}

// The real driver opens and closes files of its own when it likes: 0 there.
inline size_t OpenDescriptors() { return OnRealGpu() ? 0 : OpenFdCount(); }

inline std::shared_ptr<const UniversalHashKey> TestKey() {
  UniversalHashKey::Seed seed{};
  seed[0] = 42;
  return std::make_shared<const UniversalHashKey>(UniversalHashKey::FromSeed(seed));
}

// Maps an extent as a client does, and gives its bytes.
inline std::string ReadAsClient(const cuda::Device& device, const ResidentExtent& extent) {
  const cuda::Context context = Must(cuda::Context::Retain(device));
  const cuda::PhysicalMemory memory =
      Must(cuda::PhysicalMemory::Import(device, extent.fd.get(), extent.map_bytes));
  const cuda::DeviceMapping mapping = Must(cuda::DeviceMapping::Map(memory, cuda::Access::kRead));
  const cuda::Stream stream = Must(cuda::Stream::Create(context));
  std::string bytes(extent.map_bytes, 'x');
  Status status = stream.CopyToHost(bytes.data(), mapping.pointer(), bytes.size());
  if (status.ok()) status = stream.Synchronize();
  EXPECT_TRUE(status.ok()) << status.ToString();
  return bytes;
}

// What a hostile client can do with the descriptor that it leases.
inline void FlipByteAsClient(const cuda::Device& device, const ResidentExtent& extent,
                             uint64_t offset) {
  const cuda::Context context = Must(cuda::Context::Retain(device));
  const cuda::PhysicalMemory memory =
      Must(cuda::PhysicalMemory::Import(device, extent.fd.get(), extent.map_bytes));
  const cuda::DeviceMapping mapping =
      Must(cuda::DeviceMapping::Map(memory, cuda::Access::kReadWrite));
  const cuda::Stream stream = Must(cuda::Stream::Create(context));
  uint8_t byte = 0;
  Status status = stream.CopyToHost(&byte, mapping.pointer() + offset, 1);
  if (status.ok()) status = stream.Synchronize();
  byte ^= 0x40;
  if (status.ok()) status = stream.CopyToDevice(mapping.pointer() + offset, &byte, 1);
  if (status.ok()) status = stream.Synchronize();
  EXPECT_TRUE(status.ok()) << status.ToString();
}

// For main(): the machine without a GPU that the tests run on, unless there is a real one.
class FakeMachine final {
 public:
  explicit FakeMachine(const char* library) {
    if (OnRealGpu()) return;
    std::string made = ::testing::TempDir() + "/fake_cuda-XXXXXX";
    if (::mkdtemp(made.data()) == nullptr) std::abort();
    directory_ = made;
    ::setenv("TRIMS_CUDA_LIBRARY", library, 1);
    ::setenv("FAKE_CUDA_DIR", made.c_str(), 1);
    ::setenv("FAKE_CUDA_DEVICES", "2", 1);
    ::setenv("FAKE_CUDA_MEMORY", "256MiB", 1);
    ::unsetenv("CUDA_VISIBLE_DEVICES");
  }
  ~FakeMachine() {
    std::error_code ignored;
    if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
  }
  FakeMachine(const FakeMachine&) = delete;
  FakeMachine& operator=(const FakeMachine&) = delete;

 private:
  std::string directory_;
};

}  // namespace trims

#include "tier/host_pins.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "base/limits.h"
#include "ipc/region.h"
#include "tier/test_cuda.h"

namespace trims {
namespace {

class HostPinsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_.emplace(VisibleDevices().front());
    if (!device_->supports_read_only_registration()) {
      GTEST_SKIP() << "this device can not pin read-only memory";
    }
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    objects_before_ = HeldMemoryObjects();
    fds_before_ = OpenDescriptors();
    pins_ = Must(HostPins::Make(*device_));
  }
  void TearDown() override {
    if (pins_ == nullptr) return;
    pins_.reset();
    EXPECT_EQ(HeldMemoryObjects(), objects_before_) << "pinned memory leaked";
    EXPECT_EQ(OpenDescriptors(), fds_before_) << "a descriptor leaked";
  }

  // As the host tier makes them: sealed.
  static std::shared_ptr<const ResidentExtent> MakeExtent(uint64_t bytes, const std::string& name) {
    WritableRegion region = WritableRegion::Create("pins", bytes, PageKind::kPlain).value();
    std::memset(region.bytes().data(), name.front(), region.size());
    auto extent = std::make_shared<ResidentExtent>();
    extent->key = Sha256::Of(std::as_bytes(std::span(name)));
    extent->bytes = extent->map_bytes = region.size();
    extent->fd = std::move(region).Seal().value().TakeFd();
    return extent;
  }

  std::optional<cuda::Device> device_;
  uint64_t objects_before_ = 0;
  size_t fds_before_ = 0;
  std::unique_ptr<HostPins> pins_;
};

TEST_F(HostPinsTest, PinsAWholeExtentInTheBackground) {
  const auto extent = MakeExtent(PinnedExtent::kSliceBytes + 4096, "x");
  pins_->Add(extent);
  pins_->Add(extent);
  pins_->WaitUntilIdle();
  ASSERT_TRUE(pins_->status().ok()) << pins_->status().ToString();
  const auto pinned = pins_->Find(extent->key);
  ASSERT_NE(pinned, nullptr);
  EXPECT_EQ(pinned->size(), extent->map_bytes);
  EXPECT_EQ(pinned->data()[PinnedExtent::kSliceBytes + 4095], std::byte{'x'});
  EXPECT_EQ(pins_->pinned_bytes(), extent->map_bytes);
  if (!OnRealGpu()) {
    EXPECT_EQ(HeldMemoryObjects(), objects_before_ + 2) << "one per slice";
  }
}

TEST_F(HostPinsTest, KeepsTheMemoryAndNotTheExtent) {
  auto extent = MakeExtent(8192, "y");
  const std::weak_ptr<const ResidentExtent> watched = extent;
  const Digest key = extent->key;
  pins_->Add(std::move(extent));
  pins_->WaitUntilIdle();
  EXPECT_TRUE(watched.expired());
  EXPECT_EQ(pins_->Find(key)->data()[0], std::byte{'y'});
}

TEST_F(HostPinsTest, GivesUpWhatIsRemoved) {
  const auto extent = MakeExtent(8192, "z");
  pins_->Add(extent);
  pins_->WaitUntilIdle();
  pins_->Remove(extent->key);
  EXPECT_EQ(pins_->Find(extent->key), nullptr);
  pins_->WaitUntilIdle();
  EXPECT_EQ(pins_->pinned_bytes(), 0U);
  EXPECT_EQ(HeldMemoryObjects(), objects_before_);
  pins_->Remove(extent->key);
}

TEST_F(HostPinsTest, WhatACopyUsesStaysPinnedUntilTheCopyIsDone) {
  const auto extent = MakeExtent(8192, "u");
  pins_->Add(extent);
  pins_->WaitUntilIdle();
  auto in_use = pins_->Find(extent->key);
  pins_->Remove(extent->key);
  pins_->WaitUntilIdle();
  if (!OnRealGpu()) {
    EXPECT_EQ(HeldMemoryObjects(), objects_before_ + 1);
  }
  EXPECT_EQ(in_use->data()[0], std::byte{'u'});
  in_use = nullptr;
  EXPECT_EQ(HeldMemoryObjects(), objects_before_);
}

TEST_F(HostPinsTest, WhatIsAddedAgainIsPinnedAgain) {
  const auto extent = MakeExtent(8192, "v");
  for (int i = 0; i < 50; ++i) {
    pins_->Add(extent);
    pins_->Remove(extent->key);
  }
  const auto second = MakeExtent(8192, "v");
  pins_->Add(second);
  pins_->WaitUntilIdle();
  ASSERT_NE(pins_->Find(extent->key), nullptr);
  if (!OnRealGpu()) {
    EXPECT_EQ(HeldMemoryObjects(), objects_before_ + 1);
  }
}

TEST_F(HostPinsTest, AnExtentThatCanNotBePinnedIsNotFoundAndOthersAre) {
  SKIP_ON_REAL_GPU("plans failures");
  FAKE(fake_cuda_fail)("cuMemHostRegister:1=2");
  const auto first = MakeExtent(8192, "1");
  const auto second = MakeExtent(8192, "2");
  pins_->Add(first);
  pins_->WaitUntilIdle();
  pins_->Add(second);
  pins_->WaitUntilIdle();
  EXPECT_EQ(pins_->Find(first->key), nullptr);
  EXPECT_EQ(pins_->status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(pins_->Find(second->key), nullptr);
}

TEST_F(HostPinsTest, MemoryThatIsNotSealedIsNotPinned) {
  auto extent = std::make_shared<ResidentExtent>();
  extent->map_bytes = 4096;
  extent->fd = UniqueFd(::memfd_create("open", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(extent->fd.get(), 4096), 0);
  const Digest key = extent->key;
  pins_->Add(std::move(extent));
  pins_->WaitUntilIdle();
  EXPECT_EQ(pins_->Find(key), nullptr);
  EXPECT_EQ(pins_->status().code(), StatusCode::kPermissionDenied);
}

TEST_F(HostPinsTest, EndsInTheMiddleOfItsWork) {
  for (int i = 0; i < 10; ++i) {
    pins_->Add(
        MakeExtent(2 * PinnedExtent::kSliceBytes, std::string(1, static_cast<char>('a' + i))));
  }
  pins_.reset();
  EXPECT_EQ(HeldMemoryObjects(), objects_before_);
}

TEST_F(HostPinsTest, ThreadsAddFindAndRemoveAtOnce) {
  std::vector<std::shared_ptr<const ResidentExtent>> extents;
  for (char c = 'a'; c < 'i'; ++c) extents.push_back(MakeExtent(8192, std::string(1, c)));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        for (const auto& extent : extents) {
          pins_->Add(extent);
          if (const auto pinned = pins_->Find(extent->key)) {
            EXPECT_NE(pinned->data()[0], std::byte{0});
          }
          if (round % 2 == 0) pins_->Remove(extent->key);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& extent : extents) pins_->Add(extent);
  pins_->WaitUntilIdle();
  for (const auto& extent : extents) EXPECT_NE(pins_->Find(extent->key), nullptr);
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}

#include "tier/pinned_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "base/limits.h"
#include "tier/test_cuda.h"

namespace trims {
namespace {

class PinnedPoolTest : public ::testing::Test {
 protected:
  PinnedPoolTest() {
    context_ = std::make_shared<const cuda::Context>(
        Must(cuda::Context::Retain(VisibleDevices().front())));
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    objects_before_ = HeldMemoryObjects();
    fds_before_ = OpenDescriptors();
  }
  void TearDown() override {
    EXPECT_EQ(HeldMemoryObjects(), objects_before_) << "pinned memory leaked";
    EXPECT_EQ(OpenDescriptors(), fds_before_) << "a descriptor leaked";
  }

  std::shared_ptr<const cuda::Context> context_;
  uint64_t objects_before_ = 0;
  size_t fds_before_ = 0;
};

TEST_F(PinnedPoolTest, LendsEachBufferOnce) {
  PinnedPool pool(context_, 20 * kPinnedBufferBytes - 1);
  pool.WaitUntilPrepared();
  EXPECT_TRUE(pool.status().ok()) << pool.status().ToString();
  EXPECT_GE(pool.prepared_bytes(), 20 * kPinnedBufferBytes);
  const PinnedBuffers some = Must(pool.Take(12, 2));
  const PinnedBuffers rest = Must(pool.Take(12, 2));
  EXPECT_EQ(some.size(), 12U);
  EXPECT_EQ(rest.size(), 8U);
  std::set<std::byte*> distinct;
  for (size_t i = 0; i < some.size(); ++i) distinct.insert(some[i].data());
  for (size_t i = 0; i < rest.size(); ++i) distinct.insert(rest[i].data());
  EXPECT_EQ(distinct.size(), 20U);
  for (std::byte* const buffer : distinct) std::memset(buffer, 0x5a, kPinnedBufferBytes);
}

TEST_F(PinnedPoolTest, TakesBackWhatItLent) {
  PinnedPool pool(context_, 4 * kPinnedBufferBytes);
  pool.WaitUntilPrepared();
  std::set<std::byte*> first;
  {
    const PinnedBuffers buffers = Must(pool.Take(4, 2));
    for (size_t i = 0; i < buffers.size(); ++i) first.insert(buffers[i].data());
  }
  const PinnedBuffers again = Must(pool.Take(4, 2));
  ASSERT_EQ(again.size(), 4U);
  for (size_t i = 0; i < again.size(); ++i) EXPECT_TRUE(first.contains(again[i].data()));
}

TEST_F(PinnedPoolTest, WhoComesWhenAllAreLentGetsAFewOfItsOwn) {
  PinnedPool pool(context_, 3 * kPinnedBufferBytes);
  pool.WaitUntilPrepared();
  const PinnedBuffers all = Must(pool.Take(8, 2));
  EXPECT_EQ(all.size(), 3U);
  const PinnedBuffers own = Must(pool.Take(8, 2));
  ASSERT_EQ(own.size(), 2U);
  for (size_t i = 0; i < own.size(); ++i) std::memset(own[i].data(), 1, kPinnedBufferBytes);
}

TEST_F(PinnedPoolTest, AnEmptyPoolServesToo) {
  PinnedPool pool(context_, 0);
  pool.WaitUntilPrepared();
  PinnedBuffers own = Must(pool.Take(8, 2));
  EXPECT_EQ(own.size(), 2U);
  own = Must(pool.Take(1, 1));
  EXPECT_EQ(own.size(), 1U);
}

TEST_F(PinnedPoolTest, EndsInTheMiddleOfItsPreparation) {
  for (int i = 0; i < 20; ++i) {
    { const PinnedPool pool(context_, 64 * kPinnedBufferBytes); }
    EXPECT_EQ(HeldMemoryObjects(), objects_before_) << "its buffers outlive it";
  }
}

TEST_F(PinnedPoolTest, IsAsLargeAsTheMachineAllowedAndSaysWhy) {
  SKIP_ON_REAL_GPU("plans failures");
  FAKE(fake_cuda_fail)("cuMemHostRegister:2+=2");
  PinnedPool pool(context_, 20 * kPinnedBufferBytes);
  pool.WaitUntilPrepared();
  EXPECT_EQ(pool.status().code(), StatusCode::kResourceExhausted) << pool.status().ToString();
  EXPECT_GE(pool.prepared_bytes(), 8 * kPinnedBufferBytes);
  EXPECT_EQ(Must(pool.Take(20, 2)).size(), 8U);
}

TEST_F(PinnedPoolTest, NoMemoryForOwnBuffersIsResourceExhausted) {
  SKIP_ON_REAL_GPU("plans failures");
  PinnedPool pool(context_, 0);
  FAKE(fake_cuda_fail)("cuMemHostAlloc:1=2");
  EXPECT_EQ(pool.Take(2, 2).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(pool.Take(2, 2).ok());
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}

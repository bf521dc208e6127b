#include "daemon/loaders.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace trims {
namespace {

// An extent whose release waits for the test.
struct HeldExtent {
  std::promise<void> reached, opened;
  std::atomic<bool> is_released = false;
  std::thread::id thread;

  std::vector<std::shared_ptr<const ResidentExtent>> Make() {
    auto extent = std::make_shared<ResidentExtent>();
    extent->allocation = std::shared_ptr<const void>(this, [this](const void*) {
      thread = std::this_thread::get_id();
      reached.set_value();
      opened.get_future().wait();
      is_released = true;
    });
    std::vector<std::shared_ptr<const ResidentExtent>> extents;
    extents.push_back(std::move(extent));
    return extents;
  }
};

TEST(DeviceLoadersTest, MemoryIsReleasedOnAThreadOfItsOwn) {
  HeldExtent held;
  DeviceLoaders loaders;
  loaders.Release(held.Make());
  held.reached.get_future().wait();
  EXPECT_NE(held.thread, std::this_thread::get_id());
  held.opened.set_value();
  loaders.WaitUntilReleased();
  EXPECT_TRUE(held.is_released);
}

TEST(DeviceLoadersTest, WhoCountsOnMemoryWaitsForAllThatIsOnItsWay) {
  HeldExtent first, second;
  DeviceLoaders loaders;
  loaders.Release(first.Make());
  loaders.Release(second.Make());
  std::promise<bool> waited;
  loaders.loads.Run([&] {
    loaders.WaitUntilReleased();
    waited.set_value(first.is_released && second.is_released);
  });
  first.opened.set_value();
  second.reached.get_future().wait();
  second.opened.set_value();
  EXPECT_TRUE(waited.get_future().get());
}

TEST(DeviceLoadersTest, ATimeIsEnoughForWhoOnlyHopes) {
  DeviceLoaders loaders;
  loaders.WaitUntilReleased();  // Nothing is on its way.
  const Time start = Now();
  loaders.WaitForRelease(std::chrono::milliseconds(5));
  EXPECT_GE(Now() - start, std::chrono::milliseconds(5));
}

TEST(LoadersTest, EachDeviceHasThreadsOfItsOwnAndTheHostHasNone) {
  const Loaders loaders(1, {1, 3});
  EXPECT_EQ(loaders.device(0), nullptr);
  ASSERT_NE(loaders.device(1), nullptr);
  EXPECT_EQ(loaders.device(2), nullptr);
  ASSERT_NE(loaders.device(3), nullptr);
  EXPECT_NE(loaders.device(1), loaders.device(3));
  EXPECT_EQ(loaders.device(4), nullptr);
}

// What hangs takes nothing with it but what is asked of it.
TEST(LoadersTest, AKindOfWorkThatHangsHoldsUpNoOther) {
  Loaders loaders(1, {0});
  std::vector<LoaderPool*> pools = {&loaders.named,           &loaders.passed,
                                    &loaders.foreign,         &loaders.background,
                                    &loaders.files,           &loaders.device(0)->checks,
                                    &loaders.device(0)->loads};
  for (LoaderPool* const hanging : pools) {
    std::promise<void> opened;
    std::shared_future<void> open = opened.get_future().share();
    std::promise<void> ended;
    for (int i = 0; i < 4; ++i) hanging->Run([open] { open.wait(); });
    hanging->Run([&] { ended.set_value(); });
    for (LoaderPool* const other : pools) {
      if (other == hanging) continue;
      std::promise<void> done;
      other->Run([&] { done.set_value(); });
      EXPECT_EQ(done.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    }
    opened.set_value();
    ended.get_future().wait();
  }
}

TEST(LoadersTest, AsManyThreadsAsConfiguredElseAsThereAreCores) {
  EXPECT_EQ(ThreadCount(3, 2), 3) << "who says a number gets it";
  EXPECT_EQ(ThreadCount(0, 1), 1);
  EXPECT_GE(ThreadCount(0, 8), 1);
  EXPECT_LE(ThreadCount(0, 8), 8);
}

}  // namespace
}  // namespace trims

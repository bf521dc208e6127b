#include "base/mutex.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace trims {
namespace {

struct Counter {
  Mutex mutex;
  CondVar changed;
  int value TRIMS_GUARDED_BY(mutex) = 0;
};

TEST(MutexTest, OneThreadAtATimeHoldsIt) {
  constexpr int kThreads = 4;
  constexpr int kTimes = 10'000;
  Counter counter;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < kTimes; ++k) {
        const MutexLock lock(counter.mutex);
        // Two steps that another thread would come between.
        const int value = counter.value;
        counter.value = value + 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const MutexLock lock(counter.mutex);
  EXPECT_EQ(counter.value, kThreads * kTimes);
}

TEST(MutexTest, AWaitGivesTheMutexBackAndHoldsItAgain) {
  Counter counter;
  std::thread thread([&] {
    for (int i = 0; i < 100; ++i) {
      const MutexLock lock(counter.mutex);
      while (counter.value % 2 == 0) counter.changed.Wait(counter.mutex);
      ++counter.value;
      counter.changed.NotifyAll();
    }
  });
  for (int i = 0; i < 100; ++i) {
    const MutexLock lock(counter.mutex);
    while (counter.value % 2 == 1) counter.changed.Wait(counter.mutex);
    ++counter.value;
    counter.changed.NotifyOne();
  }
  thread.join();
  const MutexLock lock(counter.mutex);
  EXPECT_EQ(counter.value, 200);
}

TEST(MutexTest, AWaitWithADeadlineEnds) {
  Counter counter;
  const MutexLock lock(counter.mutex);
  const auto passed = std::chrono::steady_clock::now() - std::chrono::seconds(1);
  EXPECT_FALSE(counter.changed.WaitUntil(counter.mutex, passed));
  const auto soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
  while (counter.changed.WaitUntil(counter.mutex, soon)) {
  }
  EXPECT_GE(std::chrono::steady_clock::now(), soon);
}

TEST(MutexTest, WhatIsHeldCanBeLetGoOfForAWhile) {
  Counter counter;
  const MutexLock lock(counter.mutex);
  {
    const MutexUnlock unlock(counter.mutex);
    const MutexLock again(counter.mutex);  // Would wait for ever if it were still held.
    counter.value = 1;
  }
  std::thread other([&] {
    const MutexLock lock_of_other(counter.mutex);
    counter.value = 2;
  });
  EXPECT_EQ(counter.value, 1);  // The other one waits: it is held again.
  {
    const MutexUnlock unlock(counter.mutex);
    other.join();
  }
  EXPECT_EQ(counter.value, 2);
}

}  // namespace
}  // namespace trims

#include "daemon/loader_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace trims {
namespace {

TEST(LoaderPoolTest, OneThreadRunsJobsInTheOrderOfTheirArrival) {
  std::vector<int> order;
  std::promise<void> done;
  LoaderPool pool("test", 1);
  for (int i = 0; i < 100; ++i) pool.Run([&order, i] { order.push_back(i); });
  pool.Run([&] { done.set_value(); });
  done.get_future().get();
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(LoaderPoolTest, AsManyJobsRunAtATimeAsThereAreThreads) {
  constexpr int kThreads = 3;
  // Each waits for the last: with fewer threads none would ever end.
  std::promise<void> all;
  const std::shared_future<void> wait = all.get_future().share();
  std::atomic<int> running = 0;
  LoaderPool pool("test", kThreads);
  for (int i = 0; i < kThreads; ++i) {
    pool.Run([&, wait] {
      if (++running == kThreads) all.set_value();
      wait.get();
    });
  }
  wait.get();
  EXPECT_EQ(running, kThreads);
}

TEST(LoaderPoolTest, ItsEndWaitsForRunningJobsAndDropsQueuedOnesWithWhatTheyHold) {
  std::promise<void> began, go_on;
  bool ended = false;
  int dropped_ran = 0;
  const auto held = std::make_shared<int>();
  auto pool = std::make_unique<LoaderPool>("test", 1);
  LoaderPool* const raw = pool.get();
  raw->Run([&] {
    began.set_value();
    go_on.get_future().get();
    // Runs while the pool ends: what is asked for now is dropped, too, or was queued and is.
    raw->Run([&, held] { ++dropped_ran; });
    ended = true;
  });
  began.get_future().get();
  for (int i = 0; i < 10; ++i) raw->Run([&, held] { ++dropped_ran; });
  std::thread ender([&] { pool.reset(); });
  // Its queue is gone before it waits: then it is really ending.
  while (held.use_count() > 1) std::this_thread::yield();
  go_on.set_value();
  ender.join();
  EXPECT_TRUE(ended);
  EXPECT_EQ(dropped_ran, 0);
  EXPECT_EQ(held.use_count(), 1);
}

TEST(LoaderPoolTest, ThreadsAreNamedForThoseWhoLookAtTheProcess) {
  std::promise<std::string> name;
  LoaderPool pool("a name that is too long", 1);
  pool.Run([&] {
    char text[16] = {};
    ::pthread_getname_np(::pthread_self(), text, sizeof text);
    name.set_value(text);
  });
  EXPECT_EQ(name.get_future().get(), "a name that is ");
}

}  // namespace
}  // namespace trims

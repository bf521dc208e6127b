// All copies that a machine can make, without a daemon.
#include "bench/copies.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "bench/test_bench.h"

namespace trims::bench {
namespace {

class CopiesTest : public BenchTest {
 protected:
  const Interrupts interrupts_;
};

TEST_F(CopiesTest, CopiesOnTheHostAreMeasuredWithOneThreadAndWithAll) {
  QuietObserver observer;
  CopyBench copies({.runs = 3, .directory = directory_}, interrupts_, observer);
  std::vector<Device> none;
  const Status status = copies.Run(kMiB, none);
  ASSERT_TRUE(status.ok()) << status.ToString();
  std::map<std::string, std::set<unsigned>> threads;
  for (const CopyFigures& figures : copies.figures()) {
    EXPECT_EQ(figures.samples.size(), 3u) << figures.text;
    EXPECT_GE(figures.bytes, kMiB);
    EXPECT_GE(figures.Rate(figures.samples.Min()), figures.Rate(figures.samples.Median()));
    threads[figures.key].insert(figures.threads);
    EXPECT_TRUE(observer.shown.contains(figures.text)) << figures.text;
  }
  EXPECT_EQ(threads.size(), 2u);
  EXPECT_TRUE(threads["host_memcpy"].contains(1));
  EXPECT_TRUE(threads["host_memcpy"].contains(std::max(1U, std::thread::hardware_concurrency())));
  EXPECT_TRUE(threads["page_cache_read"].contains(1));
  EXPECT_GE(observer.cleared, static_cast<int>(copies.figures().size()));
  EXPECT_TRUE(std::filesystem::is_empty(directory_));  // Its file is gone.
}

TEST_F(CopiesTest, InterruptedCopiesLeaveNothing) {
  QuietObserver observer;
  CopyBench copies({.runs = 3, .directory = directory_}, interrupts_, observer);
  ASSERT_EQ(::raise(SIGINT), 0);
  std::vector<Device> none;
  EXPECT_EQ(copies.Run(kMiB, none).code(), StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

}  // namespace
}  // namespace trims::bench

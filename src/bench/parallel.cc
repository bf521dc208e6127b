#include "bench/parallel.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <latch>
#include <thread>
#include <vector>

#include "bench/timing.h"

namespace trims::bench {
namespace {

using std::chrono::steady_clock;

constexpr unsigned kReadThreadsMax = 16;

}  // namespace

double InParallel(unsigned threads, const std::function<void(unsigned)>& body) {
  struct Times {
    steady_clock::time_point begin;
    steady_clock::time_point end;
  };
  std::vector<Times> times(threads);
  std::latch start(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::thread> crew;
  for (unsigned i = 0; i < threads; ++i) {
    crew.emplace_back([&, i] {
      start.arrive_and_wait();
      times[i].begin = steady_clock::now();
      body(i);
      times[i].end = steady_clock::now();
    });
  }
  for (std::thread& one : crew) one.join();
  Times all = times[0];
  for (const Times& one : times) {
    all.begin = std::min(all.begin, one.begin);
    all.end = std::max(all.end, one.end);
  }
  return Seconds(all.begin, all.end);
}

unsigned ReadThreads() {
  return std::clamp(std::thread::hardware_concurrency(), 1U, kReadThreadsMax);
}

}  // namespace trims::bench

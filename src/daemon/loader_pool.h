// A fixed number of threads that run jobs in order of arrival: where blocking
// work of the worker (files, hashing, loading) happens. Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace trims {

class LoaderPool final {
 public:
  LoaderPool(const std::string& name, int threads);
  // Waits for running jobs; queued ones are dropped.
  ~LoaderPool();
  LoaderPool(const LoaderPool&) = delete;
  LoaderPool& operator=(const LoaderPool&) = delete;

  void Run(std::function<void()> job);

 private:
  void Work();

  std::mutex mu_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;  // Guarded by mu_.
  bool ending_ = false;                     // Guarded by mu_.
  std::vector<std::thread> threads_;
};

}  // namespace trims

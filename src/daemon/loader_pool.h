// A fixed number of threads that run jobs in order of arrival: where blocking
// work of the worker (files, hashing, loading) happens. Thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"

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

  Mutex mu_;
  CondVar ready_;
  std::deque<std::function<void()>> jobs_ TRIMS_GUARDED_BY(mu_);
  bool ending_ TRIMS_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace trims

#include "daemon/loader_pool.h"

#include <pthread.h>

namespace trims {

LoaderPool::LoaderPool(const std::string& name, int threads) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { Work(); });
    (void)::pthread_setname_np(threads_.back().native_handle(), name.substr(0, 15).c_str());
  }
}

LoaderPool::~LoaderPool() {
  {
    std::lock_guard lock(mu_);
    ending_ = true;
    jobs_.clear();
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void LoaderPool::Run(std::function<void()> job) {
  {
    std::lock_guard lock(mu_);
    if (ending_) return;
    jobs_.push_back(std::move(job));
  }
  ready_.notify_one();
}

void LoaderPool::Work() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mu_);
      ready_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
      if (ending_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace trims

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
    const MutexLock lock(mu_);
    ending_ = true;
    jobs_.clear();
  }
  ready_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void LoaderPool::Run(std::function<void()> job) {
  {
    const MutexLock lock(mu_);
    if (ending_) return;
    jobs_.push_back(std::move(job));
  }
  ready_.NotifyOne();
}

void LoaderPool::Work() {
  for (;;) {
    std::function<void()> job;
    {
      const MutexLock lock(mu_);
      while (!ending_ && jobs_.empty()) ready_.Wait(mu_);
      if (ending_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace trims

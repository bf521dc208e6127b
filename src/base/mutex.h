// Mutex, MutexLock and CondVar whose use clang checks: every member says which
// mutex guards it, and an access without that mutex does not compile
// (-Werror=thread-safety, in every build with clang). To GCC the annotations are
// nothing.
//
// Thin, over std::mutex and std::condition_variable. absl::Mutex would bring the
// same checks, but the client library hides its C++ runtime, lives inside other
// people's processes and must stay small.
//
//   Mutex mu_;
//   CondVar ready_;
//   std::deque<Job> jobs_ TRIMS_GUARDED_BY(mu_);
//
//   const MutexLock lock(mu_);
//   while (jobs_.empty()) ready_.Wait(mu_);
//
// Waits stand in loops and not in predicates: a lambda does not know what its
// caller holds. Thread-safe. Immovable; outlive whoever uses them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define TRIMS_THREAD_ANNOTATION_(x) __attribute__((x))
#else
#define TRIMS_THREAD_ANNOTATION_(x)
#endif

// Of members and variables: only read and written with the mutex held; of
// pointers, what they point to.
#define TRIMS_GUARDED_BY(mutex) TRIMS_THREAD_ANNOTATION_(guarded_by(mutex))
#define TRIMS_PT_GUARDED_BY(mutex) TRIMS_THREAD_ANNOTATION_(pt_guarded_by(mutex))
// Of functions: called with the mutex held, or without it.
#define TRIMS_REQUIRES(...) TRIMS_THREAD_ANNOTATION_(requires_capability(__VA_ARGS__))
#define TRIMS_EXCLUDES(...) TRIMS_THREAD_ANNOTATION_(locks_excluded(__VA_ARGS__))
// Of functions: take the mutex, give it back, know that it is held.
#define TRIMS_ACQUIRE(...) TRIMS_THREAD_ANNOTATION_(acquire_capability(__VA_ARGS__))
#define TRIMS_RELEASE(...) TRIMS_THREAD_ANNOTATION_(release_capability(__VA_ARGS__))
#define TRIMS_ASSERT_HELD(...) TRIMS_THREAD_ANNOTATION_(assert_capability(__VA_ARGS__))
// Of types.
#define TRIMS_CAPABILITY(name) TRIMS_THREAD_ANNOTATION_(capability(name))
#define TRIMS_SCOPED_CAPABILITY TRIMS_THREAD_ANNOTATION_(scoped_lockable)
// Where the checks can not follow; with a comment that says why it is right.
#define TRIMS_NO_THREAD_SAFETY_ANALYSIS TRIMS_THREAD_ANNOTATION_(no_thread_safety_analysis)

namespace trims {

class TRIMS_CAPABILITY("mutex") Mutex final {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() TRIMS_ACQUIRE() { mutex_.lock(); }
  void Unlock() TRIMS_RELEASE() { mutex_.unlock(); }
  // For functions that are called through what carries no annotation, a hook or a
  // std::function, by somebody who holds the mutex: tells clang so, and does nothing.
  void AssertHeld() const TRIMS_ASSERT_HELD(this) {}

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds a mutex as long as it lives.
class TRIMS_SCOPED_CAPABILITY MutexLock final {
 public:
  explicit MutexLock(Mutex& mutex) TRIMS_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() TRIMS_RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Lets go, as long as it lives, of a mutex that the caller holds.
class TRIMS_SCOPED_CAPABILITY MutexUnlock final {
 public:
  explicit MutexUnlock(Mutex& mutex) TRIMS_RELEASE(mutex) : mutex_(mutex) { mutex_.Unlock(); }
  ~MutexUnlock() TRIMS_RELEASE() { mutex_.Lock(); }  // clang's way to say: undoes it.
  MutexUnlock(const MutexUnlock&) = delete;
  MutexUnlock& operator=(const MutexUnlock&) = delete;

 private:
  Mutex& mutex_;
};

// Wakes threads that wait for what a mutex guards to change. A wait gives the
// mutex back while it sleeps, and may end without a reason.
class CondVar final {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  void Wait(Mutex& mutex) TRIMS_REQUIRES(mutex) {
    std::unique_lock lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False when the deadline has passed.
  template <typename Clock, typename Length>
  bool WaitUntil(Mutex& mutex, const std::chrono::time_point<Clock, Length>& deadline)
      TRIMS_REQUIRES(mutex) {
    std::unique_lock lock(mutex.mutex_, std::adopt_lock);
    const bool in_time = condition_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }

  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace trims

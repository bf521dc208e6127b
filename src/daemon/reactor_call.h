// From other threads to the reactor's and back.
#pragma once

#include <functional>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"

namespace trims {

class Reactor;

// Runs `work` on the reactor's thread and returns what it returned. UNAVAILABLE when the
// loop has ended, or ends first: `work` has not run then, and never will, so it may refer
// to what its caller has on the stack. Not to be called on the reactor's thread. `name` is a
// literal, as in Reactor::Post.
Status CallOnReactor(Reactor* reactor, const char* name, std::function<Status()> work);

// A value that one thread gives once and another waits for. Thread-safe.
template <typename Value>
class Later final {
 public:
  void Set(Value value) {
    const MutexLock lock(mu_);
    value_ = std::move(value);
    given_.NotifyAll();
  }
  // True as soon as the value is there, false after `most`.
  bool WaitFor(Duration most) {
    const Time deadline = Now() + most;
    const MutexLock lock(mu_);
    while (!value_ && given_.WaitUntil(mu_, deadline)) {
    }
    return value_.has_value();
  }
  // After WaitFor has returned true.
  Value Take() {
    const MutexLock lock(mu_);
    return *std::exchange(value_, std::nullopt);
  }

 private:
  Mutex mu_;
  CondVar given_;
  std::optional<Value> value_ TRIMS_GUARDED_BY(mu_);
};

}  // namespace trims

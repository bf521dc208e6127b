#include "daemon/reactor_call.h"

#include <memory>

#include "daemon/reactor.h"

namespace trims {

Status CallOnReactor(Reactor* reactor, const char* name, std::function<Status()> work) {
  struct Answer {
    Mutex mu;
    CondVar given;
    std::optional<Status> status TRIMS_GUARDED_BY(mu);
  };
  // Goes with the callback, also when that is dropped unrun because the loop has ended.
  struct Guard {
    explicit Guard(std::shared_ptr<Answer> to) : answer(std::move(to)) {}
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      const MutexLock lock(answer->mu);
      if (!answer->status) answer->status = UnavailableError("the daemon is stopping");
      answer->given.NotifyAll();
    }
    const std::shared_ptr<Answer> answer;
  };
  auto answer = std::make_shared<Answer>();
  reactor->Post(name, [guard = std::make_shared<Guard>(answer), work = std::move(work)] {
    Status status = work();
    const MutexLock lock(guard->answer->mu);
    guard->answer->status = std::move(status);
    guard->answer->given.NotifyAll();
  });
  const MutexLock lock(answer->mu);
  while (!answer->status) answer->given.Wait(answer->mu);
  return *answer->status;
}

}  // namespace trims

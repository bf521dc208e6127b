// Text for clang, not a program: two ctests compile it, as it stands, where it must
// pass, and with TRIMS_MISUSE, where each line that forgets a mutex must be an error.
#include "base/mutex.h"

namespace {

struct Account {
  trims::Mutex mutex;
  trims::CondVar changed;
  int balance TRIMS_GUARDED_BY(mutex) = 0;

  void Pay(int amount) TRIMS_REQUIRES(mutex) { balance += amount; }

  int Read() {
#ifndef TRIMS_MISUSE
    const trims::MutexLock lock(mutex);
#endif
    return balance;
  }
  void Call() {
#ifndef TRIMS_MISUSE
    const trims::MutexLock lock(mutex);
#endif
    Pay(1);
  }
  void Wait() {
    const trims::MutexLock lock(mutex);
    while (balance == 0) changed.Wait(mutex);
    const trims::MutexUnlock unlock(mutex);
#ifdef TRIMS_MISUSE
    balance = 0;
#endif
  }
};

}  // namespace

void UseAccount() {
  Account account;
  account.Read();
  account.Call();
  account.Wait();
}

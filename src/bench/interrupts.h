// Ctrl-C as a question that long work asks, so that it can clean up behind itself: while
// an Interrupts lives, SIGINT, SIGTERM and SIGHUP end nothing but are remembered. The
// second one ends the program at once. One at a time; const methods are thread-safe.
#pragma once

#include <chrono>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims::bench {

class Interrupts final {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // CANCELLED when one came.
  Status Check() const { return Wait(std::chrono::milliseconds(0)); }
  // Waits so long, or until one comes, which is CANCELLED.
  Status Wait(std::chrono::milliseconds time) const;

 private:
  UniqueFd event_;
};

}  // namespace trims::bench

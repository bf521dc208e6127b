// What a benchmark tells whoever runs it while it goes on. It tells it on the thread that
// runs the benchmark.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace trims::bench {

class Observer {
 public:
  struct Step {
    std::string label;  // "writing weights"
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;  // 0: unknown.
  };

  virtual ~Observer() = default;

  // This is being done. Often; said again with more bytes.
  virtual void Show(const Step& step) = 0;
  // What was shown last is done.
  virtual void Clear() = 0;
  // The benchmark's model of that name stays with the daemon: it could not be removed.
  virtual void Left(const std::string& model, const Status& why) = 0;
};

}  // namespace trims::bench

// Which calls of this process fail, and how many there were. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fake_cuda/driver_api.h"

namespace fake_cuda {

class Faults final {
 public:
  // The one of this process, which begins with FAKE_CUDA_FAIL.
  static Faults& Get();

  // Replaces the plan and counts from 0; false, and nothing changes, when it makes no sense.
  bool Plan(const std::string& spec);
  // Counts a call of `name`, and says what it must return.
  CUresult Count(const char* name);
  uint64_t Calls(const std::string& name);

 private:
  struct Fault {
    std::string name;  // "*": any.
    uint64_t first = 0;
    uint64_t last = 0;
    CUresult result = CUDA_SUCCESS;
  };
  Faults();

  std::mutex mutex_;
  std::vector<Fault> faults_;              // Guarded by mutex_.
  std::map<std::string, uint64_t> calls_;  // Guarded by mutex_; "*" counts all.
};

}  // namespace fake_cuda

#include "fake_cuda/faults.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

namespace fake_cuda {

Faults& Faults::Get() {
  static Faults& faults = *new Faults;
  return faults;
}

Faults::Faults() {
  const char* spec = std::getenv("FAKE_CUDA_FAIL");
  if (spec != nullptr && !Plan(spec)) {
    std::fprintf(stderr, "fake_cuda: FAKE_CUDA_FAIL=%s makes no sense\n", spec);
    std::abort();
  }
}

bool Faults::Plan(const std::string& spec) {
  std::vector<Fault> faults;
  size_t begin = 0;
  while (begin < spec.size()) {
    const size_t end = std::min(spec.find(',', begin), spec.size());
    const std::string part = spec.substr(begin, end - begin);
    begin = end + 1;
    // name:first[+]=result
    const size_t colon = part.find(':');
    if (colon == 0 || colon == std::string::npos) return false;
    Fault fault{.name = part.substr(0, colon)};
    const char* at = part.c_str() + colon + 1;
    char* rest = nullptr;
    fault.first = std::strtoull(at, &rest, 10);
    if (rest == at || fault.first == 0) return false;
    fault.last = fault.first;
    if (*rest == '+') {
      fault.last = std::numeric_limits<uint64_t>::max();
      ++rest;
    }
    if (*rest != '=') return false;
    at = rest + 1;
    fault.result = static_cast<CUresult>(std::strtol(at, &rest, 10));
    if (rest == at || *rest != '\0') return false;
    faults.push_back(std::move(fault));
  }
  const std::lock_guard lock(mutex_);
  faults_ = std::move(faults);
  calls_.clear();
  return true;
}

CUresult Faults::Count(const char* name) {
  const std::lock_guard lock(mutex_);
  const uint64_t all = ++calls_["*"];
  const uint64_t own = ++calls_[name];
  for (const Fault& fault : faults_) {
    const bool any = fault.name == "*";
    if (!any && fault.name != name) continue;
    const uint64_t count = any ? all : own;
    if (count >= fault.first && count <= fault.last) return fault.result;
  }
  return CUDA_SUCCESS;
}

uint64_t Faults::Calls(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(name);
  return found == calls_.end() ? 0 : found->second;
}

}  // namespace fake_cuda

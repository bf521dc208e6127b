#include "bench/mapping_floor.h"

#include <cerrno>
#include <chrono>

#include "bench/sealed_memory.h"

namespace trims::bench {

using std::chrono::steady_clock;

Result<HostMappingFloor> HostMappingFloor::Make(uint64_t bytes) {
  ASSIGN_OR_RETURN(UniqueFd weights, SealedMemory(bytes));
  ASSIGN_OR_RETURN(UniqueFd index, SealedMemory(kIndexBytes));
  return HostMappingFloor(std::move(weights), std::move(index), bytes);
}

Result<OpenTimes> HostMappingFloor::Measure() const {
  steady_clock::time_point begin = steady_clock::now();
  OpenTimes times;
  {
    const Mapped weights(weights_.get(), bytes_);
    const Mapped index(index_.get(), kIndexBytes);
    if (!weights.ok() || !index.ok()) return ErrnoStatus(errno, "mapping memory");
    index.Touch();
    const steady_clock::time_point opened = steady_clock::now();
    times.open = Seconds(begin, opened);
    begin = opened;
  }
  times.close = Seconds(begin, steady_clock::now());
  return times;
}

MappingFloor::~MappingFloor() {
  if (device_ != nullptr) device_->DropShared();
}

Status MappingFloor::Make(uint64_t bytes) {
  if (device_ != nullptr) return device_->MakeShared(bytes);
  ASSIGN_OR_RETURN(host_, HostMappingFloor::Make(bytes));
  return OkStatus();
}

Result<OpenTimes> MappingFloor::Measure() const {
  return device_ != nullptr ? device_->MeasureMapping() : host_->Measure();
}

}  // namespace trims::bench

// The floor of opens: the mappings that no open can do without, and nothing around them.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "bench/device.h"
#include "bench/timing.h"

namespace trims::bench {

// What an open on the host tier can not do without: mapping sealed memory of that size and a
// tensor index, and reading a byte of the latter. The memory is never touched and costs nothing.
class HostMappingFloor final {
 public:
  static Result<HostMappingFloor> Make(uint64_t bytes);
  Result<OpenTimes> Measure() const;

 private:
  HostMappingFloor(UniqueFd weights, UniqueFd index, uint64_t bytes)
      : weights_(std::move(weights)), index_(std::move(index)), bytes_(bytes) {}

  UniqueFd weights_;
  UniqueFd index_;
  uint64_t bytes_ = 0;
};

// The same where a device's memory may be meant: its driver's calls then.
class MappingFloor final {
 public:
  // Null: the host. Outlives this object, with which the device's memory goes.
  explicit MappingFloor(Device* device) : device_(device) {}
  ~MappingFloor();
  MappingFloor(const MappingFloor&) = delete;
  MappingFloor& operator=(const MappingFloor&) = delete;

  // RESOURCE_EXHAUSTED when the device has no room for as many bytes. Before Measure.
  Status Make(uint64_t bytes);
  Result<OpenTimes> Measure() const;

 private:
  Device* const device_;
  std::optional<HostMappingFloor> host_;
};

}  // namespace trims::bench

// What a benchmark asks the daemon as an operator does: the calls of control.proto that it
// needs, blocking. How they reach the daemon is the business of whoever implements this.
#pragma once

#include "base/status.h"
#include "trims/v1/control.pb.h"

namespace trims::bench {

// One thread at a time.
class Control {
 public:
  virtual ~Control() = default;

  virtual Status GetStatus(const v1::GetStatusRequest& request,
                           v1::GetStatusResponse* response) = 0;
  virtual Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) = 0;
  virtual Status Add(const v1::AddRequest& request, v1::AddResponse* response) = 0;
  virtual Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) = 0;
  virtual Status Pin(const v1::PinRequest& request, v1::PinResponse* response) = 0;
  virtual Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) = 0;
};

}  // namespace trims::bench

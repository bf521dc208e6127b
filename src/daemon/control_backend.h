// What the control service asks of the daemon: one method per RPC of
// proto/trims/v1/control.proto, whose comments specify them. Interface; the
// worker implements it, tests have fake_control_backend.h.
// Both keep the rules of control_conformance.h.
//
// Thread rule: called on gRPC's threads, several at a time; methods may block.
// Lifetime rule: outlives the ControlServer it was given to. References passed
// in are borrowed for the call. Error codes are sent to the caller as they are;
// a response is sent only with an OK status.
#pragma once

#include <functional>

#include "base/status.h"

namespace trims {

namespace v1 {
class AddRequest;
class AddResponse;
class Event;
class EvictRequest;
class EvictResponse;
class GetConfigRequest;
class GetConfigResponse;
class GetStatusRequest;
class GetStatusResponse;
class InfoRequest;
class InfoResponse;
class ListLeasesRequest;
class ListLeasesResponse;
class ListRequest;
class ListResponse;
class LoadProgress;
class LoadRequest;
class PinRequest;
class PinResponse;
class RemoveRequest;
class RemoveResponse;
class UnpinRequest;
class UnpinResponse;
class VerifyProgress;
class VerifyRequest;
class WatchRequest;
}  // namespace v1

class ControlBackend {
 public:
  // Sends one message of a stream; blocks while the caller's window is full.
  // False when the caller is gone or the server stops: the method is then to
  // stop and return soon, with any status.
  template <typename Message>
  using Emit = std::function<bool(const Message&)>;
  // True when the caller is gone or the server stops. Cheap; to be asked at
  // least ten times a second by a method that waits without emitting.
  using Cancelled = std::function<bool()>;

  virtual ~ControlBackend() = default;

  virtual Status Info(const v1::InfoRequest& request, v1::InfoResponse* response) = 0;
  virtual Status List(const v1::ListRequest& request, v1::ListResponse* response) = 0;
  virtual Status Load(const v1::LoadRequest& request, const Emit<v1::LoadProgress>& emit,
                      const Cancelled& cancelled) = 0;
  // These two may have to read a model that nobody has looked at yet.
  virtual Status Pin(const v1::PinRequest& request, v1::PinResponse* response,
                     const Cancelled& cancelled) = 0;
  virtual Status Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response,
                       const Cancelled& cancelled) = 0;
  virtual Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response) = 0;
  virtual Status Add(const v1::AddRequest& request, v1::AddResponse* response) = 0;
  virtual Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response) = 0;
  virtual Status Verify(const v1::VerifyRequest& request, const Emit<v1::VerifyProgress>& emit,
                        const Cancelled& cancelled) = 0;
  virtual Status ListLeases(const v1::ListLeasesRequest& request,
                            v1::ListLeasesResponse* response) = 0;
  // Calls `watching` once the watch is in place, before the first emit.
  virtual Status Watch(const v1::WatchRequest& request, const std::function<void()>& watching,
                       const Emit<v1::Event>& emit, const Cancelled& cancelled) = 0;
  virtual Status GetConfig(const v1::GetConfigRequest& request,
                           v1::GetConfigResponse* response) = 0;
  virtual Status GetStatus(const v1::GetStatusRequest& request,
                           v1::GetStatusResponse* response) = 0;
};

}  // namespace trims

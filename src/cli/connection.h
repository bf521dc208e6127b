// A connection to the daemon's control socket: control.proto as blocking calls.
// Move-only; thread-compatible. Keeps gRPC out of the commands.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "trims/v1/control.pb.h"

namespace trims::cli {

class Connection final {
 public:
  // Connects to <runtime_dir>/control.sock. UNAVAILABLE says why not; HintFor
  // says what to do about it. A socket that somebody else could have planted is
  // refused: it must belong to root, to this user, or to the owner of a
  // directory that only root could have made.
  static Result<Connection> Open(const std::string& runtime_dir);
  static std::string HintFor(const std::string& runtime_dir);
  // The same checks for another socket of that directory; only connects.
  static Result<UniqueFd> ConnectSocket(const std::string& runtime_dir, const std::string& name,
                                        int type);

  Connection(Connection&&) noexcept;
  Connection& operator=(Connection&&) noexcept;
  ~Connection();

  Status Info(const v1::InfoRequest& request, v1::InfoResponse* response);
  Status List(const v1::ListRequest& request, v1::ListResponse* response);
  Status Pin(const v1::PinRequest& request, v1::PinResponse* response);
  Status Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response);
  Status Evict(const v1::EvictRequest& request, v1::EvictResponse* response);
  Status Add(const v1::AddRequest& request, v1::AddResponse* response);
  Status Remove(const v1::RemoveRequest& request, v1::RemoveResponse* response);
  Status ListLeases(const v1::ListLeasesRequest& request, v1::ListLeasesResponse* response);
  Status GetConfig(const v1::GetConfigRequest& request, v1::GetConfigResponse* response);
  Status GetStatus(const v1::GetStatusRequest& request, v1::GetStatusResponse* response);

  // Return when the stream has ended.
  Status Load(const v1::LoadRequest& request,
              const std::function<void(const v1::LoadProgress&)>& on_progress);
  Status Verify(const v1::VerifyRequest& request,
                const std::function<void(const v1::VerifyProgress&)>& on_progress);
  // `on_watching` is called when nothing will be missed any more.
  Status Watch(const v1::WatchRequest& request, const std::function<void()>& on_watching,
               const std::function<void(const v1::Event&)>& on_event);

  // What people type for a model: a name, "[@][sha256:]<hex>", or the first digits of a
  // digest as tables show them. Returns a name or "@sha256:<64 hex>".
  // NOT_FOUND, or INVALID_ARGUMENT when several models begin so.
  Result<std::string> ResolveModel(const std::string& typed);

 private:
  struct State;
  explicit Connection(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace trims::cli

#include "daemon/control_server.h"

#include <fcntl.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/text.h"
#include "daemon/control_status.h"
#include "trims/v1/control.grpc.pb.h"

namespace trims {
namespace {

constexpr char kServiceName[] = "trims.v1.Control";

// Protobuf refuses to parse strings that are not UTF-8, so one odd file or
// process name would make a whole listing unreadable.
void RepairStrings(google::protobuf::Message* message) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection* reflection = message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (field->is_repeated()) {
        for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
          RepairStrings(reflection->MutableRepeatedMessage(message, field, i));
        }
      } else {
        RepairStrings(reflection->MutableMessage(message, field));
      }
    } else if (field->type() == FieldDescriptor::TYPE_STRING) {
      std::string scratch;
      if (field->is_repeated()) {
        for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
          const std::string& text =
              reflection->GetRepeatedStringReference(*message, field, i, &scratch);
          if (!IsValidUtf8(text)) {
            reflection->SetRepeatedString(message, field, i, ToValidUtf8(text));
          }
        }
      } else {
        const std::string& text = reflection->GetStringReference(*message, field, &scratch);
        if (!IsValidUtf8(text)) reflection->SetString(message, field, ToValidUtf8(text));
      }
    }
  }
}

class ControlService final : public v1::Control::Service {
 public:
  explicit ControlService(ControlBackend* backend) : backend_(backend) {}

  void Stop() { stopping_ = true; }

#define TRIMS_UNARY_(Method)                                                    \
  grpc::Status Method(grpc::ServerContext*, const v1::Method##Request* request, \
                      v1::Method##Response* response) override {                \
    return Unary(*request, response, &ControlBackend::Method);                  \
  }
  TRIMS_UNARY_(Info)
  TRIMS_UNARY_(List)
  TRIMS_UNARY_(Evict)
  TRIMS_UNARY_(Add)
  TRIMS_UNARY_(Remove)
  TRIMS_UNARY_(ListLeases)
  TRIMS_UNARY_(GetConfig)
  TRIMS_UNARY_(GetStatus)
#undef TRIMS_UNARY_

  grpc::Status Pin(grpc::ServerContext* context, const v1::PinRequest* request,
                   v1::PinResponse* response) override {
    return Finish(backend_->Pin(*request, response, CancelledBy(context)), response);
  }
  grpc::Status Unpin(grpc::ServerContext* context, const v1::UnpinRequest* request,
                     v1::UnpinResponse* response) override {
    return Finish(backend_->Unpin(*request, response, CancelledBy(context)), response);
  }
  grpc::Status Load(grpc::ServerContext* context, const v1::LoadRequest* request,
                    grpc::ServerWriter<v1::LoadProgress>* writer) override {
    return Finish(backend_->Load(*request, EmitTo(writer), CancelledBy(context)));
  }
  grpc::Status Verify(grpc::ServerContext* context, const v1::VerifyRequest* request,
                      grpc::ServerWriter<v1::VerifyProgress>* writer) override {
    return Finish(backend_->Verify(*request, EmitTo(writer), CancelledBy(context)));
  }
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest* request,
                     grpc::ServerWriter<v1::Event>* writer) override {
    return Finish(backend_->Watch(
        *request, [writer] { writer->SendInitialMetadata(); }, EmitTo(writer),
        CancelledBy(context)));
  }

 private:
  template <typename Request, typename Response>
  grpc::Status Unary(const Request& request, Response* response,
                     Status (ControlBackend::*method)(const Request&, Response*)) {
    const Status status = (backend_->*method)(request, response);
    if (status.ok()) RepairStrings(response);
    return ToGrpcStatus(status);
  }

  template <typename Message>
  ControlBackend::Emit<Message> EmitTo(grpc::ServerWriter<Message>* writer) {
    return [this, writer](const Message& message) {
      if (stopping_) return false;
      Message repaired = message;
      RepairStrings(&repaired);
      return writer->Write(repaired);
    };
  }

  ControlBackend::Cancelled CancelledBy(grpc::ServerContext* context) {
    return [this, context] { return stopping_ || context->IsCancelled(); };
  }

  // An answer that was cut short by the shutdown is not the caller's doing.
  grpc::Status Finish(const Status& status, google::protobuf::Message* response) {
    if (status.ok()) {
      RepairStrings(response);
      return grpc::Status::OK;
    }
    return Finish(status);
  }
  // A stream that was cut short by the shutdown must not look complete.
  grpc::Status Finish(const Status& status) {
    if (stopping_ && (status.ok() || status.code() == StatusCode::kCancelled)) {
      return ToGrpcStatus(UnavailableError("the daemon is stopping"));
    }
    return ToGrpcStatus(status);
  }

  ControlBackend* const backend_;
  std::atomic<bool> stopping_{false};
};

Result<std::vector<gid_t>> PeerGroups(int connection) {
  std::vector<gid_t> groups(64);
  while (true) {
    socklen_t size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    if (::getsockopt(connection, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) == 0) {
      groups.resize(size / sizeof(gid_t));
      return groups;
    }
    if (errno != ERANGE) return ErrnoStatus(errno, "reading the groups of a control connection");
    groups.resize(size / sizeof(gid_t));
  }
}

}  // namespace

ControlAccess ControlAccess::OfThisProcess() {
  return ControlAccess{.owner = ::geteuid(), .group = ::getegid(), .mode = 0660};
}

Status CheckControlPeer(int connection, const ControlAccess& access) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return ErrnoStatus(errno, "reading the credentials of a control connection");
  }
  if (peer.uid == 0 || peer.uid == access.owner) return OkStatus();
  if ((access.mode & S_IWOTH) != 0) return OkStatus();
  if ((access.mode & S_IWGRP) != 0) {
    if (peer.gid == access.group) return OkStatus();
    ASSIGN_OR_RETURN(const std::vector<gid_t> groups, PeerGroups(connection));
    if (std::find(groups.begin(), groups.end(), access.group) != groups.end()) return OkStatus();
  }
  return PermissionDeniedError("process " + std::to_string(peer.pid) + " of uid " +
                               std::to_string(peer.uid) +
                               " may not use the control socket: it is neither root nor uid " +
                               std::to_string(access.owner) + ", and not in group " +
                               std::to_string(access.group) + " or the group may not write");
}

struct ControlServer::State {
  State(ControlBackend* backend, const ControlAccess& granted)
      : access(granted), service(backend) {}

  const ControlAccess access;
  ControlService service;
  std::unique_ptr<grpc::Server> server;

  // A connection belongs to gRPC once it was handed over, and gRPC does not say
  // when it closes it. The inode number of a socket is its own, so a descriptor
  // number that now names another inode, or nothing, means that it did.
  struct Connection {
    int fd;
    ino_t inode;
  };
  Mutex mu;
  std::vector<Connection> connections TRIMS_GUARDED_BY(mu);
  bool stopping TRIMS_GUARDED_BY(mu) = false;

  void ForgetClosedLocked() TRIMS_REQUIRES(mu) {
    std::erase_if(connections, [](const Connection& connection) {
      struct stat now {};
      return ::fstat(connection.fd, &now) != 0 || now.st_ino != connection.inode;
    });
  }
};

Result<std::unique_ptr<ControlServer>> ControlServer::Start(ControlBackend* backend,
                                                            const ControlAccess& access) {
  auto state = std::make_unique<State>(backend, access);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.RegisterService(&state->service);
  builder.SetMaxReceiveMessageSize(kMaxControlRequestBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kControlIdleSeconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kControlPingSeconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kControlPingSeconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Calls are rare: one polling thread waits, others are started as calls need them.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
  grpc::ResourceQuota quota("trims control");
  quota.SetMaxThreads(kMaxControlThreads);
  builder.SetResourceQuota(quota);
  state->server = builder.BuildAndStart();
  if (state->server == nullptr) return InternalError("gRPC could not start the control server");
  std::unique_ptr<ControlServer> server(new ControlServer(std::move(state)));
  server->SetServing(true);
  return server;
}

ControlServer::ControlServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

ControlServer::~ControlServer() { Shutdown(Duration::zero()); }

Status ControlServer::Serve(UniqueFd connection) {
  int domain = 0;
  int type = 0;
  socklen_t domain_size = sizeof domain;
  socklen_t type_size = sizeof type;
  struct stat identity {};
  if (::getsockopt(connection.get(), SOL_SOCKET, SO_DOMAIN, &domain, &domain_size) != 0 ||
      ::getsockopt(connection.get(), SOL_SOCKET, SO_TYPE, &type, &type_size) != 0 ||
      ::fstat(connection.get(), &identity) != 0) {
    return ErrnoStatus(errno, "inspecting a control connection");
  }
  if (domain != AF_UNIX || type != SOCK_STREAM) {
    return InvalidArgumentError("a control connection must be an AF_UNIX stream socket");
  }
  RETURN_IF_ERROR(CheckControlPeer(connection.get(), state_->access));
  const int flags = ::fcntl(connection.get(), F_GETFL);
  if (flags < 0 || ::fcntl(connection.get(), F_SETFL, flags | O_NONBLOCK) != 0 ||
      ::fcntl(connection.get(), F_SETFD, FD_CLOEXEC) != 0) {
    return ErrnoStatus(errno, "setting up a control connection");
  }

  // The lock is held while the connection is handed over, so that Shutdown never
  // overtakes it: gRPC does not accept transports on a server that is going down.
  const MutexLock lock(state_->mu);
  if (state_->stopping) return UnavailableError("the daemon is stopping");
  if (state_->connections.size() >= kMaxControlConnections) state_->ForgetClosedLocked();
  if (state_->connections.size() >= kMaxControlConnections) {
    return ResourceExhaustedError(std::to_string(kMaxControlConnections) +
                                  " control connections are open, which is the limit");
  }
  const int fd = connection.Take();
  state_->connections.push_back({fd, identity.st_ino});
  grpc::AddInsecureChannelFromFd(state_->server.get(), fd);
  return OkStatus();
}

void ControlServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = state_->server->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

void ControlServer::SetTierServing(const std::string& tier, bool serving) {
  state_->server->GetHealthCheckService()->SetServingStatus("tier/" + tier, serving);
}

void ControlServer::Shutdown(Duration grace) {
  {
    const MutexLock lock(state_->mu);
    if (state_->stopping) return;
    state_->stopping = true;
  }
  SetServing(false);
  state_->service.Stop();
  state_->server->Shutdown(std::chrono::system_clock::now() +
                           std::chrono::duration_cast<std::chrono::microseconds>(grace));
}

size_t ControlServer::Connections() {
  const MutexLock lock(state_->mu);
  state_->ForgetClosedLocked();
  return state_->connections.size();
}

}  // namespace trims

#include "cli/connection.h"

#include <fcntl.h>
#include <grp.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "cli/text.h"
#include "daemon/control_status.h"
#include "ipc/seqpacket.h"
#include "trims/v1/control.grpc.pb.h"

namespace trims::cli {
namespace {

// No answer takes this long unless the daemon hangs: long work is streamed. Pins
// are different: one of a model that was never seen computes its digest first.
constexpr std::chrono::seconds kAnswerDeadline(60);
constexpr std::chrono::hours kPinDeadline(6);

constexpr size_t kHexDigits = 64;
constexpr size_t kShortestDigest = 6;

std::string SocketPath(const std::string& runtime_dir) { return runtime_dir + "/control.sock"; }

// Whose socket we trust besides root's and our own: when only root could have
// made the runtime directory, root chose its owner.
uid_t TrustedOwner(const std::string& runtime_dir) {
  struct stat parent {};
  struct stat directory {};
  std::string above = std::filesystem::path(runtime_dir + "/..").string();
  if (::stat(above.c_str(), &parent) != 0 || ::lstat(runtime_dir.c_str(), &directory) != 0 ||
      parent.st_uid != 0 || (parent.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return static_cast<uid_t>(-1);
  }
  return directory.st_uid;
}

}  // namespace

struct Connection::State {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Control::Stub> stub;

  template <typename Request, typename Response>
  Status Unary(grpc::Status (v1::Control::Stub::*method)(grpc::ClientContext*, const Request&,
                                                         Response*),
               const Request& request, Response* response,
               std::chrono::seconds deadline = kAnswerDeadline) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + deadline);
    const Status status = FromGrpcStatus((stub.get()->*method)(&context, request, response));
    if (status.code() == StatusCode::kDeadlineExceeded && status.message() == "Deadline Exceeded") {
      return DeadlineExceededError("the daemon did not answer within " +
                                   std::to_string(deadline.count()) + " seconds");
    }
    return status;
  }
};

Connection::Connection(std::unique_ptr<State> state) : state_(std::move(state)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

Result<UniqueFd> Connection::ConnectSocket(const std::string& runtime_dir, const std::string& name,
                                           int type) {
  return ConnectTo(runtime_dir + "/" + name, type, TrustedOwner(runtime_dir));
}

Result<Connection> Connection::Open(const std::string& runtime_dir) {
  Result<UniqueFd> socket = ConnectSocket(runtime_dir, "control.sock", SOCK_STREAM);
  if (!socket.ok()) {
    return UnavailableError("can not reach the daemon: " + socket.status().message());
  }
  const int flags = ::fcntl(socket->get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket->get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, "setting up the connection to the daemon");
  }
  auto state = std::make_unique<State>();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // A million tensors, if need be.
  state->channel = grpc::CreateCustomInsecureChannelFromFd("trims", socket->Take(), arguments);
  state->stub = v1::Control::NewStub(state->channel);
  return Connection(std::move(state));
}

std::string Connection::HintFor(const std::string& runtime_dir) {
  const std::string path = SocketPath(runtime_dir);
  struct stat identity {};
  if (::stat(path.c_str(), &identity) != 0) {
    return "start a daemon with \"trims serve\", or name the directory of its sockets with "
           "--runtime-dir or TRIMS_RUNTIME_DIR";
  }
  if (::access(path.c_str(), W_OK) != 0) {
    std::string group = std::to_string(identity.st_gid);
    ::group entry{};
    ::group* found = nullptr;
    std::vector<char> buffer(64 * 1024);
    if (::getgrgid_r(identity.st_gid, &entry, buffer.data(), buffer.size(), &found) == 0 &&
        found != nullptr) {
      group = found->gr_name;
    }
    return "this user may not write to " + path + ": use the account " + UserText(identity.st_uid) +
           ", root, or a member of group " + group;
  }
  return "the daemon that made " + path +
         " may be gone: look at its log, start one with \"trims serve\", or run \"trims doctor\"";
}

#define TRIMS_UNARY_(Method)                                                                      \
  Status Connection::Method(const v1::Method##Request& request, v1::Method##Response* response) { \
    return state_->Unary(&v1::Control::Stub::Method, request, response);                          \
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

Status Connection::Pin(const v1::PinRequest& request, v1::PinResponse* response) {
  return state_->Unary(&v1::Control::Stub::Pin, request, response, kPinDeadline);
}

Status Connection::Unpin(const v1::UnpinRequest& request, v1::UnpinResponse* response) {
  return state_->Unary(&v1::Control::Stub::Unpin, request, response, kPinDeadline);
}

Status Connection::Load(const v1::LoadRequest& request,
                        const std::function<void(const v1::LoadProgress&)>& on_progress) {
  grpc::ClientContext context;
  auto reader = state_->stub->Load(&context, request);
  v1::LoadProgress progress;
  while (reader->Read(&progress)) on_progress(progress);
  return FromGrpcStatus(reader->Finish());
}

Status Connection::Verify(const v1::VerifyRequest& request,
                          const std::function<void(const v1::VerifyProgress&)>& on_progress) {
  grpc::ClientContext context;
  auto reader = state_->stub->Verify(&context, request);
  v1::VerifyProgress progress;
  while (reader->Read(&progress)) on_progress(progress);
  return FromGrpcStatus(reader->Finish());
}

Status Connection::Watch(const v1::WatchRequest& request, const std::function<void()>& on_watching,
                         const std::function<void(const v1::Event&)>& on_event) {
  grpc::ClientContext context;
  auto reader = state_->stub->Watch(&context, request);
  reader->WaitForInitialMetadata();
  on_watching();
  v1::Event event;
  while (reader->Read(&event)) on_event(event);
  return FromGrpcStatus(reader->Finish());
}

Result<std::string> Connection::ResolveModel(const std::string& typed) {
  std::string hex = typed;
  bool surely_digest = false;
  for (const std::string_view prefix : {"@sha256:", "sha256:", "@"}) {
    if (hex.starts_with(prefix)) {
      hex.erase(0, prefix.size());
      surely_digest = true;
      break;
    }
  }
  for (char& c : hex) {
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
  }
  const bool is_hex = hex.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (surely_digest && (!is_hex || hex.size() > kHexDigits || hex.size() < kShortestDigest)) {
    return InvalidArgumentError("\"" + typed + "\" is no digest: expected sha256: and " +
                                std::to_string(kShortestDigest) + " to " +
                                std::to_string(kHexDigits) + " hexadecimal digits");
  }
  if (is_hex && hex.size() == kHexDigits) return "@sha256:" + hex;
  if (!is_hex || hex.size() < kShortestDigest || hex.size() > kHexDigits) return typed;

  v1::ListResponse list;
  RETURN_IF_ERROR(List(v1::ListRequest(), &list));
  std::vector<std::string> digests;
  for (const v1::ModelView& model : list.models()) {
    if (!surely_digest && model.name() == typed) return typed;
    if (model.digest().starts_with("sha256:" + hex) &&
        (digests.empty() || digests.back() != model.digest())) {
      digests.push_back(model.digest());
    }
  }
  std::sort(digests.begin(), digests.end());
  digests.erase(std::unique(digests.begin(), digests.end()), digests.end());
  if (digests.size() > 1) {
    return InvalidArgumentError(std::to_string(digests.size()) +
                                " models have digests that begin with " + hex +
                                "; give more digits");
  }
  if (digests.size() == 1) return "@" + digests.front();
  if (surely_digest) return NotFoundError("no model's digest begins with " + hex);
  return typed;  // The daemon says that there is no such name.
}

}  // namespace trims::cli

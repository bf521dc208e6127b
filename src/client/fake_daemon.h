// A daemon for tests of the client: speaks the lease protocol over a real socket in
// a directory of its own, lends real memfds, and does wrong what a test tells it to.
//
// It runs one thread. Everything a test calls may be called while it runs; hooks run
// on its thread.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/round.h"
#include "ipc/frame.h"
#include "ipc/message.h"
#include "ipc/seqpacket.h"
#include "trims/v1/index_generated.h"
#include "trims/v1/lease_generated.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace trims::client {

inline constexpr int kAllSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;

// A memfd with these bytes and seals, opened read-only unless told otherwise.
inline UniqueFd MakeMemfd(std::span<const std::byte> bytes, uint64_t size, int seals = kAllSeals,
                          bool read_only = true) {
  UniqueFd fd(memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  TRIMS_CHECK(ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  TRIMS_CHECK(pwrite(fd.get(), bytes.data(), bytes.size(), 0) ==
              static_cast<ssize_t>(bytes.size()));
  TRIMS_CHECK(seals == 0 || fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  if (!read_only) return fd;
  UniqueFd reopened(
      open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  TRIMS_CHECK(reopened.valid());
  return reopened;
}

struct FakeTensor {
  std::string name;
  uint8_t dtype = 9;  // F32
  std::vector<int64_t> shape;
  uint32_t extent = 0;
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
};

struct FakeModel {
  Digest digest;
  uint64_t generation = 1;
  std::vector<uint64_t> extent_bytes;
  std::vector<UniqueFd> extents;
  UniqueFd index;
  uint64_t index_bytes = 0;
  uint32_t tensor_count = 0;
  v1::Granularity granularity = v1::Granularity::Model;
  bool loaded = false;
  std::string model_dir;
  std::string device_uuid;  // Where the extents lie; empty: on the host.
};

inline std::string BuildFakeIndex(const std::vector<FakeTensor>& tensors,
                                  const std::map<std::string, std::string>& metadata = {}) {
  flatbuffers::FlatBufferBuilder builder;
  std::vector<flatbuffers::Offset<v1::Tensor>> entries;
  for (const FakeTensor& tensor : tensors) {
    entries.push_back(v1::CreateTensorDirect(builder, tensor.name.c_str(), tensor.dtype,
                                             &tensor.shape, tensor.extent, tensor.offset,
                                             tensor.size_bytes));
  }
  std::vector<flatbuffers::Offset<v1::KeyValue>> pairs;
  for (const auto& [key, value] : metadata) {
    pairs.push_back(v1::CreateKeyValueDirect(builder, key.c_str(), value.c_str()));
  }
  const auto root =
      v1::CreateTensorIndex(builder, builder.CreateVector(entries), builder.CreateVector(pairs));
  v1::FinishSizePrefixedTensorIndexBuffer(builder, root);
  return {reinterpret_cast<const char*>(builder.GetBufferPointer()), builder.GetSize()};
}

inline uint64_t RoundToPage(uint64_t bytes) { return RoundUp(bytes, kHostPageBytes); }

// A model of `extents` extents of a page each, with one F32 tensor of 16 elements in
// each: "t0000", "t0001", …, every element of which is its extent's number.
inline FakeModel MakeFakeModel(size_t extents, uint8_t identity = 1) {
  FakeModel model;
  model.digest.bytes.fill(identity);
  model.generation = identity * 100u;
  std::vector<FakeTensor> tensors;
  for (size_t i = 0; i < extents; ++i) {
    std::array<float, 16> values;
    values.fill(static_cast<float>(i));
    model.extents.push_back(MakeMemfd(std::as_bytes(std::span(values)), kHostPageBytes));
    model.extent_bytes.push_back(kHostPageBytes);
    char name[32];
    std::snprintf(name, sizeof name, "t%04zu", i);
    tensors.push_back({name, 9, {4, 4}, static_cast<uint32_t>(i), 0, sizeof values});
  }
  const std::string index = BuildFakeIndex(tensors, {{"format", "pt"}, {"author", "nobody"}});
  model.index_bytes = index.size();
  model.index = MakeMemfd(std::as_bytes(std::span(index)), RoundToPage(index.size()));
  model.tensor_count = static_cast<uint32_t>(extents);
  model.granularity = extents == 1 ? v1::Granularity::Model : v1::Granularity::Layer;
  return model;
}

class FakeDaemon final {
 public:
  struct Connection {
    UniqueFd socket;
    bool drop = false;  // Set by a hook: closed when the hook returns.
  };
  // What has happened, in order.
  struct Log {
    int connections = 0;
    std::vector<std::string> opens;    // Names and labels.
    std::vector<uint64_t> closes;      // Lease ids.
    std::vector<uint64_t> peaks;       // Of those closes.
    std::vector<uint64_t> reattaches;  // Generations.
    std::vector<uint64_t> cancels;     // Request ids of opens.
    std::vector<uint64_t> open_ids;    // Request ids.
    std::vector<std::string> files;    // What could be read through OpenFile's descriptors.
    uint64_t last_deadline_ms = 0;
    int64_t last_keep_alive_ms = 0;
    v1::Granularity last_granularity{};
    v1::TierKind last_tier{};
    std::string last_device_uuid;
  };
  // Returns whether it has dealt with the packet.
  using Hook = std::function<bool(FakeDaemon&, Connection&, const Frame&)>;

  FakeDaemon() {
    char name[] = "/tmp/trims-fake-XXXXXX";
    TRIMS_CHECK(mkdtemp(name) != nullptr);
    directory_ = name;
    Result<UniqueFd> listener = ListenAt(path(), SOCK_SEQPACKET | SOCK_NONBLOCK, 0666);
    TRIMS_CHECK(listener.ok());
    listener_ = std::move(*listener);
    wake_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    models_["m"] = MakeFakeModel(1);
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeDaemon() {
    {
      const MutexLock lock(mu_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
    unlink(path().c_str());
    rmdir(directory_.c_str());
  }

  const std::string& directory() const { return directory_; }
  std::string path() const { return directory_ + "/lease.sock"; }

  void AddModel(const std::string& name, FakeModel model) {
    const MutexLock lock(mu_);
    models_[name] = std::move(model);
  }
  void SetHook(Hook hook) {
    const MutexLock lock(mu_);
    hook_ = std::move(hook);
  }
  // As when the worker dies: every connection ends, the listening socket stays.
  // A new worker has another instance number, and unless `remembers` is false it has
  // the same models.
  void KillWorker(bool remembers = true) {
    const MutexLock lock(mu_);
    connections_to_drop_ = true;
    remembers_ = remembers;
    ++instance_;
    Wake();
  }
  // Leaves connections in the queue.
  void PauseAccepting(bool paused) {
    const MutexLock lock(mu_);
    paused_ = paused;
    Wake();
  }
  // Runs `body` on the daemon's thread with every live connection.
  void OnEachConnection(const std::function<void(Connection&)>& body) {
    const MutexLock lock(mu_);
    task_ = body;
    Wake();
    while (task_ != nullptr) changed_.Wait(mu_);
  }
  Log log() const {
    const MutexLock lock(mu_);
    return log_;
  }
  // Waits until the log satisfies `condition`.
  void WaitFor(const std::function<bool(const Log&)>& condition) {
    const MutexLock lock(mu_);
    while (!condition(log_)) changed_.Wait(mu_);
  }

  // --- For hooks -------------------------------------------------------------

  static void Send(Connection& connection, FrameType type, uint64_t id,
                   const flatbuffers::FlatBufferBuilder& builder, uint16_t flags = 0,
                   std::span<const int> fds = {}) {
    std::array<std::byte, kFrameHeaderBytes> header;
    EncodeFrameHeader({type, flags, id}, header);
    for (;;) {
      const Status status = SendPacket(connection.socket.get(), header, MessageBytes(builder), fds);
      if (status.code() != StatusCode::kDeadlineExceeded) return;
      pollfd writable = {connection.socket.get(), POLLOUT, 0};
      poll(&writable, 1, -1);
    }
  }
  static void SendFailed(Connection& connection, uint64_t id, StatusCode code, const char* text,
                         uint64_t need = 0, uint64_t free = 0, uint64_t evictable = 0) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(
        v1::CreateFailedDirect(builder, static_cast<int32_t>(code), text, need, free, evictable));
    Send(connection, FrameType::kFailed, id, builder);
  }
  static void SendProgress(Connection& connection, uint64_t id, v1::Phase phase, uint64_t done,
                           uint64_t total) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateProgress(builder, phase, done, total));
    Send(connection, FrameType::kProgress, id, builder);
  }
  // The whole answer, in as many packets as it takes.
  void SendOpened(Connection& connection, uint64_t id, const FakeModel& model) {
    mu_.AssertHeld();
    flatbuffers::FlatBufferBuilder builder;
    const std::vector<uint8_t> digest(model.digest.bytes.begin(), model.digest.bytes.end());
    builder.Finish(v1::CreateOpenedDirect(
        builder, ++last_lease_id_, &digest, model.generation,
        model.device_uuid.empty() ? v1::TierKind::Host : v1::TierKind::Device,
        model.device_uuid.empty() ? nullptr : model.device_uuid.c_str(), model.granularity,
        std::accumulate(model.extent_bytes.begin(), model.extent_bytes.end(), uint64_t{0}),
        model.tensor_count, model.index_bytes, &model.extent_bytes, model.loaded,
        model.model_dir.empty() ? nullptr : model.model_dir.c_str()));
    std::vector<int> fds = {model.index.get()};
    for (const UniqueFd& extent : model.extents) fds.push_back(extent.get());
    size_t sent = std::min(fds.size(), kMaxFdsPerPacket);
    Send(connection, FrameType::kOpened, id, builder, sent < fds.size() ? kFrameFlagMore : 0,
         std::span(fds).first(sent));
    while (sent < fds.size()) {
      const size_t count = std::min(fds.size() - sent, kMaxFdsPerPacket);
      builder.Clear();
      builder.Finish(v1::CreateOpenedMore(builder, static_cast<uint32_t>(sent - 1)));
      Send(connection, FrameType::kOpenedMore, id, builder,
           sent + count < fds.size() ? kFrameFlagMore : 0, std::span(fds).subspan(sent, count));
      sent += count;
    }
  }
  uint64_t last_lease_id() const {
    mu_.AssertHeld();
    return last_lease_id_;
  }
  const FakeModel& model(const std::string& name) {
    mu_.AssertHeld();
    return models_[name];
  }

 private:
  void Wake() {
    const uint64_t one = 1;
    TRIMS_CHECK(write(wake_.get(), &one, sizeof one) == sizeof one);
  }

  void Run() {
    std::list<Connection> connections;
    const MutexLock lock(mu_);
    while (!stopping_) {
      if (std::exchange(connections_to_drop_, false)) connections.clear();
      if (task_ != nullptr) {
        for (Connection& connection : connections) task_(connection);
        task_ = nullptr;
      }
      connections.remove_if([](const Connection& connection) { return connection.drop; });
      changed_.NotifyAll();

      std::vector<pollfd> watched = {{wake_.get(), POLLIN, 0},
                                     {paused_ ? -1 : listener_.get(), POLLIN, 0}};
      for (const Connection& connection : connections) {
        watched.push_back({connection.socket.get(), POLLIN, 0});
      }
      {
        const MutexUnlock unlock(mu_);
        poll(watched.data(), watched.size(), -1);
      }
      if (watched[0].revents != 0) {
        uint64_t count;
        (void)!read(wake_.get(), &count, sizeof count);
        continue;  // What has changed comes first.
      }
      if (watched[1].revents != 0) {
        UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket.valid()) {
          ++log_.connections;
          connections.push_back({std::move(socket)});
        }
      }
      size_t at = 2;
      for (Connection& connection : connections) {
        if (at < watched.size() && watched[at++].revents != 0) Serve(connection);
      }
    }
  }

  void Serve(Connection& connection) TRIMS_REQUIRES(mu_) {
    Result<ReceivedPacket> packet = ReceivePacket(connection.socket.get(), buffer_, 1);
    if (!packet.ok() || packet->closed) {
      connection.drop = true;
      return;
    }
    const Result<Frame> frame = DecodeFrame(std::span(buffer_).first(packet->size));
    if (!frame.ok()) {
      connection.drop = true;
      return;
    }
    Record(*frame, packet->fds);
    if (hook_ != nullptr && hook_(*this, connection, *frame)) return;
    Answer(connection, *frame);
  }

  void Record(const Frame& frame, const std::vector<UniqueFd>& fds) TRIMS_REQUIRES(mu_) {
    const v1::Open* open = nullptr;
    switch (frame.header.type) {
      case FrameType::kOpen:
        open = ReadMessage<v1::Open>(frame.payload);
        log_.opens.push_back(open->model()->str());
        log_.open_ids.push_back(frame.header.request_id);
        break;
      case FrameType::kOpenFile: {
        const auto* file = ReadMessage<v1::OpenFile>(frame.payload);
        open = file->options();
        log_.opens.push_back(file->name()->str());
        log_.open_ids.push_back(frame.header.request_id);
        char text[256];
        const ssize_t size = fds.empty() ? 0 : pread(fds[0].get(), text, sizeof text, 0);
        log_.files.emplace_back(text, static_cast<size_t>(std::max<ssize_t>(size, 0)));
        break;
      }
      case FrameType::kClose: {
        const auto* close = ReadMessage<v1::Close>(frame.payload);
        log_.closes.push_back(close->lease_id());
        log_.peaks.push_back(close->peak_internal_bytes());
        break;
      }
      case FrameType::kReattach:
        log_.reattaches.push_back(ReadMessage<v1::Reattach>(frame.payload)->generation());
        break;
      case FrameType::kCancel:
        log_.cancels.push_back(ReadMessage<v1::Cancel>(frame.payload)->open_request_id());
        break;
      default:
        break;
    }
    if (open == nullptr) return;
    log_.last_deadline_ms = open->deadline_ms();
    log_.last_keep_alive_ms = open->keep_alive_ms();
    log_.last_granularity = open->granularity();
    log_.last_tier = open->tier();
    log_.last_device_uuid = open->device_uuid() == nullptr ? "" : open->device_uuid()->str();
  }

  void Answer(Connection& connection, const Frame& frame) TRIMS_REQUIRES(mu_) {
    const uint64_t id = frame.header.request_id;
    flatbuffers::FlatBufferBuilder builder;
    switch (frame.header.type) {
      case FrameType::kHello:
        builder.Finish(v1::CreateWelcomeDirect(builder, kProtocolMajor, kProtocolMinor, "fake 1",
                                               instance_, 7));
        Send(connection, FrameType::kWelcome, id, builder);
        break;
      case FrameType::kOpen: {
        const auto model = models_.find(ReadMessage<v1::Open>(frame.payload)->model()->str());
        if (model == models_.end()) {
          SendFailed(connection, id, StatusCode::kNotFound, "no model of that name");
        } else {
          SendOpened(connection, id, model->second);
        }
        break;
      }
      case FrameType::kOpenFile:
        SendOpened(connection, id, models_["m"]);
        break;
      case FrameType::kClose:
        builder.Finish(v1::CreateClosed(builder));
        Send(connection, FrameType::kClosed, id, builder);
        break;
      case FrameType::kReattach:
        if (remembers_) {
          builder.Finish(v1::CreateReattached(builder, ++last_lease_id_));
          Send(connection, FrameType::kReattached, id, builder);
        } else {
          SendFailed(connection, id, StatusCode::kNotFound, "not resident");
        }
        break;
      case FrameType::kPing:
        builder.Finish(v1::CreatePong(builder));
        Send(connection, FrameType::kPong, id, builder);
        break;
      case FrameType::kCancel: {
        const uint64_t open_id = ReadMessage<v1::Cancel>(frame.payload)->open_request_id();
        SendFailed(connection, open_id, StatusCode::kCancelled, "cancelled");
        break;
      }
      default:
        connection.drop = true;
        break;
    }
  }

  std::string directory_;
  UniqueFd listener_;
  UniqueFd wake_;
  std::thread thread_;
  alignas(16) std::array<std::byte, kMaxPacketBytes> buffer_;

  mutable Mutex mu_;
  CondVar changed_;
  // Hooks and tasks find it held.
  bool stopping_ TRIMS_GUARDED_BY(mu_) = false;
  bool paused_ TRIMS_GUARDED_BY(mu_) = false;
  bool connections_to_drop_ TRIMS_GUARDED_BY(mu_) = false;
  bool remembers_ TRIMS_GUARDED_BY(mu_) = true;
  uint64_t instance_ TRIMS_GUARDED_BY(mu_) = 1;
  uint64_t last_lease_id_ TRIMS_GUARDED_BY(mu_) = 0;
  std::map<std::string, FakeModel> models_ TRIMS_GUARDED_BY(mu_);
  Hook hook_ TRIMS_GUARDED_BY(mu_);
  std::function<void(Connection&)> task_ TRIMS_GUARDED_BY(mu_);
  Log log_ TRIMS_GUARDED_BY(mu_);
};

}  // namespace trims::client

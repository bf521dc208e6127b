// A whole lease server under scripts of clients: a real reactor, registry and store over fake
// tiers, in one process and in turns of the loop. The input decides who connects, says what,
// passes which descriptors, reads or does not, and hangs up when; messages are well-formed, or
// have one byte changed, or are bytes of the input.
//
// Whatever happens: no crash; every packet of the daemon is a well-formed message of a kind that
// only a daemon sends; the store's invariants hold; and when all have hung up there is no
// session, no lease and no load, and when the daemon is gone no descriptor.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/limits.h"
#include "daemon/log.h"
#include "daemon/test_trunk.h"
#include "ipc/frame.h"
#include "ipc/message.h"
#include "ipc/seqpacket.h"
#include "trims/v1/lease_generated.h"

namespace trims {
namespace {

constexpr char kUuid[] = "GPU-11111111-2222-3333-4444-555555555555";
constexpr size_t kClients = 4;
constexpr size_t kSteps = 48;  // Of one script: each costs turns of the loop.

// --- The script -----------------------------------------------------------------------

// make_corpora.py writes these, too.
enum class Step : uint8_t {
  kConnect = 0,
  kHangUp = 1,
  kHello = 2,     // a: 0 well, 1 another version.
  kOpen = 3,      // a: model; b: granularity; c: tier; d: flags; e: deadline in ms.
  kOpenFile = 4,  // a: kind of descriptor; b, c, d, e: as with kOpen.
  kCancel = 5,    // a: request
  kClose = 6,     // a: 0 the latest lease of this client, else this number.
  kReattach = 7,  // a: 0 the digest of "a", else of nothing; b: granularity; c: tier.
  kPing = 8,
  kRaw = 9,  // a: type; b: bytes of the input that follow.
  kTurn = 10,
  kRead = 11,
  kTier = 12,    // a: 0 hold, 1 release, 2 the next load fails, 3 memory is short.
  kChange = 13,  // The next message has byte a changed by b.
};
constexpr int kStepKinds = 14;

struct Instruction {
  Step step{};
  size_t client = 0;
  uint64_t request = 0;
  uint8_t a = 0, b = 0, c = 0, d = 0, e = 0;
};

class Script final {
 public:
  explicit Script(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  std::optional<Instruction> Next() {
    if (bytes_.empty() || steps_++ == kSteps) return std::nullopt;
    Instruction next;
    next.step = static_cast<Step>(Byte() % kStepKinds);
    next.client = Byte() % kClients;
    next.request = Byte();
    next.a = Byte();
    next.b = Byte();
    next.c = Byte();
    next.d = Byte();
    next.e = Byte();
    return next;
  }
  std::span<const uint8_t> Take(size_t count) {
    const auto taken = bytes_.first(std::min(count, bytes_.size()));
    bytes_ = bytes_.subspan(taken.size());
    return taken;
  }

 private:
  uint8_t Byte() {
    const auto byte = Take(1);
    return byte.empty() ? 0 : byte[0];
  }

  std::span<const uint8_t> bytes_;
  size_t steps_ = 0;
};

// --- Clients ----------------------------------------------------------------------------

void Must(bool condition, const char* what) {
  if (condition) return;
  (void)!::write(STDERR_FILENO, what, std::strlen(what));
  std::abort();
}

template <typename T>
const T& MustRead(std::span<const std::byte> payload) {
  const T* const message = ReadMessage<T>(payload);
  Must(message != nullptr, "the daemon sent a malformed message\n");
  return *message;
}

struct Client {
  UniqueFd socket;
  uint64_t lease = 0;  // The latest.

  void Connect(const std::string& path) {
    lease = 0;
    socket = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      socket.Reset();
  }

  // Everything that is there.
  void ReadAll() {
    alignas(8) static std::byte buffer[kMaxPacketBytes];
    while (socket.valid()) {
      Result<ReceivedPacket> packet = ReceivePacket(socket.get(), buffer, kMaxFdsPerPacket);
      if (packet.status().code() == StatusCode::kDeadlineExceeded) return;
      if (!packet.ok() || packet->closed) return socket.Reset();
      Judge(std::span(buffer).first(packet->size), packet->fds.size());
    }
  }

  void Judge(std::span<const std::byte> packet, size_t fds) {
    const Result<Frame> frame = DecodeFrame(packet);
    Must(frame.ok(), "the daemon sent what is no frame\n");
    const std::span<const std::byte> payload = frame->payload;
    const bool has_more = (frame->header.flags & kFrameFlagMore) != 0;
    size_t expected_fds = 0;
    switch (frame->header.type) {
      case FrameType::kWelcome:
        MustRead<v1::Welcome>(payload);
        break;
      case FrameType::kOpened: {
        const v1::Opened& opened = MustRead<v1::Opened>(payload);
        Must(opened.digest()->size() == 32, "a digest of another size\n");
        Must(opened.granularity() != v1::Granularity::Auto, "a replica of no granularity\n");
        expected_fds = std::min<size_t>(1 + opened.extent_bytes()->size(), kMaxFdsPerPacket);
        Must(has_more == (1 + opened.extent_bytes()->size() > kMaxFdsPerPacket), "more\n");
        lease = opened.lease_id();
        break;
      }
      case FrameType::kOpenedMore:
        MustRead<v1::OpenedMore>(payload);
        expected_fds = fds;
        Must(fds > 0, "more, and nothing came\n");
        break;
      case FrameType::kProgress:
        MustRead<v1::Progress>(payload);
        break;
      case FrameType::kClosed:
        MustRead<v1::Closed>(payload);
        break;
      case FrameType::kReattached:
        lease = MustRead<v1::Reattached>(payload).lease_id();
        break;
      case FrameType::kPong:
        MustRead<v1::Pong>(payload);
        break;
      case FrameType::kFailed: {
        const v1::Failed& failed = MustRead<v1::Failed>(payload);
        Must(failed.code() != 0 && failed.message() != nullptr, "a failure without a reason\n");
        Must(failed.code() != static_cast<int>(StatusCode::kInternal), "an internal error\n");
        break;
      }
      default:
        Must(false, "the daemon sent what only clients say\n");
    }
    Must(fds == expected_fds, "another number of descriptors\n");
  }
};

// --- One run ----------------------------------------------------------------------------

class Run final {
 public:
  Run() : trunk_(Options()) {
    trunk_.AddModel("a");
    trunk_.AddModel("b", TestTrunk::SmallModel(2, 3 * kKiB));
    LeaseServer::Options options;
    options.sessions_per_uid_max = kClients - 1;
    trunk_.Serve(options);
    // What there is to pass.
    const std::string model = format::WriteSafetensors(TestTrunk::SmallModel(3, 2 * kKiB));
    model_ = UniqueFd(::memfd_create("model", MFD_CLOEXEC));
    Must(
        ::pwrite(model_.get(), model.data(), model.size(), 0) == static_cast<ssize_t>(model.size()),
        "no model\n");
    int pipe[2];
    Must(::pipe2(pipe, O_CLOEXEC | O_NONBLOCK) == 0, "no pipe\n");
    pipe_read_ = UniqueFd(pipe[0]);
    pipe_write_ = UniqueFd(pipe[1]);
    directory_ = UniqueFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    path_only_ = UniqueFd(::open("/proc/self/exe", O_PATH | O_CLOEXEC));
    null_ = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    garbage_ = UniqueFd(::memfd_create("garbage", MFD_CLOEXEC));
    Must(::pwrite(garbage_.get(), "garbage!", 8, 0) == 8, "no garbage\n");
  }

  void Follow(Script& script) {
    while (const std::optional<Instruction> next = script.Next()) {
      Do(*next, script);
      trunk_.RunOnce();
      trunk_.registry().CheckInvariants();
    }
  }

  // Everybody reads what is left and goes.
  void End() {
    trunk_.host().Release();
    trunk_.device(0).Release();
    trunk_.Settle();
    for (Client& client : clients_) client.ReadAll();
    for (Client& client : clients_) client.socket.Reset();
    LeaseServer& server = trunk_.lease_server();
    trunk_.RunUntil([&] { return server.sessions() == 0; });
    Must(trunk_.registry().store().Leases().empty(), "a lease without a session\n");
    trunk_.Settle();
    trunk_.registry().CheckInvariants();
  }

 private:
  static TestTrunk::Options Options() {
    TestTrunk::Options options;
    options.devices = {kUuid};
    options.host_bytes = 32 * kKiB;  // Not for all models at every granularity.
    options.device_bytes = 16 * kKiB;
    options.config.loader_threads = 1;
    options.config.io_threads = 1;
    options.config.leases_per_uid_max = 12;
    return options;
  }

  void Do(const Instruction& what, Script& script) {
    Client& client = clients_[what.client];
    flatbuffers::FlatBufferBuilder builder;
    switch (what.step) {
      case Step::kConnect:
        return client.Connect(trunk_.config().runtime_dir + "/lease.sock");
      case Step::kHangUp:
        return client.socket.Reset();
      case Step::kHello:
        builder.Finish(v1::CreateHelloDirect(
            builder, static_cast<uint16_t>(kProtocolMajor + (what.a == 1)), what.b, "fuzz"));
        return Send(client, FrameType::kHello, what.request, builder);
      case Step::kOpen:
        builder.Finish(MakeOpen(builder, what));
        return Send(client, FrameType::kOpen, what.request, builder);
      case Step::kOpenFile: {
        const auto options = MakeOpen(builder, what);
        builder.Finish(v1::CreateOpenFileDirect(builder, (what.d & 16) != 0 ? nullptr : "label",
                                                (what.d & 32) != 0 ? 0 : options));
        return Send(client, FrameType::kOpenFile, what.request, builder, Descriptors(what.a));
      }
      case Step::kCancel:
        builder.Finish(v1::CreateCancel(builder, what.a));
        return Send(client, FrameType::kCancel, what.request, builder);
      case Step::kClose:
        builder.Finish(v1::CreateClose(builder, what.a == 0 ? client.lease : what.a, what.b));
        return Send(client, FrameType::kClose, what.request, builder);
      case Step::kReattach: {
        std::vector<uint8_t> digest(32, what.a);
        if (const auto known = trunk_.registry().DigestOfName("a"); what.a == 0 && known)
          digest.assign(known->bytes.begin(), known->bytes.end());
        if (what.d != 0) digest.resize(what.d % 40);
        builder.Finish(v1::CreateReattachDirect(builder, &digest, what.e,
                                                static_cast<v1::TierKind>(what.c), kUuid,
                                                static_cast<v1::Granularity>(what.b)));
        return Send(client, FrameType::kReattach, what.request, builder);
      }
      case Step::kPing:
        builder.Finish(v1::CreatePing(builder));
        // Without a reader a hundred of them fill a socket.
        for (int i = 0; i <= what.a; ++i) {
          Send(client, FrameType::kPing, what.request, builder);
          if (i % 16 == 15) trunk_.RunOnce();
        }
        return;
      case Step::kRaw: {
        const auto payload = std::as_bytes(script.Take(what.b));
        return SendBytes(client, Packet(static_cast<FrameType>(what.a), what.request, payload), {});
      }
      case Step::kTurn:
        for (int i = 0; i < what.a % 16; ++i)
          trunk_.reactor().RunOnce(std::chrono::microseconds(what.b));
        return;
      case Step::kRead:
        return client.ReadAll();
      case Step::kTier: {
        FakeTier& tier = what.b % 2 == 0 ? trunk_.host() : trunk_.device(0);
        if (what.a % 4 == 0) return tier.Hold();
        if (what.a % 4 == 1) return tier.Release();
        if (what.a % 4 == 2) return tier.FailLoads(DataLossError("as the script says"));
        return tier.SetMachineBytes(uint64_t{what.c} * kKiB);
      }
      case Step::kChange:
        change_ = {what.a, what.b};
        return;
    }
  }

  flatbuffers::Offset<v1::Open> MakeOpen(flatbuffers::FlatBufferBuilder& builder,
                                         const Instruction& what) {
    static const std::string long_name(2 * kMaxModelNameBytes, 'n');
    const char* const names[] = {"a", "b", "no such", "../a", "", long_name.c_str(), "@sha256:00"};
    std::string model = names[what.a % std::size(names)];
    if (const auto known = trunk_.registry().DigestOfName("a"); what.a == 100 && known)
      model = "@" + known->ToString();
    const std::vector<uint8_t> digest((what.d & 1) != 0 ? 32 : 7);
    return v1::CreateOpenDirect(builder, model.c_str(), static_cast<v1::TierKind>(what.c),
                                (what.d & 64) != 0 ? "no such" : kUuid,
                                static_cast<v1::Granularity>(what.b),
                                (what.d & 2) != 0 ? &digest : nullptr, what.e, (what.d & 4) != 0,
                                (what.d & 8) != 0 ? 0 : -2);
  }

  std::vector<int> Descriptors(uint8_t kind) const {
    switch (kind % 10) {
      case 0:
        return {model_.get()};
      case 1:
        return {};
      case 2:
        return {pipe_read_.get()};
      case 3:
        return {directory_.get()};
      case 4:
        return {path_only_.get()};
      case 5:
        return {null_.get()};
      case 6:
        return {garbage_.get()};
      case 7:
        return {pipe_write_.get()};
      case 8:
        return {model_.get(), model_.get()};
      default:
        return std::vector<int>(200, null_.get());
    }
  }

  static std::vector<std::byte> Packet(FrameType type, uint64_t request,
                                       std::span<const std::byte> payload) {
    std::vector<std::byte> bytes(kFrameHeaderBytes);
    EncodeFrameHeader(FrameHeader{type, 0, request},
                      std::span<std::byte, kFrameHeaderBytes>(bytes.data(), kFrameHeaderBytes));
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    return bytes;
  }
  void Send(Client& client, FrameType type, uint64_t request,
            const flatbuffers::FlatBufferBuilder& builder, const std::vector<int>& fds = {}) {
    SendBytes(client, Packet(type, request, MessageBytes(builder)), fds);
  }
  void SendBytes(Client& client, std::vector<std::byte> bytes, const std::vector<int>& fds) {
    if (!client.socket.valid()) return;
    if (change_) {
      bytes[change_->first % bytes.size()] ^= static_cast<std::byte>(change_->second);
      change_.reset();
    }
    // The daemon may have hung up, or have no room: then it is not said.
    (void)SendPacket(client.socket.get(), bytes, {}, fds).ok();
  }

  TestTrunk trunk_;
  std::array<Client, kClients> clients_;
  std::optional<std::pair<uint8_t, uint8_t>> change_;
  UniqueFd model_, pipe_read_, pipe_write_, directory_, path_only_, null_, garbage_;
};

}  // namespace
}  // namespace trims

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  trims::SetLogLevel(trims::LogLevel::kError);
  const size_t before = trims::OpenFdCount();
  {
    trims::Script script(std::span(data, size));
    const auto run = std::make_unique<trims::Run>();
    run->Follow(script);
    run->End();
  }
  trims::Must(trims::OpenFdCount() == before, "descriptors were left open\n");
  // What the fixture found wrong.
  trims::Must(!testing::UnitTest::GetInstance()->ad_hoc_test_result().Failed(),
              "the trunk failed\n");
  return 0;
}

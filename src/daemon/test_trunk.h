// The trunk of a worker in one process, for tests: a reactor, a registry over fake tiers, a
// catalogue, and a lease server when one is asked for. Real files, sockets and memfds in a
// directory of its own; no keeper, no CUDA, no gRPC. Header only, never part of the product.
//
// The loop runs in one of two ways. A test that drives it (the default) is the loop's thread
// itself: nothing happens but in RunOnce, RunUntil, Open and Settle, so that what comes in one
// batch of events is the test's choice. After StartThread() the loop has a thread of its own,
// which clients that block need; then what belongs to the reactor is reached through OnReactor.
// OnReactor, RunUntil, Open and Settle do the right thing both ways.
//
//   TestTrunk trunk;
//   trunk.AddModel("a");
//   const OpenResult result = trunk.Open(trunk.Named("a"));
//
// Thread rule: the test's thread.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/device_names.h"
#include "base/limits.h"
#include "daemon/catalogue.h"
#include "daemon/lease_server.h"
#include "daemon/reactor.h"
#include "daemon/registry.h"
#include "ipc/seqpacket.h"
#include "tier/fake_tier.h"
#include "tier/test_model.h"

namespace trims {

class TestTrunk final {
 public:
  // A test that waits longer than this has failed.
  static constexpr Duration kPatience = std::chrono::seconds(60);

  struct Options {
    // Its places are replaced by folders of the trunk's directory; slabs of 0 bytes by the
    // default's.
    DaemonConfig config;
    std::vector<std::string> devices;  // UUIDs; each gets a fake tier after the host's.
    Devices* driver = nullptr;         // Borrowed: what is known of those devices beside.
    uint64_t host_bytes = 64 * kMiB;   // Budgets.
    uint64_t device_bytes = 64 * kMiB;
    uint64_t id_base = 1;
    int link = -1;                          // A keeper's, borrowed.
    std::vector<LinkMessage> entries = {};  // What that keeper kept.
    bool has_sidecars = false;
    std::function<void(FakeTier&)> prepare =
        nullptr;  // Called with each tier before anything else.
    std::function<void(const std::string& tier)> on_tier_lost = nullptr;
    const TemporaryDirectory* root = nullptr;  // Borrowed; null: one of its own.
  };

  TestTrunk() : TestTrunk(Options()) {}
  explicit TestTrunk(Options options)
      : own_root_(options.root == nullptr ? std::make_unique<TemporaryDirectory>() : nullptr),
        root_(options.root == nullptr ? *own_root_ : *options.root),
        reactor_(Reactor::Create().value()),
        config_(std::move(options.config)) {
    for (const char* folder : {"run", "state", "base", "models"})
      std::filesystem::create_directories(root_ / folder);
    config_.runtime_dir = root_ / "run";
    config_.state_dir = root_ / "state";
    config_.base_dir = root_ / "base";
    if (config_.slab_bytes == 0) config_.slab_bytes = kDefaultSlabBytes;
    Registry::Options made;
    made.config = config_;
    made.id_base = options.id_base;
    made.link = options.link;
    made.devices = options.driver;
    made.on_tier_lost = std::move(options.on_tier_lost);
    std::vector<std::string> names = {"host"};
    for (const std::string& uuid : options.devices) names.push_back(DeviceTierName(uuid));
    for (const std::string& name : names) {
      auto tier = std::make_unique<FakeTier>(name);
      tiers_.push_back(tier.get());
      if (options.prepare) options.prepare(*tier);
      const uint64_t budget = made.tiers.empty() ? options.host_bytes : options.device_bytes;
      made.tiers.push_back({std::move(tier), budget});
    }
    made.catalogue = Catalogue::Open(config_.state_dir, config_.base_dir).value();
    if (options.has_sidecars)
      made.sidecars = SidecarStore::Open(config_.state_dir + "/sidecars").value();
    registry_ = std::make_unique<Registry>(reactor_.get(), std::move(made));
    for (LinkMessage& entry : options.entries) registry_->AdoptEntry(std::move(entry));
    registry_->FinishAdoption();
  }
  // Ends in the order of the worker: the loop, the sessions, the registry.
  ~TestTrunk() {
    StopThread();
    lease_server_.reset();
    registry_->CheckInvariants();
    registry_.reset();
  }
  TestTrunk(const TestTrunk&) = delete;
  TestTrunk& operator=(const TestTrunk&) = delete;

  Reactor& reactor() { return *reactor_; }
  Registry& registry() { return *registry_; }
  FakeTier& host() { return *tiers_[0]; }
  FakeTier& device(size_t index) { return *tiers_[index + 1]; }
  const TemporaryDirectory& root() const { return root_; }
  const DaemonConfig& config() const { return config_; }

  // --- The loop -----------------------------------------------------------------

  void StartThread() {
    thread_ = std::thread([this] { reactor_->Run(); });
  }
  // The loop has ended for good afterwards.
  void StopThread() {
    if (!thread_.joinable()) return;
    reactor_->Post("test ends", [this] { reactor_->Stop(); });
    thread_.join();
  }

  // What `work` returns when it is called on the loop's thread.
  template <typename Work>
  std::invoke_result_t<Work> OnReactor(Work work) {
    if (!thread_.joinable() || std::this_thread::get_id() == thread_.get_id()) return work();
    std::packaged_task<std::invoke_result_t<Work>()> task(std::move(work));
    auto result = task.get_future();
    reactor_->Post("test", [&task] { task(); });
    return result.get();
  }

  // One turn; for tests that drive the loop. Does not wait for anything to happen.
  void RunOnce() { reactor_->RunOnce(Duration::zero()); }

  // Turns the loop until `is_done`, asked on the loop's thread, is true. False, and a failure
  // of the test, when that takes too long.
  bool RunUntil(const std::function<bool()>& is_done) {
    const Time deadline = Now() + kPatience;
    if (!thread_.joinable()) {
      while (!is_done()) {
        if (Now() > deadline) return Impatient();
        reactor_->RunOnce(kLook);
      }
      return true;
    }
    const auto asked = std::make_shared<Asked>();
    asked->ask = [this, &is_done, deadline, asked_raw = asked.get()] {
      if (is_done()) return asked_raw->answer.set_value(true);
      if (Now() > deadline) return asked_raw->answer.set_value(false);
      // Held by the timer: the one who waits may be gone when set_value returns.
      reactor_->RunAt(Now() + kLook, "test looks again",
                      [again = asked_raw->shared_from_this()] { again->ask(); });
    };
    std::future<bool> answer = asked->answer.get_future();
    reactor_->Post("test looks", [asked] { asked->ask(); });
    return answer.get() || Impatient();
  }

  // Until nothing is looked at, loaded or adopted any more.
  bool Settle() {
    return RunUntil([this] { return !registry_->is_busy(); });
  }

  // --- Models -------------------------------------------------------------------

  // A small model that depends on `seed` and on nothing else: two tensors, the second of an odd
  // size.
  static std::vector<format::TestTensor> SmallModel(uint64_t seed, size_t bytes = 8 * kKiB) {
    return {NoiseTensor("layer0.weight", bytes, seed), NoiseTensor("layer1.bias", 77, seed + 1)};
  }
  // Writes a weights file and returns its path. Without a name: for descriptors.
  std::string WriteModel(const std::string& file, const std::vector<format::TestTensor>& tensors) {
    const std::string path =
        root_.Write("models/" + file + ".safetensors", format::WriteSafetensors(tensors));
    MakeOld(path);
    return path;
  }
  // Writes it and registers the name, as `trims add` does. Returns the path.
  std::string AddModel(const std::string& name, const std::vector<format::TestTensor>& tensors) {
    std::string file = name;
    for (char& letter : file) letter = letter == '/' || letter == ':' ? '_' : letter;
    const std::string path = WriteModel(file, tensors);
    const Status added =
        OnReactor([&] { return registry_->catalogue().Add(name, path, /*replace=*/true); });
    EXPECT_TRUE(added.ok()) << added.ToString();
    return path;
  }
  std::string AddModel(const std::string& name) {
    return AddModel(name, SmallModel(std::hash<std::string>()(name)));
  }

  // --- Opens, past the lease server -----------------------------------------------

  // An open of this name on the host by a session that no server knows.
  static OpenRequest Named(const std::string& model, store::SessionId session = 1) {
    OpenRequest request;
    request.session = session;
    request.uid = kUid;
    request.model = model;
    return request;
  }
  // The same of a weights file that the session passes.
  static OpenRequest Passed(const std::string& path, store::SessionId session = 1) {
    OpenRequest request = Named("", session);
    request.file = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_TRUE(request.file.valid()) << path;
    return request;
  }
  // What comes of an open that is not waited for; for tests that drive the loop.
  struct Waiting {
    store::OpenId id = 0;
    std::vector<OpenResult> answers;
    std::vector<OpenPhase> phases;  // Those that were told, each once in a row.
    bool is_answered() const { return !answers.empty(); }
    const OpenResult& result() const { return answers.at(0); }
  };
  std::shared_ptr<const Waiting> Ask(OpenRequest request) {
    const auto waiting = std::make_shared<Waiting>();
    waiting->id = registry_->NewOpenId();
    registry_->Open(
        waiting->id, std::move(request),
        [waiting](OpenResult answer) { waiting->answers.push_back(std::move(answer)); },
        [waiting](OpenPhase phase, uint64_t, uint64_t) {
          if (waiting->phases.empty() || waiting->phases.back() != phase)
            waiting->phases.push_back(phase);
        });
    return waiting;
  }
  bool Answer(const std::shared_ptr<const Waiting>& waiting) {
    return RunUntil([&] { return waiting->is_answered(); });
  }
  // Asks and waits for the answer.
  OpenResult Open(OpenRequest request) {
    const auto result = std::make_shared<std::optional<OpenResult>>();
    const auto asked = std::make_shared<OpenRequest>(std::move(request));
    OnReactor([&] {
      registry_->Open(
          registry_->NewOpenId(), std::move(*asked),
          [result](OpenResult answer) { *result = std::move(answer); }, nullptr);
    });
    if (!RunUntil([result] { return result->has_value(); }))
      return OpenResult{DeadlineExceededError("no answer")};
    return OnReactor([&] { return **result; });
  }
  static constexpr uint32_t kUid = 4711;  // Of such sessions: nobody's.

  // --- The lease server -----------------------------------------------------------

  // Listens at <runtime_dir>/lease.sock. Before StartThread(), or on the loop's thread.
  LeaseServer& Serve(LeaseServer::Options options = {}) {
    UniqueFd listener = ListenAt(config_.runtime_dir + "/lease.sock", SOCK_SEQPACKET, 0600).value();
    SetNonBlocking(listener.get());
    lease_server_ = std::make_unique<LeaseServer>(reactor_.get(), registry_.get(),
                                                  std::move(listener), options);
    const Status started = lease_server_->Start();
    EXPECT_TRUE(started.ok()) << started.ToString();
    return *lease_server_;
  }
  LeaseServer& lease_server() { return *lease_server_; }
  // While the loop goes on for others.
  void EndLeaseServer() {
    OnReactor([this] { lease_server_.reset(); });
  }

 private:
  static constexpr Duration kLook = std::chrono::milliseconds(1);

  struct Asked : std::enable_shared_from_this<Asked> {
    std::function<void()> ask;
    std::promise<bool> answer;
  };

  static bool Impatient() {
    ADD_FAILURE() << "what the test waits for has not happened in a minute";
    return false;
  }
  static void SetNonBlocking(int fd) {
    EXPECT_EQ(::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK), 0);
  }

  const std::unique_ptr<const TemporaryDirectory> own_root_;
  const TemporaryDirectory& root_;
  const std::unique_ptr<Reactor> reactor_;
  DaemonConfig config_;
  std::vector<FakeTier*> tiers_;  // The registry's.
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<LeaseServer> lease_server_;
  std::thread thread_;
};

}  // namespace trims

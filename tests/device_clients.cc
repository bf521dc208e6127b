#include "tests/device_clients.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "cuda/test_kernels.h"
#include "cuda/test_process.h"
#include "tests/raw_client.h"
#include "trims/trims.h"

namespace trims::testing_support {

bool OnRealGpu() {
  const char* const setting = std::getenv("TRIMS_TEST_REAL_GPU");
  return setting != nullptr && std::string_view(setting) == "1";
}

// --- The machine and its models -----------------------------------------------------

DeviceMachine::DeviceMachine(const std::string& library, const Environment& settings) {
  if (OnRealGpu()) return;
  std::string made = ::testing::TempDir() + "/fake_cuda-XXXXXX";
  if (::mkdtemp(made.data()) == nullptr) std::abort();
  ::chmod(made.c_str(), 0777);  // Processes of other users are on the same machine.
  directory_ = made;
  environment_ = {{"TRIMS_CUDA_LIBRARY", library},
                  {"FAKE_CUDA_DIR", made},
                  {"FAKE_CUDA_DEVICES", "2"},
                  {"FAKE_CUDA_MEMORY", "256MiB"}};
  for (const auto& [name, value] : settings) environment_[name] = value;
}

DeviceMachine::~DeviceMachine() {
  std::error_code ignored;
  if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
}

void DeviceMachine::BreakDevice(int index, int result) const {
  const std::string path = directory_ + "/device-" + std::to_string(index) + "-error";
  std::ofstream(path + ".new") << result;
  std::filesystem::rename(path + ".new", path);
}

void DeviceMachine::MendDevice(int index) const {
  std::filesystem::remove(directory_ + "/device-" + std::to_string(index) + "-error");
}

namespace {

constexpr uint64_t kSumBase = 1'000'003;

uint32_t ModelWord(uint64_t key, uint64_t at) {
  uint64_t word = (at + key) * 0x9e3779b97f4a7c15;
  word ^= word >> 29;
  return static_cast<uint32_t>(word * 0xbf58476d1ce4e5b9 >> 32);
}

std::string TensorName(int i) {
  char name[16];
  std::snprintf(name, sizeof name, "t%06d", i);  // Sorted as the numbers are.
  return name;
}

}  // namespace

uint64_t WriteDeviceModel(const std::string& directory, uint64_t seed, int tensors,
                          uint64_t bytes_each) {
  std::filesystem::create_directories(directory);
  std::string header = "{";
  for (int i = 0; i < tensors; ++i) {
    const uint64_t begin = static_cast<uint64_t>(i) * bytes_each;
    header += (i == 0 ? "\"" : ",\"") + TensorName(i) + "\":{\"dtype\":\"U8\",\"shape\":[" +
              std::to_string(bytes_each) + "],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(begin + bytes_each) + "]}";
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::ofstream out(directory + "/model.safetensors", std::ios::binary | std::ios::trunc);
  const uint64_t header_bytes = header.size();
  out.write(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
  out << header;

  uint64_t total = 0;
  std::vector<uint32_t> words(std::min<uint64_t>(bytes_each, kMiB) / sizeof(uint32_t));
  for (int i = 0; i < tensors; ++i) {
    const uint64_t key = seed * 0x94d049bb133111eb + static_cast<uint64_t>(i) * 0x2545f4914f6cdd1d;
    uint64_t mix = 0;
    for (uint64_t at = 0; at < bytes_each / sizeof(uint32_t); at += words.size()) {
      const uint64_t count = std::min<uint64_t>(words.size(), bytes_each / sizeof(uint32_t) - at);
      for (uint64_t j = 0; j < count; ++j) {
        words[j] = ModelWord(key, at + j);
        mix += words[j] * (2 * (at + j) + 1);
      }
      out.write(reinterpret_cast<const char*>(words.data()),
                static_cast<std::streamsize>(count * sizeof(uint32_t)));
    }
    total = total * kSumBase + mix;
  }
  out.close();
  EXPECT_TRUE(out.good()) << directory;
  return total;
}

// --- The test's side ----------------------------------------------------------------

uint64_t ClientReply::Number(const std::string& name) const {
  const auto found = facts.find(name);
  if (found == facts.end()) {
    ADD_FAILURE() << "the client did not say " << name << ": " << status.ToString();
    return 0;
  }
  return std::strtoull(found->second.c_str(), nullptr, 10);
}

const std::string& ClientReply::Text(const std::string& name) const {
  static const std::string& none = *new std::string;
  const auto found = facts.find(name);
  if (found == facts.end()) {
    ADD_FAILURE() << "the client did not say " << name << ": " << status.ToString();
    return none;
  }
  return found->second;
}

namespace {

// What may be forbidden where the test runs, by the exit status of a child that was refused.
constexpr int kFirstTrouble = 111;
constexpr std::array<const char*, 7> kTroubles = {"changing the user (needs root)",
                                                  "making namespaces",
                                                  "mapping users into a namespace",
                                                  "mounting /proc in a namespace",
                                                  "dropping capabilities",
                                                  "starting a process in a namespace",
                                                  "exec"};
enum Trouble { kUser, kUnshare, kMapUsers, kMountProc, kCapabilities, kFork, kExec };

[[noreturn]] void Refused(Trouble trouble) { ::_exit(kFirstTrouble + trouble); }

// What goes into the isolated process; made before the fork, as other threads may hold
// the locks of the allocator.
struct Launch {
  int program = -1;
  int socket = -1;
  std::vector<char*> arguments;
  std::vector<char*> environment;
  Isolation isolation = Isolation::kNone;
};

void WriteFile(const char* path, const char* text) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || ::write(fd, text, std::strlen(text)) < 0) Refused(kMapUsers);
  ::close(fd);
}

void BecomeOtherUser() {
  if (::syscall(SYS_setgroups, 0, nullptr) != 0 || ::setgid(kIsolatedUid) != 0 ||
      ::setuid(kIsolatedUid) != 0) {
    Refused(kUser);
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // Forgotten when the user changes.
}

// What is left: a process that holds no capability, and can get none.
void DropCapabilities() {
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability)
    static_cast<void>(::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  if (::syscall(SYS_capset, &header, none) != 0) Refused(kCapabilities);
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

// The first process of a pid namespace is a child; this one passes on how it ends.
void ForkIntoPidNamespace() {
  const pid_t inner = ::fork();
  if (inner < 0) Refused(kFork);
  if (inner == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    return;
  }
  // Nothing of the test's may stay open here.
  static_cast<void>(::syscall(SYS_close_range, 3U, ~0U, 0U));
  int status = 0;
  while (::waitpid(inner, &status, 0) < 0 && errno == EINTR) {
  }
  ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 100);
}

void MountProc() {
  if (::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    Refused(kMountProc);
  }
}

void Isolate(Isolation isolation) {
  constexpr int kNamespaces =
      CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS;
  switch (isolation) {
    case Isolation::kNone:
      return;
    case Isolation::kOtherUid:
      BecomeOtherUser();
      DropCapabilities();
      return;
    case Isolation::kUserNamespace: {
      BecomeOtherUser();
      ::prctl(PR_SET_DUMPABLE, 1);  // Or its own /proc/self belongs to root.
      if (::unshare(CLONE_NEWUSER | kNamespaces) != 0) Refused(kUnshare);
      char map[64];
      std::snprintf(map, sizeof map, "%u %u 1", kIsolatedUid, kIsolatedUid);
      WriteFile("/proc/self/setgroups", "deny");
      WriteFile("/proc/self/uid_map", map);
      WriteFile("/proc/self/gid_map", map);
      ForkIntoPidNamespace();
      MountProc();
      DropCapabilities();
      return;
    }
    case Isolation::kOtherNamespaces:
      if (::unshare(kNamespaces) != 0) Refused(kUnshare);
      ForkIntoPidNamespace();
      MountProc();
      BecomeOtherUser();
      DropCapabilities();
      return;
    case Isolation::kWithoutProc:
      if (::unshare(CLONE_NEWNS) != 0) Refused(kUnshare);
      if (::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
          ::mount("none", "/proc", "tmpfs", MS_RDONLY, nullptr) != 0) {
        Refused(kMountProc);
      }
      return;
  }
}

[[noreturn]] void RunIsolated(const Launch& launch) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Isolate(launch.isolation);
  ::fcntl(launch.socket, F_SETFD, 0);
  // Not by its path, which this process may not be able to walk.
  ::syscall(SYS_execveat, launch.program, "", launch.arguments.data(), launch.environment.data(),
            AT_EMPTY_PATH);
  Refused(kExec);
}

constexpr std::string_view kRole = "--device-client=";

}  // namespace

DeviceClient::DeviceClient(const DeviceMachine::Environment& environment, Isolation isolation) {
  std::array<int, 2> sockets{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets.data()) != 0) std::abort();
  socket_ = UniqueFd(sockets[0]);
  UniqueFd theirs(sockets[1]);
  const UniqueFd program(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  std::string name = "device-client";
  std::string role = std::string(kRole) + std::to_string(theirs.get());
  DeviceMachine::Environment all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view setting = *entry;
    const size_t equals = setting.find('=');
    if (equals != std::string_view::npos)
      all[std::string(setting.substr(0, equals))] = setting.substr(equals + 1);
  }
  for (const auto& [key, value] : environment) all[key] = value;
  std::vector<std::string> settings;
  for (const auto& [key, value] : all) {
    settings.push_back(key);
    settings.back().append("=").append(value);
  }
  Launch launch{.program = program.get(), .socket = theirs.get(), .isolation = isolation};
  launch.arguments = {name.data(), role.data(), nullptr};
  for (std::string& setting : settings) launch.environment.push_back(setting.data());
  launch.environment.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) std::abort();
  if (pid_ == 0) RunIsolated(launch);
  theirs.Reset();
  if (Ask("hello").closed) {
    const int status = Wait();
    const int which = status - kFirstTrouble;
    trouble_ = which >= 0 && which < static_cast<int>(kTroubles.size())
                   ? std::string(kTroubles[static_cast<size_t>(which)]) + " is not possible here"
                   : "it ended with status " + std::to_string(status);
  }
}

void DeviceClient::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  static_cast<void>(Wait());
}

int DeviceClient::Wait() {
  if (pid_ <= 0) return -1;
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

ClientReply DeviceClient::Ask(const std::string& command) {
  cuda::Message message;
  if (command.size() >= sizeof message.text) {
    ADD_FAILURE() << "too long: " << command;
    return {.status = InternalError("too long")};
  }
  std::memcpy(message.text, command.c_str(), command.size() + 1);
  cuda::Say(socket_.get(), message);
  return Receive();
}

ClientReply DeviceClient::Receive() {
  pollfd wait{socket_.get(), POLLIN, 0};
  ClientReply reply;
  if (::poll(&wait, 1, 120'000) != 1) {
    ADD_FAILURE() << "no answer of a client in two minutes";
    reply.status = DeadlineExceededError("no answer");
    return reply;
  }
  const cuda::Heard heard = cuda::Hear(socket_.get());
  if (heard.closed) {
    reply.closed = true;
    reply.status = UnavailableError("the client is gone");
    return reply;
  }
  // Facts by line; the message is the last one.
  std::istringstream lines(heard.message.text);
  std::string line;
  while (std::getline(lines, line)) {
    const size_t equals = line.find('=');
    if (equals != std::string::npos) reply.facts[line.substr(0, equals)] = line.substr(equals + 1);
  }
  if (heard.message.code != 0) {
    reply.status =
        Status(static_cast<StatusCode>(heard.message.code), std::move(reply.facts["message"]));
  }
  return reply;
}

ClientReply DeviceClient::StartComputing(const std::string& slot, uint64_t sum, int rounds) {
  return Ask("compute " + slot + " sum=" + std::to_string(sum) +
             " rounds=" + std::to_string(rounds));
}

void DeviceClient::StartRoaming(const Roaming& roaming) {
  std::string command = "roam seed=" + std::to_string(roaming.seed) +
                        " opens=" + std::to_string(roaming.opens) + " uuids=" + roaming.uuids +
                        " full=" + (roaming.may_be_full ? "1" : "0");
  for (const auto& [name, sum] : roaming.models)
    command.append(" ").append(name).append(":").append(std::to_string(sum));
  cuda::Message message;
  ASSERT_LT(command.size(), sizeof message.text);
  std::memcpy(message.text, command.c_str(), command.size() + 1);
  cuda::Say(socket_.get(), message);
}

// --- The client's side ----------------------------------------------------------------

namespace {

// A device with what it takes to compute there.
struct Gpu {
  static constexpr uint64_t kTensorsMax = 8192;

  static Result<Gpu> Make(const cuda::Device& device) {
    ASSIGN_OR_RETURN(cuda::Context context, cuda::Context::Retain(device));
    ASSIGN_OR_RETURN(cuda::Module module, cuda::Module::Load(context, cuda::TestKernelImage()));
    ASSIGN_OR_RETURN(const cuda::Kernel mix, module.Find("trims_test_mix"));
    ASSIGN_OR_RETURN(const cuda::Kernel add, module.Find("trims_test_add"));
    ASSIGN_OR_RETURN(cuda::DeviceBuffer sums,
                     cuda::DeviceBuffer::Allocate(context, kTensorsMax * sizeof(uint64_t)));
    ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create(context));
    return Gpu{std::move(context), std::move(module), mix, add, std::move(sums), std::move(stream)};
  }

  cuda::Context context;
  cuda::Module module;
  cuda::Kernel mix;
  cuda::Kernel add;
  cuda::DeviceBuffer sums;
  cuda::Stream stream;
};

cuda::DevicePointer PointerOf(const void* data) {
  return static_cast<cuda::DevicePointer>(reinterpret_cast<uintptr_t>(data));
}

// Words after the first, "key=value" by key, and the rest in order.
struct Command {
  explicit Command(const char* text) {
    std::istringstream in(text);
    in >> verb;
    std::string word;
    while (in >> word) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        words.push_back(word);
      } else {
        settings[word.substr(0, equals)] = word.substr(equals + 1);
      }
    }
    words.resize(std::max<size_t>(words.size(), 3));
  }
  uint64_t Number(const std::string& key, uint64_t fallback = 0) const {
    const auto found = settings.find(key);
    return found == settings.end() ? fallback : std::strtoull(found->second.c_str(), nullptr, 10);
  }
  std::string Text(const std::string& key) const {
    const auto found = settings.find(key);
    return found == settings.end() ? "" : found->second;
  }

  std::string verb;
  std::vector<std::string> words;
  std::map<std::string, std::string> settings;
};

class Client final {
 public:
  explicit Client(UniqueFd socket) : socket_(std::move(socket)) {}

  int Run() {
    for (;;) {
      const cuda::Heard heard = cuda::Hear(socket_.get());
      if (heard.closed) return 0;
      facts_.clear();
      const Status status = Do(Command(heard.message.text));
      Answer(status);
    }
  }

 private:
  void Answer(const Status& status) {
    cuda::Message message{.code = static_cast<int32_t>(status.code())};
    std::string text;
    for (const auto& [name, value] : facts_) text += name + "=" + value + "\n";
    std::string words = status.message();
    std::replace(words.begin(), words.end(), '\n', ' ');
    if (!status.ok()) text += "message=" + words;
    std::snprintf(message.text, sizeof message.text, "%s", text.c_str());
    cuda::Say(socket_.get(), message);
  }
  bool Told() const {
    pollfd wait{socket_.get(), POLLIN, 0};
    return ::poll(&wait, 1, 0) > 0;
  }
  void Say(const std::string& name, uint64_t value) { facts_[name] = std::to_string(value); }

  Status Do(const Command& command) {
    const std::string& verb = command.verb;
    const std::string& first = command.words[0];
    if (verb == "hello") return OkStatus();
    if (verb == "connect") return Connect(first);
    if (verb == "disconnect") return Disconnect();
    if (verb == "ping") {
      trims_error* error = nullptr;
      return Take(trims_client_ping(client_, &error), error);
    }
    if (verb == "open") return Open(command);
    if (verb == "memory") return SayMemory();
    if (verb == "hog") return Hog(first, std::strtoull(command.words[1].c_str(), nullptr, 10));
    if (verb == "unhog") {
      hogged_.clear();
      return OkStatus();
    }
    if (verb == "raw-open") return RawOpen(first, command.words[1], command.words[2]);
    if (verb == "raw-flip") return RawFlip(std::strtoull(first.c_str(), nullptr, 10));
    if (verb == "raw-close") {
      raw_.reset();
      return OkStatus();
    }
    if (verb == "roam") return Roam(command);
    const auto slot = leases_.find(first);
    if (slot == leases_.end()) return InvalidArgumentError("no lease for " + verb + " " + first);
    if (verb == "facts") {
      SayLease(slot->second);
      return OkStatus();
    }
    if (verb == "sum") {
      ASSIGN_OR_RETURN(const uint64_t sum, Sum(slot->second, 1));
      Say("sum", sum);
      return OkStatus();
    }
    if (verb == "compute") return Compute(slot->second, command);
    if (verb == "write" || verb == "copy") return Damage(slot->second, verb == "copy");
    if (verb == "close") {
      trims_lease_close(slot->second);
      leases_.erase(slot);
      return OkStatus();
    }
    return InvalidArgumentError("no such command: " + verb);
  }

  // A failure of libtrims, with its numbers as facts. `error` is what the call that gave `code`
  // has set: a reference, because arguments are evaluated in any order.
  Status Take(trims_status code, trims_error*& error) {
    if (code == TRIMS_OK) return OkStatus();
    Say("need", trims_error_need_bytes(error));
    Say("free", trims_error_free_bytes(error));
    Say("evictable", trims_error_evictable_bytes(error));
    Status status(static_cast<StatusCode>(code), trims_error_message(error));
    trims_error_free(error);
    return status;
  }

  Status Connect(const std::string& directory) {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = directory.c_str();
    options.connect_timeout_ms = 60'000;
    // Root's daemon is nobody's in a user namespace that does not map root.
    constexpr uint32_t kNobody = 65534;
    if (::geteuid() == kIsolatedUid) options.daemon_uid = kNobody;
    trims_error* error = nullptr;
    return Take(trims_client_connect(&options, &client_, &error), error);
  }
  Status Disconnect() {
    for (const auto& [slot, lease] : leases_) trims_lease_close(lease);
    leases_.clear();
    trims_client_disconnect(client_);
    client_ = nullptr;
    return OkStatus();
  }

  Status Open(const Command& command) {
    trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
    options.tier = command.Number("host") != 0 ? TRIMS_TIER_HOST : TRIMS_TIER_DEVICE;
    const std::string uuid = command.Text("uuid");
    if (!uuid.empty()) options.device_uuid = uuid.c_str();
    options.device_ordinal = static_cast<int32_t>(command.Number("ordinal"));
    options.granularity = static_cast<trims_granularity>(command.Number("granularity"));
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    RETURN_IF_ERROR(
        Take(trims_lease_open(client_, command.words[1].c_str(), &options, &lease, &error), error));
    SayLease(lease);
    trims_lease*& slot = leases_[command.words[0]];
    trims_lease_close(slot);
    slot = lease;
    return OkStatus();
  }

  void SayLease(const trims_lease* lease) {
    Say("loaded", static_cast<uint64_t>(trims_lease_was_loaded(lease)));
    Say("generation", trims_lease_generation(lease));
    Say("bytes", trims_lease_total_bytes(lease));
    Say("attached", static_cast<uint64_t>(trims_lease_is_attached(lease)));
    facts_["uuid"] = trims_lease_device_uuid(lease);
    facts_["ordinal"] = std::to_string(trims_lease_device_ordinal(lease));
  }

  Result<Gpu*> GpuOf(const std::string& uuid) {
    std::unique_ptr<Gpu>& gpu = gpus_[uuid];
    if (gpu == nullptr) {
      ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
      ASSIGN_OR_RETURN(const cuda::Device device, driver->FindDevice(uuid));
      ASSIGN_OR_RETURN(Gpu made, Gpu::Make(device));
      gpu = std::make_unique<Gpu>(std::move(made));
    }
    return gpu.get();
  }

  // What the kernel makes of all tensors in order, `rounds` times as much.
  Result<uint64_t> Sum(const trims_lease* lease, uint32_t rounds) {
    ASSIGN_OR_RETURN(Gpu* const gpu, GpuOf(trims_lease_device_uuid(lease)));
    const uint32_t count = trims_lease_tensor_count(lease);
    if (count > Gpu::kTensorsMax) return InvalidArgumentError("too many tensors");
    std::vector<uint64_t> sums(count);
    const uint64_t bytes = count * sizeof(uint64_t);
    RETURN_IF_ERROR(gpu->stream.Fill(gpu->sums.pointer(), 0, bytes));
    for (uint32_t i = 0; i < count; ++i) {
      trims_tensor tensor;
      if (trims_lease_tensor(lease, i, &tensor) != TRIMS_OK) return DataLossError("no tensor");
      RETURN_IF_ERROR(gpu->mix.Launch(gpu->stream, {.blocks = 256, .threads = 256},
                                      PointerOf(tensor.data), tensor.size_bytes / sizeof(uint32_t),
                                      rounds, gpu->sums.pointer() + i * sizeof(uint64_t)));
    }
    RETURN_IF_ERROR(gpu->stream.CopyToHost(sums.data(), gpu->sums.pointer(), bytes));
    RETURN_IF_ERROR(gpu->stream.Synchronize());
    uint64_t total = 0;
    for (const uint64_t sum : sums) total = total * kSumBase + sum;
    return total;
  }

  Status Compute(const trims_lease* lease, const Command& command) {
    const auto rounds = static_cast<uint32_t>(command.Number("rounds", 1));
    const uint64_t expected = command.Number("sum") * rounds;
    for (uint64_t times = 0;; ++times) {
      ASSIGN_OR_RETURN(const uint64_t sum, Sum(lease, rounds));
      if (sum != expected) {
        return DataLossError("a wrong sum after " + std::to_string(times) + " right ones");
      }
      Say("times", times + 1);
      if (times == 0) Answer(OkStatus());  // It has begun.
      if (!Told()) continue;
      const cuda::Heard heard = cuda::Hear(socket_.get());
      if (heard.closed || std::string_view(heard.message.text) == "stop") return OkStatus();
      // A tick is answered by a kernel that began after it.
      ASSIGN_OR_RETURN(const uint64_t again, Sum(lease, rounds));
      if (again != expected) return DataLossError("a wrong sum");
      Answer(OkStatus());
    }
  }

  Status Damage(const trims_lease* lease, bool by_copy) {
    ASSIGN_OR_RETURN(Gpu* const gpu, GpuOf(trims_lease_device_uuid(lease)));
    trims_tensor tensor;
    if (trims_lease_tensor(lease, 0, &tensor) != TRIMS_OK) return InternalError("no tensor");
    if (by_copy) {
      const uint32_t word = 1;
      RETURN_IF_ERROR(gpu->stream.CopyToDevice(PointerOf(tensor.data), &word, sizeof word));
    } else {
      RETURN_IF_ERROR(gpu->add.Launch(gpu->stream, {.blocks = 1, .threads = 32},
                                      PointerOf(tensor.data), uint64_t{32}, uint32_t{1}));
    }
    return gpu->stream.Synchronize();
  }

  Status SayMemory() {
    ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
    ASSIGN_OR_RETURN(const std::vector<cuda::Device> devices, driver->Devices());
    for (const cuda::Device& device : devices) {
      ASSIGN_OR_RETURN(Gpu* const gpu, GpuOf(device.uuid()));
      ASSIGN_OR_RETURN(const cuda::Context::Memory memory, gpu->context.GetMemory());
      Say("free-" + device.uuid(), memory.free_bytes);
    }
    return OkStatus();
  }

  Status Hog(const std::string& uuid, uint64_t bytes) {
    ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
    ASSIGN_OR_RETURN(const cuda::Device device, driver->FindDevice(uuid));
    ASSIGN_OR_RETURN(cuda::PhysicalMemory memory, cuda::PhysicalMemory::Create(device, bytes));
    hogged_.push_back(std::move(memory));
    return OkStatus();
  }

  Status RawOpen(const std::string& directory, const std::string& model, const std::string& uuid) {
    ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
    ASSIGN_OR_RETURN(const cuda::Device device, driver->FindDevice(uuid));
    raw_ = std::make_unique<RawClient>(directory);
    if (!raw_->connected() || !raw_->Greet()) return UnavailableError("no greeting");
    raw_->SendDeviceOpen(2, model, uuid);
    const RawPacket answer = raw_->Receive();
    if (answer.closed) return UnavailableError("hung up on");
    if (answer.header.type == FrameType::kFailed) {
      const auto* failed = answer.As<v1::Failed>();
      return Status(static_cast<StatusCode>(failed->code()), failed->message()->str());
    }
    const auto* opened = answer.As<v1::Opened>();
    if (answer.header.type != FrameType::kOpened || answer.fds.size() < 2)
      return InternalError("not an opened lease");
    Say("generation", opened->generation());
    Say("bytes", opened->extent_bytes()->Get(0));
    // A hostile client needs no more: what it was lent, and write access that it gives itself.
    ASSIGN_OR_RETURN(
        const cuda::PhysicalMemory memory,
        cuda::PhysicalMemory::Import(device, answer.fds[1].get(), opened->extent_bytes()->Get(0)));
    ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                     cuda::DeviceMapping::Map(memory, cuda::Access::kReadWrite));
    raw_mapping_ = std::make_unique<cuda::DeviceMapping>(std::move(mapping));
    raw_uuid_ = uuid;
    return OkStatus();
  }

  Status RawFlip(uint64_t offset) {
    ASSIGN_OR_RETURN(Gpu* const gpu, GpuOf(raw_uuid_));
    const cuda::DevicePointer at = raw_mapping_->pointer() + offset;
    uint8_t byte = 0;
    RETURN_IF_ERROR(gpu->stream.CopyToHost(&byte, at, 1));
    RETURN_IF_ERROR(gpu->stream.Synchronize());
    byte ^= 0x10;
    RETURN_IF_ERROR(gpu->stream.CopyToDevice(at, &byte, 1));
    return gpu->stream.Synchronize();
  }

  Status Roam(const Command& command) {
    std::vector<std::pair<std::string, uint64_t>> models;
    for (const std::string& word : command.words) {
      const size_t colon = word.find(':');
      if (colon == std::string::npos) continue;
      models.emplace_back(word.substr(0, colon),
                          std::strtoull(word.c_str() + colon + 1, nullptr, 10));
    }
    std::vector<std::string> uuids;
    std::istringstream in(command.Text("uuids"));
    for (std::string uuid; std::getline(in, uuid, ',');) uuids.push_back(uuid);
    const uint64_t limit = command.Number("opens");
    const bool may_be_full = command.Number("full") != 0;
    std::mt19937_64 random(command.Number("seed"));
    uint64_t opens = 0, exhausted = 0, loads = 0, longest_us = 0;
    while (limit != 0 ? opens + exhausted < limit : !Told()) {
      const auto& [name, expected] = models[random() % models.size()];
      const std::string& uuid = uuids[random() % uuids.size()];
      trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
      options.tier = TRIMS_TIER_DEVICE;
      options.device_uuid = uuid.c_str();
      trims_lease* lease = nullptr;
      trims_error* error = nullptr;
      const auto start = std::chrono::steady_clock::now();
      const Status opened =
          Take(trims_lease_open(client_, name.c_str(), &options, &lease, &error), error);
      longest_us = std::max(
          longest_us, static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                                std::chrono::steady_clock::now() - start)
                                                .count()));
      if (!opened.ok()) {
        if (opened.code() != StatusCode::kResourceExhausted || !may_be_full) return opened;
        const bool says_enough = facts_["need"] != "0" &&
                                 opened.message().find("free") != std::string::npos &&
                                 opened.message().find("evictable") != std::string::npos;
        if (!says_enough) return InternalError("too few words: " + opened.message());
        ++exhausted;
        continue;
      }
      loads += static_cast<uint64_t>(trims_lease_was_loaded(lease));
      // More than once while it is held, while others load and evict.
      const uint64_t times = 1 + random() % 3;
      Status status;
      for (uint64_t i = 0; i < times && status.ok(); ++i) {
        const Result<uint64_t> sum = Sum(lease, 1);
        status = sum.status();
        if (sum.ok() && *sum != expected) status = DataLossError("wrong bytes in " + name);
      }
      trims_lease_close(lease);
      RETURN_IF_ERROR(status);
      ++opens;
    }
    if (limit == 0) static_cast<void>(cuda::Hear(socket_.get()));
    facts_.clear();
    Say("opens", opens);
    Say("exhausted", exhausted);
    Say("loads", loads);
    Say("longest-us", longest_us);
    return OkStatus();
  }

  UniqueFd socket_;
  std::map<std::string, std::string> facts_;  // Of the answer to come.
  trims_client* client_ = nullptr;
  std::map<std::string, trims_lease*> leases_;
  std::map<std::string, std::unique_ptr<Gpu>> gpus_;
  std::vector<cuda::PhysicalMemory> hogged_;
  std::unique_ptr<RawClient> raw_;
  std::unique_ptr<cuda::DeviceMapping> raw_mapping_;
  std::string raw_uuid_;
};

}  // namespace

std::optional<int> RunDeviceClient(int argc, char** argv) {
  const std::string_view argument = argc > 1 ? argv[1] : "";
  if (argument.substr(0, kRole.size()) != kRole) return std::nullopt;
  UniqueFd socket(static_cast<int>(std::strtol(argv[1] + kRole.size(), nullptr, 10)));
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  return Client(std::move(socket)).Run();
}

}  // namespace trims::testing_support

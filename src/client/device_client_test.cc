// The client library on devices, through its C interface, against a daemon that lends real
// allocations of the fake driver (with TRIMS_TEST_REAL_GPU=1: of the machine's).
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/fake_daemon.h"
#include "cuda/test_process.h"
#include "tier/test_cuda.h"
#include "trims/trims.h"
#include "trims/trims.hpp"

namespace trims::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kExtentBytes = 2 * kMiB;

// A model of `extents` allocations, as MakeFakeModel's: tensor "t0002" is 16 floats of 2.
FakeModel MakeDeviceModel(const cuda::Device& device, size_t extents) {
  FakeModel model = MakeFakeModel(extents);
  const cuda::Context context = Must(cuda::Context::Retain(device));
  for (size_t i = 0; i < extents; ++i) {
    cuda::PhysicalMemory memory = Must(cuda::PhysicalMemory::Create(device, kExtentBytes));
    const cuda::DeviceMapping mapping =
        Must(cuda::DeviceMapping::Map(memory, cuda::Access::kReadWrite));
    const cuda::Stream stream = Must(cuda::Stream::Create(context));
    std::array<float, 16> values;
    values.fill(static_cast<float>(i));
    Status status = stream.CopyToDevice(mapping.pointer(), values.data(), sizeof values);
    if (status.ok()) status = stream.Synchronize();
    EXPECT_TRUE(status.ok()) << status.ToString();
    model.extents[i] = Must(memory.Export());
    model.extent_bytes[i] = memory.size();
  }
  model.device_uuid = device.uuid();
  return model;
}

class DeviceClientTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    for (const cuda::Device& device : devices_) {
      daemon_.AddModel("on" + std::to_string(device.ordinal()), MakeDeviceModel(device, 3));
    }
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = daemon_.directory().c_str();
    ASSERT_EQ(trims_client_connect(&options, &client_, nullptr), TRIMS_OK);
    // The first open of a process reads what its devices are.
    trims_lease_close(Open(0));
    EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);  // Until the daemon has seen it.
    held_ = HeldMemoryObjects();
    descriptors_ = OpenDescriptors();
  }
  void TearDown() override {
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    EXPECT_EQ(HeldMemoryObjects(), held_) << "memory of the device leaked";
    // The daemon's thread closes its end of a connection that is over in its own time.
    for (int i = 0; i < 1000 && OpenDescriptors() != descriptors_; ++i) {
      EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);
    }
    EXPECT_EQ(OpenDescriptors(), descriptors_) << "descriptors leaked";
    trims_client_disconnect(client_);
  }

  // One more model; its descriptors are the daemon's, which is of this process.
  void Add(const char* name, FakeModel model) {
    daemon_.AddModel(name, std::move(model));
    descriptors_ = OpenDescriptors();
  }
  static trims_open_options OnDevice(int ordinal) {
    trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
    options.tier = TRIMS_TIER_DEVICE;
    options.device_ordinal = ordinal;
    return options;
  }
  trims_lease* Open(int ordinal) {
    const trims_open_options options = OnDevice(ordinal);
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    EXPECT_EQ(trims_lease_open(client_, ("on" + std::to_string(ordinal)).c_str(), &options, &lease,
                               &error),
              TRIMS_OK)
        << trims_error_message(error);
    trims_error_free(error);
    return lease;
  }
  // What a refused open says; the daemon must have been told that its lease is over.
  std::string Refusal(const char* model, const trims_open_options& options, trims_status expected) {
    const size_t opens = daemon_.log().opens.size();
    const size_t closes = daemon_.log().closes.size();
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    EXPECT_EQ(trims_lease_open(client_, model, &options, &lease, &error), expected)
        << trims_error_message(error);
    EXPECT_EQ(lease, nullptr);
    const std::string message = trims_error_message(error);
    trims_error_free(error);
    EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);  // Until it has seen the close.
    const FakeDaemon::Log log = daemon_.log();
    EXPECT_EQ(log.closes.size() - closes, log.opens.size() - opens) << message;
    return message;
  }
  float FirstElement(const trims_lease* lease, const char* name) {
    trims_tensor tensor;
    EXPECT_EQ(trims_lease_find_tensor(lease, name, &tensor), TRIMS_OK);
    const cuda::Device& device = devices_[static_cast<size_t>(trims_lease_device_ordinal(lease))];
    const cuda::Context context = Must(cuda::Context::Retain(device));
    const cuda::Stream stream = Must(cuda::Stream::Create(context));
    float value = -1;
    Status status =
        stream.CopyToHost(&value, reinterpret_cast<cuda::DevicePointer>(tensor.data), sizeof value);
    if (status.ok()) status = stream.Synchronize();
    EXPECT_TRUE(status.ok()) << status.ToString();
    return value;
  }

  const std::vector<cuda::Device> devices_ = VisibleDevices();
  FakeDaemon daemon_;
  trims_client* client_ = nullptr;
  uint64_t held_ = 0;
  size_t descriptors_ = 0;
};

TEST_F(DeviceClientTest, OpensOnADeviceByUuidAndByNumber) {
  for (const cuda::Device& device : devices_) {
    const std::string name = "on" + std::to_string(device.ordinal());
    trims_lease* by_number = Open(device.ordinal());
    ASSERT_NE(by_number, nullptr);
    EXPECT_EQ(daemon_.log().last_tier, v1::TierKind::Device);
    EXPECT_EQ(daemon_.log().last_device_uuid, device.uuid());
    EXPECT_EQ(trims_lease_tier(by_number), TRIMS_TIER_DEVICE);
    EXPECT_EQ(trims_lease_device_uuid(by_number), device.uuid());
    EXPECT_EQ(trims_lease_device_ordinal(by_number), device.ordinal());

    trims_open_options options = OnDevice(0);
    std::string uuid = device.uuid();
    for (char& c : uuid) c = static_cast<char>(std::toupper(c));  // Case does not matter.
    options.device_uuid = uuid.c_str();
    trims_lease* by_uuid = nullptr;
    ASSERT_EQ(trims_lease_open(client_, name.c_str(), &options, &by_uuid, nullptr), TRIMS_OK);
    EXPECT_EQ(daemon_.log().last_device_uuid, device.uuid());
    for (const trims_lease* lease : {by_number, by_uuid}) {
      EXPECT_EQ(FirstElement(lease, "t0000"), 0);
      EXPECT_EQ(FirstElement(lease, "t0002"), 2);
    }
    trims_lease_close(by_uuid);
    EXPECT_EQ(FirstElement(by_number, "t0001"), 1) << "one lease's end took another's memory";
    trims_lease_close(by_number);
  }
}

TEST_F(DeviceClientTest, WeightsOnADeviceCanNotBeWrittenThroughTheirMapping) {
  trims_lease* lease = Open(0);
  trims_extent extent;
  ASSERT_EQ(trims_lease_extent(lease, 0, &extent), TRIMS_OK);
  EXPECT_EQ(extent.size_bytes, kExtentBytes);
  const cuda::Context context = Must(cuda::Context::Retain(devices_[0]));
  const cuda::Stream stream = Must(cuda::Stream::Create(context));
  const auto pointer = reinterpret_cast<cuda::DevicePointer>(extent.data);
  EXPECT_EQ(stream.Fill(pointer, 7, 16).code(), StatusCode::kInvalidArgument);
  const int word = 7;
  EXPECT_EQ(stream.CopyToDevice(pointer, &word, sizeof word).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(FirstElement(lease, "t0000"), 0);
  trims_lease_close(lease);
}

TEST_F(DeviceClientTest, ALeaseOutlivesItsClientAndACloseUnmaps) {
  trims_lease* lease = Open(0);
  trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
  options.runtime_dir = daemon_.directory().c_str();
  trims_client_disconnect(std::exchange(client_, nullptr));
  EXPECT_EQ(FirstElement(lease, "t0002"), 2);
  if (!OnRealGpu()) {
    EXPECT_GT(HeldMemoryObjects(), held_);
  }
  trims_lease_close(lease);
  EXPECT_EQ(HeldMemoryObjects(), held_);
  ASSERT_EQ(trims_client_connect(&options, &client_, nullptr), TRIMS_OK);
}

TEST_F(DeviceClientTest, LeasesOnDevicesAreRegisteredAgainAfterARestart) {
  trims_lease* lease = Open(0);
  daemon_.KillWorker();
  EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  EXPECT_EQ(daemon_.log().reattaches.size(), 1u);
  EXPECT_EQ(FirstElement(lease, "t0001"), 1);
  trims_lease_close(lease);
}

TEST_F(DeviceClientTest, DevicesThatAreNotHereAreRefusedBeforeTheDaemonIsAsked) {
  const size_t opens = daemon_.log().opens.size();
  EXPECT_THAT(Refusal("on0", OnDevice(99), TRIMS_NOT_FOUND),
              AllOf(HasSubstr("there is no device 99"), HasSubstr(devices_[0].uuid())));
  EXPECT_THAT(Refusal("on0", OnDevice(-1), TRIMS_NOT_FOUND), HasSubstr("there is no device -1"));
  trims_open_options options = OnDevice(0);
  options.device_uuid = "GPU-00000000-0000-0000-0000-000000000000";
  EXPECT_THAT(Refusal("on0", options, TRIMS_NOT_FOUND),
              AllOf(HasSubstr("is not visible to this process"), HasSubstr(devices_[0].uuid())));
  options.device_ordinal = 1;
  EXPECT_THAT(Refusal("on0", options, TRIMS_INVALID_ARGUMENT), HasSubstr("set one"));
  options = OnDevice(0);
  options.reserved = 1;
  EXPECT_THAT(Refusal("on0", options, TRIMS_INVALID_ARGUMENT), HasSubstr("reserved"));
  options = TRIMS_OPEN_OPTIONS_INIT;
  options.device_ordinal = 1;
  EXPECT_THAT(Refusal("on0", options, TRIMS_INVALID_ARGUMENT), HasSubstr("TRIMS_TIER_HOST"));
  EXPECT_EQ(daemon_.log().opens.size(), opens);
}

TEST_F(DeviceClientTest, OptionsOfTheFirstHeaderStillWork) {
  trims_open_options options = OnDevice(0);
  options.device_uuid = devices_[0].uuid().c_str();
  options.struct_size = offsetof(trims_open_options, device_ordinal);
  options.device_ordinal = 77;  // Behind its end.
  options.reserved = 77;
  trims_lease* lease = nullptr;
  ASSERT_EQ(trims_lease_open(client_, "on0", &options, &lease, nullptr), TRIMS_OK);
  trims_lease_close(lease);
}

TEST_F(DeviceClientTest, DescriptorsThatAreNoDeviceMemoryAreRefusedAndTheLeaseIsGivenBack) {
  FakeModel liar = MakeFakeModel(1);  // A memfd where device memory should be.
  liar.device_uuid = devices_[0].uuid();
  Add("memfd", std::move(liar));
  EXPECT_THAT(Refusal("memfd", OnDevice(0), TRIMS_INVALID_ARGUMENT), HasSubstr("extent 0"));
  FakeModel mixed = MakeDeviceModel(devices_[0], 2);  // The second of two.
  mixed.extents[1] = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  Add("mixed", std::move(mixed));
  EXPECT_THAT(Refusal("mixed", OnDevice(0), TRIMS_INVALID_ARGUMENT), HasSubstr("extent 1"));
  FakeModel other = MakeFakeModel(1);  // The host's, though the device's was asked for.
  Add("host", std::move(other));
  EXPECT_THAT(Refusal("host", OnDevice(0), TRIMS_INTERNAL), HasSubstr("weights on the host"));
}

TEST_F(DeviceClientTest, SizesThatAreNotTheAllocationsAreRefused) {
  for (const uint64_t bytes :
       {uint64_t{0}, kExtentBytes + 1, 2 * kExtentBytes, uint64_t{1} << 62, ~uint64_t{0}}) {
    FakeModel model = MakeDeviceModel(devices_[0], 2);
    model.extent_bytes[1] = bytes;
    Add("liar", std::move(model));
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    const size_t closes = daemon_.log().closes.size();
    const trims_open_options options = OnDevice(0);
    EXPECT_NE(trims_lease_open(client_, "liar", &options, &lease, &error), TRIMS_OK) << bytes;
    EXPECT_THAT(trims_error_message(error), HasSubstr("extent 1")) << bytes;
    trims_error_free(error);
    EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);
    EXPECT_EQ(daemon_.log().closes.size(), closes + 1) << bytes;
    EXPECT_EQ(HeldMemoryObjects(), held_) << bytes;
  }
}

TEST_F(DeviceClientTest, MemoryOfAnotherDeviceIsRefused) {
  if (devices_.size() < 2) GTEST_SKIP() << "needs two devices";
  FakeModel model = MakeDeviceModel(devices_[1], 1);
  model.device_uuid = devices_[0].uuid();  // Says one, sends the other.
  Add("elsewhere", std::move(model));
  EXPECT_THAT(Refusal("elsewhere", OnDevice(0), TRIMS_FAILED_PRECONDITION),
              HasSubstr("lies on device 1"));
}

TEST_F(DeviceClientTest, EveryFailureOfTheDriverOnTheWayIsAnErrorThatLeavesNothingBehind) {
  SKIP_ON_REAL_GPU("failures are planned");
  for (const auto& [plan, text] : std::vector<std::pair<std::string, std::string>>{
           {"cuMemImportFromShareableHandle:2=999", "importing"},
           {"cuMemGetAllocationPropertiesFromHandle:1=1", "importing"},
           {"cuMemAddressReserve:1=2", "mapping"},
           {"cuMemMap:3=999", "mapping"},
           {"cuMemSetAccess:1=1", "setting access"}}) {
    ASSERT_EQ(FAKE(fake_cuda_fail)(plan.c_str()), 0);
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    const trims_open_options options = OnDevice(0);
    EXPECT_NE(trims_lease_open(client_, "on0", &options, &lease, &error), TRIMS_OK) << plan;
    EXPECT_THAT(trims_error_message(error), AllOf(HasSubstr("extent "), HasSubstr(text))) << plan;
    trims_error_free(error);
    FAKE(fake_cuda_fail)("");
    EXPECT_EQ(HeldMemoryObjects(), held_) << plan;
    EXPECT_EQ(OpenDescriptors(), descriptors_) << plan;
  }
  trims_lease_close(Open(0));
}

TEST_F(DeviceClientTest, AWarmOpenAsksTheDriverForNothingButTheMapping) {
  SKIP_ON_REAL_GPU("calls are counted");
  FAKE(fake_cuda_fail)("");
  trims_lease* lease = Open(0);
  const uint64_t calls = FAKE(fake_cuda_calls)("*");
  trims_lease_close(lease);
  // Import, its device, reserve, map, access, release: for each of three extents.
  EXPECT_EQ(calls, 6u * 3);
}

TEST_F(DeviceClientTest, TheDaemonHearsOfACloseWhenNothingIsMappedAnyMore) {
  SKIP_ON_REAL_GPU("mappings are counted");
  constexpr size_t kExtents = 40;  // So that unmapping takes longer than hearing of it.
  Add("many", MakeDeviceModel(devices_[0], kExtents));
  std::vector<uint64_t> held_at_close;
  daemon_.SetHook([&](FakeDaemon&, FakeDaemon::Connection&, const Frame& frame) {
    if (frame.header.type == FrameType::kClose) held_at_close.push_back(HeldMemoryObjects());
    return false;
  });
  const trims_open_options options = OnDevice(0);
  trims_lease* lease = nullptr;
  ASSERT_EQ(trims_lease_open(client_, "many", &options, &lease, nullptr), TRIMS_OK);
  EXPECT_EQ(HeldMemoryObjects(), held_ + 2 * kExtents);  // A reservation and a mapping each.
  trims_lease_close(lease);
  EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);  // Until it has seen the close.
  daemon_.SetHook(nullptr);
  EXPECT_EQ(held_at_close, std::vector<uint64_t>{held_});
}

TEST_F(DeviceClientTest, ThreadsOpenAndCloseOnAllDevicesAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      const int ordinal = devices_[t % devices_.size()].ordinal();
      const std::string name = "on" + std::to_string(ordinal);
      const trims_open_options options = OnDevice(ordinal);
      for (int i = 0; i < 25; ++i) {
        trims_lease* lease = nullptr;
        if (trims_lease_open(client_, name.c_str(), &options, &lease, nullptr) != TRIMS_OK ||
            trims_lease_device_ordinal(lease) != ordinal) {
          ++failures;
        }
        trims_lease_close(lease);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_OK);
}

TEST_F(DeviceClientTest, AForkedChildClosesALeaseWithoutTheDriverAndTheParentKeepsIt) {
  trims_lease* lease = Open(0);
  const pid_t child = ::fork();
  if (child == 0) {
    const uint64_t before = OnRealGpu() ? 0 : FAKE(fake_cuda_calls)("*");
    trims_lease_close(lease);
    ::_exit((OnRealGpu() ? 0 : FAKE(fake_cuda_calls)("*")) == before ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the child called the driver";
  EXPECT_EQ(FirstElement(lease, "t0002"), 2);
  trims_lease_close(lease);
}

TEST_F(DeviceClientTest, AForkedChildIsToldThatCudaDoesNotSurviveFork) {
  const pid_t child = ::fork();
  if (child == 0) {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = daemon_.directory().c_str();
    trims_client* own = nullptr;
    if (trims_client_connect(&options, &own, nullptr) != TRIMS_OK) ::_exit(1);
    const trims_open_options on_device = OnDevice(0);
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    if (trims_lease_open(own, "on0", &on_device, &lease, &error) != TRIMS_UNAVAILABLE) ::_exit(2);
    ::_exit(std::string(trims_error_message(error)).find("fork") != std::string::npos ? 0 : 3);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// --- In processes of their own -----------------------------------------------------------

// Connects to the directory it is told, opens on device 0, and says how that went.
Status OpenInChild(int socket) {
  const std::string directory = cuda::Hear(socket).message.text;
  trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
  options.runtime_dir = directory.c_str();
  trims_client* client = nullptr;
  if (trims_client_connect(&options, &client, nullptr) != TRIMS_OK)
    return UnavailableError("not connected");
  trims_lease* host = nullptr;
  if (trims_lease_open(client, "m", nullptr, &host, nullptr) != TRIMS_OK)
    return InternalError("host memory can not be opened");
  trims_lease_close(host);
  const char* const library = std::getenv("TRIMS_CUDA_LIBRARY");
  if (::dlopen(library != nullptr ? library : "libcuda.so.1", RTLD_NOW | RTLD_NOLOAD) != nullptr)
    return InternalError("an open of host memory has loaded the driver");
  trims_open_options on_device = TRIMS_OPEN_OPTIONS_INIT;
  on_device.tier = TRIMS_TIER_DEVICE;
  const char* const uuid = std::getenv("OPEN_UUID");
  on_device.device_uuid = uuid;
  const char* const model = std::getenv("OPEN_MODEL");
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  const trims_status status =
      trims_lease_open(client, model == nullptr ? "on0" : model, &on_device, &lease, &error);
  if (status != TRIMS_OK)
    return Status(static_cast<StatusCode>(status), trims_error_message(error));
  const std::string said = std::string(trims_lease_device_uuid(lease)) + " as " +
                           std::to_string(trims_lease_device_ordinal(lease));
  trims_lease_close(lease);
  trims_client_disconnect(client);
  // As an error that is none, because only errors have texts.
  return AbortedError(said);
}

class DeviceProcessTest : public DeviceClientTest {
 protected:
  cuda::Message Outcome(const cuda::ChildProcess::Environment& environment) {
    cuda::ChildProcess child("open", environment);
    cuda::Message place;
    std::snprintf(place.text, sizeof place.text, "%s", daemon_.directory().c_str());
    cuda::Say(child.socket(), place);
    const cuda::Heard heard = cuda::Hear(child.socket());
    EXPECT_FALSE(heard.closed) << "the child died";
    child.Wait();
    return heard.message;
  }
  static StatusCode CodeOf(const cuda::Message& message) {
    return static_cast<StatusCode>(message.code);
  }
};

TEST_F(DeviceProcessTest, HostMemoryNeedsNoDriverAndDevicesAreFoundUnderAnyVisibility) {
  const cuda::Message plain = Outcome({});
  EXPECT_EQ(std::string(plain.text), devices_[0].uuid() + " as 0");
  if (devices_.size() < 2) return;
  const cuda::Message second = Outcome({{"CUDA_VISIBLE_DEVICES", "1"}, {"OPEN_MODEL", "on1"}});
  EXPECT_EQ(std::string(second.text), devices_[1].uuid() + " as 0");
  const cuda::Message turned = Outcome(
      {{"CUDA_VISIBLE_DEVICES", "1,0"}, {"OPEN_MODEL", "on0"}, {"OPEN_UUID", devices_[0].uuid()}});
  EXPECT_EQ(std::string(turned.text), devices_[0].uuid() + " as 1");
}

TEST_F(DeviceProcessTest, AHiddenDeviceIsToldFromWhatIsVisible) {
  if (devices_.size() < 2) GTEST_SKIP() << "needs two devices";
  const cuda::Message hidden =
      Outcome({{"CUDA_VISIBLE_DEVICES", "1"}, {"OPEN_UUID", devices_[0].uuid()}});
  EXPECT_EQ(CodeOf(hidden), StatusCode::kNotFound);
  EXPECT_THAT(hidden.text,
              AllOf(HasSubstr("CUDA_VISIBLE_DEVICES is \"1\""), HasSubstr(devices_[1].uuid())));
}

TEST_F(DeviceProcessTest, WithoutADriverTheReasonAndTheRemedyAreTold) {
  const cuda::Message missing = Outcome({{"TRIMS_CUDA_LIBRARY", "/nonexistent/libcuda.so.1"}});
  EXPECT_EQ(CodeOf(missing), StatusCode::kUnavailable);
  EXPECT_THAT(missing.text, HasSubstr("install the driver"));
  const cuda::Message none = Outcome({{"CUDA_VISIBLE_DEVICES", ""}});
  EXPECT_EQ(CodeOf(none), StatusCode::kUnavailable);
  EXPECT_THAT(none.text, HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST_F(DeviceProcessTest, AContainerWithoutProcIsToldToMountIt) {
  SKIP_ON_REAL_GPU("failures are planned");
  const cuda::Message refused = Outcome({{"FAKE_CUDA_FAIL", "cuInit:1+=304"}});
  EXPECT_EQ(CodeOf(refused), StatusCode::kUnavailable);
  EXPECT_THAT(refused.text, AllOf(HasSubstr("/proc is not mounted"), HasSubstr("/dev/nvidia")));
}

int RunChild(const std::string& argument) {
  const size_t colon = argument.rfind(':');
  const UniqueFd socket(std::stoi(argument.substr(colon + 1)));
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  cuda::SayStatus(socket.get(), OpenInChild(socket.get()));
  return 0;
}

}  // namespace
}  // namespace trims::client

int main(int argc, char** argv) {
  const std::string_view argument = argc > 1 ? argv[1] : "";
  if (constexpr std::string_view kChild = "--child="; argument.starts_with(kChild)) {
    return trims::client::RunChild(std::string(argument.substr(kChild.size())));
  }
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}

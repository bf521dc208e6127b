// This folder against a driver: the fake one of tests/fake_cuda, or that of the machine, as
// test_machine.h says.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/error.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "cuda/test_kernels.h"
#include "cuda/test_machine.h"
#include "cuda/test_process.h"
#include "cuda/test_roles.h"
#include "fake_cuda/fake_cuda.h"

namespace trims::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// --- Driver ----------------------------------------------------------------------

Message LoadWith(const ChildProcess::Environment& environment, uint64_t times = 1) {
  return Ask("load-driver", {.value = times}, environment);
}

TEST(CudaDriverTest, MissingLibrarySaysThatThereIsNoDriver) {
  const Message said = LoadWith({{"TRIMS_CUDA_LIBRARY", "/nowhere/libcuda.so.1"}});
  EXPECT_EQ(CodeOf(said), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(said.text),
              AllOf(HasSubstr("no usable NVIDIA driver"), HasSubstr("/nowhere/libcuda.so.1"),
                    HasSubstr("install")));
}

TEST(CudaDriverTest, OldDriverIsNamedWithWhatItLacks) {
  const Message said = LoadWith({{"TRIMS_CUDA_LIBRARY", "libm.so.6"}});
  EXPECT_EQ(CodeOf(said), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(said.text),
              AllOf(HasSubstr("too old"), HasSubstr("cuGetErrorName"), HasSubstr("CUDA 11.4")));
}

TEST(CudaDriverTest, EmptyVisibleDevicesIsNamedAsTheReason) {
  const Message said = LoadWith({{"CUDA_VISIBLE_DEVICES", "-1"}});
  EXPECT_EQ(CodeOf(said), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(said.text),
              AllOf(HasSubstr("CUDA_VISIBLE_DEVICES"), HasSubstr("\"-1\"")));
}

TEST(CudaDriverTest, FailedStartTellsWhatToDo) {
  SKIP_ON_REAL_GPU("plans a failure");
  const auto advice = [](const std::string& result) {
    const Message said = LoadWith({{"FAKE_CUDA_FAIL", "cuInit:1+=" + result}});
    EXPECT_EQ(CodeOf(said), StatusCode::kUnavailable);
    EXPECT_THAT(std::string(said.text), HasSubstr("cuInit"));
    return std::string(said.text);
  };
  EXPECT_THAT(advice("304"), AllOf(HasSubstr("CUDA_ERROR_OPERATING_SYSTEM"), HasSubstr("/proc")));
  EXPECT_THAT(advice("803"), HasSubstr("different versions"));
  EXPECT_THAT(advice("802"), HasSubstr("nvidia-fabricmanager"));
  EXPECT_THAT(advice("34"), HasSubstr("stub"));
  EXPECT_THAT(advice("999"), HasSubstr("nvidia_uvm"));
  EXPECT_THAT(advice("1001"), HasSubstr("CUDA error 1001"));
}

TEST(CudaDriverTest, FailureIsNotRemembered) {
  SKIP_ON_REAL_GPU("plans a failure");
  const ChildProcess::Environment once = {{"FAKE_CUDA_FAIL", "cuInit:1=304"}};
  EXPECT_EQ(CodeOf(LoadWith(once, 1)), StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(LoadWith(once, 2)), StatusCode::kOk);
}

TEST_F(CudaTest, ForkedChildIsToldThatItCanNotUseTheDriver) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    const Status status = Driver::Load().status();
    const bool told = status.code() == StatusCode::kUnavailable &&
                      status.message().find("fork") != std::string::npos;
    ::_exit(told ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
}

TEST_F(CudaTest, LoadsOnceForAllThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this] { EXPECT_EQ(Must(Driver::Load()), driver_); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(driver_->version(), 11040);
  EXPECT_THAT(driver_->VersionText(), HasSubstr("."));
}

// --- Devices and contexts -----------------------------------------------------------

TEST_F(CudaTest, DevicesSayWhatTheyAre) {
  for (const Device& device : devices_) {
    EXPECT_THAT(device.uuid(),
                ::testing::MatchesRegex(
                    "(GPU|MIG)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"));
    EXPECT_FALSE(device.name().empty());
    EXPECT_FALSE(device.pci_bus_id().empty());
    EXPECT_GT(device.total_bytes(), 0U);
    EXPECT_GT(device.multiprocessors(), 0);
    EXPECT_GE(device.compute_capability_major(), 5);
    EXPECT_TRUE(device.supports_vmm());
    EXPECT_TRUE(device.supports_posix_fd());
    EXPECT_TRUE(Must(device.CanAccessPeer(device)));
    EXPECT_EQ(Must(driver_->FindDevice(device.uuid())), device);
  }
}

TEST_F(CudaTest, UnknownDeviceIsAnsweredWithTheVisibleOnes) {
  const Status status = driver_->FindDevice("GPU-00000000-1111-2222-3333-444444444444").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr(device().uuid()));
}

TEST_F(CudaTest, DeviceIsFoundByUuidUnderAnyVisibleDevices) {
  const auto find = [](const std::string& visible, const Device& device) {
    Message request;
    std::snprintf(request.text, sizeof request.text, "%s", device.uuid().c_str());
    return Ask("list-devices", request, {{"CUDA_VISIBLE_DEVICES", visible}});
  };
  EXPECT_EQ(find(device().uuid(), device()).value, 0U);
  EXPECT_EQ(find("0", device()).value, 0U);
  if (devices_.size() < 2) GTEST_SKIP() << "the rest needs two devices";
  EXPECT_EQ(find("1,0", devices_[0]).value, 1U);
  EXPECT_EQ(find("1,0", devices_[1]).value, 0U);
  EXPECT_EQ(find(devices_[1].uuid(), devices_[1]).value, 0U);
  const Message hidden = find("1", devices_[0]);
  EXPECT_EQ(CodeOf(hidden), StatusCode::kNotFound);
  EXPECT_THAT(std::string(hidden.text),
              AllOf(HasSubstr("CUDA_VISIBLE_DEVICES is \"1\""), HasSubstr(devices_[1].uuid())));
}

TEST_F(CudaContextTest, MemoryOfTheDeviceIsCounted) {
  const Context::Memory memory = Must(context_.GetMemory());
  EXPECT_GT(memory.free_bytes, 0U);
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
  EXPECT_OK(context_.CheckAlive());
  EXPECT_OK(context_.Synchronize());
}

TEST_F(CudaContextTest, CallersCurrentContextStaysAsItWas) {
  // A context that nobody pushed can not be popped.
  void* library = ::dlopen(driver_->library().c_str(), RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(library, nullptr);
  auto* const pop = reinterpret_cast<int (*)(void**)>(::dlsym(library, "cuCtxPopCurrent_v2"));
  ASSERT_NE(pop, nullptr);
  void* popped = nullptr;
  EXPECT_NE(pop(&popped), 0);
  {
    const CurrentContext current(context_);
    EXPECT_OK(current.status());
    EXPECT_OK(context_.CheckAlive());
    EXPECT_EQ(pop(&popped), 0);
    EXPECT_NE(popped, nullptr);
    auto* const push = reinterpret_cast<int (*)(void*)>(::dlsym(library, "cuCtxPushCurrent_v2"));
    EXPECT_EQ(push(popped), 0);
  }
  EXPECT_NE(pop(&popped), 0);
  ::dlclose(library);
}

TEST_F(CudaTest, StreamKeepsItsContext) {
  std::optional<Context> context = Must(Context::Retain(device()));
  const Stream stream = Must(Stream::Create(*context));
  context.reset();
  EXPECT_OK(stream.Synchronize());
}

TEST_F(CudaContextTest, BrokenDeviceIsReportedAndRecovers) {
  SKIP_ON_REAL_GPU("breaks a device");
  const std::string file = std::string(std::getenv("FAKE_CUDA_DIR")) + "/device-0-error";
  std::ofstream(file) << 46;  // CUDA_ERROR_DEVICE_UNAVAILABLE
  EXPECT_EQ(context_.CheckAlive().code(), StatusCode::kUnavailable);
  EXPECT_EQ(PhysicalMemory::Create(device(), kUnit).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(stream_.Synchronize().code(), StatusCode::kUnavailable);
  std::filesystem::remove(file);
  EXPECT_OK(context_.CheckAlive());
}

// --- Errors -----------------------------------------------------------------------

TEST_F(CudaTest, ResultsBecomeTheStatusThatCallersActOn) {
  const auto code = [](int result) { return CudaStatus(result, "x").code(); };
  EXPECT_EQ(code(0), StatusCode::kOk);
  EXPECT_EQ(code(1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(2), StatusCode::kResourceExhausted);
  EXPECT_EQ(code(3), StatusCode::kUnavailable);        // NOT_INITIALIZED
  EXPECT_EQ(code(46), StatusCode::kUnavailable);       // DEVICE_UNAVAILABLE
  EXPECT_EQ(code(100), StatusCode::kUnavailable);      // NO_DEVICE
  EXPECT_EQ(code(101), StatusCode::kInvalidArgument);  // INVALID_DEVICE
  EXPECT_EQ(code(209), StatusCode::kUnimplemented);    // NO_BINARY_FOR_GPU
  EXPECT_EQ(code(214), StatusCode::kDataLoss);         // ECC_UNCORRECTABLE
  EXPECT_EQ(code(304), StatusCode::kUnavailable);      // OPERATING_SYSTEM
  EXPECT_EQ(code(400), StatusCode::kInvalidArgument);  // INVALID_HANDLE
  EXPECT_EQ(code(500), StatusCode::kNotFound);
  EXPECT_EQ(code(600), StatusCode::kUnavailable);  // NOT_READY
  EXPECT_EQ(code(700), StatusCode::kInternal);     // ILLEGAL_ADDRESS
  EXPECT_EQ(code(719), StatusCode::kInternal);     // LAUNCH_FAILED
  EXPECT_EQ(code(704), StatusCode::kAlreadyExists);
  EXPECT_EQ(code(800), StatusCode::kPermissionDenied);
  EXPECT_EQ(code(801), StatusCode::kUnimplemented);
  EXPECT_EQ(code(31337), StatusCode::kUnknown);
  EXPECT_THAT(
      CudaStatus(2, "allocating a lot").message(),
      AllOf(HasSubstr("allocating a lot: CUDA_ERROR_OUT_OF_MEMORY"), HasSubstr("out of memory")));
  EXPECT_THAT(CudaStatus(700, "x").message(), HasSubstr("restarted"));
}

TEST_F(CudaTest, OnlyErrorsThatBreakAContextAreSticky) {
  for (const int result : {214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719}) {
    EXPECT_TRUE(IsSticky(result)) << result;
  }
  for (const int result : {0, 1, 2, 100, 400, 600, 701, 704, 712, 713, 801, 999}) {
    EXPECT_FALSE(IsSticky(result)) << result;
  }
}

// --- Memory -----------------------------------------------------------------------

TEST_F(CudaContextTest, NewMemoryIsZeroAndRoundedUp) {
  const uint64_t unit = Must(PhysicalMemory::Granularity(device()));
  const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), unit + 1));
  EXPECT_EQ(memory.size(), 2 * unit);
  EXPECT_FALSE(memory.imported());
  const DeviceMapping mapping = Must(DeviceMapping::Map(memory, Access::kRead));
  EXPECT_THAT(Read(mapping.pointer(), mapping.size() / sizeof(uint32_t)), ::testing::Each(0U));
}

TEST_F(CudaTest, NothingAndMoreThanEverythingAreRefused) {
  EXPECT_EQ(PhysicalMemory::Create(device(), 0).status().code(), StatusCode::kInvalidArgument);
  const Status status = PhysicalMemory::Create(device(), device().total_bytes() + kUnit).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr(device().uuid()));
  EXPECT_EQ(PhysicalMemory::Create(device(), ~uint64_t{0}).status().code(),
            StatusCode::kResourceExhausted);
}

TEST_F(CudaTest, MemoryComesBackWhenItsLastHolderGoes) {
  SKIP_ON_REAL_GPU("fills the device");
  const uint64_t most = device().total_bytes();
  {
    PhysicalMemory memory = Must(PhysicalMemory::Create(device(), most));
    EXPECT_EQ(PhysicalMemory::Create(device(), kUnit).status().code(),
              StatusCode::kResourceExhausted);
    UniqueFd fd = Must(memory.Export());
    EXPECT_OK(memory.Release());
    EXPECT_FALSE(PhysicalMemory::Create(device(), kUnit).ok()) << "the descriptor holds it";

    // On its way through a socket, in nobody's table of descriptors.
    std::array<int, 2> sockets{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets.data()), 0);
    UniqueFd sender(sockets[0]);
    UniqueFd receiver(sockets[1]);
    Say(sender.get(), {}, fd.get());
    fd.Reset();
    EXPECT_FALSE(PhysicalMemory::Create(device(), kUnit).ok()) << "the socket holds it";
    Heard heard = Hear(receiver.get());
    PhysicalMemory imported = Must(PhysicalMemory::Import(device(), heard.fd.get(), most));
    heard.fd.Reset();
    EXPECT_FALSE(PhysicalMemory::Create(device(), kUnit).ok()) << "the imported handle holds it";
    DeviceMapping mapping = Must(DeviceMapping::Map(imported, Access::kRead));
    EXPECT_OK(imported.Release());
    EXPECT_FALSE(PhysicalMemory::Create(device(), kUnit).ok()) << "the mapping holds it";
    EXPECT_OK(mapping.Unmap());
    EXPECT_OK(PhysicalMemory::Create(device(), most).status());
  }
  EXPECT_OK(PhysicalMemory::Create(device(), most).status());
}

TEST_F(CudaTest, MemoryIsExportedOnceAndCloseOnExec) {
  PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  const UniqueFd fd = Must(memory.Export());
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  const Status again = memory.Export().status();
  EXPECT_EQ(again.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(again.message(), HasSubstr("duplicate"));
}

TEST_F(CudaTest, ImportedMemoryIsNotExported) {
  PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  const UniqueFd fd = Must(memory.Export());
  PhysicalMemory imported = Must(PhysicalMemory::Import(device(), fd.get(), memory.size()));
  EXPECT_TRUE(imported.imported());
  const Status status = imported.Export().status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("pass on the descriptor"));
}

TEST_F(CudaTest, OtherDescriptorsAreNotImported) {
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(PhysicalMemory::Import(device(), file.get(), kUnit).ok());
  const UniqueFd memfd(::memfd_create("not device memory", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), kUnit), 0);
  EXPECT_FALSE(PhysicalMemory::Import(device(), memfd.get(), kUnit).ok());
  EXPECT_EQ(PhysicalMemory::Import(device(), -1, kUnit).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(CudaTest, ImportWithAnotherSizeIsNotMapped) {
  PhysicalMemory memory = Must(PhysicalMemory::Create(device(), 2 * kUnit));
  const UniqueFd fd = Must(memory.Export());
  for (const uint64_t wrong : {kUnit, 3 * kUnit, kUnit + 1}) {
    const PhysicalMemory imported = Must(PhysicalMemory::Import(device(), fd.get(), wrong));
    EXPECT_FALSE(DeviceMapping::Map(imported, Access::kRead).ok()) << wrong;
  }
}

TEST_F(CudaTest, ImportForAnotherDeviceIsRefused) {
  if (devices_.size() < 2) GTEST_SKIP() << "needs two devices";
  PhysicalMemory memory = Must(PhysicalMemory::Create(devices_[1], kUnit));
  const UniqueFd fd = Must(memory.Export());
  const Status status = PhysicalMemory::Import(devices_[0], fd.get(), memory.size()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
}

TEST_F(CudaTest, MappingOfAPartIsNotSupportedByTheDriver) {
  // What the rule "one allocation, mapped whole" rests on.
  void* library = ::dlopen(driver_->library().c_str(), RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(library, nullptr);
  auto* const map =
      reinterpret_cast<int (*)(uint64_t, size_t, size_t, uint64_t, unsigned long long)>(
          ::dlsym(library, "cuMemMap"));
  auto* const reserve =
      reinterpret_cast<int (*)(uint64_t*, size_t, size_t, uint64_t, unsigned long long)>(
          ::dlsym(library, "cuMemAddressReserve"));
  auto* const free_addresses =
      reinterpret_cast<int (*)(uint64_t, size_t)>(::dlsym(library, "cuMemAddressFree"));
  ASSERT_TRUE(map != nullptr && reserve != nullptr && free_addresses != nullptr);
  const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), 2 * kUnit));
  uint64_t pointer = 0;
  ASSERT_EQ(reserve(&pointer, kUnit, 0, 0, 0), 0);
  EXPECT_EQ(map(pointer, kUnit, kUnit, memory.handle(), 0), 801);  // NOT_SUPPORTED
  EXPECT_EQ(free_addresses(pointer, kUnit), 0);
  ::dlclose(library);
}

TEST_F(CudaContextTest, MappingOutlivesItsHandle) {
  std::optional<PhysicalMemory> memory = Must(PhysicalMemory::Create(device(), kUnit));
  const DeviceMapping mapping = Must(DeviceMapping::Map(*memory, Access::kReadWrite));
  memory.reset();
  const std::vector<uint32_t> pattern = Pattern(1000);
  Write(mapping.pointer(), pattern);
  EXPECT_EQ(Read(mapping.pointer(), pattern.size()), pattern);
}

TEST_F(CudaContextTest, ReadOnlyMappingRefusesCopiesAndFills) {
  const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  DeviceMapping mapping = Must(DeviceMapping::Map(memory, Access::kReadWrite));
  const std::vector<uint32_t> pattern = Pattern(kUnit / sizeof(uint32_t));
  Write(mapping.pointer(), pattern);
  ASSERT_TRUE(mapping.SetAccess(Access::kRead).ok());
  EXPECT_EQ(mapping.access(), Access::kRead);
  EXPECT_EQ(stream_.Fill(mapping.pointer(), 0, 4096).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(stream_.CopyToDevice(mapping.pointer(), pattern.data() + 8, 4096).code(),
            StatusCode::kInvalidArgument);
  EXPECT_OK(stream_.Synchronize());
  EXPECT_EQ(Read(mapping.pointer(), pattern.size()), pattern);
  EXPECT_EQ(Must(DeviceSum(context_, mapping.pointer(), mapping.size())), SumOf(pattern));
}

TEST_F(CudaTest, ReadOnlyMappingFaultsOnStoresOfTheCpu) {
  SKIP_ON_REAL_GPU("reads device memory with the CPU");
  const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  DeviceMapping mapping = Must(DeviceMapping::Map(memory, Access::kRead));
  const UniqueFd zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  // The kernel answers EFAULT where a store of ours would kill the test.
  EXPECT_EQ(::read(zeros.get(), reinterpret_cast<void*>(mapping.pointer()), 16), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_OK(mapping.SetAccess(Access::kReadWrite));
  EXPECT_EQ(::read(zeros.get(), reinterpret_cast<void*>(mapping.pointer()), 16), 16);
}

TEST_F(CudaTest, ReadOnlyImporterCanMapItselfWritable) {
  // Why read-only on a device is called cooperative, and bytes are hashed again.
  PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  const UniqueFd fd = Must(memory.Export());
  const PhysicalMemory imported = Must(PhysicalMemory::Import(device(), fd.get(), memory.size()));
  DeviceMapping mapping = Must(DeviceMapping::Map(imported, Access::kRead));
  EXPECT_OK(mapping.SetAccess(Access::kReadWrite));
}

TEST_F(CudaContextTest, MovedFromObjectsOwnNothing) {
  PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  PhysicalMemory moved = std::move(memory);
  EXPECT_EQ(memory.handle(), 0U);  // NOLINT: what a moved-from object owns is the question.
  EXPECT_OK(memory.Release());
  EXPECT_EQ(DeviceMapping::Map(memory, Access::kRead).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(memory.Export().status().code(), StatusCode::kFailedPrecondition);

  DeviceMapping mapping = Must(DeviceMapping::Map(moved, Access::kRead));
  DeviceMapping other = Must(DeviceMapping::Map(moved, Access::kRead));
  EXPECT_NE(mapping.pointer(), other.pointer());
  mapping = std::move(other);
  EXPECT_EQ(other.pointer(), 0U);  // NOLINT
  EXPECT_OK(mapping.Unmap());
  EXPECT_OK(mapping.Unmap());
  EXPECT_EQ(mapping.SetAccess(Access::kRead).code(), StatusCode::kFailedPrecondition);

  Stream stream = Must(Stream::Create(context_));
  stream = Must(Stream::Create(context_));
  EXPECT_OK(stream.Synchronize());
  Event event = Must(Event::Create(context_));
  event = Must(Event::Create(context_));
  EXPECT_OK(event.Record(stream));
  EXPECT_OK(event.Synchronize());
}

TEST_F(CudaTest, DevicesThatCanNotShareMemorySaySo) {
  SKIP_ON_REAL_GPU("plans a device without it");
  for (const char* lacks : {"vmm", "posix_fd"}) {
    const Message said = Ask("create-memory", {.bytes = kUnit}, {{"FAKE_CUDA_LACKS", lacks}});
    EXPECT_EQ(CodeOf(said), StatusCode::kUnimplemented) << lacks;
    EXPECT_THAT(std::string(said.text), HasSubstr("can not share memory between processes"));
  }
}

// --- Host memory ------------------------------------------------------------------

TEST_F(CudaContextTest, SealedHostMemoryIsRegisteredAndCopied) {
  if (!device().supports_read_only_registration()) GTEST_SKIP() << "this device can not do it";
  const std::vector<uint32_t> pattern = Pattern(kUnit / sizeof(uint32_t), 7);
  const UniqueFd fd(::memfd_create("host copy", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::write(fd.get(), pattern.data(), kUnit), static_cast<ssize_t>(kUnit));
  ASSERT_EQ(
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
  void* mapped = ::mmap(nullptr, kUnit, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  {
    EXPECT_FALSE(HostRegistration::Register(context_, mapped, kUnit, Access::kReadWrite).ok());
    HostRegistration registration =
        Must(HostRegistration::Register(context_, mapped, kUnit, Access::kRead));
    EXPECT_EQ(HostRegistration::Register(context_, mapped, kUnit, Access::kRead).status().code(),
              StatusCode::kAlreadyExists);
    const DeviceBuffer there = Must(DeviceBuffer::Allocate(context_, kUnit));
    EXPECT_OK(stream_.CopyToDevice(there.pointer(), mapped, kUnit));
    EXPECT_OK(stream_.Synchronize());
    EXPECT_EQ(Read(there.pointer(), pattern.size()), pattern);
    EXPECT_OK(registration.Unregister());
    EXPECT_OK(registration.Unregister());
  }
  ::munmap(mapped, kUnit);
}

TEST_F(CudaContextTest, OnlyWholePagesAreRegistered) {
  const std::vector<std::byte> bytes(16384);
  const auto inside = reinterpret_cast<uintptr_t>(bytes.data()) / 4096 * 4096 + 4096 + 64;
  EXPECT_EQ(HostRegistration::Register(context_, reinterpret_cast<void*>(inside), 4096,
                                       Access::kReadWrite)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(HostRegistration::Register(context_, nullptr, 4096, Access::kReadWrite).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(CudaTest, ReadOnlyRegistrationSaysWhenTheDeviceCanNot) {
  SKIP_ON_REAL_GPU("plans a device without it");
  const Message said =
      Ask("register-read-only", {}, {{"FAKE_CUDA_LACKS", "read_only_registration"}});
  EXPECT_EQ(CodeOf(said), StatusCode::kUnimplemented);
}

TEST_F(CudaContextTest, PinnedAndPageableMemoryAreCopiedAlike) {
  const std::vector<uint32_t> pattern = Pattern(kUnit / sizeof(uint32_t), 99);
  PinnedBuffer pinned = Must(PinnedBuffer::Allocate(context_, kUnit));
  ASSERT_EQ(pinned.size(), kUnit);
  std::memcpy(pinned.data(), pattern.data(), kUnit);
  DeviceBuffer there = Must(DeviceBuffer::Allocate(context_, kUnit));
  EXPECT_OK(stream_.CopyToDevice(there.pointer(), pinned.data(), kUnit));
  EXPECT_OK(stream_.Synchronize());
  EXPECT_EQ(Read(there.pointer(), pattern.size()), pattern);
  std::memset(pinned.data(), 0, kUnit);
  EXPECT_OK(stream_.CopyToHost(pinned.data(), there.pointer(), kUnit));
  EXPECT_OK(stream_.Synchronize());
  EXPECT_EQ(std::memcmp(pinned.data(), pattern.data(), kUnit), 0);
  EXPECT_OK(pinned.Free());
  EXPECT_OK(there.Free());
}

// --- Streams, events, kernels -------------------------------------------------------

TEST_F(CudaContextTest, FillsAndCopiesKeepTheOrderOfTheirStream) {
  const DeviceBuffer a = Must(DeviceBuffer::Allocate(context_, kUnit));
  const DeviceBuffer b = Must(DeviceBuffer::Allocate(context_, kUnit));
  for (uint8_t round = 1; round < 20; ++round) {
    EXPECT_OK(stream_.Fill(a.pointer(), round, kUnit));
    EXPECT_OK(stream_.CopyOnDevice(b.pointer(), a.pointer(), kUnit));
    EXPECT_OK(stream_.Fill(a.pointer(), 0, kUnit));
    const std::vector<uint32_t> read = Read(b.pointer(), 64);
    EXPECT_THAT(read, ::testing::Each(round * 0x01010101U));
  }
}

TEST_F(CudaContextTest, EventOrdersStreams) {
  const Stream second = Must(Stream::Create(context_));
  const Event end = Must(Event::Create(context_));
  const DeviceBuffer a = Must(DeviceBuffer::Allocate(context_, 16 * kUnit));
  const DeviceBuffer b = Must(DeviceBuffer::Allocate(context_, 16 * kUnit));
  EXPECT_TRUE(Must(end.Done())) << "never recorded";
  EXPECT_OK(stream_.Fill(a.pointer(), 3, a.size()));
  EXPECT_OK(end.Record(stream_));
  EXPECT_OK(second.WaitFor(end));
  EXPECT_OK(second.CopyOnDevice(b.pointer(), a.pointer(), a.size()));
  EXPECT_OK(second.Synchronize());
  EXPECT_TRUE(Must(second.Done()));
  EXPECT_TRUE(Must(end.Done())) << "the second stream waited for it";
  EXPECT_OK(end.Synchronize());
  EXPECT_THAT(Read(b.pointer(), 1000), ::testing::Each(0x03030303U));
}

// Blocks the stream that runs it until it is opened.
struct Gate {
  Mutex mutex;
  CondVar changed;
  bool open TRIMS_GUARDED_BY(mutex) = false;
};

int WaitAtGate(void** parameters, const fake_cuda_launch*) {
  Gate* gate = nullptr;
  std::memcpy(&gate, parameters[0], sizeof gate);
  const MutexLock lock(gate->mutex);
  while (!gate->open) gate->changed.Wait(gate->mutex);
  return 0;
}

TEST_F(CudaContextTest, QueuedWorkIsNotWaitedFor) {
  SKIP_ON_REAL_GPU("runs a kernel that waits for the CPU");
  constexpr size_t kSizes[] = {sizeof(Gate*)};
  FAKE(fake_cuda_register_kernel)("test_gate", &WaitAtGate, kSizes, 1);
  const Module module = Must(Module::Load(context_, TestKernelImage()));
  const Kernel wait = Must(module.Find("test_gate"));
  Gate gate;
  const PinnedBuffer pinned = Must(PinnedBuffer::Allocate(context_, kUnit));
  const DeviceBuffer there = Must(DeviceBuffer::Allocate(context_, kUnit));
  const Event passed = Must(Event::Create(context_));
  std::memset(pinned.data(), 5, kUnit);
  EXPECT_OK(wait.Launch(stream_, {}, &gate));
  EXPECT_OK(stream_.CopyToDevice(there.pointer(), pinned.data(), kUnit));
  EXPECT_OK(passed.Record(stream_));
  EXPECT_FALSE(Must(stream_.Done()));
  EXPECT_FALSE(Must(passed.Done()));
  // Another stream goes on meanwhile.
  const Stream second = Must(Stream::Create(context_));
  EXPECT_OK(second.Fill(there.pointer(), 1, kUnit));
  EXPECT_OK(second.Synchronize());
  {
    const MutexLock lock(gate.mutex);
    gate.open = true;
    gate.changed.NotifyAll();
  }
  EXPECT_OK(stream_.Synchronize());
  EXPECT_TRUE(Must(passed.Done()));
  EXPECT_THAT(Read(there.pointer(), 64), ::testing::Each(0x05050505U));
}

TEST_F(CudaContextTest, StreamWaitsForItsWorkWhenItGoes) {
  const DeviceBuffer there = Must(DeviceBuffer::Allocate(context_, 16 * kUnit));
  const PinnedBuffer here = Must(PinnedBuffer::Allocate(context_, 16 * kUnit));
  {
    const Stream stream = Must(Stream::Create(context_));
    EXPECT_OK(stream.Fill(there.pointer(), 9, there.size()));
    EXPECT_OK(stream.CopyToHost(here.data(), there.pointer(), there.size()));
  }
  EXPECT_EQ(here.data()[here.size() - 1], std::byte{9});
}

TEST_F(CudaTest, CopiesTakeAsLongAsTheLinkSays) {
  SKIP_ON_REAL_GPU("sets the rate of a link");
  constexpr uint64_t kBytes = 32 * kMiB;
  const Message took = Ask("time-copies", {.bytes = kBytes}, {{"FAKE_CUDA_COPY_GBPS", "0.5"}});
  ASSERT_EQ(CodeOf(took), StatusCode::kOk) << took.text;
  const auto least = static_cast<uint64_t>(static_cast<double>(kBytes) / 0.5e9 * 1e6);
  EXPECT_GE(took.bytes, least);  // There,
  EXPECT_GE(took.value, least);  // and back.
}

TEST_F(CudaContextTest, KernelsRunWithTheirArguments) {
  const Module module = Must(Module::Load(context_, TestKernelImage()));
  const Kernel add = Must(module.Find("trims_test_add"));
  const DeviceBuffer there = Must(DeviceBuffer::Allocate(context_, kUnit));
  const std::vector<uint32_t> pattern = Pattern(kUnit / sizeof(uint32_t));
  Write(there.pointer(), pattern);
  EXPECT_OK(add.Launch(stream_, {.blocks = 8, .threads = 128}, there.pointer(),
                       uint64_t{pattern.size()}, uint32_t{41}));
  EXPECT_OK(stream_.Synchronize());
  EXPECT_EQ(Read(there.pointer(), pattern.size()), Pattern(pattern.size(), 42));
  EXPECT_EQ(Must(DeviceSum(context_, there.pointer(), kUnit)), SumOf(Pattern(pattern.size(), 42)));
}

TEST_F(CudaContextTest, WhatIsNoKernelIsRefused) {
  const Module module = Must(Module::Load(context_, TestKernelImage()));
  const Status missing = module.Find("no_such_kernel").status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("no_such_kernel"));
  constexpr char kJunk[] = "junk that is no image of any kind, and long enough to look at";
  EXPECT_FALSE(Module::Load(context_, std::as_bytes(std::span(kJunk))).ok());
  EXPECT_EQ(Module::Load(context_, {}).status().code(), StatusCode::kInvalidArgument);
  const Kernel add = Must(module.Find("trims_test_add"));
  EXPECT_EQ(add.Launch(stream_, {.blocks = 1, .threads = 4096}, DevicePointer{0}, uint64_t{0},
                       uint32_t{0})
                .code(),
            StatusCode::kInvalidArgument);
}

TEST_F(CudaContextTest, StreamsOfManyThreadsDoNotMixUp) {
  std::vector<std::thread> threads;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([this, seed] {
      const Stream stream = Must(Stream::Create(context_));
      for (uint32_t round = 0; round < 8; ++round) {
        const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
        const DeviceMapping mapping = Must(DeviceMapping::Map(memory, Access::kReadWrite));
        const std::vector<uint32_t> pattern = Pattern(1024, seed * 1000000 + round);
        std::vector<uint32_t> read(pattern.size());
        const uint64_t bytes = pattern.size() * sizeof(uint32_t);
        EXPECT_OK(stream.CopyToDevice(mapping.pointer(), pattern.data(), bytes));
        EXPECT_OK(stream.CopyToHost(read.data(), mapping.pointer(), bytes));
        EXPECT_OK(stream.Synchronize());
        EXPECT_EQ(read, pattern);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- Two devices --------------------------------------------------------------------

TEST_F(CudaContextTest, PeersCopyAndMapEachOthersMemory) {
  if (devices_.size() < 2) GTEST_SKIP() << "needs two devices";
  const Context peer = Must(Context::Retain(devices_[1]));
  const Stream peer_stream = Must(Stream::Create(peer));
  const std::vector<uint32_t> pattern = Pattern(kUnit / sizeof(uint32_t), 5);
  const PhysicalMemory memory = Must(PhysicalMemory::Create(devices_[1], kUnit));
  DeviceMapping theirs = Must(DeviceMapping::Map(memory, Access::kReadWrite));
  EXPECT_OK(peer_stream.CopyToDevice(theirs.pointer(), pattern.data(), kUnit));
  EXPECT_OK(peer_stream.Synchronize());

  const DeviceBuffer here = Must(DeviceBuffer::Allocate(context_, kUnit));
  EXPECT_OK(stream_.CopyFromPeer(here.pointer(), peer, theirs.pointer(), kUnit));
  EXPECT_EQ(Read(here.pointer(), pattern.size()), pattern);

  if (!Must(device().CanAccessPeer(devices_[1]))) GTEST_SKIP() << "the devices are no peers";
  EXPECT_OK(context_.EnablePeerAccess(peer));
  EXPECT_OK(context_.EnablePeerAccess(peer));  // Again is no error.
  // A kernel of this device reads the other's memory where it was given access.
  EXPECT_OK(theirs.SetAccess(Access::kRead, std::span(&device(), 1)));
  EXPECT_EQ(Must(DeviceSum(context_, theirs.pointer(), kUnit)), SumOf(pattern));
}

// --- Failures ------------------------------------------------------------------------

// What a load and a lease do, from context to close.
Status Lifetime(const Device& device) {
  ASSIGN_OR_RETURN(const Context context, Context::Retain(device));
  ASSIGN_OR_RETURN(const Event event, Event::Create(context));
  ASSIGN_OR_RETURN(PinnedBuffer pinned, PinnedBuffer::Allocate(context, kUnit));
  ASSIGN_OR_RETURN(DeviceBuffer scratch, DeviceBuffer::Allocate(context, kUnit));
  ASSIGN_OR_RETURN(PhysicalMemory memory, PhysicalMemory::Create(device, kUnit));
  ASSIGN_OR_RETURN(DeviceMapping mapping, DeviceMapping::Map(memory, Access::kReadWrite));
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(context));
  RETURN_IF_ERROR(stream.CopyToDevice(mapping.pointer(), pinned.data(), kUnit));
  RETURN_IF_ERROR(stream.CopyOnDevice(scratch.pointer(), mapping.pointer(), kUnit));
  RETURN_IF_ERROR(event.Record(stream));
  RETURN_IF_ERROR(event.Synchronize());
  RETURN_IF_ERROR(stream.Done().status());
  RETURN_IF_ERROR(mapping.SetAccess(Access::kRead));
  RETURN_IF_ERROR(DeviceSum(context, mapping.pointer(), kUnit).status());
  ASSIGN_OR_RETURN(const UniqueFd fd, memory.Export());
  ASSIGN_OR_RETURN(PhysicalMemory lent, PhysicalMemory::Import(device, fd.get(), kUnit));
  ASSIGN_OR_RETURN(DeviceMapping theirs, DeviceMapping::Map(lent, Access::kRead));
  void* page = ::mmap(nullptr, kUnit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Status registered = [&]() -> Status {
    ASSIGN_OR_RETURN(HostRegistration registration,
                     HostRegistration::Register(context, page, kUnit, Access::kReadWrite));
    return registration.Unregister();
  }();
  ::munmap(page, kUnit);
  RETURN_IF_ERROR(registered);
  RETURN_IF_ERROR(theirs.Unmap());
  RETURN_IF_ERROR(lent.Release());
  RETURN_IF_ERROR(mapping.Unmap());
  RETURN_IF_ERROR(memory.Release());
  RETURN_IF_ERROR(scratch.Free());
  RETURN_IF_ERROR(pinned.Free());
  return context.Synchronize();
}

TEST(CudaFailureTest, EveryFailedCallIsReportedAndUndone) {
  SKIP_ON_REAL_GPU("plans failures");
  const Driver* driver = Must(Driver::Load());
  const Device device = Must(driver->Devices()).front();
  const Context keep = Must(Context::Retain(device));
  const uint64_t free_before = Must(keep.GetMemory()).free_bytes;
  const size_t descriptors = OpenDescriptors();
  uint64_t reported = 0;
  uint64_t call = 1;
  for (bool reached = true; reached; ++call) {
    const uint64_t objects = TotalObjects();
    ASSERT_EQ(FAKE(fake_cuda_fail)(("*:" + std::to_string(call) + "=2").c_str()), 0);
    const Status status = Lifetime(device);
    reached = FAKE(fake_cuda_calls)("*") >= call;
    FAKE(fake_cuda_fail)("");
    const uint64_t leaked = TotalObjects() - objects;
    if (!reached) {
      EXPECT_OK(status);
      EXPECT_EQ(leaked, 0U);
    } else if (status.ok()) {
      // It was a destructor's: what the driver would not take back is all that is left.
      EXPECT_LE(leaked, 1U) << "call " << call;
    } else {
      ++reported;
      EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
      EXPECT_EQ(leaked, 0U) << "call " << call << ": " << status.ToString();
    }
    ASSERT_EQ(OpenDescriptors(), descriptors) << "call " << call;
  }
  EXPECT_GT(reported, 60U);
  EXPECT_LT(free_before - Must(keep.GetMemory()).free_bytes, 4 * kUnit);
}

TEST_F(CudaContextTest, FailedUnmapLeavesTheMappingToBeTriedAgain) {
  SKIP_ON_REAL_GPU("plans a failure");
  const PhysicalMemory memory = Must(PhysicalMemory::Create(device(), kUnit));
  DeviceMapping mapping = Must(DeviceMapping::Map(memory, Access::kRead));
  for (const char* call : {"cuMemUnmap", "cuMemAddressFree"}) {
    ASSERT_EQ(FAKE(fake_cuda_fail)((std::string(call) + ":1=1").c_str()), 0);
    EXPECT_EQ(mapping.Unmap().code(), StatusCode::kInvalidArgument) << call;
    EXPECT_NE(mapping.pointer(), 0U);
  }
  EXPECT_OK(mapping.Unmap());
  EXPECT_EQ(mapping.pointer(), 0U);
}

TEST_F(CudaTest, StickyErrorBreaksTheContextUntilItIsMadeAnew) {
  SKIP_ON_REAL_GPU("breaks a context");
  {
    const Context context = Must(Context::Retain(device()));
    const Stream stream = Must(Stream::Create(context));
    FAKE(fake_cuda_poison)(0, 214);  // ECC_UNCORRECTABLE
    EXPECT_EQ(context.CheckAlive().code(), StatusCode::kDataLoss);
    EXPECT_EQ(stream.Synchronize().code(), StatusCode::kDataLoss);
    EXPECT_EQ(Stream::Create(context).status().code(), StatusCode::kDataLoss);
  }
  const Context context = Must(Context::Retain(device()));
  EXPECT_OK(context.CheckAlive());
}

TEST_F(CudaTest, MalformedPlansOfFailureAreRefused) {
  SKIP_ON_REAL_GPU("plans failures");
  for (const char* plan : {"cuMemCreate", "cuMemCreate:0=2", "cuMemCreate:1", ":1=2",
                           "cuMemCreate:1=", "cuMemCreate:x=2", "cuMemCreate:1=2x"}) {
    EXPECT_EQ(FAKE(fake_cuda_fail)(plan), -1) << plan;
  }
}

}  // namespace
}  // namespace trims::cuda

int main(int argc, char** argv) {
  const std::string_view argument = argc > 1 ? argv[1] : "";
  if (constexpr std::string_view kChild = "--child="; argument.substr(0, kChild.size()) == kChild) {
    return trims::cuda::RunChild(std::string(argument.substr(kChild.size())));
  }
  ::testing::InitGoogleTest(&argc, argv);
  std::filesystem::path machine;
  if (!trims::cuda::OnRealGpu()) {
    ::setenv("TRIMS_CUDA_LIBRARY", FAKE_CUDA_LIBRARY, 1);
    std::string made = std::filesystem::temp_directory_path() / "cuda_test.XXXXXX";
    if (::mkdtemp(made.data()) == nullptr) return 2;
    machine = made;
    ::setenv("FAKE_CUDA_DIR", made.c_str(), 1);
    ::setenv("FAKE_CUDA_DEVICES", "2", 1);
    ::setenv("FAKE_CUDA_MEMORY", "64MiB", 1);
    ::unsetenv("CUDA_VISIBLE_DEVICES");
  }
  const int failed = RUN_ALL_TESTS();
  if (!machine.empty()) std::filesystem::remove_all(machine);
  return failed;
}

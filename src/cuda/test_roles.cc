#include "cuda/test_roles.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <vector>

#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/stream.h"
#include "cuda/test_kernels.h"
#include "cuda/test_machine.h"

namespace trims::cuda {
namespace {

// Allocates what is asked, fills it with a pattern, sends the descriptor and holds on.
Status Export(int socket) {
  const Heard asked = Hear(socket);
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  ASSIGN_OR_RETURN(const Context context, Context::Retain(devices.front()));
  ASSIGN_OR_RETURN(PhysicalMemory memory,
                   PhysicalMemory::Create(devices.front(), asked.message.bytes));
  ASSIGN_OR_RETURN(DeviceMapping mapping, DeviceMapping::Map(memory, Access::kReadWrite));
  const std::vector<uint32_t> pattern = Pattern(memory.size() / sizeof(uint32_t));
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(context));
  RETURN_IF_ERROR(stream.CopyToDevice(mapping.pointer(), pattern.data(), memory.size()));
  RETURN_IF_ERROR(stream.Synchronize());
  RETURN_IF_ERROR(mapping.SetAccess(Access::kRead));
  ASSIGN_OR_RETURN(UniqueFd fd, memory.Export());
  Say(socket, {.bytes = memory.size(), .value = SumOf(pattern)}, fd.get());
  fd.Reset();
  while (!Hear(socket).closed) {
  }
  return OkStatus();
}

// Maps what it is sent, read-only, and answers each message with the sum of it.
Status Import(int socket) {
  const Heard sent = Hear(socket);
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  ASSIGN_OR_RETURN(const Context context, Context::Retain(devices.front()));
  ASSIGN_OR_RETURN(PhysicalMemory memory,
                   PhysicalMemory::Import(devices.front(), sent.fd.get(), sent.message.bytes));
  ASSIGN_OR_RETURN(const DeviceMapping mapping, DeviceMapping::Map(memory, Access::kRead));
  if (memory.Export().ok()) return InternalError("an imported handle was exported");
  do {
    ASSIGN_OR_RETURN(const uint64_t sum, DeviceSum(context, mapping.pointer(), mapping.size()));
    Say(socket, {.value = sum});
  } while (!Hear(socket).closed);
  return OkStatus();
}

// Keeps a descriptor, without CUDA, until it is asked for it.
Status Hold(int socket) {
  Heard sent = Hear(socket);
  Say(socket, {});
  static_cast<void>(Hear(socket));
  Say(socket, sent.message, sent.fd.get());
  sent.fd.Reset();
  Say(socket, {});
  while (!Hear(socket).closed) {
  }
  return OkStatus();
}

// Loads the driver as often as asked, and says how the last time went.
Status LoadDriver(int socket) {
  const Heard asked = Hear(socket);
  Status last;
  for (uint64_t i = 0; i < asked.message.value; ++i) last = Driver::Load().status();
  return last;
}

// Answers with the UUIDs that it sees, and the ordinal of the one asked for.
Status ListDevices(int socket) {
  const Heard asked = Hear(socket);
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  std::string seen;
  for (const Device& device : devices) seen.append(device.uuid()).append(" ");
  Message message;
  std::snprintf(message.text, sizeof message.text, "%s", seen.c_str());
  ASSIGN_OR_RETURN(const Device found, driver->FindDevice(asked.message.text));
  message.value = static_cast<uint64_t>(found.ordinal());
  Say(socket, message);
  return OkStatus();
}

Status CreateMemory(int socket) {
  const Heard asked = Hear(socket);
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  return PhysicalMemory::Create(devices.front(), asked.message.bytes).status();
}

Status RegisterReadOnly(int socket) {
  static_cast<void>(Hear(socket));
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  ASSIGN_OR_RETURN(const Context context, Context::Retain(devices.front()));
  void* page = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return HostRegistration::Register(context, page, 4096, Access::kRead).status();
}

// Copies `bytes` to the device and back from pinned memory; answers how long each took, in us.
Status TimeCopies(int socket) {
  const Heard asked = Hear(socket);
  const uint64_t bytes = asked.message.bytes;
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  ASSIGN_OR_RETURN(const Context context, Context::Retain(devices.front()));
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(context));
  ASSIGN_OR_RETURN(const PinnedBuffer host, PinnedBuffer::Allocate(context, bytes));
  ASSIGN_OR_RETURN(const DeviceBuffer there, DeviceBuffer::Allocate(context, bytes));
  const auto begin = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(stream.CopyToDevice(there.pointer(), host.data(), bytes));
  RETURN_IF_ERROR(stream.Synchronize());
  const auto middle = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(stream.CopyToHost(host.data(), there.pointer(), bytes));
  RETURN_IF_ERROR(stream.Synchronize());
  const auto end = std::chrono::steady_clock::now();
  const auto micros = [](auto time) {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(time).count());
  };
  Say(socket, {.bytes = micros(middle - begin), .value = micros(end - middle)});
  return OkStatus();
}

// Writes memory that it may only read, with a kernel: INTERNAL is what must come of it.
Status WriteReadOnly(int socket) {
  const Heard sent = Hear(socket);
  ASSIGN_OR_RETURN(const Driver* driver, Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<Device> devices, driver->Devices());
  ASSIGN_OR_RETURN(const Context context, Context::Retain(devices.front()));
  ASSIGN_OR_RETURN(const PhysicalMemory memory,
                   PhysicalMemory::Import(devices.front(), sent.fd.get(), sent.message.bytes));
  ASSIGN_OR_RETURN(const DeviceMapping mapping, DeviceMapping::Map(memory, Access::kRead));
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(context));
  ASSIGN_OR_RETURN(const Module module, Module::Load(context, TestKernelImage()));
  ASSIGN_OR_RETURN(const Kernel kernel, module.Find("trims_test_add"));
  RETURN_IF_ERROR(kernel.Launch(stream, {.blocks = 1, .threads = 32}, mapping.pointer(),
                                uint64_t{32}, uint32_t{1}));
  const Status faulted = stream.Synchronize();
  if (faulted.ok()) return OkStatus();
  // Everything after it fails too, and says why.
  if (context.CheckAlive().code() != faulted.code()) return context.CheckAlive();
  return faulted;
}

using Role = Status (*)(int socket);
const std::map<std::string, Role> kRoles = {
    {"export", &Export},
    {"import", &Import},
    {"hold", &Hold},
    {"load-driver", &LoadDriver},
    {"list-devices", &ListDevices},
    {"create-memory", &CreateMemory},
    {"register-read-only", &RegisterReadOnly},
    {"time-copies", &TimeCopies},
    {"write-read-only", &WriteReadOnly},
};

}  // namespace

Result<uint64_t> DeviceSum(const Context& context, DevicePointer words, uint64_t bytes) {
  ASSIGN_OR_RETURN(const Module module, Module::Load(context, TestKernelImage()));
  ASSIGN_OR_RETURN(const Kernel kernel, module.Find("trims_test_sum"));
  ASSIGN_OR_RETURN(const DeviceBuffer sum, DeviceBuffer::Allocate(context, sizeof(uint64_t)));
  uint64_t result = 0;
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(context));
  RETURN_IF_ERROR(stream.Fill(sum.pointer(), 0, sizeof(uint64_t)));
  RETURN_IF_ERROR(kernel.Launch(stream, {.blocks = 64, .threads = 256}, words,
                                bytes / sizeof(uint32_t), sum.pointer()));
  RETURN_IF_ERROR(stream.CopyToHost(&result, sum.pointer(), sizeof result));
  RETURN_IF_ERROR(stream.Synchronize());
  return result;
}

Message Ask(const std::string& role, const Message& request,
            const ChildProcess::Environment& environment) {
  const ChildProcess child(role, environment);
  Say(child.socket(), request);
  const Heard heard = Hear(child.socket());
  EXPECT_FALSE(heard.closed) << role << " died";
  return heard.message;
}

int RunChild(const std::string& argument) {
  const size_t colon = argument.rfind(':');
  const auto role = kRoles.find(argument.substr(0, colon));
  if (role == kRoles.end()) return 2;
  const UniqueFd socket(std::stoi(argument.substr(colon + 1)));
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  const Status status = role->second(socket.get());
  SayStatus(socket.get(), status);
  return 0;
}

}  // namespace trims::cuda

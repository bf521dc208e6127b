// Device memory that processes lend each other: who can read it, and what no death of theirs
// changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/test_machine.h"
#include "cuda/test_process.h"
#include "cuda/test_roles.h"

namespace trims::cuda {
namespace {

using ::testing::HasSubstr;

class CudaProcessTest : public CudaTest {
 protected:
  // An exporter that has filled `bytes` and sent them here.
  struct Exported {
    std::unique_ptr<ChildProcess> child;
    Message what;
    UniqueFd fd;
  };
  static Exported StartExporter(uint64_t bytes) {
    Exported exported;
    exported.child = std::make_unique<ChildProcess>("export");
    Say(exported.child->socket(), {.bytes = bytes});
    Heard heard = Hear(exported.child->socket());
    EXPECT_FALSE(heard.closed);
    EXPECT_EQ(CodeOf(heard.message), StatusCode::kOk) << heard.message.text;
    EXPECT_TRUE(heard.fd.valid());
    exported.what = heard.message;
    exported.fd = std::move(heard.fd);
    return exported;
  }
};

TEST_F(CudaProcessTest, ClientReadsWhatAnotherProcessWrote) {
  const Exported exported = StartExporter(8 * kMiB);
  std::vector<std::unique_ptr<ChildProcess>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<ChildProcess>("import"));
    Say(clients.back()->socket(), exported.what, exported.fd.get());
  }
  for (const auto& client : clients) {
    const Heard sum = Hear(client->socket());
    EXPECT_EQ(CodeOf(sum.message), StatusCode::kOk) << sum.message.text;
    EXPECT_EQ(sum.message.value, exported.what.value);
  }
}

TEST_F(CudaProcessTest, MemoryOfAHiddenDeviceIsNotImported) {
  if (devices_.size() < 2) GTEST_SKIP() << "needs two devices";
  PhysicalMemory memory = Must(PhysicalMemory::Create(devices_[1], 2 * kUnit));
  const UniqueFd fd = Must(memory.Export());
  const ChildProcess client("import", {{"CUDA_VISIBLE_DEVICES", devices_[0].uuid()}});
  Say(client.socket(), {.bytes = memory.size()}, fd.get());
  const Heard heard = Hear(client.socket());
  EXPECT_FALSE(heard.closed);
  EXPECT_NE(CodeOf(heard.message), StatusCode::kOk);
  EXPECT_THAT(std::string(heard.message.text), HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST_F(CudaProcessTest, ClientComputesOnWhenTheExporterIsKilled) {
  Exported exported = StartExporter(8 * kMiB);
  const ChildProcess client("import");
  Say(client.socket(), exported.what, exported.fd.get());
  EXPECT_EQ(Hear(client.socket()).message.value, exported.what.value);
  exported.child->Kill();
  exported.fd.Reset();
  for (int i = 0; i < 5; ++i) {
    Say(client.socket(), {});
    EXPECT_EQ(Hear(client.socket()).message.value, exported.what.value);
  }
}

TEST_F(CudaProcessTest, MemorySurvivesInAProcessWithoutCuda) {
  Exported exported = StartExporter(8 * kMiB);
  const ChildProcess holder("hold");
  Say(holder.socket(), exported.what, exported.fd.get());
  ASSERT_FALSE(Hear(holder.socket()).closed);
  exported.fd.Reset();
  exported.child->Kill();

  Say(holder.socket(), {});
  const Heard kept = Hear(holder.socket());
  ASSERT_TRUE(kept.fd.valid());
  const ChildProcess client("import");
  Say(client.socket(), kept.message, kept.fd.get());
  const Heard sum = Hear(client.socket());
  EXPECT_EQ(CodeOf(sum.message), StatusCode::kOk) << sum.message.text;
  EXPECT_EQ(sum.message.value, exported.what.value);
}

TEST_F(CudaProcessTest, LastHolderFreesTheMemory) {
  const Context context = Must(Context::Retain(device()));
  const uint64_t bytes = OnRealGpu() ? kGiB : 32 * kMiB;
  const uint64_t slack = OnRealGpu() ? bytes / 4 : 0;  // Others use a real GPU too.
  const uint64_t before = Must(context.GetMemory()).free_bytes;
  Exported exported = StartExporter(bytes);
  exported.child->Kill();
  EXPECT_LE(Must(context.GetMemory()).free_bytes, before - bytes + slack);
  exported.fd.Reset();
  // A real driver may free behind the close.
  uint64_t after = 0;
  for (int i = 0; i < 20000 && after + slack < before; ++i) {
    after = Must(context.GetMemory()).free_bytes;
  }
  EXPECT_GE(after + slack, before);
}

TEST_F(CudaProcessTest, KilledProcessesLeaveNoMemoryBehind) {
  SKIP_ON_REAL_GPU("fills the device");
  for (int i = 0; i < 3; ++i) {
    Exported exported = StartExporter(device().total_bytes());
    exported.fd.Reset();
    EXPECT_EQ(PhysicalMemory::Create(device(), kUnit).status().code(),
              StatusCode::kResourceExhausted);
    exported.child->Kill();
    EXPECT_OK(PhysicalMemory::Create(device(), device().total_bytes()).status());
  }
}

TEST_F(CudaProcessTest, KernelThatWritesReadOnlyMemoryBreaksItsOwnProcessAlone) {
  const Exported exported = StartExporter(8 * kMiB);
  const ChildProcess client("import");
  Say(client.socket(), exported.what, exported.fd.get());
  EXPECT_EQ(Hear(client.socket()).message.value, exported.what.value);

  const ChildProcess writer("write-read-only");
  Say(writer.socket(), exported.what, exported.fd.get());
  const Heard fault = Hear(writer.socket());
  EXPECT_EQ(CodeOf(fault.message), StatusCode::kInternal) << fault.message.text;
  EXPECT_THAT(std::string(fault.message.text), HasSubstr("restarted"));

  Say(client.socket(), {});
  EXPECT_EQ(Hear(client.socket()).message.value, exported.what.value) << "the bytes are as before";
}

}  // namespace
}  // namespace trims::cuda

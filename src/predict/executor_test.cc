// The executor against a backend whose memory the host can not touch, that counts, and of
// which any call may fail.
#include "predict/executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "predict/test_network.h"

namespace trims::predict {
namespace {

using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;

// What outlives a backend: how it is told to behave and what it saw.
struct World {
  bool fuses_relu = true;
  int fail_at = -1;  // The call, counted over all of them, that fails.

  int calls = 0;
  int live = 0;  // Backends and kernels.
  struct Built {
    std::string op;
    std::vector<Shape> inputs, outputs;
    std::vector<const void*> constants;
    bool fuse_relu;
  };
  std::vector<Built> built;
  std::map<std::string, std::vector<const void*>> ran;  // By operator: addresses of inputs.

  Status Call(const char* what) {
    if (calls++ == fail_at) return ResourceExhaustedError(std::string(what) + " was told to fail");
    return OkStatus();
  }
};

// Its addresses are of pages without any access: whoever uses one dies. What they stand
// for lies in a shadow. A kernel's outputs are its first input's elements plus one each,
// as often as they fit.
class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(World& world) : world_(world) { ++world_.live; }
  ~FakeBackend() override {
    if (fence_ != nullptr) ::munmap(fence_, shadow_.size());
    --world_.live;
  }

  Result<std::byte*> Allocate(uint64_t bytes, const char*) override {
    RETURN_IF_ERROR(world_.Call("Allocate"));
    TRIMS_CHECK(fence_ == nullptr);
    shadow_.resize(bytes);
    void* const fence =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TRIMS_CHECK(fence != MAP_FAILED);
    fence_ = static_cast<std::byte*>(fence);
    return fence_;
  }
  bool FusesRelu(const Operator& op) const override {
    return world_.fuses_relu && op.Name() == "FullyConnected";
  }
  Result<std::unique_ptr<Kernel>> BuildKernel(const KernelRequest& request) override {
    RETURN_IF_ERROR(world_.Call("BuildKernel"));
    world_.built.push_back({std::string(request.op.Name()),
                            {request.inputs.begin(), request.inputs.end()},
                            {request.outputs.begin(), request.outputs.end()},
                            {request.constants.begin(), request.constants.end()},
                            request.fuse_relu});
    return std::unique_ptr<Kernel>(std::make_unique<FakeKernel>(*this, request));
  }
  Status Write(std::byte* to, std::span<const std::byte> from) override {
    RETURN_IF_ERROR(world_.Call("Write"));
    std::memcpy(Shadow(to), from.data(), from.size());
    return OkStatus();
  }
  Result<const std::byte*> Peek(const void* from, uint64_t) override {
    RETURN_IF_ERROR(world_.Call("Peek"));
    return Shadow(from);
  }

 private:
  class FakeKernel final : public Kernel {
   public:
    FakeKernel(FakeBackend& backend, const KernelRequest& request)
        : backend_(backend),
          op_(request.op.Name()),
          in_(static_cast<size_t>(ElementCount(request.inputs[0]))),
          out_(static_cast<size_t>(ElementCount(request.outputs[0]))) {
      ++backend_.world_.live;
    }
    ~FakeKernel() override { --backend_.world_.live; }
    uint64_t scratch_bytes() const override { return 100; }
    Status Run(const KernelArguments& arguments) override {
      RETURN_IF_ERROR(backend_.world_.Call("Run"));
      backend_.world_.ran[op_] = {arguments.inputs.begin(), arguments.inputs.end()};
      std::memset(backend_.Shadow(arguments.scratch), 0x5a, scratch_bytes());
      const auto* const in = reinterpret_cast<const float*>(backend_.Shadow(arguments.inputs[0]));
      auto* const out = reinterpret_cast<float*>(backend_.Shadow(arguments.outputs[0]));
      for (size_t i = 0; i < out_; ++i) out[i] = in[i % in_] + 1;
      return OkStatus();
    }

   private:
    FakeBackend& backend_;
    const std::string op_;
    const size_t in_;
    const size_t out_;
  };

  std::byte* Shadow(const void* address) {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - fence_);
    TRIMS_CHECK(offset < shadow_.size());
    return shadow_.data() + offset;
  }

  World& world_;
  std::vector<std::byte> shadow_;
  std::byte* fence_ = nullptr;
};

class ExecutorTest : public testing::Test {
 protected:
  // data -> fc -> relu -> flat (a view) -> out, which has a label.
  void SetUp() override {
    SymbolWriter writer;
    writer.Op("FullyConnected", "fc", {"data", "weight", "bias"}, {{"num_hidden", "3"}});
    writer.Op("Activation", "relu", {"fc"}, {{"act_type", "relu"}});
    writer.Op("Flatten", "flat", {"relu"});
    writer.Op("SoftmaxOutput", "out", {"flat", "label"});
    graph_ = Graph::FromJson(writer.Json()).value();
    shapes_ = InferShapes(*graph_, {{"data", {1, 2}}}).value();
    bindings_.resize(graph_->nodes().size());
    Bind("data") = {VariableBinding::Kind::kInput, nullptr};
    // Addresses of a device: never read here.
    Bind("weight") = {VariableBinding::Kind::kWeight, reinterpret_cast<const float*>(0x1000)};
    Bind("bias") = {VariableBinding::Kind::kWeight, reinterpret_cast<const float*>(0x2000)};
  }
  VariableBinding& Bind(std::string_view name) { return bindings_[*graph_->FindVariable(name)]; }

  // Builds, runs and reads once.
  Result<std::vector<float>> RunOnce(World& world) {
    ASSIGN_OR_RETURN(
        const std::unique_ptr<Executor> executor,
        Executor::Build(graph_, shapes_, bindings_, std::make_unique<FakeBackend>(world)));
    RETURN_IF_ERROR(executor->SetInput(*graph_->FindVariable("data"), std::vector<float>{10, 20}));
    RETURN_IF_ERROR(executor->Forward());
    ASSIGN_OR_RETURN(const std::span<const float> values, executor->Output(0));
    return std::vector<float>(values.begin(), values.end());
  }

  std::shared_ptr<const Graph> graph_;
  GraphShapes shapes_;
  std::vector<VariableBinding> bindings_;
};

TEST_F(ExecutorTest, OnlyTheBackendTouchesItsMemory) {
  World world;
  EXPECT_THAT(RunOnce(world).value(), ElementsAre(12, 22, 12));
  EXPECT_EQ(world.live, 0);
}

TEST_F(ExecutorTest, WeightsAreUsedWhereTheyLieAndALabelIsNot) {
  World world;
  ASSERT_TRUE(RunOnce(world).ok());
  const auto* const weight = reinterpret_cast<const void*>(0x1000);
  const auto* const bias = reinterpret_cast<const void*>(0x2000);
  ASSERT_EQ(world.built.size(), 2u);
  EXPECT_THAT(world.built[0].constants, ElementsAre(nullptr, weight, bias));
  EXPECT_THAT(world.ran.at("FullyConnected"), ElementsAre(testing::NotNull(), weight, bias));
  EXPECT_THAT(world.ran.at("SoftmaxOutput"), ElementsAre(testing::NotNull(), nullptr));
}

TEST_F(ExecutorTest, KernelsAreBuiltForTheShapesThatWereInferred) {
  World world;
  ASSERT_TRUE(RunOnce(world).ok());
  ASSERT_EQ(world.built.size(), 2u);
  EXPECT_EQ(world.built[0].op, "FullyConnected");
  EXPECT_THAT(world.built[0].inputs, ElementsAre(Shape{1, 2}, Shape{3, 2}, Shape{3}));
  EXPECT_THAT(world.built[0].outputs, ElementsAre(Shape{1, 3}));
  EXPECT_EQ(world.built[1].op, "SoftmaxOutput");
  EXPECT_THAT(world.built[1].outputs, ElementsAre(Shape{1, 3}));
}

TEST_F(ExecutorTest, ReluIsFusedOnlyWhereTheBackendCan) {
  World fuses;
  ASSERT_TRUE(RunOnce(fuses).ok());
  ASSERT_EQ(fuses.built.size(), 2u);
  EXPECT_TRUE(fuses.built[0].fuse_relu);
  World does_not{.fuses_relu = false};
  EXPECT_THAT(RunOnce(does_not).value(), ElementsAre(13, 23, 13));
  ASSERT_EQ(does_not.built.size(), 3u);
  EXPECT_FALSE(does_not.built[0].fuse_relu);
  EXPECT_EQ(does_not.built[1].op, "Activation");
}

TEST_F(ExecutorTest, AnyCallMayFailAndNothingStaysBehind) {
  int failures = 0;
  for (;; ++failures) {
    World world{.fail_at = failures};
    const Result<std::vector<float>> out = RunOnce(world);
    EXPECT_EQ(world.live, 0);
    if (out.ok()) break;
    EXPECT_EQ(out.status().code(), StatusCode::kResourceExhausted);
    // What belongs to one node names it.
    EXPECT_THAT(
        out.status().message(),
        AnyOf(testing::StartsWith("node 'fc' (FullyConnected): BuildKernel"),
              testing::StartsWith("node 'out' (SoftmaxOutput): BuildKernel"),
              testing::StartsWith("Allocate"), testing::StartsWith("node 'data' (variable): Write"),
              testing::StartsWith("node 'fc' (FullyConnected): Run"),
              testing::StartsWith("node 'out' (SoftmaxOutput): Run"),
              testing::StartsWith("node 'out' (SoftmaxOutput): Peek")));
  }
  EXPECT_EQ(failures, 7);  // Two builds, memory, an input, two runs, an output.
}

}  // namespace
}  // namespace trims::predict

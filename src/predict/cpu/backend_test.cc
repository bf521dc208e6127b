#include "predict/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "predict/memory_plan.h"
#include "predict/op/test_samples.h"

namespace trims::predict {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::unique_ptr<Backend> Open() { return OpenCpuBackend({}).value(); }

// A request for one operator over data of a shape; owns what a KernelRequest borrows.
struct Bound {
  explicit Bound(const OperatorSample& sample)
      : op(OperatorRegistry::Get().Create(std::string(sample.name), sample.attributes).value()),
        inputs(op->InputNames().size()) {
    inputs[0] = kSampleData;
    outputs = op->InferShapes(inputs).value();
    constants.resize(inputs.size(), nullptr);
  }
  KernelRequest Request() const {
    return {.op = *op, .inputs = inputs, .outputs = outputs, .constants = constants};
  }

  std::shared_ptr<const Operator> op;
  std::vector<Shape> inputs;
  std::vector<Shape> outputs;
  std::vector<const void*> constants;
};

Bound Sample(std::string_view name) {
  const std::vector<OperatorSample> samples = OperatorSamples();
  return Bound(*std::find_if(samples.begin(), samples.end(),
                             [&](const OperatorSample& sample) { return sample.name == name; }));
}

// The samples are all operators there are (registry_test.cc), so that a new one either has
// a kernel here or needs none.
TEST(CpuBackendTest, EveryOperatorHasAKernelOrIsAView) {
  const std::unique_ptr<Backend> backend = Open();
  std::set<std::string_view> views;
  for (const OperatorSample& sample : OperatorSamples()) {
    const Bound bound(sample);
    const Result<std::unique_ptr<Kernel>> kernel = backend->BuildKernel(bound.Request());
    if (bound.op->IsView()) {
      views.insert(sample.name);
      EXPECT_EQ(kernel.status().code(), StatusCode::kUnimplemented) << sample.name;
    } else {
      EXPECT_TRUE(kernel.ok()) << sample.name << ": " << kernel.status().message();
    }
  }
  EXPECT_EQ(views, (std::set<std::string_view>{"Dropout", "Flatten", "Reshape", "identity"}));
}

TEST(CpuBackendTest, NamesTheOperatorThatHasNoKernel) {
  const Result<std::unique_ptr<Kernel>> kernel = Open()->BuildKernel(Sample("Flatten").Request());
  EXPECT_EQ(kernel.status().message(), "the CPU backend has no kernel for operator Flatten");
}

TEST(CpuBackendTest, ComputesInFloat32Alone) {
  const Bound bound = Sample("softmax");
  KernelRequest request = bound.Request();
  request.dtype = DType::kF16;
  const Result<std::unique_ptr<Kernel>> kernel = Open()->BuildKernel(request);
  EXPECT_EQ(kernel.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(kernel.status().message(), HasSubstr("not in F16"));
}

TEST(CpuBackendTest, WhatOnednnThrowsIsAStatus) {
  Bound bound = Sample("FullyConnected");
  bound.inputs[1] = {5, 7};  // As many columns as no row of the data has.
  const Result<std::unique_ptr<Kernel>> kernel = Open()->BuildKernel(bound.Request());
  EXPECT_EQ(kernel.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(kernel.status().message(), AllOf(HasSubstr("oneDNN: "), HasSubstr("status")));
}

TEST(CpuBackendTest, ReluIsFusedIntoProducts) {
  const std::unique_ptr<Backend> backend = Open();
  for (const OperatorSample& sample : OperatorSamples()) {
    EXPECT_EQ(backend->FusesRelu(*Bound(sample).op),
              sample.name == "Convolution" || sample.name == "FullyConnected")
        << sample.name;
  }
}

TEST(CpuBackendTest, MemoryIsZeroAndAligned) {
  const std::unique_ptr<Backend> backend = Open();
  for (const uint64_t bytes : {1, 100, 1'000'000}) {
    const std::byte* const memory = backend->Allocate(bytes, "a test").value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % kArenaAlignment, 0u);
    EXPECT_TRUE(std::all_of(memory, memory + bytes, [](std::byte b) { return b == std::byte{0}; }));
  }
  EXPECT_EQ(backend->Allocate(0, "a test").value(), nullptr);
  const Result<std::byte*> refused = backend->Allocate(uint64_t{1} << 62, "a test");
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("for a test"));
}

TEST(CpuBackendTest, PeekCopiesNothing) {
  const std::unique_ptr<Backend> backend = Open();
  std::byte* const memory = backend->Allocate(4, "a test").value();
  const std::byte values[] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(backend->Write(memory, values).ok());
  EXPECT_TRUE(std::equal(values, values + 4, memory));
  EXPECT_EQ(backend->Peek(memory, 4).value(), memory);
}

}  // namespace
}  // namespace trims::predict

// Kernels that the fake driver knows by name: CPU implementations, for tests, of
// kernels that src/ and tests/ compile for the GPU. One more needs a function that does the
// work of a whole grid and a line in the table below.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/universal_hash.h"
#include "fake_cuda/driver_api.h"
#include "fake_cuda/fake_cuda.h"

namespace {

template <typename T>
T Argument(void** parameters, int which) {
  T value;
  std::memcpy(&value, parameters[which], sizeof value);
  return value;
}

// trims_test_add(uint32_t* words, uint64_t count, uint32_t value): adds to every word.
int TestAdd(void** parameters, const fake_cuda_launch* launch) {
  auto* words = Argument<uint32_t*>(parameters, 0);
  const auto count = Argument<uint64_t>(parameters, 1);
  const auto value = Argument<uint32_t>(parameters, 2);
  if (fake_cuda_may_access(words, count * sizeof *words, 1, launch->device) == 0) {
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  for (uint64_t i = 0; i < count; ++i) words[i] += value;
  return CUDA_SUCCESS;
}

// trims_test_sum(const uint32_t* words, uint64_t count, uint64_t* sum): adds all words up.
int TestSum(void** parameters, const fake_cuda_launch* launch) {
  const auto* words = Argument<const uint32_t*>(parameters, 0);
  const auto count = Argument<uint64_t>(parameters, 1);
  auto* sum = Argument<uint64_t*>(parameters, 2);
  if (fake_cuda_may_access(words, count * sizeof *words, 0, launch->device) == 0 ||
      fake_cuda_may_access(sum, sizeof *sum, 1, launch->device) == 0) {
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  uint64_t total = 0;
  for (uint64_t i = 0; i < count; ++i) total += words[i];
  *sum += total;
  return CUDA_SUCCESS;
}

// trims_test_mix(const uint32_t* words, uint64_t count, uint32_t rounds, uint64_t* sum): adds
// words[i] * (2 i + 1) up, `rounds` times.
int TestMix(void** parameters, const fake_cuda_launch* launch) {
  const auto* words = Argument<const uint32_t*>(parameters, 0);
  const auto count = Argument<uint64_t>(parameters, 1);
  const auto rounds = Argument<uint32_t>(parameters, 2);
  auto* sum = Argument<uint64_t*>(parameters, 3);
  for (uint32_t round = 0; round < rounds; ++round) {
    // Each time: the memory may go while this runs.
    if (fake_cuda_may_access(words, count * sizeof *words, 0, launch->device) == 0 ||
        fake_cuda_may_access(sum, sizeof *sum, 1, launch->device) == 0) {
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; ++i) total += words[i] * (2 * i + 1);
    *sum += total;
  }
  return CUDA_SUCCESS;
}

// trims_universal_hash of src/cuda/kernels: the product's own kernel.
int UniversalHash(void** parameters, const fake_cuda_launch* launch) {
  const auto* bytes = Argument<const std::byte*>(parameters, 0);
  const auto count = Argument<uint64_t>(parameters, 1);
  auto* partials = Argument<trims::FieldElement*>(parameters, 2);
  if (fake_cuda_may_access(bytes, count, 0, launch->device) == 0 ||
      fake_cuda_may_access(partials, launch->grid[0] * sizeof *partials, 1, launch->device) == 0) {
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  trims::UniversalHashKernelReference(launch->grid[0], launch->block[0], parameters);
  return CUDA_SUCCESS;
}

[[maybe_unused]] const bool registered = [] {
  constexpr size_t kTestAdd[] = {sizeof(void*), sizeof(uint64_t), sizeof(uint32_t)};
  fake_cuda_register_kernel("trims_test_add", &TestAdd, kTestAdd, 3);
  constexpr size_t kTestSum[] = {sizeof(void*), sizeof(uint64_t), sizeof(void*)};
  fake_cuda_register_kernel("trims_test_sum", &TestSum, kTestSum, 3);
  constexpr size_t kTestMix[] = {sizeof(void*), sizeof(uint64_t), sizeof(uint32_t), sizeof(void*)};
  fake_cuda_register_kernel("trims_test_mix", &TestMix, kTestMix, 4);
  constexpr size_t kHash[] = {sizeof(void*), sizeof(uint64_t), sizeof(void*),
                              sizeof(trims::UniversalHashKernelKey)};
  fake_cuda_register_kernel(trims::kUniversalHashKernelName, &UniversalHash, kHash, 4);
  return true;
}();

}  // namespace

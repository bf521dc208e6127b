// Kernels of tests, as PTX text that the driver compiles for whatever GPU there is.
// tests/fake_cuda/kernels.cc implements the same ones on the CPU. Constants only.
//
//   trims_test_add(uint32_t* words, uint64_t count, uint32_t value)       words[i] += value
//   trims_test_sum(const uint32_t* words, uint64_t count, uint64_t* sum)  *sum += all words
//   trims_test_mix(const uint32_t* words, uint64_t count, uint32_t rounds, uint64_t* sum)
//     `rounds` times: *sum += words[i] * (2 i + 1), so that also the order counts
#pragma once

#include <cstddef>
#include <span>

namespace trims::cuda {

inline constexpr char kTestKernels[] = R"(
.version 7.0
.target sm_70
.address_size 64

.visible .entry trims_test_add(.param .u64 words, .param .u64 count, .param .u32 value)
{
  .reg .pred %p<2>;
  .reg .b32 %r<7>;
  .reg .b64 %d<8>;
  ld.param.u64 %d1, [words];
  cvta.to.global.u64 %d1, %d1;
  ld.param.u64 %d2, [count];
  ld.param.u32 %r6, [value];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mov.u32 %r4, %nctaid.x;
  mul.wide.u32 %d3, %r1, %r2;
  cvt.u64.u32 %d4, %r3;
  add.u64 %d3, %d3, %d4;
  mul.wide.u32 %d5, %r4, %r2;
next:
  setp.ge.u64 %p1, %d3, %d2;
  @%p1 bra done;
  shl.b64 %d6, %d3, 2;
  add.u64 %d6, %d1, %d6;
  ld.global.u32 %r5, [%d6];
  add.u32 %r5, %r5, %r6;
  st.global.u32 [%d6], %r5;
  add.u64 %d3, %d3, %d5;
  bra next;
done:
  ret;
}

.visible .entry trims_test_sum(.param .u64 words, .param .u64 count, .param .u64 sum)
{
  .reg .pred %p<2>;
  .reg .b32 %r<7>;
  .reg .b64 %d<10>;
  ld.param.u64 %d1, [words];
  cvta.to.global.u64 %d1, %d1;
  ld.param.u64 %d2, [count];
  ld.param.u64 %d7, [sum];
  cvta.to.global.u64 %d7, %d7;
  mov.u64 %d8, 0;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mov.u32 %r4, %nctaid.x;
  mul.wide.u32 %d3, %r1, %r2;
  cvt.u64.u32 %d4, %r3;
  add.u64 %d3, %d3, %d4;
  mul.wide.u32 %d5, %r4, %r2;
next:
  setp.ge.u64 %p1, %d3, %d2;
  @%p1 bra done;
  shl.b64 %d6, %d3, 2;
  add.u64 %d6, %d1, %d6;
  ld.global.u32 %r5, [%d6];
  cvt.u64.u32 %d9, %r5;
  add.u64 %d8, %d8, %d9;
  add.u64 %d3, %d3, %d5;
  bra next;
done:
  red.global.add.u64 [%d7], %d8;
  ret;
}

.visible .entry trims_test_mix(.param .u64 words, .param .u64 count, .param .u32 rounds,
                               .param .u64 sum)
{
  .reg .pred %p<3>;
  .reg .b32 %r<9>;
  .reg .b64 %d<13>;
  ld.param.u64 %d1, [words];
  cvta.to.global.u64 %d1, %d1;
  ld.param.u64 %d2, [count];
  ld.param.u32 %r6, [rounds];
  ld.param.u64 %d7, [sum];
  cvta.to.global.u64 %d7, %d7;
  mov.u64 %d8, 0;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mov.u32 %r4, %nctaid.x;
  mul.wide.u32 %d10, %r1, %r2;
  cvt.u64.u32 %d4, %r3;
  add.u64 %d10, %d10, %d4;
  mul.wide.u32 %d5, %r4, %r2;
  mov.u32 %r7, 0;
round:
  setp.ge.u32 %p2, %r7, %r6;
  @%p2 bra done;
  mov.u64 %d3, %d10;
next:
  setp.ge.u64 %p1, %d3, %d2;
  @%p1 bra after;
  shl.b64 %d6, %d3, 2;
  add.u64 %d6, %d1, %d6;
  ld.volatile.global.u32 %r5, [%d6];
  cvt.u64.u32 %d9, %r5;
  shl.b64 %d11, %d3, 1;
  add.u64 %d11, %d11, 1;
  mul.lo.u64 %d12, %d9, %d11;
  add.u64 %d8, %d8, %d12;
  add.u64 %d3, %d3, %d5;
  bra next;
after:
  add.u32 %r7, %r7, 1;
  bra round;
done:
  red.global.add.u64 [%d7], %d8;
  ret;
}
)";

// The text with its zero byte, as Module::Load wants it.
inline std::span<const std::byte> TestKernelImage() {
  return std::as_bytes(std::span(kTestKernels));
}

}  // namespace trims::cuda

// What the kernels that use oneDNN share: the process's engine and descriptors of
// plain row-major float32 memory.
//
// oneDNN throws dnnl::error; kernels let it pass and cpu/backend.cc, their only
// caller, turns it into a Status.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <span>
#include <vector>

#include "base/round.h"
#include "predict/op/shape.h"

namespace trims::predict {

// The CPU engine, made at first use and never destroyed. Thread-safe. Throws.
const dnnl::engine& CpuEngine();

// Row-major float32, which is how weights lie in a shared mapping and how every
// activation of ours lies.
dnnl::memory::desc PlainDesc(std::span<const int64_t> dims);

// A memory object over nothing yet; BindConst() or set_data_handle() gives it an
// address before a run.
dnnl::memory UnboundMemory(const dnnl::memory::desc& desc);

// SAFETY: oneDNN has no const memory objects. A primitive writes only to its
// destination and scratchpad arguments, never to sources or weights, and would
// fault if it did: shared weights are mapped PROT_READ.
inline void BindConst(dnnl::memory& memory, const void* address) {
  memory.set_data_handle(const_cast<void*>(address));
}

inline constexpr uint64_t kScratchAlignment = 64;
inline uint64_t AlignScratch(uint64_t bytes) { return RoundUp(bytes, kScratchAlignment); }

}  // namespace trims::predict

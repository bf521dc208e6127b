// The floor of loads from a file: reading it, and keeping nothing of it.
#pragma once

#include <string>

#include "base/status.h"
#include "bench/interrupts.h"

namespace trims::bench {

// kDirect goes past the page cache.
enum class ReadKind { kPageCache, kDirect };

// Seconds of reading all of a file in blocks of 8 MiB, with several threads that each keep one
// block. UNIMPLEMENTED where the file system can not read past the page cache; CANCELLED when
// interrupted.
Result<double> MeasureRead(const std::string& path, ReadKind kind, unsigned threads,
                           const Interrupts& interrupts);

// Takes a file out of the page cache. FAILED_PRECONDITION when most of it stays there.
Status DropFromPageCache(const std::string& path, const Interrupts& interrupts);

}  // namespace trims::bench

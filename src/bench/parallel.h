// Several threads that do the same at once, as the floors of reading and copying need them.
#pragma once

#include <functional>

namespace trims::bench {

// `body(i)` on `threads` threads at once, i from 0; seconds from the first one's start to the
// last one's end, so that starting threads is no part of it. `threads` is at least 1.
double InParallel(unsigned threads, const std::function<void(unsigned)>& body);

// Threads that a parallel read is worth measuring with: cores, at most 16.
unsigned ReadThreads();

}  // namespace trims::bench

// Memory as a daemon lends it, and mappings of it as a client makes them: what the floors of
// opens are made of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace trims::bench {

// What a tensor index of some hundred tensors takes.
inline constexpr uint64_t kIndexBytes = 64 * kKiB;

// Never touched, so that it costs nothing.
Result<UniqueFd> SealedMemory(uint64_t bytes);

// All of it, read-only, for as long as the object lives. Immovable; one thread.
class Mapped final {
 public:
  Mapped(int fd, size_t bytes);
  ~Mapped();
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  bool ok() const;  // Else errno says why not.
  // Reads a byte, so that the mapping was of use.
  void Touch() const;

 private:
  void* const memory_;
  const size_t bytes_;
};

}  // namespace trims::bench

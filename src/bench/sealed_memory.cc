#include "bench/sealed_memory.h"

#include <sys/mman.h>

#include <utility>

#include "ipc/region.h"

namespace trims::bench {

Result<UniqueFd> SealedMemory(uint64_t bytes) {
  ASSIGN_OR_RETURN(WritableRegion region,
                   WritableRegion::Create("trims-bench", bytes, PageKind::kPlain));
  ASSIGN_OR_RETURN(ReadOnlyRegion sealed, std::move(region).Seal());
  return std::move(sealed).TakeFd();
}

Mapped::Mapped(int fd, size_t bytes)
    : memory_(::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0)), bytes_(bytes) {}

Mapped::~Mapped() {
  if (ok()) ::munmap(memory_, bytes_);
}

bool Mapped::ok() const { return memory_ != MAP_FAILED; }

void Mapped::Touch() const { static_cast<void>(*static_cast<const volatile char*>(memory_)); }

}  // namespace trims::bench

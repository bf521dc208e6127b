#include "predict/anonymous_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <string>

namespace trims::predict {

Result<AnonymousMemory> AnonymousMemory::Allocate(uint64_t bytes, const char* what) {
  if (bytes == 0) return AnonymousMemory();
  void* address =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    return ErrnoStatus(errno, "allocating " + std::to_string(bytes) + " bytes for " + what);
  }
  return AnonymousMemory(static_cast<std::byte*>(address), bytes);
}

AnonymousMemory::~AnonymousMemory() {
  if (address_ != nullptr) ::munmap(address_, bytes_);
}

Status AnonymousMemory::MakeReadOnly() {
  if (address_ != nullptr && ::mprotect(address_, bytes_, PROT_READ) != 0) {
    return ErrnoStatus(errno, "making memory read-only");
  }
  return OkStatus();
}

}  // namespace trims::predict

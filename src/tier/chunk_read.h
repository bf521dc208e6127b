// Reading a chunk from a descriptor, and what to say when its bytes are wrong. Only
// for use inside this folder. Thread-safe.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "tier/chunk_work.h"

namespace trims {

// Reads exactly `out`. OUT_OF_RANGE at the end of the file, DATA_LOSS when it can not
// be read.
inline Status ReadExactly(int fd, uint64_t offset, std::span<std::byte> out,
                          const std::string& description) {
  while (!out.empty()) {
    const ssize_t done = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) {
      const Status status =
          ErrnoStatus(errno, "reading " + description + " at offset " + std::to_string(offset));
      return Status(StatusCode::kDataLoss, status.message());
    }
    if (done == 0) {
      return OutOfRangeError(description + " ends at offset " + std::to_string(offset) + " where " +
                             std::to_string(out.size()) + " more bytes were expected");
    }
    offset += static_cast<uint64_t>(done);
    out = out.subspan(static_cast<size_t>(done));
  }
  return OkStatus();
}

// For bytes of a file that differ from the manifest's. `description` names file and chunk.
inline Status DamagedChunkError(const std::string& description, const ChunkWork& work,
                                uint64_t file_offset) {
  return DataLossError(description + " (" + std::to_string(work.bytes) + " bytes at offset " +
                       std::to_string(file_offset) +
                       "): the checksum differs from the one computed when the model was first "
                       "seen, though the file's size and time are the same: the file was "
                       "damaged on disk, or written behind the file system's back");
}

}  // namespace trims

// Reading weights that are not in the page cache: past it, with O_DIRECT, a few large
// blocks at a time, so that no core spends its time on copying pages into a cache and out
// of it. docs/design/006 says why with blocking reads of threads.
//
// Only for use inside this folder. Thread-safe: whoever reads waits until few enough others
// do, and checks or copies what it has read while they go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <semaphore>
#include <span>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tier/source.h"

namespace trims {

class DirectFiles final {
 public:
  struct Place {
    uint32_t file = 0;  // Of the source.
    uint64_t offset = 0;
  };
  // O_DIRECT wants whole blocks of the device, so a read brings up to so much more than
  // was asked for.
  static constexpr uint64_t kSlackBytes = 2 * kHostPageBytes;
  static constexpr ptrdiff_t kReadsAtOnce = 3;

  // Looks at some of `places` and opens the files in which most of them are not in the
  // page cache. A file that can not be opened so, one that a client passed, and all files where
  // the system does not tell, are not among them.
  DirectFiles(const Source& source, std::span<const Place> places);

  bool Has(uint32_t file) const { return file < files_.size() && files_[file].valid(); }

  // Reads `bytes` at `offset` into `buffer`, which is aligned to pages and kSlackBytes longer,
  // and returns where in it they are. OUT_OF_RANGE at the end of the file, DATA_LOSS
  // when it can not be read, UNIMPLEMENTED when not in this way.
  Result<std::span<std::byte>> Read(uint32_t file, uint64_t offset, uint64_t bytes,
                                    std::span<std::byte> buffer,
                                    const std::string& description) const;

 private:
  std::vector<UniqueFd> files_;  // Invalid: to be read in the ordinary way.
  mutable std::counting_semaphore<kReadsAtOnce> disk_{kReadsAtOnce};
};

// Whether the page of a file's byte is in the page cache. True where the system does
// not tell. May start to read ahead there.
bool IsInPageCache(int fd, uint64_t offset);

}  // namespace trims

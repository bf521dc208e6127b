// Whole small files: read with a bound, replaced so that a reader, or a machine
// that lost its power, finds the old bytes or the new ones and never a part.
// Weights are not read here: they are large and read by many threads (src/tier).
// These block. Any thread; two that replace the same file at the same time must
// not be of one process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims {

// The bytes of `path`, which may also be a file of /proc or /sys, a pipe or a
// device. OUT_OF_RANGE when there are more than `bytes_max`. Messages call it
// `description`, or by its path where that is empty.
Result<std::string> ReadSmallFile(const std::string& path, size_t bytes_max,
                                  const std::string& description = "");

// Writes all of `bytes`, in as many calls as it takes. A failure says how many of
// them arrived. `name` is the file's, for messages.
Status WriteAll(int fd, std::string_view bytes, const std::string& name);

// A file that is to stand in a directory.
struct NewFile {
  std::string name;
  std::string temporary;  // Its name until it is whole. Nothing may have it yet.
  mode_t mode = 0600;
};
// Writes `bytes` to the temporary name, flushes them to the disk, gives the file
// its name, and flushes that. `directory` is open, `directory_name` for messages.
// When anything before the last step fails, what had the name still has it and
// nothing has the temporary name; when the last fails, the new file is in place
// but may not outlive a loss of power.
Status ReplaceFileAt(int directory, const std::string& directory_name, const NewFile& file,
                     std::string_view bytes);

// The same for a path. The temporary name is the path's with the process's number
// and ".part" behind it; what a process of that number left there goes.
Status ReplaceFile(const std::string& path, std::string_view bytes, mode_t mode);

}  // namespace trims

// What a file is when it is not what it should be.
//
// A weights file that fails to load is most often a download that went wrong
// or another format; saying so saves its owner an hour. Pure; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims::format {

// How many bytes of a file CheckNotForeign looks at.
inline constexpr size_t kSniffBytes = 512;

// INVALID_ARGUMENT, saying what to do, if `head`, the first bytes of `file`, are
// those of a Git LFS pointer, an HTML or XML page, an archive, a pickle or
// another weights format; also if `head` is empty. OK for everything else.
Status CheckNotForeign(std::string_view head, const std::string& file);

}  // namespace trims::format

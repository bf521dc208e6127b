// What weights files say of themselves, without hashing them. Blocks on the file system.
#pragma once

#include <string>

#include "base/status.h"
#include "daemon/control_views.h"

namespace trims {

// Of the file or directory at `path`, which is, or is to be, the model of this name. The
// errors of Source::OpenPath and of the parsers.
Result<ModelHeaders> ReadHeaders(const std::string& name, const std::string& path);

}  // namespace trims

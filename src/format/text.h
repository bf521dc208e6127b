// Text of untrusted files in error messages, and what a name may look like.
//
// Messages travel to terminals, logs and gRPC, so nothing from a file enters
// one unescaped or at full length. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims::format {

// `text` in single quotes, everything but printable ASCII as \xNN, and cut
// after 80 bytes with "..." and the full length.
std::string Quoted(std::string_view text);

// Why `name` can not be the name of a tensor or node; OK if it can: 1 to
// kMaxTensorNameBytes bytes of UTF-8 without control characters. `what` begins
// the message.
Status CheckName(std::string_view name, std::string_view what);

}  // namespace trims::format

// What the C++ interface of trims.hpp says went wrong, as our own programs say it.
// No thread rule.
#pragma once

#include "base/status.h"
#include "trims/trims.hpp"

namespace trims::client {

// The C ABI's codes are ours by number.
inline Status ErrorStatus(const Error& error) {
  return Status(static_cast<StatusCode>(error.status()), error.message());
}

}  // namespace trims::client

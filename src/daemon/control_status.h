// The table between our Status and gRPC's: used by the control server and by the
// programs that call it. Pure functions.
#pragma once

#include <grpcpp/impl/codegen/status.h>

#include "base/status.h"

namespace trims {

// Texts travel in an HTTP/2 header, percent-encoded, which peers limit to 8 KiB:
// longer ones are cut, between characters, and end in "…". Bytes that are not
// UTF-8 become U+FFFD.
inline constexpr size_t kMaxGrpcMessageBytes = 2000;

grpc::Status ToGrpcStatus(const Status& status);
// A code outside the canonical ones is UNKNOWN.
Status FromGrpcStatus(const grpc::Status& status);

}  // namespace trims

// The one translation of CUDA driver results to Status. No thread rule.
#pragma once

#include <string_view>

#include "base/status.h"

namespace trims::cuda {

// OK for 0 (CUDA_SUCCESS); otherwise "<what>: CUDA_ERROR_NAME: <the driver's
// text>", where `what` names the operation and the object.
//
//   RESOURCE_EXHAUSTED   out of device or pinned memory
//   INVALID_ARGUMENT     a value, handle, context, device or image is wrong
//   UNIMPLEMENTED        the device or driver can not do it
//   PERMISSION_DENIED    the driver does not allow it to this process
//   UNAVAILABLE          no driver, no device, device lost or not ready
//   DATA_LOSS            uncorrectable memory or link errors: bytes are wrong
//   INTERNAL             a kernel faulted: the context is dead
//   NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION   as their names say
//   UNKNOWN              everything newer than this table
Status CudaStatus(int result, std::string_view what);

// True for results after which every later call in that context fails, in this
// process only: nothing helps but a new process.
bool IsSticky(int result);

}  // namespace trims::cuda

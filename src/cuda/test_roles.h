// What processes of these tests do when they are children (test_process.h): each has a role,
// which is a function over its socket.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "cuda/test_process.h"

namespace trims::cuda {

// Sums device memory with a kernel.
Result<uint64_t> DeviceSum(const Context& context, DevicePointer words, uint64_t bytes);

// What a child in this role says first when it is told `request`: its status, or an answer
// with code OK.
Message Ask(const std::string& role, const Message& request,
            const ChildProcess::Environment& environment = {});
inline StatusCode CodeOf(const Message& message) { return static_cast<StatusCode>(message.code); }

// For main(): plays the role of "ROLE:SOCKET". Returns the exit status.
int RunChild(const std::string& argument);

}  // namespace trims::cuda

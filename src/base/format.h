// Numbers as people read them, for messages and tables. No thread rule.
#pragma once

#include <cstdint>
#include <string>

namespace trims {

// "512 B", "1.0 KiB", "528.0 MiB": one decimal, binary units, up to EiB.
std::string FormatBytes(uint64_t bytes);

}  // namespace trims

# cmake -DOUT=x.cc -DFATBIN=file-or-empty -DPTX=file -P embed.cmake
function(bytes_of file zero_byte variable)
  if(file STREQUAL "")
    set(${variable} "" PARENT_SCOPE)
    return()
  endif()
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}${zero_byte}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
  set(${variable} "${hex}" PARENT_SCOPE)
endfunction()

bytes_of("${FATBIN}" "" fatbin)
bytes_of("${PTX}" "00" ptx)
if(fatbin STREQUAL "")
  set(fatbin_span "std::span<const std::byte>()")
else()
  set(fatbin_span "std::as_bytes(std::span(kFatBinary))")
endif()
set(text "#include \"cuda/kernels/kernels.h\"

#include <array>
#include <cstddef>
#include <span>

namespace trims::cuda {
namespace {
")
if(NOT fatbin STREQUAL "")
  # The driver reads the header of a fat binary as words of 64 bits.
  string(APPEND text "alignas(16) constexpr unsigned char kFatBinary[] = {\n${fatbin}};\n")
endif()
string(APPEND text "alignas(16) constexpr unsigned char kPtx[] = {\n${ptx}};
}  // namespace

std::array<std::span<const std::byte>, 2> UniversalHashImages() {
  return {${fatbin_span}, std::as_bytes(std::span(kPtx))};
}

}  // namespace trims::cuda
")
file(WRITE ${OUT} "${text}")

# The device code: `trims_cuda_kernels` holds it as bytes (kernels.h). With nvcc it is a
# fat binary of the architectures that this nvcc knows, beside the PTX text that lies in
# the repository; without, that text alone. Included by src/cuda/CMakeLists.txt.
set(TRIMS_KERNELS_DIR ${CMAKE_CURRENT_LIST_DIR})
set(kernels_out ${CMAKE_CURRENT_BINARY_DIR}/kernels)
file(MAKE_DIRECTORY ${kernels_out})

find_program(TRIMS_NVCC nvcc
  HINTS ${CUDAToolkit_ROOT}/bin $ENV{CUDAToolkit_ROOT}/bin PATHS /usr/local/cuda/bin
  DOC "CUDA's compiler; empty: embed the PTX text of the repository only")

# An nvcc that does not like this machine's C++ compiler is no reason to fail a build.
if(TRIMS_NVCC AND NOT TRIMS_NVCC STREQUAL TRIMS_NVCC_CHECKED)
  file(WRITE ${kernels_out}/probe.cu "#include <cstdint>\n__global__ void Probe(uint32_t* x) { *x = 1; }\n")
  execute_process(
    COMMAND ${TRIMS_NVCC} -std=c++17 -arch=compute_75 --ptx ${kernels_out}/probe.cu -o ${kernels_out}/probe.ptx
    RESULT_VARIABLE nvcc_failed OUTPUT_QUIET ERROR_VARIABLE nvcc_said)
  execute_process(COMMAND ${TRIMS_NVCC} --list-gpu-code OUTPUT_VARIABLE nvcc_codes ERROR_QUIET)
  if(nvcc_failed)
    message(STATUS "${TRIMS_NVCC} does not work here, embedding PTX only: ${nvcc_said}")
    set(nvcc_codes "")
  endif()
  string(REGEX MATCHALL "sm_[0-9]+" nvcc_codes "${nvcc_codes}")
  set(TRIMS_NVCC_CODES "${nvcc_codes}" CACHE INTERNAL "Machine codes that nvcc makes; empty: it does not work")
  set(TRIMS_NVCC_CHECKED "${TRIMS_NVCC}" CACHE INTERNAL "The nvcc that TRIMS_NVCC_CODES is about")
endif()

set(fatbin "")
if(TRIMS_NVCC AND TRIMS_NVCC_CODES)
  set(gencode -gencode arch=compute_75,code=compute_75)
  foreach(architecture 75 80 90 100 120)
    if("sm_${architecture}" IN_LIST TRIMS_NVCC_CODES)
      list(APPEND gencode -gencode arch=compute_${architecture},code=sm_${architecture})
    endif()
  endforeach()
  set(fatbin ${kernels_out}/universal_hash.fatbin)
  add_custom_command(OUTPUT ${fatbin}
    # Uncompressed: drivers before CUDA 12.4 do not know what nvcc 13 compresses with.
    COMMAND ${TRIMS_NVCC} -std=c++17 ${gencode} --no-compress --fatbin -I ${PROJECT_SOURCE_DIR}/src
            ${TRIMS_KERNELS_DIR}/universal_hash.cu -o ${fatbin}
    DEPENDS ${TRIMS_KERNELS_DIR}/universal_hash.cu ${PROJECT_SOURCE_DIR}/src/base/universal_hash_kernel.h
    COMMENT "Compiling universal_hash.cu for the GPU" VERBATIM)
endif()

set(images ${kernels_out}/universal_hash_images.cc)
add_custom_command(OUTPUT ${images}
  COMMAND ${CMAKE_COMMAND} -DOUT=${images} -DFATBIN=${fatbin} -DPTX=${TRIMS_KERNELS_DIR}/universal_hash.ptx
          -P ${TRIMS_KERNELS_DIR}/embed.cmake
  DEPENDS ${TRIMS_KERNELS_DIR}/embed.cmake ${TRIMS_KERNELS_DIR}/universal_hash.ptx ${fatbin}
  COMMENT "Embedding the device code" VERBATIM)
trims_library(trims_cuda_kernels SRCS ${images})

# The kernel's source itself, compiled for this processor with a thread for each of its own.
trims_test(universal_hash_source_test SRCS ${TRIMS_KERNELS_DIR}/universal_hash_source_test.cc
           DEPS trims_universal_hash trims_cuda_kernels)
if(TARGET universal_hash_source_test)
  target_compile_options(universal_hash_source_test PRIVATE -Wno-unknown-pragmas)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  add_test(NAME universal_hash_ptx_is_fresh
           COMMAND Python3::Interpreter ${TRIMS_KERNELS_DIR}/make-ptx --check)
endif()

# Through the driver API.
trims_test(universal_hash_driver_test SRCS ${TRIMS_KERNELS_DIR}/universal_hash_driver_test.cc
           DEPS trims_cuda trims_cuda_kernels trims_universal_hash LABELS gpu)
trims_use_fake_driver(universal_hash_driver_test)

# Functions that give every target of the tree the same flags.
#
#   trims_library(NAME SRCS … [DEPS …] [PRIVATE_DEPS …])   static, PIC
#   trims_executable(NAME SRCS … DEPS …)
#   trims_test(NAME SRCS … DEPS … [ARGS …] [LABELS …] [TIMEOUT s])
#                                                          GoogleTest, run by ctest
#   trims_benchmark(NAME SRCS … DEPS …)                    Google Benchmark
#   trims_fuzzer(NAME SRCS … DEPS … CORPUS dir)            libFuzzer when
#       TRIMS_BUILD_FUZZERS is on; always a ctest that replays the corpus.
include(CMakeParseArguments)

set(TRIMS_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers)

# What a mutex guards is only touched with it held (src/base/mutex.h): an error in every build with
# clang, whatever TRIMS_WERROR says.
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  list(APPEND TRIMS_WARNINGS -Wthread-safety -Werror=thread-safety)
endif()

# g++ 12 reports -Wrestrict inside std::string's operator+ (GCC bug 105329).
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND TRIMS_WARNINGS -Wno-restrict)
endif()

function(trims_flags target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:${TRIMS_WARNINGS}>
    $<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra>)
  if(TRIMS_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  target_include_directories(${target} PUBLIC
    ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
endfunction()

if(TRIMS_SANITIZE)
  # What the sanitizers add keeps g++ from seeing that things are initialised.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    list(APPEND TRIMS_WARNINGS -Wno-maybe-uninitialized)
  endif()
  add_compile_options(-fsanitize=${TRIMS_SANITIZE} -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${TRIMS_SANITIZE})
  if(TRIMS_SANITIZE MATCHES undefined)
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()
if(TRIMS_BUILD_FUZZERS)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

function(trims_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS})
  trims_flags(${name})
  target_link_libraries(${name} PUBLIC ${A_DEPS} PRIVATE ${A_PRIVATE_DEPS})
endfunction()

function(trims_executable name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  trims_flags(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS})
endfunction()

function(trims_test name)
  if(NOT TRIMS_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS;ARGS;LABELS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  trims_flags(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  if(CMAKE_BUILD_TYPE STREQUAL Release)
    # What is tested is optimised; optimising the tests would double their compile time.
    target_compile_options(${name} PRIVATE -O0)
  endif()
  add_test(NAME ${name} COMMAND ${name} ${A_ARGS})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT})
  if(A_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}")
  endif()
endfunction()

# For programs that work on devices: tests against the fake driver of tests/, or with
# TRIMS_TEST_REAL_GPU=1 in the environment against the driver and GPUs of the machine. For builds
# with CUDA's headers (src/cuda).
function(trims_use_fake_driver name)
  if(TARGET ${name})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    target_compile_definitions(${name} PRIVATE FAKE_CUDA_LIBRARY="$<TARGET_FILE:trims_fake_cuda>")
    add_dependencies(${name} trims_fake_cuda)
  endif()
endfunction()

function(trims_benchmark name)
  if(NOT TRIMS_BUILD_BENCHMARKS)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  trims_flags(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS} benchmark::benchmark)
endfunction()

function(trims_fuzzer name)
  cmake_parse_arguments(A "" "CORPUS" "SRCS;DEPS" ${ARGN})
  if(TRIMS_BUILD_FUZZERS)
    add_executable(${name} ${A_SRCS})
    trims_flags(${name})
    target_link_libraries(${name} PRIVATE ${A_DEPS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_property(GLOBAL APPEND PROPERTY TRIMS_FUZZERS ${name}=${A_CORPUS})
  endif()
  if(TRIMS_BUILD_TESTS AND NOT TRIMS_BUILD_FUZZERS)
    add_executable(${name}_replay ${A_SRCS} ${PROJECT_SOURCE_DIR}/fuzz/replay_main.cc)
    trims_flags(${name}_replay)
    target_link_libraries(${name}_replay PRIVATE ${A_DEPS})
    add_test(NAME ${name}_replay COMMAND ${name}_replay ${A_CORPUS})
    set_tests_properties(${name}_replay PROPERTIES TIMEOUT 120 LABELS fuzz)
  endif()
endfunction()

# Tests of whole processes: a real daemon, real clients.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
function(trims_process_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  trims_test(${name} SRCS ${A_SRCS} DEPS trims_client ${A_DEPS} TIMEOUT ${A_TIMEOUT} LABELS ${A_LABELS})
  if(TARGET ${name})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_definitions(${name} PRIVATE TRIMSD_BINARY="$<TARGET_FILE:trimsd>")
    add_dependencies(${name} trimsd)
    # The libraries under gRPC are not instrumented, and look like races.
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
  endif()
endfunction()

trims_process_test(test_daemon_test SRCS test_daemon_test.cc DEPS trims_ipc trims_lease_proto TIMEOUT 300)
trims_process_test(daemon_test SRCS daemon_test.cc TIMEOUT 300)
trims_process_test(crash_test SRCS crash_test.cc DEPS trims_control_proto gRPC::grpc++ TIMEOUT 300 LABELS stress)
trims_process_test(hostile_test SRCS hostile_test.cc DEPS trims_control_proto gRPC::grpc++ trims_ipc trims_lease_proto
  TIMEOUT 300)
trims_process_test(sharing_test SRCS sharing_test.cc DEPS trims_control_proto gRPC::grpc++ TIMEOUT 300)
trims_process_test(control_test SRCS control_test.cc DEPS trims_control_proto gRPC::grpc++ TIMEOUT 300)

# Reserves huge pages of the machine, which a daemon of another test would take.
if(TARGET hostile_test)
  set_property(TEST hostile_test PROPERTY RUN_SERIAL ON)
endif()

# Devices.
if(TARGET trims_cuda AND TARGET hostile_test)
  trims_library(trims_device_clients SRCS device_clients.cc
    DEPS trims_client trims_cuda trims_ipc trims_lease_proto GTest::gtest)
  target_include_directories(trims_device_clients PUBLIC ${PROJECT_SOURCE_DIR})
  function(trims_device_test name)
    cmake_parse_arguments(A "" "TIMEOUT" "SRCS;LABELS" ${ARGN})
    trims_process_test(${name} SRCS ${A_SRCS} device_main.cc TIMEOUT ${A_TIMEOUT} LABELS ${A_LABELS}
      DEPS trims_device_clients trims_control_proto gRPC::grpc++ trims_ipc trims_lease_proto)
    trims_use_fake_driver(${name})
  endfunction()
  trims_device_test(device_process_test SRCS device_test.cc TIMEOUT 600 LABELS gpu)
  trims_device_test(device_crash_test SRCS device_crash_test.cc TIMEOUT 300 LABELS stress gpu)
endif()

find_package(nlohmann_json REQUIRED)
trims_process_test(bench_test SRCS bench_test.cc DEPS nlohmann_json::nlohmann_json TIMEOUT 300)
if(TARGET bench_test)
  target_compile_definitions(bench_test PRIVATE TRIMS_PROGRAM="$<TARGET_FILE:trims_cli>")
  add_dependencies(bench_test trims_cli)
  if(TARGET trims_cuda)
    trims_use_fake_driver(bench_test)
  endif()
endif()

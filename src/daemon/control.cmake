# The control plane: gRPC server and what it shares with its callers.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)

trims_library(trims_control_status SRCS control_status.cc DEPS trims_base gRPC::grpc++)
trims_library(trims_control SRCS control_requests.cc control_server.cc
  DEPS trims_base trims_store trims_control_proto trims_control_status gRPC::grpc++
  PRIVATE_DEPS gRPC::grpc++_reflection)

trims_test(control_server_test SRCS control_server_test.cc
  DEPS trims_control trims_control_proto trims_format gRPC::grpc++)
if(TARGET control_server_test)
  # gRPC is not compiled with the sanitizer and would seem to race with itself.
  set_tests_properties(control_server_test PROPERTIES
    ENVIRONMENT TSAN_OPTIONS=ignore_noninstrumented_modules=1)
endif()
trims_test(control_status_test SRCS control_status_test.cc DEPS trims_control_status)
trims_test(control_requests_test SRCS control_requests_test.cc DEPS trims_control trims_control_proto)
trims_test(fake_control_backend_test SRCS fake_control_backend_test.cc
  DEPS trims_control trims_control_proto trims_format)

# The daemon: keeper and worker, one program.
add_compile_definitions(TRIMS_VERSION_STRING="${PROJECT_VERSION}")

find_package(nlohmann_json REQUIRED)
trims_library(trims_keeper SRCS keeper.cc ledger_link.cc
  DEPS trims_base trims_ipc trims_config trims_log PRIVATE_DEPS nlohmann_json::nlohmann_json)
trims_library(trims_worker
  SRCS adoption.cc catalogue.cc contents.cc control_calls.cc control_headers.cc control_reads.cc control_streams.cc
       control_views.cc devices.cc lease_requests.cc lease_server.cc ledger.cc loader_pool.cc loaders.cc opens.cc
       rates.cc reactor.cc reactor_call.cc registry.cc residents.cc snapshot.cc tiers.cc watchman.cc worker.cc
  DEPS trims_keeper trims_store trims_tier trims_format trims_trace trims_lease_proto trims_control
       trims_universal_hash trims_path_watch $<TARGET_NAME_IF_EXISTS:trims_device_tier>
  PRIVATE_DEPS nlohmann_json::nlohmann_json)
trims_executable(trimsd SRCS trimsd_main.cc DEPS trims_worker)
install(TARGETS trimsd RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

trims_test(catalogue_test SRCS catalogue_test.cc DEPS trims_worker)
trims_test(lease_server_test SRCS lease_server_test.cc DEPS trims_worker)
trims_test(trunk_history_test SRCS trunk_history_test.cc DEPS trims_worker)
foreach(part adoption contents loaders opens rates registry tiers watchman)
  trims_test(${part}_test SRCS ${part}_test.cc DEPS trims_worker)
endforeach()
trims_test(ledger_test SRCS ledger_test.cc DEPS trims_worker nlohmann_json::nlohmann_json)
trims_fuzzer(ledger_fuzz SRCS ledger_fuzz.cc DEPS trims_worker
  CORPUS ${PROJECT_SOURCE_DIR}/fuzz/corpora/ledger)
# With devices, whose driver says which of them are linked.
trims_test(residents_test SRCS residents_test.cc
  DEPS trims_worker nlohmann_json::nlohmann_json ${CMAKE_DL_LIBS})
if(TARGET trims_device_tier)
  trims_use_fake_driver(residents_test)
endif()
trims_test(control_calls_test SRCS control_calls_test.cc DEPS trims_worker)
trims_test(control_streams_test SRCS control_streams_test.cc DEPS trims_worker)
trims_test(control_views_test SRCS control_views_test.cc DEPS trims_worker)
trims_test(snapshot_test SRCS snapshot_test.cc DEPS trims_worker)
if(TRIMS_BUILD_TESTS)
  trims_benchmark(snapshot_benchmark SRCS snapshot_benchmark.cc DEPS trims_worker GTest::gtest)  # The fixture's.
endif()
trims_test(reactor_test SRCS reactor_test.cc DEPS trims_worker)
trims_test(ledger_link_test SRCS ledger_link_test.cc DEPS trims_keeper)
trims_test(loader_pool_test SRCS loader_pool_test.cc DEPS trims_worker)
trims_test(keeper_test SRCS keeper_test.cc DEPS trims_keeper)
trims_test(worker_test SRCS worker_test.cc DEPS trims_worker)

if(TRIMS_BUILD_TESTS OR TRIMS_BUILD_FUZZERS)
  find_package(GTest REQUIRED)  # The fixture's; it runs no test.
  trims_fuzzer(lease_server_fuzz SRCS lease_server_fuzz.cc DEPS trims_worker GTest::gtest
               CORPUS ${PROJECT_SOURCE_DIR}/fuzz/corpora/lease_server)
endif()

if(TARGET trims_device_tier)
  trims_test(devices_test SRCS devices_test.cc
             DEPS trims_worker nlohmann_json::nlohmann_json ${CMAKE_DL_LIBS} LABELS gpu)
  trims_use_fake_driver(devices_test)
endif()

find_package(nlohmann_json REQUIRED)
find_package(GTest REQUIRED)
trims_executable(lease_bench SRCS lease_bench.cc
  DEPS trims_bench trims_client trims_base nlohmann_json::nlohmann_json GTest::gtest)
target_include_directories(lease_bench PRIVATE ${PROJECT_SOURCE_DIR})
target_compile_definitions(lease_bench PRIVATE TRIMSD_BINARY="$<TARGET_FILE:trimsd>")
add_dependencies(lease_bench trimsd)

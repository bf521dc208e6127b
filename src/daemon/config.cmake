# Settings and logs of the daemon: no sockets, no threads of their own.
trims_library(trims_config SRCS config_layers.cc settings.cc settings_file.cc DEPS trims_base trims_store)

find_package(spdlog REQUIRED)
trims_library(trims_log SRCS log.cc DEPS trims_base PRIVATE_DEPS spdlog::spdlog)

trims_test(config_test SRCS config_layers_test.cc settings_file_test.cc settings_test.cc DEPS trims_config)
trims_test(log_test SRCS log_test.cc DEPS trims_log)
trims_fuzzer(config_fuzz SRCS config_fuzz.cc DEPS trims_config
  CORPUS ${PROJECT_SOURCE_DIR}/fuzz/corpora/config)

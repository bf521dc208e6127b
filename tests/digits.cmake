trims_test(digits_test SRCS digits_test.cc DEPS trims_predict trims_predict_image)
if(TARGET digits_test)
  target_compile_definitions(digits_test PRIVATE
    TRIMS_DIGITS_DIR="${PROJECT_SOURCE_DIR}/models/digits")
endif()

# The C predict API from C.
add_executable(predict_c predict_c.c)
target_include_directories(predict_c PRIVATE ${PROJECT_SOURCE_DIR}/include)
target_compile_options(predict_c PRIVATE -Wall -Wextra)
target_link_libraries(predict_c PRIVATE trims_predict_shared)

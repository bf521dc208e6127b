# The measuring client of tools/demo: a program as users write it, over both libraries.
# What it takes of the tree itself is arithmetic.
trims_executable(weights_client SRCS weights_client.cc
  DEPS trims_predict_shared trims trims_bench_samples)

# `trims predict`: the only command that needs the executor and oneDNN.
trims_library(trims_cli_predict
  SRCS predict.cc
  DEPS trims_cli_base trims_predict_lease trims_predict_image)

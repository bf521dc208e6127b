/* The C predict API used from C, as programs written for MXNet use it: runs one
 * golden case (a folder with symbol.json, params.bin, input.bin and output.bin),
 * compares with MXNet's output, and walks through the rest of the interface.
 *
 *   c_predict_api_c_test FOLDER INPUT_NAME DIM...                               */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mxnet/c_predict_api.h"

#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, \
              MXGetLastError());                                                       \
      exit(1);                                                                         \
    }                                                                                  \
  } while (0)

static char* ReadFile(const char* folder, const char* name, long* size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    exit(1);
  }
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  char* bytes = malloc((size_t)*size + 1);
  CHECK(bytes != NULL && fread(bytes, 1, (size_t)*size, file) == (size_t)*size);
  bytes[*size] = '\0';
  fclose(file);
  return bytes;
}

int main(int argc, char** argv) {
  CHECK(argc >= 4 && argc < 16);
  CHECK(strcmp(MXGetLastError(), "") == 0);
  CHECK(setenv("UPR_ENABLED", "false", 1) == 0);
  CHECK(MXPredInit() == 0);

  long symbol_size, params_size, input_size, output_size;
  char* symbol = ReadFile(argv[1], "symbol.json", &symbol_size);
  char* params = ReadFile(argv[1], "params.bin", &params_size);
  char* input = ReadFile(argv[1], "input.bin", &input_size);
  char* golden = ReadFile(argv[1], "output.bin", &output_size);

  const char* keys[] = {argv[2]};
  mx_uint dims[16];
  for (int i = 3; i < argc; ++i) dims[i - 3] = (mx_uint)atoi(argv[i]);
  const mx_uint indptr[] = {0, (mx_uint)(argc - 3)};

  PredictorHandle predictor = NULL;
  CHECK(MXPredCreate(symbol, params, (int)params_size, 1, 0, 1, keys, indptr, dims, &predictor) ==
        0);
  /* Parameters were copied: MXNet's callers free them here. */
  memset(params, 0xff, (size_t)params_size);
  free(params);

  mx_uint* shape = NULL;
  mx_uint rank = 0;
  CHECK(MXPredGetOutputShape(predictor, 0, &shape, &rank) == 0);
  size_t count = 1;
  for (mx_uint i = 0; i < rank; ++i) count *= shape[i];
  CHECK(count * sizeof(float) == (size_t)output_size);

  CHECK(MXPredSetInput(predictor, argv[2], (const mx_float*)(const void*)input,
                       (mx_uint)((size_t)input_size / sizeof(float))) == 0);
  CHECK(MXPredForward(predictor) == 0);
  float* output = malloc((size_t)output_size);
  CHECK(output != NULL);
  CHECK(MXPredGetOutput(predictor, 0, output, (mx_uint)count) == 0);
  const float* expected = (const float*)(const void*)golden;
  float largest = 0;
  for (size_t i = 0; i < count; ++i) largest = fmaxf(largest, fabsf(expected[i]));
  CHECK(largest > 0);
  for (size_t i = 0; i < count; ++i) CHECK(fabsf(output[i] - expected[i]) <= 1e-4f * largest);

  /* The same step by step, over cleared results. */
  memset(output, 0, (size_t)output_size);
  int left = 1;
  for (int step = 0; left != 0; ++step) CHECK(MXPredPartialForward(predictor, step, &left) == 0);
  CHECK(MXPredGetOutput(predictor, 0, output, (mx_uint)count) == 0);
  for (size_t i = 0; i < count; ++i) CHECK(fabsf(output[i] - expected[i]) <= 1e-4f * largest);

  /* Twice the batch gives everything twice. */
  PredictorHandle twice = NULL;
  dims[0] *= 2;
  CHECK(MXPredReshape(1, keys, indptr, dims, predictor, &twice) == 0);
  CHECK(MXPredFree(predictor) == 0);
  const size_t elements = (size_t)input_size / sizeof(float);
  float* two_inputs = malloc(2 * (size_t)input_size);
  float* two_outputs = malloc(2 * (size_t)output_size);
  CHECK(two_inputs != NULL && two_outputs != NULL);
  memcpy(two_inputs, input, (size_t)input_size);
  memcpy(two_inputs + elements, input, (size_t)input_size);
  CHECK(MXPredSetInput(twice, argv[2], two_inputs, (mx_uint)(2 * elements)) == 0);
  CHECK(MXPredForward(twice) == 0);
  CHECK(MXPredGetOutput(twice, 0, two_outputs, (mx_uint)(2 * count)) == 0);
  for (size_t i = 0; i < 2 * count; ++i) {
    CHECK(fabsf(two_outputs[i] - expected[i % count]) <= 1e-4f * largest);
  }
  CHECK(MXPredFree(twice) == 0);

  /* Errors: -1, a message, outputs untouched. */
  CHECK(MXPredForward(twice) == -1);
  CHECK(strstr(MXGetLastError(), "MXPredForward") != NULL);
  PredictorHandle untouched = &left;
  CHECK(MXPredCreate("{}", NULL, 0, 1, 0, 1, keys, indptr, dims, &untouched) == -1);
  CHECK(untouched == &left);
  CHECK(strlen(MXGetLastError()) > 0);

  free(symbol);
  free(input);
  free(golden);
  free(output);
  free(two_inputs);
  free(two_outputs);
  return 0;
}

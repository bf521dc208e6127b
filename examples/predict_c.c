/* Classifies one image through the MXNet C predict API, as a program written for
 * MXNet does. The environment decides where the weights come from:
 *
 *   UPR_MODEL_NAME=digits predict_c models/digits seven.pgm 128 128
 *       leases the weights of "digits" from the TrIMS daemon;
 *   UPR_ENABLED=false predict_c models/digits seven.pgm 128 128
 *       reads models/digits/model.params into this process.
 *
 *   predict_c MODEL_DIR IMAGE [MEAN [SCALE]]
 *
 * MODEL_DIR holds model.symbol, model.params and, if there are labels,
 * features.txt. IMAGE is a binary PGM or PPM of the size that the network takes
 * (ImageMagick: convert picture.png -resize 224x224! picture.ppm). Each value is
 * (pixel - MEAN) / SCALE; by default 0 and 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mxnet/c_predict_api.h"

static int Complain(const char* what) {
  fprintf(stderr, "%s: %s\n", what, MXGetLastError());
  return 1;
}

/* The whole file with a 0 after it, or NULL; the caller frees it. */
static char* ReadFile(const char* folder, const char* name, long* size) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return NULL;
  FILE* file = fopen(path, "rb");
  char* bytes = NULL;
  if (file == NULL) return NULL;
  if (fseek(file, 0, SEEK_END) == 0 && (*size = ftell(file)) >= 0 &&
      fseek(file, 0, SEEK_SET) == 0) {
    bytes = malloc((size_t)*size + 1);
    if (bytes != NULL && fread(bytes, 1, (size_t)*size, file) == (size_t)*size) {
      bytes[*size] = '\0';
    } else {
      free(bytes);
      bytes = NULL;
    }
  }
  fclose(file);
  return bytes;
}

/* Planes of (pixel - mean) / scale; NULL if the file is no 8-bit PGM or PPM. */
static float* ReadImage(const char* path, float mean, float scale, mx_uint shape[4]) {
  FILE* file = fopen(path, "rb");
  char kind = 0;
  unsigned width = 0, height = 0, highest = 0;
  float* planes = NULL;
  if (file == NULL) return NULL;
  if (fscanf(file, "P%c %u %u %u", &kind, &width, &height, &highest) == 4 &&
      (kind == '5' || kind == '6') && highest == 255 && width > 0 && height > 0 && width <= 8192 &&
      height <= 8192 && fgetc(file) != EOF) {
    const size_t channels = kind == '6' ? 3 : 1;
    const size_t plane = (size_t)width * height;
    unsigned char* pixels = malloc(channels * plane);
    planes = malloc(channels * plane * sizeof *planes);
    if (pixels != NULL && planes != NULL &&
        fread(pixels, 1, channels * plane, file) == channels * plane) {
      for (size_t i = 0; i < channels * plane; ++i) {
        planes[i % channels * plane + i / channels] = ((float)pixels[i] - mean) / scale;
      }
      shape[0] = 1;
      shape[1] = (mx_uint)channels;
      shape[2] = height;
      shape[3] = width;
    } else {
      free(planes);
      planes = NULL;
    }
    free(pixels);
  }
  fclose(file);
  return planes;
}

/* Line `index` of `labels`, which is overwritten; NULL if there is none. */
static const char* Line(char* labels, mx_uint index) {
  char* line = labels;
  while (line != NULL && index-- > 0) {
    line = strchr(line, '\n');
    if (line != NULL) ++line;
  }
  if (line == NULL || *line == '\0') return NULL;
  line[strcspn(line, "\r\n")] = '\0';
  return line;
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) {
    fprintf(stderr, "usage: %s MODEL_DIR IMAGE [MEAN [SCALE]]\n", argv[0]);
    return 2;
  }
  const float mean = argc > 3 ? strtof(argv[3], NULL) : 0.0f;
  const float scale = argc > 4 ? strtof(argv[4], NULL) : 1.0f;
  mx_uint shape[4] = {0};
  float* image = ReadImage(argv[2], mean, scale, shape);
  if (image == NULL) {
    fprintf(stderr, "%s is not a binary PGM or PPM image that can be read\n", argv[2]);
    return 1;
  }
  long symbol_size = 0, params_size = 0, labels_size = 0;
  char* symbol = ReadFile(argv[1], "model.symbol", &symbol_size);
  if (symbol == NULL) {
    fprintf(stderr, "%s/model.symbol can not be read\n", argv[1]);
    return 1;
  }
  /* Needed with UPR_ENABLED=false only; otherwise these bytes are ignored. */
  const char* enabled = getenv("UPR_ENABLED");
  char* params = NULL;
  if (enabled != NULL && (strcmp(enabled, "false") == 0 || strcmp(enabled, "0") == 0)) {
    params = ReadFile(argv[1], "model.params", &params_size);
  }

  const char* keys[] = {"data"};
  const mx_uint indptr[] = {0, 4};
  PredictorHandle predictor = NULL;
  if (MXPredCreate(symbol, params, (int)params_size, 1, 0, 1, keys, indptr, shape, &predictor) !=
      0) {
    return Complain("creating the predictor");
  }
  free(params);
  free(symbol);
  if (MXPredSetInput(predictor, "data", image, shape[1] * shape[2] * shape[3]) != 0 ||
      MXPredForward(predictor) != 0) {
    return Complain("predicting");
  }
  free(image);

  mx_uint* output_shape = NULL;
  mx_uint rank = 0;
  if (MXPredGetOutputShape(predictor, 0, &output_shape, &rank) != 0)
    return Complain("output shape");
  mx_uint count = 1;
  for (mx_uint i = 0; i < rank; ++i) count *= output_shape[i];
  float* output = malloc(count * sizeof *output);
  if (output == NULL || MXPredGetOutput(predictor, 0, output, count) != 0)
    return Complain("output");

  mx_uint best = 0;
  for (mx_uint i = 1; i < count; ++i) {
    if (output[i] > output[best]) best = i;
  }
  char* labels = ReadFile(argv[1], "features.txt", &labels_size);
  const char* label = Line(labels, best);
  printf("%.2f %%  %s (class %u)\n", 100.0 * (double)output[best], label == NULL ? "?" : label,
         best);
  free(labels);
  free(output);
  return MXPredFree(predictor) == 0 ? 0 : Complain("freeing the predictor");
}

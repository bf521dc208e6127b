// The implementations of the two stb headers. Limits: an image side of 65,536
// pixels, no files (callers pass bytes), PNG and JPEG only.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include "predict/stb.h"

// The driver API as this library implements it: what cuda.h declares is what it exports, and
// nothing else. Every file of this folder includes cuda.h by this header.
#pragma once

#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

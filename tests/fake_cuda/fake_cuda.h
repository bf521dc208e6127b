/* A CUDA driver without a GPU, for tests: what it does and how to steer it.
 *
 * The shared library libcuda.so.1 beside this file implements the driver functions
 * that src/cuda calls, over files in shared memory and threads. Programs load it
 * through LD_LIBRARY_PATH or TRIMS_CUDA_LIBRARY and can not tell, except that they
 * may read device memory with the CPU: device pointers are addresses of theirs.
 *
 * It keeps what the driver was measured to do: an allocation is mapped whole; an
 * imported handle can not be exported; memory of a new handle is zero and lives
 * until the last handle, mapping and descriptor is gone, in any process, killed or not;
 * copies and fills onto a mapping that may only be read fail with
 * CUDA_ERROR_INVALID_VALUE (and a CPU store there faults); nothing works in a forked child;
 * after a kernel has faulted every call in that context fails.
 * It differs in that work of one stream really runs on one thread, that copies of memory
 * that is not pinned block, and that work on memory that was unmapped meanwhile
 * is reported as CUDA_ERROR_ILLEGAL_ADDRESS or not noticed.
 *
 * One machine is a directory; processes with the same FAKE_CUDA_DIR share it.
 *
 *   FAKE_CUDA_DIR         default /dev/shm/fake_cuda.UID; made when it is missing
 *   FAKE_CUDA_DEVICES     how many, default 1; device N is
 *                         GPU-fa4ec0da-0000-4000-8000-00000000000N (in hexadecimal)
 *   FAKE_CUDA_MEMORY      of each device, default 1GiB; "512MiB,2GiB" by device
 *   FAKE_CUDA_COPY_GBPS   rate between host and a device, each direction by itself;
 *                         default: as fast as memcpy
 *   FAKE_CUDA_PEER_GBPS   rate between devices, by receiving device
 *   FAKE_CUDA_LACKS       what devices can not do: "vmm,posix_fd,peer,read_only_registration"
 *   FAKE_CUDA_VERSION     of the driver, default 13000
 *   FAKE_CUDA_FAIL        "cuMemCreate:3=2,cuInit:1+=304": the third cuMemCreate of this
 *                         process returns 2, every cuInit from the first on 304.
 *                         "*" counts all functions together. Neither counted nor failed:
 *                         cuGetErrorName, cuGetErrorString, cuCtxPopCurrent.
 *   CUDA_VISIBLE_DEVICES  as with the real driver
 *
 * A file device-N-error in FAKE_CUDA_DIR with a number in it breaks device N for
 * every process: calls that use the device return that number until the file is gone.
 *
 * The functions below steer the driver of the calling process; find them with dlsym
 * on a handle of the library. Thread-safe. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

struct fake_cuda_launch {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  int device; /* Ordinal in this process. */
};

/* The whole grid of one launch on the CPU: `parameters` point to copies of what the
 * launch was given. Returns a CUresult; anything but 0 breaks the context as a
 * faulting kernel does. Runs on the stream's thread. */
typedef int (*fake_cuda_kernel)(void** parameters, const struct fake_cuda_launch* launch);

/* Makes cuModuleGetFunction find `name` in every module. `sizes` are those of the
 * kernel's parameters, in order. May be called from static initializers of
 * objects linked into the library (see kernels.cc), or by a test. */
void fake_cuda_register_kernel(const char* name, fake_cuda_kernel kernel, const size_t* sizes,
                               size_t count);

/* For kernels: whether `device` may read, or with `write` also write, all of the range. */
int fake_cuda_may_access(const void* pointer, size_t bytes, int write, int device);

/* Replaces what FAKE_CUDA_FAIL said and counts calls from 0 again; "" fails nothing.
 * Returns 0, or -1 when `spec` makes no sense: then nothing changes. */
int fake_cuda_fail(const char* spec);

/* Calls of a function, or "*" for all, since the start or the last fake_cuda_fail. */
uint64_t fake_cuda_calls(const char* name);

/* What this process holds: all zero after a program that leaks nothing. */
struct fake_cuda_objects {
  uint64_t handles;
  uint64_t reservations;
  uint64_t mappings;
  uint64_t buffers;
  uint64_t pinned_buffers;
  uint64_t registrations;
  uint64_t streams;
  uint64_t events;
  uint64_t modules;
  uint64_t retained_contexts;
};
void fake_cuda_count(struct fake_cuda_objects* objects);

/* Breaks this process's context of a device, as a faulting kernel does. */
void fake_cuda_poison(int device, int result);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop

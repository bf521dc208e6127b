/* The C interface of TrIMS: leases on deep-learning weights that a daemon keeps
 * resident and lends, zero-copy and read-only, to any number of processes.
 *
 *   trims_client* client;
 *   trims_lease* lease;
 *   trims_tensor tensor;
 *   if (trims_client_connect(NULL, &client, NULL) == TRIMS_OK &&
 *       trims_lease_open(client, "vgg16", NULL, &lease, NULL) == TRIMS_OK &&
 *       trims_lease_find_tensor(lease, "fc8_weight", &tensor) == TRIMS_OK) {
 *     use(tensor.data, tensor.size_bytes);
 *   }
 *
 * Rules for everything below, unless a function says otherwise:
 *
 * Threads. Any function may be called from any thread at any time. Getters of a
 * lease take no lock and make no system call. What ends an object
 * (trims_client_disconnect, trims_lease_close, trims_error_free) must be the last
 * call with it: no other call with the same object may run or follow. The library
 * starts no thread, unless TRIMS_CONNECT_BACKGROUND asks for one, and installs no
 * signal handler.
 *
 * Ownership. An object that a function hands out belongs to the caller, who ends
 * it with the function named there. Every other pointer handed out is borrowed
 * from the object it came from and lives as long as that. Arguments are borrowed
 * for the call. A lease needs its client for nothing but the daemon's books: it
 * stays readable after trims_client_disconnect and must still be closed.
 *
 * Errors. A function that can fail returns a trims_status, 0 (TRIMS_OK) when it
 * succeeded. When it failed its outputs are untouched, and, if `error` is not
 * NULL, *error is a new object that says more, to be freed with trims_error_free
 * (or NULL, if there was no memory for one). When it succeeded *error is untouched.
 * A NULL where an object or an output is required is TRIMS_INVALID_ARGUMENT.
 *
 * Restarts of the daemon. Leased memory stays readable whatever happens to the
 * daemon. A call that finds the connection broken connects again, for at most
 * connect_timeout_ms, tells the daemon again which leases this process holds, and
 * repeats what had not been answered; so a caller sees a wait and no error.
 *
 * fork. A child must not use its parent's client: calls with it return
 * TRIMS_FAILED_PRECONDITION. Memory of leases on the host stays readable in the child,
 * and trims_lease_close and trims_client_disconnect free what they hold there without
 * a word to the daemon. While a child that did not call exec lives and has not
 * disconnected, the daemon counts the parent's leases as held. CUDA does not survive
 * fork: a device's memory can not be used in the child, and a child of a process that
 * has opened on a device can do so only after exec.
 *
 * ABI. Symbols stay for the life of the shared object's name, libtrims.so.0.
 * Option structures grow at the end and start with their size, so that a program
 * and a library of different versions understand each other. The other structures
 * never change. Plain C11 and C++. @since is the first version with a function.
 */
#ifndef TRIMS_TRIMS_H_
#define TRIMS_TRIMS_H_

#include <stddef.h>
#include <stdint.h>

#define TRIMS_VERSION_MAJOR 0
#define TRIMS_VERSION_MINOR 1
#define TRIMS_VERSION_PATCH 0
#define TRIMS_VERSION_STRING "0.1.0"
/* Comparable: 0x00MMmmpp. */
#define TRIMS_VERSION \
  ((TRIMS_VERSION_MAJOR << 16) | (TRIMS_VERSION_MINOR << 8) | TRIMS_VERSION_PATCH)

#if defined(__GNUC__)
#define TRIMS_API __attribute__((visibility("default")))
#else
#define TRIMS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct trims_client trims_client; /* A connection to the daemon. */
typedef struct trims_lease trims_lease;   /* One hold on one model's weights. */
typedef struct trims_error trims_error;   /* Why a call failed. */

/* --- Versions ------------------------------------------------------------- */

/* The library's version, as TRIMS_VERSION_STRING of the header it was built
 * with. Static. @since 0.1 */
TRIMS_API const char* trims_version(void);
/* The same as TRIMS_VERSION. @since 0.1 */
TRIMS_API uint32_t trims_version_number(void);

/* --- Errors --------------------------------------------------------------- */

/* The canonical codes, with gRPC's numbers. */
typedef int32_t trims_status;
enum {
  TRIMS_OK = 0,
  TRIMS_CANCELLED = 1,
  TRIMS_UNKNOWN = 2,
  TRIMS_INVALID_ARGUMENT = 3,
  TRIMS_DEADLINE_EXCEEDED = 4,
  TRIMS_NOT_FOUND = 5,
  TRIMS_ALREADY_EXISTS = 6,
  TRIMS_PERMISSION_DENIED = 7,
  TRIMS_RESOURCE_EXHAUSTED = 8,
  TRIMS_FAILED_PRECONDITION = 9,
  TRIMS_ABORTED = 10,
  TRIMS_OUT_OF_RANGE = 11,
  TRIMS_UNIMPLEMENTED = 12,
  TRIMS_INTERNAL = 13,
  TRIMS_UNAVAILABLE = 14,
  TRIMS_DATA_LOSS = 15,
  TRIMS_UNAUTHENTICATED = 16
};

/* "NOT_FOUND" and so on; "UNKNOWN" for other numbers. Static. @since 0.1 */
TRIMS_API const char* trims_status_name(trims_status status);

/* Getters of an error. With NULL: TRIMS_UNKNOWN, "" and 0. @since 0.1 */
TRIMS_API trims_status trims_error_status(const trims_error* error);
/* What was wrong, where, what was expected, what to do. One line of UTF-8. */
TRIMS_API const char* trims_error_message(const trims_error* error);
/* With TRIMS_RESOURCE_EXHAUSTED because the model does not fit: what it needs,
 * what is free, and what could be freed by evicting models nobody uses. Else 0. */
TRIMS_API uint64_t trims_error_need_bytes(const trims_error* error);
TRIMS_API uint64_t trims_error_free_bytes(const trims_error* error);
TRIMS_API uint64_t trims_error_evictable_bytes(const trims_error* error);
/* Frees an error. NULL is ignored. @since 0.1 */
TRIMS_API void trims_error_free(trims_error* error);

/* --- Connection ----------------------------------------------------------- */

/* The library runs one thread that notices at once when the daemon restarts.
 * Without it that is noticed by the next call. */
#define TRIMS_CONNECT_BACKGROUND 1u

typedef struct trims_connect_options {
  size_t struct_size; /* sizeof(trims_connect_options); TRIMS_CONNECT_OPTIONS_INIT sets it. */
  /* Where the daemon listens. The first of these that is set decides:
   * socket_path; runtime_dir, which holds lease.sock; the environment's
   * TRIMS_SOCKET and TRIMS_RUNTIME_DIR (not for set-uid programs). Else the first
   * place where a daemon answers: /run/trims, $XDG_RUNTIME_DIR/trims,
   * /tmp/trims-UID. */
  const char* socket_path;
  const char* runtime_dir;
  uint32_t connect_timeout_ms; /* For connecting, now and again later; 0: 10,000. */
  uint32_t flags;              /* TRIMS_CONNECT_*. Unknown bits are refused. */
  /* Whose daemon to trust beside root's and this process's own uid's. 0: nobody's. */
  uint32_t daemon_uid;
} trims_connect_options;

#define TRIMS_CONNECT_OPTIONS_INIT \
  { sizeof(trims_connect_options), NULL, NULL, 0, 0, 0 }

/* Connects to the daemon. `options` may be NULL. Ended by trims_client_disconnect.
 * Blocks for at most connect_timeout_ms. TRIMS_UNAVAILABLE when no daemon runs;
 * TRIMS_PERMISSION_DENIED when the socket or its directory could have been
 * planted by somebody else. @since 0.1 */
TRIMS_API trims_status trims_client_connect(const trims_connect_options* options,
                                            trims_client** client, trims_error** error);

/* Ends the connection, and so all its leases in the daemon's books; their memory
 * stays readable until each is closed. NULL is ignored. Does not wait for the
 * daemon. @since 0.1 */
TRIMS_API void trims_client_disconnect(trims_client* client);

/* The path of the socket in use. @since 0.1 */
TRIMS_API const char* trims_client_socket_path(const trims_client* client);
/* The daemon's version, as of the last (re)connection. @since 0.1 */
TRIMS_API const char* trims_client_server_version(const trims_client* client);
/* A number that changes when the daemon's worker restarts, as of the last
 * (re)connection. @since 0.1 */
TRIMS_API uint64_t trims_client_server_instance(const trims_client* client);

/* One round trip to the daemon. Blocks for at most connect_timeout_ms.
 * @since 0.1 */
TRIMS_API trims_status trims_client_ping(trims_client* client, trims_error** error);

/* For programs with an event loop: a descriptor that is readable when
 * trims_client_service has work. It stays the same over reconnections, belongs to
 * the client, and must not be read or closed. -1 when it can not be made. Not
 * needed, and never readable, with TRIMS_CONNECT_BACKGROUND. @since 0.1 */
TRIMS_API int trims_client_poll_fd(trims_client* client);

/* Takes what has arrived, and connects again if the connection is broken. Blocks
 * only for that, for at most connect_timeout_ms. @since 0.1 */
TRIMS_API trims_status trims_client_service(trims_client* client, trims_error** error);

/* --- Leases --------------------------------------------------------------- */

typedef int32_t trims_tier;
enum {
  TRIMS_TIER_HOST = 0, /* Memory of the machine. */
  /* Memory of a GPU. The library then loads the CUDA driver, libcuda.so.1, and starts it if the
   * process has not; it makes no context and leaves the current one alone. */
  TRIMS_TIER_DEVICE = 1
};

/* How a model is cut into extents, the units that are shared. */
typedef int32_t trims_granularity;
enum {
  TRIMS_GRANULARITY_DEFAULT = 0, /* TRIMS_GRANULARITY_MODEL. */
  TRIMS_GRANULARITY_MODEL = 1,   /* One extent. */
  TRIMS_GRANULARITY_SLAB = 2,    /* Blocks of one size. */
  TRIMS_GRANULARITY_LAYER = 3,   /* One extent for each tensor. */
  TRIMS_GRANULARITY_AUTO = 4     /* The daemon decides by what it has measured. */
};

/* How long the model stays resident after its last lease; positive: milliseconds. */
#define TRIMS_KEEP_ALIVE_DEFAULT 0 /* As the daemon is configured. */
#define TRIMS_KEEP_ALIVE_FOREVER (-1)
#define TRIMS_KEEP_ALIVE_NONE (-2)

typedef int32_t trims_phase;
enum {
  TRIMS_PHASE_QUEUED = 0,    /* Waiting for a loader, or for somebody else's load. */
  TRIMS_PHASE_RESOLVING = 1, /* Finding files and reading their headers. */
  TRIMS_PHASE_HASHING = 2,   /* First sight of these files. */
  TRIMS_PHASE_LOADING = 3,
  TRIMS_PHASE_VERIFYING = 4
};

/* Called by trims_lease_open in its own thread while it waits: when the daemon
 * has reported, and, so that a program can give up at any time, at least every
 * 100 ms. Anything but 0 cancels the open. Must not call this library with the
 * same client. */
typedef int (*trims_progress_fn)(void* user, trims_phase phase, uint64_t done_bytes,
                                 uint64_t total_bytes);

typedef struct trims_open_options {
  size_t struct_size; /* sizeof(trims_open_options); TRIMS_OPEN_OPTIONS_INIT sets it. */
  trims_tier tier;    /* TRIMS_TIER_*. */
  /* With TRIMS_TIER_DEVICE: "GPU-…" or "MIG-…", whatever CUDA_VISIBLE_DEVICES makes
   * its number here. NULL: the device that device_ordinal says. */
  const char* device_uuid;
  trims_granularity granularity;
  /* The 32 bytes of the SHA-256 that the model must have, or NULL. Anything else
   * is TRIMS_DATA_LOSS. */
  const uint8_t* expected_digest;
  uint64_t deadline_ms;       /* From now; 0: none. */
  int64_t keep_alive_ms;      /* TRIMS_KEEP_ALIVE_* or milliseconds. */
  trims_progress_fn progress; /* May be NULL. */
  void* progress_user;
  /* With TRIMS_TIER_DEVICE and without device_uuid: the device by its number in this
   * process, as CUDA counts what CUDA_VISIBLE_DEVICES leaves. 0 is the first. */
  int32_t device_ordinal;
  uint32_t reserved; /* 0. */
} trims_open_options;

#define TRIMS_OPEN_OPTIONS_INIT \
  { sizeof(trims_open_options), 0, NULL, 0, NULL, 0, 0, NULL, NULL, 0, 0 }

/* Leases a model by name, "[namespace/]name[:version]", or by content,
 * "@sha256:" and 64 hexadecimal digits. Blocks until the model is resident, which
 * takes microseconds when it is already; several threads may wait with one client.
 * `options` may be NULL. Ended by trims_lease_close.
 * TRIMS_NOT_FOUND: no such model, or no such device in this process.
 * TRIMS_RESOURCE_EXHAUSTED: no room; the error says how much is missing.
 * TRIMS_DEADLINE_EXCEEDED and TRIMS_CANCELLED: as asked. On a device also
 * TRIMS_UNAVAILABLE: no driver that works here, or the device is lost;
 * TRIMS_FAILED_PRECONDITION: the daemon does not serve this device;
 * TRIMS_UNIMPLEMENTED: a libtrims without GPU support. @since 0.1 */
TRIMS_API trims_status trims_lease_open(trims_client* client, const char* name,
                                        const trims_open_options* options, trims_lease** lease,
                                        trims_error** error);

/* The same for the weights file behind `fd`, a regular file open for reading: the
 * daemon reads through that descriptor only, so it can be given nothing that this
 * process may not read. `fd` is borrowed for the call. `label` is shown in
 * listings; it may be NULL. @since 0.1 */
TRIMS_API trims_status trims_lease_open_file(trims_client* client, int fd, const char* label,
                                             const trims_open_options* options, trims_lease** lease,
                                             trims_error** error);

/* The most memory that this process used beside the weights while it worked with
 * them, in bytes. Sent with trims_lease_close; the daemon's admission uses it for
 * the model's next users. @since 0.1 */
TRIMS_API void trims_lease_set_peak_internal_bytes(trims_lease* lease, uint64_t bytes);

/* Unmaps the weights, after which every pointer got from the lease is invalid: on a
 * device, finish the work that uses them first, since nothing here waits for it. Then
 * tells the daemon, for whose answer it does not wait: a later open of this
 * client is ordered after it, and a process that exits at once loses nothing,
 * because the end of a connection ends its leases. Blocks, for seconds at most,
 * only when the daemon reads and answers nothing. NULL is ignored. @since 0.1 */
TRIMS_API void trims_lease_close(trims_lease* lease);

/* Getters of a lease, constant for its life. With NULL: 0 or NULL. @since 0.1 */
TRIMS_API const uint8_t* trims_lease_digest(const trims_lease* lease);   /* 32 bytes. */
TRIMS_API const char* trims_lease_digest_text(const trims_lease* lease); /* "sha256:…" */
TRIMS_API uint64_t trims_lease_generation(const trims_lease* lease);     /* Number of the load. */
TRIMS_API trims_tier trims_lease_tier(const trims_lease* lease);
TRIMS_API const char* trims_lease_device_uuid(const trims_lease* lease); /* "" on the host. */
/* The device's number in this process; -1 on the host. */
TRIMS_API int32_t trims_lease_device_ordinal(const trims_lease* lease);
TRIMS_API trims_granularity trims_lease_granularity(const trims_lease* lease); /* The one used. */
TRIMS_API uint64_t trims_lease_total_bytes(const trims_lease* lease);          /* Of all extents. */
/* The directory of a named model, for its graph and labels; "" when there is none. */
TRIMS_API const char* trims_lease_model_dir(const trims_lease* lease);
/* 1 when this open caused or joined a load, 0 when the model was resident. */
TRIMS_API int trims_lease_was_loaded(const trims_lease* lease);

/* Getters that change when the connection does. @since 0.1 */
/* 1 while the daemon knows of the lease. 0 after trims_client_disconnect, and when
 * a restarted daemon no longer had the model; the memory is as readable as before,
 * but a new open would load it again. */
TRIMS_API int trims_lease_is_attached(const trims_lease* lease);
/* The daemon's number of the lease, as in `trims leases`. */
TRIMS_API uint64_t trims_lease_id(const trims_lease* lease);

/* --- Extents -------------------------------------------------------------- */

/* With TRIMS_TIER_DEVICE, here and in trims_tensor, `data` is an address of the device
 * (a CUdeviceptr), valid in every context of this process there: for kernels and copies, not
 * for the processor. It can be read by that device only, and a kernel that writes it
 * fails with an illegal address, in its own context. */
typedef struct trims_extent {
  const void* data; /* Mapped read-only; page-aligned. */
  uint64_t size_bytes;
} trims_extent;

TRIMS_API uint32_t trims_lease_extent_count(const trims_lease* lease);
/* TRIMS_OUT_OF_RANGE when there is no such extent. @since 0.1 */
TRIMS_API trims_status trims_lease_extent(const trims_lease* lease, uint32_t index,
                                          trims_extent* extent);

/* --- Tensors -------------------------------------------------------------- */

typedef int32_t trims_dtype;
enum {
  TRIMS_DTYPE_BOOL = 0,
  TRIMS_DTYPE_U8 = 1,
  TRIMS_DTYPE_I8 = 2,
  TRIMS_DTYPE_U16 = 3,
  TRIMS_DTYPE_I16 = 4,
  TRIMS_DTYPE_F16 = 5,
  TRIMS_DTYPE_BF16 = 6,
  TRIMS_DTYPE_U32 = 7,
  TRIMS_DTYPE_I32 = 8,
  TRIMS_DTYPE_F32 = 9,
  TRIMS_DTYPE_U64 = 10,
  TRIMS_DTYPE_I64 = 11,
  TRIMS_DTYPE_F64 = 12,
  TRIMS_DTYPE_C64 = 13,
  TRIMS_DTYPE_F8_E5M2 = 14,
  TRIMS_DTYPE_F8_E4M3 = 15,
  TRIMS_DTYPE_F8_E8M0 = 16,
  TRIMS_DTYPE_F8_E4M3FNUZ = 17,
  TRIMS_DTYPE_F8_E5M2FNUZ = 18,
  TRIMS_DTYPE_F6_E2M3 = 19,
  TRIMS_DTYPE_F6_E3M2 = 20,
  TRIMS_DTYPE_F4 = 21
};

/* As safetensors spells it: "F32", "BF16", "F8_E4M3"; "?" for other numbers.
 * Static. @since 0.1 */
TRIMS_API const char* trims_dtype_name(trims_dtype dtype);
/* Bits of one element; 0 for other numbers. @since 0.1 */
TRIMS_API uint32_t trims_dtype_bits(trims_dtype dtype);

typedef struct trims_tensor {
  const char* name;     /* UTF-8, NUL-terminated. */
  const void* data;     /* 256-byte aligned. Reading is all one can do with it. */
  const int64_t* shape; /* `rank` numbers, row-major; NULL when rank is 0. */
  uint64_t size_bytes;
  uint64_t offset; /* Of `data` from the start of its extent. */
  uint32_t extent;
  uint32_t rank;
  trims_dtype dtype;
  uint32_t name_size; /* Bytes, without the NUL. */
} trims_tensor;

TRIMS_API uint32_t trims_lease_tensor_count(const trims_lease* lease);
/* Tensors are sorted by name, as strings of bytes. TRIMS_OUT_OF_RANGE when there
 * is no such tensor; TRIMS_DATA_LOSS when what the daemon says of it can not be
 * true. @since 0.1 */
TRIMS_API trims_status trims_lease_tensor(const trims_lease* lease, uint32_t index,
                                          trims_tensor* tensor);
/* The same by name, with a binary search. TRIMS_NOT_FOUND. @since 0.1 */
TRIMS_API trims_status trims_lease_find_tensor(const trims_lease* lease, const char* name,
                                               trims_tensor* tensor);

/* Pairs of text that came with the weights file, sorted by key. @since 0.1 */
TRIMS_API uint32_t trims_lease_metadata_count(const trims_lease* lease);
TRIMS_API trims_status trims_lease_metadata(const trims_lease* lease, uint32_t index,
                                            const char** key, const char** value);
/* NULL when there is no such key. @since 0.1 */
TRIMS_API const char* trims_lease_find_metadata(const trims_lease* lease, const char* key);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TRIMS_TRIMS_H_ */

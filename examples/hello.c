/* Leases a model and prints its tensors, with a checksum of each.
 *
 *   hello MODEL
 *
 * MODEL is a name known to the daemon, "@sha256:…", or a path with a slash to a
 * weights file of your own. */
#define _POSIX_C_SOURCE 200809L /* open(2) and O_CLOEXEC, with -std=c11. */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "trims/trims.h"

static int complain(const char* what, trims_status status, trims_error* error) {
  fprintf(stderr, "%s: %s: %s\n", what, trims_status_name(status), trims_error_message(error));
  if (trims_error_need_bytes(error) != 0) {
    fprintf(stderr, "it needs %" PRIu64 " bytes; %" PRIu64 " are free, %" PRIu64 " evictable\n",
            trims_error_need_bytes(error), trims_error_free_bytes(error),
            trims_error_evictable_bytes(error));
  }
  trims_error_free(error);
  return 1;
}

static int show_progress(void* user, trims_phase phase, uint64_t done_bytes, uint64_t total_bytes) {
  (void)user;
  if (phase == TRIMS_PHASE_LOADING && total_bytes > 0) {
    fprintf(stderr, "loading: %3d %%\r", (int)(100.0 * (double)done_bytes / (double)total_bytes));
  }
  return 0; /* Anything else would cancel. */
}

/* FNV-1a: enough to see that two processes read the same bytes. */
static uint64_t checksum(const unsigned char* bytes, uint64_t size) {
  uint64_t hash = UINT64_C(14695981039346656037);
  for (uint64_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
  return hash;
}

static void print_tensor(const trims_tensor* tensor) {
  printf("%-32s %-8s [", tensor->name, trims_dtype_name(tensor->dtype));
  for (uint32_t i = 0; i < tensor->rank; ++i) {
    printf(i == 0 ? "%" PRId64 : ", %" PRId64, tensor->shape[i]);
  }
  printf("] %016" PRIx64 "\n", checksum(tensor->data, tensor->size_bytes));
}

int main(int argc, char** argv) {
  trims_client* client = NULL;
  trims_lease* lease = NULL;
  trims_error* error = NULL;
  trims_status status;
  if (argc != 2) {
    fprintf(stderr, "usage: %s MODEL\n", argv[0]);
    return 2;
  }
  status = trims_client_connect(NULL, &client, &error);
  if (status != TRIMS_OK) return complain("connecting", status, error);

  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = show_progress;
  if (strchr(argv[1], '/') != NULL && access(argv[1], F_OK) == 0) {
    const int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      perror(argv[1]);
      trims_client_disconnect(client);
      return 1;
    }
    status = trims_lease_open_file(client, fd, argv[1], &options, &lease, &error);
    close(fd);
  } else {
    status = trims_lease_open(client, argv[1], &options, &lease, &error);
  }
  if (status != TRIMS_OK) {
    trims_client_disconnect(client);
    return complain(argv[1], status, error);
  }

  printf("%s, %" PRIu32 " tensors, %" PRIu64 " bytes, %s\n", trims_lease_digest_text(lease),
         trims_lease_tensor_count(lease), trims_lease_total_bytes(lease),
         trims_lease_was_loaded(lease) ? "loaded now" : "already resident");
  int failed = 0;
  for (uint32_t i = 0; i < trims_lease_tensor_count(lease); ++i) {
    trims_tensor tensor;
    status = trims_lease_tensor(lease, i, &tensor);
    if (status != TRIMS_OK) {
      fprintf(stderr, "tensor %" PRIu32 ": %s\n", i, trims_status_name(status));
      failed = 1;
      continue;
    }
    print_tensor(&tensor);
  }
  trims_lease_close(lease);
  trims_client_disconnect(client);
  return failed;
}

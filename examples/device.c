/* Leases a model in the memory of a GPU and prints where its tensors lie there.
 *
 *   device MODEL [NUMBER|UUID]
 *
 * Needs no part of CUDA to build. The pointers are the driver's (CUdeviceptr) and work in every
 * context that the program has on that device: hand them to kernels, cuBLAS, cuDNN or
 * cudaMemcpy as they are. They can be read and not written. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trims/trims.h"

static int complain(const char* what, trims_status status, trims_error* error) {
  fprintf(stderr, "%s: %s: %s\n", what, trims_status_name(status), trims_error_message(error));
  trims_error_free(error);
  return 1;
}

int main(int argc, char** argv) {
  trims_client* client = NULL;
  trims_lease* lease = NULL;
  trims_error* error = NULL;
  trims_status status;
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: %s MODEL [NUMBER|UUID]\n", argv[0]);
    return 2;
  }
  options.tier = TRIMS_TIER_DEVICE;
  if (argc == 3 && strchr(argv[2], '-') != NULL) {
    options.device_uuid = argv[2];
  } else if (argc == 3) {
    options.device_ordinal = (int32_t)strtol(argv[2], NULL, 10);
  }

  status = trims_client_connect(NULL, &client, &error);
  if (status != TRIMS_OK) return complain("connecting", status, error);
  status = trims_lease_open(client, argv[1], &options, &lease, &error);
  if (status != TRIMS_OK) {
    trims_client_disconnect(client);
    return complain(argv[1], status, error);
  }
  printf("%s on device %" PRId32 ", %s: %" PRIu64 " bytes in %" PRIu32 " allocations, %s\n",
         argv[1], trims_lease_device_ordinal(lease), trims_lease_device_uuid(lease),
         trims_lease_total_bytes(lease), trims_lease_extent_count(lease),
         trims_lease_was_loaded(lease) ? "loaded now" : "already resident");
  for (uint32_t i = 0; i < trims_lease_tensor_count(lease); ++i) {
    trims_tensor tensor;
    if (trims_lease_tensor(lease, i, &tensor) != TRIMS_OK) continue;
    printf("%-32s %-8s %12" PRIu64 " bytes at 0x%" PRIxPTR "\n", tensor.name,
           trims_dtype_name(tensor.dtype), tensor.size_bytes, (uintptr_t)tensor.data);
  }

  /* Here the program computes. It must have finished on the device, for example with
   * cudaDeviceSynchronize(), before the pointers go: */
  trims_lease_close(lease);
  trims_client_disconnect(client);
  return 0;
}

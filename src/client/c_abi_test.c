/* A program in C that knows nothing but trims.h and libtrims.so: the header is C11,
 * structures have the layout that is promised, and a call works. */
#undef NDEBUG /* Here assert is the test. */
#include <assert.h>
#include <string.h>

#include "trims/trims.h"

/* The released layout. Option structures may only grow past these. */
_Static_assert(sizeof(void*) != 8 || sizeof(trims_connect_options) >= 40, "layout");
_Static_assert(sizeof(void*) != 8 || offsetof(trims_connect_options, daemon_uid) == 32, "layout");
_Static_assert(sizeof(void*) != 8 || sizeof(trims_open_options) >= 72, "layout");
_Static_assert(sizeof(void*) != 8 || offsetof(trims_open_options, progress_user) == 64, "layout");
_Static_assert(sizeof(void*) != 8 || offsetof(trims_open_options, device_ordinal) == 72, "layout");
_Static_assert(sizeof(void*) != 8 || sizeof(trims_tensor) == 56, "layout");
_Static_assert(sizeof(void*) != 8 || offsetof(trims_tensor, name_size) == 52, "layout");
_Static_assert(sizeof(trims_extent) == 16, "layout");

int main(void) {
  trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
  trims_client* client = NULL;
  trims_error* error = NULL;
  trims_open_options open = TRIMS_OPEN_OPTIONS_INIT;

  assert(trims_version_number() == TRIMS_VERSION);
  assert(strcmp(trims_version(), TRIMS_VERSION_STRING) == 0);
  assert(open.struct_size == sizeof open);
  assert(strcmp(trims_status_name(TRIMS_NOT_FOUND), "NOT_FOUND") == 0);

  options.socket_path = "/nonexistent/lease.sock";
  assert(trims_client_connect(&options, &client, &error) == TRIMS_UNAVAILABLE);
  assert(client == NULL);
  assert(trims_error_status(error) == TRIMS_UNAVAILABLE);
  assert(strstr(trims_error_message(error), "/nonexistent") != NULL);
  trims_error_free(error);
  return 0;
}

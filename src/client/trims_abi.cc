// The C ABI over client::Client and client::Weights: argument checks, option
// structures of other versions, error objects, and the wall that no exception
// passes.
#include <cxxabi.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/limits.h"
#include "client/client.h"
#include "client/places.h"
#include "client/weights.h"
#include "trims/trims.h"

using trims::Digest;
using trims::InvalidArgumentError;
using trims::OkStatus;
using trims::Result;
using trims::Status;
using trims::StatusCode;
using trims::client::Client;
using trims::client::ClientOptions;
using trims::client::Failure;
using trims::client::Granted;
using trims::client::LeaseFacts;
using trims::client::MetadataView;
using trims::client::OpenRequest;
using trims::client::TensorView;
using trims::client::Weights;

struct trims_client {
  std::shared_ptr<Client> client;
};

struct trims_lease {
  std::shared_ptr<Client> client;
  std::shared_ptr<trims::client::Holding> holding;
  Weights weights;
  std::string digest_text;
  int device_ordinal = -1;
  std::atomic<uint64_t> peak_internal_bytes{0};
};

struct trims_error {
  Failure failure;
};

namespace {

// The numbers of the C ABI are those of the code, and of the wire.
static_assert(TRIMS_DTYPE_F4 == static_cast<int>(trims::DType::kF4));
static_assert(TRIMS_DTYPE_C64 == static_cast<int>(trims::DType::kC64));
static_assert(TRIMS_UNAUTHENTICATED == static_cast<int>(StatusCode::kUnauthenticated));
static_assert(TRIMS_PHASE_VERIFYING == static_cast<int>(trims::v1::Phase::Verifying));

trims_status CodeOf(StatusCode code) { return static_cast<trims_status>(code); }

trims_status Report(Failure failure, trims_error** error) noexcept {
  const trims_status code = CodeOf(failure.status.code());
  if (code != TRIMS_OK && error != nullptr) {
    *error = new (std::nothrow) trims_error{std::move(failure)};
  }
  return code;
}

// Runs `body`, which returns a Failure, and turns what it throws into one.
template <typename Body>
trims_status Guarded(trims_error** error, Body body) {
  try {
    return Report(body(), error);
  } catch (const abi::__forced_unwind&) {
    throw;  // Thread cancellation is not ours to stop.
  } catch (const std::bad_alloc&) {
    if (error != nullptr) *error = nullptr;  // There is no memory for one.
    return TRIMS_RESOURCE_EXHAUSTED;
  } catch (const std::exception& thrown) {
    if (error != nullptr) *error = nullptr;
    try {
      return Report({trims::InternalError(thrown.what())}, error);
    } catch (const std::exception&) {
      return TRIMS_INTERNAL;
    }
  }
}

Failure Invalid(std::string message) { return {InvalidArgumentError(std::move(message))}; }

// Copies an option structure of a caller built with an older or newer header.
template <typename Options>
Status TakeOptions(const Options* options, size_t first_size, Options* out) {
  if (options == nullptr) return OkStatus();
  size_t size;
  std::memcpy(&size, options, sizeof size);
  if (size < first_size || size > 4096) {
    return InvalidArgumentError("struct_size is " + std::to_string(size) + ", expected " +
                                std::to_string(sizeof(Options)) +
                                "; initialise options with their _INIT macro");
  }
  // Fields that this version does not know must be unset.
  const auto* bytes = reinterpret_cast<const unsigned char*>(options);
  for (size_t i = sizeof(Options); i < size; ++i) {
    if (bytes[i] != 0) {
      return InvalidArgumentError("an option is set that libtrims " TRIMS_VERSION_STRING
                                  " does not know");
    }
  }
  std::memcpy(out, options, std::min(size, sizeof(Options)));
  return OkStatus();
}

Status TakeOpenOptions(const trims_open_options* given, OpenRequest* request) {
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  RETURN_IF_ERROR(TakeOptions(given, offsetof(trims_open_options, device_ordinal), &options));
  const std::string device_uuid = options.device_uuid == nullptr ? "" : options.device_uuid;
  switch (options.tier) {
    case TRIMS_TIER_HOST:
      if (!device_uuid.empty() || options.device_ordinal != 0) {
        return InvalidArgumentError(
            "device_uuid or device_ordinal is set, but the tier is TRIMS_TIER_HOST");
      }
      break;
    case TRIMS_TIER_DEVICE:
      if (!device_uuid.empty() && options.device_ordinal != 0) {
        return InvalidArgumentError("both device_uuid and device_ordinal are set; set one");
      }
      break;
    default:
      return InvalidArgumentError("tier " + std::to_string(options.tier) + " is no TRIMS_TIER_*");
  }
  switch (options.granularity) {
    case TRIMS_GRANULARITY_DEFAULT:
    case TRIMS_GRANULARITY_MODEL:
      request->granularity = trims::v1::Granularity::Model;
      break;
    case TRIMS_GRANULARITY_SLAB:
      request->granularity = trims::v1::Granularity::Slab;
      break;
    case TRIMS_GRANULARITY_LAYER:
      request->granularity = trims::v1::Granularity::Layer;
      break;
    case TRIMS_GRANULARITY_AUTO:
      request->granularity = trims::v1::Granularity::Auto;
      break;
    default:
      return InvalidArgumentError("granularity " + std::to_string(options.granularity) +
                                  " is no TRIMS_GRANULARITY_*");
  }
  if (options.reserved != 0) return InvalidArgumentError("reserved is not 0");
  if (options.expected_digest != nullptr) {
    ASSIGN_OR_RETURN(request->expected_digest, Digest::FromBytes(options.expected_digest, 32));
  }
  if (options.deadline_ms != 0) {
    // More than anybody waits, and far from the end of the clock.
    constexpr uint64_t kLongest = uint64_t{10} * 365 * 24 * 3600 * 1000;
    request->deadline = std::chrono::milliseconds(std::min(options.deadline_ms, kLongest));
  }
  switch (options.keep_alive_ms) {
    case TRIMS_KEEP_ALIVE_DEFAULT:
      request->keep_alive_ms = -2;
      break;
    case TRIMS_KEEP_ALIVE_FOREVER:
      request->keep_alive_ms = -1;
      break;
    case TRIMS_KEEP_ALIVE_NONE:
      request->keep_alive_ms = 0;
      break;
    default:
      if (options.keep_alive_ms < 0) {
        return InvalidArgumentError("keep_alive_ms is " + std::to_string(options.keep_alive_ms) +
                                    "; expected milliseconds or TRIMS_KEEP_ALIVE_*");
      }
      request->keep_alive_ms = options.keep_alive_ms;
      break;
  }
  request->progress = options.progress;
  request->progress_user = options.progress_user;
  // Last, because it may load the driver; and before the daemon is asked, because what can
  // not be mapped here need not be loaded.
  if (options.tier == TRIMS_TIER_DEVICE) {
    ASSIGN_OR_RETURN(request->device,
                     trims::client::FindTargetDevice(device_uuid, options.device_ordinal));
  }
  return OkStatus();
}

Failure OpenLease(trims_client* client, const OpenRequest& request, trims_lease** lease) {
  Granted granted;
  Failure failure = client->client->Open(request, &granted);
  if (!failure.status.ok()) return failure;
  Status status;
  try {
    const LeaseFacts& facts = *granted.holding->facts;
    if (request.expected_digest && facts.digest != *request.expected_digest) {
      status = trims::DataLossError("\"" + request.name + "\" is " + facts.digest.ToString() +
                                    ", expected was " + request.expected_digest->ToString());
    } else if ((facts.tier == trims::v1::TierKind::Device) != request.device.has_value() ||
               (request.device && facts.device_uuid != request.device->uuid)) {
      status = trims::InternalError("the daemon answered with weights on " +
                                    (facts.device_uuid.empty() ? "the host" : facts.device_uuid) +
                                    ", asked was for " +
                                    (request.device ? request.device->uuid : "the host"));
    } else {
      Result<Weights> weights =
          Weights::Map(facts, std::move(granted.fds), request.device, client->client->indexes());
      if (weights.ok()) {
        *lease =
            new trims_lease{client->client, granted.holding, std::move(*weights),
                            facts.digest.ToString(), request.device ? request.device->ordinal : -1};
        return {};
      }
      status =
          Status(weights.status().code(), "the weights of \"" + request.name +
                                              "\" can not be used: " + weights.status().message());
    }
  } catch (...) {
    client->client->Close(granted.holding, 0);
    throw;
  }
  client->client->Close(granted.holding, 0);
  return {std::move(status)};
}

void Fill(const TensorView& view, trims_tensor* tensor) {
  tensor->name = view.name.data();
  tensor->name_size = static_cast<uint32_t>(view.name.size());
  tensor->data = view.bytes;
  tensor->shape = view.shape;
  tensor->size_bytes = view.size_bytes;
  tensor->offset = view.offset;
  tensor->extent = view.extent;
  tensor->rank = view.rank;
  tensor->dtype = view.dtype;
}

const LeaseFacts& FactsOf(const trims_lease* lease) { return *lease->holding->facts; }

}  // namespace

extern "C" {

// --- Versions and errors -------------------------------------------------------

const char* trims_version(void) { return TRIMS_VERSION_STRING; }

uint32_t trims_version_number(void) { return TRIMS_VERSION; }

const char* trims_status_name(trims_status status) {
  // Every name is a literal, and so ends with a NUL.
  return trims::StatusCodeName(static_cast<StatusCode>(status)).data();
}

trims_status trims_error_status(const trims_error* error) {
  return error == nullptr ? trims_status{TRIMS_UNKNOWN} : CodeOf(error->failure.status.code());
}

const char* trims_error_message(const trims_error* error) {
  return error == nullptr ? "" : error->failure.status.message().c_str();
}

uint64_t trims_error_need_bytes(const trims_error* error) {
  return error == nullptr ? 0 : error->failure.need_bytes;
}

uint64_t trims_error_free_bytes(const trims_error* error) {
  return error == nullptr ? 0 : error->failure.free_bytes;
}

uint64_t trims_error_evictable_bytes(const trims_error* error) {
  return error == nullptr ? 0 : error->failure.evictable_bytes;
}

void trims_error_free(trims_error* error) { delete error; }

// --- Connection ------------------------------------------------------------------

trims_status trims_client_connect(const trims_connect_options* given, trims_client** client,
                                  trims_error** error) {
  return Guarded(error, [&]() -> Failure {
    if (client == nullptr) return Invalid("trims_client_connect: client is NULL");
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    if (Status status = TakeOptions(given, sizeof(trims_connect_options), &options); !status.ok()) {
      return {std::move(status)};
    }
    if ((options.flags & ~TRIMS_CONNECT_BACKGROUND) != 0) {
      return Invalid("unknown flags " + std::to_string(options.flags));
    }
    const auto text = [](const char* string) { return std::string(string ? string : ""); };
    ClientOptions client_options;
    client_options.places =
        trims::client::FindPlaces(text(options.socket_path), text(options.runtime_dir));
    if (options.connect_timeout_ms != 0) {
      client_options.connect_timeout = std::chrono::milliseconds(options.connect_timeout_ms);
    }
    client_options.daemon_uid = options.daemon_uid;
    client_options.background = (options.flags & TRIMS_CONNECT_BACKGROUND) != 0;
    Result<std::shared_ptr<Client>> connected = Client::Connect(std::move(client_options));
    if (!connected.ok()) return {connected.status()};
    *client = new trims_client{std::move(*connected)};
    return {};
  });
}

void trims_client_disconnect(trims_client* client) {
  if (client == nullptr) return;
  client->client->Disconnect();
  delete client;
}

const char* trims_client_socket_path(const trims_client* client) {
  return client == nullptr ? nullptr : client->client->socket_path().c_str();
}

const char* trims_client_server_version(const trims_client* client) {
  return client == nullptr ? nullptr : client->client->server_version();
}

uint64_t trims_client_server_instance(const trims_client* client) {
  return client == nullptr ? 0 : client->client->server_instance();
}

trims_status trims_client_ping(trims_client* client, trims_error** error) {
  return Guarded(error, [&]() -> Failure {
    if (client == nullptr) return Invalid("trims_client_ping: client is NULL");
    return {client->client->Ping()};
  });
}

int trims_client_poll_fd(trims_client* client) {
  return client == nullptr ? -1 : client->client->PollFd();
}

trims_status trims_client_service(trims_client* client, trims_error** error) {
  return Guarded(error, [&]() -> Failure {
    if (client == nullptr) return Invalid("trims_client_service: client is NULL");
    return {client->client->Service()};
  });
}

// --- Leases ----------------------------------------------------------------------

trims_status trims_lease_open(trims_client* client, const char* name,
                              const trims_open_options* options, trims_lease** lease,
                              trims_error** error) {
  return Guarded(error, [&]() -> Failure {
    if (client == nullptr || name == nullptr || lease == nullptr) {
      return Invalid("trims_lease_open: client, name or lease is NULL");
    }
    OpenRequest request;
    request.name = name;
    if (request.name.empty() || request.name.size() > trims::kMaxModelNameBytes) {
      return Invalid("a model's name has 1 to " + std::to_string(trims::kMaxModelNameBytes) +
                     " bytes, not " + std::to_string(request.name.size()));
    }
    if (Status status = TakeOpenOptions(options, &request); !status.ok()) {
      return {std::move(status)};
    }
    return OpenLease(client, request, lease);
  });
}

trims_status trims_lease_open_file(trims_client* client, int fd, const char* label,
                                   const trims_open_options* options, trims_lease** lease,
                                   trims_error** error) {
  return Guarded(error, [&]() -> Failure {
    if (client == nullptr || lease == nullptr) {
      return Invalid("trims_lease_open_file: client or lease is NULL");
    }
    OpenRequest request;
    request.fd = fd;
    if (label != nullptr) request.name = label;
    if (request.name.size() > trims::kMaxModelNameBytes) {
      return Invalid("a label has at most " + std::to_string(trims::kMaxModelNameBytes) +
                     " bytes, not " + std::to_string(request.name.size()));
    }
    struct stat info;
    const int flags = fcntl(fd, F_GETFL);
    if (fd < 0 || flags < 0 || fstat(fd, &info) != 0) {
      return Invalid("descriptor " + std::to_string(fd) + " is not open");
    }
    if (!S_ISREG(info.st_mode) || (flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_WRONLY) {
      return Invalid("descriptor " + std::to_string(fd) +
                     " is not a regular file open for reading");
    }
    if (Status status = TakeOpenOptions(options, &request); !status.ok()) {
      return {std::move(status)};
    }
    return OpenLease(client, request, lease);
  });
}

void trims_lease_set_peak_internal_bytes(trims_lease* lease, uint64_t bytes) {
  if (lease != nullptr) lease->peak_internal_bytes = bytes;
}

void trims_lease_close(trims_lease* lease) {
  if (lease == nullptr) return;
  const std::unique_ptr<trims_lease> owned(lease);
  // Unmapped before it is told: the daemon may need the room for somebody else at once.
  { const Weights unmapped = std::move(owned->weights); }
  // A Close that can not be made ends with the connection.
  (void)Guarded(nullptr, [&]() -> Failure {
    owned->client->Close(owned->holding, owned->peak_internal_bytes);
    return {};
  });
}

const uint8_t* trims_lease_digest(const trims_lease* lease) {
  return lease == nullptr ? nullptr : FactsOf(lease).digest.bytes.data();
}

const char* trims_lease_digest_text(const trims_lease* lease) {
  return lease == nullptr ? nullptr : lease->digest_text.c_str();
}

uint64_t trims_lease_generation(const trims_lease* lease) {
  return lease == nullptr ? 0 : FactsOf(lease).generation;
}

trims_tier trims_lease_tier(const trims_lease* lease) {
  if (lease == nullptr) return TRIMS_TIER_HOST;
  return FactsOf(lease).tier == trims::v1::TierKind::Device ? TRIMS_TIER_DEVICE : TRIMS_TIER_HOST;
}

const char* trims_lease_device_uuid(const trims_lease* lease) {
  return lease == nullptr ? nullptr : FactsOf(lease).device_uuid.c_str();
}

int32_t trims_lease_device_ordinal(const trims_lease* lease) {
  return lease == nullptr ? -1 : lease->device_ordinal;
}

trims_granularity trims_lease_granularity(const trims_lease* lease) {
  if (lease == nullptr) return TRIMS_GRANULARITY_DEFAULT;
  switch (FactsOf(lease).granularity) {
    case trims::v1::Granularity::Slab:
      return TRIMS_GRANULARITY_SLAB;
    case trims::v1::Granularity::Layer:
      return TRIMS_GRANULARITY_LAYER;
    default:
      return TRIMS_GRANULARITY_MODEL;
  }
}

uint64_t trims_lease_total_bytes(const trims_lease* lease) {
  return lease == nullptr ? 0 : FactsOf(lease).total_bytes;
}

const char* trims_lease_model_dir(const trims_lease* lease) {
  return lease == nullptr ? nullptr : FactsOf(lease).model_dir.c_str();
}

int trims_lease_was_loaded(const trims_lease* lease) {
  return lease != nullptr && FactsOf(lease).loaded ? 1 : 0;
}

int trims_lease_is_attached(const trims_lease* lease) {
  return lease != nullptr && lease->holding->attached ? 1 : 0;
}

uint64_t trims_lease_id(const trims_lease* lease) {
  return lease == nullptr ? 0 : lease->holding->lease_id.load();
}

// --- Extents and tensors -----------------------------------------------------------

uint32_t trims_lease_extent_count(const trims_lease* lease) {
  return lease == nullptr ? 0 : static_cast<uint32_t>(lease->weights.extents().size());
}

trims_status trims_lease_extent(const trims_lease* lease, uint32_t index, trims_extent* extent) {
  if (lease == nullptr || extent == nullptr) return TRIMS_INVALID_ARGUMENT;
  if (index >= lease->weights.extents().size()) return TRIMS_OUT_OF_RANGE;
  const trims::client::MappedExtent& mapped = lease->weights.extents()[index];
  extent->data = mapped.data;
  extent->size_bytes = mapped.size;
  return TRIMS_OK;
}

const char* trims_dtype_name(trims_dtype dtype) {
  if (dtype < 0 || dtype >= trims::kDTypeCount) return "?";
  return trims::DTypeName(static_cast<trims::DType>(dtype)).data();
}

uint32_t trims_dtype_bits(trims_dtype dtype) {
  if (dtype < 0 || dtype >= trims::kDTypeCount) return 0;
  return trims::DTypeBits(static_cast<trims::DType>(dtype));
}

uint32_t trims_lease_tensor_count(const trims_lease* lease) {
  return lease == nullptr ? 0 : lease->weights.tensor_count();
}

trims_status trims_lease_tensor(const trims_lease* lease, uint32_t index, trims_tensor* tensor) {
  if (lease == nullptr || tensor == nullptr) return TRIMS_INVALID_ARGUMENT;
  TensorView view;
  const StatusCode code = lease->weights.Tensor(index, &view);
  if (code == StatusCode::kOk) Fill(view, tensor);
  return CodeOf(code);
}

trims_status trims_lease_find_tensor(const trims_lease* lease, const char* name,
                                     trims_tensor* tensor) {
  if (lease == nullptr || name == nullptr || tensor == nullptr) return TRIMS_INVALID_ARGUMENT;
  TensorView view;
  const StatusCode code = lease->weights.FindTensor(name, &view);
  if (code == StatusCode::kOk) Fill(view, tensor);
  return CodeOf(code);
}

uint32_t trims_lease_metadata_count(const trims_lease* lease) {
  return lease == nullptr ? 0 : lease->weights.metadata_count();
}

trims_status trims_lease_metadata(const trims_lease* lease, uint32_t index, const char** key,
                                  const char** value) {
  if (lease == nullptr || key == nullptr || value == nullptr) return TRIMS_INVALID_ARGUMENT;
  MetadataView pair;
  const StatusCode code = lease->weights.Metadata(index, &pair);
  if (code == StatusCode::kOk) {
    *key = pair.key.data();
    *value = pair.value.data();
  }
  return CodeOf(code);
}

const char* trims_lease_find_metadata(const trims_lease* lease, const char* key) {
  if (lease == nullptr || key == nullptr) return nullptr;
  MetadataView pair;
  return lease->weights.FindMetadata(key, &pair) == StatusCode::kOk ? pair.value.data() : nullptr;
}

}  // extern "C"

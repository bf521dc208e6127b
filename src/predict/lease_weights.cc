#include "predict/lease_weights.h"

#include <utility>

namespace trims::predict {
namespace {

// The C ABI's codes are ours by number.
Status TakeError(trims_status code, trims_error* error) {
  const Status status(static_cast<StatusCode>(code), trims_error_message(error));
  trims_error_free(error);
  return status;
}

}  // namespace

Result<trims_granularity> ParseGranularity(std::string_view text) {
  if (text == "model") return TRIMS_GRANULARITY_MODEL;
  if (text == "slab") return TRIMS_GRANULARITY_SLAB;
  if (text == "layer") return TRIMS_GRANULARITY_LAYER;
  if (text == "auto") return TRIMS_GRANULARITY_AUTO;
  return InvalidArgumentError("'" + std::string(text) +
                              "' is not a sharing granularity; model, slab, layer or auto was "
                              "expected");
}

Result<std::shared_ptr<LeaseWeights>> LeaseWeights::Open(const std::string& model,
                                                         const LeaseWeightsOptions& options) {
  trims_connect_options connect = TRIMS_CONNECT_OPTIONS_INIT;
  if (!options.runtime_dir.empty()) connect.runtime_dir = options.runtime_dir.c_str();
  trims_client* client = nullptr;
  trims_error* error = nullptr;
  if (const trims_status code = trims_client_connect(&connect, &client, &error); code != TRIMS_OK) {
    return TakeError(code, error);
  }
  trims_open_options open = TRIMS_OPEN_OPTIONS_INIT;
  open.granularity = options.granularity;
  trims_lease* lease = nullptr;
  if (const trims_status code = trims_lease_open(client, model.c_str(), &open, &lease, &error);
      code != TRIMS_OK) {
    trims_client_disconnect(client);
    return TakeError(code, error);
  }
  return std::shared_ptr<LeaseWeights>(new LeaseWeights(model, client, lease));
}

LeaseWeights::~LeaseWeights() {
  if (peak_internal_bytes() > 0) trims_lease_set_peak_internal_bytes(lease_, peak_internal_bytes());
  trims_lease_close(lease_);
  trims_client_disconnect(client_);
}

std::optional<Weight> LeaseWeights::Find(std::string_view name) const {
  trims_tensor tensor;
  if (trims_lease_find_tensor(lease_, std::string(name).c_str(), &tensor) != TRIMS_OK) {
    return std::nullopt;
  }
  Weight weight;
  weight.dtype = static_cast<DType>(tensor.dtype);
  weight.shape.assign(tensor.shape, tensor.shape + tensor.rank);
  weight.bytes = static_cast<const std::byte*>(tensor.data);
  weight.size_bytes = tensor.size_bytes;
  return weight;
}

}  // namespace trims::predict

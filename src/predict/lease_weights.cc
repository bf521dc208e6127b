#include "predict/lease_weights.h"

#include <utility>

#include "client/error_status.h"

namespace trims::predict {

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
  Expected<Client> client = Client::Connect(connect);
  if (!client) return client::ErrorStatus(client.error());
  OpenOptions open;
  open.c.granularity = options.granularity;
  Expected<Lease> lease = client->Open(model, open);
  if (!lease) return client::ErrorStatus(lease.error());
  return std::shared_ptr<LeaseWeights>(
      new LeaseWeights(model, *std::move(client), *std::move(lease)));
}

LeaseWeights::~LeaseWeights() {
  if (peak_internal_bytes() > 0) lease_.set_peak_internal_bytes(peak_internal_bytes());
}

std::optional<Weight> LeaseWeights::Find(std::string_view name) const {
  const std::optional<Tensor> tensor = lease_.FindTensor(std::string(name));
  if (!tensor) return std::nullopt;
  Weight weight;
  weight.dtype = static_cast<DType>(tensor->dtype());
  weight.shape.assign(tensor->shape().begin(), tensor->shape().end());
  weight.bytes = tensor->bytes().data();
  weight.size_bytes = tensor->bytes().size();
  return weight;
}

}  // namespace trims::predict

// Weights lent by the daemon: one copy on the machine, mapped read-only.
//
// Holds a connection and a lease for its life, and tells the daemon at the end
// how much memory the predictors over it needed. Finding is thread-safe. Must be
// destroyed in the process that opened it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "predict/weights.h"
#include "trims/trims.hpp"

namespace trims::predict {

struct LeaseWeightsOptions {
  std::string runtime_dir;  // Where the daemon listens; "": as trims_client_connect decides.
  trims_granularity granularity = TRIMS_GRANULARITY_DEFAULT;
};

// "model", "slab", "layer" or "auto".
Result<trims_granularity> ParseGranularity(std::string_view text);

class LeaseWeights final : public WeightProvider {
 public:
  // Connects and leases `model`. Blocks until it is resident. UNAVAILABLE when no
  // daemon answers, NOT_FOUND when it has no such model.
  static Result<std::shared_ptr<LeaseWeights>> Open(const std::string& model,
                                                    const LeaseWeightsOptions& options);
  ~LeaseWeights() override;
  LeaseWeights(const LeaseWeights&) = delete;
  LeaseWeights& operator=(const LeaseWeights&) = delete;

  std::optional<Weight> Find(std::string_view name) const override;
  std::string Describe() const override { return "model '" + model_ + "'"; }
  // Where the model's graph and labels are; "" if it has no directory.
  std::string model_dir() const { return std::string(lease_.model_dir()); }
  const Lease& PeekLease() const { return lease_; }

 private:
  LeaseWeights(std::string model, Client client, Lease lease)
      : model_(std::move(model)), client_(std::move(client)), lease_(std::move(lease)) {}

  const std::string model_;
  Client client_;
  Lease lease_;  // After client_: ends before it.
};

}  // namespace trims::predict

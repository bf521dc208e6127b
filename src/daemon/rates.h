// How fast bytes come from where they are: what `auto` granularity, the cost of
// loading again and the choice between copies are decided by. Measured in the
// background once, kept in the ledger for the next worker, and moved by what loads
// really reach.
//
// Thread rule: the reactor's thread.
#pragma once

#include <optional>
#include <string>

#include "daemon/ledger.h"
#include "daemon/loaders.h"
#include "daemon/reactor.h"
#include "daemon/tiers.h"
#include "tier/rho.h"

namespace trims {

class Rates final {
 public:
  // All borrowed.
  Rates(Reactor* reactor, Loaders* loaders, const Tiers* tiers, Ledger* ledger)
      : reactor_(reactor), loaders_(loaders), tiers_(tiers), ledger_(ledger) {}
  Rates(const Rates&) = delete;
  Rates& operator=(const Rates&) = delete;

  // What an earlier worker measured. Before Measure.
  void AdoptRho(const RhoConstants& rho) { rho_ = rho; }
  void AdoptLinks(const std::string& links) { known_links_ = links; }
  // Measures what is not known yet, in the background: q by reading a file in `directory`.
  void Measure(const std::string& directory);

  // A load read `bytes` from files into host memory.
  void NoteLoad(uint64_t bytes, Duration took);

  const RhoConstants& rho() const { return rho_; }
  // nullopt before the first measurement.
  std::optional<Duration> ReloadCost(uint64_t bytes) const;

 private:
  void MeasureRhoOnLoaderThread(const std::string& directory);
  void MeasureLinksOnLoaderThread(const std::string& known);

  Reactor* const reactor_;
  Loaders* const loaders_;
  const Tiers* const tiers_;
  Ledger* const ledger_;
  RhoConstants rho_;
  std::string known_links_;
};

}  // namespace trims

#include "daemon/rates.h"

#include <algorithm>
#include <chrono>

#include "base/limits.h"
#include "daemon/devices.h"
#include "daemon/log.h"

namespace trims {
namespace {

// Thirty years, which is as long as for ever and fits a Duration.
constexpr std::chrono::duration<double> kReloadCostMax(1e9);

}  // namespace

void Rates::Measure(const std::string& directory) {
  if (!(rho_.read_bytes_per_second > 0))
    loaders_->named.Run([this, directory] { MeasureRhoOnLoaderThread(directory); });
  if (tiers_->devices() != nullptr && !tiers_->device_tiers().empty())
    loaders_->background.Run([this, known = known_links_] { MeasureLinksOnLoaderThread(known); });
}

void Rates::MeasureRhoOnLoaderThread(const std::string& directory) {
  const RhoConstants measured = MeasureRhoConstants(directory);
  reactor_->Post("rho measured", [this, measured] {
    rho_ = measured;
    ledger_->PutText(kRhoLedgerKey, EncodeRho(measured));
    LogDebug("rho constants measured", {{"read_bytes_per_second", measured.read_bytes_per_second},
                                        {"export_cost", measured.export_cost},
                                        {"open_cost", measured.open_cost}});
  });
}

void Rates::MeasureLinksOnLoaderThread(const std::string& known) {
  const std::string measured = tiers_->devices()->MeasureLinks(known);
  reactor_->Post("links measured",
                 [this, measured] { ledger_->PutText(kLinksLedgerKey, measured); });
}

void Rates::NoteLoad(uint64_t bytes, Duration took) {
  const double seconds = std::chrono::duration<double>(took).count();
  if (bytes < kDefaultSlabBytes / 4 || !(seconds > 0)) return;
  // One load moves q by a quarter.
  const double rate = static_cast<double>(bytes) / seconds;
  double& q = rho_.read_bytes_per_second;
  q = q > 0 ? 0.75 * q + 0.25 * rate : rate;
}

std::optional<Duration> Rates::ReloadCost(uint64_t bytes) const {
  if (!(rho_.read_bytes_per_second > 0)) return std::nullopt;
  const std::chrono::duration<double> cost(static_cast<double>(bytes) / rho_.read_bytes_per_second);
  return std::chrono::duration_cast<Duration>(std::min(cost, kReloadCostMax));
}

}  // namespace trims

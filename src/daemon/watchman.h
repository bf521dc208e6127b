// The watchman: are the bytes that are lent still those that were loaded, and do the
// devices still work?
//
// Three occasions for a check: an operator asks; a lease of somebody untrusted on
// device memory has ended (who had the descriptor could write); the scrub comes round.
// A check reads the replica's extents on a loader thread (CheckOnLoaderThread); wrong
// bytes are quarantined before its end is told.
//
// Thread rule: the reactor's thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/contents.h"
#include "daemon/loaders.h"
#include "daemon/reactor.h"
#include "daemon/residents.h"
#include "daemon/tiers.h"
#include "store/store.h"
#include "trace/profile.h"

namespace trims {

class Watchman final {
 public:
  struct Parts {  // All borrowed.
    Reactor* reactor = nullptr;
    const Tiers* tiers = nullptr;
    Loaders* loaders = nullptr;
    Contents* contents = nullptr;
    Residents* residents = nullptr;
    Profile* profile = nullptr;
    const store::Store* store = nullptr;  // To ask; what happens goes through `apply`.
    std::function<void(const store::Event&)> apply;
    // A device was lost; once for each.
    std::function<void(const std::string& tier)> on_tier_lost;
  };
  struct Settings {
    uint64_t slab_bytes = 0;
    uint64_t scrub_bytes_per_second = 0;  // 0: no scrub.
    std::vector<uint32_t> trusted_uids;   // Beside root and the daemon's own.
  };
  Watchman(Parts parts, Settings settings);
  Watchman(const Watchman&) = delete;
  Watchman& operator=(const Watchman&) = delete;

  void SetSettings(Settings settings) { settings_ = std::move(settings); }
  // Begins to look at devices and at what is resident on them, again and again.
  void StartScrub();

  // Recomputes the checksums of a ready replica, then calls `done`, once. FAILED_PRECONDITION
  // when it is not ready; DATA_LOSS, with the tensor, when bytes are wrong.
  void Check(const store::ReplicaKey& replica, std::shared_ptr<LoadControl> control,
             std::function<void(Status)> done);
  // A lease of `uid` has ended.
  void OnLeaseEnded(const store::ReplicaKey& replica, uint32_t uid);
  // The replica is gone.
  void Forget(const store::ReplicaKey& replica);
  // Looks whether the tier has failed; then nothing of it is lent any more.
  void NoticeLost(store::TierIndex tier);

  uint64_t checks_started() const { return checks_started_; }

 private:
  // A replica that is to be checked because an untrusted lease on it has ended.
  struct Wanted {
    bool is_running = false;
    bool is_wanted = false;
    Time not_before{};
  };
  struct Device {
    std::map<store::ReplicaKey, Wanted> wanted;
    std::optional<store::ReplicaKey> last_scrubbed;
    bool is_lost = false;
  };
  struct CheckWork;

  static void CheckOnLoaderThread(CheckWork& work);
  void FinishCheck(const CheckWork& work, const std::function<void(Status)>& done);
  bool IsTrusted(uint32_t uid) const;
  void StartWanted(const store::ReplicaKey& replica);
  void FinishWanted(const store::ReplicaKey& replica, Time started, const Status& status);
  void ScrubAfter(store::TierIndex tier, Duration pause);
  void ScrubStep(store::TierIndex tier);
  std::optional<store::ReplicaSummary> NextToScrub(store::TierIndex tier) const;

  const Parts parts_;
  Settings settings_;
  uint64_t checks_started_ = 0;
  std::map<store::TierIndex, Device> devices_;  // One for each device tier.
};

}  // namespace trims

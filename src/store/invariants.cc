// Recounts everything from the replicas, leases and waiters up, and compares.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "store/state.h"

namespace trims::store {

namespace {

void Require(bool holds, const char* what, const Replica* replica, int line) {
  if (holds) return;
  std::string text = std::string("store invariant broken: ") + what;
  if (replica != nullptr) {
    text += ": " + replica->name + " " + replica->key.model.ToShort() + " tier " +
            std::to_string(replica->key.tier) + " generation " +
            std::to_string(replica->generation) + " " +
            std::string(ReplicaStateName(replica->state));
  }
  CheckFailed(text.c_str(), __FILE__, line);
}
#define REQUIRE(condition, what, replica) Require((condition), (what), (replica), __LINE__)

}  // namespace

void Store::State::CheckInvariants() const {
  std::map<const HeldExtent*, uint32_t> refs;
  std::map<const Replica*, uint32_t> lease_counts;
  std::map<const Model*, uint32_t> model_counts;
  std::map<uint32_t, User> recounted;
  std::set<uint64_t> generations;

  for (const Lease& lease : leases) {
    const LeaseId id = lease.id;
    REQUIRE(leases.Find(id) == &lease, "a lease is in another's place", lease.replica);
    ++lease_counts[lease.replica];
    const auto session = sessions.find(lease.session);
    REQUIRE(session != sessions.end() && session->second.leases.contains(id),
            "a lease belongs to a session that does not know it", lease.replica);
    User& user = recounted[lease.uid];
    ++user.leases;
    ++user.holds[lease.replica];
  }

  size_t queued = 0;
  size_t current_count = 0;
  size_t expiring = 0;
  for (const Replica& replica : replicas) {
    ++model_counts[replica.model];
    REQUIRE(generations.insert(replica.generation).second, "two replicas have one generation",
            &replica);
    REQUIRE(replica.model->digest == replica.key.model, "a replica has another's model", &replica);
    const auto counted = lease_counts.find(&replica);
    REQUIRE(replica.leases == (counted == lease_counts.end() ? 0 : counted->second),
            "a lease count differs from the live leases", &replica);

    const bool is_current = [&] {
      const auto it = current.find(replica.key);
      return it != current.end() && it->second == &replica;
    }();
    current_count += is_current;
    const bool in_service =
        replica.state == ReplicaState::kLoading || replica.state == ReplicaState::kReady;
    REQUIRE(is_current == in_service, "a new open would get the wrong incarnation", &replica);

    const Load* load = nullptr;
    if (replica.load != 0) {
      const auto it = loads.find(replica.load);
      REQUIRE(it != loads.end() && it->second.replica == &replica,
              "a replica waits for a load that does not run", &replica);
      load = &it->second;
    }
    REQUIRE(replica.load == 0 || replica.awaited.empty(),
            "a replica loads and waits for others at once", &replica);
    for (LoadId id : replica.awaited) {
      const auto it = loads.find(id);
      REQUIRE(it != loads.end() && std::count(it->second.dependents.begin(),
                                              it->second.dependents.end(), &replica) == 1,
              "a replica waits for a load that does not know it", &replica);
    }

    std::set<Digest> keys;
    for (const Slot& slot : replica.slots) {
      REQUIRE(keys.insert(slot.key).second, "a replica has an extent twice", &replica);
      if (slot.held == nullptr) {
        REQUIRE(replica.state == ReplicaState::kLoading, "an extent is missing", &replica);
        continue;
      }
      ++refs[slot.held];
      REQUIRE(slot.held->key == slot.key, "a slot refers to another extent", &replica);
      switch (replica.state) {
        case ReplicaState::kLoading:
          REQUIRE(!slot.held->condemned, "a load builds on quarantined bytes", &replica);
          REQUIRE(slot.held->ready ||
                      (load != nullptr &&
                       std::count(load->extents.begin(), load->extents.end(), slot.held) == 1),
                  "a replica refers to an extent that another load brings", &replica);
          break;
        case ReplicaState::kReady:
        case ReplicaState::kDraining:
          REQUIRE(slot.held->ready && !slot.held->condemned, "unverified bytes are visible",
                  &replica);
          break;
        case ReplicaState::kQuarantined:
          REQUIRE(slot.held->ready || slot.held->condemned, "unverified bytes are visible",
                  &replica);
          break;
        case ReplicaState::kAbsent:
          REQUIRE(false, "an absent replica is listed", &replica);
      }
    }

    switch (replica.state) {
      case ReplicaState::kLoading:
        REQUIRE(replica.leases == 0, "a loading replica is leased", &replica);
        REQUIRE(load != nullptr || !replica.awaited.empty(), "a load makes no progress", &replica);
        REQUIRE(!replica.waiters.empty() ||
                    (load != nullptr &&
                     (load->adoption || load->cancelled || !load->dependents.empty())),
                "a load runs for nobody", &replica);
        break;
      case ReplicaState::kReady:
        REQUIRE(load == nullptr && replica.waiters.empty(), "a ready replica lets opens wait",
                &replica);
        break;
      default:
        REQUIRE(load == nullptr && replica.waiters.empty(), "a revoked replica lets opens wait",
                &replica);
        REQUIRE(replica.leases > 0, "a revoked replica outlives its leases", &replica);
    }

    if (replica.expires_at.has_value()) {
      ++expiring;
      const auto it = expiry.find({*replica.expires_at, replica.serial});
      REQUIRE(it != expiry.end() && it->second == &replica, "an expiry is not scheduled", &replica);
      REQUIRE(replica.state == ReplicaState::kReady && replica.leases == 0 && !Pinned(replica),
              "a replica in use would expire", &replica);
    }

    for (auto it = replica.waiters.begin(); it != replica.waiters.end(); ++it) {
      ++queued;
      const auto entry = waiting.find(it->open);
      REQUIRE(entry != waiting.end() && entry->second.first == &replica &&
                  &*entry->second.second == &*it,
              "a waiting open is not indexed", &replica);
      if (it->kind == Waiter::Kind::kLoad) continue;
      const auto session = sessions.find(it->session);
      REQUIRE(session != sessions.end() && session->second.waiting.contains(it->open),
              "an open waits for a session that does not know it", &replica);
      User& user = recounted[it->uid];
      ++user.waiting;
      ++user.holds[&replica];
    }
  }
  REQUIRE(queued == waiting.size(), "an open waits nowhere", nullptr);
  REQUIRE(current_count == current.size(), "a key leads to a replica that is gone", nullptr);
  REQUIRE(expiring == expiry.size(), "a replica that is gone would expire", nullptr);
  REQUIRE(lease_counts.size() <= replicas.size(), "a lease holds nothing", nullptr);

  size_t session_leases = 0;
  size_t session_opens = 0;
  for (const auto& [id, session] : sessions) {
    session_leases += session.leases.size();
    session_opens += session.waiting.size();
    REQUIRE(!session.leases.empty() || !session.waiting.empty(), "an empty session is remembered",
            nullptr);
  }
  REQUIRE(session_leases == leases.size(), "a session has a lease that is gone", nullptr);
  REQUIRE(session_opens <= waiting.size(), "a session waits for nothing", nullptr);

  REQUIRE(recounted.size() == users.size(), "a quota is kept for a uid that holds nothing",
          nullptr);
  for (const auto& [uid, user] : users) {
    const auto it = recounted.find(uid);
    REQUIRE(it != recounted.end() && it->second.leases == user.leases &&
                it->second.waiting == user.waiting && it->second.holds == user.holds,
            "a quota is miscounted", nullptr);
    uint64_t bytes = 0;
    for (const auto& [replica, count] : user.holds) bytes += replica->bytes;
    REQUIRE(bytes == user.bytes, "a quota of bytes is miscounted", nullptr);
  }

  for (size_t i = 0; i < tiers.size(); ++i) {
    uint64_t used = 0;
    const auto check_extent = [&](const HeldExtent& held) {
      used += held.bytes;
      const auto it = refs.find(&held);
      REQUIRE(held.tier == i, "an extent is in another tier", nullptr);
      REQUIRE(it != refs.end() && it->second == held.refs && held.refs > 0,
              "an extent's references are miscounted", nullptr);
      REQUIRE(held.chosen == 0, "admission left its marks", nullptr);
    };
    for (const auto& [key, held] : tiers[i].extents) {
      REQUIRE(key == held->key && !held->condemned, "an extent is under another key", nullptr);
      check_extent(*held);
      if (!held->ready) {
        REQUIRE(held->refs == held->loads.size(), "an extent in flight is visible", nullptr);
        REQUIRE(held->present || held->loads.size() == 1, "an extent is loaded twice", nullptr);
      }
    }
    for (const auto& [pointer, held] : tiers[i].condemned) {
      REQUIRE(pointer == held.get() && held->condemned, "a good extent is condemned", nullptr);
      check_extent(*held);
    }
    REQUIRE(used == tiers[i].used, "the use of a tier is miscounted", nullptr);
    REQUIRE(used <= tiers[i].ceiling, "a tier is over its budget", nullptr);
    REQUIRE(tiers[i].ceiling >= config.tiers[i].budget_bytes, "a ceiling is under the budget",
            nullptr);
  }
  size_t held_count = 0;
  for (const TierUse& tier : tiers) held_count += tier.extents.size() + tier.condemned.size();
  REQUIRE(held_count == refs.size(), "a slot refers to an extent that is gone", nullptr);

  for (const auto& [id, load] : loads) {
    REQUIRE(load.id == id && load.replica->load == id, "a load runs for a replica that is gone",
            nullptr);
    for (const HeldExtent* held : load.extents) {
      // Another adoption may have verified it meanwhile.
      REQUIRE(
          held->ready ? load.adoption : std::count(held->loads.begin(), held->loads.end(), id) == 1,
          "a load brings an extent that does not wait for it", load.replica);
    }
    for (const Replica* dependent : load.dependents) {
      REQUIRE(std::count(dependent->awaited.begin(), dependent->awaited.end(), id) == 1,
              "a load is awaited by a replica that does not know it", dependent);
    }
  }

  for (const Replica& replica : replicas) {
    uint64_t unshared = 0;
    uint32_t shared = 0;
    for (const Slot& slot : replica.slots) {
      if (slot.held == nullptr) continue;
      if (slot.held->refs > 1) {
        ++shared;
        continue;
      }
      unshared += slot.held->bytes;
      REQUIRE(slot.held->referrers == reinterpret_cast<uintptr_t>(&replica),
              "an extent does not know the one that refers to it", &replica);
    }
    REQUIRE(unshared == replica.unshared && shared == replica.shared,
            "what a replica shares is miscounted", &replica);
  }

  size_t idle = 0;
  for (const auto& [digest, model] : models) {
    const auto it = model_counts.find(&model);
    REQUIRE(digest == model.digest, "a model is under another digest", nullptr);
    REQUIRE(model.replicas == (it == model_counts.end() ? 0 : it->second),
            "a model's replicas are miscounted", nullptr);
    for (size_t tier = 0; tier < tiers.size(); ++tier) {
      uint64_t highest = model.trusted_peaks[tier];
      for (const auto& [key, peak] : model.peaks) {
        if (key.first == tier) highest = std::max(highest, peak);
      }
      REQUIRE(highest == model.highest_peaks[tier], "a peak is misremembered", nullptr);
    }
    const bool in_use = model.replicas > 0 || model.AnyPinned();
    REQUIRE(in_use != model.idle.has_value(), "a model in use may be forgotten", nullptr);
    idle += model.idle.has_value();
  }
  REQUIRE(idle == idle_models.size() && idle <= kMaxRememberedModels, "idle models are miscounted",
          nullptr);
}

void Store::CheckInvariants() const { state_->CheckInvariants(); }

}  // namespace trims::store

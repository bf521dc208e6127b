#include "store/store.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "base/units.h"
#include "store/state.h"

namespace trims::store {

namespace {

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max()
                                                      : a + b;
}

// A plan may name an extent twice; the replica has it once.
std::vector<Slot> SlotsOf(const ModelPlan& plan) {
  std::vector<Slot> slots;
  slots.reserve(plan.extents.size());
  std::unordered_set<Digest> seen;
  for (const Extent& extent : plan.extents) {
    if (plan.extents.size() > 1 && !seen.insert(extent.key).second) continue;
    slots.push_back({.key = extent.key, .bytes = extent.bytes});
  }
  return slots;
}

uint64_t BytesOf(const std::vector<Slot>& slots) {
  uint64_t bytes = 0;
  for (const Slot& slot : slots) bytes = SaturatingAdd(bytes, slot.bytes);
  return bytes;
}

template <typename Id>
std::vector<Id> Sorted(const std::unordered_set<Id>& ids) {
  std::vector<Id> sorted(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace

bool Model::AnyPinned() const {
  return std::find(pinned.begin(), pinned.end(), true) != pinned.end();
}

Store::State::State(Config config_in)
    : config(std::move(config_in)),
      policy(MakePolicy(config.policy, config.random_seed)),
      tiers(config.tiers.size()),
      next_lease(std::max<uint64_t>(config.id_base, 1)),  // 0 means "none" everywhere.
      next_load(next_lease),
      next_generation(next_lease) {
  for (size_t i = 0; i < tiers.size(); ++i) tiers[i].ceiling = config.tiers[i].budget_bytes;
}

void Store::State::Say(Notify::Kind kind, const Replica& replica, std::string_view detail,
                       std::optional<uint32_t> uid) {
  out.emplace_back(Notify{.kind = kind,
                          .replica = replica.key,
                          .detail = std::string(detail),
                          .generation = replica.generation,
                          .uid = uid});
}

void Store::State::Reply(OpenId open, Status status) {
  out.emplace_back(ReplyError{.open = open, .status = std::move(status)});
}

// --- Asking ------------------------------------------------------------------

bool Store::State::MayKnow(const Model& model, uint32_t uid, bool is_admin) const {
  return model.is_public || is_admin || model.proved_uids.contains(uid);
}

void Store::State::Prove(Model& model, uint32_t uid) {
  if (model.proved_uids.contains(uid)) return;
  // Forgetting is safe: who is forgotten has to show the descriptor again.
  if (model.proved_uids.size() >= kMaxProvedUidsPerModel) model.proved_uids.clear();
  model.proved_uids.insert(uid);
  out.emplace_back(AccessProved{.model = model.digest, .uid = uid});
}

Status Store::State::CheckQuota(uint32_t uid, const Replica* replica, uint64_t bytes) const {
  const auto it = users.find(uid);
  if (it == users.end()) {
    if (config.leased_bytes_per_uid_max == 0 || bytes <= config.leased_bytes_per_uid_max) {
      return OkStatus();
    }
  } else {
    const User& user = it->second;
    const uint64_t count = uint64_t{user.leases} + user.waiting;
    if (config.leases_per_uid_max != 0 && count >= config.leases_per_uid_max) {
      return ResourceExhaustedError(
          "uid " + std::to_string(uid) + " has " + std::to_string(user.leases) + " leases and " +
          std::to_string(user.waiting) + " opens waiting; the quota leases_per_uid_max is " +
          std::to_string(config.leases_per_uid_max));
    }
    if (config.leased_bytes_per_uid_max == 0 ||
        (replica != nullptr && user.holds.contains(replica)) ||
        SaturatingAdd(user.bytes, bytes) <= config.leased_bytes_per_uid_max) {
      return OkStatus();
    }
  }
  const uint64_t held = it == users.end() ? 0 : it->second.bytes;
  return ResourceExhaustedError("uid " + std::to_string(uid) + " has leases on " +
                                FormatSize(held) + " and asks for " + FormatSize(bytes) +
                                " more; the quota leased_bytes_per_uid_max is " +
                                FormatSize(config.leased_bytes_per_uid_max));
}

void Store::State::Hold(uint32_t uid, const Replica& replica, bool is_waiting) {
  User& user = users[uid];
  ++(is_waiting ? user.waiting : user.leases);
  if (user.holds[&replica]++ == 0) user.bytes = SaturatingAdd(user.bytes, replica.bytes);
}

void Store::State::Unhold(uint32_t uid, const Replica& replica, bool was_waiting) {
  const auto it = users.find(uid);
  User& user = it->second;
  --(was_waiting ? user.waiting : user.leases);
  const auto hold = user.holds.find(&replica);
  if (--hold->second == 0) {
    user.holds.erase(hold);
    user.bytes -= std::min(user.bytes, replica.bytes);
    if (user.holds.empty()) users.erase(it);
  }
}

void Store::State::Grant(const Waiter& waiter, Replica& replica, bool loaded) {
  const LeaseId id = next_lease++;
  leases.Insert({.id = id,
                 .session = waiter.session,
                 .uid = waiter.uid,
                 .is_admin = waiter.is_admin,
                 .replica = &replica,
                 .since = now});
  sessions[waiter.session].leases.insert(id);
  Hold(waiter.uid, replica, /*is_waiting=*/false);
  ClearExpiry(replica);
  ++replica.leases;
  ++replica.opens;
  replica.ever_leased = true;
  replica.last_open = now;
  replica.priority = policy->OnAccess(CandidateOf(replica));
  Say(Notify::Kind::kLeased, replica, {}, waiter.uid);
  out.emplace_back(ReplyLease{.open = waiter.open,
                              .session = waiter.session,
                              .lease = id,
                              .replica = replica.key,
                              .generation = replica.generation,
                              .loaded = loaded});
}

void Store::State::Want(const Waiter& waiter, Replica& replica) {
  if (replica.state == ReplicaState::kReady) {
    if (waiter.kind == Waiter::Kind::kLoad) {
      out.emplace_back(ReplyReady{.open = waiter.open, .replica = replica.key});
    } else {
      Grant(waiter, replica, /*loaded=*/false);
    }
    return;
  }
  replica.discard = false;
  const auto it = replica.waiters.insert(replica.waiters.end(), waiter);
  waiting.emplace(waiter.open, std::make_pair(&replica, it));
  if (waiter.kind != Waiter::Kind::kLoad) {
    sessions[waiter.session].waiting.insert(waiter.open);
    Hold(waiter.uid, replica, /*is_waiting=*/true);
  }
}

void Store::State::WantPlanned(const Waiter& waiter, const ReplicaKey& key, const ModelPlan& plan,
                               bool proved_access,
                               const std::optional<std::optional<Duration>>& keep_alive) {
  TRIMS_CHECK(!waiting.contains(waiter.open));
  if (!ValidTier(key.tier)) {
    return Reply(waiter.open,
                 InvalidArgumentError("there is no tier number " + std::to_string(key.tier)));
  }
  const auto found = current.find(key);
  Replica* replica = found == current.end() ? nullptr : found->second;
  if (!plan.is_public && !proved_access && !waiter.is_admin) {
    const auto model = models.find(plan.model);
    if (model == models.end() || !model->second.proved_uids.contains(waiter.uid)) {
      return Reply(waiter.open, UnknownModelError(plan.model));
    }
  }
  std::vector<Slot> slots;
  if (replica == nullptr) slots = SlotsOf(plan);
  if (waiter.kind != Waiter::Kind::kLoad) {
    Status status =
        CheckQuota(waiter.uid, replica, replica != nullptr ? replica->bytes : BytesOf(slots));
    if (!status.ok()) return Reply(waiter.open, std::move(status));
  }

  Model& model = replica != nullptr ? *replica->model : ModelOf(plan.model);
  model.is_public = plan.is_public;
  if (proved_access) Prove(model, waiter.uid);
  const bool is_new = replica == nullptr;
  if (is_new) {
    replica = &NewReplica(key, plan, std::move(slots));
    replica->generation = next_generation++;
    Say(Notify::Kind::kLoading, *replica);
  }
  if (keep_alive.has_value()) replica->keep_alive = *keep_alive;
  if (!is_new) {
    Want(waiter, *replica);
    // A prefetch can change the countdown of a replica that nobody leases.
    if (keep_alive.has_value() && replica->state == ReplicaState::kReady) SettleExpiry(*replica);
    return;
  }
  Want(waiter, *replica);
  Advance(*replica);
}

void Store::State::On(const OpenAsked& event) {
  WantPlanned({.open = event.open,
               .kind = Waiter::Kind::kOpen,
               .session = event.session,
               .uid = event.uid,
               .is_admin = event.is_admin},
              {.model = event.plan.model, .tier = event.tier, .granularity = event.granularity},
              event.plan, event.proved_access, event.keep_alive);
}

void Store::State::On(const LoadAsked& event) {
  WantPlanned({.open = event.open, .kind = Waiter::Kind::kLoad, .is_admin = true},
              {.model = event.plan.model, .tier = event.tier, .granularity = event.granularity},
              event.plan, /*proved_access=*/false, event.keep_alive);
}

void Store::State::On(const OpenResidentAsked& event) {
  TRIMS_CHECK(!waiting.contains(event.open));
  Replica* replica = nullptr;
  const auto consider = [&](Granularity granularity) {
    const auto it =
        current.find({.model = event.model, .tier = event.tier, .granularity = granularity});
    if (it == current.end()) return;
    // A load that was told to stop is not going to make it resident.
    const Load* load = FindLoad(it->second->load);
    if (load != nullptr && load->cancelled) return;
    if (replica == nullptr ||
        (replica->state != ReplicaState::kReady && it->second->state == ReplicaState::kReady)) {
      replica = it->second;
    }
  };
  if (event.granularity.has_value()) {
    consider(*event.granularity);
  } else {
    for (Granularity granularity : {Granularity::kModel, Granularity::kSlab, Granularity::kLayer}) {
      consider(granularity);
    }
  }
  if (replica == nullptr ||
      !(event.proved_access || MayKnow(*replica->model, event.uid, event.is_admin))) {
    return Reply(event.open, UnknownModelError(event.model));
  }
  Status status = CheckQuota(event.uid, replica, replica->bytes);
  if (!status.ok()) return Reply(event.open, std::move(status));
  if (event.proved_access) Prove(*replica->model, event.uid);
  if (event.keep_alive.has_value()) replica->keep_alive = *event.keep_alive;
  Want({.open = event.open,
        .kind = Waiter::Kind::kResident,
        .session = event.session,
        .uid = event.uid,
        .is_admin = event.is_admin},
       *replica);
}

void Store::State::On(const ReattachAsked& event) {
  TRIMS_CHECK(!waiting.contains(event.open));
  const auto it = current.find(event.replica);
  Replica* replica = it == current.end() ? nullptr : it->second;
  if (replica != nullptr && replica->state != ReplicaState::kReady) {
    const Load* load = FindLoad(replica->load);
    if (load == nullptr || !load->adoption || load->cancelled) replica = nullptr;
  }
  // The digest alone decides: another generation of it has equal bytes.
  if (replica == nullptr || !(event.proved_access || MayKnow(*replica->model, event.uid,
                                                             event.is_admin || event.uid == 0))) {
    return Reply(event.open, UnknownModelError(event.replica.model));
  }
  Status status = CheckQuota(event.uid, replica, replica->bytes);
  if (!status.ok()) return Reply(event.open, std::move(status));
  Want({.open = event.open,
        .kind = Waiter::Kind::kReattach,
        .session = event.session,
        .uid = event.uid,
        .is_admin = event.is_admin},
       *replica);
}

Waiter Store::State::TakeWaiter(Replica& replica, std::list<Waiter>::iterator it) {
  const Waiter waiter = *it;
  replica.waiters.erase(it);
  waiting.erase(waiter.open);
  if (waiter.kind != Waiter::Kind::kLoad) {
    const auto session = sessions.find(waiter.session);
    session->second.waiting.erase(waiter.open);
    if (session->second.waiting.empty() && session->second.leases.empty()) {
      sessions.erase(session);
    }
    Unhold(waiter.uid, replica, /*was_waiting=*/true);
  }
  return waiter;
}

void Store::State::CancelWaiter(OpenId open, const Status& status) {
  const auto it = waiting.find(open);
  if (it == waiting.end()) return;  // Answered already.
  Replica& replica = *it->second.first;
  TakeWaiter(replica, it->second.second);
  Reply(open, status);
  StopIfUnwanted(replica);
}

void Store::State::On(const OpenCancelled& event) {
  CancelWaiter(event.open, CancelledError("the open was cancelled"));
}

void Store::State::EndLease(const Lease& lease) {
  const LeaseId id = lease.id;
  Replica& replica = *lease.replica;
  const auto session = sessions.find(lease.session);
  session->second.leases.erase(id);
  if (session->second.leases.empty() && session->second.waiting.empty()) sessions.erase(session);
  const uint32_t uid = lease.uid;
  Unhold(uid, replica, /*was_waiting=*/false);
  leases.Erase(id);  // `lease` ends here.
  --replica.leases;
  Say(Notify::Kind::kReleased, replica, {}, uid);
  if (replica.leases > 0) return;
  if (replica.state == ReplicaState::kReady) {
    replica.idle_since = now;
    SettleExpiry(replica);
  } else {
    Drop(replica, Notify::Kind::kEvicted, ReplicaStateName(replica.state));
  }
}

void Store::State::On(const LeaseClosed& event) {
  const Lease* const found = leases.Find(event.lease);
  // Closed before, or never was, or somebody else's: nothing to do, by any count.
  if (found == nullptr || found->session != event.session) return;
  const Lease& lease = *found;
  if (event.peak_internal_bytes > 0) {
    Model& model = *lease.replica->model;
    const TierIndex tier = lease.replica->key.tier;
    const auto raise = [&](uint64_t& peak) { peak = std::max(peak, event.peak_internal_bytes); };
    if (lease.is_admin) {
      raise(model.trusted_peaks[tier]);
    } else {
      if (model.peaks.size() >= kMaxPeaksPerModel) {
        model.peaks.clear();
        model.highest_peaks = model.trusted_peaks;
      }
      raise(model.peaks[{tier, lease.uid}]);
    }
    raise(model.highest_peaks[tier]);
  }
  EndLease(lease);
}

void Store::State::On(const SessionEnded& event) {
  const auto it = sessions.find(event.session);
  if (it == sessions.end()) return;
  // Copies, because the record goes with its last lease.
  const std::vector<OpenId> opens = Sorted(it->second.waiting);
  const std::vector<LeaseId> held = Sorted(it->second.leases);
  for (OpenId open : opens) CancelWaiter(open, CancelledError("the session ended"));
  for (LeaseId lease : held) EndLease(*leases.Find(lease));
}

// --- Loading -----------------------------------------------------------------

Load* Store::State::FindLoad(LoadId id) {
  if (id == 0) return nullptr;
  const auto it = loads.find(id);
  return it == loads.end() ? nullptr : &it->second;
}

Model& Store::State::ModelOf(const Digest& digest) {
  const auto [it, is_new] = models.try_emplace(digest);
  if (is_new) {
    it->second.digest = digest;
    it->second.pinned.resize(tiers.size());
    it->second.trusted_peaks.resize(tiers.size());
    it->second.highest_peaks.resize(tiers.size());
  }
  return it->second;
}

void Store::State::SettleModel(Model& model) {
  const bool in_use = model.replicas > 0 || model.AnyPinned();
  if (in_use) {
    if (model.idle.has_value()) {
      idle_models.erase(*model.idle);
      model.idle.reset();
    }
    return;
  }
  const bool empty = model.proved_uids.empty() && model.peaks.empty() &&
                     std::all_of(model.trusted_peaks.begin(), model.trusted_peaks.end(),
                                 [](uint64_t peak) { return peak == 0; });
  if (empty) {
    if (model.idle.has_value()) idle_models.erase(*model.idle);
    const Digest digest = model.digest;
    models.erase(digest);
    return;
  }
  if (!model.idle.has_value()) {
    model.idle = idle_models.insert(idle_models.end(), model.digest);
    if (idle_models.size() > kMaxRememberedModels) {
      models.erase(idle_models.front());
      idle_models.pop_front();
    }
  }
}

Replica& Store::State::NewReplica(const ReplicaKey& key, const ModelPlan& plan,
                                  std::vector<Slot> slots) {
  Replica& replica = replicas.emplace_back();
  replica.self = std::prev(replicas.end());
  replica.key = key;
  replica.serial = next_serial++;
  replica.model = &ModelOf(key.model);
  ++replica.model->replicas;
  SettleModel(*replica.model);
  replica.name = plan.name.empty() ? key.model.ToShort() : plan.name;
  replica.slots = std::move(slots);
  replica.bytes = BytesOf(replica.slots);
  replica.created_at = now;
  replica.planned_cost = plan.reload_cost.has_value();
  replica.reload_cost =
      plan.reload_cost.has_value()
          ? *plan.reload_cost
          : std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
                std::min(static_cast<double>(replica.bytes) / kAssumedLoadBytesPerSecond, 1e9)));
  current.emplace(key, &replica);
  return replica;
}

void Store::State::Attach(Replica& replica) {
  auto& extents = tiers[replica.key.tier].extents;
  for (Slot& slot : replica.slots) {
    if (slot.held != nullptr) continue;
    const auto it = extents.find(slot.key);
    if (it == extents.end() || !it->second->ready) continue;
    Refer(replica, slot, *it->second);
  }
}

void Store::State::Refer(Replica& replica, Slot& slot, HeldExtent& held) {
  slot.held = &held;
  ++held.refs;
  if (held.refs == 1) {
    replica.unshared += held.bytes;
  } else {
    ++replica.shared;
  }
  if (held.refs == 2) {
    Replica& other = *reinterpret_cast<Replica*>(held.referrers);
    other.unshared -= held.bytes;
    ++other.shared;
  }
  held.referrers += reinterpret_cast<uintptr_t>(&replica);
}

void Store::State::Await(Replica& replica, Load& load) {
  if (std::find(replica.awaited.begin(), replica.awaited.end(), load.id) != replica.awaited.end()) {
    return;
  }
  replica.awaited.push_back(load.id);
  load.dependents.push_back(&replica);
}

void Store::State::Unawait(Replica& replica) {
  for (LoadId id : replica.awaited) std::erase(loads.find(id)->second.dependents, &replica);
  replica.awaited.clear();
}

void Store::State::Advance(Replica& replica) {
  Unawait(replica);
  Attach(replica);
  TierUse& tier = tiers[replica.key.tier];
  std::vector<Slot*> missing;
  uint64_t missing_bytes = 0;
  bool in_flight = false;
  for (Slot& slot : replica.slots) {
    if (slot.held != nullptr) continue;
    const auto it = tier.extents.find(slot.key);
    if (it == tier.extents.end()) {
      missing.push_back(&slot);
      missing_bytes = SaturatingAdd(missing_bytes, slot.bytes);
      continue;
    }
    in_flight = true;
    for (LoadId id : it->second->loads) Await(replica, loads.find(id)->second);
  }
  if (missing.empty() && !in_flight) return BecomeReady(replica);
  replica.had_to_load = true;
  // From here on there is work to do, and without a waiter nobody to do it for.
  if (replica.waiters.empty()) {
    Unawait(replica);
    return Fail(replica, CancelledError("nobody waits for it"));
  }
  // What can never fit is refused before waiting for others.
  if (replica.bytes > config.tiers[replica.key.tier].budget_bytes) {
    Unawait(replica);
    return Refuse(replica, {.too_large = true,
                            .need = replica.bytes,
                            .missing = replica.bytes,
                            .free = FreeBytes(replica.key.tier)});
  }
  if (in_flight) return;
  if (const std::optional<Refusal> refusal = MakeRoom(replica, missing_bytes)) {
    return Refuse(replica, *refusal);
  }
  // Room is there and nothing can fail any more: reserve it and start.
  const LoadId id = next_load++;
  Load& load = loads[id];
  load.id = id;
  load.replica = &replica;
  load.started = now;
  load.bytes = missing_bytes;
  replica.load = id;
  StartLoad action{.load = id, .replica = replica.key, .missing = {}};
  action.missing.reserve(missing.size());
  for (Slot* slot : missing) {
    auto held = std::make_unique<HeldExtent>();
    held->key = slot->key;
    held->tier = replica.key.tier;
    held->bytes = slot->bytes;
    held->loads.push_back(id);
    Refer(replica, *slot, *held);
    load.extents.push_back(held.get());
    action.missing.push_back({.key = slot->key, .bytes = slot->bytes});
    tier.extents.emplace(slot->key, std::move(held));
  }
  tier.used += missing_bytes;
  out.emplace_back(std::move(action));
  // Who waits for another load already may need what this one brings, too.
  for (Replica& other : replicas) {
    if (other.awaited.empty() || other.key.tier != replica.key.tier) continue;
    const bool needs = std::any_of(other.slots.begin(), other.slots.end(), [&](const Slot& slot) {
      if (slot.held != nullptr) return false;
      const auto it = tier.extents.find(slot.key);
      if (it == tier.extents.end()) return false;
      const std::vector<LoadId>& bringing = it->second->loads;
      return std::find(bringing.begin(), bringing.end(), id) != bringing.end();
    });
    if (needs) Await(other, load);
  }
}

void Store::State::BecomeReady(Replica& replica) {
  replica.state = ReplicaState::kReady;
  replica.load_number = next_load_number++;
  replica.opens = 0;
  replica.loaded_at = now;
  replica.last_open = now;
  replica.idle_since = now;
  replica.priority = policy->OnAccess(CandidateOf(replica));
  // One that nobody waits for was adopted or given up: it had its leases.
  if (replica.waiters.empty()) replica.ever_leased = true;
  Say(Notify::Kind::kReady, replica);
  while (!replica.waiters.empty()) {
    const Waiter waiter = TakeWaiter(replica, replica.waiters.begin());
    if (waiter.kind == Waiter::Kind::kLoad) {
      out.emplace_back(ReplyReady{.open = waiter.open, .replica = replica.key});
    } else {
      Grant(waiter, replica, replica.had_to_load);
    }
  }
  if (replica.leases == 0) SettleExpiry(replica);
}

void Store::State::Fail(Replica& replica, const Status& status) {
  Say(Notify::Kind::kFailed, replica, status.ToString());
  while (!replica.waiters.empty()) {
    Reply(TakeWaiter(replica, replica.waiters.begin()).open, status);
  }
  Erase(replica);
}

void Store::State::Refuse(Replica& replica, const Refusal& refusal) {
  Say(Notify::Kind::kFailed, replica, "RESOURCE_EXHAUSTED");
  while (!replica.waiters.empty()) {
    const Waiter waiter = TakeWaiter(replica, replica.waiters.begin());
    // Each asker is told of those holders that it may know of.
    out.emplace_back(ReplyError{.open = waiter.open,
                                .status = Describe(refusal, replica, waiter),
                                .need_bytes = refusal.need,
                                .free_bytes = refusal.free,
                                .evictable_bytes = refusal.evictable});
  }
  Erase(replica);
}

void Store::State::StopIfUnwanted(Replica& replica) {
  if (replica.state != ReplicaState::kLoading || !replica.waiters.empty()) return;
  if (Load* load = FindLoad(replica.load)) {
    // An adoption is nobody's request; its bytes are there already.
    if (load->adoption || load->cancelled || !load->dependents.empty()) return;
    load->cancelled = true;
    out.emplace_back(CancelLoad{.load = load->id});
    return;
  }
  // It waits for others' loads, which nobody else may want either.
  const std::vector<LoadId> awaited = replica.awaited;
  Unawait(replica);
  Fail(replica, CancelledError("nobody waits for it"));
  for (LoadId id : awaited) StopIfUnwanted(*loads.find(id)->second.replica);
}

void Store::State::On(const LoadFinished& event) {
  auto node = loads.extract(event.load);
  if (node.empty()) return;
  Load& load = node.mapped();
  for (HeldExtent* held : load.extents) {
    std::erase(held->loads, load.id);
    held->ready = held->present = true;
  }
  Replica& replica = *load.replica;
  replica.load = 0;
  if (load.adoption) {
    replica.grace_until = now + config.adoption_grace;
  } else if (!replica.planned_cost && load.bytes > 0) {
    // The measured time, scaled up when only a part had to be loaded.
    const double scale = static_cast<double>(replica.bytes) / static_cast<double>(load.bytes);
    replica.reload_cost = std::chrono::duration_cast<Duration>(
        std::min(std::chrono::duration<double>(now - load.started) * scale,
                 std::chrono::duration<double>(1e9)));
  }
  // Those that share what was loaded refer to it before anything can drop it.
  for (Replica* dependent : load.dependents) {
    std::erase(dependent->awaited, load.id);
    Attach(*dependent);
  }
  if (replica.discard && replica.waiters.empty()) {
    Drop(replica, Notify::Kind::kEvicted, "evicted while it was loading");
  } else {
    Advance(replica);
  }
  for (Replica* dependent : load.dependents) Advance(*dependent);
}

void Store::State::On(const LoadFailed& event) {
  auto node = loads.extract(event.load);
  if (node.empty()) return;
  Load& load = node.mapped();
  Replica& replica = *load.replica;
  replica.load = 0;
  for (Replica* dependent : load.dependents) std::erase(dependent->awaited, load.id);
  std::vector<Digest> released;
  for (Slot& slot : replica.slots) {
    if (slot.held == nullptr || std::find(slot.held->loads.begin(), slot.held->loads.end(),
                                          load.id) == slot.held->loads.end()) {
      continue;
    }
    std::erase(slot.held->loads, load.id);
    Deref(replica, slot, &released);
  }
  if (load.adoption) {
    // Extents of it that another adoption has verified meanwhile stay with that one.
    for (Slot& slot : replica.slots) {
      if (slot.held != nullptr) Deref(replica, slot, &released);
    }
  }
  EmitRelease(replica.key.tier, std::move(released));

  const Status status =
      event.status.ok() ? InternalError("the load failed without saying why") : event.status;
  if (load.adoption) {
    // What was resident is lost. Who asked for the model goes on with a load from
    // its source; who asked for what was resident gets the same as if it were not.
    for (auto it = replica.waiters.begin(); it != replica.waiters.end();) {
      const auto next = std::next(it);
      if (it->kind == Waiter::Kind::kReattach || it->kind == Waiter::Kind::kResident) {
        Reply(TakeWaiter(replica, it).open, UnknownModelError(replica.key.model));
      }
      it = next;
    }
  }
  if ((load.adoption || load.cancelled) && !replica.waiters.empty()) {
    // They came after the load was told to stop, or did not ask for this copy.
    if (load.adoption) replica.generation = next_generation++;
    Advance(replica);
  } else if (event.free_bytes.has_value() && !replica.waiters.empty()) {
    RetryOrRefuse(replica, load.bytes, *event.free_bytes, status);
  } else {
    Fail(replica, status);
  }
  for (Replica* dependent : load.dependents) Advance(*dependent);
}

void Store::State::On(const AdoptionStarted& event) {
  TRIMS_CHECK(event.load != 0 && !loads.contains(event.load));
  next_load = std::max(next_load, event.load + 1);
  if (!ValidTier(event.tier)) return;
  TierUse& tier = tiers[event.tier];
  const ReplicaKey key{
      .model = event.plan.model, .tier = event.tier, .granularity = event.granularity};
  std::vector<Slot> slots = SlotsOf(event.plan);
  std::string_view refusal;
  uint64_t new_bytes = 0;
  if (current.contains(key)) refusal = "it is loaded or loading already";
  for (const Slot& slot : slots) {
    const auto it = tier.extents.find(slot.key);
    if (it == tier.extents.end()) {
      new_bytes = SaturatingAdd(new_bytes, slot.bytes);
    } else if (!it->second->present) {
      refusal = "an extent of it is being loaded already";
    }
  }
  if (refusal.empty() && new_bytes > FreeBytes(event.tier)) {
    refusal = "it does not fit the budget any more";
  }
  if (!refusal.empty()) {
    // The end of this load will be ignored; what only it had goes now.
    std::vector<Digest> released;
    for (const Slot& slot : slots) {
      if (!tier.extents.contains(slot.key)) released.push_back(slot.key);
    }
    out.emplace_back(Notify{.kind = Notify::Kind::kFailed,
                            .replica = key,
                            .detail = "not adopted: " + std::string(refusal),
                            .generation = event.generation});
    EmitRelease(event.tier, std::move(released));
    return;
  }

  Model& model = ModelOf(key.model);
  model.is_public = event.plan.is_public;
  if (event.pinned) SetPinned(model, event.tier, true);
  for (uint32_t uid : event.proved_uids) {
    if (model.proved_uids.size() < kMaxProvedUidsPerModel) model.proved_uids.insert(uid);
  }
  Replica& replica = NewReplica(key, event.plan, std::move(slots));
  replica.generation = event.generation != 0 ? event.generation : next_generation;
  next_generation = std::max(next_generation, replica.generation + 1);
  replica.had_to_load = true;
  Load& load = loads[event.load];
  load.id = event.load;
  load.replica = &replica;
  load.adoption = true;
  load.started = now;
  replica.load = load.id;
  for (Slot& slot : replica.slots) {
    std::unique_ptr<HeldExtent>& held = tier.extents[slot.key];
    if (held == nullptr) {
      held = std::make_unique<HeldExtent>();
      held->key = slot.key;
      held->tier = event.tier;
      held->bytes = slot.bytes;
      held->present = true;
      tier.used += slot.bytes;
    }
    Refer(replica, slot, *held);
    if (!held->ready) {
      held->loads.push_back(load.id);
      load.extents.push_back(held.get());
    }
  }
  Say(Notify::Kind::kLoading, replica, "adopted");
}

// --- Leaving -----------------------------------------------------------------

uint64_t Store::State::FreeBytes(TierIndex tier) const {
  const uint64_t budget = config.tiers[tier].budget_bytes;
  return budget - std::min(budget, tiers[tier].used);
}

void Store::State::Deref(Replica& replica, Slot& slot, std::vector<Digest>* released) {
  HeldExtent* const held = std::exchange(slot.held, nullptr);
  held->referrers -= reinterpret_cast<uintptr_t>(&replica);
  if (--held->refs > 0) {
    --replica.shared;
    if (held->refs == 1) {
      Replica& other = *reinterpret_cast<Replica*>(held->referrers);
      other.unshared += held->bytes;
      --other.shared;
    }
    return;
  }
  replica.unshared -= held->bytes;
  TierUse& tier = tiers[held->tier];
  tier.used -= held->bytes;
  if (held->condemned) {
    tier.condemned.erase(held);  // Its descriptor was let go when it was condemned.
    return;
  }
  const Digest key = held->key;
  if (held->present) released->push_back(key);
  tier.extents.erase(key);
}

void Store::State::EmitRelease(TierIndex tier, std::vector<Digest> released) {
  if (released.empty()) return;
  out.emplace_back(ReleaseExtents{.tier = tier, .extents = std::move(released)});
}

void Store::State::MakeNotCurrent(Replica& replica) {
  const auto it = current.find(replica.key);
  if (it != current.end() && it->second == &replica) current.erase(it);
}

void Store::State::Erase(Replica& replica) {
  TRIMS_CHECK(replica.leases == 0 && replica.waiters.empty() && replica.load == 0 &&
              replica.awaited.empty());
  ClearExpiry(replica);
  MakeNotCurrent(replica);
  std::vector<Digest> released;
  for (Slot& slot : replica.slots) {
    if (slot.held != nullptr) Deref(replica, slot, &released);
  }
  EmitRelease(replica.key.tier, std::move(released));
  Model& model = *replica.model;
  --model.replicas;
  replicas.erase(replica.self);
  SettleModel(model);
}

void Store::State::Drop(Replica& replica, Notify::Kind kind, std::string_view detail) {
  Say(kind, replica, detail);
  Erase(replica);
}

std::optional<Duration> Store::State::IdleTime(const Replica& replica) const {
  const bool volatile_tier =
      IsHost(replica.key.tier) ? !config.persist_host : config.persist_only_host;
  if (policy->EvictsAtZeroLeases() || volatile_tier) return Duration::zero();
  return replica.keep_alive.has_value() ? *replica.keep_alive : config.keep_alive;
}

std::string_view Store::State::ExpiryReason(const Replica& replica) const {
  if (policy->EvictsAtZeroLeases()) return "policy eager";
  if (!config.persist_host && IsHost(replica.key.tier)) return "host copies are not kept";
  if (config.persist_only_host && !IsHost(replica.key.tier)) return "only host copies are kept";
  return "keep_alive ended";
}

void Store::State::ClearExpiry(Replica& replica) {
  if (!replica.expires_at.has_value()) return;
  expiry.erase({*replica.expires_at, replica.serial});
  replica.expires_at.reset();
}

void Store::State::SettleExpiry(Replica& replica) {
  ClearExpiry(replica);
  if (replica.state != ReplicaState::kReady || replica.leases > 0 || Pinned(replica)) return;
  const std::optional<Duration> idle = IdleTime(replica);
  if (!idle.has_value()) return;
  // "Drop at the last close" does not mean a prefetch that still waits for its first open.
  if (*idle <= Duration::zero() && !replica.ever_leased) return;
  if (*idle > Time::max() - replica.idle_since) return;
  const Time due = std::max(replica.grace_until, replica.idle_since + *idle);
  if (due <= now) return Drop(replica, Notify::Kind::kExpired, ExpiryReason(replica));
  replica.expires_at = due;
  expiry.emplace(std::make_pair(due, replica.serial), &replica);
}

void Store::State::On(const Tick&) {
  while (!expiry.empty() && expiry.begin()->first.first <= now) {
    Replica& replica = *expiry.begin()->second;
    Drop(replica, Notify::Kind::kExpired, ExpiryReason(replica));
  }
}

// --- Administration ----------------------------------------------------------

uint32_t Store::State::SetPinned(Model& model, TierIndex tier, bool pinned) {
  const bool changed = model.pinned[tier] != pinned;
  model.pinned[tier] = pinned;
  uint32_t present = 0;
  for (Granularity granularity : {Granularity::kModel, Granularity::kSlab, Granularity::kLayer}) {
    const auto it = current.find({.model = model.digest, .tier = tier, .granularity = granularity});
    if (it == current.end()) continue;
    Replica& replica = *it->second;
    ++present;
    if (!changed) continue;
    Say(pinned ? Notify::Kind::kPinned : Notify::Kind::kUnpinned, replica);
    if (!pinned) replica.idle_since = now;  // The countdown starts anew.
    SettleExpiry(replica);
  }
  return present;
}

void Store::State::On(const PinAsked& event) {
  PinResult result{.model = event.model, .tier = event.tier};
  if (ValidTier(event.tier)) {
    Model& model = ModelOf(event.model);
    ++model.replicas;  // Keeps the record while its replicas may go.
    result.pinned = event.pinned;
    result.changed = model.pinned[event.tier] != event.pinned;
    result.replicas = SetPinned(model, event.tier, event.pinned);
    --model.replicas;
    SettleModel(model);
  }
  out.emplace_back(result);
}

void Store::State::On(const VisibilityChanged& event) {
  if (const auto it = models.find(event.model); it != models.end())
    it->second.is_public = event.is_public;
}

void Store::State::On(const EvictAsked& event) {
  EvictResult result{.model = event.model};
  std::vector<Replica*> found;
  for (Replica& replica : replicas) {
    if (replica.key.model != event.model) continue;
    if (event.tier.has_value() && replica.key.tier != *event.tier) continue;
    found.push_back(&replica);
  }
  result.found = static_cast<uint32_t>(found.size());
  std::vector<const Replica*> kept;
  for (Replica* replica : found) {
    const uint64_t used = tiers[replica->key.tier].used;
    const TierIndex tier = replica->key.tier;
    Load* const load = FindLoad(replica->load);
    if (IsEvictable(*replica) ||
        (event.force && replica->state == ReplicaState::kReady && replica->leases == 0)) {
      Drop(*replica, Notify::Kind::kEvicted, "asked");
      result.freed_bytes += used - tiers[tier].used;
      ++result.evicted;
    } else if (event.force && replica->state == ReplicaState::kReady) {
      replica->state = ReplicaState::kDraining;
      MakeNotCurrent(*replica);
      Say(Notify::Kind::kDraining, *replica, "asked");
      ++result.draining;
    } else if (replica->state == ReplicaState::kLoading && load != nullptr && load->cancelled &&
               replica->waiters.empty()) {
      // Nobody waits for it any more: it goes as soon as its loader has noticed.
      ++result.cancelled;
      replica->discard = true;
    } else if (event.force && replica->state == ReplicaState::kLoading) {
      ++result.cancelled;
      while (!replica->waiters.empty()) {
        Reply(TakeWaiter(*replica, replica->waiters.begin()).open,
              AbortedError("an administrator evicted " + replica->name +
                           " while it was loading; open it again to load it"));
      }
      replica->discard = true;
      if (load == nullptr || !load->adoption) {
        StopIfUnwanted(*replica);
      } else if (!load->cancelled && load->dependents.empty()) {
        load->cancelled = true;
        out.emplace_back(CancelLoad{.load = load->id});
      }
    } else {
      kept.push_back(replica);
    }
  }
  result.kept = WhyKept(kept, now);
  out.emplace_back(std::move(result));
}

void Store::State::On(const QuarantineAsked& event) {
  const auto is_checked = [&](const Replica& replica) {
    return replica.key == event.replica &&
           (replica.state == ReplicaState::kReady || replica.state == ReplicaState::kDraining) &&
           (event.generation == 0 || replica.generation == event.generation);
  };
  // The current one if there is one, else the latest that still drains.
  Replica* checked = nullptr;
  for (Replica& replica : replicas) {
    if (is_checked(replica)) checked = &replica;
  }
  if (checked == nullptr) return;  // Gone meanwhile, with its bytes.
  TierUse& tier = tiers[checked->key.tier];
  std::vector<Digest> condemned;
  for (const Slot& slot : checked->slots) {
    if (slot.held->condemned) continue;
    if (!event.extents.empty() &&
        std::find(event.extents.begin(), event.extents.end(), slot.key) == event.extents.end()) {
      continue;
    }
    slot.held->condemned = true;
    slot.held->ready = slot.held->present = false;
    auto node = tier.extents.extract(slot.key);
    tier.condemned.emplace(slot.held, std::move(node.mapped()));
    condemned.push_back(slot.key);
  }
  if (condemned.empty()) return;

  // Whoever refers to those bytes has wrong bytes too.
  std::vector<Replica*> unleased;
  std::vector<Digest> released;
  for (Replica& replica : replicas) {
    bool affected = false;
    for (Slot& slot : replica.slots) {
      if (slot.held == nullptr || !slot.held->condemned) continue;
      affected = true;
      if (replica.state != ReplicaState::kLoading) continue;
      // Nobody has seen it yet: it takes a good copy instead, see Advance.
      if (Load* load = FindLoad(replica.load)) std::erase(load->extents, slot.held);
      std::erase(slot.held->loads, replica.load);
      Deref(replica, slot, &released);
    }
    if (!affected ||
        (replica.state != ReplicaState::kReady && replica.state != ReplicaState::kDraining)) {
      continue;
    }
    replica.state = ReplicaState::kQuarantined;
    ClearExpiry(replica);
    MakeNotCurrent(replica);
    Say(Notify::Kind::kQuarantined, replica, event.reason);
    if (replica.leases == 0) unleased.push_back(&replica);
  }
  EmitRelease(event.replica.tier, std::move(condemned));
  for (Replica* replica : unleased) Erase(*replica);
}

void Store::State::On(const ConfigChanged& event) {
  TRIMS_CHECK(event.config.tiers.size() == config.tiers.size());
  for (size_t i = 0; i < tiers.size(); ++i) {
    TRIMS_CHECK(event.config.tiers[i].name == config.tiers[i].name);
  }
  config = event.config;
  if (config.policy != policy->kind()) {
    policy = MakePolicy(config.policy, config.random_seed);
    for (Replica& replica : replicas) replica.priority = policy->OnAccess(CandidateOf(replica));
  }
  for (size_t i = 0; i < tiers.size(); ++i) {
    // What can not be evicted stays until it can; see TierUse::ceiling.
    ShrinkToBudget(static_cast<TierIndex>(i));
  }
  for (auto it = replicas.begin(); it != replicas.end();) {
    Replica& replica = *it++;  // It may be dropped.
    SettleExpiry(replica);
  }
}

// --- Store -------------------------------------------------------------------

Store::Store(Config config) : state_(std::make_unique<State>(std::move(config))) {}
Store::~Store() = default;

std::vector<Action> Store::Apply(const Event& event, Time now) {
  State& state = *state_;
  TRIMS_CHECK(now >= state.now);
  state.now = now;
  std::vector<Action> out;
  out.reserve(4);  // What an open of a resident model needs.
  state.out = std::move(out);
  std::visit([&state](const auto& one) { state.On(one); }, event);
  for (size_t i = 0; i < state.tiers.size(); ++i) {
    TierUse& tier = state.tiers[i];
    tier.ceiling = std::max(state.config.tiers[i].budget_bytes, std::min(tier.ceiling, tier.used));
  }
  return std::move(state.out);
}

LoadId Store::NewLoadId() { return state_->next_load++; }

bool Store::IsPinned(const Digest& model, TierIndex tier) const {
  const auto it = state_->models.find(model);
  return it != state_->models.end() && state_->ValidTier(tier) && it->second.pinned[tier];
}

std::optional<bool> Store::IsPublic(const Digest& model) const {
  const auto it = state_->models.find(model);
  if (it == state_->models.end()) return std::nullopt;
  return it->second.is_public;
}

bool Store::HasLease(SessionId session, LeaseId lease) const {
  const Lease* const found = state_->leases.Find(lease);
  return found != nullptr && found->session == session;
}

const Config& Store::config() const { return state_->config; }

std::optional<Time> Store::NextDeadline() const {
  if (state_->expiry.empty()) return std::nullopt;
  return state_->expiry.begin()->first.first;
}

}  // namespace trims::store

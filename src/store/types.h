// The store's vocabulary: what happens to it (events), what it asks for
// (actions), and what can be asked of it (views). Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "base/status.h"

namespace trims::store {

using SessionId = uint64_t;
using LeaseId =
    uint64_t;  // Never reused, not even by another worker of the same daemon (see Config::id_base).
using OpenId = uint64_t;  // Chosen by the caller, one per open that waits for its answer.
using LoadId = uint64_t;
using TierIndex = uint32_t;  // Index into Config::tiers.

enum class Granularity : uint8_t { kModel = 1, kSlab = 2, kLayer = 3 };  // As in lease.fbs.

// One allocation, by the content it holds. Equal keys hold equal bytes.
struct Extent {
  Digest key;
  uint64_t bytes = 0;  // As allocated.
  friend bool operator==(const Extent&, const Extent&) = default;
};

// A model's bytes in one tier at one granularity.
struct ReplicaKey {
  Digest model;
  TierIndex tier = 0;
  Granularity granularity = Granularity::kModel;
  friend auto operator<=>(const ReplicaKey&, const ReplicaKey&) = default;
};

// What an open or a prefetch needs to know about a model.
struct ModelPlan {
  Digest model;
  std::string name;  // For messages and listings.
  std::vector<Extent>
      extents;  // At the granularity asked for; keys may repeat (a tensor stored twice).
  uint64_t weight_bytes = 0;  // Sum of the tensors, without padding.
  // Reachable by a catalogue name, hence by everybody. Otherwise only uids that
  // have shown an open descriptor of the file (or 0 and the daemon's own) may have it.
  bool is_public = true;
  std::optional<Duration> reload_cost;  // Estimated time to load it again, for gdsf.
};

enum class ReplicaState : uint8_t { kAbsent, kLoading, kReady, kDraining, kQuarantined };
std::string_view ReplicaStateName(ReplicaState state);  // "absent", "loading", …

enum class PolicyKind : uint8_t { kNever, kLru, kFifo, kLcu, kRandom, kFlush, kEager, kGdsf };
std::string_view PolicyName(PolicyKind kind);
// Case-insensitive; "all" is another name of "flush". INVALID_ARGUMENT lists the names.
Result<PolicyKind> ParsePolicy(std::string_view name);

// The one NOT_FOUND for a model that does not exist and for one that the asker
// may not know of. `reference` is what the asker wrote. The store, which sees
// digests only, writes "@sha256:…".
Status UnknownModelError(std::string_view reference);
Status UnknownModelError(const Digest& model);

enum class TierKind : uint8_t { kHost, kDevice };

struct TierConfig {
  std::string name;           // "host", "gpu:<uuid>".
  uint64_t budget_bytes = 0;  // What replicas of this tier may take together.
  TierKind kind = TierKind::kHost;
};

struct Config {
  std::vector<TierConfig> tiers;
  PolicyKind policy = PolicyKind::kLru;
  double estimation_rate = 1.0;  // Multiplies the bytes to load in the admission estimate.
  bool estimate_with_internal_memory = true;  // Adds the model's measured peak beside its weights.
  // A replica that no lease holds is dropped this long after its last lease
  // ended; nullopt: kept until evicted.
  std::optional<Duration> keep_alive;
  // Host replicas are kept when no lease holds them (UPRD_PERSIST_CPU).
  bool persist_host = true;
  // All others are not (UPRD_PERSIST_ONLY_CPU).
  bool persist_only_host = false;
  uint32_t leases_per_uid_max = 65536;    // Waiting opens count. 0: no limit.
  uint64_t leased_bytes_per_uid_max = 0;  // Each replica once, however many leases. 0: no limit.
  // Adopted replicas are not evicted this long, so that clients can re-register.
  Duration adoption_grace = std::chrono::seconds(5);
  uint64_t id_base = 1;      // First lease, load and generation number.
  uint64_t random_seed = 1;  // For policy random.
};

// --- Events ------------------------------------------------------------------

struct OpenAsked {
  OpenId open = 0;
  SessionId session = 0;
  uint32_t uid = 0;
  bool is_admin = false;  // uid 0 or the daemon's own.
  TierIndex tier = 0;
  Granularity granularity = Granularity::kModel;
  ModelPlan plan;
  bool proved_access = false;  // Opened through a descriptor of the file.
  std::optional<std::optional<Duration>>
      keep_alive;  // Overrides Config::keep_alive for this replica.
};
// Open of something already resident, by digest alone: never starts a load.
struct OpenResidentAsked {
  OpenId open = 0;
  SessionId session = 0;
  uint32_t uid = 0;
  bool is_admin = false;
  TierIndex tier = 0;
  std::optional<Granularity> granularity;  // nullopt: whichever is resident, model first.
  Digest model;
  bool proved_access = false;  // As in OpenAsked; for a warm open that needs no plan.
  std::optional<std::optional<Duration>> keep_alive;
};
struct OpenCancelled {
  OpenId open = 0;
};  // Also when its deadline passed.
struct LeaseClosed {
  SessionId session = 0;
  LeaseId lease = 0;
  uint64_t peak_internal_bytes = 0;  // 0: not measured.
};
struct ReattachAsked {
  OpenId open = 0;
  SessionId session = 0;
  uint32_t uid = 0;
  ReplicaKey replica;
  uint64_t generation = 0;
  bool is_admin = false;  // uid 0 counts as one here in any case.
  bool proved_access =
      false;  // Showed a descriptor of the file or of one of the replica's extents.
};
struct SessionEnded {
  SessionId session = 0;
};
struct LoadFinished {
  LoadId load = 0;
};
struct LoadFailed {
  LoadId load = 0;
  Status status;
  // Memory ran out below the budget, and so much was free: others use the tier's memory
  // too. More is evicted and the load started again, or the asker is told the numbers.
  std::optional<uint64_t> free_bytes;
};
// The keeper handed these extents to a new worker; they are being re-verified.
// LoadFinished or LoadFailed with this load number follows. `plan.extents` lists all extents.
struct AdoptionStarted {
  LoadId load = 0;  // From Store::NewLoadId().
  TierIndex tier = 0;
  Granularity granularity = Granularity::kModel;
  ModelPlan plan;
  uint64_t generation = 0;  // Kept from before; 0: a new one.
  bool pinned = false;
  std::vector<uint32_t> proved_uids;  // ReplicaView::proved_uids of before.
};
// Admin's prefetch. Answered by ReplyReady or ReplyError with `open`; takes no lease.
struct LoadAsked {
  OpenId open = 0;
  TierIndex tier = 0;
  Granularity granularity = Granularity::kModel;
  ModelPlan plan;
  std::optional<std::optional<Duration>> keep_alive;
};
// A name leads to the model now, or none does any more: from here on everybody, or only who has
// proved access, may open it. Models that nothing is remembered of stay unknown.
struct VisibilityChanged {
  Digest model;
  bool is_public = false;
};
struct PinAsked {
  Digest model;
  TierIndex tier = 0;
  bool pinned = true;
};  // All its replicas in that tier, also future ones.
struct EvictAsked {
  Digest model;
  std::optional<TierIndex> tier;  // nullopt: everywhere.
  bool force = false;  // Leased ones become draining: no new lease, freed at the last close.
};
// A check found wrong bytes.
struct QuarantineAsked {
  ReplicaKey replica;
  std::string reason;
  uint64_t generation = 0;      // The one that was checked; 0: the current one.
  std::vector<Digest> extents;  // Where the wrong bytes are; empty: anywhere in it.
};
struct ConfigChanged {
  Config config;
};               // Tiers keep their number and names.
struct Tick {};  // Expiry of keep_alive.

using Event =
    std::variant<OpenAsked, OpenResidentAsked, OpenCancelled, LeaseClosed, ReattachAsked,
                 SessionEnded, LoadFinished, LoadFailed, AdoptionStarted, LoadAsked, PinAsked,
                 EvictAsked, VisibilityChanged, QuarantineAsked, ConfigChanged, Tick>;

// --- Actions -----------------------------------------------------------------

// Bring `missing` extents into the tier; then LoadFinished or LoadFailed. Extents
// of the replica that are resident already are not in the list.
struct StartLoad {
  LoadId load = 0;
  ReplicaKey replica;
  std::vector<Extent> missing;
};
// Nobody waits any more. LoadFailed (CANCELLED) or LoadFinished still follows.
struct CancelLoad {
  LoadId load = 0;
};
// Nobody will be lent these any more: drop the descriptors. Also said of
// quarantined extents that clients still have mapped: their memory lives, and is
// counted, until the last lease ends, but the key is free for a good copy.
struct ReleaseExtents {
  TierIndex tier = 0;
  std::vector<Digest> extents;
};
struct ReplyLease {
  OpenId open = 0;
  SessionId session = 0;
  LeaseId lease = 0;
  ReplicaKey replica;
  uint64_t generation = 0;
  bool loaded = false;  // This open caused or joined a load.
};
// A uid that was not remembered to may open the model now. Comes before the answer to its open.
struct AccessProved {
  Digest model;
  uint32_t uid = 0;
};
struct ReplyReady {
  OpenId open = 0;
  ReplicaKey replica;
};  // To LoadAsked.
struct ReplyError {
  OpenId open = 0;
  Status status;
  // With RESOURCE_EXHAUSTED from admission.
  uint64_t need_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t evictable_bytes = 0;
};
struct Notify {  // For watchers, logs and metrics.
  enum class Kind : uint8_t {
    kLoading,
    kReady,
    kFailed,
    kEvicted,
    kExpired,
    kQuarantined,
    kLeased,
    kReleased,
    kPinned,
    kUnpinned,
    kDraining
  };
  Kind kind{};
  ReplicaKey replica;
  std::string detail;  // Policy that evicted, reason of a failure.
  uint64_t generation = 0;
  std::optional<uint32_t> uid;  // Whose lease, with kLeased and kReleased.
};
// Who holds a replica: for messages to administrators.
struct Holder {
  LeaseId lease = 0;
  SessionId session = 0;
  uint32_t uid = 0;
};
// The answer to an EvictAsked: always exactly one, the last action.
struct EvictResult {
  struct Kept {
    ReplicaKey replica;
    uint64_t generation = 0;
    std::string name;
    ReplicaState state{};
    std::string reason;  // "3 leases, pinned", "loading", "draining, 1 lease".
    uint32_t leases = 0;
    std::vector<Holder> holders;  // At most kMaxHoldersReported of them.
  };
  Digest model;
  uint32_t found = 0;  // Replicas that the request was about; 0: not resident.
  uint32_t evicted = 0;
  uint32_t draining = 0;     // Will be freed when their leases end (force).
  uint32_t cancelled = 0;    // Loads that were told to stop (force).
  uint64_t freed_bytes = 0;  // Now; shared extents stay.
  std::vector<Kept> kept;    // Not evicted, and why.
};
inline constexpr size_t kMaxHoldersReported = 64;
// The answer to a PinAsked: always exactly one.
struct PinResult {
  Digest model;
  TierIndex tier = 0;
  bool pinned = false;  // As it is now.
  bool changed = false;
  uint32_t replicas = 0;  // Present ones that it applies to; 0: future ones only.
};

using Action = std::variant<StartLoad, CancelLoad, ReleaseExtents, ReplyLease, ReplyReady,
                            ReplyError, AccessProved, Notify, EvictResult, PinResult>;

// --- Views -------------------------------------------------------------------

struct LeaseView {
  LeaseId lease = 0;
  SessionId session = 0;
  uint32_t uid = 0;
  ReplicaKey replica;
  Time since{};
  uint64_t generation = 0;
};
// What takes constant time to say of a replica, however many extents it has.
struct ReplicaSummary {
  ReplicaKey replica;
  ReplicaState state{};
  uint64_t generation = 0;
  uint64_t bytes = 0;           // Of all its extents.
  uint64_t unshared_bytes = 0;  // What evicting it would free.
  uint32_t extent_count = 0;
  uint32_t leases = 0;
  bool pinned = false;
  uint64_t opens = 0;  // Since it was loaded.
  uint64_t peak_internal_bytes = 0;
  Time loaded_at{};
  Time last_open{};
  std::optional<Time> expires_at;  // keep_alive running.
  uint32_t waiting = 0;            // Opens and prefetches that wait for the load.
};
struct ReplicaView : ReplicaSummary {
  std::string name;
  std::vector<Extent> extents;
  bool is_public = true;
  std::vector<uint32_t> proved_uids;  // Sorted; for the ledger that a next worker adopts from.
};
struct TierView {
  std::string name;
  uint64_t budget_bytes = 0;
  uint64_t used_bytes = 0;  // Unique extents, loading ones counted.
  uint64_t leased_bytes = 0;
  uint64_t pinned_bytes = 0;
  uint64_t evictable_bytes = 0;
  uint64_t evictions = 0;  // To make room.
  // Held only by leases on draining or quarantined replicas: pinned by clients.
  uint64_t revoked_bytes = 0;
  // How long the last victim had gone unopened: short means that the tier churns.
  std::optional<Duration> last_victim_idle;
};

}  // namespace trims::store

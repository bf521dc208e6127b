#include "daemon/registry.h"

#include <fcntl.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/device_names.h"
#include "base/limits.h"
#include "daemon/log.h"

namespace trims {
namespace {

using store::Granularity;
using store::ReplicaKey;

// Contents kept beyond those that are resident or named.
constexpr size_t kIdleContentsMax = 1024;
// Progress of one load reaches clients at most this often.
constexpr auto kProgressInterval = std::chrono::milliseconds(50);

constexpr char kExtentPrefix[] = "extent/";
constexpr char kReplicaPrefix[] = "replica/";
constexpr char kPinPrefix[] = "pin/";
constexpr char kRhoKey[] = "rho";
// Entries about devices: the worker's own, kept from one to the next.
constexpr char kDevicePrefix[] = "device/";
constexpr char kLinksKey[] = "device/links";

// Memory of a process that was killed comes back a moment after its connection ended, and
// what is freed here takes a moment, too: a load that finds none tries again.
constexpr int kMemoryAttempts = 10;
constexpr auto kMemoryPause = std::chrono::milliseconds(50);
// Checks after leases take at most a tenth of a device's time.
constexpr int kCheckPauseFactor = 9;
// Between two steps of a scrub at least, and between two looks at an idle device.
constexpr Duration kScrubPauseMin = std::chrono::milliseconds(50);
constexpr Duration kProbeInterval = std::chrono::seconds(1);

std::string UnknownDigestText(const Digest& digest) {
  return "no model with digest " + digest.ToString() +
         " that you may use; open it by name, or pass its file";
}

std::string FileKey(const std::vector<FileIdentity>& identities) {
  std::string key = "files";
  for (const FileIdentity& file : identities) {
    key += ' ' + std::to_string(file.device) + ':' + std::to_string(file.inode) + ':' +
           std::to_string(file.size) + ':' + std::to_string(file.mtime_ns) + ':' +
           std::to_string(file.ctime_ns);
  }
  return key;
}

// Puts bytes into a sealed memfd of their own.
Result<std::shared_ptr<const ReadOnlyRegion>> SealBytes(const std::string& label,
                                                        std::string_view bytes) {
  ASSIGN_OR_RETURN(WritableRegion region,
                   WritableRegion::Create(label, bytes.size(), PageKind::kPlain));
  if (region.has_large_pages()) {
    std::memcpy(region.bytes().data(), bytes.data(), bytes.size());
  } else {
    RETURN_IF_ERROR(region.Write(0, std::as_bytes(std::span(bytes))));
  }
  ASSIGN_OR_RETURN(ReadOnlyRegion sealed, std::move(region).Seal());
  return std::shared_ptr<const ReadOnlyRegion>(std::make_shared<ReadOnlyRegion>(std::move(sealed)));
}

Result<std::shared_ptr<const ReadOnlyRegion>> MakeIndex(const ModelManifest& manifest,
                                                        const Layout& layout) {
  return SealBytes("trims-index", BuildTensorIndex(manifest, layout));
}

int DefaultThreads(int configured, int most) {
  if (configured > 0) return configured;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, most);
}

// Forwards progress of a load to the reactor, not more often than clients want it.
class ProgressThrottle final {
 public:
  explicit ProgressThrottle(std::function<void(uint64_t, uint64_t)> forward)
      : forward_(std::move(forward)) {}
  void operator()(uint64_t done, uint64_t total) {
    const int64_t now = Now().time_since_epoch().count();
    int64_t last = last_.load(std::memory_order_relaxed);
    if (now - last < Duration(kProgressInterval).count()) return;
    if (!last_.compare_exchange_strong(last, now, std::memory_order_relaxed)) return;
    forward_(done, total);
  }

 private:
  std::function<void(uint64_t, uint64_t)> forward_;
  std::atomic<int64_t> last_{0};
};

}  // namespace

Result<std::shared_ptr<const Layout>> ModelContents::LayoutAt(Granularity granularity,
                                                              uint64_t slab_bytes) {
  std::shared_ptr<const Layout>& slot = layouts[static_cast<size_t>(granularity)];
  if (slot == nullptr) {
    ASSIGN_OR_RETURN(Layout layout, MakeLayout(*manifest, granularity, slab_bytes));
    slot = std::make_shared<const Layout>(std::move(layout));
  }
  return slot;
}

// An open on its way from the client's words to an answer.
struct Registry::Pending {
  store::OpenId id = 0;
  OpenRequest request;
  Done done;
  Progress progress;
  bool retried = false;                     // After a file changed under the load.
  std::string resolving;                    // Key of the resolve it waits for; "" when none.
  std::shared_ptr<ModelContents> contents;  // Once known.
  Readable readable;                        // Of a passed descriptor.
  std::optional<ReplicaKey> replica;        // Once asked of the store.
  bool resident_only = false;               // Asked as OpenResidentAsked.
  bool is_own = false;                      // Asked by the registry itself, for nobody.
  Time asked_at = Now();
};

// Files being looked at for the first time.
struct Registry::Resolve {
  std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
  std::set<store::OpenId> opens;
};

struct Registry::Load {
  ReplicaKey replica;
  std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
  Readable readable;
  Time started = Now();
  uint64_t bytes = 0;
};

// What goes on in one device's tier. Each kind of work has threads of its own, so that a
// device that hangs takes nothing with it but what is asked of it.
struct Registry::DeviceWork {
  // A replica that is to be checked because an untrusted lease on it has ended.
  struct Check {
    bool is_running = false;
    bool is_wanted = false;
    Time not_before{};
  };

  // The reactor's thread only.
  std::map<ReplicaKey, Check> wanted;
  std::optional<ReplicaKey> last_scrubbed;
  bool is_lost = false;

  // Memory on its way back to the driver, which takes up to milliseconds: not the reactor's.
  void Release(std::vector<std::shared_ptr<const ResidentExtent>> extents) {
    {
      const std::lock_guard lock(mutex);
      ++releasing;
    }
    releases.Run([this, extents = std::move(extents)]() mutable {
      extents.clear();
      const std::lock_guard lock(mutex);
      --releasing;
      released.notify_all();
    });
  }
  // A load that follows an eviction counts on its memory.
  void WaitUntilReleased() {
    std::unique_lock lock(mutex);
    released.wait(lock, [this] { return releasing == 0; });
  }

  std::mutex mutex;
  std::condition_variable released;
  size_t releasing = 0;  // Guarded by mutex.

  // Last, and loads, which wait for releases, end first.
  LoaderPool releases{"trims-release", 1};
  LoaderPool checks{"trims-check", 1};
  LoaderPool loads{"trims-load-gpu", 2};
};

struct Registry::AdoptedReplica {
  ReplicaKey replica;
  std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
};

Registry::Registry(Reactor* reactor, Options options)
    : reactor_(reactor),
      config_(std::move(options.config)),
      link_(options.link),
      tiers_(std::move(options.tiers)),
      budgets_(std::move(options.budgets)),
      devices_(options.devices),
      on_tier_lost_(std::move(options.on_tier_lost)),
      catalogue_(std::move(options.catalogue)),
      sidecars_(std::move(options.sidecars)),
      id_base_(options.id_base),
      profile_(config_.write_profile ? std::make_unique<Profile>(ProfileServer{
                                           std::string(store::PolicyName(config_.eviction_policy)),
                                           config_.estimation_rate, config_.persist_cpu,
                                           config_.memory_percentage, config_.base_dir})
                                     : std::make_unique<Profile>()) {
  TRIMS_CHECK(!tiers_.empty() && tiers_.size() == budgets_.size());
  store_ = std::make_unique<store::Store>(StoreConfig(config_));
  next_open_ = id_base_;
  const int threads = DefaultThreads(config_.loader_threads, 4);
  named_pool_ = std::make_unique<LoaderPool>("trims-load", threads);
  passed_pool_ = std::make_unique<LoaderPool>("trims-load-fd", threads);
  foreign_pool_ = std::make_unique<LoaderPool>("trims-load-fuse", threads);
  background_pool_ = std::make_unique<LoaderPool>("trims-load-bg", 1);
  device_work_.resize(tiers_.size());
  for (size_t i = 1; i < tiers_.size(); ++i) device_work_[i] = std::make_unique<DeviceWork>();
}

Registry::~Registry() {
  for (auto& [key, resolve] : resolves_) resolve->control->cancelled = true;
  for (auto& [id, load] : loads_) load->control->cancelled = true;
  for (auto& [id, adoption] : adoptions_) adoption->control->cancelled = true;
  named_pool_.reset();
  passed_pool_.reset();
  foreign_pool_.reset();
  background_pool_.reset();
  device_work_.clear();
}

store::Config Registry::StoreConfig(const DaemonConfig& config) const {
  store::Config result;
  for (size_t i = 0; i < tiers_.size(); ++i)
    result.tiers.push_back({tiers_[i]->name(), budgets_[i]});
  result.policy = config.eviction_policy;
  result.estimation_rate = config.estimation_rate;
  result.estimate_with_internal_memory = config.estimate_with_internal_memory;
  result.keep_alive = config.keep_alive;
  result.persist_host = config.persist_cpu;
  result.persist_only_host = config.persist_only_cpu;
  result.leases_per_uid_max = config.leases_per_uid_max;
  result.leased_bytes_per_uid_max = config.leased_bytes_per_uid_max;
  result.id_base = id_base_;
  result.random_seed = id_base_ ^ 0x9E3779B97F4A7C15u;
  return result;
}

void Registry::ApplyConfig(const DaemonConfig& config) {
  config_ = config;
  Apply(store::ConfigChanged{StoreConfig(config_)});
}

std::optional<store::TierIndex> Registry::TierByName(const std::string& name) const {
  for (size_t i = 0; i < tiers_.size(); ++i) {
    if (::strcasecmp(tiers_[i]->name().c_str(), name.c_str()) == 0)
      return static_cast<store::TierIndex>(i);
  }
  return std::nullopt;
}

Result<store::TierIndex> Registry::ResolveTier(const std::string& text) const {
  if (const auto tier = TierByName(text)) return *tier;
  std::vector<NumberedDevice> devices;
  for (size_t i = 1; i < tiers_.size(); ++i) {
    const std::string& name = tiers_[i]->name();
    devices.push_back({devices_ == nullptr ? std::nullopt : devices_->OrdinalOf(name),
                       name.substr(kDeviceTierPrefix.size())});
  }
  const std::vector<size_t> found = MatchDevices(text, devices);
  if (found.size() == 1) return static_cast<store::TierIndex>(found[0] + 1);
  std::string known;
  for (const auto& tier : tiers_) known += (known.empty() ? "" : ", ") + tier->name();
  std::string why;
  if (found.size() > 1) {
    why = " (several begin so)";
  } else if (text.starts_with("gpu") && tiers_.size() == 1 && devices_ != nullptr) {
    why = " (no device: " + devices_->WhyNotServed("") + ")";
  }
  return NotFoundError("no tier \"" + text + "\"; this daemon has: " + known + why);
}

std::string Registry::NameOf(const Digest& model) const {
  const auto it = contents_.find(model);
  if (it != contents_.end() && !it->second->name.empty()) return it->second->name;
  return "@" + model.ToString();
}

std::shared_ptr<const ModelContents> Registry::FindContents(const Digest& digest) const {
  const auto it = contents_.find(digest);
  return it == contents_.end() ? nullptr : it->second;
}

std::optional<Digest> Registry::DigestOfName(const std::string& name) const {
  const auto it = records_.find(name);
  if (it == records_.end()) return std::nullopt;
  return it->second.contents->manifest->digest;
}

// --- Opening -------------------------------------------------------------------

void Registry::Open(store::OpenId id, OpenRequest request, Done done, Progress progress) {
  auto pending = std::make_unique<Pending>();
  pending->id = id;
  pending->request = std::move(request);
  pending->done = std::move(done);
  pending->progress = std::move(progress);
  const OpenRequest& asked = pending->request;
  const bool passed = asked.file.valid();
  if (asked.tier >= tiers_.size()) {
    pending->done(OpenResult{InvalidArgumentError("no such tier")});
    return;
  }
  if (const Status health = tiers_[asked.tier]->health(); !health.ok()) {
    ++counters_.opens_failed;
    pending->done(OpenResult{health});
    return;
  }
  if (passed) {
    pending_.emplace(id, std::move(pending));
    OpenPassed(id);
    return;
  }
  Result<ModelReference> reference = ParseModelReference(asked.model);
  if (!reference.ok()) {
    ++counters_.opens_failed;
    pending->done(OpenResult{reference.status()});
    return;
  }
  pending_.emplace(id, std::move(pending));
  if (reference->digest) {
    OpenByDigest(id);
  } else {
    OpenNamed(id);
  }
}

void Registry::OpenNamed(store::OpenId id) {
  Pending& pending = *pending_.at(id);
  const std::string& name = pending.request.model;
  const uint64_t version = catalogue_->version();
  const auto known = records_.find(name);
  if (known != records_.end() && known->second.catalogue_version == version &&
      known->second.readable.source->StillCurrent()) {
    return Proceed(id, known->second.contents);
  }
  Result<CatalogueEntry> entry = catalogue_->Find(name);
  if (!entry.ok()) return Fail(id, OpenResult{entry.status()});
  if (known != records_.end()) {
    if (known->second.path == entry->path && known->second.readable.source->StillCurrent()) {
      known->second.catalogue_version = version;
      return Proceed(id, known->second.contents);
    }
    records_.erase(known);
  }
  StartResolve("name " + name, id, *named_pool_,
               [path = entry->path, name]() -> Result<std::shared_ptr<const Source>> {
                 ASSIGN_OR_RETURN(Source source,
                                  Source::OpenPath(path, CanonicalDirectoryName(name)));
                 return std::shared_ptr<const Source>(std::make_shared<Source>(std::move(source)));
               });
}

void Registry::OpenPassed(store::OpenId id) {
  Pending& pending = *pending_.at(id);
  const std::string label = pending.request.label.empty()
                                ? "the passed descriptor"
                                : "passed file \"" + pending.request.label + "\"";
  Result<Source> source = Source::FromDescriptor(std::move(pending.request.file), label);
  if (!source.ok()) return Fail(id, OpenResult{source.status()});
  auto shared = std::make_shared<const Source>(*std::move(source));
  pending.readable.source = shared;
  const std::vector<FileIdentity> identities = shared->Identities();
  const auto open_source = [shared]() -> Result<std::shared_ptr<const Source>> { return shared; };
  if (shared->has_forgeable_identity()) {
    // Nothing is looked up or shared under an identity that the user may have made up.
    return StartResolve("open " + std::to_string(id), id, *foreign_pool_, open_source);
  }
  if (const auto it = manifests_by_files_.find(identities); it != manifests_by_files_.end()) {
    if (const auto known = contents_.find(it->second->digest); known != contents_.end()) {
      pending.readable.manifest = it->second;
      return Proceed(id, known->second);
    }
  }
  StartResolve(FileKey(identities), id, *passed_pool_, open_source);
}

void Registry::OpenByDigest(store::OpenId id) {
  const Digest digest = *ParseModelReference(pending_.at(id)->request.model)->digest;
  const auto it = contents_.find(digest);
  if (it == contents_.end()) return Fail(id, OpenResult{NotFoundError(UnknownDigestText(digest))});
  Proceed(id, it->second);
}

void Registry::StartResolve(const std::string& key, store::OpenId id, LoaderPool& pool,
                            std::function<Result<std::shared_ptr<const Source>>()> open_source) {
  pending_.at(id)->resolving = key;
  std::unique_ptr<Resolve>& resolve = resolves_[key];
  if (resolve != nullptr && !resolve->control->cancelled) {
    resolve->opens.insert(id);  // Somebody else's look at these files serves us too.
    return;
  }
  // A cancelled one may still be running; its end is told apart by its control.
  resolve = std::make_unique<Resolve>();
  resolve->opens.insert(id);
  const std::shared_ptr<LoadControl> control = resolve->control;
  auto throttle = std::make_shared<ProgressThrottle>([this, key](uint64_t done, uint64_t total) {
    reactor_->Post("hashing progress", [this, key, done, total] {
      const auto it = resolves_.find(key);
      if (it == resolves_.end()) return;
      for (const store::OpenId open : it->second->opens) {
        const auto& progress = pending_.at(open)->progress;
        if (progress) progress(OpenPhase::kHashing, done, total);
      }
    });
  });
  control->on_progress = [throttle](uint64_t done, uint64_t total) { (*throttle)(done, total); };
  if (pending_.at(id)->progress) pending_.at(id)->progress(OpenPhase::kResolving, 0, 0);
  const int threads = DefaultThreads(config_.io_threads, 8);
  const uint64_t bytes_max = *std::max_element(budgets_.begin(), budgets_.end());
  pool.Run([this, key, control, threads, bytes_max, open_source = std::move(open_source)] {
    Result<std::shared_ptr<const Source>> source = UnavailableError("not opened");
    Result<IngestResult> result = UnavailableError("not read");
    const auto look = [&] {
      source = open_source();
      if (!source.ok()) {
        result = source.status();
      } else if ((*source)->total_bytes() > bytes_max) {
        // Not worth hashing, which for a large sparse file would take hours.
        result = ResourceExhaustedError(
            (*source)->description() + " has " + FormatSize((*source)->total_bytes()) +
            ", more than the largest budget of this daemon, " + FormatSize(bytes_max));
      } else {
        result = Ingest(**source, sidecars_.get(), *control, threads);
      }
    };
    look();
    // A file that changed while it was read is looked at once more.
    if (result.status().code() == StatusCode::kAborted && !control->cancelled) look();
    std::shared_ptr<const Source> found = source.ok() ? *source : nullptr;
    reactor_->Post("resolve finished",
                   [this, key, control, found, result = std::move(result)]() mutable {
                     const auto it = resolves_.find(key);
                     if (it == resolves_.end() || it->second->control != control) return;
                     FinishResolve(key, found, std::move(result));
                   });
  });
}

void Registry::FinishResolve(const std::string& key, std::shared_ptr<const Source> source,
                             Result<IngestResult> result) {
  const std::set<store::OpenId> opens = std::move(resolves_.at(key)->opens);
  resolves_.erase(key);
  if (!result.ok()) {
    OpenResult failed{result.status()};
    if (source != nullptr && result.status().code() == StatusCode::kResourceExhausted) {
      failed.need_bytes = source->total_bytes();
    }
    for (const store::OpenId id : opens) Fail(id, failed);
    return;
  }
  if (!result->sidecar_status.ok()) {
    LogWarn("manifest not recorded, the file is hashed again next time, ignoring",
            {{"reason", result->sidecar_status.message()}});
  }
  const Digest digest = result->manifest->digest;
  std::shared_ptr<ModelContents>& contents = contents_[digest];
  if (contents == nullptr) {
    contents = std::make_shared<ModelContents>();
    contents->manifest = result->manifest;
  }
  const std::shared_ptr<ModelContents> found = contents;
  for (const store::OpenId id : opens) {
    Pending& pending = *pending_.at(id);
    pending.resolving.clear();
    if (pending.readable.source != nullptr) {
      if (found->name.empty()) found->name = pending.request.label;
      pending.readable.manifest = result->manifest;
      if (!pending.readable.source->has_forgeable_identity()) {
        manifests_by_files_[pending.readable.source->Identities()] = result->manifest;
      }
    } else {
      const std::string& name = pending.request.model;
      const uint64_t version = catalogue_->version();  // Before Find: never newer than its answer.
      Result<CatalogueEntry> entry = catalogue_->Find(name);
      if (!entry.ok()) {  // Removed in the meantime.
        Fail(id, OpenResult{entry.status()});
        continue;
      }
      records_[name] = Record{entry->path, version, Readable{source, result->manifest}, found};
      found->name = name;
      found->path = entry->path;
      found->directory = source->directory();
      found->readable = Readable{source, result->manifest};
      found->is_public = true;
    }
    Proceed(id, found);
  }
  DropUnusedContents();
}

void Registry::Proceed(store::OpenId id, std::shared_ptr<ModelContents> contents) {
  Pending& pending = *pending_.at(id);
  pending.contents = contents;
  const OpenRequest& request = pending.request;
  const Digest& digest = contents->manifest->digest;
  if (request.expected && *request.expected != digest) {
    return Fail(id,
                OpenResult{DataLossError(
                    "\"" + (request.model.empty() ? request.label : request.model) + "\" holds " +
                    digest.ToString() + ", expected " + request.expected->ToString())});
  }
  if (request.resolve_only) {
    const auto it = pending_.find(id);
    const std::unique_ptr<Pending> finished = std::move(it->second);
    pending_.erase(it);
    OpenResult result;
    result.replica.model = digest;
    return finished->done(std::move(result));
  }
  Granularity granularity;
  if (request.granularity) {
    granularity = *request.granularity;
  } else {
    if (!contents->chosen)
      contents->chosen = ChooseGranularity(rho_, *contents->manifest, config_.slab_bytes);
    granularity = *contents->chosen;
  }
  Result<std::shared_ptr<const Layout>> layout =
      contents->LayoutAt(granularity, config_.slab_bytes);
  if (!layout.ok()) return Fail(id, OpenResult{layout.status()});
  pending.replica = ReplicaKey{digest, request.tier, granularity};
  waiting_[*pending.replica].insert(id);
  // The common case costs no plan: what is resident is leased by its key. The
  // store answers NOT_FOUND when this client may not have it on these grounds.
  const bool simple =
      request.take_lease && pending.readable.source == nullptr && !request.keep_alive;
  const Status status = AskStore(pending, simple && lent_.contains(*pending.replica));
  if (!status.ok()) Fail(id, OpenResult{status});
}

Status Registry::AskStore(Pending& pending, bool resident_only) {
  const OpenRequest& request = pending.request;
  const ReplicaKey key = *pending.replica;
  pending.resident_only = resident_only;
  if (resident_only) {
    store::OpenResidentAsked asked;
    asked.open = pending.id;
    asked.session = request.session;
    asked.uid = request.uid;
    asked.is_admin = request.is_admin;
    asked.tier = key.tier;
    asked.granularity = key.granularity;
    asked.model = key.model;
    Apply(asked);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const Layout> layout,
                   pending.contents->LayoutAt(key.granularity, config_.slab_bytes));
  store::ModelPlan plan = MakePlan(*pending.contents->manifest, *layout, NameOf(key.model));
  for (store::Extent& extent : plan.extents)
    extent.bytes = tiers_[key.tier]->AllocationBytes(extent.bytes);
  plan.is_public = pending.contents->is_public;
  if (rho_.read_bytes_per_second > 0) {
    plan.reload_cost = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
        static_cast<double>(plan.weight_bytes) / rho_.read_bytes_per_second));
  }
  if (request.take_lease) {
    store::OpenAsked asked;
    asked.open = pending.id;
    asked.session = request.session;
    asked.uid = request.uid;
    asked.is_admin = request.is_admin;
    asked.tier = key.tier;
    asked.granularity = key.granularity;
    asked.plan = std::move(plan);
    asked.proved_access = pending.readable.source != nullptr;
    asked.keep_alive = request.keep_alive;
    Apply(asked);
  } else {
    store::LoadAsked asked;
    asked.open = pending.id;
    asked.tier = key.tier;
    asked.granularity = key.granularity;
    asked.plan = std::move(plan);
    asked.keep_alive = request.keep_alive;
    Apply(asked);
  }
  return OkStatus();
}

void Registry::Fail(store::OpenId id, OpenResult result) {
  const auto it = pending_.find(id);
  if (it == pending_.end()) return;
  std::unique_ptr<Pending> pending = std::move(it->second);
  pending_.erase(it);
  if (pending->replica) {
    waiting_[*pending->replica].erase(id);
    if (waiting_[*pending->replica].empty()) waiting_.erase(*pending->replica);
  }
  if (!pending->is_own) ++counters_.opens_failed;
  if (pending->done) pending->done(std::move(result));
}

void Registry::CancelOpen(store::OpenId id) {
  const auto it = pending_.find(id);
  if (it == pending_.end()) return;
  std::unique_ptr<Pending> pending = std::move(it->second);
  pending_.erase(it);
  if (!pending->resolving.empty()) {
    Resolve& resolve = *resolves_.at(pending->resolving);
    resolve.opens.erase(id);
    if (resolve.opens.empty()) {
      resolve.control->cancelled = true;
      resolves_.erase(pending->resolving);
    }
  }
  if (pending->replica) {
    waiting_[*pending->replica].erase(id);
    if (waiting_[*pending->replica].empty()) waiting_.erase(*pending->replica);
    Apply(store::OpenCancelled{id});
  }
}

Status Registry::Close(store::SessionId session, store::LeaseId lease,
                       uint64_t peak_internal_bytes) {
  if (!store_->HasLease(session, lease)) {
    return NotFoundError("this session holds no lease " + std::to_string(lease));
  }
  const Time start = Now();
  Apply(store::LeaseClosed{session, lease, peak_internal_bytes});
  profile_->Span("close", "grpc", start, Now(), {});
  return OkStatus();
}

void Registry::Reattach(store::OpenId id, store::SessionId session, uint32_t uid, bool is_admin,
                        const ReplicaKey& replica, uint64_t generation, Done done) {
  if (replica.tier >= tiers_.size()) return done(OpenResult{InvalidArgumentError("no such tier")});
  auto pending = std::make_unique<Pending>();
  pending->id = id;
  pending->request.session = session;
  pending->request.uid = uid;
  pending->done = std::move(done);
  pending->replica = replica;
  pending_.emplace(id, std::move(pending));
  waiting_[replica].insert(id);
  store::ReattachAsked asked;
  asked.open = id;
  asked.session = session;
  asked.uid = uid;
  asked.replica = replica;
  asked.generation = generation;
  asked.is_admin = is_admin;
  Apply(asked);
}

void Registry::EndSession(store::SessionId session) { Apply(store::SessionEnded{session}); }

// --- The store's actions ---------------------------------------------------------

void Registry::Apply(const store::Event& event) { Execute(store_->Apply(event, Now())); }

void Registry::Execute(std::vector<store::Action> actions) {
  for (store::Action& action : actions) {
    std::visit([this](auto& what) { Do(what); }, action);
  }
  ArmTimer();
}

void Registry::ArmTimer() {
  const std::optional<Time> next = store_->NextDeadline();
  if (next == timer_at_) return;
  if (timer_at_) reactor_->CancelTimer(timer_);
  timer_at_ = next;
  if (!next) return;
  timer_ = reactor_->RunAt(*next, "store deadline", [this] {
    timer_at_.reset();
    Apply(store::Tick{});
  });
}

void Registry::Do(store::StartLoad& action) {
  auto load = std::make_unique<Load>();
  load->replica = action.replica;
  const store::LoadId id = action.load;
  const std::shared_ptr<LoadControl> control = load->control;
  const auto found = contents_.find(action.replica.model);
  TRIMS_CHECK(found != contents_.end());
  const std::shared_ptr<ModelContents> contents = found->second;
  const ReplicaKey replica = action.replica;
  DeviceWork* const work = device_work_[replica.tier].get();

  // Any open that waits for it and brought a descriptor will do as a source.
  Readable readable = contents->readable;
  LoaderPool* pool = work != nullptr ? &work->loads : named_pool_.get();
  if (const auto waiting = waiting_.find(replica); waiting != waiting_.end()) {
    bool is_wanted = false;
    for (const store::OpenId open : waiting->second) {
      const Pending& pending = *pending_.at(open);
      if (!pending.is_own) is_wanted = true;
      if (contents->readable.source != nullptr || pending.readable.manifest == nullptr) continue;
      readable = pending.readable;
      pool = readable.source->has_forgeable_identity() ? foreign_pool_.get() : passed_pool_.get();
    }
    if (!is_wanted) pool = background_pool_.get();
  }
  Result<std::shared_ptr<const Layout>> layout =
      contents->LayoutAt(replica.granularity, config_.slab_bytes);
  auto job = std::make_shared<LoadJob>();
  uint64_t allocated = 0;
  if (layout.ok()) {
    std::set<Digest> missing;
    for (const store::Extent& extent : action.missing) missing.insert(extent.key);
    for (const ExtentSpec& spec : (*layout)->extents) {
      if (missing.erase(spec.key) == 0) continue;
      job->extents.push_back(&spec);
      load->bytes += spec.bytes;
      allocated += tiers_[replica.tier]->AllocationBytes(spec.bytes);
    }
    OfferCopies(replica.tier, *job);
  }
  bool needs_file = false, uses_peer = false;
  for (size_t i = 0; i < job->extents.size(); ++i) {
    const bool has_host = !job->host.empty() && job->host[i] != nullptr;
    const bool has_peer = !job->peer.empty() && job->peer[i] != nullptr;
    needs_file = needs_file || (!has_host && !has_peer);
    uses_peer = uses_peer || has_peer;
  }
  const uint64_t bytes = load->bytes;
  if (needs_file) load->readable = readable;
  loads_.emplace(id, std::move(load));
  if (!layout.ok() || (readable.source == nullptr && needs_file)) {
    Loaded failed;
    failed.extents = !layout.ok() ? layout.status()
                                  : FailedPreconditionError("the file of " + NameOf(replica.model) +
                                                            " is no longer open; open it again");
    // Not from inside the store's own actions.
    reactor_->Post("load failed early",
                   [this, id, failed = std::make_shared<Loaded>(std::move(failed))] {
                     FinishLoad(id, std::move(*failed));
                   });
    return;
  }
  auto throttle =
      std::make_shared<ProgressThrottle>([this, replica](uint64_t done, uint64_t total) {
        reactor_->Post("load progress", [this, replica, done, total] {
          ReportProgress(replica, OpenPhase::kLoading, done, total);
        });
      });
  control->on_progress = [throttle](uint64_t done, uint64_t total) { (*throttle)(done, total); };
  LogInfo("loading", {{"model", NameOf(replica.model)},
                      {"digest", replica.model.ToShort()},
                      {"tier", tiers_[replica.tier]->name()},
                      {"bytes", bytes},
                      {"from", needs_file  ? "file"
                               : uses_peer ? "peer"
                                           : "host"}});
  Tier* const tier = tiers_[replica.tier].get();
  std::shared_ptr<const ReadOnlyRegion> index =
      contents->indexes[static_cast<size_t>(replica.granularity)];
  pool->Run([this, id, tier, work, contents, readable, layout = *layout, job, allocated, control,
             index] {
    const Time start = Now();
    auto loaded = std::make_shared<Loaded>();
    loaded->index = index;
    job->manifest =
        readable.manifest != nullptr ? readable.manifest.get() : contents->manifest.get();
    job->source = readable.source.get();
    for (int attempt = 1; !job->extents.empty(); ++attempt) {
      if (control->cancelled) {
        loaded->extents = CancelledError("nobody waits for this load any more");
        break;
      }
      if (work != nullptr) work->WaitUntilReleased();
      loaded->extents = tier->Load(*job, *control);
      if (loaded->extents.status().code() != StatusCode::kResourceExhausted) break;
      loaded->free_bytes = tier->FreeBytes();
      // Something else than this tier's memory ran out.
      if (loaded->free_bytes && *loaded->free_bytes >= allocated) loaded->free_bytes.reset();
      if (!loaded->free_bytes || work == nullptr || attempt == kMemoryAttempts) break;
      std::unique_lock lock(work->mutex);
      work->released.wait_for(lock, kMemoryPause);
    }
    if (loaded->extents.ok()) loaded->free_bytes.reset();
    if (loaded->extents.ok() && loaded->index == nullptr) {
      Result<std::shared_ptr<const ReadOnlyRegion>> made = MakeIndex(*contents->manifest, *layout);
      if (made.ok()) {
        loaded->index = *made;
      } else {
        loaded->extents = made.status();
      }
    }
    job->host.clear();  // What was offered is not kept alive longer than needed.
    job->peer.clear();
    loaded->took = Now() - start;
    reactor_->Post("load finished", [this, id, loaded] { FinishLoad(id, std::move(*loaded)); });
  });
}

void Registry::OfferCopies(store::TierIndex tier, LoadJob& job) const {
  if (tier == 0) return;
  const std::string& name = tiers_[tier]->name();
  for (const ExtentSpec* spec : job.extents) {
    const auto host = extents_.find({0, spec->key});
    job.host.push_back(host == extents_.end() ? nullptr : host->second);
    job.peer.push_back(nullptr);
    for (store::TierIndex other = 1; other < tiers_.size(); ++other) {
      const auto peer = extents_.find({other, spec->key});
      if (other == tier || peer == extents_.end() || !tiers_[other]->health().ok()) continue;
      // From a device that is no faster than the host only what the host does not have.
      const bool is_faster =
          devices_ != nullptr && devices_->PeerIsFaster(name, tiers_[other]->name());
      if (is_faster || job.host.back() == nullptr) job.peer.back() = peer->second;
      if (is_faster) break;
    }
  }
}

void Registry::FinishLoad(store::LoadId id, Loaded loaded) {
  const auto it = loads_.find(id);
  TRIMS_CHECK(it != loads_.end());
  const std::unique_ptr<Load> load = std::move(it->second);
  loads_.erase(it);
  const ReplicaKey replica = load->replica;
  const std::string name = NameOf(replica.model);
  profile_->Span("load_owned", "load", load->started, Now(), {{"model_name", name}});
  if (!loaded.extents.ok()) {
    const Status status = loaded.extents.status();
    if (status.code() != StatusCode::kCancelled) {
      LogWarn(
          "load failed",
          {{"model", name}, {"tier", tiers_[replica.tier]->name()}, {"reason", status.ToString()}});
    }
    Apply(store::LoadFailed{id, status, loaded.free_bytes});
    NoticeLost(replica.tier);
    return;
  }
  if (loaded.index != nullptr) {
    if (const auto contents = contents_.find(replica.model); contents != contents_.end()) {
      contents->second->indexes[static_cast<size_t>(replica.granularity)] = loaded.index;
    }
  }
  // The ledger first: when a client has a lease, the keeper has the memory.
  uint64_t bytes = 0;
  for (ResidentExtent& extent : *loaded.extents) {
    bytes += extent.bytes;
    LedgerPutExtent(replica.tier, extent);
    const Digest key = extent.key;
    const auto resident = std::make_shared<const ResidentExtent>(std::move(extent));
    extents_[{replica.tier, key}] = resident;
    if (replica.tier == 0) {
      for (size_t i = 1; i < tiers_.size(); ++i) tiers_[i]->HostExtentReady(resident);
    }
  }
  const double seconds = std::chrono::duration<double>(loaded.took).count();
  if (replica.tier == 0 && load->bytes >= kDefaultSlabBytes / 4 && seconds > 0) {
    // q of the rho test follows what loads really reach; one load moves it by a quarter.
    const double rate = static_cast<double>(load->bytes) / seconds;
    rho_.read_bytes_per_second =
        rho_.read_bytes_per_second > 0 ? 0.75 * rho_.read_bytes_per_second + 0.25 * rate : rate;
  }
  LogInfo("loaded", {{"model", name},
                     {"digest", replica.model.ToShort()},
                     {"tier", tiers_[replica.tier]->name()},
                     {"bytes", bytes},
                     {"took", FormatDuration(loaded.took)}});
  std::vector<store::Action> actions = store_->Apply(store::LoadFinished{id}, Now());
  LedgerPutReplica(replica);
  Execute(std::move(actions));
  if (replica.tier != 0 && load->readable.source != nullptr) KeepOnHost(*load);
}

void Registry::KeepOnHost(const Load& load) {
  const ReplicaKey host{load.replica.model, 0, load.replica.granularity};
  const auto found = contents_.find(host.model);
  if (!config_.persist_cpu || found == contents_.end() || store_->Find(host)) return;
  // Reading it may hang for ever, and nobody waits for it.
  if (load.readable.source->has_forgeable_identity()) return;
  auto pending = std::make_unique<Pending>();
  pending->id = NewOpenId();
  pending->is_own = true;
  pending->request.is_admin = true;
  pending->request.take_lease = false;
  pending->request.granularity = host.granularity;
  pending->contents = found->second;
  pending->readable = load.readable;
  pending->replica = host;
  pending->done = [name = NameOf(host.model)](const OpenResult& result) {
    if (result.status.ok()) return;
    LogInfo("no copy kept in host memory", {{"model", name}, {"reason", result.status.message()}});
  };
  const store::OpenId id = pending->id;
  Pending& asked = *pending;
  pending_.emplace(id, std::move(pending));
  waiting_[host].insert(id);
  const Status status = AskStore(asked, /*resident_only=*/false);
  if (!status.ok()) Fail(id, OpenResult{status});
}

void Registry::Do(store::CancelLoad& action) {
  if (const auto it = loads_.find(action.load); it != loads_.end())
    it->second->control->cancelled = true;
  if (const auto it = adoptions_.find(action.load); it != adoptions_.end())
    it->second->control->cancelled = true;
}

void Registry::Do(store::ReleaseExtents& action) {
  std::set<Digest> released(action.extents.begin(), action.extents.end());
  for (auto it = lent_.begin(); it != lent_.end();) {
    const bool gone =
        it->first.tier == action.tier &&
        std::any_of(it->second->extents.begin(), it->second->extents.end(),
                    [&](const auto& extent) { return released.contains(extent->key); });
    if (gone) LedgerDrop(ReplicaEntryKey(it->first));
    it = gone ? lent_.erase(it) : std::next(it);
  }
  std::vector<std::shared_ptr<const ResidentExtent>> extents;
  for (const Digest& key : action.extents) {
    for (auto* const held : {&extents_, &adopting_}) {
      const auto it = held->find({action.tier, key});
      if (it == held->end()) continue;
      extents.push_back(std::move(it->second));
      held->erase(it);
    }
    if (action.tier == 0) {
      for (size_t i = 1; i < tiers_.size(); ++i) tiers_[i]->HostExtentGone(key);
    }
    LedgerDrop(ExtentEntryKey(action.tier, key));
  }
  if (action.tier != 0 && !extents.empty()) device_work_[action.tier]->Release(std::move(extents));
}

void Registry::Do(store::ReplyLease& action) {
  const auto it = pending_.find(action.open);
  if (it == pending_.end()) {
    // Cancelled while the answer was on its way: nobody will close this lease.
    reactor_->Post("close unwanted lease", [this, session = action.session, lease = action.lease] {
      if (store_->HasLease(session, lease)) Apply(store::LeaseClosed{session, lease, 0});
    });
    return;
  }
  std::unique_ptr<Pending> pending = std::move(it->second);
  pending_.erase(it);
  waiting_[*pending->replica].erase(action.open);
  if (waiting_[*pending->replica].empty()) waiting_.erase(*pending->replica);
  ++counters_.opens;
  if (!action.loaded) ++counters_.opens_hit;
  OpenResult result;
  result.lease = action.lease;
  result.generation = action.generation;
  result.loaded = action.loaded;
  result.replica = action.replica;
  result.lent = LentReplicaOf(action.replica);
  if (pending->readable.source != nullptr &&
      pending->contents->proved_uids.insert(pending->request.uid).second) {
    LedgerPutReplica(action.replica);  // Who may have it outlives this worker.
  }
  if (profile_->enabled()) {
    profile_->Span("open", "grpc", pending->asked_at, Now(),
                   {{"model_name", NameOf(action.replica.model)}});
  }
  pending->done(std::move(result));
}

void Registry::Do(store::ReplyReady& action) {
  const auto it = pending_.find(action.open);
  if (it == pending_.end()) return;
  std::unique_ptr<Pending> pending = std::move(it->second);
  pending_.erase(it);
  waiting_[*pending->replica].erase(action.open);
  if (waiting_[*pending->replica].empty()) waiting_.erase(*pending->replica);
  OpenResult result;
  result.replica = action.replica;
  pending->done(std::move(result));
}

void Registry::Do(store::ReplyError& action) {
  const auto it = pending_.find(action.open);
  if (it == pending_.end()) return;
  Pending& pending = *it->second;
  const store::OpenId id = action.open;
  if (pending.resident_only && action.status.code() == StatusCode::kNotFound) {
    // Not on the grounds of being resident; perhaps on the grounds of its name.
    reactor_->Post("ask the store again", [this, id] {
      const auto found = pending_.find(id);
      if (found == pending_.end()) return;
      const Status status = AskStore(*found->second, /*resident_only=*/false);
      if (!status.ok()) Fail(id, OpenResult{status});
    });
    return;
  }
  if (action.status.code() == StatusCode::kAborted && !pending.retried &&
      pending.readable.source == nullptr && pending.contents != nullptr &&
      ParseModelReference(pending.request.model).ok() &&
      !ParseModelReference(pending.request.model)->digest) {
    // The file changed between looking at it and loading it: look again, once.
    pending.retried = true;
    waiting_[*pending.replica].erase(id);
    if (waiting_[*pending.replica].empty()) waiting_.erase(*pending.replica);
    pending.replica.reset();
    pending.contents.reset();
    records_.erase(pending.request.model);
    reactor_->Post("look again", [this, id] {
      if (pending_.contains(id)) OpenNamed(id);
    });
    return;
  }
  OpenResult result;
  result.status = std::move(action.status);
  result.need_bytes = action.need_bytes;
  result.free_bytes = action.free_bytes;
  result.evictable_bytes = action.evictable_bytes;
  if (result.status.code() == StatusCode::kNotFound && pending.replica) {
    // One text for unknown, not resident and not allowed.
    result.status = NotFoundError(UnknownDigestText(pending.replica->model));
  }
  Fail(id, std::move(result));
}

void Registry::Do(store::Notify& action) {
  using Kind = store::Notify::Kind;
  switch (action.kind) {
    case Kind::kEvicted:
    case Kind::kExpired:
    case Kind::kQuarantined:
      if (action.kind == Kind::kQuarantined) ++counters_.quarantines;
      lent_.erase(action.replica);
      LedgerDrop(ReplicaEntryKey(action.replica));
      if (DeviceWork* const work = device_work_[action.replica.tier].get()) {
        const auto check = work->wanted.find(action.replica);
        if (check != work->wanted.end() && !check->second.is_running) work->wanted.erase(check);
      }
      if (action.kind == Kind::kQuarantined) {
        LogError("wrong bytes in a resident model, quarantined",
                 {{"model", NameOf(action.replica.model)},
                  {"digest", action.replica.model.ToString()},
                  {"tier", tiers_[action.replica.tier]->name()},
                  {"detail", action.detail}});
      } else {
        LogInfo(action.kind == Kind::kEvicted ? "evicted" : "expired",
                {{"model", NameOf(action.replica.model)},
                 {"tier", tiers_[action.replica.tier]->name()},
                 {"detail", action.detail}});
        profile_->Span("perform_eviction", "evict", Now(), Now(),
                       {{"policy", std::string(store::PolicyName(config_.eviction_policy))},
                        {"model_name", NameOf(action.replica.model)}});
      }
      break;
    case Kind::kReleased:
      if (action.replica.tier != 0 && action.uid && !IsTrusted(*action.uid))
        WantCheck(action.replica);
      break;
    default:
      break;
  }
  for (const auto& [id, observer] : observers_) observer(action);
}

void Registry::Do(store::EvictResult& action) {
  if (evict_outcome_ != nullptr) evict_outcome_->result = std::move(action);
}

std::shared_ptr<const LentReplica> Registry::LentReplicaOf(const ReplicaKey& key) {
  if (const auto it = lent_.find(key); it != lent_.end()) return it->second;
  const std::shared_ptr<ModelContents>& contents = contents_.at(key.model);
  const std::shared_ptr<const Layout> layout =
      *contents->LayoutAt(key.granularity, config_.slab_bytes);
  std::shared_ptr<const ReadOnlyRegion>& index =
      contents->indexes[static_cast<size_t>(key.granularity)];
  if (index == nullptr) {
    Result<std::shared_ptr<const ReadOnlyRegion>> made = MakeIndex(*contents->manifest, *layout);
    if (!made.ok()) return nullptr;
    index = *made;
  }
  auto lent = std::make_shared<LentReplica>();
  lent->key = key;
  lent->manifest = contents->manifest;
  lent->index = index;
  lent->directory = contents->directory;
  if (key.tier != 0) lent->device_uuid = tiers_[key.tier]->name().substr(kDeviceTierPrefix.size());
  for (const ExtentSpec& spec : layout->extents) {
    const auto extent = extents_.find({key.tier, spec.key});
    TRIMS_CHECK(extent != extents_.end());  // The store leases only what is resident.
    lent->extents.push_back(extent->second);
    lent->extent_bytes.push_back(extent->second->map_bytes);
    lent->total_bytes += extent->second->map_bytes;
  }
  lent_[key] = lent;
  return lent;
}

void Registry::ReportProgress(const ReplicaKey& key, OpenPhase phase, uint64_t done,
                              uint64_t total) {
  const auto it = waiting_.find(key);
  if (it == waiting_.end()) return;
  for (const store::OpenId open : it->second) {
    const auto& progress = pending_.at(open)->progress;
    if (progress) progress(phase, done, total);
  }
}

void Registry::DropUnusedContents() {
  if (contents_.size() <= records_.size() + lent_.size() + kIdleContentsMax) return;
  std::set<Digest> used;
  for (const auto& [name, record] : records_) used.insert(record.contents->manifest->digest);
  for (const store::ReplicaView& view : store_->Replicas()) used.insert(view.replica.model);
  for (const auto& [id, pending] : pending_) {
    if (pending->contents != nullptr) used.insert(pending->contents->manifest->digest);
  }
  for (const auto& [id, load] : loads_) used.insert(load->replica.model);
  for (const auto& [id, adoption] : adoptions_) used.insert(adoption->replica.model);
  std::erase_if(contents_, [&](const auto& item) { return !used.contains(item.first); });
  std::erase_if(manifests_by_files_,
                [&](const auto& item) { return !used.contains(item.second->digest); });
}

// --- For the control plane ---------------------------------------------------------

Registry::EvictOutcome Registry::Evict(const Digest& model, std::optional<store::TierIndex> tier,
                                       bool force) {
  EvictOutcome outcome;
  for (store::ReplicaView& view : store_->Replicas()) {
    if (view.replica.model == model && (!tier || view.replica.tier == *tier))
      outcome.before.push_back(std::move(view));
  }
  // A copy that is on its way to the host only because of a load elsewhere is nobody's wish.
  std::vector<store::OpenId> own;
  for (const auto& [id, pending] : pending_) {
    if (pending->is_own && pending->replica->model == model && (!tier || *tier == 0))
      own.push_back(id);
  }
  for (const store::OpenId id : own) CancelOpen(id);
  evict_outcome_ = &outcome;
  if (force) {
    for (auto it = pins_.begin(); it != pins_.end();) {
      const bool taken = it->first == model && (!tier || it->second == *tier);
      if (!taken) {
        ++it;
        continue;
      }
      const auto [digest, index] = *it;
      ++it;
      Pin(digest, index, false);
    }
  }
  Apply(store::EvictAsked{model, tier, force});
  evict_outcome_ = nullptr;
  return outcome;
}

void Registry::Pin(const Digest& model, store::TierIndex tier, bool pinned) {
  const std::string key = std::string(kPinPrefix) + tiers_[tier]->name() + "/" + model.ToHex();
  if (pinned) {
    pins_.insert({model, tier});
    if (link_ >= 0) (void)!SendLink(link_, LinkType::kPut, key, "").ok();
  } else {
    pins_.erase({model, tier});
    LedgerDrop(key);
  }
  Apply(store::PinAsked{model, tier, pinned});
}

void Registry::Verify(const ReplicaKey& replica, std::shared_ptr<LoadControl> control,
                      std::function<void(Status)> done) {
  const std::optional<store::ReplicaView> view = store_->Find(replica);
  const auto found = contents_.find(replica.model);
  if (!view || view->state != store::ReplicaState::kReady || found == contents_.end()) {
    return done(FailedPreconditionError("this replica is not ready"));
  }
  std::shared_ptr<const LentReplica> lent = LentReplicaOf(replica);
  Result<std::shared_ptr<const Layout>> layout =
      found->second->LayoutAt(replica.granularity, config_.slab_bytes);
  if (lent == nullptr || !layout.ok())
    return done(InternalError("this replica can not be described"));
  ++counters_.verifications;
  Tier* const tier = tiers_[replica.tier].get();
  DeviceWork* const work = device_work_[replica.tier].get();
  LoaderPool& pool = work != nullptr ? work->checks : *named_pool_;
  pool.Run([this, replica, generation = view->generation, tier, lent, layout = *layout, control,
            done = std::move(done)]() mutable {
    const Time start = Now();
    Status status;
    std::vector<Digest> wrong;
    uint64_t before = 0;
    const auto report = control->on_progress;
    for (size_t i = 0; i < layout->extents.size(); ++i) {
      LoadControl part;
      part.on_progress = [&](uint64_t bytes, uint64_t) {
        if (control->cancelled) part.cancelled = true;
        if (report) report(before + bytes, lent->total_bytes);
      };
      part.cancelled = control->cancelled.load();
      const Status one = tier->Verify(*lent->extents[i], layout->extents[i], *lent->manifest, part);
      before += lent->extent_bytes[i];
      if (one.ok()) continue;
      if (status.ok() || one.code() != StatusCode::kDataLoss) status = one;
      if (one.code() != StatusCode::kDataLoss) break;
      wrong.push_back(layout->extents[i].key);  // The others may be shared and good.
    }
    const Time end = Now();
    lent.reset();  // Not the last to let go of it, if it can be helped.
    reactor_->Post("verified", [this, replica, generation, status, wrong = std::move(wrong),
                                done = std::move(done), start, end] {
      profile_->Span("verify", "verify", start, end, {{"model_name", NameOf(replica.model)}});
      if (!wrong.empty())
        Apply(store::QuarantineAsked{replica, status.message(), generation, wrong});
      NoticeLost(replica.tier);
      done(status);
    });
  });
}

// --- Watching over devices ------------------------------------------------------------

bool Registry::IsTrusted(uint32_t uid) const {
  return uid == 0 || uid == ::geteuid() ||
         std::find(config_.trusted_uids.begin(), config_.trusted_uids.end(), uid) !=
             config_.trusted_uids.end();
}

void Registry::WantCheck(const ReplicaKey& replica) {
  DeviceWork::Check& check = device_work_[replica.tier]->wanted[replica];
  if (std::exchange(check.is_wanted, true) || check.is_running) return;
  // Not from inside the store's own actions.
  const Time now = Now();
  if (check.not_before <= now) {
    reactor_->Post("start check", [this, replica] { StartCheck(replica); });
  } else {
    reactor_->RunAt(check.not_before, "start check", [this, replica] { StartCheck(replica); });
  }
}

// One check at a time for each replica, and a pause after it: a thousand short leases must
// not take the device's memory from those who compute.
void Registry::StartCheck(const ReplicaKey& replica) {
  DeviceWork& work = *device_work_[replica.tier];
  const auto it = work.wanted.find(replica);
  if (it == work.wanted.end() || it->second.is_running || !it->second.is_wanted) return;
  if (!store_->Find(replica)) {
    work.wanted.erase(it);
    return;
  }
  it->second.is_running = true;
  it->second.is_wanted = false;
  const Time start = Now();
  Verify(replica, std::make_shared<LoadControl>(), [this, replica, start](const Status& status) {
    DeviceWork& device = *device_work_[replica.tier];
    const auto ended = device.wanted.find(replica);
    if (ended == device.wanted.end()) return;
    DeviceWork::Check& check = ended->second;
    check.is_running = false;
    check.not_before = Now() + kCheckPauseFactor * (Now() - start);
    const bool is_gone = status.code() == StatusCode::kFailedPrecondition;
    if (is_gone || (!check.is_wanted && !store_->Find(replica))) {
      device.wanted.erase(ended);
    } else if (check.is_wanted) {
      reactor_->RunAt(check.not_before, "start check", [this, replica] { StartCheck(replica); });
    }
  });
}

void Registry::StartScrub() {
  for (store::TierIndex tier = 1; tier < tiers_.size(); ++tier) ScrubAfter(tier, kProbeInterval);
}

void Registry::ScrubAfter(store::TierIndex tier, Duration pause) {
  if (device_work_[tier]->is_lost) return;
  reactor_->RunAt(Now() + pause, "scrub", [this, tier] { ScrubStep(tier); });
}

// Checks the next replica in the order of their keys, then rests as long as its bytes take
// at the configured rate. A device without any is looked at now and then, too.
void Registry::ScrubStep(store::TierIndex tier) {
  DeviceWork& work = *device_work_[tier];
  const uint64_t rate = config_.scrub_bytes_per_second;
  std::optional<ReplicaKey> first, next;
  uint64_t bytes = 0;
  if (rate > 0) {
    for (const store::ReplicaView& view : store_->Replicas()) {
      if (view.replica.tier != tier || view.state != store::ReplicaState::kReady) continue;
      const auto is_before = [&](const std::optional<ReplicaKey>& key) {
        return !key || view.replica < *key;
      };
      if (is_before(first)) first = view.replica;
      if ((!work.last_scrubbed || *work.last_scrubbed < view.replica) && is_before(next))
        next = view.replica;
    }
    if (!next) next = first;
  }
  if (!next) {
    work.checks.Run([this, tier, device = tiers_[tier].get()] {
      (void)device->Probe();
      reactor_->Post("probed", [this, tier] {
        NoticeLost(tier);
        ScrubAfter(tier, kProbeInterval);
      });
    });
    return;
  }
  work.last_scrubbed = next;
  if (const auto view = store_->Find(*next)) bytes = view->bytes;
  const auto pause = std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(rate)));
  Verify(*next, std::make_shared<LoadControl>(),
         [this, tier, pause](const Status&) { ScrubAfter(tier, std::max(pause, kScrubPauseMin)); });
}

void Registry::NoticeLost(store::TierIndex tier) {
  if (tier == 0 || device_work_[tier]->is_lost) return;
  const Status health = tiers_[tier]->health();
  if (health.ok()) return;
  device_work_[tier]->is_lost = true;
  LogError("device lost, other tiers serve on",
           {{"tier", tiers_[tier]->name()}, {"reason", health.message()}});
  std::set<Digest> models;
  for (const store::ReplicaView& view : store_->Replicas()) {
    if (view.replica.tier == tier && view.state == store::ReplicaState::kReady)
      models.insert(view.replica.model);
  }
  // Clients may still hold the memory; nobody new gets it.
  for (const Digest& model : models) Apply(store::EvictAsked{model, tier, /*force=*/true});
  if (on_tier_lost_) on_tier_lost_(tiers_[tier]->name());
}

void Registry::MeasureLinks() {
  if (devices_ == nullptr || tiers_.size() == 1) return;
  background_pool_->Run([this, known = known_links_] {
    const std::string measured = devices_->MeasureLinks(known);
    reactor_->Post("links measured", [this, measured] {
      if (link_ >= 0) (void)!SendLink(link_, LinkType::kPut, kLinksKey, measured).ok();
    });
  });
}

uint64_t Registry::AddObserver(Observer observer) {
  observers_[next_observer_] = std::move(observer);
  return next_observer_++;
}

void Registry::MeasureRho(const std::string& directory) {
  if (rho_.read_bytes_per_second > 0) return;
  named_pool_->Run([this, directory] {
    const RhoConstants measured = MeasureRhoConstants(directory);
    reactor_->Post("rho measured", [this, measured] {
      rho_ = measured;
      nlohmann::json body;
      body["q"] = measured.read_bytes_per_second;
      body["o_ns"] = measured.export_cost.count();
      body["s_ns"] = measured.open_cost.count();
      if (link_ >= 0) (void)!SendLink(link_, LinkType::kPut, kRhoKey, body.dump()).ok();
      LogDebug("rho constants measured", {{"read_bytes_per_second", measured.read_bytes_per_second},
                                          {"export_cost", measured.export_cost},
                                          {"open_cost", measured.open_cost}});
    });
  });
}

// --- The keeper's ledger -------------------------------------------------------------

std::string Registry::ExtentEntryKey(store::TierIndex tier, const Digest& extent) const {
  return kExtentPrefix + tiers_[tier]->name() + "/" + extent.ToHex();
}

std::string Registry::ReplicaEntryKey(const ReplicaKey& key) const {
  return kReplicaPrefix + tiers_[key.tier]->name() + "/" +
         std::to_string(static_cast<int>(key.granularity)) + "/" + key.model.ToHex();
}

void Registry::LedgerPutExtent(store::TierIndex tier, const ResidentExtent& extent) {
  if (link_ < 0) return;
  const Status status = SendLink(link_, LinkType::kPut, ExtentEntryKey(tier, extent.key),
                                 extent.integrity, extent.fd.get());
  if (!status.ok())
    LogError("extent not in the ledger, a crash would lose it", {{"reason", status.message()}});
}

void Registry::LedgerPutReplica(const ReplicaKey& key) {
  if (link_ < 0) return;
  const std::optional<store::ReplicaView> view = store_->Find(key);
  const auto found = contents_.find(key.model);
  if (!view || view->state != store::ReplicaState::kReady || found == contents_.end()) return;
  const std::string serialized = SerializeManifest(*found->second->manifest);
  Result<std::shared_ptr<const ReadOnlyRegion>> manifest = SealBytes("trims-manifest", serialized);
  if (!manifest.ok()) {
    LogError("replica not in the ledger, a crash would lose it",
             {{"reason", manifest.status().message()}});
    return;
  }
  nlohmann::json body;
  body["name"] = found->second->name;
  body["directory"] = found->second->directory;
  body["path"] = found->second->path;
  body["public"] = found->second->is_public;
  body["generation"] = view->generation;
  body["granularity"] = static_cast<int>(key.granularity);
  body["tier"] = tiers_[key.tier]->name();
  body["slab_bytes"] = config_.slab_bytes;
  body["manifest_bytes"] = serialized.size();  // The memfd is padded to whole pages.
  body["proved_uids"] = found->second->proved_uids;
  const Status status = SendLink(
      link_, LinkType::kPut, ReplicaEntryKey(key),
      body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), (*manifest)->PeekFd());
  if (!status.ok())
    LogError("replica not in the ledger, a crash would lose it", {{"reason", status.message()}});
}

void Registry::LedgerDrop(const std::string& key) {
  if (link_ >= 0) (void)!SendLink(link_, LinkType::kDrop, key, "").ok();
}

void Registry::AdoptEntry(LinkMessage entry) { adopted_entries_[entry.key] = std::move(entry); }

// Extents without a replica that needs them were half of a load that never
// finished, or of an eviction that did: they are dropped. Each replica is
// re-verified on a loader thread before it is served; opens wait for that as
// they would for a load.
void Registry::FinishAdoption() {
  std::map<std::string, LinkMessage> entries = std::move(adopted_entries_);
  adopted_entries_.clear();
  std::set<std::string> kept;
  for (auto& [key, entry] : entries) {
    if (key == kRhoKey) {
      const nlohmann::json json = nlohmann::json::parse(entry.body, nullptr, false);
      if (json.is_object()) {
        rho_.read_bytes_per_second = json.value("q", 0.0);
        rho_.export_cost = Duration(json.value("o_ns", int64_t{0}));
        rho_.open_cost = Duration(json.value("s_ns", int64_t{0}));
        kept.insert(key);
      }
    } else if (key.starts_with(kDevicePrefix)) {
      if (key == kLinksKey) known_links_ = entry.body;
      kept.insert(key);
    } else if (key.starts_with(kPinPrefix)) {
      const std::string rest = key.substr(sizeof kPinPrefix - 1);
      const size_t slash = rest.rfind('/');
      const auto tier = TierByName(rest.substr(0, slash));
      const Result<Digest> digest = Digest::Parse(rest.substr(slash + 1));
      if (tier && digest.ok()) {
        pins_.insert({*digest, *tier});
        Apply(store::PinAsked{*digest, *tier, true});
        kept.insert(key);
      }
    }
  }
  struct Ready {
    ReplicaKey key;
    std::shared_ptr<const Layout> layout;
    store::AdoptionStarted event;
    std::shared_ptr<const ModelManifest> manifest;
  };
  std::vector<Ready> ready;
  for (auto& [key, entry] : entries) {
    if (!key.starts_with(kReplicaPrefix)) continue;
    const nlohmann::json json = nlohmann::json::parse(entry.body, nullptr, false);
    struct stat info;
    if (!json.is_object() || ::fstat(entry.fd.get(), &info) != 0) continue;
    const auto tier = TierByName(json.value("tier", ""));
    const auto granularity = static_cast<Granularity>(json.value("granularity", 0));
    // Layouts at another slab size would name other extents.
    if (!tier || json.value("slab_bytes", uint64_t{0}) != config_.slab_bytes) continue;
    Result<ReadOnlyRegion> region =
        ReadOnlyRegion::Adopt(std::move(entry.fd), static_cast<uint64_t>(info.st_size));
    if (!region.ok()) continue;
    Result<ReadOnlyMapping> mapping = region->Map();
    if (!mapping.ok()) continue;
    const size_t manifest_bytes = json.value("manifest_bytes", size_t{0});
    Result<ModelManifest> manifest =
        DeserializeManifest(mapping->bytes().first(std::min(manifest_bytes, mapping->size())));
    if (!manifest.ok()) {
      LogError("replica not adopted", {{"entry", key}, {"reason", manifest.status().message()}});
      continue;
    }
    std::shared_ptr<ModelContents>& contents = contents_[manifest->digest];
    if (contents == nullptr) {
      contents = std::make_shared<ModelContents>();
      contents->manifest = std::make_shared<const ModelManifest>(*std::move(manifest));
      contents->name = json.value("name", "");
      contents->directory = json.value("directory", "");
      contents->path = json.value("path", "");
      contents->is_public = json.value("public", false);
      for (const auto& uid : json.value("proved_uids", nlohmann::json::array())) {
        if (uid.is_number_unsigned()) contents->proved_uids.insert(uid.get<uint32_t>());
      }
    }
    Result<std::shared_ptr<const Layout>> layout =
        contents->LayoutAt(granularity, config_.slab_bytes);
    if (!layout.ok()) continue;
    Ready item;
    item.key = ReplicaKey{contents->manifest->digest, *tier, granularity};
    item.layout = *layout;
    item.manifest = contents->manifest;
    bool complete = true;
    for (const ExtentSpec& spec : (*layout)->extents) {
      if (adopting_.contains({*tier, spec.key})) continue;
      const auto extent = entries.find(ExtentEntryKey(*tier, spec.key));
      if (extent == entries.end() || !extent->second.fd.valid()) {
        complete = false;
        break;
      }
      Result<ResidentExtent> adopted =
          tiers_[*tier]->Adopt(spec, std::move(extent->second.fd), extent->second.body);
      if (!adopted.ok()) {
        LogError("extent not adopted",
                 {{"entry", extent->first}, {"reason", adopted.status().message()}});
        complete = false;
        break;
      }
      adopting_[{*tier, spec.key}] = std::make_shared<const ResidentExtent>(*std::move(adopted));
    }
    if (!complete) continue;
    item.event.tier = *tier;
    item.event.granularity = granularity;
    item.event.generation = json.value("generation", uint64_t{0});
    item.event.pinned = pins_.contains({item.key.model, *tier});
    item.event.plan = MakePlan(*contents->manifest, **layout, NameOf(item.key.model));
    for (store::Extent& extent : item.event.plan.extents) {
      extent.bytes = tiers_[*tier]->AllocationBytes(extent.bytes);
    }
    item.event.plan.is_public = contents->is_public;
    item.event.proved_uids.assign(contents->proved_uids.begin(), contents->proved_uids.end());
    for (const ExtentSpec& spec : (*layout)->extents) kept.insert(ExtentEntryKey(*tier, spec.key));
    kept.insert(key);
    ready.push_back(std::move(item));
  }
  for (const auto& [key, entry] : entries) {
    if (!kept.contains(key)) LedgerDrop(key);
  }
  entries.clear();  // Descriptors nobody adopted are closed.
  for (auto it = adopting_.begin(); it != adopting_.end();) {
    const bool used = kept.contains(ExtentEntryKey(it->first.first, it->first.second));
    it = used ? std::next(it) : adopting_.erase(it);
  }
  if (!ready.empty())
    LogInfo("adopting what the last worker left",
            {{"replicas", ready.size()}, {"extents", adopting_.size()}});

  for (Ready& item : ready) {
    item.event.load = store_->NewLoadId();
    const store::LoadId id = item.event.load;
    auto adoption = std::make_unique<AdoptedReplica>();
    adoption->replica = item.key;
    const std::shared_ptr<LoadControl> control = adoption->control;
    adoptions_.emplace(id, std::move(adoption));
    Apply(item.event);
    std::vector<std::shared_ptr<const ResidentExtent>> extents;
    for (const ExtentSpec& spec : item.layout->extents)
      extents.push_back(adopting_.at({item.key.tier, spec.key}));
    auto throttle =
        std::make_shared<ProgressThrottle>([this, key = item.key](uint64_t done, uint64_t total) {
          reactor_->Post("adoption progress", [this, key, done, total] {
            ReportProgress(key, OpenPhase::kVerifying, done, total);
          });
        });
    Tier* const tier = tiers_[item.key.tier].get();
    named_pool_->Run([this, id, tier, control, throttle, extents, layout = item.layout,
                      manifest = item.manifest] {
      Status status;
      uint64_t total = 0, before = 0;
      for (const auto& extent : extents) total += extent->bytes;
      std::vector<Digest> verified;
      for (size_t i = 0; i < extents.size() && status.ok(); ++i) {
        LoadControl part;
        part.cancelled = control->cancelled.load();
        part.on_progress = [&](uint64_t done, uint64_t) {
          if (control->cancelled) part.cancelled = true;
          (*throttle)(before + done, total);
        };
        status = tier->Verify(*extents[i], layout->extents[i], *manifest, part);
        if (status.ok()) verified.push_back(extents[i]->key);
        before += extents[i]->bytes;
      }
      reactor_->Post("adopted", [this, id, status, verified = std::move(verified)]() mutable {
        FinishAdoptedReplica(id, std::move(verified), status);
      });
    });
  }
}

void Registry::FinishAdoptedReplica(store::LoadId id, std::vector<Digest> verified, Status status) {
  const ReplicaKey replica = adoptions_.at(id)->replica;
  adoptions_.erase(id);
  if (status.ok()) {
    for (const Digest& key : verified) {
      if (const auto it = adopting_.find({replica.tier, key}); it != adopting_.end()) {
        extents_[it->first] = it->second;  // Another replica may still need it in `adopting_`.
        if (replica.tier == 0) {
          for (size_t i = 1; i < tiers_.size(); ++i) tiers_[i]->HostExtentReady(it->second);
        }
      }
    }
    LogInfo("adopted", {{"model", NameOf(replica.model)},
                        {"digest", replica.model.ToShort()},
                        {"tier", tiers_[replica.tier]->name()}});
    Apply(store::LoadFinished{id});
  } else {
    LogError("replica not adopted",
             {{"model", NameOf(replica.model)}, {"reason", status.ToString()}});
    LedgerDrop(ReplicaEntryKey(replica));
    if (status.code() == StatusCode::kDataLoss) ++counters_.quarantines;
    Apply(store::LoadFailed{id, status, std::nullopt});
    NoticeLost(replica.tier);
  }
  if (adoptions_.empty()) {
    for (const auto& [key, extent] : adopting_) {
      if (!extents_.contains(key)) LedgerDrop(ExtentEntryKey(key.first, key.second));
    }
    adopting_.clear();
  }
}

}  // namespace trims

// Random histories over the whole trunk of a worker: opens by name, digest and file, closes,
// cancels, ends of sessions, pins, evictions, failing and hanging loads, wrong bytes, files that
// are replaced and removed, names that come and go, changed settings, and workers that die and
// leave their ledger to the next. After every event all invariants of the trunk hold, and this
// judge, who knows nothing of the trunk but its interface, agrees with every answer:
//
//   - every open that is not cancelled gets one answer, none gets two;
//   - who opens a name gets what its file holds, or held since he asked;
//   - who opens a digest may: a name leads to it, or he has proved access, or he is root;
//   - a descriptor that a lease hands out holds the model's bytes;
//   - when all is quiet, the names known are those of the files that are there, and the keeper's
//     ledger says what is resident, what is pinned, and who may have it, and nothing else;
//   - at the end no descriptor is left.
//
// A failure prints its seed; TRIMS_HISTORY_SEED runs that one alone, TRIMS_HISTORY_EVENTS sets
// how long a history is.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/test_keeper.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using store::Granularity;
using store::LeaseId;
using store::OpenId;
using store::ReplicaKey;
using store::ReplicaState;
using store::SessionId;

constexpr int kHistories = 8;
constexpr int kEventsPerHistory = 26'000;
constexpr int kEventsBetweenQuiet = 400;
constexpr int kEventsBetweenCrashes = 2'600;
constexpr size_t kNames = 5;
constexpr size_t kVariants = 7;  // Of contents.
constexpr size_t kUids = 60;     // Beside root.

int NumberFromEnvironment(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::stoi(text);
}

class History final {
 public:
  explicit History(uint64_t seed) : random_(seed) {
    for (size_t variant = 0; variant < kVariants; ++variant) {
      variants_.push_back(TensorsOf(variant));
      // One and the same file for those who pass descriptors.
      passed_.push_back(root_.Write("passed/" + std::to_string(variant),
                                    format::WriteSafetensors(variants_[variant])));
      digests_.push_back(DigestOfFile(passed_[variant]));
      EXPECT_EQ(std::count(digests_.begin(), digests_.end(), digests_[variant]), 1);
    }
    std::filesystem::create_directories(root_ / "named");
    Start({});
  }

  void Run(int events) {
    for (event_ = 1; event_ <= events && !::testing::Test::HasFailure(); ++event_) {
      Step();
      trunk_->registry().CheckInvariants();
      if (event_ % kEventsBetweenQuiet == 0) CheckQuiet();
      if (event_ % kEventsBetweenCrashes == 0) Crash();
    }
    if (::testing::Test::HasFailure()) return;
    CheckQuiet();
    End();
    // Not a history of refusals.
    EXPECT_GT(granted_, events / 20);
    EXPECT_GT(granted_warm_, events / 200);
    EXPECT_GT(granted_loaded_, events / 200);
    EXPECT_GT(refused_rightly_, events / 500);
    EXPECT_GT(adopted_, 0);
  }

  int event() const { return event_; }

 private:
  struct Asked {
    uint32_t uid = 0;
    SessionId session = 0;
    std::string name;               // Or by digest or file.
    std::set<size_t> held;          // Variants that the name's file held since.
    std::optional<size_t> variant;  // Of a digest or a file.
    bool may = true;                // Open this digest.
    bool takes_lease = true;
    bool is_answered = false;
  };

  // --- Dice -----------------------------------------------------------------------

  size_t Dice(size_t sides) { return std::uniform_int_distribution<size_t>(0, sides - 1)(random_); }
  bool Percent(size_t percent) { return Dice(100) < percent; }
  template <typename T>
  const T& Of(const std::vector<T>& all) {
    return all[Dice(all.size())];
  }

  // Every two neighbours share a tensor, so layers are shared; sizes differ.
  static std::vector<format::TestTensor> TensorsOf(size_t variant) {
    return {NoiseTensor("a.weight", 5000 + 3000 * variant, 100 + variant),
            NoiseTensor("b.weight", 9000, 200 + variant / 2), NoiseTensor("c.bias", 77, 300)};
  }

  Digest DigestOfFile(const std::string& path) {
    Result<Source> source = Source::OpenPath(path, "x");
    LoadControl control;
    return Ingest(*source, nullptr, control).value().manifest->digest;
  }

  static std::string NameAt(size_t index) { return "n" + std::to_string(index); }
  std::string PathOf(const std::string& name) const { return root_ / ("named/" + name); }

  // --- A worker's life --------------------------------------------------------------

  void Start(std::vector<LinkMessage> entries) {
    TestTrunk::Options options;
    options.root = &root_;
    options.config.slab_bytes = 16 * kKiB;
    options.config.memory_percentage = 0.5;
    options.config.write_profile = false;
    options.devices = {"GPU-a", "GPU-b"};
    options.host_bytes = 120 * kKiB;
    options.device_bytes = 64 * kKiB;
    options.id_base = id_base_;
    options.link = keeper_.link();
    options.entries = std::move(entries);
    trunk_ = std::make_unique<TestTrunk>(std::move(options));
  }

  FakeTier& AnyTier() {
    const size_t tier = Dice(3);
    return tier == 0 ? trunk_->host() : trunk_->device(tier - 1);
  }

  // The worker is gone in the middle of whatever it did.
  void Crash() {
    std::set<ReplicaKey> ready;
    for (const store::ReplicaView& view : trunk_->registry().store().Replicas()) {
      if (view.state == ReplicaState::kReady) ready.insert(view.replica);
    }
    ReleaseAll();
    trunk_.reset();
    asked_.clear();
    leases_.clear();
    sessions_.clear();
    checks_.clear();
    // What opens of its went on to tell later is nobody's any more.
    id_base_ += 1'000'000;
    Start(keeper_.EntriesForNextWorker());
    trunk_->registry().CheckInvariants();
    if (Percent(50)) CheckQuiet();
    for (const store::ReplicaView& view : trunk_->registry().store().Replicas())
      adopted_ += static_cast<int>(ready.contains(view.replica));
  }

  void ReleaseAll() {
    trunk_->host().Release();
    for (size_t i = 0; i < 2; ++i) trunk_->device(i).Release();
  }

  void End() {
    for (const auto& [session, uid] : sessions_) trunk_->registry().EndSession(session);
    sessions_.clear();
    leases_.clear();
    for (const Digest& digest : digests_)
      (void)trunk_->registry().Evict(digest, std::nullopt, /*force=*/true);
    trunk_->Settle();
    for (const Digest& digest : digests_)
      (void)trunk_->registry().Evict(digest, std::nullopt, /*force=*/true);
    trunk_->registry().CheckInvariants();
    EXPECT_TRUE(trunk_->registry().store().Replicas().empty());
    for (const store::TierView& tier : trunk_->registry().store().Tiers())
      EXPECT_EQ(tier.used_bytes, 0u) << tier.name;
    for (const auto& [key, entry] : keeper_.Ledger()) EXPECT_EQ(key, kRhoLedgerKey);
    trunk_.reset();
  }

  // --- Events -------------------------------------------------------------------------

  void Step() {
    const size_t dice = Dice(1000);
    if (dice < 330) return AskOpen();
    if (dice < 520) return CloseOne();
    if (dice < 560) return CancelOne();
    if (dice < 600) return EndOneSession();
    if (dice < 625) return Pin();
    if (dice < 665) return Evict();
    if (dice < 705) return ChangeFile();
    if (dice < 720) return ChangeName();
    if (dice < 735) return AnyTier().FailLoads(UnavailableError("the test says so"), 1);
    if (dice < 750) return AnyTier().Hold();
    if (dice < 790) return ReleaseAll();
    if (dice < 810) return Verify();
    if (dice < 815) return DamageOne();
    if (dice < 830) return ChangeConfig();
    if (dice < 850) return Reattach();
    trunk_->RunOnce();
  }

  SessionId AnySession() {
    if (sessions_.empty() || Percent(15)) {
      const SessionId id = next_session_++;
      sessions_[id] = Percent(20) ? 0 : static_cast<uint32_t>(1000 + Dice(kUids));
      return id;
    }
    return std::next(sessions_.begin(), static_cast<ptrdiff_t>(Dice(sessions_.size())))->first;
  }

  std::optional<store::TierIndex> AnyTierIndex() {
    if (Percent(50)) return std::nullopt;
    return static_cast<store::TierIndex>(Dice(3));
  }

  std::optional<Granularity> AnyGranularity() {
    if (Percent(20)) return std::nullopt;
    return static_cast<Granularity>(1 + Dice(3));
  }

  std::optional<size_t> HeldBy(const std::string& name) const {
    const auto it = files_.find(name);
    return it == files_.end() ? std::nullopt : it->second;
  }

  bool IsHeld(size_t variant) const {
    for (const auto& [name, held] : files_) {
      if (held == variant) return true;
    }
    return false;
  }

  void AskOpen() {
    OpenRequest request;
    Asked asked;
    asked.session = request.session = AnySession();
    asked.uid = request.uid = sessions_.at(asked.session);
    request.is_admin = asked.uid == 0;
    request.tier = AnyTierIndex();
    request.granularity = AnyGranularity();
    if (Percent(10))
      request.keep_alive = std::optional<Duration>(std::chrono::milliseconds(Dice(3)));
    if (Percent(8) && request.is_admin) asked.takes_lease = request.take_lease = false;
    if (Percent(3)) request.resolve_only = true;
    const size_t how = Dice(100);
    if (how < 55) {
      asked.name = request.model = NameAt(Dice(kNames));
      if (const auto held = HeldBy(asked.name)) asked.held.insert(*held);
    } else if (how < 80) {
      asked.variant = Dice(kVariants);
      const Digest& digest = digests_[*asked.variant];
      request.model = "@" + digest.ToString();
      const auto contents = trunk_->registry().FindContents(digest);
      asked.may = asked.uid == 0 || proved_.contains({asked.uid, *asked.variant}) ||
                  (contents != nullptr && contents->is_public()) || IsHeld(*asked.variant);
    } else {
      asked.variant = Dice(kVariants);
      request.file = UniqueFd(::open(passed_[*asked.variant].c_str(), O_RDONLY | O_CLOEXEC));
      request.label = "passed" + std::to_string(*asked.variant);
      proved_.insert({asked.uid, *asked.variant});
    }
    if (request.resolve_only) asked.takes_lease = false;
    const bool resolves = request.resolve_only;
    const OpenId id = trunk_->registry().NewOpenId();
    asked_.emplace(id, asked);
    trunk_->registry().Open(
        id, std::move(request),
        [this, id, resolves](OpenResult result) { OnAnswer(id, resolves, result); }, nullptr);
  }

  void OnAnswer(OpenId id, bool resolves, const OpenResult& result) {
    const auto it = asked_.find(id);
    ASSERT_TRUE(it != asked_.end()) << "an answer for an open that was cancelled";
    Asked& asked = it->second;
    ASSERT_FALSE(asked.is_answered) << "a second answer";
    asked.is_answered = true;
    if (!result.status.ok()) {
      EXPECT_NE(result.status.code(), StatusCode::kInternal) << result.status.ToString();
      if (!asked.may) ++refused_rightly_;
      return;
    }
    const auto variant = std::find(digests_.begin(), digests_.end(), result.replica.model);
    ASSERT_TRUE(variant != digests_.end());
    const size_t number = static_cast<size_t>(variant - digests_.begin());
    if (asked.variant) {
      EXPECT_EQ(number, *asked.variant);
    } else {
      EXPECT_TRUE(asked.held.contains(number))
          << asked.name << " gave variant " << number << ", which its file did not hold";
    }
    if (resolves) return;
    EXPECT_TRUE(asked.may) << "uid " << asked.uid << " opened a digest that is not his";
    if (!asked.takes_lease) return;
    ASSERT_NE(result.lent, nullptr);
    EXPECT_EQ(result.lent->key, result.replica);
    leases_[result.lease] = asked.session;
    ++granted_;
    ++(result.loaded ? granted_loaded_ : granted_warm_);
    if (Percent(5)) CheckBytes(*result.lent, number);
  }

  void CheckBytes(const LentReplica& lent, size_t variant) {
    ModelManifest manifest = *lent.manifest;
    const Layout layout = MakeLayout(manifest, lent.key.granularity, 16 * kKiB).value();
    std::map<std::string, std::string> expected;
    for (const format::TestTensor& tensor : variants_[variant])
      expected[tensor.name] = tensor.bytes;
    for (size_t i = 0; i < manifest.tensors.size(); ++i) {
      const ManifestTensor& tensor = manifest.tensors[i];
      std::string bytes(tensor.size_bytes, '\0');
      const Placement& placement = layout.placements[i];
      ASSERT_EQ(::pread(lent.extents[placement.extent]->fd.get(), bytes.data(), bytes.size(),
                        static_cast<off_t>(placement.offset)),
                static_cast<ssize_t>(bytes.size()));
      EXPECT_TRUE(bytes == expected.at(tensor.name)) << tensor.name;
    }
  }

  void CloseOne() {
    if (leases_.empty()) return;
    const auto it = std::next(leases_.begin(), static_cast<ptrdiff_t>(Dice(leases_.size())));
    const auto [lease, session] = *it;
    EXPECT_FALSE(trunk_->registry().Close(session + 1'000'000, lease, 0).ok());
    leases_.erase(it);
    const Status closed = trunk_->registry().Close(session, lease, Dice(3) * 5000);
    EXPECT_TRUE(closed.ok()) << closed.ToString();
    EXPECT_EQ(trunk_->registry().Close(session, lease, 0).code(), StatusCode::kNotFound);
  }

  void CancelOne() {
    for (auto it = asked_.begin(); it != asked_.end();) {
      if (it->second.is_answered) {
        it = asked_.erase(it);
      } else if (Percent(30)) {
        const OpenId id = it->first;
        asked_.erase(it);
        return trunk_->registry().CancelOpen(id);
      } else {
        ++it;
      }
    }
  }

  // As the lease server ends one: opens first, then leases.
  void EndOneSession() {
    if (sessions_.empty()) return;
    const SessionId session =
        std::next(sessions_.begin(), static_cast<ptrdiff_t>(Dice(sessions_.size())))->first;
    sessions_.erase(session);
    std::vector<OpenId> opens;
    for (const auto& [id, asked] : asked_) {
      if (asked.session == session) opens.push_back(id);
    }
    for (const OpenId id : opens) {
      asked_.erase(id);
      trunk_->registry().CancelOpen(id);
    }
    trunk_->registry().EndSession(session);
    std::erase_if(leases_, [&](const auto& lease) { return lease.second == session; });
  }

  void Reattach() {
    const SessionId session = AnySession();
    const uint32_t uid = sessions_.at(session);
    const size_t variant = Dice(kVariants);
    const ReplicaKey replica{digests_[variant], static_cast<store::TierIndex>(Dice(3)),
                             static_cast<Granularity>(1 + Dice(3))};
    Asked asked;
    asked.uid = uid;
    asked.session = session;
    asked.variant = variant;
    const auto contents = trunk_->registry().FindContents(replica.model);
    asked.may = uid == 0 || proved_.contains({uid, variant}) ||
                (contents != nullptr && contents->is_public()) || IsHeld(variant);
    const OpenId id = trunk_->registry().NewOpenId();
    asked_.emplace(id, asked);
    trunk_->registry().Reattach(
        id, session, uid, uid == 0, replica, Dice(5),
        [this, id](const OpenResult& result) { OnAnswer(id, false, result); });
  }

  void Pin() {
    const Digest& digest = Of(digests_);
    const auto tier = static_cast<store::TierIndex>(Dice(3));
    const bool pinned = Percent(40);
    trunk_->registry().Pin(digest, tier, pinned);
    EXPECT_EQ(trunk_->registry().IsPinned(digest, tier), pinned);
  }

  void Evict() {
    const Digest& digest = Of(digests_);
    const bool force = Percent(40);
    const std::optional<store::TierIndex> tier = AnyTierIndex();
    const Registry::EvictOutcome outcome = trunk_->registry().Evict(digest, tier, force);
    EXPECT_GE(outcome.before.size(), outcome.result.found);  // Unpinning may drop some first.
    if (!force) return;
    for (const store::ReplicaView& view : trunk_->registry().store().Replicas()) {
      if (view.replica.model == digest && (!tier || view.replica.tier == *tier)) {
        EXPECT_NE(view.state, ReplicaState::kReady) << "ready after it was evicted by force";
      }
    }
  }

  // Everybody who waits for this name may get what it holds now, too.
  void NoteHeld(const std::string& name) {
    const std::optional<size_t> held = HeldBy(name);
    if (!held) return;
    for (auto& [id, asked] : asked_) {
      if (asked.name == name) asked.held.insert(*held);
      if (asked.variant == held) asked.may = true;  // A look may find it.
    }
  }

  void ChangeFile() {
    const std::string name = NameAt(Dice(kNames));
    const std::string path = PathOf(name) + "/model.safetensors";
    const size_t how = Dice(100);
    if (how < 20) {
      std::filesystem::remove_all(PathOf(name));
      files_.erase(name);
      return;
    }
    const size_t variant = Dice(kVariants);
    const std::string bytes = format::WriteSafetensors(variants_[variant]);
    if (how < 40) {
      root_.Write("named/" + name + "/model.safetensors", bytes);  // In place.
    } else if (how < 80) {
      root_.Write("named/" + name + "/.new", bytes);
      std::filesystem::rename(PathOf(name) + "/.new", path);
    } else {
      // Another directory takes its place.
      root_.Write("named/." + name + "/model.safetensors", bytes);
      std::filesystem::remove_all(PathOf(name));
      std::filesystem::rename(root_ / ("named/." + name), PathOf(name));
    }
    files_[name] = variant;
    NoteHeld(name);
  }

  void ChangeName() {
    const std::string name = NameAt(Dice(kNames));
    Registry& registry = trunk_->registry();
    if (Percent(40)) {
      const Status removed = registry.catalogue().Remove(name);
      registry.ForgetName(name);
      EXPECT_FALSE(registry.DigestOfName(name).has_value());
      (void)removed.ok();  // NOT_FOUND when it was not there.
    } else {
      EXPECT_TRUE(registry.catalogue().Add(name, PathOf(name), /*replace=*/true).ok());
    }
  }

  std::optional<ReplicaKey> AnyReplica() {
    const std::vector<store::ReplicaView> views = trunk_->registry().store().Replicas();
    if (views.empty()) return std::nullopt;
    return Of(views).replica;
  }

  void Verify() {
    const std::optional<ReplicaKey> replica = AnyReplica();
    if (!replica) return;
    const uint64_t number = next_check_++;
    checks_.insert(number);
    trunk_->registry().Verify(*replica, std::make_shared<LoadControl>(),
                              [this, number](const Status&) {
                                EXPECT_EQ(checks_.erase(number), 1u) << "a check ended twice";
                              });
  }

  void DamageOne() {
    const std::optional<ReplicaKey> replica = AnyReplica();
    if (!replica) return;
    const auto view = trunk_->registry().store().Find(*replica);
    if (!view || view->extents.empty()) return;
    FakeTier& tier = replica->tier == 0 ? trunk_->host() : trunk_->device(replica->tier - 1);
    tier.Damage(Of(view->extents).key);
  }

  void ChangeConfig() {
    DaemonConfig config = trunk_->registry().config();
    config.keep_alive =
        Percent(60) ? std::nullopt : std::optional<Duration>(std::chrono::milliseconds(Dice(4)));
    config.persist_cpu = Percent(80);
    config.persist_only_cpu = Percent(20);
    config.leases_per_uid_max = Percent(80) ? 0 : 3;
    config.eviction_policy = static_cast<store::PolicyKind>(Dice(8));
    trunk_->registry().ApplyConfig(config);
  }

  // --- When all is quiet ----------------------------------------------------------------

  void CheckQuiet() {
    ReleaseAll();
    Registry& registry = trunk_->registry();
    const auto names_agree = [&] {
      for (size_t i = 0; i < kNames; ++i) {
        const std::optional<Digest> known = registry.DigestOfName(NameAt(i));
        const std::optional<size_t> held = HeldBy(NameAt(i));
        if (known && (!held || digests_[*held] != *known)) return false;
      }
      return true;
    };
    // An adopted name stands for what it stood for until somebody looks.
    for (size_t i = 0; i < kNames; ++i) {
      OpenRequest look;
      look.model = NameAt(i);
      look.is_admin = true;
      look.resolve_only = true;
      (void)trunk_->Open(std::move(look));
    }
    ASSERT_TRUE(trunk_->RunUntil([&] {
      if (registry.is_busy() || !checks_.empty() || !names_agree()) return false;
      for (const auto& [id, asked] : asked_) {
        if (!asked.is_answered) return false;
      }
      return true;
    })) << "not quiet";
    asked_.clear();
    registry.CheckInvariants();
    CheckVisibility();
    CheckLedger();
  }

  void CheckVisibility() {
    for (size_t variant = 0; variant < kVariants; ++variant) {
      const auto contents = trunk_->registry().FindContents(digests_[variant]);
      if (contents == nullptr) continue;
      EXPECT_TRUE(IsHeld(variant) || !contents->is_public())
          << "variant " << variant << " is public and no file holds it";
    }
  }

  void CheckLedger() {
    const store::Store& store = trunk_->registry().store();
    const Tiers& tiers = trunk_->registry().tiers();
    std::map<std::string, store::ReplicaView> ready;
    std::set<std::string> replicas, extents_needed, extents_known;
    for (const store::ReplicaView& view : store.Replicas()) {
      const std::string& tier = tiers.name(view.replica.tier);
      const std::string key = ReplicaLedgerKey(tier, view.replica.granularity, view.replica.model);
      replicas.insert(key);
      for (const store::Extent& extent : view.extents) {
        extents_known.insert(ExtentLedgerKey(tier, extent.key));
        if (view.state == ReplicaState::kReady)
          extents_needed.insert(ExtentLedgerKey(tier, extent.key));
      }
      if (view.state == ReplicaState::kReady) ready.emplace(key, view);
    }
    std::set<std::string> pins;
    for (const Digest& digest : digests_) {
      for (store::TierIndex tier = 0; tier < tiers.size(); ++tier) {
        if (store.IsPinned(digest, tier)) pins.insert(PinLedgerKey(tiers.name(tier), digest));
      }
    }
    const std::map<std::string, TestKeeper::Entry> ledger = keeper_.Ledger();
    for (const auto& [key, view] : ready) {
      ASSERT_TRUE(ledger.contains(key)) << "a crash would lose " << key;
      const Result<ReplicaEntry> entry = ParseReplicaEntry(ledger.at(key).body);
      ASSERT_TRUE(entry.ok()) << entry.status().ToString();
      EXPECT_EQ(entry->proved_uids, view.proved_uids) << key;
      EXPECT_EQ(!entry->names.empty(), view.is_public) << key;
      EXPECT_EQ(entry->generation, view.generation) << key;
    }
    for (const std::string& key : extents_needed)
      EXPECT_TRUE(ledger.contains(key) && ledger.at(key).has_descriptor) << key;
    for (const std::string& key : pins) EXPECT_TRUE(ledger.contains(key)) << key;
    for (const auto& [text, entry] : ledger) {
      const std::optional<LedgerKey> key = ParseLedgerKey(text);
      ASSERT_TRUE(key.has_value()) << text;
      const std::set<std::string>* known = nullptr;
      if (key->kind == LedgerKey::Kind::kExtent) known = &extents_known;
      if (key->kind == LedgerKey::Kind::kReplica) known = &replicas;
      if (key->kind == LedgerKey::Kind::kPin) known = &pins;
      EXPECT_TRUE(known == nullptr || known->contains(text)) << text << " is kept for nothing";
    }
  }

  std::mt19937_64 random_;
  int event_ = 0;
  const TemporaryDirectory root_;
  TestKeeper keeper_;
  std::unique_ptr<TestTrunk> trunk_;
  uint64_t id_base_ = 1;

  std::vector<std::vector<format::TestTensor>> variants_;
  std::vector<std::string> passed_;                     // Files, by variant.
  std::vector<Digest> digests_;                         // By variant.
  std::map<std::string, std::optional<size_t>> files_;  // Variant that a name's file holds.
  std::set<std::pair<uint32_t, size_t>> proved_;        // Uid and variant.

  SessionId next_session_ = 1;
  std::map<SessionId, uint32_t> sessions_;  // Uids.
  std::map<OpenId, Asked> asked_;
  std::map<LeaseId, SessionId> leases_;
  uint64_t next_check_ = 1;
  std::set<uint64_t> checks_;

  int granted_ = 0, granted_warm_ = 0, granted_loaded_ = 0, refused_rightly_ = 0, adopted_ = 0;
};

class TrunkHistoryTest : public ::testing::TestWithParam<int> {};

TEST_P(TrunkHistoryTest, TheTrunkAndTheJudgeAgree) {
  SetLogLevel(LogLevel::kError);
  const int fixed = NumberFromEnvironment("TRIMS_HISTORY_SEED", -1);
  if (fixed >= 0 && GetParam() > 0) return;
  const uint64_t seed = static_cast<uint64_t>(fixed >= 0 ? fixed : 1000 + GetParam());
  const size_t descriptors = OpenFdCount();
  {
    History history(seed);
    history.Run(NumberFromEnvironment("TRIMS_HISTORY_EVENTS", kEventsPerHistory));
    EXPECT_FALSE(HasFailure()) << "seed " << seed << ", event " << history.event();
  }
  EXPECT_EQ(OpenFdCount(), descriptors);
}

INSTANTIATE_TEST_SUITE_P(Seeds, TrunkHistoryTest, ::testing::Range(0, kHistories));

}  // namespace
}  // namespace trims

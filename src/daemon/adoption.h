// Adoption: what an earlier worker left with the keeper becomes resident again.
//
// Each replica is verified on a loader thread (VerifyOnLoaderThread) before it is
// served; opens wait for that as they would for a load. Extents without a replica that
// needs them were half of a load that never finished, or of an eviction that did: they
// are dropped, as is whatever is not understood.
//
// Thread rule: the reactor's thread. Add and Start come before anything is served.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/contents.h"
#include "daemon/ledger.h"
#include "daemon/ledger_link.h"
#include "daemon/loaders.h"
#include "daemon/rates.h"
#include "daemon/reactor.h"
#include "daemon/residents.h"
#include "daemon/tiers.h"
#include "store/store.h"

namespace trims {

class Adoption final {
 public:
  struct Parts {  // All borrowed.
    Reactor* reactor = nullptr;
    const Tiers* tiers = nullptr;
    Loaders* loaders = nullptr;
    Contents* contents = nullptr;
    Residents* residents = nullptr;
    Ledger* ledger = nullptr;
    Rates* rates = nullptr;
    store::Store* store = nullptr;  // For load numbers; what happens goes through `apply`.
    std::function<void(const store::Event&)> apply;
    std::function<void(const store::ReplicaKey&, uint64_t done, uint64_t total)> on_progress;
    std::function<void(const store::ReplicaKey&, const Status&)> on_ended;
  };
  explicit Adoption(Parts parts) : parts_(std::move(parts)) {}
  Adoption(const Adoption&) = delete;
  Adoption& operator=(const Adoption&) = delete;

  void Add(LinkMessage entry) { entries_[entry.key] = std::move(entry); }
  // With every entry added. `slab_bytes` is what layouts are made with now.
  void Start(uint64_t slab_bytes);
  // Unknown ids are ignored.
  void Cancel(store::LoadId id);
  void CancelAll();
  bool is_over() const { return running_.empty(); }

 private:
  // A replica whose extents are all here.
  struct Candidate {
    store::ReplicaKey key;
    ReplicaEntry entry;
    std::shared_ptr<ModelContents> contents;
    std::shared_ptr<const Layout> layout;
    std::vector<std::shared_ptr<const ResidentExtent>> extents;  // In layout order.
  };
  struct Running {
    store::ReplicaKey replica;
    std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
  };
  struct VerifyWork;

  void AdoptFacts(const LedgerKey& key, const LinkMessage& entry);
  Result<Candidate> AdoptReplica(const LedgerKey& key, LinkMessage entry, uint64_t slab_bytes);
  Status AdoptExtents(Candidate& candidate);
  // False when the store has no room for it: then it is gone already.
  bool Verify(const Candidate& candidate);
  static void VerifyOnLoaderThread(VerifyWork& work);
  void Finish(store::LoadId id, const VerifyWork& work);

  const Parts parts_;
  std::map<std::string, LinkMessage> entries_;  // Until Start.
  std::unordered_map<store::LoadId, Running> running_;
};

}  // namespace trims

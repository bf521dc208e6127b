// Eviction policies: small classes behind one interface. A policy orders
// candidates; it never sees replicas that are in use, so no policy can evict one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "store/types.h"

namespace trims::store {

// What a policy may know of an evictable replica.
struct Candidate {
  ReplicaKey replica;
  uint64_t bytes = 0;        // Of all its extents.
  uint64_t load_number = 0;  // Order of loading; a reload gets a new one.
  uint64_t opens = 0;        // Since it was loaded.
  Time last_open{};
  double priority = 0;  // gdsf's H value, kept per replica by the policy.
  Duration reload_cost{};
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual PolicyKind kind() const = 0;
  // Orders `candidates`, first victim first. May drop some: those are not
  // to be evicted (never drops all).
  virtual void Order(std::vector<Candidate>& candidates) = 0;
  // Evict everything evictable as soon as room is short (flush).
  virtual bool EvictsAll() const { return false; }
  // Drop a replica as soon as its last lease ends (eager).
  virtual bool EvictsAtZeroLeases() const { return false; }
  // Priority of a replica when it is opened or loaded (gdsf).
  virtual double OnAccess(const Candidate&) { return 0; }
  virtual void OnEvict(const Candidate&) {}
};

std::unique_ptr<EvictionPolicy> MakePolicy(PolicyKind kind, uint64_t seed);

}  // namespace trims::store

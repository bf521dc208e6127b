#include "store/policy.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace trims::store {

namespace {

// Every order ends with the load number, which is unique, so that a history
// replays to the same victims whatever order the candidates came in.
template <typename KeyFunction>
void SortBy(std::vector<Candidate>& candidates, KeyFunction key) {
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    const auto key_a = key(a);
    const auto key_b = key(b);
    if (key_a != key_b) return key_a < key_b;
    return a.load_number < b.load_number;
  });
}

void SortByLastOpen(std::vector<Candidate>& candidates) {
  SortBy(candidates, [](const Candidate& c) { return c.last_open; });
}

// Refuses what does not fit.
class Never final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kNever; }
  void Order(std::vector<Candidate>& candidates) override { candidates.clear(); }
};

// Least recently opened first; closing does not count as use.
class Lru final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kLru; }
  void Order(std::vector<Candidate>& candidates) override { SortByLastOpen(candidates); }
};

// First loaded first; a reload counts as new.
class Fifo final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kFifo; }
  void Order(std::vector<Candidate>& candidates) override {
    SortBy(candidates, [](const Candidate& c) { return c.load_number; });
  }
};

// Least commonly used: fewest opens since it was loaded.
class Lcu final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kLcu; }
  void Order(std::vector<Candidate>& candidates) override {
    SortBy(candidates, [](const Candidate& c) { return c.opens; });
  }
};

// Any order, the same for the same seed and history.
class Random final : public EvictionPolicy {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  PolicyKind kind() const override { return PolicyKind::kRandom; }
  void Order(std::vector<Candidate>& candidates) override {
    SortBy(candidates, [](const Candidate& c) { return c.load_number; });
    for (size_t i = candidates.size(); i > 1; --i) {
      std::swap(candidates[i - 1], candidates[Next() % i]);
    }
  }

 private:
  // SplitMix64; the standard's distributions differ between libraries.
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

// Everything that nobody uses goes as soon as room is short.
class Flush final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kFlush; }
  void Order(std::vector<Candidate>& candidates) override { SortByLastOpen(candidates); }
  bool EvictsAll() const override { return true; }
};

// Nothing outlives its last lease. What was prefetched or adopted and not leased
// yet is still there when room is short; it goes in the order of lru.
class Eager final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kEager; }
  void Order(std::vector<Candidate>& candidates) override { SortByLastOpen(candidates); }
  bool EvictsAtZeroLeases() const override { return true; }
};

// Greedy-Dual-Size with Frequency (L. Cherkasova, "Improving WWW Proxies
// Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Laboratories
// HPL-98-69R1, 1998): H = L + frequency x cost / size, lowest H first. L is the H
// of the last victim, so that what was popular long ago ages against newcomers.
class Gdsf final : public EvictionPolicy {
 public:
  PolicyKind kind() const override { return PolicyKind::kGdsf; }
  void Order(std::vector<Candidate>& candidates) override {
    SortBy(candidates, [](const Candidate& c) { return c.priority; });
  }
  double OnAccess(const Candidate& candidate) override {
    const double bytes = static_cast<double>(std::max<uint64_t>(candidate.bytes, 1));
    // Loading counts as the first use, so that a prefetched model is not free to evict.
    const double frequency = static_cast<double>(std::max<uint64_t>(candidate.opens, 1));
    const double seconds = std::chrono::duration<double>(candidate.reload_cost).count();
    return inflation_ + frequency * seconds / bytes;
  }
  void OnEvict(const Candidate& candidate) override {
    inflation_ = std::max(inflation_, candidate.priority);
  }

 private:
  double inflation_ = 0;  // L.
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakePolicy(PolicyKind kind, uint64_t seed) {
  switch (kind) {
    case PolicyKind::kNever:
      return std::make_unique<Never>();
    case PolicyKind::kLru:
      return std::make_unique<Lru>();
    case PolicyKind::kFifo:
      return std::make_unique<Fifo>();
    case PolicyKind::kLcu:
      return std::make_unique<Lcu>();
    case PolicyKind::kRandom:
      return std::make_unique<Random>(seed);
    case PolicyKind::kFlush:
      return std::make_unique<Flush>();
    case PolicyKind::kEager:
      return std::make_unique<Eager>();
    case PolicyKind::kGdsf:
      return std::make_unique<Gdsf>();
  }
  TRIMS_CHECK(!"a policy of no known kind");
  return nullptr;
}

}  // namespace trims::store

// A record of what a process did and when, written as a Chrome trace that
// chrome://tracing and Perfetto open. It keeps the vocabulary of the 2019 traces:
// B and E events with start and end in microseconds since init_time, and
// otherData with the server's settings, host and times.
//
// Spans of concurrent work overlap, which B and E events of one thread may not;
// they are therefore spread over as few tracks as keep every track strictly
// nested. Not a sampling profiler and not for the hot path of a client.
//
// Thread-safe. A disabled profile records nothing and costs one branch. Memory is
// bounded, however long the process runs: beyond kMaxProfileBytes of spans later
// ones are dropped, and the file says how many ("dropped_spans").
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status.h"

namespace trims {

// Settings that a reader of the trace needs in order to compare two of them.
struct ProfileServer {
  std::string eviction_policy;
  double estimation_rate = 1.0;
  bool persist_cpu = true;
  double memory_percentage = 0.8;
  std::string base_dir;
};

// One argument of a span. Borrows its texts: gone with the statement.
class ProfileArg final {
 public:
  ProfileArg(std::string_view key, std::string_view value) : key_(key), value_(value) {}
  ProfileArg(std::string_view key, const std::string& value)
      : ProfileArg(key, std::string_view(value)) {}
  ProfileArg(std::string_view key, const char* value) : ProfileArg(key, std::string_view(value)) {}
  ProfileArg(std::string_view key, uint64_t value) : key_(key), value_(value) {}

  std::string_view key() const { return key_; }
  const std::variant<std::string_view, uint64_t>& value() const { return value_; }

 private:
  std::string_view key_;
  std::variant<std::string_view, uint64_t> value_;
};
using ProfileArgs = std::initializer_list<ProfileArg>;

class Profile final {
 public:
  Profile() = default;  // Disabled for good.
  // Enabled from now on. `bytes_max` bounds the memory of recorded spans.
  explicit Profile(ProfileServer server, size_t bytes_max = kMaxProfileBytes);
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  bool enabled() const { return enabled_; }

  // Records work that took from `start` to `end`. Spans may come in any order. A
  // span that began before the profile is cut at its beginning.
  void Span(std::string_view name, std::string_view category, Time start, Time end,
            ProfileArgs args = {}) {
    if (enabled_) Record(name, category, start, end, args);
  }

  uint64_t dropped() const;

  // The trace so far, as JSON text: some times as large as the spans in memory.
  std::string ToJson() const;
  // Writes the trace so far to `path`, whole or not at all, piece by piece: it never
  // holds the text in memory. Blocks for the disk; recording goes on. FAILED_PRECONDITION
  // when disabled, else the system's error with the path.
  Status Write(const std::string& path) const;

 private:
  struct Recorded {
    std::string name;
    std::string category;
    int64_t start_ns = 0;  // Since start_.
    int64_t end_ns = 0;
    std::vector<std::pair<std::string, std::variant<std::string, uint64_t>>> args;
  };

  void Record(std::string_view name, std::string_view category, Time start, Time end,
              ProfileArgs args);
  // The trace so far, piece by piece, until a piece is not taken.
  using Sink = std::function<Status(std::string_view)>;
  Status Render(const Sink& sink) const;

  // Constant after construction.
  const bool enabled_ = false;
  const ProfileServer server_{};
  const size_t bytes_max_ = 0;
  const Time start_{};
  const std::chrono::system_clock::time_point init_time_{};

  mutable Mutex mu_;
  // Grows by blocks: never a second copy of all of it.
  std::deque<Recorded> spans_ TRIMS_GUARDED_BY(mu_);
  size_t bytes_ TRIMS_GUARDED_BY(mu_) = 0;
  uint64_t dropped_ TRIMS_GUARDED_BY(mu_) = 0;
};

}  // namespace trims

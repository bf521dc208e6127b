#include "trace/profile.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/files.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

using nlohmann::json;

constexpr size_t kWriteBytes = 64 * kKiB;  // Of text that is written at once.

// RFC 3339 with nanoseconds, as the 2019 traces write times.
std::string Rfc3339(std::chrono::system_clock::time_point time) {
  const auto since =
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
  const std::time_t seconds = static_cast<std::time_t>(since / 1'000'000'000);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
  char text[64];
  std::snprintf(text, sizeof text, "%s.%09lld+00:00", date,
                static_cast<long long>(since % 1'000'000'000));
  return text;
}

std::string Hostname() {
  char name[HOST_NAME_MAX + 1] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "";
}

std::string Username() {
  passwd entry{};
  passwd* found = nullptr;
  std::vector<char> buffer(16 * kKiB);
  if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 &&
      found != nullptr) {
    return found->pw_name;
  }
  return std::to_string(::geteuid());
}

double Microseconds(int64_t ns) { return static_cast<double>(ns) / 1000; }

std::string Dump(const json& value) {
  // Names come from files and clients and need not be UTF-8.
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

Profile::Profile(ProfileServer server, size_t bytes_max)
    : enabled_(true),
      server_(std::move(server)),
      bytes_max_(bytes_max),
      start_(Now()),
      init_time_(std::chrono::system_clock::now()) {}

void Profile::Record(std::string_view name, std::string_view category, Time start, Time end,
                     ProfileArgs args) {
  Recorded span;
  span.name = name;
  span.category = category;
  span.start_ns = std::max<int64_t>(0, (start - start_).count());
  span.end_ns = std::max(span.start_ns, (end - start_).count());
  size_t bytes = sizeof(Recorded) + name.size() + category.size();
  span.args.reserve(args.size());
  for (const ProfileArg& arg : args) {
    auto& [key, value] = span.args.emplace_back();
    key = arg.key();
    bytes += sizeof(span.args.front()) + key.size();
    if (const auto* text = std::get_if<std::string_view>(&arg.value())) {
      value = std::string(*text);
      bytes += text->size();
    } else {
      value = std::get<uint64_t>(arg.value());
    }
  }
  const MutexLock lock(mu_);
  if (bytes > bytes_max_ - bytes_) {
    ++dropped_;
    return;
  }
  bytes_ += bytes;
  spans_.push_back(std::move(span));
}

uint64_t Profile::dropped() const {
  const MutexLock lock(mu_);
  return dropped_;
}

Status Profile::Render(const Sink& sink) const {
  std::deque<Recorded> spans;
  uint64_t dropped = 0;
  {
    // A copy, so that recording goes on while text is made and written.
    const MutexLock lock(mu_);
    spans = spans_;
    dropped = dropped_;
  }
  const std::string init_time = Rfc3339(init_time_);
  const auto end_at =
      init_time_ + std::chrono::duration_cast<std::chrono::system_clock::duration>(Now() - start_);

  // Outer spans before the inner ones that begin with them. The order of
  // recording breaks ties backwards: of two equal spans the later recorded is
  // the outer one, since work is recorded when it ends.
  std::vector<size_t> order(spans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (spans[a].start_ns != spans[b].start_ns) return spans[a].start_ns < spans[b].start_ns;
    if (spans[a].end_ns != spans[b].end_ns) return spans[a].end_ns > spans[b].end_ns;
    return a > b;
  });

  // The first track takes a span whose innermost open span is over or holds it
  // whole; a new track is opened when none does. Each track is the stack of its open
  // spans. Readers order events by track and time: only a track's own order matters.
  std::vector<std::vector<size_t>> tracks;
  const auto event = [&](char phase, size_t index, size_t track) {
    const Recorded& span = spans[index];
    json args = json::object();
    for (const auto& [key, value] : span.args) {
      if (const auto* text = std::get_if<std::string>(&value)) {
        args[key] = *text;
      } else {
        args[key] = std::get<uint64_t>(value);
      }
    }
    const json value = {{"name", span.name},
                        {"cat", span.category},
                        {"ph", std::string(1, phase)},
                        {"ts", Microseconds(phase == 'B' ? span.start_ns : span.end_ns)},
                        {"pid", 0},
                        {"tid", track},
                        {"upr_enabled", true},
                        {"init_time", init_time},
                        {"start", Microseconds(span.start_ns)},
                        {"end", Microseconds(span.end_ns)},
                        {"args", std::move(args)}};
    return sink(",\n" + Dump(value));
  };
  const auto close_until = [&](size_t track, int64_t time) {
    std::vector<size_t>& open = tracks[track];
    while (!open.empty() && spans[open.back()].end_ns <= time) {
      RETURN_IF_ERROR(event('E', open.back(), track));
      open.pop_back();
    }
    return OkStatus();
  };
  RETURN_IF_ERROR(sink(
      "{\"traceEvents\":[\n" +
      Dump(json{
          {"ph", "M"}, {"name", "process_name"}, {"pid", 0}, {"args", {{"name", "trimsd"}}}})));
  for (const size_t index : order) {
    const Recorded& span = spans[index];
    size_t track = 0;
    for (; track < tracks.size(); ++track) {
      RETURN_IF_ERROR(close_until(track, span.start_ns));
      const std::vector<size_t>& open = tracks[track];
      if (open.empty() || span.end_ns <= spans[open.back()].end_ns) break;
    }
    if (track == tracks.size()) tracks.emplace_back();
    RETURN_IF_ERROR(event('B', index, track));
    tracks[track].push_back(index);
  }
  for (size_t track = 0; track < tracks.size(); ++track) {
    RETURN_IF_ERROR(close_until(track, INT64_MAX));
    const std::string name = "track " + std::to_string(track);
    RETURN_IF_ERROR(sink(",\n" + Dump(json{{"ph", "M"},
                                           {"name", "thread_name"},
                                           {"pid", 0},
                                           {"tid", track},
                                           {"args", {{"name", name}}}})));
  }
  const json other = {{"server",
                       {{"eviction_policy", server_.eviction_policy},
                        {"estimation_rate", server_.estimation_rate},
                        {"persist_cpu", server_.persist_cpu},
                        {"memory_percentage", server_.memory_percentage}}},
                      {"hostname", Hostname()},
                      {"username", Username()},
                      {"start_at", init_time},
                      {"end_at", Rfc3339(end_at)},
                      {"is_client", false},
                      {"upr_enabled", true},
                      {"upr_base_dir", server_.base_dir},
                      {"dropped_spans", dropped}};
  return sink("\n],\n\"displayTimeUnit\":\"ms\",\n\"upr_enabled\":true,\n\"otherData\":" +
              Dump(other) + "}\n");
}

std::string Profile::ToJson() const {
  std::string text;
  // Only a sink can fail, and this one does not.
  TRIMS_CHECK(Render([&](std::string_view piece) {
                text += piece;
                return OkStatus();
              }).ok());
  return text;
}

Status Profile::Write(const std::string& path) const {
  if (!enabled_)
    return FailedPreconditionError("writing the profile " + path + ": profiling is off");
  const std::string what = "writing the profile " + path;
  // A name of its own and O_EXCL: neither a link that somebody put there nor a
  // second daemon's file is followed or mixed with ours.
  const std::string part = path + "." + std::to_string(::getpid()) + ".part";
  ::unlink(part.c_str());
  Status status;
  {
    const UniqueFd fd(
        ::open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!fd.valid()) return ErrnoStatus(errno, what);
    std::string pending;
    status = Render([&](std::string_view piece) {
      pending += piece;
      if (pending.size() < kWriteBytes) return OkStatus();
      const Status written = WriteAll(fd.get(), pending, what);
      pending.clear();
      return written;
    });
    if (status.ok()) status = WriteAll(fd.get(), pending, what);
  }
  if (status.ok() && ::rename(part.c_str(), path.c_str()) != 0) status = ErrnoStatus(errno, what);
  if (!status.ok()) ::unlink(part.c_str());
  return status;
}

}  // namespace trims

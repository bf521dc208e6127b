#include "base/machine.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "base/files.h"
#include "base/limits.h"
#include "base/text.h"

namespace trims {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// The kernel's small text files; "" when absent.
std::string ReadText(const std::string& path) {
  Result<std::string> text = ReadSmallFile(path, kMiB);
  return text.ok() ? std::move(text).value() : "";
}

// What is left of the first line that begins with `label`; nullopt without one.
std::optional<std::string_view> RestOfLine(std::string_view text, std::string_view label) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.starts_with(label)) return Trim(line.substr(label.size()));
  }
  return std::nullopt;
}

// The number behind `label` at the start of a line.
std::optional<uint64_t> NumberAfter(std::string_view text, std::string_view label) {
  const std::optional<std::string_view> rest = RestOfLine(text, label);
  uint64_t value = 0;
  if (!rest || std::from_chars(rest->data(), rest->data() + rest->size(), value).ec != std::errc())
    return std::nullopt;
  return value;
}

struct MemoryGroup {
  std::string directory;
  bool is_v2 = true;
};

// The control groups that limit the memory of a process: its own and all above it.
// A line of the file is "0::/kubepods/pod1/container" (v2) or
// "9:memory:/docker/4f2a" (v1).
std::vector<MemoryGroup> MemoryGroups(const std::string& pid, const std::string& root) {
  std::vector<MemoryGroup> groups;
  const std::string text = ReadText(root + "/proc/" + pid + "/cgroup");
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t first = line.find(':');
    const size_t second = first == line.npos ? line.npos : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::vector<std::string_view> controllers =
        SplitList(std::string_view(line).substr(first + 1, second - first - 1));
    const bool is_v2 = controllers.empty();
    if (!is_v2 && std::find(controllers.begin(), controllers.end(), "memory") == controllers.end())
      continue;
    std::string path = line.substr(second + 1);
    for (;;) {
      groups.push_back({root + "/sys/fs/cgroup" + (is_v2 ? "" : "/memory") + path, is_v2});
      const size_t slash = path.rfind('/');
      if (slash == path.npos || path.size() <= 1) break;
      path.resize(slash);
    }
  }
  return groups;
}

uint64_t LimitOf(const MemoryGroup& group) {
  const std::string file = group.is_v2 ? "/memory.max" : "/memory.limit_in_bytes";
  return NumberAfter(ReadText(group.directory + file), "")
      .value_or(kNoLimit);  // "max", or no such controller.
}

uint64_t AvailableInGroup(const MemoryGroup& group) {
  const uint64_t limit = LimitOf(group);
  if (limit == kNoLimit) return kNoLimit;
  const uint64_t used = NumberAfter(ReadText(group.directory + "/memory.current"), "").value_or(0);
  const std::string stat = ReadText(group.directory + "/memory.stat");
  const uint64_t cache = NumberAfter(stat, "inactive_file ").value_or(0) +
                         NumberAfter(stat, "active_file ").value_or(0);
  const uint64_t kept = used - std::min(used, cache);
  return limit - std::min(limit, kept);
}

}  // namespace

int Cores(int most) {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, most);
}

std::optional<uint64_t> MemInfo(std::string_view key, const std::string& root) {
  const std::string text = ReadText(root + "/proc/meminfo");
  const std::string label = std::string(key) + ":";
  const std::optional<uint64_t> value = NumberAfter(text, label);
  if (!value) return std::nullopt;
  return RestOfLine(text, label)->ends_with(" kB") ? *value * kKiB : *value;
}

uint64_t MemoryLimitBytes(const std::string& pid, const std::string& root) {
  uint64_t least = kNoLimit;
  for (const MemoryGroup& group : MemoryGroups(pid, root)) least = std::min(least, LimitOf(group));
  return least;
}

uint64_t UsableMemoryBytes(const std::string& root) {
  return std::min(MemInfo("MemTotal", root).value_or(0), MemoryLimitBytes("self", root));
}

uint64_t AvailableMemoryBytes(const std::string& root) {
  uint64_t available = MemInfo("MemAvailable", root).value_or(kNoLimit);
  for (const MemoryGroup& group : MemoryGroups("self", root)) {
    if (group.is_v2) available = std::min(available, AvailableInGroup(group));
  }
  return available;
}

}  // namespace trims

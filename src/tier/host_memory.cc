#include "tier/host_memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <limits>
#include <optional>
#include <string_view>

#include "base/unique_fd.h"

namespace trims {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// The kernel's small text files; "" when absent.
std::string ReadText(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  char buffer[4096];
  while (fd.valid()) {
    const ssize_t size = ::read(fd.get(), buffer, sizeof buffer);
    if (size <= 0) break;
    text.append(buffer, static_cast<size_t>(size));
  }
  return text;
}

// The number behind `label` at the start of a line.
std::optional<uint64_t> NumberAfter(std::string_view text, std::string_view label) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(label)) continue;
    line.remove_prefix(label.size());
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    uint64_t value = 0;
    if (std::from_chars(line.data(), line.data() + line.size(), value).ec == std::errc()) {
      return value;
    }
  }
  return std::nullopt;
}

uint64_t AvailableInGroup(const std::string& directory) {
  const std::optional<uint64_t> limit = NumberAfter(ReadText(directory + "/memory.max"), "");
  if (!limit) return kNoLimit;  // "max", or no such controller.
  const uint64_t used = NumberAfter(ReadText(directory + "/memory.current"), "").value_or(0);
  const std::string stat = ReadText(directory + "/memory.stat");
  const uint64_t cache = NumberAfter(stat, "inactive_file ").value_or(0) +
                         NumberAfter(stat, "active_file ").value_or(0);
  const uint64_t kept = used - std::min(used, cache);
  return *limit - std::min(*limit, kept);
}

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& root) {
  uint64_t available = kNoLimit;
  if (const auto kib = NumberAfter(ReadText(root + "/proc/meminfo"), "MemAvailable:")) {
    available = *kib * 1024;
  }
  // "0::/kubepods/pod1/container": every group up to the root may have a limit.
  const std::string groups = ReadText(root + "/proc/self/cgroup");
  const size_t begin = groups.find("0::/");
  if (begin == groups.npos) return available;
  std::string path = groups.substr(begin + 3, groups.find('\n', begin) - begin - 3);
  while (true) {
    available = std::min(available, AvailableInGroup(root + "/sys/fs/cgroup" + path));
    const size_t slash = path.rfind('/');
    if (slash == path.npos || path.size() <= 1) break;
    path.resize(slash);
  }
  return available;
}

}  // namespace trims

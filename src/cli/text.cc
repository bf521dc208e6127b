#include "cli/text.h"

#include <google/protobuf/util/time_util.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <utility>

#include "base/text.h"
#include "base/units.h"
#include "trims/v1/control.pb.h"

namespace trims::cli {

bool UseColor(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return ::isatty(fd) == 1 && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || std::string_view(term) != "dumb");
}

size_t TerminalColumns(int fd) {
  winsize size{};
  if (::isatty(fd) != 1) return 0;
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string Printable(std::string_view text) {
  std::string valid = ToValidUtf8(text);
  std::string printable;
  printable.reserve(valid.size());
  for (size_t i = 0; i < valid.size(); ++i) {
    const auto byte = static_cast<uint8_t>(valid[i]);
    // C1 controls are U+0080 to U+009F: 0xC2 and one byte up to 0x9F.
    const bool c1 =
        byte == 0xC2 && i + 1 < valid.size() && static_cast<uint8_t>(valid[i + 1]) < 0xA0;
    if (byte < 0x20 || byte == 0x7F || c1) {
      printable.push_back('?');
      if (c1) ++i;
    } else {
      printable.push_back(valid[i]);
    }
  }
  return printable;
}

size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

namespace {

// The first `characters` characters of `text`.
std::string_view FirstCharacters(std::string_view text, size_t characters) {
  size_t end = 0;
  while (end < text.size()) {
    if ((static_cast<uint8_t>(text[end]) & 0xC0) != 0x80 && characters-- == 0) break;
    ++end;
  }
  return text.substr(0, end);
}

}  // namespace

Table::Table(std::vector<std::string> headers) {
  for (std::string& header : headers) {
    const bool right = header.starts_with('>');
    right_.push_back(right);
    headers_.push_back(right ? header.substr(1) : std::move(header));
  }
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(headers_.size());
  for (std::string& cell : cells) cell = Printable(cell.empty() ? "-" : cell);
  rows_.push_back(std::move(cells));
}

std::string Table::Render(size_t columns_max) const {
  std::vector<size_t> widths;
  for (const std::string& header : headers_) widths.push_back(DisplayWidth(header));
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  constexpr size_t kNarrowest = 12;
  if (columns_max > 0) {
    size_t line = std::accumulate(widths.begin(), widths.end(), 2 * (widths.size() - 1));
    while (line > columns_max) {
      size_t& widest = *std::max_element(widths.begin(), widths.end());
      if (widest <= kNarrowest) break;
      --widest;
      --line;
    }
  }
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      std::string cell = cells[i];
      if (DisplayWidth(cell) > widths[i]) {
        cell = std::string(FirstCharacters(cell, widths[i] - 1)) + "…";
      }
      const std::string padding(widths[i] - DisplayWidth(cell), ' ');
      if (i > 0) line.append("  ");
      line.append(right_[i] ? padding + cell : cell + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text.append(line).append("\n");
  };
  add_line(headers_);
  for (const auto& row : rows_) add_line(row);
  return text;
}

std::string DigestText(const std::string& digest, bool whole) {
  if (whole || digest.empty()) return digest;
  const size_t colon = digest.find(':');
  return digest.substr(colon == std::string::npos ? 0 : colon + 1, 12);
}

std::string ModelText(const v1::ModelView& model) {
  return model.name().empty() || model.origin() == v1::MODEL_ORIGIN_DESCRIPTOR
             ? "@" + model.digest()
             : model.name();
}

std::string UserText(uint32_t uid) {
  passwd entry{};
  passwd* found = nullptr;
  char buffer[16 * 1024];
  if (::getpwuid_r(uid, &entry, buffer, sizeof buffer, &found) == 0 && found != nullptr) {
    return found->pw_name;
  }
  return std::to_string(uid);
}

std::string RelativeTime(bool present, const google::protobuf::Timestamp& time) {
  if (!present) return "-";
  using google::protobuf::util::TimeUtil;
  const int64_t seconds =
      TimeUtil::TimestampToSeconds(time) - TimeUtil::TimestampToSeconds(TimeUtil::GetCurrentTime());
  const std::string length = FormatDuration(std::chrono::seconds(std::abs(seconds)));
  if (seconds == 0) return "now";
  return length + (seconds > 0 ? " from now" : " ago");
}

std::string LocalTime(const google::protobuf::Timestamp& time) {
  const std::time_t seconds = time.seconds();
  std::tm fields{};
  if (::localtime_r(&seconds, &fields) == nullptr) return "?";
  char text[64];
  const size_t size = std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &fields);
  return std::string(text, size);
}

std::string UntilText(const v1::ReplicaView& replica) {
  switch (replica.state()) {
    case v1::REPLICA_STATE_LOADING:
      return "loaded";
    case v1::REPLICA_STATE_DRAINING:
    case v1::REPLICA_STATE_QUARANTINED:
      return replica.leases() > 0 ? "released" : "-";
    default:
      break;
  }
  if (replica.pinned()) return "unpinned";
  if (replica.leases() > 0) return "released";
  if (replica.has_until()) return RelativeTime(true, replica.until());
  return "evicted";
}

std::string EnumText(std::string_view enumerator, std::string_view prefix) {
  if (enumerator.empty()) return "unknown";
  if (enumerator.starts_with(prefix)) enumerator.remove_prefix(prefix.size());
  return Lower(enumerator);
}

std::string StateText(const v1::ReplicaView& replica) {
  return EnumText(v1::ReplicaState_Name(replica.state()), "REPLICA_STATE_");
}

std::string RateText(double bytes_per_second) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f GB/s", bytes_per_second * 1e-9);
  return text;
}

std::string SecondsText(double seconds) {
  char text[48];
  if (seconds < 0.1) {
    std::snprintf(text, sizeof text, "%.1f ms", seconds * 1e3);
  } else {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  }
  return text;
}

std::string Nearest(std::string_view word, const std::vector<std::string>& candidates) {
  return trims::Nearest(word, candidates, std::max<size_t>(1, word.size() / 3));
}

}  // namespace trims::cli

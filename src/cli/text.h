// How things are written for people: tables, sizes, times, names. Pure functions
// but for asking about terminals and users.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace google::protobuf {
class Timestamp;
}
namespace trims::v1 {
class ModelView;
class ReplicaView;
}  // namespace trims::v1

namespace trims::cli {

// A terminal, and neither NO_COLOR nor TERM=dumb.
bool UseColor(int fd);
// Columns of the terminal `fd`, 0 when it is none.
size_t TerminalColumns(int fd);

// Names come from files and clients. Control characters would let them write
// over the screen: they become "?".
std::string Printable(std::string_view text);
// Number of characters of valid UTF-8.
size_t DisplayWidth(std::string_view text);

// Rows under headers, columns aligned, two spaces between them.
class Table final {
 public:
  // A header that starts with '>' is aligned to the right.
  explicit Table(std::vector<std::string> headers);
  void AddRow(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Shortens the widest cells so that no line is longer than `columns_max`; 0: never.
  std::string Render(size_t columns_max = 0) const;

 private:
  std::vector<std::string> headers_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

// "gpu:GPU-…" and names as they are; digests as 12 digits unless `whole`.
std::string DigestText(const std::string& digest, bool whole);
// The name, else "@sha256:…": what other commands accept.
std::string ModelText(const v1::ModelView& model);
std::string UserText(uint32_t uid);
// "4m10s from now", "3m0s ago", "-" when absent.
std::string RelativeTime(bool present, const google::protobuf::Timestamp& time);
std::string LocalTime(const google::protobuf::Timestamp& time);
// What ends a replica: "released", "unpinned", "4m10s from now", "evicted", …
std::string UntilText(const v1::ReplicaView& replica);
// An enumerator without its prefix: "REPLICA_STATE_READY" is "ready".
std::string EnumText(std::string_view enumerator, std::string_view prefix);
std::string StateText(const v1::ReplicaView& replica);
// "55.1 GB/s": rates are decimal, as those of links and disks are.
std::string RateText(double bytes_per_second);
// 0.9 s, 12 ms
std::string SecondsText(double seconds);

// The candidate that differs least from `word`, "" when none is near.
std::string Nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace trims::cli

// Judges the log of a daemon under test: no session ended for a reason of the daemon's, and
// nothing was logged as an error, that the test did not announce; and all that was announced
// was logged. A session that its client ended has no line, so every "session ended" is the
// daemon hanging up on somebody, but for "process ended": that is true, and then the client's
// own end, or false, and always wrong. Header only, thread-compatible.
#pragma once

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace trims::testing_support {

class LogJudge final {
 public:
  static constexpr int kAnyNumber = std::numeric_limits<int>::max();

  // From `at_least` to `at_most` session ends, or lines of level error, that hold `words`. A line
  // counts for the first announcement that holds it and still has room.
  void ExpectSessionEnds(std::string words, int at_least, int at_most) {
    announced_.push_back({" session ended ", std::move(words), at_least, at_most});
  }
  void ExpectErrors(std::string words, int at_least, int at_most) {
    announced_.push_back({" error ", std::move(words), at_least, at_most});
  }

  // What is wrong with these lines by what was announced, which is forgotten. Empty: nothing is.
  std::string Judge(std::string_view log) {
    std::string wrong;
    while (!log.empty()) {
      const std::string line(log.substr(0, log.find('\n')));
      log.remove_prefix(std::min(log.size(), line.size() + 1));
      if (!IsJudged(line)) continue;
      if (IsProcessEnd(line)) {
        if (HungUpOnTheLiving(line)) wrong += "the process lives: " + line + "\n";
      } else if (!Count(line)) {
        wrong += "not announced: " + line + "\n";
      }
    }
    for (const Announcement& one : announced_) {
      if (one.seen >= one.at_least) continue;
      wrong += "announced, but seen " + std::to_string(one.seen) + " times and not " +
               std::to_string(one.at_least) + ":" + std::string(one.kind) + "… " + one.words + "\n";
    }
    announced_.clear();
    return wrong;
  }

  // "process ended" is said of a process that did. One that nobody has waited for yet has, too.
  static bool HungUpOnTheLiving(const std::string& line) {
    constexpr std::string_view kPid = " pid=";
    const size_t at = line.find(kPid);
    if (!IsProcessEnd(line) || at == std::string::npos) return false;
    const size_t begin = at + kPid.size();
    std::ifstream stat("/proc/" + line.substr(begin, line.find(' ', begin) - begin) + "/stat");
    std::string text;
    std::getline(stat, text);
    const size_t name_end = text.rfind(") ");  // "pid (name) state …"
    return name_end != std::string::npos && text[name_end + 2] != 'Z' && text[name_end + 2] != 'X';
  }

 private:
  struct Announcement {
    std::string_view kind;
    std::string words;
    int at_least = 0;
    int at_most = 0;
    int seen = 0;
  };

  // Where the line says what kind it is: behind its time, so that no value passes for it.
  static bool Is(std::string_view kind, std::string_view line) {
    const size_t at = line.find(' ');
    if (at == std::string_view::npos) return false;
    if (line.substr(at).starts_with(kind)) return true;
    const size_t event = line.find(' ', at + 1);
    return event != std::string_view::npos && line.substr(event).starts_with(kind);
  }
  static bool IsJudged(std::string_view line) {
    return Is(" session ended ", line) || Is(" error ", line);
  }

  static bool IsProcessEnd(std::string_view line) {
    return Is(" session ended ", line) && line.ends_with(" reason=\"process ended\"");
  }

  bool Count(const std::string& line) {
    for (Announcement& one : announced_) {
      if (one.seen == one.at_most || !Is(one.kind, line)) continue;
      if (line.find(one.words) == std::string::npos) continue;
      ++one.seen;
      return true;
    }
    return false;
  }

  std::vector<Announcement> announced_;
};

}  // namespace trims::testing_support

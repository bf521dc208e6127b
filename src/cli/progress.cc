#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/units.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRedraw(80);

}  // namespace

ProgressBar::ProgressBar(bool wanted) : shown_(wanted && ::isatty(STDERR_FILENO) == 1) {}

void ProgressBar::Update(const Step& step) {
  if (!shown_) return;
  const steady_clock::time_point now = steady_clock::now();
  const bool new_phase = step.label != label_;
  if (new_phase) {
    label_ = step.label;
    first_bytes_ = step.done_bytes;
    first_time_ = now;
  } else if (now - last_draw_ < kRedraw && step.done_bytes < step.total_bytes) {
    return;
  }
  last_draw_ = now;

  double rate = step.bytes_per_second;
  const double elapsed = std::chrono::duration<double>(now - first_time_).count();
  if (rate <= 0 && elapsed > 0.2) {
    rate = static_cast<double>(step.done_bytes - std::min(first_bytes_, step.done_bytes)) / elapsed;
  }
  std::string tail;
  if (step.total_bytes > 0) {
    tail = FormatSize(step.done_bytes) + " of " + FormatSize(step.total_bytes);
    if (rate > 0) {
      tail += ", " + FormatSize(static_cast<uint64_t>(rate)) + "/s";
      const double left =
          static_cast<double>(step.total_bytes - std::min(step.done_bytes, step.total_bytes)) /
          rate;
      if (left < 100 * 3600) {
        tail +=
            ", " + FormatDuration(std::chrono::seconds(static_cast<int64_t>(left + 0.5))) + " left";
      }
    }
  }
  const size_t columns = std::max<size_t>(TerminalColumns(STDERR_FILENO), 20);
  std::string line = Printable(step.label);
  if (step.total_bytes > 0) {
    // Brackets and spaces, and the last column, at which terminals go on to the next line.
    const size_t used = DisplayWidth(line) + DisplayWidth(tail) + 7;
    if (used + 10 <= columns) {
      const size_t width = std::min<size_t>(columns - used, 40);
      const double part = std::min(
          1.0, static_cast<double>(step.done_bytes) / static_cast<double>(step.total_bytes));
      const size_t filled = static_cast<size_t>(part * static_cast<double>(width));
      line += "  [" + std::string(filled, '#') + std::string(width - filled, '.') + "]";
    }
    line += "  " + tail;
  }
  if (DisplayWidth(line) >= columns && line.size() >= columns) line.resize(columns - 1);
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace trims::cli

// The progress bar, on a terminal of its own and on none.
#include "cli/progress.h"

#include <fcntl.h>
#include <pty.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

// stderr of this process is a terminal as wide as that, for as long as the object lives.
class TerminalAsStderr final {
 public:
  explicit TerminalAsStderr(unsigned short columns) {
    winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    int ends[2];
    EXPECT_EQ(::openpty(&ends[0], &ends[1], nullptr, nullptr, &size), 0);
    ours_ = UniqueFd(ends[0]);
    std::fflush(stderr);
    before_ = UniqueFd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[1]);
  }
  ~TerminalAsStderr() { Restore(); }

  // All that was written to it.
  std::string Written() {
    Restore();  // The last writer is gone: reading ends.
    std::string text;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = ::read(ours_.get(), buffer, sizeof buffer)) > 0) {
      text.append(buffer, static_cast<size_t>(got));
    }
    return text;
  }

 private:
  void Restore() {
    if (!before_.valid()) return;
    std::fflush(stderr);
    ::dup2(before_.get(), STDERR_FILENO);
    before_.Reset();
  }

  UniqueFd ours_;
  UniqueFd before_;
};

TEST(ProgressTest, APipeSeesNothing) {
  testing::internal::CaptureStderr();
  {
    ProgressBar bar(true);
    bar.Update({.label = "loading", .done_bytes = 1, .total_bytes = 2});
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(ProgressTest, ATerminalSeesNothingWhenNobodyWantsABar) {
  TerminalAsStderr terminal(80);
  {
    ProgressBar bar(false);
    bar.Update({.label = "loading", .done_bytes = 1, .total_bytes = 2});
  }
  EXPECT_EQ(terminal.Written(), "");
}

TEST(ProgressTest, TheBarShowsHowMuchHowFastAndHowLongStill) {
  TerminalAsStderr terminal(120);
  ProgressBar bar(true);
  bar.Update({.label = "vgg16 loading",
              .done_bytes = 256 * kMiB,
              .total_bytes = 512 * kMiB,
              .bytes_per_second = static_cast<double>(128 * kMiB)});
  EXPECT_EQ(terminal.Written(), "\r\033[Kvgg16 loading  [" + std::string(20, '#') +
                                    std::string(20, '.') +
                                    "]  256.0 MiB of 512.0 MiB, 128.0 MiB/s, 2s left");
}

TEST(ProgressTest, WithoutATotalOnlyTheLabelIsShown) {
  TerminalAsStderr terminal(80);
  ProgressBar bar(true);
  bar.Update({.label = "hashing\x1b[2J"});
  EXPECT_EQ(terminal.Written(), "\r\033[Khashing?[2J");
}

TEST(ProgressTest, ANarrowTerminalHasNoRoomForABarAndALineIsNeverLonger) {
  TerminalAsStderr terminal(30);
  ProgressBar bar(true);
  bar.Update({.label = "a-name-that-is-long loading",
              .done_bytes = kMiB,
              .total_bytes = 2 * kMiB,
              .bytes_per_second = 1e6});
  const std::string written = terminal.Written();
  EXPECT_THAT(written, Not(HasSubstr("[#")));
  EXPECT_LT(written.size(), std::string("\r\033[K").size() + 30);
}

TEST(ProgressTest, MoreThanAllIsAll) {
  TerminalAsStderr terminal(80);
  ProgressBar bar(true);
  bar.Update({.label = "x", .done_bytes = 5 * kMiB, .total_bytes = kMiB, .bytes_per_second = 1e6});
  EXPECT_THAT(terminal.Written(),
              AllOf(HasSubstr("#]"), Not(HasSubstr("[.")), HasSubstr("0s left")));
}

TEST(ProgressTest, UpdatesInQuickSuccessionAreDrawnOnceUnlessTheyAreTheLast) {
  TerminalAsStderr terminal(80);
  ProgressBar bar(true);
  for (uint64_t done = 0; done <= 1000; ++done) {
    bar.Update({.label = "x", .done_bytes = done, .total_bytes = 1000, .bytes_per_second = 1});
  }
  const std::string written = terminal.Written();
  EXPECT_THAT(written, HasSubstr("1000 B of 1000 B"));
  EXPECT_THAT(written, Not(HasSubstr("  1 B of 1000 B")));
}

TEST(ProgressTest, ANewLabelIsDrawnAtOnceAndTheLineIsTakenAwayAtTheEnd) {
  TerminalAsStderr terminal(80);
  {
    ProgressBar bar(true);
    bar.Update({.label = "queued"});
    bar.Update({.label = "loading"});
    bar.Clear();
    bar.Clear();  // Once is enough.
  }
  EXPECT_EQ(terminal.Written(), "\r\033[Kqueued\r\033[Kloading\r\033[K");
}

}  // namespace
}  // namespace trims::cli

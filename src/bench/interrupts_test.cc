// Ctrl-C as a question.
#include "bench/interrupts.h"

#include <signal.h>

#include <chrono>
#include <string>

#include "base/limits.h"
#include "bench/read_floor.h"
#include "bench/test_bench.h"

namespace trims::bench {
namespace {

class InterruptedTest : public BenchTest {
 protected:
  const Interrupts interrupts_;
};

TEST_F(InterruptedTest, ASignalStopsWhatIsMeasuredAndAllThatComesAfter) {
  const std::string path = WriteFile(kMiB);
  EXPECT_TRUE(interrupts_.Check().ok());
  ASSERT_EQ(::raise(SIGINT), 0);
  EXPECT_EQ(interrupts_.Check().code(), StatusCode::kCancelled);
  EXPECT_EQ(interrupts_.Wait(std::chrono::hours(1)).code(), StatusCode::kCancelled);
  EXPECT_EQ(MeasureRead(path, ReadKind::kPageCache, 3, interrupts_).status().code(),
            StatusCode::kCancelled);
}

TEST(InterruptsTest, EachObjectBeginsAnewAndTheSecondSignalEndsTheProgram) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const Interrupts interrupts;
    EXPECT_TRUE(interrupts.Check().ok());
    ASSERT_EQ(::raise(signal), 0);
    EXPECT_FALSE(interrupts.Check().ok());
  }
  EXPECT_EXIT(
      {
        const Interrupts interrupts;
        ::raise(SIGTERM);
        ::raise(SIGTERM);
      },
      testing::KilledBySignal(SIGTERM), "");
}

TEST(InterruptsTest, SignalsEndTheProgramAgainWhenNobodyAsksAnyMore) {
  EXPECT_EXIT(
      {
        { const Interrupts interrupts; }
        ::raise(SIGINT);
      },
      testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace trims::bench

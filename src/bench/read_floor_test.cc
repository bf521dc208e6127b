// The floor of loads reads files, and takes them out of memory.
#include "bench/read_floor.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "bench/test_bench.h"

namespace trims::bench {
namespace {

using testing::HasSubstr;

class ReadFloorTest : public BenchTest {
 protected:
  const Interrupts interrupts_;
};

TEST_F(ReadFloorTest, AFileIsReadByAnyNumberOfThreads) {
  const std::string path = WriteFile(20 * kMiB + 5);
  for (const unsigned threads : {1U, 4U}) {
    const Result<double> seconds = MeasureRead(path, ReadKind::kPageCache, threads, interrupts_);
    ASSERT_TRUE(seconds.ok()) << seconds.status().ToString();
    EXPECT_GT(*seconds, 0);
  }
}

TEST_F(ReadFloorTest, AFileThatIsNotThereIsNamed) {
  const std::string path = directory_ + "/none";
  EXPECT_EQ(MeasureRead(path, ReadKind::kPageCache, 1, interrupts_).status().code(),
            StatusCode::kNotFound);
  EXPECT_THAT(DropFromPageCache(path, interrupts_).message(), HasSubstr(path));
}

TEST_F(ReadFloorTest, ReadingPastThePageCacheWorksOrSaysThatItCanNot) {
  const std::string path = WriteFile(8 * kMiB);
  const Result<double> seconds = MeasureRead(path, ReadKind::kDirect, 2, interrupts_);
  if (seconds.ok()) {
    EXPECT_GT(*seconds, 0);
  } else {
    EXPECT_EQ(seconds.status().code(), StatusCode::kUnimplemented);
    EXPECT_THAT(seconds.status().message(), HasSubstr("give a --dir on a disk"));
  }
}

TEST_F(ReadFloorTest, AFileInMemoryCanNotBeDroppedFromIt) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no tmpfs here";
  char pattern[] = "/dev/shm/trims-floor-XXXXXX";
  const UniqueFd fd(::mkstemp(pattern));
  if (!fd.valid()) GTEST_SKIP() << "/dev/shm can not be written";
  ASSERT_EQ(::pwrite(fd.get(), std::string(kMiB, 'x').data(), kMiB, 0), static_cast<ssize_t>(kMiB));
  const Status status = DropFromPageCache(pattern, interrupts_);
  ::unlink(pattern);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("not on tmpfs"));
}

}  // namespace
}  // namespace trims::bench

#include "base/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>

#include "base/limits.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

using testing::HasSubstr;

// Files may not grow beyond `bytes` while it lives: what a full disk does, without one.
class FileSizeLimit final {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = SIG_DFL;
};

class FilesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "trims-files-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    path_ = directory_ + "/file";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Read() const { return ReadSmallFile(path_, kMiB).value(); }
  ptrdiff_t FileCount() const {
    return std::distance(std::filesystem::directory_iterator(directory_), {});
  }

  std::string directory_;
  std::string path_;
};

TEST_F(FilesTest, AFileIsReadUpToItsBoundAndNoFurther) {
  const std::string bytes(40'000, 'x');
  ASSERT_TRUE(ReplaceFile(path_, bytes, 0600).ok());
  EXPECT_EQ(ReadSmallFile(path_, bytes.size()).value(), bytes);
  const Status refused = ReadSmallFile(path_, bytes.size() - 1).status();
  EXPECT_EQ(refused.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(refused.message(), HasSubstr(path_ + ": it is larger than 39999B"));
  EXPECT_EQ(ReadSmallFile("/dev/zero", kMiB).status().code(), StatusCode::kOutOfRange);
}

TEST_F(FilesTest, WhatCanNotBeReadIsNamed) {
  EXPECT_EQ(ReadSmallFile(path_, 1).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(ReadSmallFile(path_, 1).status().message(), HasSubstr(path_));
  EXPECT_FALSE(ReadSmallFile(directory_, kMiB).ok());
  EXPECT_EQ(ReadSmallFile("/dev/null", 0).value(), "");
  EXPECT_THAT(ReadSmallFile("/proc/self/status", kMiB).value(), HasSubstr("Pid:"));
}

TEST_F(FilesTest, APipeIsReadUntilItsWriterCloses) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  // Without a writer there is nothing to wait for.
  EXPECT_EQ(ReadSmallFile(path_, kMiB).value(), "");
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  std::string text;
  std::thread thread(
      [&] { text = ReadSmallFile("/proc/self/fd/" + std::to_string(reader.get()), kMiB).value(); });
  const std::string half(50'000, 'y');  // Less than a pipe holds, so that no write blocks.
  EXPECT_TRUE(WriteAll(writer.get(), half, "the pipe").ok());
  writer.Reset();
  thread.join();
  EXPECT_EQ(text, half);
}

TEST_F(FilesTest, AFileIsReplacedWholeWithItsMode) {
  ASSERT_TRUE(ReplaceFile(path_, "old", 0640).ok());
  ASSERT_TRUE(ReplaceFile(path_, "new and longer", 0600).ok());
  EXPECT_EQ(Read(), "new and longer");
  struct stat info {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  ASSERT_TRUE(ReplaceFile(path_, "", 0600).ok());
  EXPECT_EQ(Read(), "");
  EXPECT_EQ(FileCount(), 1);
}

TEST_F(FilesTest, AShortWriteIsReportedAsOneAndLeavesTheOldFile) {
  ASSERT_TRUE(ReplaceFile(path_, "old", 0600).ok());
  Status status;
  {
    const FileSizeLimit limit(10);
    status = ReplaceFile(path_, std::string(100, 'x'), 0600);
  }
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr("10 of 100 bytes arrived: File too large"));
  EXPECT_EQ(Read(), "old");
  EXPECT_EQ(FileCount(), 1);
}

TEST_F(FilesTest, AFullDiskIsReportedAsOne) {
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  const Status status = WriteAll(full.get(), "abc", "the full one");
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("writing the full one, where 0 of 3 bytes arrived"));
}

TEST_F(FilesTest, ALinkUnderTheTemporaryNameIsNotFollowed) {
  const std::string other = directory_ + "/other";
  ASSERT_TRUE(ReplaceFile(other, "untouched", 0600).ok());
  const std::string temporary = path_ + "." + std::to_string(::getpid()) + ".part";
  ASSERT_EQ(::symlink(other.c_str(), temporary.c_str()), 0);
  ASSERT_TRUE(ReplaceFile(path_, "new", 0600).ok());
  EXPECT_EQ(Read(), "new");
  EXPECT_EQ(ReadSmallFile(other, kMiB).value(), "untouched");
  EXPECT_EQ(FileCount(), 2);
}

TEST_F(FilesTest, WhatCanNotBeReplacedIsLeftAndNothingBesideIt) {
  ASSERT_EQ(::mkdir(path_.c_str(), 0755), 0);
  EXPECT_THAT(ReplaceFile(path_, "x", 0600).message(), HasSubstr(path_));
  EXPECT_TRUE(std::filesystem::is_directory(path_));
  EXPECT_EQ(FileCount(), 1);
  EXPECT_EQ(ReplaceFile(directory_ + "/absent/x", "x", 0600).code(), StatusCode::kNotFound);
}

TEST_F(FilesTest, ATemporaryNameThatIsTakenIsAnError) {
  const UniqueFd directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(ReplaceFile(path_, "somebody's", 0600).ok());
  const NewFile file{.name = "new", .temporary = "file", .mode = 0600};
  EXPECT_EQ(ReplaceFileAt(directory.get(), directory_, file, "x").code(),
            StatusCode::kAlreadyExists);
  EXPECT_EQ(Read(), "somebody's");
  EXPECT_EQ(FileCount(), 1);
}

}  // namespace
}  // namespace trims

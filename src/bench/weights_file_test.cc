// The weights file of a benchmark: what is in it, and that it goes.
#include "bench/weights_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "bench/test_bench.h"
#include "format/model_file.h"

namespace trims::bench {
namespace {

using testing::HasSubstr;

class WeightsFileTest : public BenchTest {
 protected:
  Result<WeightsFile> Write(WeightsFileSpec spec) {
    spec.directory = directory_;
    return WeightsFile::Write(spec, interrupts_, [this](uint64_t done) { told_.push_back(done); });
  }
  static std::string Contents(const WeightsFile& file) {
    std::ifstream in(file.path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const Interrupts interrupts_;
  std::vector<uint64_t> told_;
};

TEST_F(WeightsFileTest, ItIsASafetensorsFileOfSoManyTensorsAndBytes) {
  for (const bool sparse : {true, false}) {
    const Result<WeightsFile> file = Write({.bytes = kMiB + 7, .tensors = 5, .sparse = sparse});
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    const UniqueFd fd(::open(file->path().c_str(), O_RDONLY | O_CLOEXEC));
    const Result<format::FileSource> source = format::FileSource::Open(fd.get(), file->path());
    ASSERT_TRUE(source.ok());
    EXPECT_EQ(source->size(), file->file_bytes());
    const Result<format::FileIndex> index = format::ParseModelFile(*source);
    ASSERT_TRUE(index.ok()) << index.status().ToString();
    ASSERT_EQ(index->tensors.size(), 5u);
    uint64_t bytes = 0;
    for (const format::TensorEntry& tensor : index->tensors) bytes += tensor.size_bytes;
    EXPECT_EQ(bytes, kMiB + 7);
    // Read past the page cache as they lie, and mapped as they will lie in memory.
    EXPECT_EQ(index->tensors[0].offset % kHostPageBytes, 0u);
    for (size_t i = 0; i + 1 < index->tensors.size(); ++i) {
      EXPECT_EQ(index->tensors[i].size_bytes % kTensorAlignment, 0u);
    }
    EXPECT_EQ(index->metadata.at("made_by"), "trims bench");
  }
}

TEST_F(WeightsFileTest, NoTwoFilesAreTheSameModel) {
  for (const bool sparse : {true, false}) {
    const Result<WeightsFile> one = Write({.bytes = 64 * kKiB, .tensors = 2, .sparse = sparse});
    const Result<WeightsFile> other = Write({.bytes = 64 * kKiB, .tensors = 2, .sparse = sparse});
    ASSERT_TRUE(one.ok() && other.ok());
    EXPECT_NE(one->path(), other->path());
    const std::string contents = Contents(*one);
    EXPECT_EQ(contents.size(), one->file_bytes());
    EXPECT_NE(contents, Contents(*other));
  }
}

TEST_F(WeightsFileTest, EachTensorOfASparseFileHasContentsOfItsOwn) {
  const Result<WeightsFile> file = Write({.bytes = 4 * kMiB, .tensors = 4, .sparse = true});
  ASSERT_TRUE(file.ok());
  const std::string contents = Contents(*file);
  const size_t begin = contents.size() - 4 * kMiB;
  std::set<std::string> tensors;
  for (size_t i = 0; i < 4; ++i) tensors.insert(contents.substr(begin + i * kMiB, kMiB));
  EXPECT_EQ(tensors.size(), 4u);
  struct stat found {};
  ASSERT_EQ(::stat(file->path().c_str(), &found), 0);
  EXPECT_LT(static_cast<uint64_t>(found.st_blocks) * 512, kMiB);  // The rest is holes.
}

TEST_F(WeightsFileTest, EveryBlockOfADenseFileIsNoise) {
  const Result<WeightsFile> file = Write({.bytes = 17 * kMiB, .tensors = 1});
  ASSERT_TRUE(file.ok());
  const std::string contents = Contents(*file);
  const size_t begin = contents.size() - 17 * kMiB;
  std::set<std::string> blocks;
  for (size_t at = begin; at + 4096 <= contents.size(); at += 4096) {
    blocks.insert(contents.substr(at, 4096));
  }
  EXPECT_EQ(blocks.size(), 17 * kMiB / 4096);
  EXPECT_THAT(told_, testing::Not(testing::IsEmpty()));
  EXPECT_TRUE(std::is_sorted(told_.begin(), told_.end()));
  EXPECT_LE(told_.back(), 17 * kMiB);
}

TEST_F(WeightsFileTest, AnotherUsersDaemonCanReadItAndItGoesWithTheObject) {
  std::string path;
  {
    Result<WeightsFile> file = Write({.bytes = 4096, .tensors = 1, .sparse = true});
    ASSERT_TRUE(file.ok());
    const WeightsFile moved = std::move(*file);
    path = moved.path();
    EXPECT_TRUE(std::filesystem::path(path).is_absolute());
    struct stat found {};
    ASSERT_EQ(::stat(path.c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 0777, 0644u);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(WeightsFileTest, ADirectoryWithoutRoomIsRefusedBeforeAnythingIsWritten) {
  const Status status = Write({.bytes = uint64_t{1} << 60, .tensors = 1}).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("does not fit into " + directory_));
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

TEST_F(WeightsFileTest, ADirectoryThatIsNotThereIsNamed) {
  const Status status = WeightsFile::Write({.bytes = 4096, .directory = directory_ + "/none"},
                                           interrupts_, [](uint64_t) {})
                            .status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr(directory_ + "/none"));
}

TEST_F(WeightsFileTest, AnInterruptedWriteLeavesNothing) {
  ASSERT_EQ(::raise(SIGINT), 0);
  EXPECT_EQ(Write({.bytes = 512 * kMiB, .tensors = 1}).status().code(), StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

}  // namespace
}  // namespace trims::bench

#include "format/model_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "format/test_files.h"
#include "format/text.h"

namespace trims::format {
namespace {

using testing::HasSubstr;
using std::string_view_literals::operator""sv;

UniqueFd MemoryFile(std::string_view bytes) {
  UniqueFd fd(memfd_create("format_test", MFD_CLOEXEC));
  EXPECT_GE(fd.get(), 0);
  EXPECT_EQ(write(fd.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  return fd;
}

// --- Sources ------------------------------------------------------------------

TEST(MemorySource, ReadsWithinItsBytesOnly) {
  const MemorySource source(AsBytes("hello"), "memory");
  std::array<std::byte, 3> out = {};
  ASSERT_TRUE(source.ReadAt(2, out).ok());
  EXPECT_EQ(std::to_integer<char>(out[0]), 'l');
  EXPECT_EQ(source.ReadAt(3, out).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(source.ReadAt(UINT64_MAX, out).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(source.ReadAt(5, {}).ok());
  EXPECT_EQ(source.ReadAt(6, {}).code(), StatusCode::kOutOfRange);
}

TEST(FileSource, ReadsAFile) {
  const UniqueFd fd = MemoryFile("hello");
  const Result<FileSource> source = FileSource::Open(fd.get(), "descriptor 7");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ(source->size(), 5u);
  EXPECT_EQ(source->description(), "descriptor 7");
  std::array<std::byte, 5> out = {};
  ASSERT_TRUE(source->ReadAt(0, out).ok());
  EXPECT_EQ(std::to_integer<char>(out[4]), 'o');
  EXPECT_EQ(source->ReadAt(1, out).code(), StatusCode::kOutOfRange);
}

TEST(FileSource, ReportsAFileThatShrank) {
  const UniqueFd fd = MemoryFile(WriteSafetensors({FloatTensor("w", {64})}));
  const Result<FileSource> source = FileSource::Open(fd.get(), "w.safetensors");
  ASSERT_TRUE(source.ok());
  ASSERT_EQ(ftruncate(fd.get(), 20), 0);
  const Result<FileIndex> index = ParseModelFile(*source);
  ASSERT_FALSE(index.ok());
  EXPECT_EQ(index.status().code(), StatusCode::kOutOfRange);
  EXPECT_THAT(index.status().message(), HasSubstr("w.safetensors shrank while it was read"));
}

TEST(FileSource, ReportsAnInputError) {
  // A descriptor without read permission fails every read.
  const UniqueFd fd(open("/tmp", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
  if (fd.get() < 0) GTEST_SKIP() << "/tmp has no O_TMPFILE";
  ASSERT_EQ(ftruncate(fd.get(), 100), 0);
  const Result<FileSource> source = FileSource::Open(fd.get(), "w.safetensors");
  ASSERT_TRUE(source.ok());
  const Result<FileIndex> index = ParseModelFile(*source);
  ASSERT_FALSE(index.ok());
  EXPECT_EQ(index.status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(index.status().message(), HasSubstr("w.safetensors: read at offset 0"));
}

TEST(FileSource, RefusesWhatIsNoRegularFile) {
  const UniqueFd folder(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_THAT(FileSource::Open(folder.get(), "x").status().message(), HasSubstr("is a directory"));
  int ends[2] = {-1, -1};
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  EXPECT_THAT(FileSource::Open(reader.get(), "x").status().message(), HasSubstr("is a pipe"));
  const UniqueFd device(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(FileSource::Open(device.get(), "x").status().message(), HasSubstr("is a device"));
  EXPECT_FALSE(FileSource::Open(-1, "x").ok());
}

TEST(FileSource, FeedsTheParsers) {
  const std::string file = WriteMxnetParams({FloatTensor("arg:a", {3}), FloatTensor("arg:b", {5})});
  const UniqueFd fd = MemoryFile(file);
  const Result<FileSource> source = FileSource::Open(fd.get(), "m.params");
  ASSERT_TRUE(source.ok());
  const Result<FileIndex> index = ParseModelFile(*source);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->tensors.size(), 2u);
}

// A source whose reads fail from the nth on, as of a dying disk.
class FailingSource final : public ByteSource {
 public:
  FailingSource(std::string bytes, int good_reads)
      : bytes_(std::move(bytes)), good_reads_(good_reads) {}
  uint64_t size() const override { return bytes_.size(); }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override {
    if (reads_++ >= good_reads_) return DataLossError("the disk died");
    return MemorySource(AsBytes(bytes_), description_).ReadAt(offset, out);
  }
  const std::string& description() const override { return description_; }

 private:
  std::string bytes_;
  int good_reads_;
  mutable int reads_ = 0;
  std::string description_ = "failing";
};

TEST(Parsers, PassReadErrorsOn) {
  const std::vector<TestTensor> tensors = {FloatTensor("a", {2000}), FloatTensor("b", {2000})};
  for (const std::string& file : {WriteSafetensors(tensors), WriteMxnetParams(tensors)}) {
    int good_reads = 0;
    while (true) {
      const Result<FileIndex> index = ParseModelFile(FailingSource(file, good_reads));
      if (index.ok()) break;
      EXPECT_EQ(index.status(), DataLossError("the disk died"));
      ++good_reads;
    }
    EXPECT_GE(good_reads, 3);
  }
  const Result<ShardIndex> shards = ParseSafetensorsShardIndex(FailingSource("{}", 0));
  EXPECT_EQ(shards.status(), DataLossError("the disk died"));
}

// A source that says something else at every read, as of a file being written.
class ChangingSource final : public ByteSource {
 public:
  explicit ChangingSource(std::string first, std::string then)
      : first_(std::move(first)), then_(std::move(then)) {}
  uint64_t size() const override { return first_.size(); }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override {
    const bool is_first = !read_;
    read_ = true;
    return MemorySource(AsBytes(is_first ? first_ : then_), description_).ReadAt(offset, out);
  }
  const std::string& description() const override { return description_; }

 private:
  std::string first_;
  std::string then_;
  mutable bool read_ = false;
  std::string description_ = "changing";
};

TEST(Parsers, SurviveAFileThatChangesBetweenReads) {
  const std::string good = WriteSafetensors({FloatTensor("a", {2})});
  for (const char filler : {'\0', '{', '[', '"', '\xff'}) {
    EXPECT_FALSE(ParseSafetensors(ChangingSource(good, std::string(good.size(), filler))).ok());
  }
}

// --- Recognition --------------------------------------------------------------

Result<FileIndex> Parse(std::string_view file) {
  return ParseModelFile(MemorySource(AsBytes(file), "model"));
}

void ExpectRefused(std::string_view file, const std::string& message) {
  const Result<FileIndex> index = Parse(file);
  ASSERT_FALSE(index.ok()) << "accepted; expected: " << message;
  EXPECT_EQ(index.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(index.status().message(), HasSubstr("model " + message));
}

TEST(ModelFile, IsRecognisedByItsContent) {
  const std::vector<TestTensor> tensors = {FloatTensor("a", {2})};
  Result<FileIndex> index = Parse(WriteSafetensors(tensors));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->format, FileFormat::kSafetensors);
  index = Parse(WriteMxnetParams(tensors));
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(index->format, FileFormat::kMxnetParams);
}

TEST(ModelFile, IsSafetensorsEvenIfItsLengthLooksLikeAnotherMagic) {
  // A header of 0x0280 bytes begins like a pickle of protocol 2, one of 0x8b1f
  // like gzip.
  for (const size_t header_size : {0x0280u, 0x8b1fu}) {
    const Result<FileIndex> index = Parse(RawSafetensors("{}" + std::string(header_size - 2, ' ')));
    EXPECT_TRUE(index.ok()) << index.status().ToString();
  }
}

TEST(ModelFile, ReportsTheParsersErrorsForItsOwnFormats) {
  ExpectRefused(WriteSafetensors({FloatTensor("a", {2})}).substr(0, 30), "is truncated");
  ExpectRefused(WriteMxnetParams({FloatTensor("a", {2})}).substr(0, 30), "is truncated");
}

TEST(ModelFile, RefusesAnEmptyFile) { ExpectRefused("", "is empty"); }

TEST(ModelFile, RefusesAGitLfsPointer) {
  ExpectRefused(
      "version https://git-lfs.github.com/spec/v1\n"
      "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
      "size 102465345\n",
      "is a Git LFS pointer to a file of 102465345 bytes, not the file itself: fetch it with "
      "'git lfs pull'");
}

TEST(ModelFile, RefusesAWebPage) {
  ExpectRefused("<!DOCTYPE html>\n<html>404</html>", "is an HTML or XML page");
  ExpectRefused("\r\n  <HTML><body>", "is an HTML or XML page");
  ExpectRefused("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>",
                "is an HTML or XML page");
  ExpectRefused("<Error><Code>NoSuchKey</Code></Error>", "is an HTML or XML page");
}

TEST(ModelFile, RefusesOtherFormatsByName) {
  ExpectRefused("PK\x03\x04\0\0\x08\x08"sv, "is a zip archive, such as PyTorch's .pt");
  ExpectRefused("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20"sv,
                "is a Python pickle, which can run code");
  ExpectRefused("\x80\x04\x95\x1f\0\0\0\0\0\0\0}"sv, "is a Python pickle");
  ExpectRefused("GGUF\x03\0\0\0\x01\0\0\0"sv, "is a GGUF file");
  ExpectRefused("\x1f\x8b\x08\0\0\0\0\0\0"sv, "is compressed with gzip");
  ExpectRefused("\x28\xb5\x2f\xfd\0\0\0\0\0"sv, "is compressed with zstd");
  ExpectRefused("\xfd\x37zXZ\0\0\0\0"sv, "is compressed with xz");
  ExpectRefused("BZh91AY&SY", "is compressed with bzip2");
  ExpectRefused("\x89HDF\r\n\x1a\n\0\0"sv, "is an HDF5 file");
  ExpectRefused("|TZR|\1\0\0\0"sv, "is a tensorizer file");
  ExpectRefused("\x93NUMPY\1\0v\0"sv, "is a NumPy .npy file");
  ExpectRefused("\0\0\0\0\0\0\1\x12\0\0"sv, "is an MXNet .params file of a big-endian machine");
  std::string tar(512, 'x');
  tar.replace(257, 5, "ustar");
  ExpectRefused(tar, "is a tar archive");
  ExpectRefused("{\"weight_map\":{}}", "is JSON text, such as a shard index or an MXNet symbol");
}

TEST(ModelFile, SaysWhatAnUnknownFileBeginsWith) {
  ExpectRefused("\x01\x02 unknown format",
                "is neither a safetensors nor an MXNet .params file; it has 17 bytes and begins "
                "with '\\x01\\x02 unknown forma'");
  ExpectRefused("x", "is neither");
  ExpectRefused("\xff\xff\xff\xff\xff\xff\xff\xff{}"sv, "is neither");
}

// --- Text ---------------------------------------------------------------------

TEST(Quoted, EscapesAndCuts) {
  EXPECT_EQ(Quoted("plain"), "'plain'");
  EXPECT_EQ(Quoted("\x1b[0m\xc3\xa9"), "'\\x1b[0m\\xc3\\xa9'");
  EXPECT_EQ(Quoted(std::string(81, 'a')), "'" + std::string(80, 'a') + "...' (81 bytes)");
}

}  // namespace
}  // namespace trims::format

#include "tier/source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tier/test_model.h"

namespace trims {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class SourceTest : public ::testing::Test {
 protected:
  void SetUp() override { fds_before_ = OpenFdCount(); }
  void TearDown() override { EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked"; }

  std::string FirstFile(const std::string& name = "resnet") const {
    const Result<Source> source = Source::OpenPath(directory_.path(), name);
    EXPECT_TRUE(source.ok()) << source.status().ToString();
    if (!source.ok()) return "";
    return std::filesystem::path(source->files().at(0).path).filename().string();
  }

  const TemporaryDirectory directory_;
  const std::string weights_ = format::WriteSafetensors({format::FloatTensor("a", {4})});
  size_t fds_before_ = 0;
};

TEST_F(SourceTest, LooksForFilesInTheDocumentedOrder) {
  // From the last to be looked for to the first: each one written wins.
  for (const char* name : {"only.safetensors", "model.safetensors.index.json", "model.safetensors",
                           "resnet-0000.params", "resnet.params", "model.params"}) {
    const std::string content = std::string(name).ends_with(".json")
                                    ? "{\"weight_map\":{\"a\":\"only.safetensors\"}}"
                                    : weights_;
    directory_.Write(name, content);
    const Result<Source> source = Source::OpenPath(directory_.path(), "resnet");
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    EXPECT_EQ(std::filesystem::path(source->files().back().path).filename(), name);
  }
}

TEST_F(SourceTest, UsesTheModelsOwnNameOnly) {
  directory_.Write("resnet.params", weights_);
  EXPECT_EQ(FirstFile("resnet"), "resnet.params");
  EXPECT_EQ(Source::OpenPath(directory_.path(), "vgg").status().code(), StatusCode::kNotFound);
}

TEST_F(SourceTest, AModelNameCanNotLeaveTheDirectory) {
  directory_.Write("secret.params", weights_);
  directory_.Write("models/features.txt", "x");
  for (const char* name : {"../secret", "/etc/secret", "..", ".", ""}) {
    EXPECT_EQ(Source::OpenPath(directory_ / "models", name).status().code(), StatusCode::kNotFound)
        << name;
  }
}

TEST_F(SourceTest, NotFoundListsWhatWasLookedFor) {
  const Status status = Source::OpenPath(directory_.path(), "resnet").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(
      status.message(),
      AllOf(HasSubstr(directory_.path()), HasSubstr("model.params"), HasSubstr("resnet.params"),
            HasSubstr("resnet-0000.params"), HasSubstr("model.safetensors"),
            HasSubstr("model.safetensors.index.json"), HasSubstr("*.safetensors")));
}

TEST_F(SourceTest, SeveralFilesWithoutAnIndexAreAmbiguous) {
  directory_.Write("one.safetensors", weights_);
  directory_.Write("two.safetensors", weights_);
  const Status status = Source::OpenPath(directory_.path(), "resnet").status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("one.safetensors"), HasSubstr("two.safetensors")));
}

TEST_F(SourceTest, ADirectoryIsNoWeightsFileWhateverItIsCalled) {
  std::filesystem::create_directory(directory_ / "model.params");
  const Status status = Source::OpenPath(directory_.path(), "resnet").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("'model.params' is a directory"));
  directory_.Write("model.safetensors", weights_);
  EXPECT_EQ(FirstFile("resnet"), "model.safetensors");
}

TEST_F(SourceTest, ADirectoryThatIsCalledLikeAWeightsFileIsOpenedAsOne) {
  directory_.Write("net.params/net.params", weights_);
  directory_.Write("net.safetensors.index.json/net.params", weights_);
  for (const char* name : {"net.params", "net.safetensors.index.json"}) {
    const Result<Source> source = Source::OpenPath(directory_ / name, "net");
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    EXPECT_EQ(source->directory(), directory_ / name);
  }
}

TEST_F(SourceTest, ACandidateThatCanNotBeUsedIsAnErrorAndNotSkipped) {
  directory_.Write("model.safetensors", weights_);
  std::filesystem::create_symlink("resnet.params", directory_ / "resnet.params");
  EXPECT_FALSE(Source::OpenPath(directory_.path(), "resnet").ok());
}

TEST_F(SourceTest, ANameWithNamespaceAndVersionFindsItsFiles) {
  directory_.Write("other.params", weights_);
  directory_.Write("resnet-0000.params", weights_);
  for (const char* name : {"team/resnet", "resnet_1.0", "Team/ResNet:1.0"}) {
    EXPECT_EQ(FirstFile(name), "resnet-0000.params") << name;
  }
}

TEST_F(SourceTest, OpensOneFileByItsPath) {
  const std::string path = directory_.Write("weights.bin", weights_);
  const Result<Source> source = Source::OpenPath(path, "resnet");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ(source->files().size(), 1U);
  EXPECT_EQ(source->weight_file_count(), 1U);
  EXPECT_EQ(source->total_bytes(), weights_.size());
  EXPECT_EQ(source->directory(), directory_.path());
  EXPECT_EQ(source->description(), path);
  EXPECT_FALSE(source->shard_index());
}

TEST_F(SourceTest, ADirectoryMayHaveASlashAtItsEnd) {
  directory_.Write("model.params", weights_);
  const Result<Source> source = Source::OpenPath(directory_.path() + "//", "resnet");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ(source->directory(), directory_.path());
  EXPECT_EQ(source->files()[0].path, directory_ / "model.params");
}

TEST_F(SourceTest, FollowsTheLinksOfAHuggingFaceCache) {
  directory_.Write("blobs/abc", weights_);
  directory_.Write("blobs/def", "{\"weight_map\":{\"a\":\"shard-1.safetensors\"}}");
  std::filesystem::create_directories(directory_ / "snapshots/1234");
  std::filesystem::create_symlink("../../blobs/abc",
                                  directory_ / "snapshots/1234/shard-1.safetensors");
  std::filesystem::create_symlink("../../blobs/def",
                                  directory_ / "snapshots/1234/model.safetensors.index.json");
  const Result<Source> source = Source::OpenPath(directory_ / "snapshots/1234", "org/model");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ(source->files().size(), 2U);
  EXPECT_EQ(source->weight_file_count(), 1U);
  EXPECT_EQ(source->total_bytes(), weights_.size());
  EXPECT_TRUE(source->StillCurrent());
}

TEST_F(SourceTest, AnIndexMayBeNamedItself) {
  directory_.Write("part.safetensors", weights_);
  const std::string path = directory_.Write("other.safetensors.index.json",
                                            "{\"weight_map\":{\"a\":\"part.safetensors\"}}");
  const Result<Source> source = Source::OpenPath(path, "resnet");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ(source->weight_file_count(), 1U);
  EXPECT_EQ(source->directory(), directory_.path());
}

TEST_F(SourceTest, AnIndexCanNotNameFilesElsewhere) {
  directory_.Write("secret.safetensors", weights_);
  directory_.Write("model/part.safetensors", weights_);
  for (const std::string& name :
       {std::string("../secret.safetensors"), directory_ / "secret.safetensors", std::string(".."),
        std::string("."), std::string(""), std::string("./part.safetensors"),
        std::string("sub/part.safetensors"), std::string("part.safetensors\\u0000x")}) {
    directory_.Write("model/model.safetensors.index.json",
                     "{\"weight_map\":{\"a\":\"" + name + "\"}}");
    EXPECT_EQ(Source::OpenPath(directory_ / "model", "m").status().code(),
              StatusCode::kInvalidArgument)
        << name;
  }
}

TEST_F(SourceTest, AMissingShardSaysWhichAndWhy) {
  directory_.Write("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"gone.safetensors\"}}");
  const Status status = Source::OpenPath(directory_.path(), "m").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("gone.safetensors"), HasSubstr("model.safetensors.index.json")));
}

TEST_F(SourceTest, AFifoDoesNotBlockTheLoader) {
  ASSERT_EQ(::mkfifo((directory_ / "model.params").c_str(), 0600), 0);
  EXPECT_EQ(Source::OpenPath(directory_.path(), "m").status().code(), StatusCode::kInvalidArgument);
}

TEST_F(SourceTest, MagicLinksAreRefused) {
  const std::string path = directory_.Write("model.params", weights_);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(Source::OpenPath("/proc/self/fd/" + std::to_string(fd.get()), "m").ok());
}

TEST_F(SourceTest, RefusesPathsThatAreNone) {
  EXPECT_EQ(Source::OpenPath("", "m").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Source::OpenPath(std::string("/tmp\0/x", 7), "m").status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(Source::OpenPath(directory_ / "missing", "m").status().code(), StatusCode::kNotFound);
}

// --- Staying current ----------------------------------------------------------

TEST_F(SourceTest, IsCurrentUntilAFileChanges) {
  const std::string path = directory_.Write("model.params", weights_);
  const Result<Source> source = Source::OpenPath(path, "m");
  ASSERT_TRUE(source.ok());
  EXPECT_TRUE(source->StillCurrent());
  EXPECT_TRUE(source->CheckUnchanged().ok());
  std::ofstream(path, std::ios::app) << "x";
  EXPECT_FALSE(source->StillCurrent());
  const Status status = source->CheckUnchanged();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr(path));
}

TEST_F(SourceTest, IsNotCurrentAfterItsFileWasReplaced) {
  const std::string path = directory_.Write("weights/model.params", weights_);
  const Result<Source> source = Source::OpenPath(path, "m");
  ASSERT_TRUE(source.ok());
  directory_.Write("weights/new", weights_);
  std::filesystem::rename(directory_ / "weights/new", path);
  EXPECT_FALSE(source->StillCurrent());
  // What was opened is still the old file, whole.
  EXPECT_TRUE(source->CheckUnchanged().ok());
}

TEST_F(SourceTest, IsNotCurrentAfterAnotherFileCameFirst) {
  directory_.Write("model.safetensors", weights_);
  MakeOld(directory_.path());  // The clock of file times is coarse.
  const Result<Source> source = Source::OpenPath(directory_.path(), "m");
  ASSERT_TRUE(source.ok());
  EXPECT_TRUE(source->StillCurrent());
  directory_.Write("model.params", weights_);
  EXPECT_FALSE(source->StillCurrent());
  EXPECT_EQ(FirstFile("m"), "model.params");
}

TEST_F(SourceTest, IsNotCurrentAfterItsDirectoryIsGone) {
  directory_.Write("m/model.params", weights_);
  const Result<Source> source = Source::OpenPath(directory_ / "m", "m");
  ASSERT_TRUE(source.ok());
  std::filesystem::remove_all(directory_ / "m");
  EXPECT_FALSE(source->StillCurrent());
}

// --- Descriptors --------------------------------------------------------------

TEST_F(SourceTest, TakesAReadableDescriptor) {
  const std::string path = directory_.Write("w", weights_);
  for (const int mode : {O_RDONLY, O_RDWR}) {
    const Result<Source> source =
        Source::FromDescriptor(UniqueFd(::open(path.c_str(), mode | O_CLOEXEC)), "label");
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    EXPECT_EQ(source->directory(), "");
    EXPECT_THAT(source->description(), HasSubstr("label"));
    EXPECT_TRUE(source->StillCurrent());
    EXPECT_FALSE(source->has_forgeable_identity());
  }
}

TEST_F(SourceTest, ADescriptorOfADeletedFileWorks) {
  const std::string path = directory_.Write("w", weights_);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::filesystem::remove(path);
  const Result<Source> source = Source::FromDescriptor(std::move(fd), "");
  ASSERT_TRUE(source.ok());
  EXPECT_TRUE(source->StillCurrent());
}

TEST_F(SourceTest, RefusesDescriptorsThatAreNoReadableFile) {
  const std::string path = directory_.Write("w", weights_);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  std::vector<int> fds = {::open(path.c_str(), O_WRONLY | O_CLOEXEC),
                          ::open(path.c_str(), O_PATH | O_CLOEXEC),
                          ::open(directory_.path().c_str(), O_RDONLY | O_CLOEXEC),
                          ::open("/dev/zero", O_RDONLY | O_CLOEXEC),
                          ends[0],
                          ends[1],
                          pipe_ends[0],
                          pipe_ends[1]};
  for (const int fd : fds) {
    ASSERT_GE(fd, 0);
    EXPECT_EQ(Source::FromDescriptor(UniqueFd(fd), "x").status().code(),
              StatusCode::kInvalidArgument)
        << fd;
  }
  EXPECT_EQ(Source::FromDescriptor(UniqueFd(), "x").status().code(), StatusCode::kInvalidArgument);
}

TEST_F(SourceTest, RefusesADescriptorInDirectMode) {
  const std::string path = directory_.Write("w", weights_);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!fd.valid()) GTEST_SKIP() << "this file system has no O_DIRECT";
  EXPECT_EQ(Source::FromDescriptor(std::move(fd), "x").status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace trims

#include "format/model_files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/unique_fd.h"

namespace trims::format {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

class ModelFilesTest : public testing::Test {
 protected:
  ModelFilesTest() {
    std::string pattern = testing::TempDir() + "/trims-files-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
    fd_ = UniqueFd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~ModelFilesTest() override { fs::remove_all(path_); }

  void Write(const std::string& name) const {
    std::ofstream file(path_ + "/" + name);
    ASSERT_TRUE(file) << name;
  }
  void Remove(const std::string& name) const { fs::remove_all(path_ + "/" + name); }
  // All gone.
  void Clear() const {
    for (const auto& entry : fs::directory_iterator(path_)) fs::remove_all(entry.path());
  }
  // The file's name, or the error's text.
  std::string Weights(const std::string& name) const { return TextOf(FindWeights(In(name))); }
  std::string Graph(const std::string& name) const { return TextOf(FindGraph(In(name))); }
  ModelDirectory In(const std::string& name) const { return {fd_.get(), path_, name}; }
  static std::string TextOf(const Result<std::string>& result) {
    return result.ok() ? *result : result.status().ToString();
  }

  std::string path_;
  UniqueFd fd_;
};

TEST_F(ModelFilesTest, WeightsAreLookedForInThisOrder) {
  // Each one that is written comes before those that were.
  for (const char* file :
       {"model-0007.params", "foo-0007.params", "FOO_1.0-0123.params", "model-0000.params",
        "other.safetensors", "Foo-0000.params", "Foo.params", "Foo-1.0-0000.params",
        "Foo 1.0.params", "model.safetensors.index.json", "model.safetensors", "foo-0000.params",
        "foo.params", "foo_1.0-0000.params", "foo_1.0.params", "model.params"}) {
    Write(file);
    EXPECT_EQ(Weights("team/Foo:1.0"), file);
    EXPECT_EQ(Weights("foo_1.0"), file);
  }
}

TEST_F(ModelFilesTest, GraphsAreLookedForInThisOrder) {
  for (const char* file : {"Foo-symbol.json", "Foo.symbol", "FOO_1.0-symbol.json", "FOO_1.0.symbol",
                           "model-symbol.json", "foo-symbol.json", "foo.symbol",
                           "foo_1.0-symbol.json", "foo_1.0.symbol", "model.symbol"}) {
    Write(file);
    EXPECT_EQ(Graph("team/Foo:1.0"), file);
    EXPECT_EQ(Graph("foo_1.0"), file);
  }
}

// The files of MXNet's save_checkpoint and export, and of the 2019 harness.
TEST_F(ModelFilesTest, LayoutsOfMxnetAndOf2019) {
  struct Layout {
    const char* name;
    std::vector<const char*> files;
    const char* weights;
    const char* graph;
  };
  for (const Layout& layout : {
           Layout{"BVLC-AlexNet:1.0",
                  {"model.params", "model.symbol", "features.txt"},
                  "model.params",
                  "model.symbol"},
           Layout{"BVLC-AlexNet:1.0",
                  {"bvlc_alexnet-0000.params", "bvlc_alexnet-symbol.json"},
                  "bvlc_alexnet-0000.params",
                  "bvlc_alexnet-symbol.json"},
           Layout{"Inception-BN:3.0",
                  {"Inception-BN-0126.params", "Inception-BN-symbol.json"},
                  "Inception-BN-0126.params",
                  "Inception-BN-symbol.json"},
           Layout{"resnet-50",
                  {"resnet-50-0000.params", "resnet-50-0010.params", "resnet-50-symbol.json",
                   "resnet-50-0010.states"},
                  "resnet-50-0000.params",
                  "resnet-50-symbol.json"},
           Layout{"team/mine:latest",
                  {"mine-0000.params", "mine-symbol.json"},
                  "mine-0000.params",
                  "mine-symbol.json"},
       }) {
    Clear();
    for (const char* file : layout.files) Write(file);
    EXPECT_EQ(Weights(layout.name), layout.weights) << layout.name;
    EXPECT_EQ(Graph(layout.name), layout.graph) << layout.name;
  }
}

TEST_F(ModelFilesTest, OtherSpellingsAreFoundFromEverySpelling) {
  Write("Net-A 1-0000.params");
  Write("zzz.params");
  for (const char* name : {"net_a_1", "Net-A 1", "NET A-1", "x/net-a:1"}) {
    EXPECT_EQ(Weights(name), "Net-A 1-0000.params") << name;
  }
}

TEST_F(ModelFilesTest, TheOnlySafetensorsIsTakenWhateverItIsCalled) {
  Write("x.safetensors");
  EXPECT_EQ(Weights("foo"), "x.safetensors");
  EXPECT_EQ(Weights(""), "x.safetensors");
}

TEST_F(ModelFilesTest, ParametersAreTakenByTheirNameOnly) {
  for (const char* file : {"resnet.params", "foobar.params", "fo-0000.params", "bar-0000.params",
                           "foo_bar_baz.params", "-0000.params", "_.params"}) {
    Clear();
    Write(file);
    EXPECT_EQ(FindWeights(In("foo_bar")).status().code(), StatusCode::kNotFound) << file;
    EXPECT_EQ(FindWeights(In("")).status().code(), StatusCode::kNotFound) << file;
  }
}

TEST_F(ModelFilesTest, TheOnlyFileMayLeaveOffTheEndOfTheName) {
  for (const char* file : {"foo-bar-0012.params", "Foo.params", "foo bar.params"}) {
    Clear();
    Write(file);
    EXPECT_EQ(Weights("foo-bar:latest"), file);
    Write("another.params");
    EXPECT_EQ(FindWeights(In("foo-bar:latest")).status().code(), StatusCode::kNotFound);
  }
  Write("foo-symbol.json");
  EXPECT_EQ(Graph("foo-bar:latest"), "foo-symbol.json");
  EXPECT_EQ(FindGraph(In("bar:latest")).status().code(), StatusCode::kNotFound);
  Write("another.symbol");
  EXPECT_EQ(FindGraph(In("foo-bar:latest")).status().code(), StatusCode::kNotFound);
}

TEST_F(ModelFilesTest, AnEpochHasFourDigitsOrMore) {
  for (const char* file : {"foo-0012.params", "Foo-12345.params"}) {
    Clear();
    Write(file);
    Write("other.params");
    EXPECT_EQ(Weights("foo"), file);
  }
  Clear();
  for (const char* file : {"foo-012.params", "foo-.params", "foo-00x1.params", "foo0012.params"}) {
    Write(file);
  }
  EXPECT_EQ(FindWeights(In("foo")).status().code(), StatusCode::kNotFound);
}

TEST_F(ModelFilesTest, TwoWithEqualClaimsAreAnErrorThatNamesThem) {
  for (const auto& [name, a, b] :
       std::vector<std::array<const char*, 3>>{{"foo", "a.safetensors", "b.safetensors"},
                                               {"foo", "foo-0001.params", "foo-0002.params"},
                                               {"foo", "FOO.params", "Foo.params"},
                                               {"f-o", "F-o-0000.params", "f o-0000.params"}}) {
    Clear();
    Write(a);
    Write(b);
    const auto found = FindWeights(In(name));
    EXPECT_EQ(found.status().code(), StatusCode::kFailedPrecondition) << a;
    EXPECT_THAT(found.status().message(), AllOf(HasSubstr(path_), HasSubstr(a), HasSubstr(b),
                                                HasSubstr("model.params"), HasSubstr("trims add")));
  }
  Write("Foo-symbol.json");
  Write("FOO-symbol.json");
  EXPECT_EQ(FindGraph(In("foo")).status().code(), StatusCode::kFailedPrecondition);
  // The exact spelling has the better claim.
  Write("f_o-0000.params");
  EXPECT_EQ(Weights("F-o"), "f_o-0000.params");
}

TEST_F(ModelFilesTest, DirectoriesArePassedOver) {
  for (const char* name :
       {"model.params", "foo.params", "foo-0000.params", "model.safetensors", "x.safetensors",
        "model.safetensors.index.json", "Foo.params", "model-0000.params", "model.symbol",
        "foo-symbol.json", "features.txt", "manifest.json"}) {
    fs::create_directory(path_ + "/" + name);
  }
  const auto weights = FindWeights(In("foo"));
  EXPECT_EQ(weights.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(weights.status().message(), AllOf(HasSubstr("'model.params' is a directory"),
                                                HasSubstr("'x.safetensors' is a directory")));
  EXPECT_EQ(FindGraph(In("foo")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(*FindLabels(In("foo")), std::nullopt);
  EXPECT_EQ(*FindManifest(In("foo")), std::nullopt);
  Write("y.safetensors");
  Write("foo.symbol");
  Write("synset.txt");
  EXPECT_EQ(Weights("foo"), "y.safetensors");
  EXPECT_EQ(Graph("foo"), "foo.symbol");
  EXPECT_EQ(*FindLabels(In("foo")), "synset.txt");
}

TEST_F(ModelFilesTest, LinksAreFollowed) {
  Write("blob");
  fs::create_directory(path_ + "/sub");
  fs::create_symlink("sub", path_ + "/model.params");
  fs::create_symlink("nowhere", path_ + "/foo.params");
  fs::create_symlink("blob", path_ + "/model.safetensors");
  EXPECT_EQ(Weights("foo"), "model.safetensors");
}

// Passing over it would serve other weights than those that are meant.
TEST_F(ModelFilesTest, WhatCanNotBeUsedIsAnErrorAndNotPassedOver) {
  Write("model.safetensors");
  ASSERT_EQ(::mkfifo((path_ + "/model.params").c_str(), 0600), 0);
  auto found = FindWeights(In("foo"));
  EXPECT_EQ(found.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(found.status().message(), HasSubstr(path_ + "/model.params"));
  Remove("model.params");
  fs::create_symlink("foo.params", path_ + "/foo.params");  // A loop.
  found = FindWeights(In("foo"));
  EXPECT_FALSE(found.ok());
  EXPECT_THAT(found.status().message(), HasSubstr(path_ + "/foo.params"));
  ASSERT_EQ(::mkfifo((path_ + "/foo.symbol").c_str(), 0600), 0);
  EXPECT_EQ(FindGraph(In("foo")).status().code(), StatusCode::kInvalidArgument);
  ASSERT_EQ(::mkfifo((path_ + "/features.txt").c_str(), 0600), 0);
  EXPECT_EQ(FindLabels(In("foo")).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(ModelFilesTest, ErrorsListWhatWasLookedFor) {
  const auto weights = FindWeights(In("Foo:1.0"));
  EXPECT_EQ(weights.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(weights.status().message(),
            "no weights in " + path_ +
                ": looked for model.params, foo_1.0.params, foo_1.0-0000.params, foo.params, "
                "foo-0000.params, model.safetensors, model.safetensors.index.json, any "
                "*.safetensors, model-0000.params, foo_1.0-NNNN.params, foo-NNNN.params, "
                "model-NNNN.params, a single *.params called like the beginning of the name");
  const auto graph = FindGraph(In("vgg"));
  EXPECT_EQ(graph.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(graph.status().message(),
            "no graph in " + path_ + ": looked for model.symbol, vgg.symbol, vgg-symbol.json, " +
                "model-symbol.json, a single *.symbol, a single *-symbol.json called like the "
                "beginning of the name");
}

TEST_F(ModelFilesTest, HiddenAndOtherFilesAreNone) {
  for (const char* file : {".x.safetensors", ".safetensors", ".params", ".y.params", "a.params.tmp",
                           "a.safetensors.part", "params", "x.index.json", ".z-symbol.json"}) {
    Write(file);
  }
  EXPECT_EQ(FindWeights(In("foo")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(FindGraph(In("foo")).status().code(), StatusCode::kNotFound);
}

TEST_F(ModelFilesTest, NoNameLeadsOutOfTheDirectory) {
  fs::create_directory(path_ + "/inner");
  Write("secret.params");
  Write("secret.symbol");
  const UniqueFd inner(::open((path_ + "/inner").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (const std::string& name : {std::string("../secret"), std::string(".."), std::string("."),
                                  path_ + "/secret", std::string("x\0../secret", 11)}) {
    EXPECT_EQ(FindWeights({inner.get(), "inner", name}).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(FindGraph({inner.get(), "inner", name}).status().code(), StatusCode::kNotFound);
  }
}

TEST_F(ModelFilesTest, ANameTooLongForAFileIsNotInTheWay) {
  Write("model.safetensors");
  EXPECT_EQ(Weights(std::string(250, 'a')), "model.safetensors");
  EXPECT_EQ(Weights(std::string(500, 'a')), "model.safetensors");
}

TEST_F(ModelFilesTest, ADescriptorForThePathWillDo) {
  const UniqueFd fd(::open(path_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  Write("x.safetensors");  // Found by listing.
  EXPECT_EQ(TextOf(FindWeights({fd.get(), path_, "foo"})), "x.safetensors");
}

TEST_F(ModelFilesTest, LooksInTheDirectoryItWasGivenWhereverThatIsNow) {
  Write("foo.params");
  fs::rename(path_, path_ + "-moved");
  EXPECT_EQ(Weights("foo"), "foo.params");
  fs::rename(path_ + "-moved", path_);
}

TEST_F(ModelFilesTest, ADirectoryOfANameIsFoundBelowTheBaseDirectory) {
  fs::create_directories(path_ + "/vgg16_1.0");
  fs::create_directories(path_ + "/team/Net:2");
  for (const std::string& base : {path_, path_ + "/"}) {
    EXPECT_EQ(*FindModelDirectory(base, "VGG16:1.0"), path_ + "/vgg16_1.0");
    EXPECT_EQ(*FindModelDirectory(base, "team/Net:2"), path_ + "/team/Net:2");
  }
  fs::create_directories(path_ + "/VGG16:1.0");
  EXPECT_EQ(*FindModelDirectory(path_, "VGG16:1.0"), path_ + "/VGG16:1.0");
}

TEST_F(ModelFilesTest, WithoutADirectoryTheErrorListsWhatWasLookedFor) {
  Write("a_1");
  const auto found = FindModelDirectory(path_, "A:1");
  EXPECT_EQ(found.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(found.status().message(), "there is no directory " + path_ + "/A:1 or " + path_ +
                                          "/a_1; " + path_ + "/a_1 is not a directory");
  for (const std::string& name :
       {std::string("../x"), std::string(), std::string("a/"), "@sha256:" + std::string(64, 'a')}) {
    EXPECT_EQ(FindModelDirectory(path_, name).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(IsShardIndexNameTest, GoesByTheEnding) {
  EXPECT_TRUE(IsShardIndexName("model.safetensors.index.json"));
  EXPECT_TRUE(IsShardIndexName("/a/b/x.safetensors.index.json"));
  EXPECT_FALSE(IsShardIndexName("model.safetensors"));
  EXPECT_FALSE(IsShardIndexName("x.index.json"));
}

}  // namespace
}  // namespace trims::format

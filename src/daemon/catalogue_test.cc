#include "daemon/catalogue.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace trims {
namespace {

class CatalogueTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "catalogueXXXXXX";
    root_ = ::mkdtemp(pattern.data());
    std::filesystem::create_directories(root_ + "/state");
    std::filesystem::create_directories(root_ + "/base/bvlc_alexnet_1.0");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::unique_ptr<Catalogue> Open() { return *Catalogue::Open(root_ + "/state", root_ + "/base"); }
  std::string root_;
};

TEST(ModelReferenceTest, AcceptsNamesNamespacesVersionsAndDigests) {
  for (const char* name :
       {"vgg16", "team/vgg16", "vgg16:1.0", "team/VGG-16:v2", "Network in Network"}) {
    EXPECT_TRUE(ParseModelReference(name).ok()) << name;
  }
  const std::string digest = "@sha256:" + std::string(64, 'a');
  EXPECT_TRUE(ParseModelReference(digest)->digest.has_value());
}

TEST(ModelReferenceTest, NoNameIsAPath) {
  for (const char* name :
       {"", "..", ".", "../etc/passwd", "a/../b", "/etc/passwd", "a//b", "a/b/c", "a:b:c", ":1",
        "a/", "a:", "a\nb", "a\x1b[31m", "x:a/b", "..:1", "@sha256:12", "sha256:../../../x"}) {
    EXPECT_EQ(ParseModelReference(name).status().code(), StatusCode::kInvalidArgument) << name;
  }
  EXPECT_FALSE(ParseModelReference(std::string(10'000, 'a')).ok());
}

TEST_F(CatalogueTest, FindsBaseDirModelsByTheirName2019StyleOrByDirectory) {
  for (const char* name : {"bvlc_alexnet_1.0", "BVLC-AlexNet:1.0", "BVLC-AlexNet_1.0"}) {
    const auto entry = Open()->Find(name);
    ASSERT_TRUE(entry.ok()) << name << entry.status().ToString();
    EXPECT_EQ(entry->path, root_ + "/base/bvlc_alexnet_1.0");
  }
}

TEST_F(CatalogueTest, BaseDirMayEndInASlash) {
  auto catalogue = *Catalogue::Open(root_ + "/state", root_ + "/base/");
  EXPECT_EQ(catalogue->Find("bvlc_alexnet_1.0")->path, root_ + "/base/bvlc_alexnet_1.0");
}

TEST_F(CatalogueTest, UnknownNameSaysWhereWasLookedAndHowToAddIt) {
  const Status status = Open()->Find("nothing").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("trims add nothing PATH"), std::string::npos);
  EXPECT_NE(status.message().find(root_ + "/base"), std::string::npos);
}

TEST_F(CatalogueTest, RegisteredNamesSurviveARestart) {
  ASSERT_TRUE(Open()->Add("team/a:1", "/models/a.safetensors", false).ok());
  EXPECT_EQ(Open()->Find("team/a:1")->path, "/models/a.safetensors");
  EXPECT_EQ(Open()->List().size(), 2u);
  ASSERT_TRUE(Open()->Remove("team/a:1").ok());
  EXPECT_FALSE(Open()->Find("team/a:1").ok());
}

TEST_F(CatalogueTest, ANameIsNotSilentlyMovedToAnotherPath) {
  auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  EXPECT_TRUE(catalogue->Add("a", "/x", false).ok());
  EXPECT_EQ(catalogue->Add("a", "/y", false).code(), StatusCode::kAlreadyExists);
  EXPECT_TRUE(catalogue->Add("a", "/y", true).ok());
  EXPECT_EQ(catalogue->Find("a")->path, "/y");
}

TEST_F(CatalogueTest, RemoveTellsUnknownFromFoundInBaseDir) {
  EXPECT_EQ(Open()->Remove("nothing").code(), StatusCode::kNotFound);
  EXPECT_EQ(Open()->Remove("bvlc_alexnet_1.0").code(), StatusCode::kFailedPrecondition);
}

TEST_F(CatalogueTest, BrokenFileIsReportedAndLeftAlone) {
  for (const char* text : {"", "{", "[]", "{\"models\": 3}", "{\"models\": {\"a\": 1}}",
                           "{\"models\": {\"../a\": \"/x\"}}"}) {
    std::ofstream(root_ + "/state/catalogue.json") << text;
    const auto opened = Catalogue::Open(root_ + "/state", root_ + "/base");
    EXPECT_EQ(opened.status().code(), StatusCode::kDataLoss) << text;
    EXPECT_TRUE(std::filesystem::exists(root_ + "/state/catalogue.json"));
  }
}

}  // namespace
}  // namespace trims

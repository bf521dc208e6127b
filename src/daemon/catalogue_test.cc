#include "daemon/catalogue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace trims {
namespace {

using testing::HasSubstr;

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
  std::string File() const { return root_ + "/state/catalogue.json"; }
  std::string Text() const {
    std::ifstream in(File());
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void MakeModel(const std::string& directory) const {
    std::filesystem::create_directories(root_ + "/base/" + directory);
  }
  // "name path", with a '*' when registered; what List says.
  static std::vector<std::string> Lines(const Catalogue& catalogue) {
    std::vector<std::string> lines;
    for (const CatalogueEntry& entry : catalogue.List()) {
      lines.push_back(entry.name + (entry.registered ? "* " : " ") + entry.path);
    }
    return lines;
  }
  std::string root_;
};

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

// --- Names and directories ---------------------------------------------------------

TEST_F(CatalogueTest, ADirectoryIsFoundAsItIsCalledBeforeThe2019Spelling) {
  MakeModel("Net-A:1.0");
  MakeModel("net_a_1.0");
  MakeModel("team/net_b");
  const auto catalogue = Open();
  EXPECT_EQ(catalogue->Find("Net-A:1.0")->path, root_ + "/base/Net-A:1.0");
  EXPECT_EQ(catalogue->Find("NET-A:1.0")->path, root_ + "/base/net_a_1.0");
  EXPECT_EQ(catalogue->Find("Team/Net B")->path, root_ + "/base/team/net_b");
  EXPECT_EQ(catalogue->Find("Team/Net B")->name, "Team/Net B");
  EXPECT_FALSE(catalogue->Find("Team/Net B")->registered);
}

TEST_F(CatalogueTest, WhatIsNoDirectoryIsNoModel) {
  std::ofstream(root_ + "/base/file") << "weights";
  std::filesystem::create_symlink("nowhere", root_ + "/base/dangling");
  std::filesystem::create_symlink("bvlc_alexnet_1.0", root_ + "/base/link");
  const auto catalogue = Open();
  EXPECT_EQ(catalogue->Find("file").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(catalogue->Find("file").status().message(), HasSubstr("is not a directory"));
  EXPECT_EQ(catalogue->Find("dangling").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(catalogue->Find("link")->path, root_ + "/base/link");
}

TEST_F(CatalogueTest, NoNameLeadsOutOfBaseDir) {
  std::filesystem::create_directories(root_ + "/outside");
  const auto catalogue = Open();
  for (const char* name : {"../outside", "..", ".", "", "bvlc_alexnet_1.0/../../outside"}) {
    EXPECT_EQ(catalogue->Find(name).status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_FALSE(catalogue->Add(name, "/x", true).ok()) << name;
    EXPECT_EQ(catalogue->Remove(name).code(), StatusCode::kNotFound) << name;
  }
  EXPECT_FALSE(std::filesystem::exists(File()));
}

TEST_F(CatalogueTest, ABaseDirThatIsNotThereHasNoModels) {
  const auto catalogue = *Catalogue::Open(root_ + "/state", root_ + "/missing");
  EXPECT_EQ(catalogue->Find("a").status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(catalogue->List().empty());
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  EXPECT_EQ(catalogue->Find("a")->path, "/x");
}

TEST_F(CatalogueTest, ModelsThatComeLaterAreFound) {
  const auto catalogue = Open();
  EXPECT_FALSE(catalogue->Find("later").ok());
  MakeModel("later");
  EXPECT_TRUE(catalogue->Find("later").ok());
}

// --- Registered names --------------------------------------------------------------

TEST_F(CatalogueTest, ARegisteredNameWinsUntilItIsRemoved) {
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("bvlc_alexnet_1.0", "/elsewhere", false).ok());
  EXPECT_EQ(catalogue->Find("bvlc_alexnet_1.0")->path, "/elsewhere");
  EXPECT_TRUE(catalogue->Find("bvlc_alexnet_1.0")->registered);
  // Another spelling is another name.
  EXPECT_EQ(catalogue->Find("BVLC-AlexNet:1.0")->path, root_ + "/base/bvlc_alexnet_1.0");
  ASSERT_TRUE(catalogue->Remove("bvlc_alexnet_1.0").ok());
  EXPECT_EQ(catalogue->Find("bvlc_alexnet_1.0")->path, root_ + "/base/bvlc_alexnet_1.0");
}

TEST_F(CatalogueTest, RemovingTakesTheNameAsItWasRegistered) {
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("A:1", "/x", false).ok());
  EXPECT_EQ(catalogue->Remove("a_1").code(), StatusCode::kNotFound);
  EXPECT_EQ(catalogue->Remove("BVLC-AlexNet:1.0").code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(catalogue->Remove("A:1").ok());
  EXPECT_EQ(catalogue->Remove("A:1").code(), StatusCode::kNotFound);
}

TEST_F(CatalogueTest, ADigestIsNoNameToRegister) {
  const std::string digest = "@sha256:" + std::string(64, 'a');
  EXPECT_EQ(Open()->Add(digest, "/x", false).code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(Open()->Find(digest).ok());
}

TEST_F(CatalogueTest, APathIsKeptByteForByteOrRefused) {
  const std::string odd = "/models/\"net\" \\ 1\nünï 👍";
  ASSERT_TRUE(Open()->Add("odd", odd, false).ok());
  EXPECT_EQ(Open()->Find("odd")->path, odd);
  const auto catalogue = Open();
  EXPECT_EQ(catalogue->Add("bad", "/models/\xff", false).code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(catalogue->Find("bad").ok());
  EXPECT_EQ(Lines(*Open()), Lines(*catalogue));
}

TEST_F(CatalogueTest, TheVersionChangesWithWhatNamesLeadTo) {
  const auto catalogue = Open();
  uint64_t before = catalogue->version();
  const auto changed = [&] { return std::exchange(before, catalogue->version()) != before; };
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  EXPECT_TRUE(changed());
  ASSERT_TRUE(catalogue->Add("a", "/y", true).ok());
  EXPECT_TRUE(changed());
  EXPECT_FALSE(catalogue->Add("a", "/z", false).ok());
  EXPECT_FALSE(catalogue->Remove("b").ok());
  EXPECT_FALSE(changed());
  ASSERT_TRUE(catalogue->Remove("a").ok());
  EXPECT_TRUE(changed());
}

TEST_F(CatalogueTest, ListsRegisteredNamesAndDirectoriesByName) {
  MakeModel("vgg16");
  MakeModel("team/inner");
  MakeModel("not a name!");
  std::ofstream(root_ + "/base/file") << "weights";
  std::filesystem::create_symlink("vgg16", root_ + "/base/alias");
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("vgg16", "/other/vgg16", false).ok());
  ASSERT_TRUE(catalogue->Add("a:1", "/a", false).ok());
  const std::string base = root_ + "/base/";
  EXPECT_THAT(Lines(*catalogue),
              testing::ElementsAre("a:1* /a", "alias " + base + "alias",
                                   "bvlc_alexnet_1.0 " + base + "bvlc_alexnet_1.0",
                                   "team " + base + "team", "vgg16* /other/vgg16"));
}

TEST_F(CatalogueTest, ThreadsSeeOneStateOrTheOther) {
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  std::thread writer([&] {
    for (int i = 0; i < 50; ++i) {
      EXPECT_TRUE(catalogue->Add("a", i % 2 == 0 ? "/y" : "/x", true).ok());
    }
  });
  for (int i = 0; i < 500; ++i) {
    const std::string path = catalogue->Find("a")->path;
    EXPECT_TRUE(path == "/x" || path == "/y") << path;
    EXPECT_EQ(catalogue->List().size(), 2u);
  }
  writer.join();
  EXPECT_EQ(Lines(*Open()), Lines(*catalogue));
}

// --- The file ----------------------------------------------------------------------

TEST_F(CatalogueTest, BrokenFileIsReportedAndLeftAlone) {
  for (const std::string text :
       {"", "{", "[]", "{}", "{\"models\": 3}", "{\"models\": []}", "{\"models\": {\"a\": 1}}",
        "{\"models\": {\"a\": null}}", "{\"models\": {\"../a\": \"/x\"}}",
        "{\"models\": {\"\": \"/x\"}}", "{\"models\": {\"a\": \"/x\"}", "\xff\xfe{}",
        "{\"models\": {\"a\": \"\xff\"}}", "{\"models\": {\"a\": \"/x\"}} and more"}) {
    std::ofstream(File(), std::ios::trunc) << text;
    const auto opened = Catalogue::Open(root_ + "/state", root_ + "/base");
    EXPECT_EQ(opened.status().code(), StatusCode::kDataLoss) << text;
    EXPECT_THAT(opened.status().message(), HasSubstr(File()));
    EXPECT_EQ(Text(), text);
  }
  const std::string digest = "sha256:" + std::string(64, 'a');
  std::ofstream(File(), std::ios::trunc) << "{\"models\": {\"" + digest + "\": \"/x\"}}";
  EXPECT_EQ(Catalogue::Open(root_ + "/state", root_ + "/base").status().code(),
            StatusCode::kDataLoss);
}

// Taking one for an empty catalogue would lose every name at the next Add.
TEST_F(CatalogueTest, AFileThatCanNotBeReadIsNotAnEmptyOne) {
  std::filesystem::create_symlink("catalogue.json", File());  // A loop.
  EXPECT_FALSE(Catalogue::Open(root_ + "/state", root_ + "/base").ok());
  std::filesystem::remove(File());
  std::filesystem::create_directory(File());
  const auto opened = Catalogue::Open(root_ + "/state", root_ + "/base");
  EXPECT_FALSE(opened.ok());
  EXPECT_THAT(opened.status().message(), HasSubstr(File()));
}

TEST_F(CatalogueTest, UnknownFieldsAndAnyFormattingAreRead) {
  std::ofstream(File()) << " {\"models\":\n{\"a\":\"/x\",\"t/b:1\":\"/y\"},\"more\":[1]} ";
  const auto catalogue = Open();
  EXPECT_EQ(catalogue->Find("a")->path, "/x");
  EXPECT_EQ(catalogue->Find("t/b:1")->path, "/y");
}

TEST_F(CatalogueTest, NothingChangesWhenTheStateDirectoryIsGone) {
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  const uint64_t version = catalogue->version();
  std::filesystem::rename(root_ + "/state", root_ + "/moved");
  for (const Status& status : {catalogue->Add("b", "/y", false), catalogue->Add("a", "/y", true),
                               catalogue->Remove("a")}) {
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_THAT(status.message(), HasSubstr(root_ + "/state"));
  }
  EXPECT_EQ(catalogue->version(), version);
  EXPECT_EQ(catalogue->Find("a")->path, "/x");
  EXPECT_FALSE(catalogue->Find("b").ok());
  std::filesystem::rename(root_ + "/moved", root_ + "/state");
  EXPECT_TRUE(catalogue->Add("b", "/y", false).ok());
  EXPECT_EQ(Lines(*Open()), Lines(*catalogue));
}

TEST_F(CatalogueTest, ACatalogueThatDoesNotFitLeavesTheOldOne) {
  const auto catalogue = Open();
  ASSERT_TRUE(catalogue->Add("a", "/x", false).ok());
  const std::string before = Text();
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{64, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = catalogue->Add("b", "/" + std::string(200, 'y'), false);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(status.ok());
  EXPECT_FALSE(catalogue->Find("b").ok());
  EXPECT_EQ(Text(), before);
  EXPECT_FALSE(std::filesystem::exists(File() + ".tmp"));
  EXPECT_EQ(Open()->Find("a")->path, "/x");
}

TEST_F(CatalogueTest, OnlyItsOwnerReadsTheFile) {
  ASSERT_TRUE(Open()->Add("a", "/x", false).ok());
  EXPECT_EQ(std::filesystem::status(File()).permissions(), std::filesystem::perms(0600));
  EXPECT_FALSE(std::filesystem::exists(File() + ".tmp"));
}

TEST_F(CatalogueTest, WhatACrashLeftBehindIsOverwritten) {
  std::ofstream(File() + ".tmp") << std::string(10'000, 'x');
  ASSERT_TRUE(Open()->Add("a", "/x", false).ok());
  EXPECT_EQ(Open()->Find("a")->path, "/x");
}

}  // namespace
}  // namespace trims

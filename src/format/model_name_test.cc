#include "format/model_name.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/limits.h"

namespace trims {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ModelReferenceTest, AcceptsNamesNamespacesVersionsAndDigests) {
  for (const char* name : {"vgg16", "team/vgg16", "vgg16:1.0", "team/VGG-16:v2",
                           "Network in Network", "a.b/c.d:..e"}) {
    const auto reference = ParseModelReference(name);
    ASSERT_TRUE(reference.ok()) << name << ": " << reference.status().ToString();
    EXPECT_EQ(reference->name, name);
    EXPECT_FALSE(reference->digest);
  }
  for (const char* prefix : {"@sha256:", "sha256:", "@"}) {
    const auto reference = ParseModelReference(prefix + std::string(64, 'a'));
    ASSERT_TRUE(reference.ok()) << prefix;
    EXPECT_EQ(reference->digest->ToHex(), std::string(64, 'a'));
    EXPECT_EQ(reference->name, "");
  }
  // Without a prefix it is a name.
  EXPECT_FALSE(ParseModelReference(std::string(64, 'a'))->digest);
}

TEST(ModelReferenceTest, NoNameIsAPath) {
  for (const char* name : {"",           "..",
                           ".",          "../etc/passwd",
                           "a/../b",     "/etc/passwd",
                           "a//b",       "a/b/c",
                           "a:b:c",      ":1",
                           "a/",         "a:",
                           "a\nb",       "a\x1b[31m",
                           "x:a/b",      "..:1",
                           "@sha256:12", "sha256:../../../x",
                           "a/.",        "./a",
                           "a:.",        "a:..",
                           "a/..:1",     "a\\b",
                           "\xc3\xbc"}) {
    EXPECT_EQ(ParseModelReference(name).status().code(), StatusCode::kInvalidArgument) << name;
  }
  EXPECT_FALSE(ParseModelReference(std::string_view("a\0b", 3)).ok());
}

TEST(ModelReferenceTest, LengthIsLimited) {
  EXPECT_TRUE(ParseModelReference(std::string(kMaxModelNameBytes, 'a')).ok());
  EXPECT_THAT(ParseModelReference(std::string(kMaxModelNameBytes + 1, 'a')).status().message(),
              HasSubstr(std::to_string(kMaxModelNameBytes)));
}

TEST(ModelReferenceTest, ErrorsSayWhatIsWrong) {
  EXPECT_THAT(ParseModelReference("a*b").status().message(),
              AllOf(HasSubstr("byte 42 at position 1"), HasSubstr("letters, digits, spaces")));
  EXPECT_THAT(ParseModelReference("/a").status().message(), HasSubstr("empty namespace"));
  EXPECT_THAT(ParseModelReference("a:").status().message(), HasSubstr("empty version"));
  EXPECT_THAT(ParseModelReference("t/:1").status().message(), HasSubstr("empty name"));
  EXPECT_THAT(ParseModelReference("a/..").status().message(), HasSubstr("forbidden name"));
  EXPECT_THAT(ParseModelReference("a/b/c").status().message(), HasSubstr("too many parts"));
}

TEST(CanonicalDirectoryNameTest, IsThatOf2019) {
  EXPECT_EQ(CanonicalDirectoryName("BVLC-AlexNet:1.0"), "bvlc_alexnet_1.0");
  EXPECT_EQ(CanonicalDirectoryName("Network in Network:1.0"), "network_in_network_1.0");
  EXPECT_EQ(CanonicalDirectoryName("o-ResNet101:2.0"), "o_resnet101_2.0");
  EXPECT_EQ(CanonicalDirectoryName("Team-A/VGG16_SOD:1.0"), "team_a/vgg16_sod_1.0");
  EXPECT_EQ(CanonicalDirectoryName(""), "");
}

TEST(ModelDirectoryNamesTest, AreTheNameAsWrittenAndThe2019One) {
  EXPECT_THAT(ModelDirectoryNames("vgg16"), ElementsAre("vgg16"));
  EXPECT_THAT(ModelDirectoryNames("VGG-16:1.0"), ElementsAre("VGG-16:1.0", "vgg_16_1.0"));
  EXPECT_THAT(ModelDirectoryNames("Team/VGG"), ElementsAre("Team/VGG", "team/vgg"));
}

TEST(ModelDirectoryNamesTest, WhatIsNoNameHasNone) {
  for (const std::string& text : {std::string("../x"), std::string("/x"), std::string("x/"),
                                  std::string(""), "@sha256:" + std::string(64, 'a')}) {
    EXPECT_THAT(ModelDirectoryNames(text), IsEmpty()) << text;
  }
}

TEST(ModelFileStemsTest, AreTheNameWithAndWithoutItsVersion) {
  EXPECT_THAT(ModelFileStems("vgg16"), ElementsAre("vgg16"));
  EXPECT_THAT(ModelFileStems("foo:1.0"), ElementsAre("foo_1.0", "foo"));
  EXPECT_THAT(ModelFileStems("foo_1.0"), ElementsAre("foo_1.0", "foo"));
  EXPECT_THAT(ModelFileStems("Team-A/Foo-Bar Baz:1.0.2rc1"),
              ElementsAre("foo_bar_baz_1.0.2rc1", "foo_bar_baz"));
}

// Where '_' may as well be part of the name, it is.
TEST(ModelFileStemsTest, AVersionBeginsWithADigitAndHasADot) {
  for (const char* name : {"resnet_50", "resnet-50", "inception_v3", "net:latest", "net:v1.0",
                           "net_1.", "_1.0", "._1.0", ".._1.0"}) {
    EXPECT_THAT(ModelFileStems(name), ElementsAre(CanonicalDirectoryName(name))) << name;
  }
  EXPECT_THAT(ModelFileStems("resnet_50_1.0"), ElementsAre("resnet_50_1.0", "resnet_50"));
}

TEST(ModelFileStemsTest, EverySpellingOfANameHasTheSame) {
  for (const char* name : {"BVLC-AlexNet:1.0", "bvlc alexnet 1.0", "Bvlc_Alexnet-1.0",
                           "team/bvlc_alexnet:1.0", "/models/bvlc_alexnet_1.0///"}) {
    EXPECT_THAT(ModelFileStems(name), ElementsAre("bvlc_alexnet_1.0", "bvlc_alexnet")) << name;
  }
}

TEST(ModelFileStemsTest, WhatCanNotBeAFilesNameHasNone) {
  const std::string digest = "sha256:" + std::string(64, 'a');
  for (const std::string& text :
       {std::string(), std::string("/"), std::string("a/.."), std::string("."), digest,
        "@" + digest, std::string("a\0b", 3), std::string(256, 'a')}) {
    EXPECT_THAT(ModelFileStems(text), IsEmpty()) << text;
  }
}

}  // namespace
}  // namespace trims

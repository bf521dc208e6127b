// `trims show`: everything about one model.
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class ShowTest : public CliTest {};

TEST_F(ShowTest, ShowTellsEverything) {
  backend_.AddLease("vgg16", 7, 0, 42, "python3");
  StartDaemon();
  const Outcome outcome = Run({"show", "vgg16"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("name      vgg16\n"), HasSubstr(kDigestA),
                                 HasSubstr("528.0 MiB (553648128 bytes)"), HasSubstr("format = pt"),
                                 HasSubstr("GRANULARITY"), HasSubstr("python3")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("fc.weight")));
  EXPECT_THAT(Run({"show", "vgg16", "--tensors"}).out,
              AllOf(HasSubstr("fc.weight  F32"), HasSubstr("[69206016]")));
  EXPECT_THAT(Run({"show", "lenet:1"}).out, HasSubstr("not resident in any tier"));
  const json shown = json::parse(Run({"show", "vgg16", "--tensors", "--json"}).out);
  EXPECT_EQ(shown["tensors"][1]["name"], "fc.weight");
  EXPECT_EQ(shown["metadata"]["format"], "pt");
  EXPECT_EQ(shown["leases"][0]["pid"], 42);
  EXPECT_FALSE(json::parse(Run({"show", "vgg16", "--json"}).out).contains("tensors"));
}

TEST_F(ShowTest, DigestsMayBeShortened) {
  StartDaemon();
  for (const std::string typed :
       {"aaaaaaaaaaaa", "sha256:aaaaaa", "@sha256:aaaaaaaaaa", "AAAAAA"}) {
    EXPECT_THAT(Run({"show", typed}).out, HasSubstr("name      vgg16\n")) << typed;
  }
  EXPECT_EQ(Run({"show", kDigestA}).code, 0);
  EXPECT_EQ(Run({"show", "@" + kDigestA}).code, 0);
  EXPECT_EQ(Run({"show", "sha256:cccccc"}).code, 3);
  EXPECT_EQ(Run({"show", "sha256:xyz"}).code, 2);
  backend_.AddModel("twin", 'a', 5);
  EXPECT_EQ(Run({"show", "aaaaaa"}).code, 0);  // One digest with two names.
  backend_.Change(
      "twin", [](auto& model) { model.view.set_digest("sha256:aaaaaaaa" + std::string(56, '0')); });
  const Outcome outcome = Run({"show", "aaaaaa"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("2 models"));
}

TEST_F(ShowTest, AModelThatWasNeverReadHasNoDigestYet) {
  backend_.Change("lenet:1", [](auto& model) {
    model.view.clear_digest();
    model.view.set_weight_bytes(0);
    model.view.set_tensor_count(0);
    model.view.clear_source();
    model.metadata.clear();
  });
  StartDaemon();
  EXPECT_EQ(Run({"show", "lenet:1"}).out,
            "name      lenet:1\n"
            "digest    not computed yet: the first load does\n"
            "origin    added\n"
            "source    -\n"
            "size      -\n"
            "tensors   -\n"
            "pinned    no\n"
            "\n"
            "not resident in any tier\n");
}

TEST_F(ShowTest, MetadataIsSortedAndCanNotWriteOverTheScreen) {
  backend_.Change("vgg16", [](auto& model) {
    model.metadata = {{"zoo", "last"}, {"a\x1b[2J", "b\nc"}, {"m", "middle"}};
  });
  StartDaemon();
  EXPECT_THAT(Run({"show", "vgg16"}).out,
              HasSubstr("metadata\n  a?[2J = b?c\n  m = middle\n  zoo = last\n\n"));
}

TEST_F(ShowTest, TensorsWithoutDimensionsAreScalars) {
  backend_.Change("vgg16", [](auto& model) {
    model.tensors[0].clear_shape();
    model.tensors[1].clear_shape();
    for (const int64_t dimension : {64, 3, 3}) model.tensors[1].add_shape(dimension);
  });
  StartDaemon();
  EXPECT_THAT(Run({"show", "vgg16", "--tensors"}).out,
              AllOf(HasSubstr("fc.bias    F32    []  "), HasSubstr("F32    [64, 3, 3]  264.0 MiB"),
                    HasSubstr("777777777777\n")));
  EXPECT_THAT(Run({"show", "vgg16", "--tensors", "--no-truncate"}).out,
              HasSubstr("sha256:" + std::string(64, '7')));
}

TEST_F(ShowTest, UnknownModelsAreExitCodeThree) {
  StartDaemon();
  const Outcome outcome = Run({"show", "vgg61"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: no model named vgg61\n"),
                                 HasSubstr("hint: \"trims ls\" shows the models")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

}  // namespace
}  // namespace trims::cli

// `trims ls`: what is known, as a table, as names and as JSON.
#include <string>
#include <vector>

#include "cli/test_cli.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

class LsTest : public CliTest {};

TEST_F(LsTest, LsShowsAnAlignedTable) {
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(Lines(outcome.out),
              ElementsAre("NAME     DIGEST             SIZE  TENSORS  RESIDENT  SOURCE",
                          "lenet:1  bbbbbbbbbbbb    1.6 MiB        2  -         /models/lenet:1",
                          "vgg16    aaaaaaaaaaaa  528.0 MiB        2  host      /models/vgg16"));
  EXPECT_THAT(outcome.err, IsEmpty());
}

TEST_F(LsTest, LsHasQuietJsonAndWholeDigests) {
  StartDaemon();
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\nvgg16\n");
  EXPECT_EQ(Run({"list", "--quiet"}).out, "lenet:1\nvgg16\n");
  EXPECT_THAT(Run({"ls", "--no-truncate"}).out, HasSubstr(kDigestA));
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"ls", "--json"}, {"--json", "ls"}}) {
    const json models = json::parse(Run(words).out);
    ASSERT_EQ(models.size(), 2u);
    EXPECT_EQ(models[1]["name"], "vgg16");
    EXPECT_EQ(models[1]["weight_bytes"], 553'648'128u);
    EXPECT_EQ(models[1]["origin"], "added");
    EXPECT_EQ(models[1]["replicas"][0]["state"], "ready");
    EXPECT_EQ(models[1]["replicas"][0]["until"], nullptr);
  }
}

TEST_F(LsTest, AModelWithoutANameIsListedByItsDigest) {
  backend_.Change("vgg16", [](FakeControlBackend::FakeModel& model) {
    model.view.set_name("my label");
    model.view.set_origin(v1::MODEL_ORIGIN_DESCRIPTOR);
  });
  StartDaemon();
  EXPECT_EQ(Run({"ls", "-q"}).out, "lenet:1\n@" + kDigestA + "\n");
}

TEST_F(LsTest, NamesCanNotWriteOverTheScreen) {
  backend_.Change("vgg16", [](FakeControlBackend::FakeModel& model) {
    model.view.set_name("evil\x1b[2J\n\xc2\x9bname");
  });
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_THAT(outcome.out, HasSubstr("evil?[2J??name"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));
}

TEST_F(LsTest, ReplicasThatAreNotReadySayWhatTheyAre) {
  backend_.Change("vgg16", [](auto& model) {
    model.view.mutable_replicas(0)->set_state(v1::REPLICA_STATE_QUARANTINED);
  });
  backend_.MakeResident("vgg16", "gpu:GPU-0");
  StartDaemon();
  EXPECT_THAT(Run({"ls"}).out, HasSubstr("  host(quarantined),gpu:GPU-0  "));
}

TEST_F(LsTest, WhatIsNotKnownYetIsADash) {
  backend_.Change("lenet:1", [](auto& model) {
    model.view.clear_digest();
    model.view.set_weight_bytes(0);
    model.view.set_tensor_count(0);
  });
  StartDaemon();
  EXPECT_THAT(Lines(Run({"ls"}).out)[1],
              StartsWith("lenet:1  -                     -        -  -  "));
}

TEST_F(LsTest, NoModelsAreAnEmptyTableAndAnEmptyArray) {
  StartDaemon();
  ASSERT_EQ(Run({"rm", "vgg16", "lenet:1", "--force"}).code, 0);
  EXPECT_EQ(Run({"ls"}).out, "NAME  DIGEST  SIZE  TENSORS  RESIDENT  SOURCE\n");
  EXPECT_EQ(Run({"ls", "-q"}).out, "");
  EXPECT_EQ(RunJson({"ls"}), json::array());
}

TEST_F(LsTest, LinesAreAsLongAsTheTerminalIsWide) {
  backend_.AddModel("team/a-name-that-fills-half-of-the-line-by-itself:2026-11-26", 'e', 4096);
  StartDaemon();
  for (const unsigned short columns : {70, 90}) {
    const std::vector<std::string> lines = Lines(Spawn({"ls"}, {.out = columns})->Wait().out);
    ASSERT_EQ(lines.size(), 4u);
    for (const std::string& line : lines) EXPECT_LE(DisplayWidth(line), columns) << line;
    EXPECT_THAT(lines[2], HasSubstr("…"));
  }
  EXPECT_THAT(Spawn({"ls", "--no-truncate"}, {.out = 70})->Wait().out,
              AllOf(HasSubstr("by-itself:2026-11-26"), Not(HasSubstr("…"))));
}

TEST_F(LsTest, JsonHasTheFieldsOfTheProtocol) {
  StartDaemon();
  const json model = RunJson({"ls"}).at(0);
  EXPECT_EQ(model["name"], "lenet:1");
  EXPECT_EQ(model["digest"], "sha256:" + std::string(64, 'b'));
  EXPECT_EQ(model["source"], "/models/lenet:1");
  EXPECT_EQ(model["tensor_count"], 2);
  EXPECT_EQ(model["pinned"], false);
  EXPECT_EQ(model["replicas"], json::array());
}

}  // namespace
}  // namespace trims::cli

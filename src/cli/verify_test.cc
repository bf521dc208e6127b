// `trims verify`: whether the resident bytes are still the right ones.
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class VerifyTest : public CliTest {};

TEST_F(VerifyTest, VerifyFindsDamage) {
  backend_.MakeResident("lenet:1");
  StartDaemon();
  const Outcome good = Run({"verify"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out,
              AllOf(HasSubstr("VERDICT"), HasSubstr("intact"), Not(HasSubstr("DAMAGED"))));
  EXPECT_EQ(Run({"verify", "-q"}).out, "");
  backend_.Change("lenet:1", [](auto& model) { model.corrupt = true; });
  const Outcome bad = Run({"verify"});
  EXPECT_EQ(bad.code, 6);
  EXPECT_THAT(bad.out, AllOf(HasSubstr("DAMAGED"), HasSubstr("tensor fc.weight, chunk 0")));
  EXPECT_THAT(bad.err, HasSubstr("1 of 2 replicas"));
  EXPECT_EQ(Run({"verify", "vgg16"}).code, 0);
  backend_.MakeResident("lenet:1");  // Damaged bytes are not kept.
  backend_.Change("lenet:1", [](auto& model) { model.corrupt = true; });
  const Outcome lines = Run({"verify", "lenet:1", "--json"});
  ASSERT_EQ(lines.code, 6);
  EXPECT_EQ(json::parse(Lines(lines.out).back())["verdict"]["intact"], false);
}

TEST_F(VerifyTest, NothingResidentIsNothingToVerify) {
  StartDaemon();
  ASSERT_EQ(Run({"evict", "vgg16"}).code, 0);
  EXPECT_EQ(Run({"verify"}).out, "nothing is resident: nothing to verify\n");
  EXPECT_EQ(Run({"verify", "-q"}).out, "");
  EXPECT_EQ(Run({"verify"}).code, 0);
}

TEST_F(VerifyTest, QuietShowsOnlyWhatIsDamagedAndHowToGoOn) {
  backend_.MakeResident("lenet:1");
  backend_.Change("lenet:1", [](auto& model) { model.corrupt = true; });
  StartDaemon();
  const Outcome outcome = Run({"verify", "-q"});
  EXPECT_EQ(outcome.code, 6);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("lenet:1"), Not(HasSubstr("vgg16"))));
  EXPECT_THAT(outcome.err,
              AllOf(StartsWith("trims: 1 of 2 replicas do not hold the bytes that were loaded\n"),
                    HasSubstr("hint: they are quarantined: evict them")));
  EXPECT_THAT(Run({"ps"}).out, HasSubstr("quarantined"));
}

TEST_F(VerifyTest, OneTierAtATime) {
  backend_.MakeResident("vgg16", "gpu:GPU-0");
  StartDaemon();
  const std::vector<std::string> lines = Lines(Run({"verify", "--tier", "gpu:GPU-0"}).out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1], "vgg16  aaaaaaaaaaaa  gpu:GPU-0  528.0 MiB  intact   0.2 s  -");
}

TEST_F(VerifyTest, JsonIsALinePerStepWithItsVerdict) {
  StartDaemon();
  const std::vector<std::string> lines = Lines(Run({"verify", "--json"}).out);
  ASSERT_EQ(lines.size(), 2u);
  const json half = json::parse(lines[0]);
  EXPECT_EQ(half["done_bytes"], 553'648'128 / 2);
  EXPECT_EQ(half["verdict"], nullptr);
  const json done = json::parse(lines[1]);
  EXPECT_EQ(done["done_bytes"], done["total_bytes"]);
  EXPECT_EQ(done["verdict"]["model"], "vgg16");
  EXPECT_EQ(done["verdict"]["took"], 0.25);
}

TEST_F(VerifyTest, UnknownModelsAreExitCodeThree) {
  StartDaemon();
  EXPECT_EQ(Run({"verify", "nothing"}).code, 3);
  EXPECT_THAT(Run({"verify", "sha256:xyz"}).err, HasSubstr("\"sha256:xyz\" is no digest"));
}

TEST_F(VerifyTest, ABarIsShownOnATerminalAndTakenAway) {
  StartDaemon();
  const Outcome outcome = Spawn({"verify"}, {.err = 100})->Wait();
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("verifying"), HasSubstr("of 528.0 MiB"), EndsWith("\r\033[K")));
}

}  // namespace
}  // namespace trims::cli

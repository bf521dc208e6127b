// `trims add`: a name for a file of this machine.
#include <filesystem>
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class AddTest : public CliTest {};

TEST_F(AddTest, AddSendsAnAbsolutePath) {
  StartDaemon();
  const Outcome outcome = Run({"add", "mine/net:2", "some/../weights.safetensors"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::string expected = (std::filesystem::current_path() / "weights.safetensors").string();
  EXPECT_EQ(outcome.out, "mine/net:2 names " + expected + " (4.0 KiB in 2 tensors)\n");
  const Outcome again = Run({"add", "mine/net:2", "/x"});
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, AllOf(StartsWith("trims: the name mine/net:2 is taken\n"),
                               HasSubstr("hint: "), HasSubstr("--replace")));
  const Outcome replaced = Run({"add", "mine/net:2", "/x", "--replace", "--json"});
  EXPECT_EQ(json::parse(replaced.out)["source"], "/x");
}

TEST_F(AddTest, ReplacingSaysSo) {
  StartDaemon();
  const Outcome outcome = Run({"add", "vgg16", "/elsewhere/vgg.params", "--replace"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "vgg16 now names /elsewhere/vgg.params (4.0 KiB in 2 tensors)\n");
}

TEST_F(AddTest, JsonIsTheModelAsItIsKnownNow) {
  StartDaemon();
  const json model = RunJson({"add", "net", "/x/net.safetensors"});
  EXPECT_EQ(model["name"], "net");
  EXPECT_EQ(model["source"], "/x/net.safetensors");
  EXPECT_EQ(model["origin"], "added");
  EXPECT_EQ(model["digest"], "");
}

}  // namespace
}  // namespace trims::cli

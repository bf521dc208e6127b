// `trims pin` and `trims unpin`.
#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class PinTest : public CliTest {};

TEST_F(PinTest, PinAndUnpin) {
  StartDaemon();
  EXPECT_EQ(Run({"pin", "vgg16"}).out, "vgg16 is pinned in host\n");
  EXPECT_THAT(Run({"pin", "lenet:1"}).out, HasSubstr("not loaded yet"));
  const Outcome refused = Run({"evict", "vgg16"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("pinned"), HasSubstr("--force")));
  EXPECT_EQ(Run({"unpin", "vgg16"}).out, "vgg16 is no longer pinned\n");
  EXPECT_EQ(json::parse(Run({"pin", "vgg16", "--json"}).out)[0]["pinned"], true);
  EXPECT_EQ(Run({"pin", "nothing"}).code, 3);
}

TEST_F(PinTest, PinsAreOfATier) {
  AddDevices();
  StartDaemon();
  EXPECT_EQ(Run({"pin", "vgg16", "--device", "gpu:0"}).out,
            "vgg16 is pinned in gpu:0 and not loaded yet; \"trims load\" loads it\n");
  EXPECT_EQ(Run({"load", "vgg16", "--device", "gpu:0"}).code, 0);
  EXPECT_THAT(Run({"ps"}).out, HasSubstr("gpu:0       0  ready  unpinned  pinned\n"));
  EXPECT_EQ(Run({"unpin", "vgg16", "--tier", "host"}).out, "vgg16 is no longer pinned in host\n");
}

TEST_F(PinTest, OneFailureDoesNotStopTheOthersButDecidesTheCode) {
  StartDaemon();
  for (const char* command : {"pin", "unpin"}) {
    const Outcome outcome = Run({command, "nothing", "vgg16"});
    EXPECT_EQ(outcome.code, 3) << command;
    EXPECT_THAT(outcome.out, StartsWith("vgg16 is ")) << command;
    EXPECT_THAT(outcome.err, StartsWith("trims: no model named nothing\n")) << command;
  }
}

TEST_F(PinTest, JsonIsTheModelsAsTheyAreNow) {
  StartDaemon();
  EXPECT_EQ(RunJson({"pin", "vgg16"})[0]["replicas"][0]["pinned"], true);
  const json unpinned = RunJson({"unpin", "vgg16", "lenet:1"});
  ASSERT_EQ(unpinned.size(), 2u);
  EXPECT_EQ(unpinned[0]["replicas"][0]["pinned"], false);
  EXPECT_EQ(unpinned[1]["pinned"], false);
}

}  // namespace
}  // namespace trims::cli

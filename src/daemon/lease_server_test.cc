#include "daemon/lease_server.h"

#include <gtest/gtest.h>

#include "../tests/raw_client.h"
#include "daemon/test_trunk.h"

namespace trims {
namespace {

using testing_support::RawClient;
using testing_support::RawPacket;

TEST(TestTrunkTest, OpensAModelWithTheLoopInStepsAndOnAThread) {
  for (const bool has_thread : {false, true}) {
    TestTrunk trunk;
    trunk.AddModel("team/a:1");
    if (has_thread) trunk.StartThread();
    const OpenResult cold = trunk.Open(TestTrunk::Named("team/a:1"));
    ASSERT_TRUE(cold.status.ok()) << cold.status.ToString();
    EXPECT_TRUE(cold.loaded);
    const OpenResult warm = trunk.Open(TestTrunk::Named("team/a:1"));
    EXPECT_FALSE(warm.loaded);
    EXPECT_EQ(warm.lent, cold.lent);
    EXPECT_EQ(trunk.host().loads_finished(), 1);
    EXPECT_EQ(trunk.Open(TestTrunk::Named("nothing")).status.code(), StatusCode::kNotFound);
  }
}

TEST(TestTrunkTest, ServesAClientFromAThread) {
  TestTrunk trunk;
  trunk.AddModel("a");
  trunk.Serve();
  trunk.StartThread();
  RawClient client(trunk.config().runtime_dir);
  ASSERT_TRUE(client.Greet());
  ASSERT_TRUE(client.SendOpen(2, "a"));
  EXPECT_EQ(client.Receive().header.type, FrameType::kOpened);
  EXPECT_EQ(trunk.OnReactor([&] { return trunk.lease_server().sessions(); }), 1u);
}

}  // namespace
}  // namespace trims

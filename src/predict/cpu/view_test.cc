// Views: what follows one reads the elements of what it shows, in their order.
#include <gtest/gtest.h>

#include "predict/cpu/test_kernel.h"

namespace trims::predict {
namespace {

TEST(ViewTest, ReshapePassesTheElementsOn) {
  const Tensor data = Sequence({2, 3, 4});
  for (const std::string shape :
       {"(4, 0, 2)", "(2, 0, 0)", "(6, 1, -1)", "(3, -1, 8)", "(-1,)", "(-2,)", "(2, -2)",
        "(-2, 1, 1)", "(-3, 4)", "(0, -3)", "(-4, 1, 2, -2)", "(2, -4, -1, 3, -2)"}) {
    const Result<Tensor> out = RunSimple("Reshape", {{"shape", shape}}, data);
    ASSERT_TRUE(out.ok()) << shape << ": " << ErrorOf(out);
    EXPECT_EQ(out->values, data.values) << shape;
  }
  const Result<Tensor> reversed =
      RunSimple("Reshape", {{"shape", "(-1, 0)"}, {"reverse", "True"}}, data);
  ASSERT_TRUE(reversed.ok()) << ErrorOf(reversed);
  EXPECT_EQ(reversed->shape, (Shape{6, 4}));
  EXPECT_EQ(reversed->values, data.values);
}

TEST(ViewTest, DropoutFlattenAndIdentityPassOn) {
  const Tensor data = Sequence({2, 3, 2, 1});
  for (const std::string op : {"Dropout", "identity", "_copy", "BlockGrad", "Flatten"}) {
    const Result<Tensor> out = RunSimple(op, {}, data);
    ASSERT_TRUE(out.ok()) << ErrorOf(out);
    EXPECT_EQ(out->values, data.values) << op;
    EXPECT_EQ(out->shape, op == "Flatten" ? (Shape{2, 6}) : data.shape);
  }
}

}  // namespace
}  // namespace trims::predict

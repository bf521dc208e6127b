// The program of the tests with devices, which is also the client that they start.
#include <gtest/gtest.h>

#include "tests/device_clients.h"

int main(int argc, char** argv) {
  if (const auto status = trims::testing_support::RunDeviceClient(argc, argv)) return *status;
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

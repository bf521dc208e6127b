// Compiling this is the test: both public headers, alone, in C++20, in this order
// and twice, with more warnings than the rest of the tree has.
#include "trims/trims.h"
#include "trims/trims.hpp"

int main() {
  const trims::Client client;
  const trims::Lease lease;
  return client || lease ? 1 : 0;
}

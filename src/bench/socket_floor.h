// The floor of a lease: the same socket, descriptors and mappings as an open has, with no
// protocol and no daemon behind them. One process serves, others measure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "bench/timing.h"

namespace trims::bench {

// Answers what is as large as an open with as many bytes as a daemon answers, the descriptor
// of an index and that of an extent, and what is as large as a close with as many bytes.
// Move-only; one thread.
class SocketFloor final {
 public:
  static Result<SocketFloor> Listen(const std::string& path, uint64_t extent_bytes);

  // Serves until `stop` can be read.
  Status Serve(int stop);

 private:
  SocketFloor(UniqueFd listener, UniqueFd extent, UniqueFd index)
      : listener_(std::move(listener)), extent_(std::move(extent)), index_(std::move(index)) {}

  UniqueFd listener_;
  UniqueFd extent_;
  UniqueFd index_;
};

// Move-only; one thread.
class SocketFloorClient final {
 public:
  // `extent_bytes` as the server was told.
  static Result<SocketFloorClient> Connect(const std::string& path, uint64_t extent_bytes);

  // Asks, maps both and reads a byte of the index; then, unmeasured, a byte of the extent; then
  // unmaps and asks again. UNAVAILABLE when the server is gone.
  Result<OpenTimes> Measure();

 private:
  SocketFloorClient(UniqueFd socket, uint64_t extent_bytes)
      : socket_(std::move(socket)), extent_bytes_(extent_bytes) {}

  UniqueFd socket_;
  uint64_t extent_bytes_ = 0;
};

}  // namespace trims::bench

// The floor of a lease: a server on a thread, and clients.
#include "bench/socket_floor.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "bench/test_bench.h"
#include "ipc/seqpacket.h"

namespace trims::bench {
namespace {

class SocketFloorTest : public BenchTest {};

// A server on a thread of its own.
class Server final {
 public:
  Server(const std::string& path, uint64_t extent_bytes)
      : floor_(SocketFloor::Listen(path, extent_bytes)), stop_(::eventfd(0, EFD_CLOEXEC)) {
    EXPECT_TRUE(floor_.ok()) << floor_.status().ToString();
    thread_ = std::thread([this] { ended_ = floor_->Serve(stop_.get()); });
  }
  ~Server() { Stop(); }

  void Stop() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    thread_.join();
    EXPECT_TRUE(ended_.ok()) << ended_.ToString();
    floor_ = UnavailableError("stopped");
  }

 private:
  Result<SocketFloor> floor_;
  UniqueFd stop_;
  Status ended_;
  std::thread thread_;
};

TEST_F(SocketFloorTest, SeveralClientsAreServedByTurns) {
  const std::string path = directory_ + "/floor.sock";
  Server server(path, 4 * kMiB);
  std::vector<SocketFloorClient> clients;
  for (int i = 0; i < 3; ++i) {
    Result<SocketFloorClient> client = SocketFloorClient::Connect(path, 4 * kMiB);
    ASSERT_TRUE(client.ok()) << client.status().ToString();
    clients.push_back(std::move(*client));
    ASSERT_TRUE(clients.back().Measure().ok());  // The server has its end, too.
  }
  const int descriptors = Descriptors();
  for (int i = 0; i < 20; ++i) {
    for (SocketFloorClient& client : clients) {
      const Result<OpenTimes> times = client.Measure();
      ASSERT_TRUE(times.ok()) << times.status().ToString();
      EXPECT_GT(times->open, 0);
      EXPECT_GT(times->close, 0);
    }
  }
  EXPECT_EQ(Descriptors(), descriptors);  // What was lent was given back.
  EXPECT_EQ(Mappings(), 0);
}

TEST_F(SocketFloorTest, TheServerLendsTwoDescriptorsAndSurvivesClientsThatGo) {
  const std::string path = directory_ + "/floor.sock";
  Server server(path, kMiB);
  for (int i = 0; i < 5; ++i) {
    Result<UniqueFd> socket = ConnectTo(path, SOCK_SEQPACKET);
    ASSERT_TRUE(socket.ok());
    const std::vector<std::byte> open(96);
    ASSERT_TRUE(SendPacket(socket->get(), open, {}, {}).ok());  // And goes without listening.
  }
  Result<SocketFloorClient> client = SocketFloorClient::Connect(path, kMiB);
  ASSERT_TRUE(client.ok());
  EXPECT_TRUE(client->Measure().ok());
}

TEST_F(SocketFloorTest, AServerThatIsGoneIsUnavailable) {
  const std::string path = directory_ + "/floor.sock";
  Server server(path, kMiB);
  Result<SocketFloorClient> client = SocketFloorClient::Connect(path, kMiB);
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(client->Measure().ok());
  server.Stop();
  EXPECT_EQ(client->Measure().status().code(), StatusCode::kUnavailable);
  EXPECT_FALSE(SocketFloorClient::Connect(path, kMiB).ok());
}

}  // namespace
}  // namespace trims::bench

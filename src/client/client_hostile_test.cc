// A daemon that is broken or hostile: what it sends is an error of the call that waits, and
// never a wild pointer, a leak or the end of the client.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/test_client.h"
#include "trims/trims.h"

namespace trims::client {
namespace {

// --- A broken or hostile daemon -------------------------------------------------------

// What one open returns when the daemon lends this.
trims_status StatusOfLent(FakeDaemon& daemon, trims_client* client, FakeModel model,
                          std::string* message) {
  daemon.AddModel("lent", std::move(model));
  trims_lease* lease = nullptr;
  CallError error;
  const trims_status status = trims_lease_open(client, "lent", nullptr, &lease, &error.error);
  *message = error.message();
  trims_lease_close(lease);
  return status;
}

TEST_F(ClientTest, MemoryThatCouldChangeOrShrinkIsRefusedAndGivenBack) {
  Connect();
  const std::vector<std::byte> page(kHostPageBytes);
  struct Case {
    const char* what;
    UniqueFd fd;
    trims_status status;
  };
  std::vector<Case> cases;
  cases.push_back({"unsealed", MakeMemfd(page, kHostPageBytes, 0), TRIMS_PERMISSION_DENIED});
  for (const int missing : {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE}) {
    cases.push_back({"one seal missing", MakeMemfd(page, kHostPageBytes, kAllSeals & ~missing),
                     TRIMS_PERMISSION_DENIED});
  }
  cases.push_back({"too short", MakeMemfd({}, kHostPageBytes - 1), TRIMS_OUT_OF_RANGE});
  cases.push_back({"too long", MakeMemfd(page, 3 * kHugePageBytes), TRIMS_OUT_OF_RANGE});
  cases.push_back(
      {"no memfd", UniqueFd(open("/etc/passwd", O_RDONLY | O_CLOEXEC)), TRIMS_OUT_OF_RANGE});
  cases.push_back(
      {"no file", UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)), TRIMS_OUT_OF_RANGE});
  size_t closes = 0;
  for (Case& bad : cases) {
    // In the place of an extent, and of the index.
    FakeModel extent = MakeFakeModel(2);
    extent.extents[1] = std::move(*bad.fd.Dup());
    std::string message;
    EXPECT_EQ(StatusOfLent(daemon_, client_, std::move(extent), &message), bad.status)
        << bad.what << ": " << message;
    EXPECT_NE(message.find("extent 1"), std::string::npos) << message;
    FakeModel index = MakeFakeModel(1);
    index.index = std::move(bad.fd);
    index.index_bytes = kHostPageBytes;
    EXPECT_EQ(StatusOfLent(daemon_, client_, std::move(index), &message), bad.status)
        << bad.what << ": " << message;
    EXPECT_NE(message.find("index"), std::string::npos) << message;
    Settle();
    EXPECT_EQ(CountMappings(), 0) << bad.what;
    EXPECT_EQ(daemon_.log().closes.size(), closes += 2) << bad.what;
  }
  EXPECT_EQ(daemon_.log().connections, 1) << "one bad lease is no reason to leave";
}

TEST_F(ClientTest, BrokenIndexIsAnErrorAndNeverAWildPointer) {
  Connect();
  const std::string good = BuildFakeIndex({{"t", 9, {4}, 0, 0, 16}});
  const auto lend = [&](const std::string& index, uint64_t size, std::string* message) {
    FakeModel model = MakeFakeModel(1);
    model.index = MakeMemfd(std::as_bytes(std::span(index)), RoundToPage(index.size() + 1));
    model.index_bytes = size;
    return StatusOfLent(daemon_, client_, std::move(model), message);
  };
  std::string message;
  EXPECT_EQ(lend(good, good.size(), &message), TRIMS_OK) << message;
  EXPECT_EQ(lend(good, 0, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(good, 8, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(good, good.size() - 1, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(good, uint64_t{1} << 40, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(std::string(200, '\xff'), 200, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(std::string(200, '\0'), 200, &message), TRIMS_DATA_LOSS);
  EXPECT_EQ(lend(BuildFakeIndex({}), BuildFakeIndex({}).size(), &message), TRIMS_DATA_LOSS)
      << "another number of tensors";

  // Every byte of it wrong, in every way that one bit can be: open, and everything
  // that can be asked afterwards, answers with a code.
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int bit : {0, 3, 7}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      FakeModel model = MakeFakeModel(1);
      model.index = MakeMemfd(std::as_bytes(std::span(bad)), RoundToPage(bad.size()));
      model.index_bytes = bad.size();
      daemon_.AddModel("lent", std::move(model));
      trims_lease* lease = nullptr;
      if (trims_lease_open(client_, "lent", nullptr, &lease, nullptr) != TRIMS_OK) continue;
      trims_extent extent;
      ASSERT_EQ(trims_lease_extent(lease, 0, &extent), TRIMS_OK);
      trims_tensor tensor;
      for (const bool by_name : {false, true}) {
        if ((by_name ? trims_lease_find_tensor(lease, "t", &tensor)
                     : trims_lease_tensor(lease, 0, &tensor)) != TRIMS_OK) {
          continue;
        }
        const auto* begin = static_cast<const char*>(extent.data);
        EXPECT_GE(static_cast<const char*>(tensor.data), begin);
        EXPECT_LE(static_cast<const char*>(tensor.data) + tensor.size_bytes,
                  begin + extent.size_bytes);
        volatile size_t touched = std::strlen(tensor.name);
        for (uint32_t i = 0; i < tensor.rank; ++i)
          touched = touched + static_cast<size_t>(tensor.shape[i]);
      }
      (void)trims_lease_find_metadata(lease, "format");
      trims_lease_close(lease);
    }
  }
}

TEST_F(ClientTest, TensorThatCanNotBeTrueIsDataLoss) {
  Connect();
  const std::vector<FakeTensor> tensors = {
      {"a-good", 9, {4, 4}, 0, 0, 64},
      {"b-other-extent", 9, {4, 4}, 1, 0, 64},
      {"c-beyond", 9, {1025}, 0, 0, 4100},
      {"d-offset-beyond", 9, {4}, 0, 4096, 16},
      {"e-overflow", 1, {16}, 0, ~uint64_t{255}, 16},
      {"f-unaligned", 9, {4}, 0, 8, 16},
      {"g-shape-too-large", 9, {4, 5}, 0, 0, 64},
      {"h-negative", 9, {-4, -4}, 0, 0, 64},
      {"i-shape-overflow", 9, {int64_t{1} << 62, 16}, 0, 0, 0},
      {"j-empty", 9, {0, int64_t{1} << 62, 16}, 0, 0, 0},
      {"k-scalar", 9, {}, 0, 256, 4},
      {"l-half-bytes", 21, {3}, 0, 0, 2},
      {"m-newer-type", 200, {3}, 0, 0, 5},
  };
  const std::string index = BuildFakeIndex(tensors);
  FakeModel model = MakeFakeModel(1);
  model.index = MakeMemfd(std::as_bytes(std::span(index)), RoundToPage(index.size()));
  model.index_bytes = index.size();
  model.tensor_count = static_cast<uint32_t>(tensors.size());
  daemon_.AddModel("odd", std::move(model));
  trims_lease* lease = Open("odd");
  ASSERT_NE(lease, nullptr);
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const bool good = i == 0 || i >= 9;
    trims_tensor tensor;
    EXPECT_EQ(trims_lease_tensor(lease, i, &tensor), good ? TRIMS_OK : TRIMS_DATA_LOSS)
        << tensors[i].name;
    EXPECT_EQ(trims_lease_find_tensor(lease, tensors[i].name.c_str(), &tensor),
              good ? TRIMS_OK : TRIMS_DATA_LOSS)
        << tensors[i].name;
    if (tensors[i].name == "k-scalar") {
      EXPECT_EQ(tensor.rank, 0u);
      EXPECT_EQ(tensor.shape, nullptr);
    }
  }
  trims_lease_close(lease);
}

// Sends `packet` in the place of an answer to the first open.
void AnswerOnce(FakeDaemon& daemon,
                std::function<void(FakeDaemon&, FakeDaemon::Connection&, uint64_t)> answer) {
  auto answered = std::make_shared<bool>(false);
  daemon.SetHook([=](FakeDaemon& self, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen || std::exchange(*answered, true)) return false;
    answer(self, connection, frame.header.request_id);
    return true;
  });
}

void SendRaw(FakeDaemon::Connection& connection, std::string_view bytes,
             std::span<const int> fds = {}) {
  (void)!SendPacket(connection.socket.get(), std::as_bytes(std::span(bytes)), {}, fds).ok();
}

std::string RawFrame(FrameType type, uint64_t id, std::string_view payload, uint16_t flags = 0) {
  std::array<std::byte, kFrameHeaderBytes> header;
  EncodeFrameHeader({type, flags, id}, header);
  return std::string(reinterpret_cast<const char*>(header.data()), header.size()) +
         std::string(payload);
}

TEST_F(ClientTest, GarbageFailsWhatWaitsAndTheNextCallWorksAgain) {
  Connect();
  trims_lease* held = Open();
  const auto opened = [](size_t extents, size_t fds_sent, uint16_t flags, size_t digest_bytes) {
    return [=](FakeDaemon& daemon, FakeDaemon::Connection& connection, uint64_t id) {
      const FakeModel& model = daemon.model("m");
      flatbuffers::FlatBufferBuilder builder;
      const std::vector<uint8_t> digest(digest_bytes, 1);
      const std::vector<uint64_t> sizes(extents, kHostPageBytes);
      builder.Finish(v1::CreateOpenedDirect(builder, 50, &digest, 1, v1::TierKind::Host, nullptr,
                                            v1::Granularity::Model, kHostPageBytes, 1,
                                            model.index_bytes, &sizes));
      std::vector<int> fds(fds_sent, model.extents[0].get());
      FakeDaemon::Send(connection, FrameType::kOpened, id, builder, flags, fds);
    };
  };
  const auto more = [](FakeDaemon& daemon, FakeDaemon::Connection& connection, uint64_t id) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateOpenedMore(builder, 0));
    const int fd = daemon.model("m").index.get();
    FakeDaemon::Send(connection, FrameType::kOpenedMore, id, builder, 0, std::span(&fd, 1));
  };
  using Answer = std::function<void(FakeDaemon&, FakeDaemon::Connection&, uint64_t)>;
  const std::vector<std::pair<const char*, Answer>> cases = {
      {"short", [](auto&, auto& c, uint64_t) { SendRaw(c, "TRM1"); }},
      {"other magic", [](auto&, auto& c, uint64_t) { SendRaw(c, std::string(32, 'x')); }},
      {"empty Opened",
       [](auto&, auto& c, uint64_t id) { SendRaw(c, RawFrame(FrameType::kOpened, id, "")); }},
      {"Opened of ones",
       [](auto&, auto& c, uint64_t id) {
         SendRaw(c, RawFrame(FrameType::kOpened, id, std::string(100, '\xff')));
       }},
      {"Failed of zeros",
       [](auto&, auto& c, uint64_t id) {
         SendRaw(c, RawFrame(FrameType::kFailed, id, std::string(100, '\0')));
       }},
      {"a request",
       [](auto&, auto& c, uint64_t id) { SendRaw(c, RawFrame(FrameType::kPing, id, "")); }},
      {"Pong", [](auto&, auto& c, uint64_t id) { SendRaw(c, RawFrame(FrameType::kPong, id, "")); }},
      {"Closed",
       [](auto&, auto& c, uint64_t id) { SendRaw(c, RawFrame(FrameType::kClosed, id, "")); }},
      {"no descriptor", opened(1, 0, 0, 32)},
      {"too few descriptors", opened(2, 2, 0, 32)},
      {"too many descriptors", opened(1, 3, 0, 32)},
      {"more announced, none missing", opened(1, 2, kFrameFlagMore, 32)},
      {"short digest", opened(1, 2, 0, 31)},
      {"too many extents", opened(0, 0, 0, 32)},
      {"OpenedMore first", more},
      {"more than a packet may carry",
       [](FakeDaemon& daemon, FakeDaemon::Connection& connection, uint64_t) {
         std::array<char, CMSG_SPACE(sizeof(int) * 253)> control{};
         char byte = 'x';
         iovec part = {&byte, 1};
         msghdr message{};
         message.msg_iov = &part;
         message.msg_iovlen = 1;
         message.msg_control = control.data();
         message.msg_controllen = control.size();
         cmsghdr* item = CMSG_FIRSTHDR(&message);
         item->cmsg_level = SOL_SOCKET;
         item->cmsg_type = SCM_RIGHTS;
         item->cmsg_len = CMSG_LEN(sizeof(int) * 253);
         const int fd = daemon.model("m").index.get();
         for (int i = 0; i < 253; ++i) {
           std::memcpy(CMSG_DATA(item) + sizeof(int) * static_cast<size_t>(i), &fd, sizeof fd);
         }
         (void)sendmsg(connection.socket.get(), &message, MSG_NOSIGNAL);
       }},
  };
  int connections = 1;
  for (const auto& [what, answer] : cases) {
    AnswerOnce(daemon_, answer);
    std::string message;
    EXPECT_EQ(OpenStatus("m", nullptr, &message), TRIMS_INTERNAL) << what << ": " << message;
    EXPECT_NE(message.find("protocol"), std::string::npos) << what << ": " << message;
    EXPECT_EQ(OpenStatus("m"), TRIMS_OK) << what;
    EXPECT_EQ(daemon_.log().connections, ++connections) << what;
    EXPECT_EQ(trims_lease_is_attached(held), 1) << what;
    EXPECT_EQ(FirstElement(held), 0.0f);
  }
  trims_lease_close(held);
}

TEST_F(ClientTest, DescriptorsPushedAtAnIdleClientAreNotReceived) {
  Connect();
  trims_lease* lease = Open();
  daemon_.OnEachConnection([&](FakeDaemon::Connection& connection) {
    const std::array<int, 2> fds = {0, 1};
    SendRaw(connection, RawFrame(FrameType::kPong, 999, ""), fds);
  });
  CallError error;
  EXPECT_EQ(trims_client_ping(client_, &error.error), TRIMS_INTERNAL);
  EXPECT_NE(error.message().find("protocol"), std::string::npos) << error.message();
  Ping();
  EXPECT_EQ(daemon_.log().connections, 2);
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  trims_lease_close(lease);
}

TEST_F(ClientTest, AnswersToNothingAreIgnored) {
  Connect();
  daemon_.OnEachConnection([&](FakeDaemon::Connection& connection) {
    FakeDaemon::SendFailed(connection, 12345, StatusCode::kInternal, "of no request");
  });
  Ping();
  EXPECT_EQ(daemon_.log().connections, 1);
}

TEST_F(ClientTest, DescriptorLimitOfTheProcessIsNamedAndHarmsNothing) {
  daemon_.AddModel("wide", MakeFakeModel(200));
  Connect();
  trims_lease* held = Open();
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(CountDescriptors() + 20);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::string message;
  EXPECT_EQ(OpenStatus("wide", nullptr, &message), TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_NE(message.find("ulimit -n"), std::string::npos) << message;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(OpenStatus("wide"), TRIMS_OK);
  EXPECT_EQ(trims_lease_is_attached(held), 1);
  trims_lease_close(held);
}

}  // namespace
}  // namespace trims::client

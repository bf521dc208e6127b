// The client library through its C interface, against a daemon that does what each
// test tells it to.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "client/fake_daemon.h"
#include "client/places.h"
#include "client/weights.h"
#include "trims/trims.h"
#include "trims/trims.hpp"

namespace trims::client {
namespace {

int CountDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// Memory that this process has mapped from the fake daemon.
int CountMappings() {
  FILE* maps = fopen("/proc/self/maps", "re");
  char line[512];
  int count = 0;
  while (fgets(line, sizeof line, maps) != nullptr) {
    if (strstr(line, "memfd:fake") != nullptr) ++count;
  }
  fclose(maps);
  return count;
}

// Owns what a call reported.
struct CallError {
  trims_error* error = nullptr;
  ~CallError() { trims_error_free(error); }
  std::string message() const { return trims_error_message(error); }
};

class ClientTest : public testing::Test {
 protected:
  void TearDown() override {
    // Every test ends with what it began with.
    if (client_ != nullptr) trims_client_disconnect(client_);
    daemon_owner_.reset();
    EXPECT_EQ(CountDescriptors(), baseline_) << "descriptors leaked";
    EXPECT_EQ(CountMappings(), 0) << "mappings leaked";
  }

  trims_connect_options Options() {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = daemon_.directory().c_str();
    return options;
  }
  void Connect(uint32_t flags = 0, uint32_t timeout_ms = 0) {
    trims_connect_options options = Options();
    options.flags = flags;
    options.connect_timeout_ms = timeout_ms;
    CallError error;
    ASSERT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_OK) << error.message();
  }
  trims_lease* Open(const char* name = "m", const trims_open_options* options = nullptr) {
    trims_lease* lease = nullptr;
    CallError error;
    EXPECT_EQ(trims_lease_open(client_, name, options, &lease, &error.error), TRIMS_OK)
        << error.message();
    return lease;
  }
  trims_status OpenStatus(const char* name, const trims_open_options* options = nullptr,
                          std::string* message = nullptr) {
    trims_lease* lease = nullptr;
    CallError error;
    const trims_status status = trims_lease_open(client_, name, options, &lease, &error.error);
    if (message != nullptr) *message = error.message();
    EXPECT_EQ(status == TRIMS_OK, lease != nullptr);
    EXPECT_EQ(status == TRIMS_OK, error.error == nullptr);
    trims_lease_close(lease);
    return status;
  }
  void Ping() {
    CallError error;
    ASSERT_EQ(trims_client_ping(client_, &error.error), TRIMS_OK) << error.message();
  }
  // What the daemon has sent before a ping's answer has been taken.
  void Settle() { Ping(); }
  void Disconnect() {
    trims_client_disconnect(client_);
    client_ = nullptr;
  }

  const int baseline_ = CountDescriptors();  // Without the daemon's, which are of this process too.
  std::unique_ptr<FakeDaemon> daemon_owner_ = std::make_unique<FakeDaemon>();
  FakeDaemon& daemon_ = *daemon_owner_;
  trims_client* client_ = nullptr;
};

float FirstElement(const trims_lease* lease, const char* name = "t0000") {
  trims_tensor tensor;
  if (trims_lease_find_tensor(lease, name, &tensor) != TRIMS_OK) return -1;
  return *static_cast<const float*>(tensor.data);
}

// --- Opening and looking ------------------------------------------------------

TEST_F(ClientTest, OpenedModelCanBeReadAndClosed) {
  FakeModel model = MakeFakeModel(3, 0xab);
  model.model_dir = "/models/vgg";
  model.loaded = true;
  daemon_.AddModel("ns/vgg:1", std::move(model));
  Connect();
  EXPECT_EQ(std::string(trims_client_server_version(client_)), "fake 1");
  EXPECT_EQ(std::string(trims_client_socket_path(client_)), daemon_.path());
  EXPECT_EQ(trims_client_server_instance(client_), 1u);

  trims_lease* lease = Open("ns/vgg:1");
  ASSERT_NE(lease, nullptr);
  EXPECT_EQ(trims_lease_digest(lease)[31], 0xab);
  EXPECT_EQ(std::string(trims_lease_digest_text(lease)).substr(0, 11), "sha256:abab");
  EXPECT_EQ(trims_lease_generation(lease), 0xabu * 100);
  EXPECT_EQ(trims_lease_tier(lease), TRIMS_TIER_HOST);
  EXPECT_EQ(std::string(trims_lease_device_uuid(lease)), "");
  EXPECT_EQ(trims_lease_granularity(lease), TRIMS_GRANULARITY_LAYER);
  EXPECT_EQ(trims_lease_total_bytes(lease), 3 * kHostPageBytes);
  EXPECT_EQ(std::string(trims_lease_model_dir(lease)), "/models/vgg");
  EXPECT_EQ(trims_lease_was_loaded(lease), 1);
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  EXPECT_EQ(trims_lease_id(lease), 1u);

  ASSERT_EQ(trims_lease_extent_count(lease), 3u);
  trims_extent extent;
  ASSERT_EQ(trims_lease_extent(lease, 2, &extent), TRIMS_OK);
  EXPECT_EQ(extent.size_bytes, kHostPageBytes);
  EXPECT_EQ(trims_lease_extent(lease, 3, &extent), TRIMS_OUT_OF_RANGE);

  ASSERT_EQ(trims_lease_tensor_count(lease), 3u);
  trims_tensor tensor;
  ASSERT_EQ(trims_lease_tensor(lease, 2, &tensor), TRIMS_OK);
  EXPECT_EQ(std::string(tensor.name), "t0002");
  EXPECT_EQ(tensor.name_size, 5u);
  EXPECT_EQ(tensor.dtype, TRIMS_DTYPE_F32);
  ASSERT_EQ(tensor.rank, 2u);
  EXPECT_EQ(tensor.shape[0], 4);
  EXPECT_EQ(tensor.shape[1], 4);
  EXPECT_EQ(tensor.size_bytes, 64u);
  EXPECT_EQ(tensor.extent, 2u);
  EXPECT_EQ(tensor.data, extent.data);
  EXPECT_EQ(static_cast<const float*>(tensor.data)[15], 2.0f);
  EXPECT_EQ(trims_lease_tensor(lease, 3, &tensor), TRIMS_OUT_OF_RANGE);
  EXPECT_EQ(trims_lease_find_tensor(lease, "t0003", &tensor), TRIMS_NOT_FOUND);
  EXPECT_EQ(trims_lease_find_tensor(lease, "", &tensor), TRIMS_NOT_FOUND);
  EXPECT_EQ(FirstElement(lease, "t0000"), 0.0f);
  EXPECT_EQ(FirstElement(lease, "t0001"), 1.0f);

  ASSERT_EQ(trims_lease_metadata_count(lease), 2u);
  const char* key = nullptr;
  const char* value = nullptr;
  ASSERT_EQ(trims_lease_metadata(lease, 0, &key, &value), TRIMS_OK);
  EXPECT_EQ(std::string(key) + "=" + value, "author=nobody");
  EXPECT_EQ(trims_lease_metadata(lease, 2, &key, &value), TRIMS_OUT_OF_RANGE);
  EXPECT_EQ(std::string(trims_lease_find_metadata(lease, "format")), "pt");
  EXPECT_EQ(trims_lease_find_metadata(lease, "none"), nullptr);

  EXPECT_EQ(CountMappings(), 4);
  trims_lease_set_peak_internal_bytes(lease, 12345);
  trims_lease_close(lease);
  EXPECT_EQ(CountMappings(), 1);  // The index, for the next open.
  Settle();
  EXPECT_EQ(daemon_.log().closes, (std::vector<uint64_t>{1}));
  EXPECT_EQ(daemon_.log().peaks, (std::vector<uint64_t>{12345}));
}

TEST_F(ClientTest, AnIndexIsMappedOnceForAllOpensOfOneLoadAndForNoOther) {
  daemon_.AddModel("m", MakeFakeModel(2, 5));
  Connect();
  trims_lease* first = Open();
  trims_lease* second = Open();
  EXPECT_EQ(CountMappings(), 1 + 2 + 2);
  trims_lease_close(first);
  EXPECT_EQ(FirstElement(second, "t0001"), 1);  // Its index outlives the lease it came with.
  FakeModel reloaded = MakeFakeModel(2, 5);
  ++reloaded.generation;
  daemon_.AddModel("m", std::move(reloaded));
  trims_lease* third = Open();
  EXPECT_EQ(CountMappings(), 1 + 2 + 1 + 2);
  // A client keeps few: whoever opens many models pays for each.
  for (uint8_t identity = 10; identity < 30; ++identity) {
    daemon_.AddModel("other", MakeFakeModel(1, identity));
    trims_lease_close(Open("other"));
  }
  EXPECT_LE(CountMappings(), 1 + 2 + 1 + 2 + static_cast<int>(IndexCache::kEntries));
  EXPECT_EQ(FirstElement(second, "t0001"), 1);
  EXPECT_EQ(FirstElement(third, "t0001"), 1);
  Disconnect();
  EXPECT_EQ(CountMappings(), 1 + 2 + 1 + 2);
  trims_lease_close(second);
  trims_lease_close(third);
}

TEST_F(ClientTest, MappingIsSharedAndCanNotBeMadeWritable) {
  Connect();
  trims_lease* first = Open();
  trims_lease* second = Open();
  trims_extent a;
  trims_extent b;
  ASSERT_EQ(trims_lease_extent(first, 0, &a), TRIMS_OK);
  ASSERT_EQ(trims_lease_extent(second, 0, &b), TRIMS_OK);
  EXPECT_NE(a.data, b.data);
  EXPECT_EQ(mprotect(const_cast<void*>(a.data), a.size_bytes, PROT_READ | PROT_WRITE), -1);
  trims_lease_close(first);
  trims_lease_close(second);
}

TEST_F(ClientTest, NoDescriptorIsKeptForALease) {
  daemon_.AddModel("wide", MakeFakeModel(100));
  const int with_models = CountDescriptors();
  Connect();
  trims_lease* lease = Open("wide");
  EXPECT_EQ(CountDescriptors(), with_models + 2) << "one for each end of the connection";
  trims_lease_close(lease);
}

TEST_F(ClientTest, SixHundredExtentsArriveOverSeveralPackets) {
  daemon_.AddModel("huge", MakeFakeModel(600));
  Connect();
  trims_lease* lease = Open("huge");
  ASSERT_NE(lease, nullptr);
  ASSERT_EQ(trims_lease_extent_count(lease), 600u);
  for (uint32_t i = 0; i < 600; ++i) {
    trims_tensor tensor;
    ASSERT_EQ(trims_lease_tensor(lease, i, &tensor), TRIMS_OK);
    ASSERT_EQ(*static_cast<const float*>(tensor.data), static_cast<float>(i));
  }
  EXPECT_EQ(FirstElement(lease, "t0599"), 599.0f);
  trims_lease_close(lease);
}

TEST_F(ClientTest, ExtentCountsAroundThePacketLimitArriveWhole) {
  for (const size_t extents : {248u, 249u, 250u, 499u, 500u}) {
    daemon_.AddModel("n", MakeFakeModel(extents));
    if (client_ == nullptr) Connect();
    trims_lease* lease = Open("n");
    ASSERT_NE(lease, nullptr) << extents;
    EXPECT_EQ(trims_lease_extent_count(lease), extents);
    trims_lease_close(lease);
    Settle();
  }
}

TEST_F(ClientTest, OptionsReachTheDaemon) {
  Connect();
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  trims_lease_close(Open("m", &options));
  EXPECT_EQ(daemon_.log().last_granularity, v1::Granularity::Model);
  EXPECT_EQ(daemon_.log().last_keep_alive_ms, -2);
  EXPECT_EQ(daemon_.log().last_deadline_ms, 0u);

  options.granularity = TRIMS_GRANULARITY_AUTO;
  options.keep_alive_ms = TRIMS_KEEP_ALIVE_NONE;
  options.deadline_ms = 60'000;
  trims_lease_close(Open("m", &options));
  const FakeDaemon::Log log = daemon_.log();
  EXPECT_EQ(log.last_granularity, v1::Granularity::Auto);
  EXPECT_EQ(log.last_keep_alive_ms, 0);
  EXPECT_GT(log.last_deadline_ms, 0u);
  EXPECT_LE(log.last_deadline_ms, 60'000u);
  EXPECT_EQ(log.last_tier, v1::TierKind::Host);
  EXPECT_EQ(log.last_device_uuid, "");

  options = TRIMS_OPEN_OPTIONS_INIT;
  options.keep_alive_ms = TRIMS_KEEP_ALIVE_FOREVER;
  trims_lease_close(Open("m", &options));
  EXPECT_EQ(daemon_.log().last_keep_alive_ms, -1);
  options.keep_alive_ms = 1500;
  trims_lease_close(Open("m", &options));
  EXPECT_EQ(daemon_.log().last_keep_alive_ms, 1500);
}

TEST_F(ClientTest, ArgumentsOfTheCallerAreChecked) {
  EXPECT_EQ(trims_client_connect(nullptr, nullptr, nullptr), TRIMS_INVALID_ARGUMENT);
  EXPECT_EQ(trims_client_ping(nullptr, nullptr), TRIMS_INVALID_ARGUMENT);
  EXPECT_EQ(trims_client_poll_fd(nullptr), -1);
  trims_client_disconnect(nullptr);
  trims_lease_close(nullptr);
  trims_error_free(nullptr);
  EXPECT_EQ(trims_lease_tensor_count(nullptr), 0u);
  EXPECT_EQ(trims_lease_digest(nullptr), nullptr);

  trims_connect_options connect = Options();
  connect.flags = 0x80;
  EXPECT_EQ(trims_client_connect(&connect, &client_, nullptr), TRIMS_INVALID_ARGUMENT);
  connect = Options();
  connect.struct_size = 3;
  EXPECT_EQ(trims_client_connect(&connect, &client_, nullptr), TRIMS_INVALID_ARGUMENT);
  EXPECT_EQ(client_, nullptr);

  Connect();
  EXPECT_EQ(OpenStatus(""), TRIMS_INVALID_ARGUMENT);
  EXPECT_EQ(OpenStatus(std::string(513, 'x').c_str()), TRIMS_INVALID_ARGUMENT);
  trims_lease* lease = nullptr;
  EXPECT_EQ(trims_lease_open(client_, nullptr, nullptr, &lease, nullptr), TRIMS_INVALID_ARGUMENT);
  EXPECT_EQ(trims_lease_open(client_, "m", nullptr, nullptr, nullptr), TRIMS_INVALID_ARGUMENT);
  for (int field = 0; field < 4; ++field) {
    trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
    if (field == 0) options.tier = 7;
    if (field == 1) options.granularity = -1;
    if (field == 2) options.keep_alive_ms = -3;
    if (field == 3) options.device_uuid = "GPU-1";  // On the host tier.
    EXPECT_EQ(OpenStatus("m", &options), TRIMS_INVALID_ARGUMENT) << field;
  }
  EXPECT_TRUE(daemon_.log().opens.empty());
}

TEST_F(ClientTest, OptionsOfANewerHeaderWorkWhileTheyAreUnset) {
  Connect();
  struct {
    trims_open_options known = TRIMS_OPEN_OPTIONS_INIT;
    uint64_t of_the_future = 0;
  } options;
  options.known.struct_size = sizeof options;
  trims_lease_close(Open("m", &options.known));
  options.of_the_future = 1;
  std::string message;
  EXPECT_EQ(OpenStatus("m", &options.known, &message), TRIMS_INVALID_ARGUMENT);
  EXPECT_NE(message.find(trims_version()), std::string::npos);
}

TEST_F(ClientTest, FileIsPassedAsADescriptor) {
  Connect();
  char name[] = "/tmp/trims-weights-XXXXXX";
  const UniqueFd file(mkostemp(name, O_CLOEXEC));
  unlink(name);
  ASSERT_EQ(write(file.get(), "weights", 7), 7);
  trims_lease* lease = nullptr;
  CallError error;
  ASSERT_EQ(trims_lease_open_file(client_, file.get(), "label", nullptr, &lease, &error.error),
            TRIMS_OK)
      << error.message();
  trims_lease_close(lease);
  EXPECT_EQ(daemon_.log().files, (std::vector<std::string>{"weights"}));
  EXPECT_EQ(daemon_.log().opens, (std::vector<std::string>{"label"}));

  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const UniqueFd path_only(open("/etc/passwd", O_PATH | O_CLOEXEC));
  for (const int fd : {-1, 9999, ends[0], path_only.get()}) {
    EXPECT_EQ(trims_lease_open_file(client_, fd, nullptr, nullptr, &lease, nullptr),
              TRIMS_INVALID_ARGUMENT)
        << fd;
  }
}

// --- Errors ---------------------------------------------------------------------

TEST_F(ClientTest, WhatTheDaemonSaysIsPassedOn) {
  daemon_.SetHook([](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    const std::string name = ReadMessage<v1::Open>(frame.payload)->model()->str();
    const uint64_t id = frame.header.request_id;
    if (name == "big") {
      FakeDaemon::SendFailed(connection, id, StatusCode::kResourceExhausted,
                             "needs 9 GiB, free 2 GiB", 9, 2, 1);
    } else if (name == "gpu") {
      FakeDaemon::SendFailed(connection, id, StatusCode::kUnimplemented, "no device tier here");
    } else if (name == "odd") {
      FakeDaemon::SendFailed(connection, id, static_cast<StatusCode>(99), "");
    } else {
      return false;
    }
    return true;
  });
  Connect();
  trims_lease* lease = nullptr;
  CallError error;
  ASSERT_EQ(trims_lease_open(client_, "big", nullptr, &lease, &error.error),
            TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_EQ(trims_error_status(error.error), TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_EQ(error.message(), "needs 9 GiB, free 2 GiB");
  EXPECT_EQ(trims_error_need_bytes(error.error), 9u);
  EXPECT_EQ(trims_error_free_bytes(error.error), 2u);
  EXPECT_EQ(trims_error_evictable_bytes(error.error), 1u);
  EXPECT_EQ(lease, nullptr);

  std::string message;
  EXPECT_EQ(OpenStatus("gpu", nullptr, &message), TRIMS_UNIMPLEMENTED);
  EXPECT_EQ(message, "no device tier here");
  EXPECT_EQ(OpenStatus("nothing"), TRIMS_NOT_FOUND);
  EXPECT_EQ(OpenStatus("odd"), TRIMS_UNKNOWN);
  EXPECT_EQ(trims_lease_open(client_, "nothing", nullptr, &lease, nullptr), TRIMS_NOT_FOUND);
  Ping();
  EXPECT_EQ(daemon_.log().connections, 1);
}

TEST_F(ClientTest, OtherDigestThanExpectedIsDataLossAndTheLeaseIsGivenBack) {
  Connect();
  uint8_t digest[32];
  std::memset(digest, 1, sizeof digest);
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.expected_digest = digest;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_OK);
  digest[31] = 2;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_DATA_LOSS);
  Settle();
  EXPECT_EQ(daemon_.log().closes, (std::vector<uint64_t>{1, 2}));
}

TEST_F(ClientTest, AbsentDaemonIsUnavailableAndTheMessageSaysWhereItWasSought) {
  trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
  options.socket_path = "/nonexistent/lease.sock";
  CallError error;
  EXPECT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_UNAVAILABLE);
  EXPECT_NE(error.message().find("/nonexistent"), std::string::npos) << error.message();
  EXPECT_NE(error.message().find("trims serve"), std::string::npos) << error.message();
}

TEST_F(ClientTest, PlantedSocketIsRefused) {
  ASSERT_EQ(chmod(daemon_.directory().c_str(), 0777), 0);
  trims_connect_options options = Options();
  CallError error;
  EXPECT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_PERMISSION_DENIED);
  EXPECT_EQ(daemon_.log().connections, 0);
}

TEST_F(ClientTest, RefusedHelloSaysWhyAndIsNotRetried) {
  daemon_.SetHook([](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kHello) return false;
    FakeDaemon::SendFailed(connection, frame.header.request_id, StatusCode::kFailedPrecondition,
                           "this daemon speaks protocol 9");
    connection.drop = true;
    return true;
  });
  trims_connect_options options = Options();
  CallError error;
  EXPECT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_FAILED_PRECONDITION);
  EXPECT_NE(error.message().find("protocol 9"), std::string::npos);
  EXPECT_EQ(daemon_.log().connections, 1);
}

TEST_F(ClientTest, OtherProtocolMajorIsRefusedByTheClientToo) {
  daemon_.SetHook([](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    flatbuffers::FlatBufferBuilder builder;
    builder.Finish(v1::CreateWelcomeDirect(builder, kProtocolMajor + 1, 0, "2.0", 1, 1));
    FakeDaemon::Send(connection, FrameType::kWelcome, frame.header.request_id, builder);
    return true;
  });
  trims_connect_options options = Options();
  EXPECT_EQ(trims_client_connect(&options, &client_, nullptr), TRIMS_FAILED_PRECONDITION);
}

TEST_F(ClientTest, ConnectWaitsForAWorkerThatIsStarting) {
  std::atomic<int> hellos = 0;
  daemon_.SetHook([&](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kHello || ++hellos > 3) return false;
    connection.drop = true;  // It died again.
    return true;
  });
  Connect();
  Ping();
  EXPECT_EQ(hellos, 4);
}

TEST_F(ClientTest, ConnectToADaemonThatNeverAnswersEndsInTime) {
  daemon_.PauseAccepting(true);
  trims_connect_options options = Options();
  options.connect_timeout_ms = 50;
  CallError error;
  EXPECT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_UNAVAILABLE);
  EXPECT_NE(error.message().find("does not answer"), std::string::npos) << error.message();
}

// --- Progress, cancelling, deadlines ----------------------------------------------

struct Reports {
  std::vector<std::pair<trims_phase, uint64_t>> seen;
  std::function<bool()> cancel;
  static int Call(void* user, trims_phase phase, uint64_t done, uint64_t) {
    auto* self = static_cast<Reports*>(user);
    self->seen.emplace_back(phase, done);
    return self->cancel && self->cancel() ? 1 : 0;
  }
};

TEST_F(ClientTest, ProgressIsReportedInOrderAndTheLastIsNotLost) {
  daemon_.SetHook([](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    for (uint64_t done = 1; done <= 10; ++done) {
      FakeDaemon::SendProgress(connection, frame.header.request_id, v1::Phase::Loading, done, 10);
    }
    return false;  // And then the usual answer.
  });
  Connect();
  Reports reports;
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = Reports::Call;
  options.progress_user = &reports;
  trims_lease_close(Open("m", &options));
  ASSERT_FALSE(reports.seen.empty());
  EXPECT_TRUE(std::is_sorted(reports.seen.begin(), reports.seen.end()));
  EXPECT_EQ(reports.seen.back(), (std::pair<trims_phase, uint64_t>{TRIMS_PHASE_LOADING, 10}));
}

// Answers no open of "slow".
bool IgnoreSlow(FakeDaemon&, FakeDaemon::Connection&, const Frame& frame) {
  return frame.header.type == FrameType::kOpen &&
         ReadMessage<v1::Open>(frame.payload)->model()->str() == "slow";
}

TEST_F(ClientTest, CallerCancelsAnOpenThatReportsNothing) {
  daemon_.SetHook(IgnoreSlow);
  Connect();
  Reports reports;
  reports.cancel = [&] { return reports.seen.size() == 2; };
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = Reports::Call;
  options.progress_user = &reports;
  EXPECT_EQ(OpenStatus("slow", &options), TRIMS_CANCELLED);
  const FakeDaemon::Log log = daemon_.log();
  EXPECT_EQ(log.cancels, log.open_ids);
  Ping();
  EXPECT_EQ(daemon_.log().connections, 1);
}

TEST_F(ClientTest, LeaseThatCrossesTheCancelIsGivenBack) {
  daemon_.SetHook([](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type == FrameType::kCancel) {
      const uint64_t id = ReadMessage<v1::Cancel>(frame.payload)->open_request_id();
      daemon.SendOpened(connection, id, daemon.model("m"));
      return true;
    }
    return frame.header.type == FrameType::kOpen;
  });
  Connect();
  Reports reports;
  reports.cancel = [] { return true; };
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = Reports::Call;
  options.progress_user = &reports;
  EXPECT_EQ(OpenStatus("slow", &options), TRIMS_CANCELLED);
  daemon_.WaitFor([](const auto& log) { return log.closes == std::vector<uint64_t>{1}; });
}

TEST_F(ClientTest, DeadlineIsKeptEvenIfTheDaemonForgetsItAndALateLeaseIsGivenBack) {
  daemon_.SetHook([](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type == FrameType::kCancel) return true;
    if (frame.header.type == FrameType::kPing) {
      daemon.SendOpened(connection, 1, daemon.model("wide"));  // In answer to the first request.
      return false;
    }
    return frame.header.type == FrameType::kOpen;
  });
  daemon_.AddModel("wide", MakeFakeModel(300));
  Connect();
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.deadline_ms = 20;
  std::string message;
  EXPECT_EQ(OpenStatus("slow", &options, &message), TRIMS_DEADLINE_EXCEEDED);
  EXPECT_NE(message.find("20 ms"), std::string::npos) << message;
  EXPECT_EQ(daemon_.log().last_deadline_ms, 20u);
  daemon_.WaitFor([](const auto& log) { return log.cancels.size() == 1; });
  Ping();
  daemon_.WaitFor([](const auto& log) { return log.closes == std::vector<uint64_t>{1}; });
}

// --- Restarts of the worker ---------------------------------------------------------

TEST_F(ClientTest, WorkerThatDiesDuringAnOpenIsWaitedForAndLeasesAreRegisteredAgain) {
  std::atomic<int> opens = 0;
  daemon_.SetHook([&](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    if (++opens != 2) return false;
    connection.drop = true;
    return true;
  });
  daemon_.AddModel("b", MakeFakeModel(2, 2));
  Connect();
  trims_lease* first = Open("m");
  EXPECT_EQ(trims_lease_id(first), 1u);
  trims_lease* second = Open("b");
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(opens, 3);
  EXPECT_EQ(daemon_.log().reattaches, (std::vector<uint64_t>{100}));
  EXPECT_EQ(trims_lease_is_attached(first), 1);
  EXPECT_EQ(trims_lease_id(first), 2u) << "the new worker's number";
  EXPECT_EQ(FirstElement(first), 0.0f);
  trims_lease_close(first);
  trims_lease_close(second);
  Settle();
  EXPECT_EQ(daemon_.log().closes, (std::vector<uint64_t>{2, 3}));
}

TEST_F(ClientTest, WorkerThatDiesBetweenThePartsOfAnAnswerCostsNothing) {
  std::atomic<int> opens = 0;
  daemon_.AddModel("wide", MakeFakeModel(300));
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen || ++opens > 1) return false;
    const FakeModel& model = daemon.model("wide");
    flatbuffers::FlatBufferBuilder builder;
    const std::vector<uint8_t> digest(32, 1);
    builder.Finish(v1::CreateOpenedDirect(builder, 77, &digest, 1, v1::TierKind::Host, nullptr,
                                          v1::Granularity::Layer, 0, 300, model.index_bytes,
                                          &model.extent_bytes));
    const int index = model.index.get();
    FakeDaemon::Send(connection, FrameType::kOpened, frame.header.request_id, builder,
                     kFrameFlagMore, std::span(&index, 1));
    connection.drop = true;
    return true;
  });
  Connect();
  trims_lease* lease = Open("wide");
  EXPECT_EQ(FirstElement(lease, "t0299"), 299.0f);
  trims_lease_close(lease);
}

TEST_F(ClientTest, LeaseThatADaemonHasForgottenStaysReadableAndIsClosedInSilence) {
  Connect();
  trims_lease* lease = Open();
  daemon_.KillWorker(/*remembers=*/false);
  Ping();
  EXPECT_EQ(trims_client_server_instance(client_), 2u);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  EXPECT_EQ(FirstElement(lease), 0.0f);
  trims_lease_close(lease);
  Settle();
  EXPECT_TRUE(daemon_.log().closes.empty());
  EXPECT_EQ(CountMappings(), 1);  // The index, for the next open.
}

TEST_F(ClientTest, LeaseClosedWhileTheWorkerWasDownIsNotRegisteredAgain) {
  Connect();
  trims_lease* kept = Open();
  trims_lease* closed = Open();
  daemon_.KillWorker();
  // Whether or not the library has noticed yet.
  trims_lease_close(closed);
  Ping();
  daemon_.WaitFor([](const auto& log) { return !log.reattaches.empty(); });
  EXPECT_EQ(daemon_.log().reattaches.size(), 1u);
  EXPECT_EQ(trims_lease_is_attached(kept), 1);
  trims_lease_close(kept);
}

TEST_F(ClientTest, ManyLeasesAreRegisteredAgain) {
  Connect();
  std::vector<trims_lease*> leases;
  for (int i = 0; i < 300; ++i) leases.push_back(Open());
  daemon_.KillWorker();
  Ping();
  EXPECT_EQ(daemon_.log().reattaches.size(), 300u);
  std::set<uint64_t> ids;
  for (trims_lease* lease : leases) {
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    ids.insert(trims_lease_id(lease));
    trims_lease_close(lease);
  }
  EXPECT_EQ(ids.size(), 300u);
  Settle();
  EXPECT_EQ(daemon_.log().closes.size(), 300u);
}

TEST_F(ClientTest, WorkerThatDoesNotComeBackIsUnavailableAfterTheTimeoutAndUsableLater) {
  Connect(0, /*timeout_ms=*/60);
  trims_lease* lease = Open();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  std::string message;
  EXPECT_EQ(OpenStatus("m", nullptr, &message), TRIMS_UNAVAILABLE);
  EXPECT_NE(message.find("60 ms"), std::string::npos) << message;
  EXPECT_EQ(trims_client_ping(client_, nullptr), TRIMS_UNAVAILABLE);
  EXPECT_EQ(trims_client_service(client_, nullptr), TRIMS_UNAVAILABLE);
  EXPECT_EQ(FirstElement(lease), 0.0f);
  daemon_.PauseAccepting(false);
  while (trims_client_ping(client_, nullptr) != TRIMS_OK) {
  }
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  trims_lease_close(lease);
}

TEST_F(ClientTest, DeadlineHoldsWhileTheWorkerIsDown) {
  Connect();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  options.deadline_ms = 30;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_DEADLINE_EXCEEDED);
  Reports reports;
  reports.cancel = [] { return true; };
  options = TRIMS_OPEN_OPTIONS_INIT;
  options.progress = Reports::Call;
  options.progress_user = &reports;
  EXPECT_EQ(OpenStatus("m", &options), TRIMS_CANCELLED);
  daemon_.PauseAccepting(false);
  Ping();
}

TEST_F(ClientTest, EventLoopIsToldOfALostConnection) {
  Connect();
  trims_lease* lease = Open();
  const int fd = trims_client_poll_fd(client_);
  ASSERT_GE(fd, 0);
  pollfd watch = {fd, POLLIN, 0};
  EXPECT_EQ(poll(&watch, 1, 0), 0);
  ASSERT_EQ(trims_client_service(client_, nullptr), TRIMS_OK) << "nothing to do is fine";
  for (uint64_t round = 2; round < 5; ++round) {
    daemon_.KillWorker();
    ASSERT_EQ(poll(&watch, 1, -1), 1);
    ASSERT_EQ(trims_client_service(client_, nullptr), TRIMS_OK);
    EXPECT_EQ(trims_client_poll_fd(client_), fd);
    EXPECT_EQ(trims_client_server_instance(client_), round);
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    EXPECT_EQ(poll(&watch, 1, 0), 0);
  }
  trims_lease_close(lease);
}

TEST_F(ClientTest, EventLoopIsToldOfALossThatAnotherCallNoticed) {
  Connect();
  trims_lease* lease = Open();
  const int fd = trims_client_poll_fd(client_);
  std::atomic<bool> gone = false;
  daemon_.KillWorker();
  daemon_.OnEachConnection([&](FakeDaemon::Connection&) { gone = true; });
  EXPECT_FALSE(gone);
  trims_lease_close(lease);  // Sends into the broken connection.
  pollfd watch = {fd, POLLIN, 0};
  EXPECT_EQ(poll(&watch, 1, -1), 1);
  EXPECT_EQ(trims_client_service(client_, nullptr), TRIMS_OK);
  EXPECT_EQ(poll(&watch, 1, 0), 0);
}

TEST_F(ClientTest, BackgroundThreadRegistersLeasesWithoutAnyCall) {
  Connect(TRIMS_CONNECT_BACKGROUND);
  trims_lease* lease = Open();
  for (size_t round = 1; round <= 3; ++round) {
    daemon_.KillWorker();
    daemon_.WaitFor([&](const auto& log) { return log.reattaches.size() == round; });
  }
  Ping();
  EXPECT_EQ(trims_lease_is_attached(lease), 1);
  trims_lease_close(lease);
  trims_lease_close(Open());
}

TEST_F(ClientTest, BackgroundThreadEndsWithTheClientWhateverTheDaemonDoes) {
  Connect(TRIMS_CONNECT_BACKGROUND);
  trims_lease* lease = Open();
  daemon_.PauseAccepting(true);
  daemon_.KillWorker();
  Disconnect();
  EXPECT_EQ(FirstElement(lease), 0.0f);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  trims_lease_close(lease);
}

TEST_F(ClientTest, LeasesOutliveTheirClient) {
  Connect();
  trims_lease* lease = Open();
  Disconnect();
  EXPECT_EQ(FirstElement(lease), 0.0f);
  EXPECT_EQ(trims_lease_is_attached(lease), 0);
  trims_lease_close(lease);
}

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

// --- fork, threads ---------------------------------------------------------------------

TEST_F(ClientTest, ForkedChildMayReadAndMayNotTalk) {
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    trims_lease* lease = Open();
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int failures = 0;
      trims_lease* other = nullptr;
      failures +=
          trims_lease_open(client_, "m", nullptr, &other, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_ping(client_, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_service(client_, nullptr) != TRIMS_FAILED_PRECONDITION;
      failures += trims_client_poll_fd(client_) != -1;
      failures += FirstElement(lease) != 0.0f;
      trims_lease_close(lease);
      trims_client_disconnect(client_);
      failures += CountMappings() != 0;
      _exit(failures);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_TRUE(daemon_.log().closes.empty());
    EXPECT_EQ(FirstElement(lease), 0.0f);
    Ping();
    EXPECT_EQ(trims_lease_is_attached(lease), 1);
    Disconnect();
    trims_lease_close(lease);
  }
}

TEST_F(ClientTest, SlowOpenDoesNotHoldUpOthers) {
  std::vector<uint64_t> slow;
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    const std::string name = ReadMessage<v1::Open>(frame.payload)->model()->str();
    if (name == "slow") {
      slow.push_back(frame.header.request_id);
      return true;
    }
    if (name == "release") {
      for (const uint64_t id : slow) daemon.SendOpened(connection, id, daemon.model("m"));
      slow.clear();
    }
    return false;
  });
  daemon_.AddModel("release", MakeFakeModel(1));
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    const size_t opens = daemon_.log().opens.size();
    std::vector<std::thread> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.emplace_back([this] { trims_lease_close(Open("slow")); });
    }
    daemon_.WaitFor([&](const auto& log) { return log.opens.size() == opens + 3; });
    // Three wait, one of them receives for all.
    for (int i = 0; i < 20; ++i) EXPECT_EQ(OpenStatus("m"), TRIMS_OK);
    trims_lease_close(Open("release"));
    for (std::thread& thread : waiting) thread.join();
    Disconnect();
  }
}

TEST_F(ClientTest, MoreThreadsThanTheDaemonAllowsOpensTakeTurns) {
  std::atomic<int> in_flight = 0;
  std::atomic<int> most = 0;
  std::vector<uint64_t> held;
  daemon_.SetHook([&](FakeDaemon& daemon, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type == FrameType::kPing) {
      for (const uint64_t id : std::exchange(held, {})) {
        --in_flight;
        daemon.SendOpened(connection, id, daemon.model("m"));
      }
      return false;
    }
    if (frame.header.type != FrameType::kOpen) return false;
    most = std::max<int>(most, ++in_flight);
    held.push_back(frame.header.request_id);
    return true;
  });
  Connect();
  std::atomic<int> done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 150; ++i) {
    threads.emplace_back([&] {
      trims_lease_close(Open());
      ++done;
    });
  }
  daemon_.WaitFor([](const auto& log) { return log.opens.size() >= kMaxOpensInFlightPerSession; });
  while (done < 150) Ping();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, static_cast<int>(kMaxOpensInFlightPerSession));
}

TEST_F(ClientTest, ThreadsOpenReadAndCloseWhileTheWorkerDiesAgainAndAgain) {
  daemon_.AddModel("wide", MakeFakeModel(260, 2));
  for (const uint32_t flags : {0u, TRIMS_CONNECT_BACKGROUND}) {
    Connect(flags);
    const uint64_t first_instance = trims_client_server_instance(client_);
    std::atomic<bool> stop = false;
    std::thread killer([&] {
      size_t last = daemon_.log().opens.size();
      while (!stop) {
        // In the middle of the work: leases are held, opens unanswered.
        daemon_.WaitFor([&](const auto& log) { return stop || log.opens.size() >= last + 9; });
        last = daemon_.log().opens.size();
        daemon_.KillWorker();
      }
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 20; ++i) {
          trims_lease* lease = Open(t % 3 == 0 ? "wide" : "m");
          ASSERT_NE(lease, nullptr);
          EXPECT_EQ(FirstElement(lease), 0.0f);
          if (t % 3 == 0) {
            EXPECT_EQ(FirstElement(lease, "t0259"), 259.0f);
          }
          trims_lease_close(lease);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    stop = true;
    daemon_.KillWorker();
    killer.join();
    Ping();
    EXPECT_GT(trims_client_server_instance(client_), first_instance + 5) << "hardly anything died";
    Disconnect();
  }
}

TEST_F(ClientTest, ManyClosesWithoutAnyOtherCallAreAllApplied) {
  Connect();
  std::vector<trims_lease*> leases;
  for (int i = 0; i < 500; ++i) leases.push_back(Open());
  for (trims_lease* lease : leases) trims_lease_close(lease);
  Settle();
  EXPECT_EQ(daemon_.log().closes.size(), 500u);
  EXPECT_EQ(daemon_.log().connections, 1);
}

// --- The C++ wrapper, names, places ------------------------------------------------------

TEST_F(ClientTest, WrapperOwnsAndReports) {
  trims_connect_options options = Options();
  Expected<trims::Client> client = trims::Client::Connect(options);
  ASSERT_TRUE(client) << client.error().ToString();
  {
    Expected<trims::Lease> lease = client->Open("m");
    ASSERT_TRUE(lease);
    const std::optional<trims::Tensor> tensor = lease->FindTensor("t0000");
    ASSERT_TRUE(tensor);
    EXPECT_EQ(tensor->As<float>().size(), 16u);
    EXPECT_TRUE(tensor->As<double>().empty());
    EXPECT_EQ(tensor->dtype_name(), "F32");
    EXPECT_EQ(tensor->shape().size(), 2u);
    EXPECT_EQ(lease->extent(0).size(), kHostPageBytes);
    EXPECT_TRUE(lease->extent(1).empty());
    EXPECT_EQ(lease->FindMetadata("author"), "nobody");
    EXPECT_FALSE(lease->FindTensor("none"));
    trims::Lease moved = std::move(*lease);
    EXPECT_FALSE(*lease);
    EXPECT_TRUE(moved);
  }
  const Expected<trims::Lease> missing = client->Open("none");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().ToString(), "NOT_FOUND: no model of that name");
  EXPECT_FALSE(client->Ping());
  EXPECT_EQ(daemon_.log().closes.size(), 1u);

  daemon_.SetHook(IgnoreSlow);
  trims::OpenOptions cancelling;
  cancelling.progress = [](trims_phase, uint64_t, uint64_t) { return true; };
  const Expected<trims::Lease> cancelled = client->Open("slow", cancelling);
  ASSERT_FALSE(cancelled);
  EXPECT_EQ(cancelled.error().status(), TRIMS_CANCELLED);
}

TEST(Names, AreThoseOfTheCanonicalCodesAndOfSafetensors) {
  EXPECT_EQ(std::string(trims_status_name(TRIMS_DATA_LOSS)), "DATA_LOSS");
  EXPECT_EQ(std::string(trims_status_name(-5)), "UNKNOWN");
  EXPECT_EQ(std::string(trims_dtype_name(TRIMS_DTYPE_BF16)), "BF16");
  EXPECT_EQ(trims_dtype_bits(TRIMS_DTYPE_F4), 4u);
  for (const trims_dtype bad : {-1, 22, 1 << 20, 256 + TRIMS_DTYPE_F32}) {
    EXPECT_EQ(std::string(trims_dtype_name(bad)), "?");
    EXPECT_EQ(trims_dtype_bits(bad), 0u);
  }
  EXPECT_EQ(trims_version_number(), static_cast<uint32_t>(TRIMS_VERSION));
  EXPECT_EQ(std::string(trims_version()), TRIMS_VERSION_STRING);
}

TEST(FindPlaces, FirstThatIsSetDecides) {
  std::map<std::string, std::string> set;
  const auto environment = [&](const char* name) -> const char* {
    const auto found = set.find(name);
    return found == set.end() ? nullptr : found->second.c_str();
  };
  const std::string own = "/tmp/trims-" + std::to_string(geteuid()) + "/lease.sock";
  using Sockets = std::vector<std::string>;
  EXPECT_EQ(FindPlaces("", "", environment).sockets, (Sockets{"/run/trims/lease.sock", own}));
  set["XDG_RUNTIME_DIR"] = "/run/user/7";
  EXPECT_EQ(FindPlaces("", "", environment).sockets,
            (Sockets{"/run/trims/lease.sock", "/run/user/7/trims/lease.sock", own}));
  set["TRIMS_RUNTIME_DIR"] = "/rt/";
  EXPECT_EQ(FindPlaces("", "", environment).sockets, (Sockets{"/rt/lease.sock"}));
  set["TRIMS_SOCKET"] = "/s.sock";
  EXPECT_EQ(FindPlaces("", "", environment).sockets, (Sockets{"/s.sock"}));
  EXPECT_EQ(FindPlaces("", "/dir", environment).sockets, (Sockets{"/dir/lease.sock"}));
  EXPECT_EQ(FindPlaces("/x", "/dir", environment).sockets, (Sockets{"/x"}));
  set["TRIMS_SOCKET"] = "";
  EXPECT_EQ(FindPlaces("", "", environment).origin, "TRIMS_RUNTIME_DIR");
}

}  // namespace
}  // namespace trims::client

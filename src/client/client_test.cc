// The client library through its C interface, against a daemon that does what each
// test tells it to: opening, errors, progress, and what wraps the interface.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "client/places.h"
#include "client/test_client.h"
#include "client/weights.h"
#include "trims/trims.h"
#include "trims/trims.hpp"

namespace trims::client {
namespace {

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

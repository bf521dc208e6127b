// trims.hpp: that it adds owners to trims.h and takes nothing away.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/error_status.h"
#include "client/fake_daemon.h"
#include "trims/trims.hpp"

namespace trims::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class CppInterfaceTest : public testing::Test {
 protected:
  void SetUp() override {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = daemon_.directory().c_str();
    Expected<trims::Client> client = trims::Client::Connect(options);
    ASSERT_TRUE(client) << client.error().ToString();
    client_ = *std::move(client);
  }
  trims::Lease Open(const std::string& name = "m") {
    Expected<trims::Lease> lease = client_.Open(name);
    EXPECT_TRUE(lease) << lease.error().ToString();
    return lease ? *std::move(lease) : trims::Lease();
  }

  FakeDaemon daemon_;
  trims::Client client_;
};

TEST_F(CppInterfaceTest, TheVersionIsTheLibrarys) {
  EXPECT_EQ(Version(), TRIMS_VERSION_STRING);
  EXPECT_EQ(Version(), trims_version());
}

TEST_F(CppInterfaceTest, AClientKnowsWhomItTalksTo) {
  EXPECT_TRUE(client_);
  EXPECT_EQ(client_.socket_path(), daemon_.path());
  EXPECT_EQ(client_.server_version(), trims_client_server_version(client_.get()));
  EXPECT_FALSE(client_.server_version().empty());
  EXPECT_FALSE(client_.Ping());
}

TEST_F(CppInterfaceTest, AnotherWorkerIsAnotherInstance) {
  const uint64_t before = client_.server_instance();
  daemon_.KillWorker();
  EXPECT_FALSE(client_.Ping());  // Connects again.
  EXPECT_NE(client_.server_instance(), before);
  EXPECT_FALSE(client_.Service());
  EXPECT_GE(client_.poll_fd(), 0);
}

TEST_F(CppInterfaceTest, ALeaseHasTheNumberThatTheDaemonGaveIt) {
  const trims::Lease one = Open();
  EXPECT_EQ(one.id(), daemon_.last_lease_id());
  const trims::Lease other = Open();
  EXPECT_EQ(other.id(), daemon_.last_lease_id());
  EXPECT_NE(one.id(), other.id());
}

TEST_F(CppInterfaceTest, LeasesEndOnceWhereverTheyWereMoved) {
  uint64_t id = 0;
  {
    trims::Lease lease = Open();
    id = lease.id();
    const trims::Lease moved = std::move(lease);
    EXPECT_FALSE(lease);  // NOLINT: what a moved-from one is, is part of the interface.
    EXPECT_TRUE(moved);
  }
  trims::Lease closed = Open();
  const uint64_t second = closed.id();
  closed.Close();
  closed.Close();
  EXPECT_FALSE(closed);
  ASSERT_FALSE(client_.Ping());
  EXPECT_THAT(daemon_.log().closes, ElementsAre(id, second));
}

TEST_F(CppInterfaceTest, MetadataComesInTheOrderOfItsKeys) {
  const trims::Lease lease = Open();
  std::vector<std::pair<std::string, std::string>> all;
  for (uint32_t i = 0; i < lease.metadata_count(); ++i) {
    const auto pair = lease.metadata(i);
    ASSERT_TRUE(pair);
    all.emplace_back(pair->first, pair->second);
  }
  EXPECT_THAT(all, ElementsAre(std::pair<std::string, std::string>("author", "nobody"),
                               std::pair<std::string, std::string>("format", "pt")));
  EXPECT_FALSE(lease.metadata(lease.metadata_count()));
  EXPECT_EQ(lease.FindMetadata("format"), "pt");
  EXPECT_FALSE(lease.FindMetadata("licence"));
}

TEST_F(CppInterfaceTest, TensorsAreSpansOfTheLease) {
  daemon_.AddModel("two", MakeFakeModel(2, 7));
  const trims::Lease lease = Open("two");
  EXPECT_EQ(lease.tensor_count(), 2u);
  EXPECT_EQ(lease.extent_count(), 2u);
  const std::optional<trims::Tensor> tensor = lease.FindTensor("t0001");
  ASSERT_TRUE(tensor);
  EXPECT_EQ(tensor->name(), "t0001");
  EXPECT_EQ(tensor->dtype_name(), "F32");
  EXPECT_THAT(tensor->shape(), ElementsAre(4, 4));
  ASSERT_EQ(tensor->As<float>().size(), 16u);
  EXPECT_EQ(tensor->As<float>()[15], 1.0f);
  EXPECT_TRUE(tensor->As<double>().empty());  // Not as large as an element.
  EXPECT_EQ(tensor->bytes().data(), lease.extent(1).data());
  EXPECT_EQ(tensor->device_pointer(), reinterpret_cast<uintptr_t>(tensor->bytes().data()));
  EXPECT_FALSE(lease.tensor(2));
  EXPECT_FALSE(lease.FindTensor("t2"));
  EXPECT_TRUE(lease.extent(2).empty());
}

TEST_F(CppInterfaceTest, WhatALeaseSaysOfItselfIsWhatTheCInterfaceSays) {
  const trims::Lease lease = Open();
  EXPECT_EQ(lease.digest_text(), trims_lease_digest_text(lease.get()));
  EXPECT_EQ(lease.digest()[0], 1);
  EXPECT_EQ(lease.generation(), 100u);
  EXPECT_EQ(lease.tier(), TRIMS_TIER_HOST);
  EXPECT_EQ(lease.device_uuid(), "");
  EXPECT_EQ(lease.device_ordinal(), -1);
  EXPECT_EQ(lease.granularity(), TRIMS_GRANULARITY_MODEL);
  EXPECT_EQ(lease.total_bytes(), kHostPageBytes);
  EXPECT_EQ(lease.model_dir(), "");
  EXPECT_FALSE(lease.was_loaded());
  EXPECT_TRUE(lease.is_attached());
}

TEST_F(CppInterfaceTest, TheMemoryOfPredictorsIsToldAtTheEnd) {
  trims::Lease lease = Open();
  lease.set_peak_internal_bytes(12345);
  lease.Close();
  ASSERT_FALSE(client_.Ping());
  EXPECT_THAT(daemon_.log().peaks, ElementsAre(12345u));
}

TEST_F(CppInterfaceTest, ErrorsAreValuesWithTheFiguresOfAdmission) {
  daemon_.SetHook([](FakeDaemon&, FakeDaemon::Connection& connection, const Frame& frame) {
    if (frame.header.type != FrameType::kOpen) return false;
    FakeDaemon::SendFailed(connection, frame.header.request_id, StatusCode::kResourceExhausted,
                           "no room", 3, 2, 1);
    return true;
  });
  std::optional<Error> kept;
  {
    const Expected<trims::Lease> lease = client_.Open("m");
    ASSERT_FALSE(lease);
    kept = lease.error();
  }
  EXPECT_EQ(kept->status(), TRIMS_RESOURCE_EXHAUSTED);
  EXPECT_THAT(kept->message(), HasSubstr("no room"));
  EXPECT_EQ(kept->ToString(), "RESOURCE_EXHAUSTED: " + kept->message());
  EXPECT_EQ(kept->need_bytes(), 3u);
  EXPECT_EQ(kept->free_bytes(), 2u);
  EXPECT_EQ(kept->evictable_bytes(), 1u);
  const Status status = ErrorStatus(*kept);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), kept->message());
}

TEST_F(CppInterfaceTest, AFileIsOpenedThroughABorrowedDescriptor) {
  std::array<std::byte, 4> bytes{};
  const UniqueFd file = MakeMemfd(bytes, kHostPageBytes);
  const Expected<trims::Lease> lease = client_.OpenFile(file.get(), "m");
  ASSERT_TRUE(lease) << lease.error().ToString();
  EXPECT_GE(::fcntl(file.get(), F_GETFD), 0);  // Still open.
}

TEST(CppInterfaceEmptyTest, EmptyObjectsAreFalseAndEndNothing) {
  const trims::Client client;
  const trims::Lease lease;
  EXPECT_FALSE(client);
  EXPECT_FALSE(lease);
  EXPECT_EQ(client.get(), nullptr);
}

TEST(CppInterfaceEmptyTest, WithoutADaemonConnectingIsAnError) {
  trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
  options.runtime_dir = "/nonexistent/trims";
  const Expected<trims::Client> client = trims::Client::Connect(options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().status(), TRIMS_UNAVAILABLE);
  EXPECT_THAT(client.error().message(), HasSubstr("/nonexistent/trims"));
}

}  // namespace
}  // namespace trims::client
